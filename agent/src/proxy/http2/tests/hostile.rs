//! Frames that no well-behaved client sends, byte by byte, and exactly what each earns.

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::peers::{echo, rest, upstream};
use crate::model::AppProtocol;
use crate::proxy::http::tests::harness::{Proxy, Setup, run};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const FRAME_SIZE_ERROR: u32 = 6;
const COMPRESSION_ERROR: u32 = 9;
const ENHANCE_YOUR_CALM: u32 = 11;

/// A frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short payload").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header block of literals without indexing.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            let length = u8::try_from(text.len()).expect("a short text");
            if length < 127 {
                block.push(length);
            } else {
                block.extend([127, length - 127]);
            }
            block.extend(text.as_bytes());
        }
    }
    block
}

fn headers(stream: u32, flags: u8, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, stream, &block(fields))
}

const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":authority", "web"), (":path", "/")];

fn get_with(more: &[(&str, &str)]) -> Vec<u8> {
    headers(1, END_STREAM, &[&GET[..], more].concat())
}

/// What the proxy said of a stream or of the connection.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    /// The stream was answered.
    Answer,
    /// The stream was reset with this code.
    Reset(u32),
    /// The connection was ended with this code.
    GoAway(u32),
    /// The connection was closed.
    Closed,
}

async fn hear(io: &mut TcpStream) -> Said {
    let mut read = BytesMut::new();
    loop {
        while read.len() >= 9 {
            let length = usize::from(read[0]) << 16 | usize::from(read[1]) << 8 | usize::from(read[2]);
            if read.len() < 9 + length {
                break;
            }
            let frame = read.split_to(9 + length);
            let word =
                |at: usize| u32::from_be_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
            match frame[3] {
                HEADERS => return Said::Answer,
                RST_STREAM => return Said::Reset(word(9)),
                GOAWAY if word(13) != 0 => return Said::GoAway(word(13)),
                _ => {}
            }
        }
        if !matches!(io.read_buf(&mut read).await, Ok(1..)) {
            return Said::Closed;
        }
    }
}

async fn open(proxy: &Proxy) -> TcpStream {
    let mut io = proxy.connect().await;
    let hello = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, &[])].concat();
    io.write_all(&hello).await.expect("the proxy reads");
    io
}

async fn proxy() -> Proxy {
    let upstream = echo().await;
    Setup::service(&[upstream]).speaking(AppProtocol::Http2).start().await
}

#[test]
fn heads() {
    run(async {
        let proxy = proxy().await;
        let mut wrong = Vec::new();
        let mut check = async |what: &str, bytes: Vec<u8>, expected: Said| {
            let mut io = open(&proxy).await;
            io.write_all(&bytes).await.expect("the proxy reads");
            let said = hear(&mut io).await;
            if said != expected {
                wrong.push(format!("{what}: {said:?}"));
            }
        };
        let reset = || Said::Reset(PROTOCOL_ERROR);
        check("a good request", get_with(&[]), Said::Answer).await;
        for (name, value) in [
            ("connection", "close"),
            ("keep-alive", "1"),
            ("proxy-connection", "close"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("te", "gzip"),
            ("te", "trailers, gzip"),
            (":status", "200"),
            (":method", "POST"),
            (":path", "/other"),
            (":authority", "other"),
            (":scheme", "https"),
            ("content-length", "5"),
        ] {
            check(&format!("{name}: {value}"), get_with(&[(name, value)]), reset()).await;
        }
        check("an unknown pseudo-header field", get_with(&[(":unknown", "x")]), Said::GoAway(PROTOCOL_ERROR))
            .await;
        for missing in GET.into_iter().filter(|(name, _)| *name != ":authority") {
            let fields: Vec<_> = GET.into_iter().filter(|field| *field != missing).collect();
            check(&format!("no {}", missing.0), headers(1, END_STREAM, &fields), reset()).await;
        }
        let late = [&[("x", "y")], &GET[..]].concat();
        check("pseudo-header fields after others", headers(1, END_STREAM, &late), reset()).await;
        let upgraded = [
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "/"),
        ];
        check("extended CONNECT, which nobody offered", headers(1, END_STREAM, &upgraded), reset()).await;
        assert!(wrong.is_empty(), "{wrong:#?}");
        for seen in proxy.records(1).await {
            assert!(seen.status == 0 || seen.upstream.is_none() || seen.status == 200, "{seen:?}");
        }
    });
}

#[test]
fn names_and_values_that_are_none_in_http1() {
    run(async {
        let proxy = proxy().await;
        for (name, value) in [
            ("X-Upper", "1"),
            ("x y", "1"),
            ("x:y", "1"),
            ("x\r\ny", "1"),
            ("", "1"),
            ("x", "a\r\nhost: evil"),
            ("x", "a\0"),
            ("x", "a\n"),
            ("x", "\x7f"),
        ] {
            let mut io = open(&proxy).await;
            io.write_all(&get_with(&[(name, value)])).await.expect("the proxy reads");
            let said = hear(&mut io).await;
            let refused =
                [Said::Reset(PROTOCOL_ERROR), Said::GoAway(PROTOCOL_ERROR), Said::GoAway(COMPRESSION_ERROR)];
            assert!(refused.contains(&said), "{name:?}: {value:?} was answered with {said:?}");
        }
    });
}

#[test]
fn pseudo_header_fields_in_trailers_reach_nobody() {
    run(async {
        let upstream = upstream(|mut call| async move {
            let trailers = rest(call.request.body_mut()).await.expect("a whole request").1;
            assert_eq!(
                trailers.map(|fields| fields.keys().map(ToString::to_string).collect()),
                Some(vec!["x".to_owned()])
            );
            call.answer(&[], true);
        })
        .await;
        let proxy = Setup::service(&[upstream]).speaking(AppProtocol::Http2).start().await;
        let mut io = open(&proxy).await;
        let trailers = headers(1, END_STREAM, &[(":path", "/x"), ("x", "y")]);
        io.write_all(&[headers(1, 0, &GET), trailers].concat()).await.expect("the proxy reads");
        // The frame layer leaves them out, and says nothing of it.
        assert_eq!(hear(&mut io).await, Said::Answer);
        assert_eq!(proxy.records(1).await[0].status, 200);
    });
}

#[test]
fn lengths_that_the_data_belies() {
    run(async {
        let proxy = proxy().await;
        let post = |length: &str| {
            let head = [(":method", "POST"), (":scheme", "http"), (":authority", "web"), (":path", "/")];
            headers(1, 0, &[&head[..], &[("content-length", length)]].concat())
        };
        for (length, body) in [("5", &b"hell"[..]), ("5", b"hello!"), ("0", b"x")] {
            let mut io = open(&proxy).await;
            let bytes = [post(length), frame(DATA, END_STREAM, 1, body)].concat();
            io.write_all(&bytes).await.expect("the proxy reads");
            let said = hear(&mut io).await;
            assert_eq!(said, Said::Reset(PROTOCOL_ERROR), "{length} for {body:?}");
        }
    });
}

#[test]
fn frames() {
    run(async {
        let proxy = proxy().await;
        let mut wrong = Vec::new();
        let mut check = async |what: &str, bytes: Vec<u8>, expected: u32| {
            let mut io = open(&proxy).await;
            io.write_all(&bytes).await.expect("the proxy reads");
            let said = hear(&mut io).await;
            if said != Said::GoAway(expected) {
                wrong.push(format!("{what}: {said:?}"));
            }
        };
        check("DATA on stream 0", frame(DATA, 0, 0, b"x"), PROTOCOL_ERROR).await;
        check("DATA before HEADERS", frame(DATA, 0, 1, b"x"), PROTOCOL_ERROR).await;
        check("an even stream", headers(2, END_STREAM, &GET), PROTOCOL_ERROR).await;
        check("HEADERS on stream 0", headers(0, END_STREAM, &GET), PROTOCOL_ERROR).await;
        check(
            "a lower stream",
            [headers(3, END_STREAM, &GET), headers(1, END_STREAM, &GET)].concat(),
            PROTOCOL_ERROR,
        )
        .await;
        // The frame layer tells frames that it can't read from others by ending the connection, not by the code.
        check("a PING that is too short", frame(PING, 0, 0, &[0; 7]), PROTOCOL_ERROR).await;
        check("SETTINGS of half a setting", frame(SETTINGS, 0, 0, &[0; 5]), PROTOCOL_ERROR).await;
        check("a frame of 16 KiB and a byte", frame(DATA, 0, 1, &vec![0; 16_385]), FRAME_SIZE_ERROR).await;
        check("CONTINUATION by itself", frame(CONTINUATION, END_HEADERS, 1, &[]), PROTOCOL_ERROR).await;
        check(
            "a header block that is none",
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff; 20]),
            PROTOCOL_ERROR,
        )
        .await;
        check("a window of nothing more", frame(WINDOW_UPDATE, 0, 0, &[0; 4]), PROTOCOL_ERROR).await;
        check(
            "a window beyond bounds",
            frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
            FLOW_CONTROL_ERROR,
        )
        .await;
        let push = frame(5, END_HEADERS, 1, &[&2_u32.to_be_bytes()[..], &block(&GET)].concat());
        check("a client that pushes", [headers(1, 0, &GET), push].concat(), PROTOCOL_ERROR).await;
        let interleaved = [frame(HEADERS, 0, 1, &block(&GET)), frame(PING, 0, 0, &[0; 8])].concat();
        check("a frame between HEADERS and CONTINUATION", interleaved, PROTOCOL_ERROR).await;
        assert!(wrong.is_empty(), "{wrong:#?}");
    });
}

#[test]
fn floods() {
    run(async {
        let proxy = proxy().await;
        // Rapid reset: each stream is opened and reset in one write.
        let mut rapid = Vec::new();
        for number in 0..1000_u32 {
            rapid.extend(headers(2 * number + 1, END_STREAM, &GET));
            rapid.extend(frame(RST_STREAM, 0, 2 * number + 1, &8_u32.to_be_bytes()));
        }
        // A header section without end, in frames that each are allowed.
        let mut endless = frame(HEADERS, 0, 1, &block(&GET));
        for _ in 0..100 {
            endless.extend(frame(CONTINUATION, 0, 1, &block(&[("x", &"y".repeat(200))]).repeat(60)));
        }
        // The same with frames that carry nothing.
        let mut empty = frame(HEADERS, 0, 1, &block(&GET));
        for _ in 0..10_000 {
            empty.extend(frame(CONTINUATION, 0, 1, &[]));
        }
        let mut nothing = headers(1, 0, &GET);
        for _ in 0..200_000 {
            nothing.extend(frame(DATA, 0, 1, &[]));
        }
        for (what, bytes) in [
            ("rapid reset", rapid),
            ("CONTINUATION", endless),
            ("empty CONTINUATION", empty),
            ("empty DATA", nothing),
        ] {
            let io = open(&proxy).await;
            let (mut read, mut write) = io.into_split();
            // The proxy stops reading somewhere on the way.
            tokio::task::spawn_local(async move {
                let _ = write.write_all(&bytes).await;
                std::future::pending::<()>().await;
            });
            let mut all = Vec::new();
            let _ = read.read_to_end(&mut all).await;
            let goaway = all.windows(17).any(|bytes| {
                bytes[3..5] == [GOAWAY, 0]
                    && bytes[5..9] == [0; 4]
                    && bytes[13..] == ENHANCE_YOUR_CALM.to_be_bytes()
            });
            assert!(goaway, "{what}: no GOAWAY in {} bytes", all.len());
        }
        let records = proxy.records(4).await;
        assert!(records.iter().any(|seen| seen.details == "h2_continuation_flood" && seen.flags == "DPE"));
    });
}

#[test]
fn a_head_beyond_the_limit_is_431_and_the_connection_goes_on() {
    run(async {
        let proxy = proxy().await;
        let mut io = open(&proxy).await;
        let long = "y".repeat(200);
        let many: Vec<_> = (0..75).map(|_| ("x", &*long)).collect();
        let mut bytes = frame(HEADERS, END_STREAM, 1, &block(&GET));
        for part in 0..5 {
            let flags = if part == 4 { END_HEADERS } else { 0 };
            bytes.extend(frame(CONTINUATION, flags, 1, &block(&many)));
        }
        io.write_all(&bytes).await.expect("the proxy reads");
        assert_eq!(hear(&mut io).await, Said::Answer);
        io.write_all(&headers(3, END_STREAM, &GET)).await.expect("the proxy reads");
        assert_eq!(hear(&mut io).await, Said::Answer);
        let seen = proxy.records(2).await;
        assert_eq!((seen[0].status, &*seen[0].flags, seen[0].details), (431, "DPE", "header_too_long"));
        assert_eq!((seen[1].status, &*seen[1].path), (200, "/"));
    });
}
