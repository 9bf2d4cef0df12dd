//! Bodies that are too long or too slow, and requests beyond what a worker takes on, wherever either side speaks HTTP/2.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use super::peers::{Client, Whole, echo, request, rest, upstream, whole};
use crate::model::{AppProtocol, HostPattern};
use crate::proxy::AdmissionSettings;
use crate::proxy::http::tests::harness::{Setup, rule, run, upstream as http1_upstream};

async fn post(client: &Client, fields: &[(&str, &str)], pieces: &[&'static str]) -> Whole {
    let (response, mut send) = client.start(request("POST", "/", fields), false).await;
    for piece in pieces {
        // It may have been refused by now.
        let _ = send.send_data(Bytes::from_static(piece.as_bytes()), false);
    }
    let _ = send.send_data(Bytes::new(), true);
    whole(response).await
}

#[test]
fn long_bodies_are_refused_and_the_connection_goes_on() {
    run(async {
        let http2 = echo().await;
        let http1 = http1_upstream(|mut peer, _| async move {
            while !peer.head().await.is_empty() {
                let mut body = String::new();
                while !body.ends_with("0\r\n\r\n") {
                    body.push_str(&peer.bytes(1).await);
                }
                peer.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            }
        })
        .await;
        for (upstream, protocol) in [(http2, AppProtocol::Http2), (http1, AppProtocol::Http)] {
            let mut setup = Setup::service(&[upstream]).speaking(protocol);
            setup.captured.body_max = Some(10);
            let proxy = setup.start().await;
            let client = Client::connect(&proxy).await;
            assert_eq!(post(&client, &[], &["0123456789"]).await.status, 200, "{protocol:?}");
            assert_eq!(post(&client, &[("content-length", "11")], &["0123456789a"]).await.status, 413);
            assert_eq!(post(&client, &[], &["01234", "56789", "a"]).await.status, 413, "{protocol:?}");
            assert_eq!(post(&client, &[], &["01234", "56789"]).await.status, 200, "{protocol:?}");
            let records = proxy.records(4).await;
            let refused: Vec<_> = records.iter().filter(|seen| seen.status == 413).collect();
            assert_eq!(refused.len(), 2);
            assert!(refused.iter().all(|seen| (&*seen.flags, seen.details) == ("DPE", "body_too_long")));
        }
    });
}

#[test]
fn a_long_body_of_an_http1_client_for_an_http2_upstream() {
    run(async {
        let mut setup = Setup::service(&[echo().await]).speaking(AppProtocol::Http2);
        setup.captured.body_max = Some(10);
        let proxy = setup.start().await;
        let head = "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n";
        let answer = proxy.exchange(&format!("{head}6\r\n012345\r\n6\r\n678901\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("connection: close\r\n"), "{answer}");
        assert_eq!(proxy.records(1).await[0].details, "body_too_long");
    });
}

#[test]
fn a_body_that_grows_too_long_behind_its_answer_is_cut() {
    run(async {
        let upstream = http1_upstream(|mut peer, _| async move {
            peer.head().await;
            peer.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nbegun").await;
            peer.rest().await;
        })
        .await;
        let mut setup = Setup::service(&[upstream]);
        setup.captured.body_max = Some(10);
        let proxy = setup.start().await;
        let mut client = proxy.client().await;
        client
            .send("POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n6\r\n012345\r\n")
            .await;
        assert!(client.head().await.starts_with("HTTP/1.1 200 "));
        assert_eq!(client.bytes(5).await, "begun");
        client.send("6\r\n678901\r\n").await;
        assert_eq!(client.until_reset().await, (String::new(), false), "the length tells that it is cut");
        let seen = &proxy.records(1).await[0];
        assert_eq!((seen.status, &*seen.flags, seen.details), (200, "DPE", "body_too_long"));
    });
}

#[test]
fn a_slow_body_is_not_waited_for() {
    run(async {
        let mut setup =
            Setup::gateway(HostPattern::Any, rule(), &[echo().await]).speaking(AppProtocol::Http2);
        setup.gateway.body_grace = Duration::from_millis(10);
        let proxy = setup.start().await;
        let client = Client::connect(&proxy).await;
        let (response, send) = client.start(request("POST", "/", &[]), false).await;
        // The upstream's head is out before the body: the stream is cut.
        let body = response.await.expect("the upstream's head").into_body();
        assert!(rest(body).await.is_err());
        drop(send);
        let seen = &proxy.records(1).await[0];
        assert_eq!((&*seen.flags, seen.details), ("SI", "body_too_slow"));

        let grpc = [("content-type", "application/grpc"), ("te", "trailers")];
        let (response, mut send) = client.start(request("POST", "/a.B/C", &grpc), false).await;
        let body = response.await.expect("the upstream's head").into_body();
        // A body that is no call's, and began later, is cut meanwhile.
        let (witness, _open) = client.start(request("POST", "/", &[]), false).await;
        let late = async { rest(witness.await.expect("the upstream's head").into_body()).await };
        tokio::select! {
            cut = late => assert!(cut.is_err()),
            _ = std::future::poll_fn(|cx| send.poll_reset(cx)) => panic!("a call may be silent"),
        }
        send.send_data(Bytes::from_static(b"late"), true).expect("still open");
        assert!(rest(body).await.expect("a whole answer").0.ends_with("late"));
    });
}

#[test]
fn requests_beyond_the_limit_are_told_to_come_back() {
    run(async {
        let waiting = Rc::new(RefCell::new(Vec::new()));
        let (calls, arrived) = (Rc::clone(&waiting), Rc::new(Notify::new()));
        let arrival = Rc::clone(&arrived);
        let upstream = upstream(move |call| {
            calls.borrow_mut().push(call);
            arrival.notify_one();
            std::future::ready(())
        })
        .await;
        let mut setup = Setup::service(&[upstream]).speaking(AppProtocol::Grpc);
        setup.admission = AdmissionSettings { requests: 1, ..AdmissionSettings::default() };
        let proxy = setup.start().await;
        let client = Client::connect(&proxy).await;
        let (held, _) = client.start(request("GET", "/", &[]), true).await;
        arrived.notified().await;
        let shed = client.get(request("GET", "/", &[])).await;
        assert_eq!((shed.status, shed.field("retry-after")), (503, "1"));
        assert!(shed.field("proxy-status").contains("requests_in_flight"));
        let call = client.get(request("POST", "/a.B/C", &[("content-type", "application/grpc")])).await;
        assert_eq!((call.status, call.field("grpc-status")), (200, "14"));
        let http1 = proxy.exchange("GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").await;
        assert!(http1.starts_with("HTTP/1.1 503 ") && http1.contains("retry-after: 1\r\n"), "{http1}");
        for seen in proxy.records(3).await {
            assert_eq!((&*seen.flags, seen.details), ("OM", "requests_in_flight"));
        }
        waiting.borrow_mut().pop().expect("it arrived").answer(&[], true);
        assert_eq!(whole(held).await.status, 200);
        let (next, _) = client.start(request("GET", "/", &[]), true).await;
        arrived.notified().await;
        waiting.borrow_mut().pop().expect("it arrived").answer(&[], true);
        assert_eq!(whole(next).await.status, 200);
    });
}
