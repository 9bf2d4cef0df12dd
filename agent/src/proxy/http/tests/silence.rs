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
        let address = upstream(|mut peer, _| async move {
            peer.head().await;
            peer.bytes(20).await;
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        })
        .await;
        let proxy = edge(address).start().await;
        let mut client = proxy.client().await;
        client.send("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 20\r\n\r\n").await;
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            client.send("x").await;
        }
        assert_eq!(client.message().await.1, "ok");
    });
}

/// Captured peers agree among themselves how long they wait: an event stream may be silent for hours.
#[test]
fn captured_upstreams_and_calls_may_be_silent() {
    run(async {
        let events = upstream(|mut peer, _| async move {
            peer.head().await;
            peer.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n").await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            peer.send("data: 2\n\n").await;
        })
        .await;
        let proxy = Setup::service(&[events]).start().await;
        assert!(proxy.exchange(GET).await.contains("data: 2"));
        // At a gateway a route's own time counts instead; zero is none.
        for timeout in [Duration::from_secs(20), Duration::ZERO] {
            let rule = crate::model::HttpRule { timeout: Some(timeout), ..rule() };
            let mut setup = Setup::gateway(HostPattern::Any, rule, &[events]);
            setup.gateway.upstream_timeout = SOON;
            assert!(setup.start().await.exchange(GET).await.contains("data: 2"), "{timeout:?}");
        }
        // And a call's client tells how long it waits.
        let proxy = edge(events).start().await;
        let grpc = GET.replace("Connection", "Content-Type: application/grpc\r\nConnection");
        assert!(proxy.exchange(&grpc).await.contains("data: 2"));
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
