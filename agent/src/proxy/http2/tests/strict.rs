//! What settings rule out, and what becomes of paths: the same in both versions, at both kinds of entry.

use bytes::Bytes;
use http::HeaderMap;

use super::peers::{Client, request, rest, upstream as http2_upstream, whole};
use crate::model::{
    AppProtocol, DirectResponse, HostPattern, HttpRule, MatchPath, PathRewrite, RedirectPath, RequestMatch,
    RouteAction,
};
use crate::proxy::http::tests::harness::{Proxy, Setup, echo, field, rule, rule_with, run, upstream};
use crate::route::{EscapedSlashes, Normalisation, PathPolicy};

/// A rule for one path.
fn on(path: &str, action: RouteAction) -> HttpRule {
    let matched = RequestMatch { path: Some(MatchPath::Exact(path.into())), ..RequestMatch::default() };
    HttpRule { matches: vec![matched], ..rule_with(action) }
}

/// Nobody gets to `/admin`; all else goes to an upstream that says what it was asked for.
async fn guarded() -> [Setup; 2] {
    let guard =
        || on("/admin", RouteAction::Respond(DirectResponse { status: 403, body: b"no".as_slice().into() }));
    let upstream = echo().await;
    let mut captured = Setup::with_rule(&[upstream], rule());
    captured.model.mesh_routes[0].rules.insert(0, guard());
    let mut gateway = Setup::gateway(HostPattern::Any, rule(), &[upstream]);
    gateway.model.listeners[0].routes[0].rules.insert(0, guard());
    [captured, gateway]
}

/// The path that the upstream saw, or the status and what the agent says.
fn outcome(status: u16, body: &str) -> String {
    match body.split(' ').collect::<Vec<_>>()[..] {
        [_, _, path, "HTTP/1.1"] if status == 200 => path.to_owned(),
        _ => format!("{status} {}", body.trim_end().rsplit(": ").next().unwrap_or_default()),
    }
}

async fn over_http1(proxy: &Proxy, path: &str) -> String {
    let mut client = proxy.client().await;
    client.send(format!("GET {path} HTTP/1.1\r\nHost: web\r\n\r\n")).await;
    let (head, body) = client.message().await;
    outcome(head[9..12].parse().expect("a status"), &body)
}

async fn over_http2(proxy: &Proxy, path: &str) -> String {
    let answer = Client::connect(proxy).await.get(request("GET", path, &[])).await;
    outcome(answer.status, &answer.body)
}

/// Checks what becomes of a path, and that it is what records show: the path that was matched, or the refused one.
async fn check_path(proxy: &Proxy, count: &mut usize, path: &str, expected: &str) {
    let seen = [over_http1(proxy, path).await, over_http2(proxy, path).await];
    assert_eq!(seen, [expected, expected], "{path}");
    *count += 2;
    for record in &proxy.records(*count).await[*count - 2..] {
        let recorded = match expected {
            forwarded if forwarded.starts_with('/') => forwarded,
            "403 no" => "/admin",
            _ => path,
        };
        assert_eq!(record.path, recorded, "{path}");
        if let Some(reason) = expected.strip_prefix("400 ") {
            assert_eq!((record.status, record.details, &*record.flags), (400, reason, "DPE"), "{path}");
        }
    }
}

#[test]
fn what_is_matched_is_what_is_forwarded() {
    run(async {
        let [captured, gateway] = guarded().await;
        let proxies = [captured.start().await, gateway.start().await];
        let mut counts = [0, 0];
        for (path, at_captured, at_gateway) in [
            ("/admin", "403 no", "403 no"),
            ("/%61dmin", "403 no", "403 no"),
            ("/%61%64%6D%69%6e", "403 no", "403 no"),
            ("/./admin", "403 no", "403 no"),
            ("/a/../admin", "403 no", "403 no"),
            ("/a/%2e%2e/admin", "403 no", "403 no"),
            ("/a/.%2E/%61dmin", "403 no", "403 no"),
            ("/a\\..\\admin", "403 no", "403 no"),
            ("/.\\admin", "403 no", "403 no"),
            ("//admin", "//admin", "403 no"),
            ("/x/..//admin", "//admin", "403 no"),
            ("/\\admin", "//admin", "403 no"),
            ("/../admin", "403 no", "400 path_above_root"),
            ("/%2e%2e/admin", "403 no", "400 path_above_root"),
            ("/a%2f..%2fadmin", "/a%2F..%2Fadmin", "400 path_escaped_slash"),
            ("/a/..%2fadmin", "/a/..%2Fadmin", "400 path_escaped_slash"),
            ("/a%5cb", "/a%5Cb", "400 path_escaped_slash"),
            ("/admin%00", "400 path_null", "400 path_null"),
            ("/%2561dmin", "/%2561dmin", "/%2561dmin"),
            ("/%zz", "/%zz", "400 path_escape"),
            ("/100%", "/100%", "400 path_escape"),
            ("/a%0ab", "/a%0Ab", "400 path_control_byte"),
            ("/a/../b", "/b", "/b"),
            ("/a\\b", "/a/b", "/a/b"),
            ("/a//b/", "/a//b/", "/a/b/"),
            ("/%61?x=/../%2e%2f//", "/a?x=/../%2e%2f//", "/a?x=/../%2e%2f//"),
            ("/caf%c3%a9", "/caf%C3%A9", "/caf%C3%A9"),
        ] {
            for (index, expected) in [at_captured, at_gateway].into_iter().enumerate() {
                check_path(&proxies[index], &mut counts[index], path, expected).await;
            }
        }
    });
}

#[test]
fn paths_are_treated_as_set() {
    run(async {
        let check = async |path: PathPolicy, table: &[(&str, &str)]| {
            let [_, mut gateway] = guarded().await;
            gateway.gateway.path = path;
            let (proxy, mut count) = (gateway.start().await, 0);
            for (path, expected) in table {
                check_path(&proxy, &mut count, path, expected).await;
            }
        };
        let none = PathPolicy { normalisation: Normalisation::None, ..PathPolicy::gateway() };
        check(none, &[("/a/../%61dmin", "/a/../%61dmin"), ("/%zz%2f", "/%zz%2f"), ("/admin", "403 no")])
            .await;
        let decode = PathPolicy { escaped_slashes: EscapedSlashes::Decode, ..PathPolicy::gateway() };
        check(decode, &[("/a%2f..%5Cadmin", "403 no"), ("/a%2F%2fb", "/a/b")]).await;
        let keep = PathPolicy { escaped_slashes: EscapedSlashes::Keep, ..PathPolicy::gateway() };
        check(keep, &[("/a%2f..%2fadmin", "/a%2F..%2Fadmin"), ("/a//b", "/a/b")]).await;
    });
}

#[test]
fn rewrites_work_on_what_was_matched() {
    run(async {
        let upstream = echo().await;
        let mut setup = Setup::with_rule(&[upstream], rule());
        let prefixed = &mut setup.model.mesh_routes[0].rules[0];
        let prefix = MatchPath::PathPrefix("/old".into());
        prefixed.matches = vec![RequestMatch { path: Some(prefix), ..RequestMatch::default() }];
        let RouteAction::Forward { rewrite, .. } = &mut prefixed.action else { unreachable!("it forwards") };
        *rewrite = PathRewrite { path: Some(RedirectPath::Prefix("/new".into())), authority: None };
        let proxy = setup.start().await;
        for (path, expected) in [
            ("/old/a", "/new/a"),
            ("/%6fld/%61?b=%61", "/new/a?b=%61"),
            ("/x/../old/./a/../b", "/new/b"),
            ("/old/../a", "404 route_not_found"),
            ("/old%2fa", "404 route_not_found"),
        ] {
            assert_eq!(over_http1(&proxy, path).await, expected, "{path}");
            assert_eq!(over_http2(&proxy, path).await, expected, "{path}");
        }
    });
}

#[test]
fn a_rewrite_makes_no_way_upwards() {
    run(async {
        let upstream = echo().await;
        let mut setup = Setup::with_rule(&[upstream], rule());
        let prefixed = &mut setup.model.mesh_routes[0].rules[0];
        let prefix = MatchPath::Prefix("/files".into());
        prefixed.matches = vec![RequestMatch { path: Some(prefix), ..RequestMatch::default() }];
        let RouteAction::Forward { rewrite, .. } = &mut prefixed.action else { unreachable!("it forwards") };
        *rewrite = PathRewrite { path: Some(RedirectPath::Prefix("/store/".into())), authority: None };
        let proxy = setup.start().await;
        for (path, expected) in [
            ("/files.html", "/store/.html"),
            ("/files/a.b", "/store//a.b"),
            ("/files../secret", "400 path_rewrite_dots"),
            ("/files%2e%2e/secret", "400 path_rewrite_dots"),
            ("/files..", "400 path_rewrite_dots"),
            ("/files./secret", "400 path_rewrite_dots"),
        ] {
            assert_eq!(over_http1(&proxy, path).await, expected, "{path}");
            assert_eq!(over_http2(&proxy, path).await, expected, "{path}");
        }
        assert_eq!(proxy.records(12).await[11].upstream, None, "nothing was sent");
    });
}

#[test]
fn methods_that_are_refused_are_405_and_the_rest_goes_on() {
    run(async {
        for setup in guarded().await {
            let proxy = setup.start().await;
            let mut client = proxy.client().await;
            for method in ["TRACE", "TRACK", "trace"] {
                client.send(format!("{method} / HTTP/1.1\r\nHost: web\r\nMax-Forwards: 0\r\n\r\n")).await;
                let (head, body) = client.message().await;
                assert!(head.starts_with("HTTP/1.1 405 ") && body.contains("method_trace"), "{head}{body}");
                assert_eq!(
                    field(&head, "allow").as_deref(),
                    Some("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
                );
            }
            client.send("OPTIONS * HTTP/1.1\r\nHost: web\r\nMax-Forwards: 0\r\n\r\n").await;
            let (_, body) = client.message().await;
            assert!(body.ends_with(" OPTIONS * HTTP/1.1"), "the connection goes on: {body}");
            let refused = proxy.exchange("CONNECT web:80 HTTP/1.1\r\nHost: web:80\r\n\r\n").await;
            assert!(refused.starts_with("HTTP/1.1 405 ") && refused.contains("allow: GET, "), "{refused}");

            let client = Client::connect(&proxy).await;
            for method in ["TRACE", "TRACK", "CONNECT"] {
                let mut asked = request(method, "/", &[]);
                if method == "CONNECT" {
                    *asked.uri_mut() = "web:80".parse().expect("an authority");
                }
                let answer = client.get(asked).await;
                assert_eq!(answer.status, 405, "{method}: {answer:?}");
                assert!(answer.field("allow").starts_with("GET, "), "{method}: {answer:?}");
            }
            assert_eq!(client.get(request("GET", "/", &[])).await.status, 200, "the connection goes on");
            let records = proxy.records(9).await;
            assert_eq!((&*records[0].method, records[0].details), ("TRACE", "method_trace"));
        }
    });
}

#[test]
fn trace_passes_where_it_is_let() {
    run(async {
        let [mut captured, _] = guarded().await;
        captured.captured.trace = true;
        let proxy = captured.start().await;
        let mut client = proxy.client().await;
        client.send("TRACE /a HTTP/1.1\r\nHost: web\r\n\r\n").await;
        assert_eq!(client.message().await.1, "0 TRACE /a HTTP/1.1");
        let answer = Client::connect(&proxy).await.get(request("TRACE", "/a", &[])).await;
        assert!(answer.body.ends_with("TRACE /a HTTP/1.1"), "{answer:?}");
    });
}

#[test]
fn heads_that_could_be_read_in_two_ways() {
    run(async {
        let [captured, gateway] = guarded().await;
        let proxies = [captured.start().await, gateway.start().await];
        let hops =
            |count: usize| format!("GET / HTTP/1.1\nHost: a\nVia: {}", vec!["1.1 sluice"; count].join(", "));
        for (request, at_captured, at_gateway) in [
            ("GET http://a/x HTTP/1.1\nHost: A", "/x", "/x"),
            ("GET http://a/x HTTP/1.1\nHost: b", "/x", "400 host_conflict"),
            ("GET http://a:80/x HTTP/1.1\nHost: a", "/x", "400 host_conflict"),
            ("GET http://a/x HTTP/1.1\nHost:", "/x", "400 host_conflict"),
            ("GET http://a/x HTTP/1.1", "400 host_missing", "400 host_missing"),
            ("GET http://a/x HTTP/1.0", "/x", "/x"),
            ("GET http://a/x/../%61dmin HTTP/1.1\nHost: a", "403 no", "403 no"),
            ("GET https://a/x HTTP/1.1\nHost: a", "/x", "421 target_scheme_mismatch"),
            ("GET ftp://a/x HTTP/1.1\nHost: a", "400 target_scheme", "400 target_scheme"),
            ("GET http://u@a/x HTTP/1.1\nHost: a", "400 target_userinfo", "400 target_userinfo"),
            ("GET /x HTTP/1.1\nHost: a\nHost: a", "400 host_repeated", "400 host_repeated"),
            ("GET /x HTTP/1.1\nHost:", "400 host_empty", "400 host_empty"),
            ("GET /x HTTP/1.1\nHost: u@a", "400 host_userinfo", "400 host_userinfo"),
            ("GET /x HTTP/1.1\nHost: a b", "400 host_malformed", "400 host_malformed"),
            ("GET /x HTTP/1.1", "400 host_missing", "400 host_missing"),
            ("GET /x HTTP/1.0", "/x", "/x"),
            ("GET /x HTTP/1.2\nHost: a", "505 version_unsupported", "505 version_unsupported"),
            ("GET /x HTTP/2.0\nHost: a", "505 version_unsupported", "505 version_unsupported"),
            ("GET /x HTTP/0.9\nHost: a", "505 version_unsupported", "505 version_unsupported"),
            ("GET /x", "400 version_malformed", "400 version_malformed"),
            ("GET * HTTP/1.1\nHost: a", "400 target_asterisk", "400 target_asterisk"),
            ("GET /x#y HTTP/1.1\nHost: a", "400 target_fragment", "400 target_fragment"),
            ("GET /x HTTP/1.1\nHost: a\nExpect: 200-ok", "417 expect_unknown", "417 expect_unknown"),
            (
                "POST /x HTTP/1.1\nHost: a\nTransfer-Encoding: gzip, chunked",
                "501 transfer_encoding_unsupported",
                "501 transfer_encoding_unsupported",
            ),
            (
                "POST /x HTTP/1.1\nHost: a\nTransfer-Encoding: xchunked",
                "400 transfer_encoding_not_chunked",
                "400 transfer_encoding_not_chunked",
            ),
            (&hops(8), "/", "/"),
            (&hops(9), "/", "508 via_loop"),
        ] {
            for (proxy, expected) in proxies.iter().zip([at_captured, at_gateway]) {
                let mut client = proxy.client().await;
                client.send(format!("{}\r\n\r\n", request.replace('\n', "\r\n"))).await;
                let (head, body) = client.message().await;
                assert_eq!(outcome(head[9..12].parse().expect("a status"), &body), expected, "{request}");
            }
        }
    });
}

/// What the proxy asks an upstream for, as text.
async fn forwarded(setup: fn(std::net::SocketAddr) -> Setup, fields: &[(&str, &str)]) -> [String; 2] {
    let mirror = upstream(|mut peer, _| async move {
        let head = peer.head().await;
        peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{head}", head.len())).await;
    })
    .await;
    let proxy = setup(mirror).start().await;
    let lines: String = fields.iter().flat_map(|(name, value)| [name, ": ", value, "\r\n"]).collect();
    let first =
        proxy.exchange(&format!("GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n{lines}\r\n")).await;
    let second = Client::connect(&proxy).await.get(request("GET", "/", fields)).await.body;
    [first, second].map(|head| head.to_ascii_lowercase())
}

#[test]
fn whom_a_request_comes_from_is_for_trusted_proxies_to_say() {
    run(async {
        let claims = [
            ("forwarded", "for=10.6.6.6"),
            ("x-real-ip", "10.6.6.6"),
            ("x-forwarded-for", "10.6.6.6"),
            ("x-forwarded-proto", "gopher"),
            ("x-forwarded-host", "evil"),
            ("x-forwarded-port", "666"),
            ("x-forwarded-prefix", "/evil"),
            ("x-forwarded-client-cert", "hash=evil"),
            ("x-original-url", "/admin"),
            ("x-rewrite-url", "/admin"),
            ("x-other", "kept"),
        ];
        let captured = forwarded(|upstream| Setup::with_rule(&[upstream], rule()), &claims).await;
        let gateway =
            forwarded(|upstream| Setup::gateway(HostPattern::Any, rule(), &[upstream]), &claims).await;
        for (name, value) in claims.into_iter().filter(|(name, _)| *name != "x-forwarded-for") {
            let line = format!("\r\n{name}: {value}\r\n");
            for (captured, gateway) in captured.iter().zip(&gateway) {
                assert!(captured.contains(&line), "{name}: {captured}");
                assert_eq!(gateway.contains(&line), name == "x-other", "{name}: {gateway}");
            }
        }
        for head in captured.iter().chain(&gateway) {
            assert!(head.contains("x-forwarded-for: 10.6.6.6, 127.0.0.1\r\n"), "added to: {head}");
        }
        for head in &gateway {
            assert!(head.contains("\r\nx-forwarded-proto: http\r\n"), "{head}");
        }
    });
}

#[test]
fn underscores_in_trailers_of_strangers_are_dropped() {
    run(async {
        const CHUNKED: &str = "POST / HTTP/1.1\r\nHost: web\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n\
            2\r\nhi\r\n0\r\nx-sum: 1\r\nx_user: root\r\n\r\n";
        let check = async |setup: Setup, expected: &str| {
            let proxy = setup.start().await;
            let answer = proxy.exchange(CHUNKED).await;
            assert!(answer.contains(&format!("{expected}\r\n")) || answer.ends_with(expected), "{answer}");
            let (response, mut body) =
                Client::connect(&proxy).await.start(request("POST", "/", &[]), false).await;
            body.send_data(Bytes::from_static(b"hi"), false).expect("sent");
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", "1".parse().expect("a value"));
            trailers.insert("x_user", "root".parse().expect("a value"));
            body.send_trailers(trailers).expect("sent");
            let answer = whole(response).await;
            assert_eq!(answer.body, expected);
        };
        let http1 = || {
            upstream(|mut peer, _| async move {
                peer.head().await;
                let mut body = String::new();
                while !body.ends_with("\r\n\r\n") {
                    body.push_str(&peer.bytes(1).await);
                }
                let (_, trailers) = body.split_once("0\r\n").expect("the last chunk");
                let said = trailers.trim_end().replace("\r\n", " ");
                peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{said}", said.len())).await;
            })
        };
        check(Setup::service(&[http1().await]), "x-sum: 1 x_user: root").await;
        check(Setup::gateway(HostPattern::Any, rule(), &[http1().await]), "x-sum: 1").await;
        let http2 = || {
            http2_upstream(|mut call| async move {
                let mut answer = call.answer(&[], false);
                let (_, trailers) = rest(call.request.into_body()).await.expect("a body");
                let said: Vec<_> = trailers
                    .iter()
                    .flatten()
                    .map(|(name, value)| format!("{name}: {}", value.to_str().expect("text")))
                    .collect();
                answer.send_data(said.join(" ").into(), true).expect("the peer waits");
            })
        };
        let speaking = |setup: Setup| setup.speaking(AppProtocol::Http2);
        check(speaking(Setup::service(&[http2().await])), "x-sum: 1 x_user: root").await;
        check(speaking(Setup::gateway(HostPattern::Any, rule(), &[http2().await])), "x-sum: 1").await;
    });
}
