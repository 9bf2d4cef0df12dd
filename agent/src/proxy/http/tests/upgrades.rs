//! Switching protocols.

use tokio::io::AsyncWriteExt;

use super::harness::*;
use crate::model::{AuthorizationPolicy, Model, ObjectName, PolicyAction, PolicyScope};

const UPGRADE: &str = "GET /chat HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

#[test]
fn a_switched_connection_is_a_tunnel_with_half_close() {
    run(async {
        let address = upstream(|mut peer, _| async move {
            let head = peer.head().await;
            assert_eq!(field(&head, "upgrade").as_deref(), Some("websocket"));
            assert_eq!(field(&head, "connection").as_deref(), Some("upgrade"));
            peer.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nwelcome").await;
            let said = peer.rest().await;
            peer.send(format!("you said {said}")).await;
        })
        .await;
        let proxy = Setup::service(&[address]).start().await;
        let mut client = proxy.client().await;
        client.send(UPGRADE).await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
        let said = (field(&head, "upgrade"), field(&head, "connection"));
        assert_eq!(said, (Some("websocket".to_owned()), Some("upgrade".to_owned())));
        assert_eq!(client.bytes(7).await, "welcome");
        client.send("\0\x01 not HTTP").await;
        client.io.shutdown().await.expect("half-closes");
        assert_eq!(client.rest().await, "you said \0\x01 not HTTP");
        let seen = proxy.records(1).await.remove(0);
        assert_eq!((seen.status, seen.request_bytes, seen.response_bytes), (101, 11, 27));
        assert!(proxy.worker.pool().is_empty());
    });
}

#[test]
fn bytes_behind_an_upgrade_wait_for_the_switch() {
    run(async {
        let address = upstream(|mut peer, number| async move {
            let head = peer.head().await;
            // The first connection does not switch: what follows is the next request.
            if number == 0 && head.contains("/chat") {
                peer.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno").await;
                let head = peer.head().await;
                assert!(head.starts_with("GET /next "), "{head}");
                peer.send("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nnext").await;
                peer.head().await;
            }
        })
        .await;
        let proxy = Setup::service(&[address]).start().await;
        let mut client = proxy.client().await;
        client.send(format!("{UPGRADE}GET /next HTTP/1.1\r\nHost: web\r\n\r\n")).await;
        assert_eq!(client.message().await.1, "no");
        assert_eq!(client.message().await.1, "next");
    });
}

/// An upstream that switches and mirrors until it hears `bye`, which it answers with a reset.
async fn mirror() -> std::net::SocketAddr {
    upstream(|mut peer, _| async move {
        peer.head().await;
        peer.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n\r\n")
            .await;
        loop {
            match &*peer.bytes(3).await {
                "bye" => break peer.io.set_zero_linger().expect("a socket"),
                other => peer.send(other).await,
            }
        }
    })
    .await
}

#[test]
fn a_reset_of_either_side_reaches_the_other_one_and_the_record() {
    run(async {
        let proxy = Setup::service(&[mirror().await]).start().await;
        let mut client = proxy.client().await;
        client.send(UPGRADE).await;
        client.head().await;
        client.send("hey").await;
        assert_eq!(client.bytes(3).await, "hey");
        client.send("bye").await;
        assert_eq!(client.until_reset().await, (String::new(), true), "a reset is no clean end");
        let seen = proxy.records(1).await.remove(0);
        assert_eq!((seen.status, &*seen.flags, seen.details), (101, "UC", "upstream_reset"));
        assert_eq!((seen.request_bytes, seen.response_bytes), (6, 3), "what passed is counted");

        let (told, tells) = tokio::sync::oneshot::channel();
        let told = std::cell::RefCell::new(Some(told));
        let address = upstream(move |mut peer, _| {
            let told = told.borrow_mut().take();
            async move {
                peer.head().await;
                peer.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\nhello").await;
                let _ = told.expect("one connection").send(peer.until_reset().await);
            }
        })
        .await;
        let proxy = Setup::service(&[address]).start().await;
        let mut client = proxy.client().await;
        client.send(UPGRADE).await;
        client.head().await;
        assert_eq!(client.bytes(5).await, "hello");
        client.io.set_zero_linger().expect("a socket");
        drop(client);
        assert_eq!(tells.await.expect("the upstream hears of it"), (String::new(), true));
        let seen = proxy.records(1).await.remove(0);
        assert_eq!((seen.status, &*seen.flags, seen.details), (101, "DC", "downstream_reset"));
        assert_eq!(seen.response_bytes, 5);
    });
}

/// Nobody can ask the policy of what only the node's NAT leads to: it may be any pod.
#[test]
fn a_tunnel_to_what_no_table_knows_is_cut_once_there_are_policies() {
    run(async {
        let setup = Setup { original_destination: mirror().await, ..Setup::service(&[]) };
        let proxy = setup.start().await;
        let mut client = proxy.client().await;
        client.send(UPGRADE).await;
        assert!(client.head().await.starts_with("HTTP/1.1 101 "));
        // A table without policies changes nothing.
        proxy.apply(&Model::default());
        client.send("one").await;
        assert_eq!(client.bytes(3).await, "one");
        let pod = pod([192, 0, 2, 1]);
        let policy = AuthorizationPolicy {
            name: ObjectName::new("default", "p"),
            scope: PolicyScope::Namespace,
            selector: [].into(),
            action: PolicyAction::Allow,
            dry_run: false,
            rules: Vec::new(),
        };
        proxy.apply(&Model {
            workloads: vec![pod].into(),
            authorization: vec![policy].into(),
            ..Model::default()
        });
        assert_eq!(client.until_reset().await, (String::new(), true));
        let seen = proxy.records(1).await.remove(0);
        assert_eq!((seen.flags.as_str(), seen.details), ("UAEX", "rbac_access_denied"));
    });
}

#[test]
fn a_drain_lets_a_tunnel_go_on() {
    run(async {
        let proxy = Setup::service(&[mirror().await]).start().await;
        let mut client = proxy.client().await;
        client.send(UPGRADE).await;
        client.head().await;
        proxy.drain.send_replace(true);
        for _ in 0..100 {
            client.send("hey").await;
            assert_eq!(client.bytes(3).await, "hey");
        }
    });
}

#[test]
fn an_upstream_switches_to_what_was_asked_for_or_not_at_all() {
    run(async {
        for (switched, status) in [
            ("Upgrade: websocket", 101),
            ("Upgrade: WEBSOCKET/13", 101),
            ("Connection: upgrade", 101),
            ("Upgrade: h2c", 502),
            ("Upgrade: websocket\r\nUpgrade: tcp", 502),
        ] {
            let address = upstream(move |mut peer, _| async move {
                peer.head().await;
                peer.send(format!("HTTP/1.1 101 Switching Protocols\r\n{switched}\r\n\r\n")).await;
            })
            .await;
            let proxy = Setup::service(&[address]).start().await;
            let mut client = proxy.client().await;
            client.send(UPGRADE).await;
            let answer = client.head().await;
            drop(client);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{switched}: {answer}");
            let details = if status == 101 { "" } else { "upgrade_to_another" };
            assert_eq!(proxy.records(1).await[0].details, details, "{switched}");
        }
    });
}

/// An upstream that answers a request with the head that it saw.
async fn shows_heads() -> std::net::SocketAddr {
    upstream(|mut peer, _| async move {
        let (head, _) = peer.message().await;
        peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{head}", head.len())).await;
        peer.head().await;
    })
    .await
}

#[test]
fn strangers_may_switch_to_websocket_alone_and_nobody_to_http2() {
    run(async {
        let captured = Setup::service(&[shows_heads().await]).start().await;
        let host = crate::model::HostPattern::Any;
        let gateway = Setup::gateway(host, rule(), &[shows_heads().await]).start().await;
        let settings = "HTTP2-Settings: AAMAAABkAAQAAP__";
        for (fields, to_captured, to_gateway) in [
            ("Connection: Upgrade\r\nUpgrade: websocket", Some("websocket"), Some("websocket")),
            ("Connection: upgrade\r\nUpgrade: WebSocket", Some("WebSocket"), Some("WebSocket")),
            ("Connection: Upgrade\r\nUpgrade: tcp", Some("tcp"), None),
            ("Connection: Upgrade\r\nUpgrade: TLS/1.2", Some("TLS/1.2"), None),
            ("Upgrade: websocket", None, None),
            ("Connection: Upgrade\r\nUpgrade: h2c", None, None),
            ("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c", None, None),
            ("Connection: Upgrade\r\nUpgrade: H2C", None, None),
            ("Connection: Upgrade\r\nUpgrade: h2", None, None),
            ("Connection: Upgrade\r\nUpgrade: websocket, h2c", None, None),
            ("Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c", None, None),
            ("Connection: Upgrade\r\nUpgrade: h2c/1", None, None),
            ("Connection: Upgrade\r\nUpgrade: h2-14", None, None),
        ] {
            for (proxy, expected) in [(&captured, to_captured), (&gateway, to_gateway)] {
                let mut client = proxy.client().await;
                client.send(format!("GET / HTTP/1.1\r\nHost: web\r\n{fields}\r\n{settings}\r\n\r\n")).await;
                let (_, seen) = client.message().await;
                assert_eq!(field(&seen, "upgrade").as_deref(), expected, "{fields}: {seen}");
                let connection = expected.map(|_| "upgrade");
                assert_eq!(field(&seen, "connection").as_deref(), connection, "{fields}: {seen}");
                assert_eq!(field(&seen, "http2-settings"), None, "{fields}: {seen}");
            }
        }
    });
}
