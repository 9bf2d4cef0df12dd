//! Flow control, cancellation, truncation: what happens to a stream once it is under way.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;

use bytes::Bytes;
use h2::Reason;
use tokio::sync::oneshot;

use super::peers::{Client, request, rest, upstream};
use crate::model::AppProtocol;
use crate::proxy::http::tests::harness::{Setup, run, upstream as http1_upstream};

/// More than all windows and buffers on the way hold together.
const BIG: usize = 8 * 1024 * 1024;

#[test]
fn a_client_that_reads_nothing_holds_the_upstream_back() {
    run(async {
        let sent = Rc::new(Cell::new(0_usize));
        let counted = Rc::clone(&sent);
        let upstream = upstream(move |mut call| {
            let counted = Rc::clone(&counted);
            async move {
                let mut answer = call.answer(&[], false);
                while counted.get() < BIG {
                    answer.reserve_capacity(16 * 1024);
                    let granted = poll_fn(|cx| answer.poll_capacity(cx)).await.expect("open").expect("open");
                    let piece = granted.min(16 * 1024).min(BIG - counted.get());
                    counted.set(counted.get() + piece);
                    answer.send_data(vec![b'x'; piece].into(), counted.get() == BIG).expect("open");
                }
            }
        })
        .await;
        let proxy = Setup::service(&[upstream]).speaking(AppProtocol::Http2).start().await;
        let client = Client::connect(&proxy).await;
        let (response, _) = client.start(request("GET", "/", &[]), true).await;
        let body = response.await.expect("an answer").into_body();
        // Nothing more moves once a whole request has passed beside it several times without a change.
        let mut before = 0;
        while sent.get() != before || before == 0 {
            before = sent.get();
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
        }
        assert!(before < 2 * 1024 * 1024, "{before} bytes are on their way to a client that reads none");
        let (text, _) = rest(body).await.expect("the whole body");
        assert_eq!((text.len(), sent.get()), (BIG, BIG));
    });
}

#[test]
fn an_upstream_that_reads_nothing_holds_the_client_back() {
    run(async {
        let (go, gone) = oneshot::channel::<()>();
        let gone = Rc::new(Cell::new(Some(gone)));
        let upstream = http1_upstream(move |mut peer, _| {
            let gone = gone.take().expect("one connection");
            async move {
                peer.head().await;
                gone.await.expect("told to go on");
                let mut left = BIG;
                while left > 0 {
                    let piece = left.min(64 * 1024);
                    peer.bytes(piece).await;
                    left -= piece;
                }
                peer.send("HTTP/1.1 204 No Content\r\n\r\n").await;
            }
        })
        .await;
        let proxy = Setup::service(&[upstream]).start().await;
        let client = Client::connect(&proxy).await;
        let length = BIG.to_string();
        let (response, mut upload) =
            client.start(request("POST", "/", &[("content-length", &length)]), false).await;
        let sent = Rc::new(Cell::new(0_usize));
        let counted = Rc::clone(&sent);
        tokio::task::spawn_local(async move {
            while counted.get() < BIG {
                upload.reserve_capacity(16 * 1024);
                let granted = poll_fn(|cx| upload.poll_capacity(cx)).await.expect("open").expect("open");
                let piece = granted.min(16 * 1024).min(BIG - counted.get());
                counted.set(counted.get() + piece);
                upload.send_data(vec![b'x'; piece].into(), counted.get() == BIG).expect("open");
            }
        });
        let mut before = 0;
        while sent.get() != before || before == 0 {
            before = sent.get();
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
        }
        assert!(before < BIG, "the kernel's buffers and ours took all of it");
        go.send(()).expect("the upstream waits");
        assert_eq!(response.await.expect("an answer").status().as_u16(), 204);
        assert_eq!(proxy.records(1).await[0].request_bytes, BIG as u64);
    });
}

#[test]
fn a_clients_cancel_reaches_the_upstream() {
    run(async {
        for answered in [false, true] {
            let (told, reset) = oneshot::channel();
            let told = Rc::new(Cell::new(Some(told)));
            let upstream = upstream(move |mut call| {
                let told = told.take().expect("one request");
                async move {
                    let reason = if answered {
                        let mut answer = call.answer(&[], false);
                        poll_fn(|cx| answer.poll_reset(cx)).await
                    } else {
                        poll_fn(|cx| call.respond.poll_reset(cx)).await
                    };
                    told.send(reason.expect("a reset")).expect("the test waits");
                }
            })
            .await;
            let proxy = Setup::service(&[upstream]).speaking(AppProtocol::Http2).start().await;
            let client = Client::connect(&proxy).await;
            let (response, mut send) = client.start(request("POST", "/", &[]), false).await;
            if answered {
                response.await.expect("an answer");
            } else {
                while proxy.worker.http2().is_empty() {
                    tokio::task::yield_now().await;
                }
            }
            send.send_reset(Reason::CANCEL);
            assert_eq!(reset.await.expect("told"), Reason::CANCEL);
            let seen = &proxy.records(1).await[0];
            assert_eq!((&*seen.flags, seen.status), ("DC", if answered { 200 } else { 0 }));
        }
    });
}

#[test]
fn a_truncated_answer_is_a_reset_and_never_an_end() {
    run(async {
        let cut = http1_upstream(|mut peer, _| async move {
            peer.head().await;
            peer.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await;
        })
        .await;
        let reset = upstream(|mut call| async move {
            let mut answer = call.answer(&[], false);
            answer.send_data(Bytes::from_static(b"half"), false).expect("open");
            // The data is with the peer before the reset is.
            let _ = poll_fn(|cx| call.request.body_mut().poll_data(cx)).await;
            answer.send_reset(Reason::ENHANCE_YOUR_CALM);
        })
        .await;
        for (upstream, protocol, reason, flags) in [
            (cut, AppProtocol::Http, Reason::INTERNAL_ERROR, "UC"),
            (reset, AppProtocol::Http2, Reason::ENHANCE_YOUR_CALM, "UR"),
        ] {
            let proxy = Setup::service(&[upstream]).speaking(protocol).start().await;
            let client = Client::connect(&proxy).await;
            let (response, mut send) = client.start(request("POST", "/", &[]), false).await;
            send.send_data(Bytes::new(), protocol == AppProtocol::Http).expect("open");
            // What is still in the queue when a stream is reset never leaves.
            let error = match response.await {
                Err(error) => error,
                Ok(response) => {
                    let mut body = response.into_body();
                    loop {
                        match body.data().await.expect("no end") {
                            Ok(data) => assert_eq!(data, "half"),
                            Err(error) => break error,
                        }
                        let _ = send.send_data(Bytes::from_static(b"x"), true);
                    }
                }
            };
            assert_eq!(error.reason(), Some(reason));
            assert_eq!(&*proxy.records(1).await[0].flags, flags);
        }
    });
}
