//! What each side sees of the other's head.

use super::harness::*;
use crate::model::{
    DirectResponse, HeaderChange, HeaderOp, PathRewrite, Redirect, RedirectPath, RouteAction,
    WeightedDestination,
};

/// An upstream that answers with the head it got as its body.
async fn mirrors_head() -> std::net::SocketAddr {
    upstream(|mut peer, _| async move {
        loop {
            let (head, _) = peer.message().await;
            if head.is_empty() {
                return;
            }
            let fields = "Server: up\r\nKeep-Alive: timeout=5\r\nConnection: keep-alive, x-hop\r\nX-Hop: 1\r\nDate: now";
            peer.send(format!("HTTP/1.1 200 Fine\r\n{fields}\r\nContent-Length: {}\r\n\r\n{head}", head.len())).await;
        }
    })
    .await
}

#[test]
fn request_heads_are_written_anew() {
    run(async {
        let proxy = Setup::service(&[mirrors_head().await]).start().await;
        let check = async |request: &str, expected: &str| {
            let mut client = proxy.client().await;
            client.send(request.replace('\n', "\r\n")).await;
            assert_eq!(client.message().await.1, expected.replace('\n', "\r\n"), "{request}");
        };
        check(
            "GET /a?b=c HTTP/1.1\nHost: Web:80\nX-Request-ID: id-1\nAccept:  */*  \n\n",
            "GET /a?b=c HTTP/1.1\nhost: Web:80\nAccept: */*\nx-forwarded-for: 127.0.0.1\nx-forwarded-proto: http\n\
             x-request-id: id-1\nvia: 1.1 sluice\n\n",
        )
        .await;
        // Hop-by-hop fields go, protected ones stay, what others vouched for is kept and added to.
        check(
            "GET / HTTP/1.1\nHost: web\nConnection: close, X-Drop, Authorization, X-Forwarded-For, Host\nX-Drop: 1\n\
             Keep-Alive: 1\nProxy-Connection: x\nTE: trailers, gzip\nUpgrade: h2c\nHTTP2-Settings: x\nAuthorization: a\n\
             X-Forwarded-For: 10.0.0.1\nx-forwarded-for: 10.0.0.2\nX-Forwarded-Proto: https\nX-Forwarded-Host: pub\n\
             Via: 1.0 edge\ntraceparent: 00-t\nX-Request-Id: id\n\n",
            "GET / HTTP/1.1\nhost: web\nAuthorization: a\nX-Forwarded-Proto: https\nX-Forwarded-Host: pub\nVia: 1.0 edge\n\
             traceparent: 00-t\nx-forwarded-for: 10.0.0.1, 10.0.0.2, 127.0.0.1\nx-request-id: id\nvia: 1.1 sluice\n\n",
        )
        .await;
        check(
            "GET http://Real.example/x?y HTTP/1.1\nHost: other\nTE: trailers\nX-Request-Id: id\n\n",
            "GET /x?y HTTP/1.1\nhost: Real.example\nx-forwarded-for: 127.0.0.1\nx-forwarded-proto: http\n\
             x-request-id: id\nvia: 1.1 sluice\nte: trailers\nconnection: te\n\n",
        )
        .await;
        check(
            "GET / HTTP/1.0\nExpect: 100-continue\nX-Request-Id: id\n\n",
            "GET / HTTP/1.1\nhost: 10.96.0.10:80\nx-forwarded-for: 127.0.0.1\nx-forwarded-proto: http\nx-request-id: id\n\
             via: 1.0 sluice\n\n",
        )
        .await;
    });
}

#[test]
fn response_heads_are_written_anew() {
    run(async {
        let proxy = Setup::service(&[mirrors_head().await]).start().await;
        let mut client = proxy.client().await;
        client.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        let (head, body) = client.message().await;
        let length = body.len();
        let expected = format!(
            "HTTP/1.1 200 Fine\r\nServer: up\r\nDate: now\r\nContent-Length: {length}\r\nvia: 1.1 sluice\r\n\r\n"
        );
        assert_eq!(head, expected);
        let id = field(&body, "x-request-id").expect("an id is made");
        assert_eq!(id.len(), 36, "{id}");
    });
}

#[test]
fn routes_change_heads() {
    run(async {
        let op = |name: &str, change| HeaderOp { name: name.into(), change };
        let mut rule = rule();
        rule.request_headers =
            vec![op("x-set", HeaderChange::Set("1".into())), op("x-gone", HeaderChange::Remove)];
        rule.response_headers =
            vec![op("server", HeaderChange::Remove), op("x-add", HeaderChange::Add("2".into()))];
        let RouteAction::Forward { destinations, rewrite } = &mut rule.action else {
            unreachable!("it forwards")
        };
        let own: &mut WeightedDestination = &mut destinations[0];
        own.request_headers = vec![op("x-share", HeaderChange::Add("3".into()))];
        *rewrite =
            PathRewrite { authority: Some("inner".into()), path: Some(RedirectPath::Full("/new".into())) };
        let proxy = Setup::with_rule(&[mirrors_head().await], rule).start().await;
        let mut client = proxy.client().await;
        client.send("GET /old?q HTTP/1.1\r\nHost: web\r\nX-Set: 0\r\nX-Gone: 1\r\n\r\n").await;
        let (head, body) = client.message().await;
        assert!(body.starts_with("GET /new?q HTTP/1.1\r\nhost: inner\r\n"), "{body}");
        assert!(body.ends_with("x-set: 1\r\nx-share: 3\r\n\r\n"), "{body}");
        let absent = (field(&body, "x-gone"), field(&head, "server"));
        assert_eq!((absent, field(&head, "x-add").as_deref()), ((None, None), Some("2")));
        assert_eq!(field(&body, "x-forwarded-host").as_deref(), Some("web"));
    });
}

#[test]
fn a_rule_of_a_headless_service_keeps_the_pod_that_was_dialled() {
    run(async {
        let mut rule = rule();
        let RouteAction::Forward { destinations, rewrite } = &mut rule.action else {
            unreachable!("it forwards")
        };
        let change = HeaderOp { name: "x-share".into(), change: HeaderChange::Add("3".into()) };
        destinations[0].request_headers = vec![change];
        *rewrite = PathRewrite { authority: None, path: Some(RedirectPath::Full("/new".into())) };
        let (dialled, other) =
            (mirrors_head().await, says(b"HTTP/1.1 418 Other\r\nContent-Length: 0\r\n\r\n").await);
        let mut setup = Setup::with_rule(&[other, dialled], rule);
        setup.model.services[0].headless = true;
        setup.model.services[0].cluster_ips.clear();
        setup.original_destination = dialled;
        let proxy = setup.start().await;
        for _ in 0..4 {
            let mut client = proxy.client().await;
            client.send("GET /old HTTP/1.1\r\nHost: web\r\n\r\n").await;
            let (head, body) = client.message().await;
            assert!(body.starts_with("GET /new HTTP/1.1\r\nhost: web\r\n"), "{head}{body}");
            assert_eq!(field(&body, "x-share").as_deref(), Some("3"));
        }
    });
}

#[test]
fn redirects_and_fixed_answers() {
    run(async {
        let redirect = Redirect {
            status: 308,
            scheme: Some("https".into()),
            authority: None,
            port: None,
            path: Some(RedirectPath::Full("/new".into())),
        };
        let proxy = Setup::with_rule(&[], rule_with(RouteAction::Redirect(redirect))).start().await;
        let mut client = proxy.client().await;
        for _ in 0..2 {
            client.send("GET /old?q HTTP/1.1\r\nHost: web.example\r\n\r\n").await;
            let (head, _) = client.message().await;
            assert!(head.starts_with("HTTP/1.1 308 Permanent Redirect\r\n"), "{head}");
            assert_eq!(field(&head, "location").as_deref(), Some("https://web.example/new?q"));
        }
        let respond = DirectResponse { status: 418, body: b"short and stout".as_slice().into() };
        let proxy = Setup::with_rule(&[], rule_with(RouteAction::Respond(respond))).start().await;
        let mut client = proxy.client().await;
        client.send("HEAD / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        assert_eq!(field(&client.head().await, "content-length").as_deref(), Some("15"));
        client.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        assert_eq!(client.message().await.1, "short and stout");
    });
}
