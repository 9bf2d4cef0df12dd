//! HTTP/2 upstreams that break the protocol, and what an HTTP/1.1 client gets instead.

use lab::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PUSH_PROMISE, block, frame, headers, reset,
    window_update,
};

use super::{CANCEL, ENHANCE_YOUR_CALM, GET, HTTP_1_1_REQUIRED, PROTOCOL_ERROR, REFUSED_STREAM};

/// What the client gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gets {
    /// An answer of the agent's with this status and reason.
    Status(u16, &'static str),
    /// The upstream's answer: `hello`.
    Hello,
    /// A 200 whose body is cut.
    Cut,
}

/// An answer on stream 1.
#[derive(Debug)]
pub struct Answering {
    /// What it is about.
    pub what: &'static str,
    /// The frames.
    pub bytes: Vec<u8>,
    /// Whether the upstream then closes.
    pub closes: bool,
    /// What the client gets.
    pub gets: Gets,
}

fn row(what: &'static str, bytes: Vec<u8>, gets: Gets) -> Answering {
    Answering { what, bytes, closes: false, gets }
}

fn bad(what: &'static str, fields: &[(&str, &str)]) -> Answering {
    let bytes = [headers(1, 0, fields), frame(DATA, END_STREAM, 1, b"hello")].concat();
    row(what, bytes, Gets::Status(502, "h2_protocol_error"))
}

/// All of them.
pub fn answerings() -> Vec<Answering> {
    [heads(), bodies(), frames(), ends()].into_iter().flatten().collect()
}

const OK: (&str, &str) = (":status", "200");

fn heads() -> Vec<Answering> {
    let status = |what, status: &str| bad(what, &[(":status", status)]);
    let decided = |what, fields: &[(&str, &str)], reason| Answering {
        gets: Gets::Status(502, reason),
        ..bad(what, &[&[OK], fields].concat())
    };
    vec![
        bad("no status", &[("x", "y")]),
        bad("two statuses", &[OK, (":status", "404")]),
        status("a status of letters", "abc"),
        status("a status of two digits", "20"),
        status("an empty status", ""),
        // The frame layer leaves it out.
        Answering { gets: Gets::Hello, ..bad("a path", &[OK, (":path", "/")]) },
        bad("a status behind fields", &[("x", "y"), OK]),
        bad("connection", &[OK, ("connection", "close")]),
        bad("transfer-encoding", &[OK, ("transfer-encoding", "chunked")]),
        bad("upgrade", &[OK, ("upgrade", "x")]),
        bad("a name in upper case", &[OK, ("X-A", "y")]),
        bad("a value of two lines", &[OK, ("x", "a\r\nset-cookie: secret")]),
        bad("a value with NUL", &[OK, ("x", "a\0")]),
        decided("space around a value", &[("x", " a")], "header_value_space"),
        decided("101 fields", &[("x", "y"); 101], "header_too_many"),
        Answering { gets: Gets::Status(502, "status_out_of_range"), ..status("a switch", "101") },
        Answering { gets: Gets::Status(502, "status_out_of_range"), ..status("a status of 600", "600") },
        Answering { gets: Gets::Status(502, "status_out_of_range"), ..status("a status of 999", "999") },
        row(
            "a header block that is none",
            frame(HEADERS, END_HEADERS, 1, &[0xff; 20]),
            Gets::Status(502, "h2_protocol_error"),
        ),
    ]
}

fn bodies() -> Vec<Answering> {
    let length = |what, length: &str, body: &[u8], gets| {
        row(
            what,
            [headers(1, 0, &[OK, ("content-length", length)]), frame(DATA, END_STREAM, 1, body)].concat(),
            gets,
        )
    };
    let early = headers(1, 0, &[(":status", "103")]);
    vec![
        length("an ordinary answer", "5", b"hello", Gets::Hello),
        length("less data than content-length", "10", b"hello", Gets::Cut),
        length("more data than content-length", "4", b"hello", Gets::Cut),
        length("content-length of letters", "five", b"hello", Gets::Status(502, "h2_protocol_error")),
        row(
            "DATA before HEADERS",
            frame(DATA, END_STREAM, 1, b"hello"),
            Gets::Status(502, "h2_protocol_error"),
        ),
        row("40 interim answers", early.repeat(40), Gets::Status(502, "interim_too_many")),
        row(
            "pseudo-header fields in trailers",
            [headers(1, 0, &[OK]), frame(DATA, 0, 1, b"hello"), headers(1, END_STREAM, &[OK, ("x", "y")])]
                .concat(),
            Gets::Hello,
        ),
    ]
}

fn frames() -> Vec<Answering> {
    let wrong = |what, bytes| row(what, bytes, Gets::Status(502, "h2_protocol_error"));
    let promise = [&2_u32.to_be_bytes()[..], &block(&GET)].concat();
    let mut endless = frame(HEADERS, 0, 1, &block(&[OK]));
    endless.extend(frame(CONTINUATION, 0, 1, &block(&[("x", &"y".repeat(200))]).repeat(60)).repeat(200));
    vec![
        wrong("HEADERS on a stream that nobody opened", headers(3, 0, &[OK])),
        wrong("HEADERS on a stream of its own", headers(2, 0, &[OK])),
        wrong("a push, which we refuse", frame(PUSH_PROMISE, END_HEADERS, 1, &promise)),
        wrong("DATA on stream 0", frame(DATA, 0, 0, b"x")),
        wrong("CONTINUATION by itself", frame(CONTINUATION, END_HEADERS, 1, &[])),
        row("a frame beyond 16 KiB", frame(DATA, 0, 1, &vec![0; 16_385]), Gets::Status(502, "h2_frame_size")),
        row("a window beyond bounds", window_update(0, 0x7fff_ffff), Gets::Status(502, "h2_flow_control")),
        row("a header section without end", endless, Gets::Status(502, "h2_enhance_your_calm")),
        row(
            "HTTP/1.1",
            b"HTTP/1.1 400 Bad Request\r\nContent-Length: 6\r\n\r\nsecret".to_vec(),
            Gets::Status(502, "h2_frame_size"),
        ),
    ]
}

fn ends() -> Vec<Answering> {
    let code = |what, code, reason| row(what, reset(1, code), Gets::Status(503, reason));
    let go_away =
        |last: u32, code: u32| frame(GOAWAY, 0, 0, &[last.to_be_bytes(), code.to_be_bytes()].concat());
    let begun = || [headers(1, 0, &[OK]), frame(DATA, 0, 1, b"hel")].concat();
    vec![
        code("a reset", CANCEL, "upstream_reset_cancel"),
        code("a reset for calm", ENHANCE_YOUR_CALM, "upstream_reset_enhance_your_calm"),
        code("a reset for HTTP/1.1", HTTP_1_1_REQUIRED, "upstream_reset_http_1_1_required"),
        code("a reset for the protocol", PROTOCOL_ERROR, "upstream_reset_protocol_error"),
        code("a reset of an unknown code", 0xfafa, "upstream_reset"),
        code("a refusal", REFUSED_STREAM, "upstream_reset_refused_stream"),
        row("a reset within the body", [begun(), reset(1, CANCEL)].concat(), Gets::Cut),
        row("GOAWAY for an error", go_away(0, 1), Gets::Status(503, "upstream_closed")),
        Answering { closes: true, ..row("an end", Vec::new(), Gets::Status(503, "upstream_closed")) },
        Answering { closes: true, ..row("an end within the body", begun(), Gets::Cut) },
        Answering {
            closes: true,
            ..row(
                "an end within a frame",
                frame(HEADERS, 0, 1, b"xx")[..10].to_vec(),
                Gets::Status(503, "upstream_closed"),
            )
        },
    ]
}
