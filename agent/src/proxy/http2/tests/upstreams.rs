//! Connections to HTTP/2 upstreams: balancing by request, retries, GOAWAY, what is no HTTP/2.

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;
use h2::{Reason, server};

use super::peers::{Client, echo, request, upstream, upstream_with, whole};
use crate::model::AppProtocol;
use crate::proxy::http::tests::harness::{Setup, run, says, upstream as http1_upstream};

#[test]
fn requests_of_one_connection_are_spread_over_the_endpoints() {
    run(async {
        let (first, second) = (echo().await, echo().await);
        let proxy = Setup::service(&[first, second]).speaking(AppProtocol::Grpc).start().await;
        let client = Client::connect(&proxy).await;
        for _ in 0..20 {
            assert_eq!(client.get(request("GET", "/", &[])).await.status, 200);
        }
        let seen = proxy.records(20).await;
        let at_first = seen.iter().filter(|record| record.upstream == Some(first)).count();
        assert_eq!((at_first, proxy.worker.http2().len()), (10, 2));
    });
}

#[test]
fn a_full_connection_is_joined_by_another() {
    run(async {
        let mut builder = server::Builder::new();
        builder.max_concurrent_streams(2);
        let open = Rc::new(Cell::new(0));
        let counted = Rc::clone(&open);
        let upstream = upstream_with(builder, move |mut call| {
            let counted = Rc::clone(&counted);
            async move {
                counted.set(counted.get() + 1);
                while counted.get() < 5 {
                    tokio::task::yield_now().await;
                }
                call.answer(&[("x-connection", &call.connection.to_string())], true);
            }
        })
        .await;
        let proxy = Setup::service(&[upstream]).speaking(AppProtocol::Http2).start().await;
        let client = Client::connect(&proxy).await;
        // The first request teaches the limit before the others come.
        let (first, _) = client.start(request("GET", "/", &[]), true).await;
        while open.get() == 0 {
            tokio::task::yield_now().await;
        }
        let mut waiting = vec![first];
        for _ in 0..4 {
            waiting.push(client.start(request("GET", "/", &[]), true).await.0);
        }
        let mut connections = Vec::new();
        for response in waiting {
            connections.push(whole(response).await.field("x-connection").to_owned());
        }
        connections.sort();
        assert_eq!(connections, ["0", "0", "1", "1", "2"]);
    });
}

#[test]
fn a_refused_stream_is_tried_once_more() {
    run(async {
        for (refusals, status) in [(1, 200), (2, 503)] {
            let upstream = upstream(move |mut call| async move {
                if call.number < refusals {
                    call.respond.send_reset(Reason::REFUSED_STREAM);
                } else {
                    call.answer(&[], true);
                }
            })
            .await;
            let proxy = Setup::service(&[upstream]).speaking(AppProtocol::Http2).start().await;
            let client = Client::connect(&proxy).await;
            let answer = client.get(request("POST", "/", &[])).await;
            assert_eq!(answer.status, status, "{refusals} refusals");
            let text = proxy
                .exchange("POST / HTTP/1.1\r\nHost: web\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
                .await;
            assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        }
    });
}

#[test]
fn other_resets_are_not_retried() {
    run(async {
        let upstream = upstream(|mut call| async move {
            assert_eq!(call.number, 0, "sent again");
            call.respond.send_reset(Reason::INTERNAL_ERROR);
        })
        .await;
        let proxy = Setup::service(&[upstream]).speaking(AppProtocol::Http2).start().await;
        let answer = Client::connect(&proxy).await.get(request("GET", "/", &[])).await;
        assert_eq!(answer.status, 503);
        let seen = &proxy.records(1).await[0];
        assert_eq!((&*seen.flags, seen.details), ("UR", "upstream_reset_internal_error"));
    });
}

#[test]
fn a_connection_that_is_gone_is_replaced() {
    run(async {
        let upstream = http1_upstream(|peer, number| async move {
            let mut connection = server::handshake(peer.io).await.expect("HTTP/2");
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                let response = http::Response::builder().header("x-connection", number.to_string());
                respond.send_response(response.body(()).expect("a response"), true).expect("the peer waits");
                // Every connection serves one request; the first one says GOAWAY, the second one just ends.
                if number == 0 {
                    connection.graceful_shutdown();
                } else if number == 1 {
                    let _ = futures_util::future::poll_immediate(std::future::poll_fn(|cx| {
                        connection.poll_closed(cx)
                    }))
                    .await;
                    return;
                }
            }
        })
        .await;
        let proxy = Setup::service(&[upstream]).speaking(AppProtocol::Http2).start().await;
        let client = Client::connect(&proxy).await;
        for connection in ["0", "1", "2", "2"] {
            let answer = client.get(request("GET", "/", &[])).await;
            assert_eq!((answer.status, answer.field("x-connection")), (200, connection));
            // What the upstream said of its connection has arrived before the next request leaves.
            while connection == "0" && proxy.worker.http2().len() > 1 {
                tokio::task::yield_now().await;
            }
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
        }
    });
}

#[test]
fn an_upstream_that_speaks_another_version_is_a_bad_gateway() {
    run(async {
        let http1 = says(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
        let proxy = Setup::service(&[http1]).speaking(AppProtocol::Http2).start().await;
        let answer = Client::connect(&proxy).await.get(request("GET", "/", &[])).await;
        assert_eq!(answer.status, 502);
        assert_eq!(&*proxy.records(1).await[0].flags, "UPE");

        let http2 = echo().await;
        let proxy = Setup::service(&[http2]).speaking(AppProtocol::Http).start().await;
        let answer = Client::connect(&proxy).await.get(request("GET", "/", &[])).await;
        assert_eq!(answer.status, 502);
        assert_eq!(&*proxy.records(1).await[0].flags, "UPE");
    });
}

#[test]
fn an_early_connection_serves_the_first_request() {
    run(async {
        let upstream = echo().await;
        let mut setup = Setup::service(&[upstream]).speaking(AppProtocol::Undeclared);
        setup.early = true;
        let proxy = setup.start().await;
        let client = Client::connect(&proxy).await;
        for _ in 0..2 {
            let answer = client.get(request("GET", "/", &[])).await;
            assert!(answer.body.starts_with("0 GET "), "{}", answer.body);
        }
        let (response, mut send) = client.start(request("POST", "/", &[]), false).await;
        send.send_data(Bytes::from_static(b"x"), true).expect("open");
        assert!(whole(response).await.body.ends_with('x'));
        // Those of further clients take its place.
        for number in 1..4 {
            let answer = Client::connect(&proxy).await.get(request("GET", "/", &[])).await;
            assert!(answer.body.starts_with(&format!("{number} GET ")), "{}", answer.body);
            assert_eq!(proxy.worker.http2().len(), 1);
        }
    });
}

#[test]
fn an_upstream_that_answered_without_asking_for_the_body_is_not_used_again() {
    run(async {
        for (go_on, kept) in [("", 0), ("HTTP/1.1 100 Continue\r\n\r\n", 1)] {
            let upstream = http1_upstream(move |mut peer, _| async move {
                peer.head().await;
                peer.send(go_on).await;
                peer.bytes(5).await;
                peer.send("HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n").await;
                peer.rest().await;
            })
            .await;
            let proxy = Setup::service(&[upstream]).start().await;
            let client = Client::connect(&proxy).await;
            let fields = [("expect", "100-continue"), ("content-length", "5")];
            let (response, mut send) = client.start(request("POST", "/", &fields), false).await;
            send.send_data(Bytes::from_static(b"hello"), true).expect("open");
            assert_eq!(whole(response).await.status, 401);
            proxy.records(1).await;
            assert_eq!(proxy.worker.pool().len(), kept, "{go_on:?}");
        }
    });
}

#[test]
fn an_early_connection_that_was_closed_is_not_used() {
    run(async {
        for protocol in [AppProtocol::Http, AppProtocol::Http2] {
            let closed = Rc::new(Cell::new(false));
            let told = Rc::clone(&closed);
            let upstream = http1_upstream(move |mut peer, number| {
                let told = Rc::clone(&told);
                async move {
                    if number == 0 {
                        drop(peer);
                        told.set(true);
                    } else if protocol == AppProtocol::Http {
                        peer.head().await;
                        peer.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                    } else {
                        let mut connection = server::handshake(peer.io).await.expect("HTTP/2");
                        while let Some(Ok((_, mut respond))) = connection.accept().await {
                            respond.send_response(http::Response::new(()), true).expect("the peer waits");
                        }
                    }
                }
            })
            .await;
            let mut setup = Setup::service(&[upstream]).speaking(protocol);
            setup.early = true;
            let proxy = setup.start().await;
            let client = Client::connect(&proxy).await;
            while !closed.get() {
                tokio::task::yield_now().await;
            }
            // Not to be repeated: it must find a connection that lives.
            let answer = client.get(request("POST", "/", &[])).await;
            assert_eq!(answer.status, 200, "{protocol:?}");
        }
    });
}

#[test]
fn an_early_connection_is_for_the_first_stream_or_for_none() {
    run(async {
        let ended = Rc::new(Cell::new(false));
        let told = Rc::clone(&ended);
        let upstream = http1_upstream(move |mut peer, _| {
            let told = Rc::clone(&told);
            async move {
                assert_eq!(peer.rest().await, "", "nobody asks");
                told.set(true);
            }
        })
        .await;
        let mut setup = Setup::service(&[upstream]);
        setup.early = true;
        let proxy = setup.start().await;
        let client = Client::connect(&proxy).await;
        assert_eq!(client.get(request("TRACE", "/", &[])).await.status, 405);
        while !ended.get() {
            tokio::task::yield_now().await;
        }
    });
}
