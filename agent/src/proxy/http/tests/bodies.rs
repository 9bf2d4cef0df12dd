//! Bodies of every framing, both ways, with backpressure.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::harness::*;

/// An upstream that answers with the head and chunked body it got, as a chunked body.
async fn mirrors_chunks() -> std::net::SocketAddr {
    upstream(|mut peer, _| async move {
        let (_, body) = peer.chunked().await;
        peer.send(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}")).await;
        peer.head().await;
    })
    .await
}

#[test]
fn chunks_pass_both_ways_without_their_extensions() {
    run(async {
        let proxy = Setup::service(&[mirrors_chunks().await]).start().await;
        let mut client = proxy.client().await;
        client.send("POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        client.send("5;ext=1\r\nhello\r\n6\r\n world\r\n0\r\n\r\n").await;
        let (_, body) = client.chunked().await;
        assert_eq!(body, "5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n");
        let records = proxy.records(1).await;
        assert_eq!((records[0].request_bytes, records[0].response_bytes), (11, 11));
        assert_eq!(proxy.worker.pool().len(), 1);
    });
}

#[test]
fn trailers_pass_but_for_what_only_heads_may_hold() {
    run(async {
        let response = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: grpc-status\r\n\r\n\
            2\r\nok\r\n0\r\ngrpc-status: 0\r\nContent-Length: 9\r\n\r\n";
        let proxy = Setup::service(&[says(response).await]).start().await;
        let request = "GET / HTTP/1.1\r\nHost: web\r\nTE: trailers\r\nConnection: close\r\n\r\n";
        assert!(proxy.exchange(request).await.ends_with("\r\n\r\n2\r\nok\r\n0\r\ngrpc-status: 0\r\n\r\n"));
    });
}

#[test]
fn the_end_of_a_response_is_told_as_the_client_understands() {
    run(async {
        let check = async |response: &'static [u8], version: &str, expected: &str, kept: bool| {
            let proxy = Setup::service(&[says(response).await]).start().await;
            let mut client = proxy.client().await;
            client.send(format!("GET / HTTP/{version}\r\nHost: web\r\n\r\n")).await;
            let head = client.head().await;
            let case = format!("{:?} to {version}", response.escape_ascii().to_string());
            assert_eq!(field(&head, "connection").is_none(), kept, "{case}: {head}");
            assert_eq!(
                field(&head, "transfer-encoding").is_some(),
                expected.ends_with("0\r\n\r\n"),
                "{case}"
            );
            assert_eq!(client.bytes(expected.len()).await, expected, "{case}");
            if !kept {
                assert_eq!(client.rest().await, "", "{case}");
            }
        };
        let by_close = b"HTTP/1.1 200 OK\r\n\r\nhello";
        check(by_close, "1.1", "5\r\nhello\r\n0\r\n\r\n", true).await;
        check(by_close, "1.0", "hello", false).await;
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
        check(chunked, "1.1", "5\r\nhello\r\n0\r\n\r\n", true).await;
        check(chunked, "1.0", "hello", false).await;
        check(b"HTTP/1.0 200 OK\r\n\r\nhello", "1.1", "5\r\nhello\r\n0\r\n\r\n", true).await;
        check(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "1.1", "hello", true).await;
    });
}

#[test]
fn responses_without_a_body_have_none_whatever_they_declare() {
    run(async {
        let check = async |method: &str, response: &'static str, length: Option<&str>| {
            let address = upstream(move |mut peer, _| async move {
                while !peer.head().await.is_empty() {
                    peer.send(response).await;
                }
            })
            .await;
            let proxy = Setup::service(&[address]).start().await;
            let mut client = proxy.client().await;
            // The second answer shows that nothing was taken for a body of the first.
            for _ in 0..2 {
                client.send(format!("{method} / HTTP/1.1\r\nHost: web\r\n\r\n")).await;
                let head = client.head().await;
                assert_eq!(head.lines().next(), response.lines().next());
                assert_eq!(field(&head, "content-length").as_deref(), length, "{head}");
                assert_eq!(field(&head, "transfer-encoding"), None, "{head}");
            }
            assert_eq!(proxy.worker.pool().len(), 1, "{response:?}");
        };
        check("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", Some("1000")).await;
        check("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", None).await;
        check("HEAD", "HTTP/1.1 404 Not Found\r\n\r\n", None).await;
        check("GET", "HTTP/1.1 204 No Content\r\n\r\n", None).await;
        check("GET", "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", None).await;
        check("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\n\r\n", Some("1000")).await;
        check("GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Some("0")).await;
    });
}

/// A byte for each position, so that bytes in a wrong place show.
fn pattern(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(|at| u8::try_from(at % 251).expect("below 251")).collect()
}

const BLOCK: usize = 251 * 256;
const BLOCKS: usize = 1100;

#[test]
fn a_large_body_passes_both_ways_at_once() {
    run(async {
        let whole = BLOCK * BLOCKS;
        let address = upstream(move |mut peer, _| async move {
            let head = peer.head().await;
            assert_eq!(field(&head, "content-length"), Some(whole.to_string()));
            peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {whole}\r\n\r\n")).await;
            let (mut read, mut write) = peer.into_parts();
            tokio::io::copy(&mut read, &mut write).await.expect("mirrors");
        })
        .await;
        let proxy = Setup::service(&[address]).start().await;
        let mut client = proxy.client().await;
        client.send(format!("PUT / HTTP/1.1\r\nHost: web\r\nContent-Length: {whole}\r\n\r\n")).await;
        let block = pattern(0, BLOCK);
        let (mut read, mut write) = client.into_parts();
        let sent = block.clone();
        tokio::task::spawn_local(async move {
            for _ in 0..BLOCKS {
                write.write_all(&sent).await.expect("sends");
            }
            std::future::pending::<()>().await;
        });
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(read.read_u8().await.expect("a head"));
        }
        let mut got = vec![0; BLOCK];
        for number in 0..BLOCKS {
            read.read_exact(&mut got).await.expect("the body");
            assert!(got == block, "block {number} differs");
        }
        let records = proxy.records(1).await;
        assert_eq!((records[0].request_bytes, records[0].response_bytes), (whole as u64, whole as u64));
    });
}

#[test]
fn a_slow_reader_holds_its_sender_back() {
    run(async {
        const WHOLE: usize = 256 * 1024 * 1024;
        let sent = std::rc::Rc::new(std::cell::Cell::new(0));
        let counted = std::rc::Rc::clone(&sent);
        let address = upstream(move |mut peer, _| {
            let counted = std::rc::Rc::clone(&counted);
            async move {
                peer.head().await;
                peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {WHOLE}\r\n\r\n")).await;
                let block = vec![0; 64 * 1024];
                while counted.get() < WHOLE {
                    let Ok(bytes) = peer.io.write(&block).await else { return };
                    counted.set(counted.get() + bytes);
                }
            }
        })
        .await;
        let proxy = Setup::service(&[address]).start().await;
        let mut client = proxy.client().await;
        client.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        client.head().await;
        // Until nothing moves any more: the sockets' buffers are full and the proxy holds one of its own.
        let mut last = 0;
        let mut still = 0;
        while still < 2000 {
            tokio::task::yield_now().await;
            still = if sent.get() == last { still + 1 } else { 0 };
            last = sent.get();
        }
        assert!(last < WHOLE / 4, "{last} bytes were taken from the upstream though nobody reads");
    });
}

#[test]
fn an_answer_before_the_body_is_whole_reaches_the_client() {
    run(async {
        let early = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig";
        let proxy = Setup::service(&[says(early).await]).start().await;
        // The rest of the body is small enough to be dropped, and the connection goes on.
        let mut client = proxy.client().await;
        client.send("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 10\r\n\r\n12345").await;
        assert_eq!(client.message().await.1, "big");
        client.send("67890GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        assert_eq!(client.message().await.1, "big");
        // A body that never comes ends it, after the answer.
        let mut client = proxy.client().await;
        client.send("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 99999999\r\n\r\n12345").await;
        assert_eq!(client.message().await.1, "big");
        assert_eq!(client.rest().await, "");
    });
}

#[test]
fn continue_is_asked_of_the_upstream() {
    run(async {
        let address = upstream(|mut peer, _| async move {
            let head = peer.head().await;
            assert_eq!(field(&head, "expect").as_deref(), Some("100-continue"));
            peer.send("HTTP/1.1 100 Continue\r\n\r\n").await;
            let body = peer.bytes(5).await;
            peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n{body}")).await;
            peer.head().await;
        })
        .await;
        let proxy = Setup::service(&[address]).start().await;
        let mut client = proxy.client().await;
        client
            .send("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
            .await;
        assert_eq!(client.head().await.lines().next(), Some("HTTP/1.1 100 Continue"));
        client.send("hello").await;
        let (head, body) = client.message().await;
        assert_eq!((field(&head, "connection"), &*body), (None, "hello"));
        assert_eq!(proxy.worker.pool().len(), 1);
    });
}

#[test]
fn a_client_that_waits_for_continue_is_not_slow() {
    run(async {
        let (gate, opened) = gate();
        let address = upstream(move |mut peer, number| {
            let opened = opened.clone();
            async move {
                peer.head().await;
                if number == 0 {
                    opened.notified().await;
                }
                peer.send("HTTP/1.1 100 Continue\r\n\r\n").await;
                if number == 0 {
                    let body = peer.bytes(5).await;
                    let head = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5";
                    peer.send(format!("{head}\r\n\r\n{body}")).await;
                }
                peer.rest().await;
            }
        })
        .await;
        let mut setup = Setup::service(&[address]);
        setup.captured.body_timeout = Some(Duration::from_millis(50));
        let proxy = setup.start().await;
        let request = "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
        let mut client = proxy.client().await;
        client.send(request).await;
        // One that does not wait and came later has had its time by then.
        let witness = proxy.exchange(&request.replace("Expect", "X-Expect")).await;
        assert!(witness.contains("\r\n\r\nHTTP/1.1 408 "), "{witness}");
        gate.notify_one();
        assert_eq!(client.head().await.lines().next(), Some("HTTP/1.1 100 Continue"));
        client.send("hello").await;
        assert_eq!(client.message().await.1, "hello");
        // Told to go on, it has no more time than others.
        let answer = proxy.exchange(request).await;
        assert!(answer.starts_with("HTTP/1.1 100 ") && answer.contains("\r\n\r\nHTTP/1.1 408 "), "{answer}");
        assert_eq!(proxy.records(3).await[2].details, "body_timeout");
    });
}

#[test]
fn an_answer_instead_of_continue_ends_the_connection() {
    run(async {
        let proxy = Setup::service(&[says(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno").await])
            .start()
            .await;
        let mut client = proxy.client().await;
        client
            .send("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
            .await;
        let (head, body) = client.message().await;
        assert_eq!((field(&head, "connection").as_deref(), &*body), (Some("close"), "no"));
        assert_eq!(client.rest().await, "");
    });
}

#[test]
fn interim_responses_pass_to_http11_alone() {
    run(async {
        let response = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n\
            HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        let proxy = Setup::service(&[says(response).await]).start().await;
        let seen = proxy.exchange("GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").await;
        assert!(seen.starts_with("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n"), "{seen}");
        assert!(seen.contains("\r\n\r\nHTTP/1.1 200 OK\r\n"), "{seen}");
        let seen = proxy.exchange("GET / HTTP/1.0\r\n\r\n").await;
        assert!(seen.starts_with("HTTP/1.1 200 OK\r\n"), "{seen}");
    });
}
