//! Connections that are kept, reused, raced, drained and closed.

use std::cell::Cell;
use std::rc::Rc;

use tokio::io::AsyncWriteExt;

use super::harness::*;
use crate::compile::{RoutingTable, TableVersion, compile, gone};

#[test]
fn both_connections_are_kept() {
    run(async {
        let proxy = Setup::service(&[echo().await]).start().await;
        let mut client = proxy.client().await;
        for path in ["/a", "/b", "/c"] {
            client.send(format!("GET {path} HTTP/1.1\r\nHost: web\r\n\r\n")).await;
            assert_eq!(client.message().await.1, format!("0 GET {path} HTTP/1.1"));
        }
        assert_eq!(proxy.worker.pool().len(), 1);
        let records = proxy.records(3).await;
        assert_eq!((records[2].status, &*records[2].flags, records[2].response_bytes), (200, "-", 17));
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    run(async {
        let proxy = Setup::service(&[echo().await, echo().await]).start().await;
        let mut client = proxy.client().await;
        let requests: Vec<String> =
            (0..50).map(|number| format!("GET /{number} HTTP/1.1\r\nHost: web\r\n\r\n")).collect();
        client.send(requests.concat()).await;
        for number in 0..50 {
            assert_eq!(client.message().await.1, format!("0 GET /{number} HTTP/1.1"));
        }
    });
}

#[test]
fn heads_may_come_byte_by_byte_and_after_an_empty_line() {
    run(async {
        let proxy = Setup::service(&[echo().await]).start().await;
        let mut client = proxy.client().await;
        for byte in b"\r\nGET /slow HTTP/1.1\r\nHost: web\r\n\r\n" {
            client.send([*byte]).await;
            tokio::task::yield_now().await;
        }
        assert_eq!(client.message().await.1, "0 GET /slow HTTP/1.1");
    });
}

#[test]
fn close_and_http10_end_the_connection() {
    run(async {
        let proxy = Setup::service(&[echo().await]).start().await;
        let check = async |request: &str, connection: Option<&str>, ends: bool| {
            let mut client = proxy.client().await;
            client.send(request).await;
            let (head, _) = client.message().await;
            assert_eq!(field(&head, "connection").as_deref(), connection, "{request:?}");
            if ends {
                assert_eq!(client.rest().await, "", "{request:?}");
            } else {
                client.send(request).await;
                client.message().await;
            }
        };
        check("GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n", Some("close"), true).await;
        check("GET / HTTP/1.0\r\n\r\n", Some("close"), true).await;
        check("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", Some("keep-alive"), false).await;
        check("GET / HTTP/1.1\r\nHost: web\r\n\r\n", None, false).await;
    });
}

/// An upstream that drops every connection's second request unanswered, as one does that closed it meanwhile.
async fn closes_after_one(requests: Rc<Cell<u32>>) -> std::net::SocketAddr {
    upstream(move |mut peer, number| {
        let requests = Rc::clone(&requests);
        async move {
            for answered in [true, false] {
                let (head, _) = peer.message().await;
                requests.set(requests.get() + u32::from(!head.is_empty()));
                if answered {
                    peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{number}")).await;
                }
            }
        }
    })
    .await
}

#[test]
fn a_kept_connection_that_was_closed_is_replaced() {
    run(async {
        let requests = Rc::new(Cell::new(0));
        let proxy = Setup::service(&[closes_after_one(Rc::clone(&requests)).await]).start().await;
        let mut client = proxy.client().await;
        for number in ["0", "1", "2"] {
            client.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
            assert_eq!(client.message().await.1, number);
        }
        assert_eq!(requests.get(), 5, "two were sent twice");
        assert!(proxy.records(3).await.iter().all(|seen| seen.status == 200 && seen.flags == "-"));
    });
}

#[test]
fn what_can_not_be_repeated_is_sent_once() {
    run(async {
        let requests = Rc::new(Cell::new(0));
        let proxy = Setup::service(&[closes_after_one(Rc::clone(&requests)).await]).start().await;
        for body in ["", "hello"] {
            requests.set(0);
            let mut client = proxy.client().await;
            let request =
                format!("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            client.send(&request).await;
            assert!(client.message().await.0.starts_with("HTTP/1.1 200"));
            client.send(&request).await;
            let (head, _) = client.message().await;
            assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
            assert_eq!(requests.get(), 2, "the second one was not repeated");
            assert_eq!(field(&head, "connection"), None, "the client's connection goes on");
        }
        let records = proxy.records(2).await;
        assert_eq!((&*records[1].flags, records[1].details), ("UC", "upstream_closed"));
    });
}

#[test]
fn idle_upstream_connections_that_close_are_noticed_without_a_request() {
    run(async {
        let address = upstream(|mut peer, number| async move {
            peer.message().await;
            peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{number}")).await;
        })
        .await;
        let proxy = Setup::service(&[address]).start().await;
        for number in ["0", "1"] {
            let mut client = proxy.client().await;
            // A POST would fail if it met the closed connection.
            client.send("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 1\r\n\r\nx").await;
            assert_eq!(client.message().await.1, number);
        }
    });
}

#[test]
fn connections_with_surplus_bytes_are_not_kept() {
    run(async {
        let check = async |response: &'static [u8]| {
            let address = upstream(move |mut peer, _| async move {
                peer.head().await;
                peer.send(response).await;
                peer.head().await;
            })
            .await;
            let proxy = Setup::service(&[address]).start().await;
            let mut client = proxy.client().await;
            client.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
            assert_eq!(client.message().await.1, "ok");
            assert!(proxy.worker.pool().is_empty(), "{response:?}");
        };
        check(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokX").await;
        check(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok").await;
        check(b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\nconnection: keep-alive\r\n\r\nok").await;
    });
}

#[test]
fn draining_ends_idle_connections_and_announces_it_on_busy_ones() {
    run(async {
        let (go, wait) = tokio::sync::watch::channel(false);
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let address = upstream(move |mut peer, _| {
            let (mut wait, tell) = (wait.clone(), tell.clone());
            async move {
                peer.head().await;
                tell.send(()).expect("the test waits");
                wait.wait_for(|go| *go).await.expect("the test goes on");
                peer.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            }
        })
        .await;
        let proxy = Setup::service(&[address]).start().await;
        let (mut idle, mut busy) = (proxy.client().await, proxy.client().await);
        busy.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        told.recv().await.expect("the request arrives");
        proxy.drain.send(true).expect("the proxy listens");
        assert_eq!(idle.rest().await, "");
        go.send(true).expect("the upstream waits");
        let (head, body) = busy.message().await;
        assert_eq!((field(&head, "connection").as_deref(), &*body), (Some("close"), "ok"));
        assert_eq!(busy.rest().await, "");
    });
}

#[test]
fn a_client_that_only_closed_its_sending_side_gets_its_answer() {
    run(async {
        let proxy = Setup::service(&[echo().await]).start().await;
        let mut client = proxy.client().await;
        client.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        client.io.shutdown().await.expect("half-closes");
        assert!(client.rest().await.ends_with("0 GET / HTTP/1.1"));
    });
}

#[test]
fn a_client_that_is_gone_releases_its_upstream() {
    run(async {
        let (told, mut tell) = tokio::sync::mpsc::unbounded_channel();
        let address = upstream(move |mut peer, _| {
            let told = told.clone();
            async move {
                peer.head().await;
                told.send("request").expect("the test listens");
                peer.rest().await;
                told.send("closed").expect("the test listens");
            }
        })
        .await;
        let proxy = Setup::service(&[address]).start().await;
        let mut client = proxy.client().await;
        client.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        assert_eq!(tell.recv().await, Some("request"));
        socket2::SockRef::from(&client.io).set_linger(Some(std::time::Duration::ZERO)).expect("a socket");
        drop(client);
        assert_eq!(tell.recv().await, Some("closed"));
        let records = proxy.records(1).await;
        assert_eq!((records[0].status, &*records[0].flags), (0, "DC"));
    });
}

#[test]
fn the_early_connection_is_used_where_the_route_picks_its_endpoint() {
    // Counted by the upstream: a second connection would have another number.
    run(async {
        let address = echo().await;
        let mut setup = Setup::service(&[address]);
        setup.early = true;
        let proxy = setup.start().await;
        let mut client = proxy.client().await;
        for path in ["/a", "/b"] {
            client.send(format!("GET {path} HTTP/1.1\r\nHost: web\r\n\r\n")).await;
            assert_eq!(client.message().await.1, format!("0 GET {path} HTTP/1.1"));
        }
    });
}

#[test]
fn early_connections_of_clients_that_are_gone_do_not_pile_up() {
    run(async {
        let mut setup = Setup::service(&[echo().await]);
        setup.early = true;
        let proxy = setup.start().await;
        for number in 0..5 {
            let mut client = proxy.client().await;
            client.send("GET /a HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").await;
            assert_eq!(client.message().await.1, format!("{number} GET /a HTTP/1.1"));
            assert_eq!(client.rest().await, "");
            assert_eq!(proxy.worker.pool().len(), 1);
        }
    });
}

#[test]
fn the_early_connection_to_a_headless_endpoint_is_used() {
    run(async {
        let address = echo().await;
        let mut setup = Setup::service(&[address]);
        setup.model.services[0].headless = true;
        setup.original_destination = address;
        setup.early = true;
        let proxy = setup.start().await;
        let mut client = proxy.client().await;
        for path in ["/a", "/b"] {
            client.send(format!("GET {path} HTTP/1.1\r\nHost: web\r\n\r\n")).await;
            assert_eq!(client.message().await.1, format!("0 GET {path} HTTP/1.1"), "it was dialled twice");
        }
    });
}

#[test]
fn an_address_that_no_table_knows_is_dialled_and_the_connection_not_kept() {
    run(async {
        let mut setup = Setup::service(&[]);
        setup.original_destination = echo().await;
        let proxy = setup.start().await;
        let mut client = proxy.client().await;
        client.send("GET /a HTTP/1.1\r\nHost: web\r\n\r\n").await;
        let (head, body) = client.message().await;
        assert_eq!(body, "0 GET /a HTTP/1.1");
        assert_eq!(field(&head, "connection").as_deref(), Some("close"), "{head}");
        assert_eq!(client.rest().await, "");
    });
}

#[test]
fn connections_to_endpoints_that_left_the_table_are_closed() {
    run(async {
        let (leaves, stays) = (echo().await, echo().await);
        let proxy = Setup::service(&[leaves, stays]).start().await;
        for _ in 0..2 {
            let answer = proxy.exchange("GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        }
        assert_eq!(proxy.worker.pool().len(), 2);
        let table = |endpoints: &[std::net::SocketAddr]| {
            let model = Setup::service(endpoints).model;
            compile(&model, &RoutingTable::default(), TableVersion::default())
        };
        let both = table(&[leaves, stays]);
        proxy.worker.forget(&gone(&both, &both));
        assert_eq!(proxy.worker.pool().len(), 2, "both are known");
        proxy.worker.forget(&gone(&both, &table(&[stays])));
        assert_eq!(proxy.worker.pool().len(), 1);
    });
}
