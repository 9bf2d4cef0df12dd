//! What goes wrong, and what each side then sees.

use std::time::Duration;

use super::harness::*;
use crate::model::{
    AuthorizationPolicy, MtlsMode, ObjectName, PeerAuthentication, PolicyAction, PolicyScope,
};

const GET: &str = "GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";

fn status(answer: &str) -> u16 {
    answer.get(9..12).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("no status in {answer:?}"))
}

#[test]
fn hostile_requests_are_refused_and_nobody_sees_them() {
    run(async {
        let address = upstream(|mut peer, _| async move {
            assert_eq!(peer.rest().await, "", "a refused request got through");
        })
        .await;
        let proxy = Setup::service(&[address]).start().await;
        let mut count = 0;
        let mut check = async |request: &str, expected: u16, details: &str| {
            let answer = proxy.exchange(request).await;
            assert_eq!(status(&answer), expected, "{request:?}: {answer}");
            assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "one answer and the end: {answer}");
            assert!(answer.contains("connection: close\r\n"), "{answer}");
            count += 1;
            let seen = proxy.records(count).await.pop().expect("a record");
            assert_eq!((seen.status, &*seen.flags, seen.details), (expected, "DPE", details), "{request:?}");
            assert_eq!(seen.method, "-");
        };
        let tail = "GET /smuggled HTTP/1.1\r\nHost: web\r\n\r\n";
        let post = "POST / HTTP/1.1\r\nHost: web\r\n";
        check(
            &format!("{post}Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{tail}"),
            400,
            "transfer_encoding_with_content_length",
        )
        .await;
        check(
            &format!("{post}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello{tail}"),
            400,
            "content_length_repeated",
        )
        .await;
        check(
            &format!("{post}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{tail}"),
            400,
            "transfer_encoding_not_chunked",
        )
        .await;
        check(
            &format!("{post}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n{tail}"),
            400,
            "header_space_before_colon",
        )
        .await;
        check(&format!("{post}X: y\r\n Transfer-Encoding: chunked\r\n\r\n{tail}"), 400, "header_obs_fold")
            .await;
        check(&format!("{post}X: y\nContent-Length: 5\r\n\r\nhello{tail}"), 400, "bare_lf").await;
        check(&format!("GET / HTTP/1.1\n\n{tail}"), 400, "bare_lf").await;
        check(&format!("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n{tail}"), 400, "host_repeated").await;
        check(&format!("GET / HTTP/1.1\r\n\r\n{tail}"), 400, "host_missing").await;
        check("CONNECT db:3306 HTTP/1.1\r\nHost: db:3306\r\n\r\n", 405, "method_connect").await;
        check("GET / HTTP/2.0\r\nHost: web\r\n\r\n", 505, "version_unsupported").await;
        check("\x16\x03\x01\x02\0\x01", 400, "head_control_byte").await;
        check(&format!("GET /{} HTTP/1.1\r\nHost: web\r\n\r\n", "a".repeat(9000)), 414, "target_too_long")
            .await;
        check(
            &format!("GET / HTTP/1.1\r\nHost: web\r\nX: {}\r\n\r\n", "a".repeat(66_000)),
            431,
            "header_too_long",
        )
        .await;
        check(
            &format!("GET / HTTP/1.1\r\nHost: web\r\n{}\r\n", "a: b\r\n".repeat(100)),
            431,
            "header_too_many",
        )
        .await;
    });
}

#[test]
fn a_refused_head_request_gets_no_body() {
    run(async {
        let proxy = Setup::service(&[nobody()]).start().await;
        for empty_line in ["", "\r\n"] {
            let answer = proxy.exchange(&format!("{empty_line}HEAD / HTTP/1.1\r\n\r\n")).await;
            assert_eq!(status(&answer), 400, "{answer}");
            assert!(answer.ends_with("\r\n\r\n") && answer.contains("host_missing"), "{answer}");
        }
    });
}

#[test]
fn a_request_body_that_breaks_its_chunks_ends_both_connections() {
    run(async {
        let address = upstream(|mut peer, _| async move {
            peer.head().await;
            assert!(!peer.rest().await.contains("smuggled"), "bytes after the break got through");
        })
        .await;
        let proxy = Setup::service(&[address]).start().await;
        for broken in [
            "5\r\nhelloX\r\n",
            "\r\n",
            "5\nhello",
            "5 \r\nhello",
            "2\r\nok\r\n0\r\n\n",
            "ffffffffffffffff0\r\n",
        ] {
            let request =
                format!("POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n{broken}");
            let answer =
                proxy.exchange(&format!("{request}GET /smuggled HTTP/1.1\r\nHost: web\r\n\r\n")).await;
            assert_eq!(status(&answer), 400, "{broken:?}: {answer}");
            assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
        }
        assert!(proxy.worker.pool().is_empty());
        assert!(proxy.records(6).await.iter().all(|seen| seen.flags == "DPE" && seen.method == "POST"));
    });
}

#[test]
fn garbage_from_the_upstream_is_a_bad_gateway() {
    run(async {
        let check = async |response: &'static [u8], expected: u16, flags: &str, details: &str| {
            let proxy = Setup::service(&[says(response).await]).start().await;
            let answer = proxy.exchange(GET).await;
            let case = response.escape_ascii().to_string();
            assert_eq!(status(&answer), expected, "{case}: {answer}");
            let seen = proxy.records(1).await.remove(0);
            assert_eq!((seen.status, &*seen.flags, seen.details), (expected, flags, details), "{case}");
            let proxy_status = field(&answer, "proxy-status").expect("why");
            assert!(proxy_status.contains(&format!("details=\"{details}\"")), "{proxy_status}");
            assert!(proxy.worker.pool().is_empty(), "{case}");
        };
        check(b"hello\r\n\r\n", 502, "UPE", "version_malformed").await;
        check(b"SSH-2.0-OpenSSH_9.2\r\n", 502, "UPE", "head_truncated").await;
        check(b"\x15\x03\x01\0\x02", 502, "UPE", "head_control_byte").await;
        check(b"HTTP/1.1 200 OK\n\n", 502, "UPE", "bare_lf").await;
        check(b"HTTP/1.1 2000 OK\r\n\r\n", 502, "UPE", "status_malformed").await;
        check(b"HTTP/1.1 200 OK\r\na : b\r\n\r\n", 502, "UPE", "header_space_before_colon").await;
        check(
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            502,
            "UPE",
            "content_length_repeated",
        )
        .await;
        check(
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            502,
            "UPE",
            "transfer_encoding_with_content_length",
        )
        .await;
        check(
            b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            502,
            "UPE",
            "transfer_encoding_in_http10",
        )
        .await;
        check(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 502, "UPE", "chunk_size").await;
        check(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", 502, "UPE", "upgrade_unasked").await;
        check(b"HTTP/1.1 200 OK\r\nContent-Le", 502, "UPE", "head_truncated").await;
        check(b"", 503, "UC", "upstream_closed").await;
    });
}

#[test]
fn a_response_that_is_cut_short_is_not_passed_off_as_whole() {
    run(async {
        let check = async |response: &'static [u8], version: &str, end: &str| {
            // Nothing but a reset tells an HTTP/1.0 client, whose body may end with the connection.
            let reset = version == "1.0";
            let proxy = Setup::service(&[says(response).await]).start().await;
            let mut client = proxy.client().await;
            client.send(format!("GET / HTTP/{version}\r\nHost: web\r\n\r\n")).await;
            let got = client.until_reset().await;
            assert!(got.0.ends_with(end), "{got:?}");
            assert_eq!(got.1, reset, "{got:?}");
            let seen = proxy.records(1).await.remove(0);
            assert_eq!((seen.status, &*seen.flags), (200, "UC"));
            assert!(proxy.worker.pool().is_empty());
        };
        check(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", "1.1", "hello").await;
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
        check(chunked, "1.1", "5\r\nhello\r\n").await;
        check(chunked, "1.0", "hello").await;
        check(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", "1.0", "hello").await;
    });
}

/// What has been sent of a cut answer reaches a client that reads late, while it is still sending itself.
#[test]
fn a_cut_answer_loses_nothing_that_came() {
    run(async {
        let half = "x".repeat(100_000);
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n{half}");
        let address = upstream(move |mut peer, _| {
            let answer = answer.clone();
            async move {
                peer.head().await;
                peer.send(answer).await;
            }
        })
        .await;
        let proxy = Setup::service(&[address]).start().await;
        let mut client = proxy.client().await;
        client.send("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 100\r\n\r\nhello").await;
        // Only once the proxy has given up does the client send more, and then read.
        assert_eq!(&*proxy.records(1).await[0].flags, "UC");
        client.send("hello").await;
        let (got, reset) = client.until_reset().await;
        assert!(got.ends_with("xxx") && got.len() > 100_000 && !reset, "{} bytes, reset: {reset}", got.len());
    });
}

/// A server that is reset in the middle of a body that ends with its connection, while it is still sent to: the error is
/// told to the writer alone, and the reader sees an end like any other.
#[test]
fn a_reset_that_the_upload_hears_of_is_no_end_of_the_answer() {
    run(async {
        // Sends until nothing is taken any more, then resets.
        let address = upstream(|mut peer, _| async move {
            peer.head().await;
            peer.send("HTTP/1.1 200 OK\r\n\r\n").await;
            let (block, mut refused) = (vec![b'x'; 64 * 1024], 0);
            while refused < 1000 {
                refused = if peer.io.try_write(&block).is_ok() { 0 } else { refused + 1 };
                tokio::task::yield_now().await;
            }
            peer.io.set_zero_linger().expect("a socket");
        })
        .await;
        let proxy = Setup::service(&[address]).start().await;
        let mut client = proxy.client().await;
        client.send("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 100000000\r\n\r\nhello").await;
        client.io.readable().await.expect("the answer begins");
        // The proxy can't pass the answer on, and its upload meets the reset. It reads from the client until then.
        let more = [b'y'; 1000];
        let mut refused = 0;
        while refused < 3000 {
            refused = if client.io.try_write(&more).is_ok() { 0 } else { refused + 1 };
            tokio::task::yield_now().await;
        }
        let (got, _) = client.until_reset().await;
        assert!(got.starts_with("HTTP/1.1 200 OK\r\n"));
        assert!(!got.ends_with("0\r\n\r\n"), "cut, yet ended as if whole");
        let seen = proxy.records(1).await.remove(0);
        assert_eq!((&*seen.flags, seen.details), ("UC", "upstream_truncated"));
    });
}

#[test]
fn an_endpoint_that_refuses_is_passed_over() {
    run(async {
        let proxy = Setup::service(&[nobody(), echo().await, nobody()]).start().await;
        for _ in 0..6 {
            assert_eq!(status(&proxy.exchange(GET).await), 200);
        }
        assert!(proxy.records(6).await.iter().all(|seen| seen.flags == "-"));
    });
}

#[test]
fn without_an_endpoint_there_is_a_503_that_says_why() {
    run(async {
        let check = async |setup: Setup, expected: u16, flags: &str, details: &str| {
            let proxy = setup.start().await;
            let mut client = proxy.client().await;
            // The connection goes on, and a body that nobody takes is read.
            for _ in 0..2 {
                client.send("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\n\r\nhello").await;
                let (head, body) = client.message().await;
                assert_eq!(status(&head), expected, "{head}{body}");
                assert_eq!(field(&head, "connection"), None);
            }
            let seen = proxy.records(2).await.remove(1);
            assert_eq!((&*seen.flags, seen.details), (flags, details));
        };
        check(Setup::with_rule(&[], rule()), 503, "UH", "no_ready_endpoint").await;
        check(Setup::service(&[nobody()]), 503, "UF", "connect_refused").await;
        check(Setup::service(&[nobody(), nobody()]), 503, "UF", "connect_refused").await;
    });
}

#[test]
fn timeouts_answer_or_cut() {
    run(async {
        let silent = upstream(|mut peer, _| async move {
            peer.rest().await;
        })
        .await;
        let stalls = upstream(|mut peer, _| async move {
            peer.head().await;
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello").await;
            peer.rest().await;
        })
        .await;
        let soon = Some(Duration::from_millis(30));
        let check = async |address, rule, expected: u16, details: &str| {
            let proxy = Setup::with_rule(&[address], rule).start().await;
            let mut client = proxy.client().await;
            client.send(GET).await;
            assert_eq!(status(&client.until_reset().await.0), expected);
            let seen = proxy.records(1).await.remove(0);
            assert_eq!((seen.status, &*seen.flags, seen.details), (expected, "UT", details));
            assert!(proxy.worker.pool().is_empty());
        };
        let with = |timeout, try_timeout| crate::model::HttpRule { timeout, try_timeout, ..rule() };
        check(silent, with(soon, None), 504, "request_timeout").await;
        check(silent, with(None, soon), 504, "try_timeout").await;
        check(silent, with(Some(Duration::from_secs(9)), soon), 504, "try_timeout").await;
        check(stalls, with(soon, None), 200, "request_timeout").await;
    });
}

#[test]
fn what_a_policy_refuses_says_which_kind_it_is() {
    let strict = PeerAuthentication {
        name: ObjectName::new("default", "strict"),
        created: "".into(),
        scope: PolicyScope::Namespace,
        selector: [].into(),
        mode: Some(MtlsMode::Strict),
        ports: [].into(),
    };
    let nobody = AuthorizationPolicy {
        name: ObjectName::new("default", "nobody"),
        scope: PolicyScope::Namespace,
        selector: [].into(),
        action: PolicyAction::Allow,
        dry_run: false,
        rules: Vec::new(),
    };
    run(async {
        for (peers, authorization, reason) in
            [(vec![strict], vec![], "mtls_required"), (vec![], vec![nobody], "rbac_access_denied")]
        {
            let mut setup = Setup::service(&[echo().await]);
            setup.model.workloads = vec![pod([127, 0, 0, 1])].into();
            (setup.model.peers, setup.model.authorization) = (peers.into(), authorization.into());
            let proxy = setup.start().await;
            let answer = proxy.exchange(GET).await;
            assert_eq!(status(&answer), 403, "{answer}");
            let field = format!("proxy-status: sluice; error=http_request_denied; details=\"{reason}\"\r\n");
            assert!(
                answer.contains(&field) && answer.ends_with(&format!("Forbidden: {reason}\n")),
                "{answer}"
            );
            let seen = proxy.records(1).await.remove(0);
            assert_eq!((seen.flags.as_str(), seen.details), ("UAEX", reason));
        }
    });
}

#[test]
fn a_connection_that_is_never_made_is_given_up() {
    run(async {
        // A full backlog leaves connections unanswered on loopback.
        let listener =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        listener.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("loopback");
        listener.listen(0).expect("listens");
        let address = listener.local_addr().ok().and_then(|address| address.as_socket()).expect("an address");
        let _filling: Vec<_> = (0..4)
            .map(|_| {
                let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)
                    .expect("a socket");
                socket.set_nonblocking(true).expect("a socket");
                let _ = socket.connect(&address.into());
                socket
            })
            .collect();
        let mut setup = Setup::service(&[address]);
        setup.captured.connect_timeout = Duration::from_millis(30);
        let proxy = setup.start().await;
        assert_eq!(status(&proxy.exchange(GET).await), 503);
        let seen = proxy.records(1).await.remove(0);
        assert_eq!((&*seen.flags, seen.details), ("UF", "connect_timeout"));
    });
}

/// An upload that stalls in its last piece is cut by the route's timeout. What is left of it must not be read as the
/// client's next request.
#[test]
fn the_rest_of_a_cut_upload_is_no_request() {
    run(async {
        let listener = tokio::net::TcpSocket::new_v4().expect("a socket");
        listener.set_recv_buffer_size(2048).expect("set before it listens");
        listener.bind("127.0.0.1:0".parse().expect("an address")).expect("loopback");
        let listener = listener.listen(16).expect("listens");
        let deaf = listener.local_addr().expect("bound");
        let rule = crate::model::HttpRule { timeout: Some(Duration::from_millis(50)), ..rule() };
        let setup = Setup { send_buffer: Some(2048), ..Setup::with_rule(&[deaf], rule) };
        let proxy = setup.start().await;
        let mut client = proxy.client().await;
        let hidden = "GET /smuggled HTTP/1.1\r\nHost: web\r\n\r\n";
        let body = hidden.repeat(28 * 1024 / hidden.len());
        let head = format!("POST /upload HTTP/1.1\r\nHost: web\r\nContent-Length: {}\r\n\r\n", body.len());
        client.send(head + &body).await;
        let (head, _) = client.message().await;
        assert!(head.starts_with("HTTP/1.1 504 "), "{head}");
        client.send("GET /next HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").await;
        let _ = client.rest().await;
        let paths: Vec<String> = proxy.records(1).await.into_iter().map(|seen| seen.path).collect();
        assert!(paths.iter().all(|path| path == "/upload" || path == "/next"), "{paths:?}");
        drop(listener);
    });
}
