//! Switching protocols.

use tokio::io::AsyncWriteExt;

use super::harness::*;

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

#[test]
fn http2_is_never_switched_to() {
    run(async {
        let address = upstream(|mut peer, _| async move {
            let head = peer.head().await.to_ascii_lowercase();
            assert!(!head.contains("upgrade") && !head.contains("h2"), "{head}");
            peer.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            peer.head().await;
        })
        .await;
        let proxy = Setup::service(&[address]).start().await;
        let mut client = proxy.client().await;
        let fields = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ";
        client.send(format!("GET / HTTP/1.1\r\nHost: web\r\n{fields}\r\n\r\n")).await;
        assert_eq!(client.message().await.1, "ok");
    });
}
