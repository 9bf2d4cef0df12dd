//! Upstreams that say nothing, at Gateway listeners and behind captured connections.

use std::time::Duration;

use super::harness::*;
use crate::model::{AppProtocol, HostPattern};
use crate::proxy::http2::tests::peers::{Client, request, whole};

const SOON: Option<Duration> = Some(Duration::from_millis(30));
const GET: &str = "GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";

fn edge(address: std::net::SocketAddr) -> Setup {
    let mut setup = Setup::gateway(HostPattern::Any, rule(), &[address]);
    setup.gateway.upstream_timeout = SOON;
    setup
}

/// An upstream that sends `bytes` to every request and then nothing more.
async fn stalls(bytes: &'static [u8]) -> std::net::SocketAddr {
    upstream(move |mut peer, _| async move {
        peer.head().await;
        peer.send(bytes).await;
        peer.rest().await;
    })
    .await
}

const HALF: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello";

#[test]
fn a_silent_upstream_is_given_up() {
    run(async {
        for (said, status) in [(&b""[..], 504), (b"HTTP/1.1 200 OK\r\nContent", 504), (HALF, 200)] {
            let proxy = edge(stalls(said).await).start().await;
            let mut client = proxy.client().await;
            client.send(GET).await;
            let (got, reset) = client.until_reset().await;
            assert!(got.starts_with(&format!("HTTP/1.1 {status} ")) && !reset, "{got:?}");
            let seen = proxy.records(1).await.remove(0);
            assert_eq!((seen.status, &*seen.flags, seen.details), (status, "UT", "upstream_timeout"));
            assert!(proxy.worker.pool().is_empty());
            // The same for an HTTP/2 client.
            let answer = Client::connect(&proxy).await.start(request("GET", "/", &[]), true).await.0.await;
            let answer = answer.expect("an answer");
            assert_eq!(answer.status(), status);
            if status == 200 {
                let mut body = answer.into_body();
                assert_eq!(&body.data().await.expect("half").expect("half")[..], b"hello");
                let error = body.data().await.expect("the end").expect_err("cut");
                assert_eq!(error.reason(), Some(h2::Reason::CANCEL));
            }
            assert_eq!(&*proxy.records(2).await[1].flags, "UT");
        }
    });
}

#[test]
fn an_http2_upstream_that_is_silent_is_given_up() {
    run(async {
        let address = upstream(|peer, _| async move {
            let mut connection = h2::server::handshake(peer.io).await.expect("HTTP/2");
            let mut held = Vec::new();
            while let Some(Ok(stream)) = connection.accept().await {
                held.push(stream);
            }
        })
        .await;
        let proxy = edge(address).speaking(AppProtocol::Http2).start().await;
        let answer = proxy.exchange(GET).await;
        assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
        let seen = proxy.records(1).await.remove(0);
        assert_eq!((&*seen.flags, seen.details), ("UT", "upstream_timeout"));
        let answer = whole(Client::connect(&proxy).await.start(request("GET", "/", &[]), true).await.0).await;
        assert_eq!(answer.status, 504);
    });
}

/// The answer comes only after an upload that takes far longer than an upstream may be silent.
#[test]
fn an_upload_is_a_sign_of_life() {
    run(async {
        const CHUNK: &str = "1\r\nx\r\n";
        let (came, arrived) = gate();
        let address = upstream(move |mut peer, _| {
            let came = came.clone();
            async move {
                if peer.head().await.contains("/silent") {
                    peer.rest().await;
                    return;
                }
                while peer.bytes(1).await == "1" {
                    peer.bytes(CHUNK.len() - 1).await;
                    came.notify_one();
                }
                peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            }
        })
        .await;
        let proxy = edge(address).start().await;
        let mut client = proxy.client().await;
        client.send("POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        // An upload may be found silent twice its time after its last byte: three that are given up outlast that.
        let witnesses = async {
            for _ in 0..3 {
                let witness = proxy.exchange(&GET.replacen('/', "/silent", 1)).await;
                assert!(witness.starts_with("HTTP/1.1 504 "), "{witness}");
            }
        };
        let upload = async {
            loop {
                client.send(CHUNK).await;
                arrived.notified().await;
            }
        };
        tokio::select! {
            () = witnesses => {}
            () = upload => {}
        }
        client.send("0\r\n\r\n").await;
        assert_eq!(client.message().await.1, "ok");
    });
}

/// Captured peers agree among themselves how long they wait: an event stream may be silent for hours.
#[test]
fn captured_upstreams_and_calls_may_be_silent() {
    run(async {
        let (gate, opened) = gate();
        let events = upstream(move |mut peer, _| {
            let opened = opened.clone();
            async move {
                peer.head().await;
                peer.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n").await;
                opened.notified().await;
                peer.send("data: 2\n\n").await;
            }
        })
        .await;
        let impatient = edge(stalls(b"").await).start().await;
        // The second event comes only after a request that began with this one has been given up.
        let check = async |setup: Setup, request: &str, what: &str| {
            let proxy = setup.start().await;
            let given_up = async {
                let witness = impatient.exchange(GET).await;
                assert!(witness.starts_with("HTTP/1.1 504 "), "{witness}");
                gate.notify_one();
            };
            let (answer, ()) = tokio::join!(proxy.exchange(request), given_up);
            assert!(answer.contains("data: 2"), "{what}: {answer}");
        };
        check(Setup::service(&[events]), GET, "captured").await;
        // At a gateway a route's own time counts instead; zero is none.
        for timeout in [Duration::from_secs(20), Duration::ZERO] {
            let rule = crate::model::HttpRule { timeout: Some(timeout), ..rule() };
            let mut setup = Setup::gateway(HostPattern::Any, rule, &[events]);
            setup.gateway.upstream_timeout = SOON;
            check(setup, GET, &format!("{timeout:?}")).await;
        }
        // And a call's client tells how long it waits.
        let grpc = GET.replace("Connection", "Content-Type: application/grpc\r\nConnection");
        check(edge(events), &grpc, "gRPC").await;
    });
}

#[test]
fn defaults() {
    let (captured, gateway) =
        (crate::proxy::http::HttpSettings::captured(), crate::proxy::http::HttpSettings::gateway());
    assert_eq!(gateway.upstream_timeout, Some(Duration::from_mins(1)));
    let never =
        [captured.upstream_timeout, captured.idle_timeout, captured.body_timeout, captured.header_timeout];
    assert_eq!(never, [None; 4], "nothing of captured connections is cut for being silent");
}
