//! What a client's connection is held to, and how it ends.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use tokio::io::AsyncReadExt;

use super::peers::{Client, echo, request, rest, upstream};
use crate::model::{AppProtocol, HostPattern};
use crate::proxy::http::tests::harness::{Setup, rule, run};
use crate::proxy::http::{FrameRates, Http2Settings};

#[test]
fn a_flood_of_resets_ends_the_connection() {
    run(async {
        let arrived = Rc::new(Cell::new(0));
        let counted = Rc::clone(&arrived);
        let upstream = upstream(move |mut call| {
            counted.set(counted.get() + 1);
            async move {
                let _ = std::future::poll_fn(|cx| call.respond.poll_reset(cx)).await;
            }
        })
        .await;
        let mut setup = Setup::service(&[upstream]).speaking(AppProtocol::Http2);
        setup.captured.http2 =
            Http2Settings { reset_burst: 10, resets_per_second: 0, ..Http2Settings::captured() };
        let proxy = setup.start().await;
        let client = Client::connect(&proxy).await;
        let mut started = 0;
        let mut send = client.send.clone();
        while let Ok(ready) = send.ready().await {
            send = ready;
            let Ok((response, mut body)) = send.send_request(request("POST", "/", &[]), false) else { break };
            started += 1;
            assert!(started < 20, "nobody stops this client");
            // Each is under way before it is reset, so that it costs us something.
            while arrived.get() < started {
                if is_closed(&client).await {
                    break;
                }
                tokio::task::yield_now().await;
            }
            body.send_reset(Reason::CANCEL);
            drop(response);
            proxy.records(started).await;
        }
        let error = client.ended.await.expect("the connection's end").expect_err("GOAWAY");
        assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM));
        assert!((10..13).contains(&started), "resets within the budget are a client's right: {started}");
        let records = proxy.records(started).await;
        assert!(records.iter().any(|seen| seen.details == "h2_reset_flood" && seen.flags == "DPE"));
    });
}

/// Whether no further request can be sent, as the peer has said GOAWAY or is gone.
async fn is_closed(client: &Client) -> bool {
    let ready = futures_util::future::poll_immediate(client.send.clone().ready()).await;
    ready.is_some_and(|ready| ready.is_err())
}

#[test]
fn violations_of_the_protocol_are_recorded() {
    run(async {
        let upstream = echo().await;
        let proxy = Setup::service(&[upstream]).speaking(AppProtocol::Http2).start().await;
        let mut peer = proxy.client().await;
        peer.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        // A DATA frame on stream 0, after an empty SETTINGS frame.
        peer.send([0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, b'x']).await;
        let mut all = Vec::new();
        let _ = peer.io.read_to_end(&mut all).await;
        // GOAWAY: type 7, with PROTOCOL_ERROR in the end.
        assert!(all.windows(4).any(|frame| frame == [8, 7, 0, 0]) && all.ends_with(&[0, 0, 0, 1]), "{all:?}");
        let seen = &proxy.records(1).await[0];
        assert_eq!((&*seen.flags, seen.details, seen.protocol), ("DPE", "h2_protocol_error", "HTTP/2"));
    });
}

#[test]
fn a_drain_lets_requests_finish_and_says_goaway() {
    run(async {
        let upstream = upstream(|mut call| async move {
            let mut answer = call.answer(&[], false);
            let (body, _) = rest(call.request.into_body()).await.expect("a body");
            answer.send_data(body.into(), true).expect("open");
        })
        .await;
        let proxy = Setup::service(&[upstream]).speaking(AppProtocol::Http2).start().await;
        let client = Client::connect(&proxy).await;
        let (response, mut send) = client.start(request("POST", "/", &[]), false).await;
        let body = response.await.expect("an answer").into_body();
        proxy.drain.send(true).expect("the proxy listens");
        let mut other = client.send.clone();
        while let Ok(ready) = other.ready().await {
            other = ready;
            tokio::task::yield_now().await;
        }
        send.send_data(Bytes::from_static(b"whole"), true).expect("the stream goes on");
        assert_eq!(rest(body).await.expect("the whole answer").0, "whole");
        let ended = client.ended.await.expect("the connection's end");
        assert!(ended.is_ok(), "{ended:?}");
        assert_eq!(proxy.records(1).await[0].details, "");
    });
}

#[test]
fn a_silent_client_of_a_gateway_is_let_go() {
    run(async {
        let upstream = echo().await;
        let mut setup = Setup::gateway(HostPattern::Any, rule(), &[upstream]).speaking(AppProtocol::Http2);
        setup.gateway.idle_timeout = Some(Duration::from_millis(20));
        let proxy = setup.start().await;
        let client = Client::connect(&proxy).await;
        assert_eq!(client.get(request("GET", "/", &[])).await.status, 200);
        assert!(client.ended.await.expect("the connection's end").is_ok());

        // One that does not even finish its preface.
        let mut setup = Setup::gateway(HostPattern::Any, rule(), &[upstream]);
        setup.gateway.header_timeout = Some(Duration::from_millis(20));
        let proxy = setup.start().await;
        let mut peer = proxy.client().await;
        peer.send("PRI * HTTP/2.0\r\n\r\nSM").await;
        let mut all = Vec::new();
        let _ = peer.io.read_to_end(&mut all).await;
        assert!(!all.starts_with(b"HTTP/1.1"), "closed without an answer in another version");
    });
}

#[test]
fn a_client_that_takes_nothing_is_cut_at_a_gateway() {
    run(async {
        let upstream = upstream(|mut call| async move {
            let mut answer = call.answer(&[], false);
            answer.send_data(vec![b'x'; 1024 * 1024].into(), true).expect("open");
            let _ = std::future::poll_fn(|cx| answer.poll_reset(cx)).await;
        })
        .await;
        let mut setup = Setup::gateway(HostPattern::Any, rule(), &[upstream]).speaking(AppProtocol::Http2);
        setup.gateway.body_timeout = Some(Duration::from_millis(20));
        let proxy = setup.start().await;
        let client = Client::connect(&proxy).await;
        let (response, _) = client.start(request("GET", "/", &[]), true).await;
        let mut body = response.await.expect("a head").into_body();
        let error = loop {
            if let Err(error) = body.data().await.expect("no end") {
                break error;
            }
        };
        assert_eq!(error.reason(), Some(Reason::CANCEL));
        let seen = &proxy.records(1).await[0];
        assert_eq!((&*seen.flags, seen.details), ("SI", "body_timeout"));
    });
}

#[test]
fn gateways_route_http2_by_authority() {
    run(async {
        let upstream = echo().await;
        let host = HostPattern::Exact("web".into());
        let proxy = Setup::gateway(host, rule(), &[upstream]).speaking(AppProtocol::Http2).start().await;
        let client = Client::connect(&proxy).await;
        assert_eq!(client.get(request("GET", "/", &[])).await.status, 200);
        let mut other = request("GET", "/", &[]);
        *other.uri_mut() = "http://other/".parse().expect("a URI");
        assert_eq!(client.get(other).await.status, 404);

        // A backend that declares nothing is spoken to in the version that every server speaks.
        let http1 = crate::proxy::http::tests::harness::echo().await;
        let setup = Setup::gateway(HostPattern::Any, rule(), &[http1]);
        let proxy = setup.speaking(AppProtocol::Undeclared).start().await;
        let answer = Client::connect(&proxy).await.get(request("GET", "/", &[])).await;
        assert_eq!((answer.status, &*answer.body), (200, "0 GET / HTTP/1.1"));
    });
}

#[test]
fn a_connection_has_its_number_of_requests() {
    run(async {
        let mut setup =
            Setup::gateway(HostPattern::Any, rule(), &[echo().await]).speaking(AppProtocol::Http2);
        setup.gateway.max_requests = Some(2);
        let proxy = setup.start().await;
        let client = Client::connect(&proxy).await;
        for _ in 0..2 {
            assert_eq!(client.get(request("GET", "/", &[])).await.status, 200, "it is served to its end");
        }
        let ended = client.ended.await.expect("the connection's end");
        assert!(ended.is_ok(), "{ended:?}");
        assert!(client.send.clone().ready().await.is_err(), "no third one");
    });
}

#[test]
fn resets_are_counted_by_their_own_settings() {
    run(async {
        let http2 = Http2Settings::captured();
        let frames = FrameRates { others: Some(1), ..http2.frames };
        for (reset_burst, lives) in [(100, true), (30, false)] {
            let mut setup = Setup::service(&[echo().await]).speaking(AppProtocol::Http2);
            setup.captured.http2 =
                Http2Settings { reset_burst, resets_per_second: 0, frames, ..http2.clone() };
            let proxy = setup.start().await;
            let mut peer = proxy.client().await;
            peer.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
            peer.send([0, 0, 0, 4, 0, 0, 0, 0, 0]).await;
            // A GET, and its stream's resets: all but the first are of a stream that is over.
            let get = [&[0, 0, 8, 1, 5, 0, 0, 0, 1, 0x82, 0x86, 0x84, 0x41, 3][..], b"web"].concat();
            peer.send(get).await;
            proxy.records(1).await;
            peer.send([0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 8].repeat(50)).await;
            peer.send([0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]).await;
            let mut all = Vec::new();
            let pong = |all: &[u8]| all.windows(5).any(|head| head == [0, 8, 6, 1, 0]);
            if lives {
                while !pong(&all) {
                    assert!(matches!(peer.io.read_buf(&mut all).await, Ok(1..)), "{all:?}");
                }
                assert_eq!(proxy.records(1).await.len(), 1);
            } else {
                assert_eq!(proxy.records(2).await[1].details, "h2_reset_flood");
            }
        }
    });
}
