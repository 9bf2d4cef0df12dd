//! Clients that are gone and still seem to wait, and what strangers leave to pods.

use tokio::io::AsyncWriteExt;

use super::harness::*;
use crate::model::{AppProtocol, HostPattern};
use crate::proxy::AdmissionSettings;
use crate::proxy::http2::tests::peers;
use crate::telemetry::Origin;

const GET: &str = "GET / HTTP/1.1\r\nHost: web\r\n\r\n";
const HALF: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha";

/// Sends half of its answer and nothing more, for as long as it is asked to.
async fn stalls_http1() -> std::net::SocketAddr {
    upstream(|mut peer, _| async move {
        peer.head().await;
        peer.send(HALF).await;
        peer.rest().await;
    })
    .await
}

async fn stalls_http2() -> std::net::SocketAddr {
    peers::upstream(|mut call| async move {
        let mut answer = call.answer(&[("content-length", "4")], false);
        answer.send_data("ha".into(), false).expect("the peer waits");
        let _ = std::future::poll_fn(|cx| answer.poll_reset(cx)).await;
    })
    .await
}

#[test]
fn a_client_that_is_gone_is_noticed_although_nothing_is_read_of_it() {
    run(async {
        let pipelined = GET.repeat(1000);
        for (address, protocol) in
            [(stalls_http1().await, AppProtocol::Http), (stalls_http2().await, AppProtocol::Http2)]
        {
            let proxy = Setup::service(&[address]).speaking(protocol).start().await;
            for (number, ahead) in [(1, ""), (2, &*pipelined)] {
                let mut client = proxy.client().await;
                client.send(GET).await;
                client.send(ahead).await;
                client.io.shutdown().await.expect("half-closes");
                // What comes behind the end shows that the end has been seen, and has not ended the exchange.
                client.head().await;
                assert_eq!(client.bytes(2).await, "ha");
                client.io.set_zero_linger().expect("a socket");
                drop(client);
                let seen = proxy.records(number).await.pop().expect("a record");
                assert_eq!((seen.status, &*seen.flags), (200, "DC"), "{protocol:?}: {seen:?}");
            }
        }
    });
}

#[test]
fn a_client_that_has_closed_its_side_gets_its_answer() {
    run(async {
        let (gate, opened) = gate();
        let of_http2 = opened.clone();
        let slow_http1 = upstream(move |mut peer, _| {
            let opened = opened.clone();
            async move {
                let whole = peer.head().await.contains("/other");
                peer.send(HALF).await;
                if !whole {
                    opened.notified().await;
                }
                peer.send("ve").await;
            }
        })
        .await;
        let slow_http2 = peers::upstream(move |mut call| {
            let opened = of_http2.clone();
            async move {
                let mut answer = call.answer(&[("content-length", "4")], false);
                answer.send_data("ha".into(), false).expect("the peer waits");
                if call.request.uri().path() != "/other" {
                    opened.notified().await;
                }
                answer.send_data("ve".into(), true).expect("the peer waits");
            }
        })
        .await;
        for (address, protocol) in [(slow_http1, AppProtocol::Http), (slow_http2, AppProtocol::Http2)] {
            let proxy = Setup::service(&[address]).speaking(protocol).start().await;
            let mut client = proxy.client().await;
            client.send(GET).await;
            client.io.shutdown().await.expect("half-closes");
            // Another request is served from its first byte to its last after the end has reached the worker.
            let mut other = proxy.client().await;
            other.send(GET.replacen('/', "/other", 1)).await;
            assert_eq!(other.message().await.1, "have");
            gate.notify_one();
            assert!(client.rest().await.ends_with("\r\n\r\nhave"), "{protocol:?}");
            assert_eq!(&*proxy.records(2).await[1].flags, "-", "{protocol:?}");
        }
    });
}

#[test]
fn strangers_leave_room_for_pods() {
    run(async {
        let mut setup = Setup::gateway(HostPattern::Any, rule(), &[stalls_http1().await]);
        setup.admission = AdmissionSettings { requests: 4, ..AdmissionSettings::default() };
        let proxy = setup.start().await;
        let mut held = Vec::new();
        for _ in 0..3 {
            let mut client = proxy.client().await;
            client.send(GET).await;
            client.head().await;
            held.push(client);
        }
        let shed = proxy.exchange(&GET.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")).await;
        assert!(shed.starts_with("HTTP/1.1 503 "), "{shed}");
        let http2 = peers::Client::connect(&proxy).await;
        assert_eq!(http2.get(peers::request("GET", "/", &[])).await.status, 503);
        assert!(proxy.records(2).await.iter().all(|seen| seen.details == "requests_in_flight"));
        let pod = proxy.worker.admit(&Origin::Outbound).expect("the fourth place is a pod's");
        assert!(proxy.worker.admit(&Origin::Outbound).is_err(), "there is no fifth");
        drop(pod);
    });
}

#[test]
fn a_tunnel_is_no_request_in_flight() {
    run(async {
        let address = upstream(|mut peer, _| async move {
            peer.head().await;
            peer.send(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            )
            .await;
            let said = peer.bytes(2).await;
            peer.send(said).await;
            peer.rest().await;
        })
        .await;
        let mut setup = Setup::gateway(HostPattern::Any, rule(), &[address]);
        setup.admission = AdmissionSettings { requests: 1, ..AdmissionSettings::default() };
        let proxy = setup.start().await;
        let mut tunnels = Vec::new();
        for _ in 0..3 {
            let mut client = proxy.client().await;
            client
                .send("GET / HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
                .await;
            let head = client.head().await;
            assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
            client.send("hi").await;
            assert_eq!(client.bytes(2).await, "hi");
            tunnels.push(client);
        }
        drop(tunnels);
        assert_eq!(proxy.records(3).await.len(), 3);
        drop(proxy.worker.admit(&Origin::Outbound).expect("nothing is held"));
    });
}
