//! Gateway listeners: hosts, and what binds strangers.

use std::time::Duration;

use super::harness::*;
use crate::model::HostPattern;

#[test]
fn hosts_choose_the_routes() {
    run(async {
        let host = HostPattern::Suffix(".example.com".into());
        let proxy = Setup::gateway(host, rule(), &[echo().await]).start().await;
        let check = async |host: &str, status: &str| {
            let answer =
                proxy.exchange(&format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{host}: {answer}");
        };
        check("a.example.com", "200").await;
        check("A.Example.COM:8080", "200").await;
        check("a.example.com.", "200").await;
        check("example.com", "404").await;
        check("other", "404").await;
        let records = proxy.records(5).await;
        assert_eq!(&*records[4].flags, "NR");
    });
}

#[test]
fn strangers_are_not_believed() {
    run(async {
        let address = upstream(|mut peer, _| async move {
            let (head, _) = peer.message().await;
            peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{head}", head.len())).await;
            peer.head().await;
        })
        .await;
        let proxy = Setup::gateway(HostPattern::Any, rule(), &[address]).start().await;
        let seen = proxy
            .exchange(
                "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\nConnection: upgrade, close\r\nUpgrade: tcp\r\n\r\n",
            )
            .await;
        assert!(seen.contains("x-forwarded-proto: http\r\n") && !seen.contains("https"), "{seen}");
        assert!(!seen.contains("upgrade"), "{seen}");
        assert!(!seen.contains("x-forwarded-host") && !seen.contains("evil"), "{seen}");
    });
}

#[test]
fn underscores_are_refused_to_strangers_alone() {
    run(async {
        let request = "GET / HTTP/1.1\r\nHost: a\r\nx_user: 1\r\nConnection: close\r\n\r\n";
        let gateway = Setup::gateway(HostPattern::Any, rule(), &[echo().await]).start().await;
        assert!(gateway.exchange(request).await.starts_with("HTTP/1.1 400 "));
        assert_eq!(gateway.records(1).await[0].details, "header_underscore");
        let captured = Setup::service(&[echo().await]).start().await;
        assert!(captured.exchange(request).await.starts_with("HTTP/1.1 200 "));
    });
}

#[test]
fn slow_and_idle_strangers_are_cut() {
    run(async {
        let mut setup = Setup::gateway(HostPattern::Any, rule(), &[echo().await]);
        let soon = Some(Duration::from_millis(30));
        setup.gateway.header_timeout = soon;
        setup.gateway.idle_timeout = soon;
        setup.gateway.body_timeout = soon;
        setup.gateway.max_requests = Some(2);
        let proxy = setup.start().await;
        assert_eq!(proxy.client().await.rest().await, "", "silence gets no answer");
        let answer = proxy.exchange("GET / HTTP/1.1\r\nHo").await;
        assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("header_timeout"), "{answer}");
        let answer = proxy.exchange("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe").await;
        assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("body_timeout"), "{answer}");
        let mut client = proxy.client().await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(field(&client.message().await.0, "connection"), None);
        assert_eq!(client.rest().await, "", "idle");
        let mut client = proxy.client().await;
        for last in [false, true] {
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            assert_eq!(field(&client.message().await.0, "connection").is_some(), last);
        }
    });
}

#[test]
fn the_first_heads_time_begins_with_the_connection() {
    run(async {
        let edge = async |time: u64| {
            let mut setup = Setup::gateway(HostPattern::Any, rule(), &[echo().await]);
            setup.gateway.header_timeout = Some(Duration::from_millis(time));
            setup.start().await
        };
        let (proxy, sooner, later) = (edge(400).await, edge(200).await, edge(300).await);
        let mut client = proxy.client().await;
        // Half of its time has passed once one that has half as much is cut.
        assert_eq!(sooner.client().await.rest().await, "");
        let mut late = later.client().await;
        for client in [&mut client, &mut late] {
            client.send("GET / HTTP/1.1\r\nHo").await;
        }
        // It has at most 250 ms left and the other one 300; with a time that began at the first byte it would have 400.
        tokio::select! {
            biased;
            answer = client.rest() => assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}"),
            _ = late.rest() => panic!("the time began with the first byte"),
        }
    });
}
