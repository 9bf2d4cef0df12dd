//! Answers that come while the request's body is still on its way: the client gets them whole, and its connection goes on.

use bytes::Bytes;
use h2::Reason;
use http::Request;

use super::peers::{Client, request, upstream, whole};
use crate::model::AppProtocol;
use crate::proxy::http::tests::harness::{Peer, Setup, run, says, upstream as http1_upstream};

const BIG: &str = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig";

/// An HTTP/2 upstream that answers uploads before it has read any of their bodies, and lets go of them.
async fn refuses() -> std::net::SocketAddr {
    upstream(|mut call| async move {
        let mut body = call.answer(&[], false);
        body.send_data(Bytes::from_static(b"big"), true).expect("the peer waits");
    })
    .await
}

fn upload() -> Request<()> {
    request("POST", "/upload", &[("content-length", "100000000")])
}

#[test]
fn an_http2_client_gets_its_answer_and_is_told_to_stop() {
    run(async {
        let over_http1 = Setup::service(&[says(BIG.as_bytes()).await]);
        let over_http2 = Setup::service(&[refuses().await]).speaking(AppProtocol::Http2);
        for (setup, status) in [(over_http1, 413), (over_http2, 200)] {
            let proxy = setup.start().await;
            let client = Client::connect(&proxy).await;
            for count in 1..=3 {
                let (response, mut send) = client.start(upload(), false).await;
                send.send_data(Bytes::from(vec![b'x'; 10_000]), false).expect("open");
                let answer = whole(response).await;
                assert_eq!((answer.status, &*answer.body), (status, "big"));
                let reset = std::future::poll_fn(|cx| send.poll_reset(cx)).await.expect("a reset");
                assert_eq!(reset, Reason::NO_ERROR, "the client shall stop, and has done nothing wrong");
                let seen = proxy.records(count).await.remove(count - 1);
                assert_eq!((seen.status, &*seen.flags), (status, "-"));
            }
            assert!(proxy.worker.pool().is_empty(), "half a request was sent there");
        }
    });
}

#[test]
fn what_was_sent_for_nothing_does_not_use_up_the_windows() {
    run(async {
        let proxy = Setup::service(&[refuses().await]).speaking(AppProtocol::Http2).start().await;
        let client = Client::connect(&proxy).await;
        // Ten times what the connection's window holds.
        for _ in 0..160 {
            let (response, mut send) = client.start(upload(), false).await;
            send.reserve_capacity(64 * 1024);
            let _ = std::future::poll_fn(|cx| send.poll_capacity(cx)).await;
            // Fails where the reset came first.
            let _ = send.send_data(Bytes::from(vec![b'x'; 64 * 1024]), false);
            assert_eq!(whole(response).await.body, "big");
        }
    });
}

#[test]
fn an_http1_client_gets_its_answer_from_an_http2_upstream() {
    run(async {
        let proxy = Setup::service(&[refuses().await]).speaking(AppProtocol::Http2).start().await;
        // A rest that is small enough is dropped, and the connection goes on.
        let mut client = proxy.client().await;
        for _ in 0..2 {
            client.send("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 10\r\n\r\n12345").await;
            assert_eq!(client.chunked().await.1, "3\r\nbig\r\n0\r\n\r\n");
            client.send("67890").await;
        }
        // A large one ends it, after the answer.
        let mut client = proxy.client().await;
        client.send("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 99999999\r\n\r\n12345").await;
        assert_eq!(client.chunked().await.1, "3\r\nbig\r\n0\r\n\r\n");
        assert_eq!(client.rest().await, "");
    });
}

/// The connection of an upstream that answered early is in the middle of a request and must not be used again, even if it
/// stays open.
#[test]
fn an_http1_upstream_that_answered_early_is_not_used_again() {
    run(async {
        let address = http1_upstream(|mut peer: Peer, number| async move {
            peer.head().await;
            peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{number}")).await;
            peer.rest().await;
        })
        .await;
        let proxy = Setup::service(&[address]).start().await;
        let client = Client::connect(&proxy).await;
        for number in 0..2 {
            let (response, mut send) = client.start(upload(), false).await;
            send.send_data(Bytes::from_static(b"GET /smuggled HTTP/1.1\r\n\r\n"), false).expect("open");
            assert_eq!(whole(response).await.body, number.to_string());
        }
        assert!(proxy.worker.pool().is_empty());
    });
}
