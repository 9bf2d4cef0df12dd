//! Requests and responses between the versions.

use std::future::poll_fn;

use bytes::Bytes;
use http::{HeaderMap, Request};

use super::peers::{Client, echo, request, rest, upstream as http2_upstream, whole};
use crate::model::{AppProtocol, DirectResponse, HeaderChange, HeaderOp, Redirect, RouteAction};
use crate::proxy::http::tests::harness::{Setup, field, rule, rule_with, run, says, upstream};

#[test]
fn http2_to_http2() {
    run(async {
        let upstream = echo().await;
        let proxy = Setup::service(&[upstream]).speaking(AppProtocol::Http2).start().await;
        let client = Client::connect(&proxy).await;
        let fields = [
            ("x-a", "1"),
            ("te", "trailers"),
            ("x-request-id", "id-1"),
            ("cookie", "a=1"),
            ("cookie", "b=2"),
        ];
        let answer = client.get(request("GET", "/x?y=z", &fields)).await;
        assert_eq!((answer.status, answer.field("x-upstream"), answer.field("via")), (200, "h2", "2 sluice"));
        assert_eq!(answer.field("te"), "", "hop-by-hop");
        let lines: Vec<_> = answer.body.lines().collect();
        assert_eq!(lines[0], "0 GET http://web/x?y=z");
        for line in [
            "x-a: 1",
            "te: trailers",
            "x-request-id: id-1",
            "cookie: a=1; b=2",
            "x-forwarded-for: 127.0.0.1",
            "x-forwarded-proto: http",
            "via: 2 sluice",
        ] {
            assert!(lines.contains(&line), "{line} is not in {lines:?}");
        }
        let seen = &proxy.records(1).await[0];
        assert_eq!((seen.protocol, seen.status, &*seen.path), ("HTTP/2", 200, "/x?y=z"));
        assert_eq!(seen.response_bytes, answer.body.len() as u64);
        assert_eq!((seen.upstream, seen.grpc_status), (Some(upstream), None));
    });
}

#[test]
fn http2_to_http1_with_bodies_and_trailers() {
    run(async {
        let upstream = upstream(|mut peer, _| async move {
            loop {
                let head = peer.head().await;
                let mut body = String::new();
                while !body.ends_with("0\r\nx-sum: 5\r\n\r\n") {
                    body.push_str(&peer.bytes(1).await);
                }
                assert!(head.starts_with("POST /a HTTP/1.1\r\nhost: web\r\n"), "{head}");
                assert_eq!(field(&head, "cookie").as_deref(), Some("a=1; b=2"));
                assert_eq!(field(&head, "transfer-encoding").as_deref(), Some("chunked"));
                assert_eq!(body, "5\r\nhello\r\n0\r\nx-sum: 5\r\n\r\n");
                peer.send("HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: x-secret\r\nX-Secret: 1\r\nX-Kept: 2\r\n\r\n3\r\nabc\r\n0\r\nX-End: yes\r\nContent-Length: 9\r\n\r\n").await;
            }
        })
        .await;
        let proxy = Setup::service(&[upstream]).start().await;
        let client = Client::connect(&proxy).await;
        for _ in 0..2 {
            let (mut response, mut body) =
                client.start(request("POST", "/a", &[("cookie", "a=1"), ("cookie", "b=2")]), false).await;
            body.send_data(Bytes::from_static(b"hello"), false).expect("sent");
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", "5".parse().expect("a value"));
            trailers.insert("transfer-encoding-x", "5".parse().expect("a value"));
            trailers.remove("transfer-encoding-x");
            trailers.insert("host", "evil".parse().expect("a value"));
            body.send_trailers(trailers).expect("sent");
            let interim = poll_fn(|cx| response.poll_informational(cx)).await.expect("103").expect("103");
            assert_eq!(
                (interim.status().as_u16(), interim.headers()["link"].as_bytes()),
                (103, &b"</x>"[..])
            );
            let answer = whole(response).await;
            assert_eq!((answer.status, &*answer.body), (200, "abc"));
            assert_eq!((answer.field("x-kept"), answer.field("x-secret")), ("2", ""));
            assert_eq!((answer.field("connection"), answer.field("via")), ("", "1.1 sluice"));
            assert_eq!((answer.trailer("x-end"), answer.trailer("content-length")), ("yes", ""));
        }
        let seen = proxy.records(2).await;
        assert_eq!((seen[1].request_bytes, seen[1].response_bytes, seen[1].details), (5, 3, ""));
        assert_eq!(proxy.worker.pool().len(), 1, "the upstream's connection was kept");
    });
}

#[test]
fn http1_to_http2_with_bodies_and_trailers() {
    run(async {
        let upstream = echo().await;
        let proxy = Setup::service(&[upstream]).speaking(AppProtocol::Http2).start().await;
        let mut client = proxy.client().await;
        for _ in 0..2 {
            client.send("POST /a?b HTTP/1.1\r\nHost: web:80\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\nConnection: te, x-hop\r\nX-Hop: 1\r\nX-Kept: 2\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 5\r\n\r\n").await;
            let head = client.head().await;
            assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
            assert_eq!(field(&head, "transfer-encoding").as_deref(), Some("chunked"));
            let mut body = String::new();
            while !body.ends_with("0\r\nx-sum: 5\r\n\r\n") {
                body.push_str(&client.bytes(1).await);
            }
            for line in
                ["0 POST http://web:80/a?b\n", "x-kept: 2\n", "te: trailers\n", "via: 1.1 sluice\n", "hello"]
            {
                assert!(body.contains(line), "{line} is not in {body}");
            }
            for gone in ["x-hop", "connection", "transfer-encoding", "host: web:80\n"] {
                assert!(!body.contains(&format!("\n{gone}")), "{gone} is in {body}");
            }
        }
        client.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        let (_, body) = client.chunked().await;
        assert!(body.contains("0 GET http://web/"), "the same connection: {body}");
        assert_eq!(proxy.worker.http2().len(), 1);
        let seen = proxy.records(3).await;
        assert_eq!((seen[0].protocol, seen[0].request_bytes), ("HTTP/1.1", 5));
    });
}

#[test]
fn expectations_pass_between_the_versions() {
    run(async {
        let upstream = http2_upstream(|mut call| async move {
            assert_eq!(call.request.headers()["expect"].as_bytes(), b"100-continue");
            let go_on = http::Response::builder().status(100).body(()).expect("a response");
            call.respond.send_informational(go_on).expect("the peer waits");
            let mut answer = call.answer(&[], false);
            let (body, _) = rest(call.request.into_body()).await.expect("a body");
            answer.send_data(body.into(), true).expect("the peer waits");
        })
        .await;
        let proxy = Setup::service(&[upstream]).speaking(AppProtocol::Http2).start().await;
        let mut client = proxy.client().await;
        client.send("PUT / HTTP/1.1\r\nHost: web\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n").await;
        let interim = client.head().await;
        assert!(interim.starts_with("HTTP/1.1 100 Continue\r\n"), "{interim}");
        client.send("hi").await;
        let (_, body) = client.chunked().await;
        assert_eq!(body, "2\r\nhi\r\n0\r\n\r\n");
    });
}

#[test]
fn bodiless_responses() {
    run(async {
        let http2 = http2_upstream(|mut call| async move {
            call.answer(&[("content-length", "5")], true);
        })
        .await;
        let http1 = says(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n").await;
        for (upstream, protocol) in [(http2, AppProtocol::Http2), (http1, AppProtocol::Http)] {
            let proxy = Setup::service(&[upstream]).speaking(protocol).start().await;
            let client = Client::connect(&proxy).await;
            let answer = client.get(request("HEAD", "/", &[])).await;
            assert_eq!((answer.status, answer.field("content-length"), &*answer.body), (200, "5", ""));
            let text = proxy.exchange("HEAD / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").await;
            assert!(text.contains("content-length: 5\r\n") && text.ends_with("\r\n\r\n"), "{text}");
        }
        let nothing = http2_upstream(|mut call| async move {
            call.answer(&[], true);
        })
        .await;
        let proxy = Setup::service(&[nothing]).speaking(AppProtocol::Http2).start().await;
        let text = proxy.exchange("GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").await;
        assert!(text.ends_with("\r\n\r\n0\r\n\r\n"), "an end that is told: {text}");
    });
}

#[test]
fn the_declared_protocol_is_spoken_else_the_clients() {
    run(async {
        let (http1, http2) = (crate::proxy::http::tests::harness::echo().await, echo().await);
        for (protocol, upstream, client_is_http2) in [
            (AppProtocol::Http, http1, true),
            (AppProtocol::Http, http1, false),
            (AppProtocol::Http2, http2, true),
            (AppProtocol::Http2, http2, false),
            (AppProtocol::Grpc, http2, false),
            (AppProtocol::Undeclared, http2, true),
            (AppProtocol::Undeclared, http1, false),
        ] {
            let proxy = Setup::service(&[upstream]).speaking(protocol).start().await;
            let status = if client_is_http2 {
                Client::connect(&proxy).await.get(request("GET", "/", &[])).await.status.to_string()
            } else {
                let text = proxy.exchange("GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").await;
                text[9..12].to_owned()
            };
            assert_eq!(status, "200", "{protocol:?}, the client speaks HTTP/2: {client_is_http2}");
        }
    });
}

#[test]
fn routes_change_redirect_and_answer() {
    run(async {
        let upstream = echo().await;
        let mut changing = rule();
        changing.request_headers = vec![set("x-added", "1"), set("host", "other")];
        changing.response_headers =
            vec![set("x-back", "2"), HeaderOp { name: "x-upstream".into(), change: HeaderChange::Remove }];
        let proxy = Setup::with_rule(&[upstream], changing).speaking(AppProtocol::Http2).start().await;
        let answer = Client::connect(&proxy).await.get(request("GET", "/", &[])).await;
        assert_eq!((answer.field("x-back"), answer.field("x-upstream")), ("2", ""));
        assert!(answer.body.starts_with("0 GET http://other/\n") && answer.body.contains("\nx-added: 1\n"));

        let redirect = Redirect { status: 302, scheme: None, authority: None, port: None, path: None };
        let proxy = Setup::with_rule(&[upstream], rule_with(RouteAction::Redirect(redirect))).start().await;
        let answer = Client::connect(&proxy).await.get(request("GET", "/x", &[])).await;
        assert_eq!((answer.status, answer.field("location")), (302, "http://web/x"));

        let page = DirectResponse { status: 200, body: (*b"hello").into() };
        let proxy = Setup::with_rule(&[upstream], rule_with(RouteAction::Respond(page))).start().await;
        let answer = Client::connect(&proxy).await.get(request("GET", "/", &[])).await;
        assert_eq!((answer.status, &*answer.body, answer.field("content-length")), (200, "hello", "5"));
        assert_eq!(proxy.records(1).await[0].response_bytes, 5);
    });
}

fn set(name: &str, value: &str) -> HeaderOp {
    HeaderOp { name: name.into(), change: HeaderChange::Set(value.into()) }
}

#[test]
fn hostile_heads_are_answered_and_recorded() {
    run(async {
        let upstream = echo().await;
        let mut setup = Setup::service(&[upstream]).speaking(AppProtocol::Http2);
        setup.captured.request.underscores = false;
        setup.captured.request.target_bytes = 64;
        let proxy = setup.start().await;
        let client = Client::connect(&proxy).await;
        let connect = Request::builder().method("CONNECT").uri("web:80").body(()).expect("a request");
        let many: Vec<_> = (0..120).map(|_| ("a", "b")).collect();
        let cases = [
            (request("GET", "/", &[("host", "other")]), 400, "host_conflict"),
            (request("GET", "/", &[("x_user", "root")]), 400, "header_underscore"),
            (request("GET", "/", &[("x", " a")]), 400, "header_value_space"),
            (request("GET", &format!("/{}", "x".repeat(64)), &[]), 414, "target_too_long"),
            (request("GET", "/", &many), 431, "header_too_many"),
            (connect, 405, "method_connect"),
        ];
        let count = cases.len();
        for (index, (request, status, reason)) in cases.into_iter().enumerate() {
            let answer = client.get(request).await;
            assert_eq!(answer.status, status, "{reason}");
            assert!(answer.field("proxy-status").contains(reason), "{:?}", answer.fields);
            let seen = &proxy.records(index + 1).await[index];
            assert_eq!((seen.status, &*seen.flags, seen.details), (status, "DPE", reason));
        }
        let answer = client.get(request("GET", "/", &[("host", "WEB")])).await;
        assert_eq!(answer.status, 200, "the connection goes on");
        assert_eq!(proxy.records(count + 1).await[count].details, "");
    });
}
