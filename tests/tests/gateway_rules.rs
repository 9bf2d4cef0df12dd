//! What the rules of HTTPRoutes do, through the real binary: redirects, rewrites, header changes, weights, timeouts,
//! backends that are not there, references across namespaces.

mod common;
mod edge;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use common::LIMIT;
use edge::{OPEN, PORT, Seen, check, gateway, route, send, services};
use lab::backend::{dead_address, echo, echo_reply, http, listen};
use lab::loopback::{Site, service};
use lab::wait_for;

/// A rule for everything below a path, with filters.
fn filtered(path: &str, filters: &str) -> String {
    format!(
        "  - matches: [{{path: {{value: {path}}}}}]\n    filters: [{filters}]\n    backendRefs: [{{name: web, port: 80}}]\n"
    )
}

#[test]
fn redirects_say_where_to() -> Result<()> {
    let redirect = |path: &str, what: &str| {
        filtered(path, &format!("{{type: RequestRedirect, requestRedirect: {what}}}"))
            .replace("    backendRefs: [{name: web, port: 80}]\n", "")
    };
    let rules = [
        redirect("/scheme", "{scheme: https, statusCode: 301}"),
        redirect("/host", "{hostname: other.test}"),
        redirect("/port", "{port: 8443, statusCode: 307}"),
        redirect("/full", "{path: {type: ReplaceFullPath, replaceFullPath: /new}, statusCode: 308}"),
        redirect("/prefix", "{path: {type: ReplacePrefixMatch, replacePrefixMatch: /to}, statusCode: 303}"),
        redirect(
            "/all",
            "{scheme: https, hostname: o.test, port: 444, path: {type: ReplaceFullPath, replaceFullPath: /}}",
        ),
    ];
    let site = Site::new(&[
        ("gateway.yaml", &gateway(OPEN)),
        ("services.yaml", &services(&["web"])?),
        ("routes.yaml", &route("moves", "", &rules.concat())),
    ])?;
    let _agent = site.start(&[])?;
    for (path, status, location) in [
        ("/scheme/a?b=c", 301, "https://my.test/scheme/a?b=c"),
        ("/host", 302, "http://other.test:8080/host"),
        ("/port/x", 307, "http://my.test:8443/port/x"),
        ("/full/x?y=1", 308, "http://my.test:8080/new?y=1"),
        ("/prefix/x/", 303, "http://my.test:8080/to/x/"),
        ("/all", 302, "https://o.test:444/"),
    ] {
        let seen = send(site.at(PORT), "my.test:8080", path, &[])?;
        let found = (seen.response.status, seen.got("location"));
        ensure!(found == (status, vec![location]), "{path}: {found:?}");
    }
    Ok(())
}

#[test]
fn rewrites_and_header_changes_reach_the_backend_and_the_client() -> Result<()> {
    let rewrite =
        |path: &str, what: &str| filtered(path, &format!("{{type: URLRewrite, urlRewrite: {what}}}"));
    let modify = |path: &str, side: &str, what: &str| {
        let (upper, lower) =
            (format!("{side}HeaderModifier"), format!("{}HeaderModifier", side.to_lowercase()));
        filtered(path, &format!("{{type: {upper}, {lower}: {what}}}"))
    };
    let changes = "{set: [{name: x-set, value: new}], add: [{name: x-add, value: more}], remove: [x-gone]}";
    let rules = [
        rewrite("/host", "{hostname: inner.test}"),
        rewrite("/full", "{path: {type: ReplaceFullPath, replaceFullPath: /all/new}}"),
        rewrite("/prefix", "{hostname: i.test, path: {type: ReplacePrefixMatch, replacePrefixMatch: /v2}}"),
        rewrite("/strip", "{path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}"),
        modify("/request", "Request", changes),
        modify("/response", "Response", &changes.replace("x-gone", "x-backend")),
    ];
    let site = Site::new(&[
        ("gateway.yaml", &gateway(OPEN)),
        ("services.yaml", &services(&["web"])?),
        ("routes.yaml", &route("changes", "", &rules.concat())),
    ])?;
    let _agent = site.start(&[])?;
    let ask = |path: &str| -> Result<Seen> {
        let seen =
            send(site.at(PORT), "my.test", path, &[("x-set", "old"), ("X-Add", "first"), ("X-Gone", "1")])?;
        ensure!(seen.who() == "web", "{path}: {seen:?}");
        Ok(seen)
    };
    for (path, target, host) in [
        ("/host/a?b", "/host/a?b", "inner.test"),
        ("/full/a?b=c", "/all/new?b=c", "my.test"),
        ("/prefix/a/b?c", "/v2/a/b?c", "i.test"),
        ("/prefix", "/v2", "i.test"),
        ("/strip/a", "/a", "my.test"),
        ("/strip", "/", "my.test"),
    ] {
        let seen = ask(path)?;
        let found = (seen.request["target"].as_str().unwrap_or_default(), seen.sent("host"));
        ensure!(found == (target, vec![host]), "{path}: {found:?}");
        let asked = if host == "my.test" { vec![] } else { vec!["my.test"] };
        ensure!(seen.sent("x-forwarded-host") == asked, "{path}: {seen:?}");
    }
    let seen = ask("/request")?;
    ensure!(seen.sent("x-set") == ["new"] && seen.sent("x-gone").is_empty(), "{seen:?}");
    ensure!(seen.sent("x-add") == ["first", "more"], "{seen:?}");
    let seen = ask("/response")?;
    ensure!(seen.got("x-set") == ["new"] && seen.got("x-add") == ["more"], "{seen:?}");
    ensure!(seen.got("x-backend").is_empty() && seen.got("x-pod") == ["web"], "{seen:?}");
    ensure!(seen.sent("x-set") == ["old"], "{seen:?}");
    Ok(())
}

#[test]
fn weights_timeouts_and_backends_that_are_not_there() -> Result<()> {
    let never = http(listen()?, |request| {
        // Longer than any test: the client's time ends first.
        std::thread::park();
        echo_reply("never", request)
    })?;
    let to = |path: &str, backends: &str| {
        format!("  - matches: [{{path: {{value: {path}}}}}]\n    backendRefs: [{backends}]\n")
    };
    let rules = [
        to("/split", "{name: a, port: 80, weight: 90}, {name: b, port: 80, weight: 10}"),
        to("/none", "{name: missing, port: 80}"),
        to("/half", "{name: a, port: 80}, {name: missing, port: 80}"),
        to("/port", "{name: a, port: 81}"),
        to("/kind", "{group: example.com, kind: Bucket, name: a}"),
        to("/zero", "{name: a, port: 80, weight: 0}"),
        to("/empty", "{name: empty, port: 80}"),
        to("/dead", "{name: dead, port: 80}"),
        to("/slow", "{name: never, port: 80}") + "    timeouts: {request: 300ms}\n",
        to("/try", "{name: never, port: 80}") + "    timeouts: {request: 10s, backendRequest: 300ms}\n",
        to("/quick", "{name: a, port: 80}") + "    timeouts: {request: 10s}\n",
    ];
    let more = [
        service("default", "empty", 80, &[]),
        service("default", "dead", 80, &[dead_address()?]),
        service("default", "never", 80, &[never]),
    ];
    let site = Site::new(&[
        ("gateway.yaml", &gateway(OPEN)),
        ("services.yaml", &(services(&["a", "b"])? + &more.concat())),
        ("routes.yaml", &route("backends", "", &rules.concat())),
    ])?;
    let agent = site.start(&[])?;
    let to = site.at(PORT);
    let versions: Vec<String> = (0..1000)
        .map(|_| Ok(if send(to, "x.test", "/split", &[])?.who() == "b" { "v2" } else { "v1" }.to_owned()))
        .collect::<Result<_>>()?;
    common::check_canary(&versions)?;
    for (path, expected) in [
        ("/none", "500"),
        ("/port", "500"),
        ("/kind", "500"),
        ("/zero", "500"),
        ("/empty", "503"),
        ("/dead", "503"),
        ("/slow", "504"),
        ("/try", "504"),
        ("/quick", "a"),
    ] {
        let begin = Instant::now();
        check(to, "x.test", path, &[], expected)?;
        ensure!(begin.elapsed() < Duration::from_secs(5), "{path} took {:?}", begin.elapsed());
    }
    let half: Vec<String> =
        (0..40).map(|_| Ok(send(to, "x.test", "/half", &[])?.who())).collect::<Result<_>>()?;
    let failed = half.iter().filter(|who| *who == "500").count();
    ensure!((10..=30).contains(&failed) && half.iter().all(|who| who == "500" || who == "a"), "{half:?}");
    for flag in ["NC", "UH", "UF", "UT"] {
        let count =
            || agent.scrape().map(|seen| seen.sum("istio_requests_total", &[("response_flags", flag)]));
        wait_for(&format!("{flag} to be counted"), LIMIT, || count().is_ok_and(|count| count > 0.0))?;
    }
    Ok(())
}

#[test]
fn references_across_namespaces_need_leave() -> Result<()> {
    let grant = "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: vault}\nspec:\n  \
                 from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: default}]\n  to: [{group: \"\", kind: Service}]\n";
    let listener = |name: &str, port: u16, from: &str| {
        format!("  - {{name: {name}, port: {port}, protocol: HTTP, allowedRoutes: {{namespaces: {from}}}}}\n")
    };
    let listeners = [
        listener("all", 8080, "{from: All}"),
        listener("same", 8081, "{from: Same}"),
        listener("labelled", 8082, "{from: Selector, selector: {matchLabels: {tier: front}}}"),
        listener(
            "named",
            8083,
            "{from: Selector, selector: {matchLabels: {kubernetes.io/metadata.name: default}}}",
        ),
    ];
    let rules = "  - matches: [{path: {value: /vault}}]\n    backendRefs: [{name: safe, namespace: vault, port: 80}]\n  \
                 - backendRefs: [{name: web, port: 80}]\n";
    let namespace = |tier: &str| {
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: default, labels: {{tier: {tier}}}}}\n")
    };
    let site = Site::new(&[
        ("gateway.yaml", &gateway(&listeners.concat())),
        ("services.yaml", &(services(&["web"])? + &service("vault", "safe", 80, &[echo("safe")?]))),
        ("routes.yaml", &route("r", "", rules)),
        ("namespace.yaml", &namespace("back")),
    ])?;
    let agent = site.start(&[])?;
    let look = |expected: [(u16, &str, &str); 5]| -> Result<()> {
        for (port, path, who) in expected {
            check(site.at(port), "x.test", path, &[], who).with_context(|| format!("port {port}"))?;
        }
        Ok(())
    };
    look([
        (8080, "/", "web"),
        (8080, "/vault", "500"),
        (8081, "/", "404"),
        (8082, "/", "404"),
        (8083, "/", "web"),
    ])?;
    let report = agent.status()?["config"].to_string();
    ensure!(report.contains("RefNotPermitted"), "{report}");
    agent.apply("grant.yaml", grant)?;
    agent.apply("namespace.yaml", &namespace("front"))?;
    look([
        (8080, "/", "web"),
        (8080, "/vault", "safe"),
        (8081, "/", "404"),
        (8082, "/", "web"),
        (8083, "/vault", "safe"),
    ])?;
    ensure!(!agent.status()?["config"].to_string().contains("RefNotPermitted"));
    Ok(())
}
