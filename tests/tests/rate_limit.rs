//! Rate limits through the real binary: what is admitted, what a refused client gets, and what tricks gain.

mod common;
mod edge;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::LIMIT;
use edge::{OPEN, PORT, gateway, route, send, services};
use lab::backend::{echo_reply, http, listen};
use lab::http::Connection;
use lab::loopback::{LoopbackAgent, Site, service};
use lab::{exec, wait_for};
use serde_json::Value;

const HOST: &str = "shop.test";
const RULES: &str =
    "  - matches: [{path: {value: /}}]\n    name: all\n    backendRefs: [{name: web, port: 80}]\n";

/// A RateLimit of the namespace `default`; `limits` is a YAML list in one line.
fn rate_limit(target: &str, limits: &str, rest: &str) -> String {
    format!(
        "apiVersion: sluice.dev/v1alpha1\nkind: RateLimit\nmetadata: {{name: calm, namespace: default}}\nspec:\n\
         \x20 targetRefs: [{target}]\n  limits: {limits}\n{rest}"
    )
}

const ON_SERVICE: &str = "{kind: Service, name: web}";
const BY_USER: &str = "[{name: each, key: [{type: Header, name: x-user}], window: {requests: 5, per: 15m}}]";

fn site(limit: &str) -> Result<Site> {
    Site::new(&[
        ("gateway.yaml", &gateway(OPEN)),
        ("services.yaml", &services(&["web"])?),
        ("routes.yaml", &route("shop", "", RULES)),
        ("limit.yaml", limit),
    ])
}

/// How many of so many requests the backend answers; all others must get the limit's answer.
fn admitted(to: SocketAddr, times: usize, headers: &[(&str, &str)]) -> Result<usize> {
    let mut count = 0;
    for _ in 0..times {
        let seen = send(to, HOST, "/x", headers)?;
        match seen.who().as_str() {
            "web" => count += 1,
            "429" => {}
            _ => anyhow::bail!("{headers:?}: {seen:?}"),
        }
    }
    Ok(count)
}

fn limits(agent: &LoopbackAgent<'_>) -> Result<Value> {
    let output = agent.verb(&["limits", "-o", "json"])?;
    ensure!(output.status.success(), "limits: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice::<Value>(&output.stdout)?["limits"].clone())
}

#[test]
fn each_key_gets_its_own_and_the_refused_are_told() -> Result<()> {
    let site = site(&rate_limit(ON_SERVICE, BY_USER, ""))?;
    let agent = site.start(&[])?;
    let to = site.at(PORT);
    for user in ["ann", "bob", "cid"] {
        ensure!(admitted(to, 8, &[("x-user", user)])? == 5, "{user}");
    }
    let seen = send(to, HOST, "/x", &[("x-user", "ann")])?;
    ensure!(seen.response.status == 429 && &*seen.response.body == b"Too many requests", "{seen:?}");
    let wait: u64 = seen.got("retry-after").concat().parse().with_context(|| format!("{seen:?}"))?;
    ensure!((880..=900).contains(&wait), "{seen:?}");
    ensure!(seen.got("ratelimit-policy") == ["\"each\";q=5;w=900"], "{seen:?}");
    ensure!(seen.got("ratelimit") == [format!("\"each\";r=0;t={wait}")], "{seen:?}");
    ensure!(seen.got("proxy-status").concat().contains("rate_limited"), "{seen:?}");

    let shown = limits(&agent)?;
    ensure!(shown[0]["admitted"] == 15 && shown[0]["refused"] == 10 && shown[0]["keys"] == 3, "{shown}");
    let metrics = agent.scrape()?;
    for (outcome, count) in [("admitted", 15.0), ("refused", 10.0), ("shadow_refused", 0.0)] {
        let labels = [("policy", "default/calm"), ("limit", "each"), ("outcome", outcome)];
        let seen = metrics.sum("sluice_rate_limit_requests_total", &labels);
        ensure!((seen - count).abs() < 0.5, "{outcome}: {seen} and not {count}");
    }
    let refused = || {
        let log = site.access().unwrap_or_default();
        log.iter().filter(|line| line["response_flags"] == "RL").count() == 10
    };
    wait_for("ten refusals in the access log", LIMIT, refused)?;
    Ok(())
}

#[test]
fn who_is_let_through_is_told_what_is_left_where_that_is_asked_for() -> Result<()> {
    let both = "[{name: wide, window: {requests: 9, per: 15m}}, {name: each, key: [{type: Header, name: x-user}], \
                rate: {requests: 3, per: 1h}}, {name: busy, inFlight: 100}]";
    let site = site(&rate_limit(ON_SERVICE, both, "  response: {fields: Always}\n"))?;
    let _agent = site.start(&[])?;
    let to = site.at(PORT);
    for left in [2, 1, 0] {
        let seen = send(to, HOST, "/x", &[("x-user", "ann")])?;
        ensure!(seen.who() == "web" && seen.got("ratelimit-policy") == ["\"each\";q=3;w=3600"], "{seen:?}");
        ensure!(seen.got("ratelimit") == [format!("\"each\";r={left}")], "{left}: {seen:?}");
        ensure!(seen.got("retry-after").is_empty(), "{seen:?}");
    }
    let seen = send(to, HOST, "/x", &[("x-user", "ann")])?;
    ensure!(
        seen.response.status == 429 && seen.got("ratelimit").concat().starts_with("\"each\";r=0;t="),
        "{seen:?}"
    );
    for user in ["bob", "bob", "bob", "cid"] {
        ensure!(send(to, HOST, "/x", &[("x-user", user)])?.who() == "web", "{user}");
    }
    // Of two limits, the one that leaves less.
    let seen = send(to, HOST, "/x", &[("x-user", "dan")])?;
    ensure!(seen.got("ratelimit") == ["\"wide\";r=1"], "{seen:?}");
    // Over HTTP/2 as well.
    let mut curl = exec::command(
        "curl",
        ["-sSi", "--max-time", "5", "--http2-prior-knowledge", "-H", "host: shop.test"],
    );
    let said = exec::stdout(curl.arg(format!("http://{to}/x")))?;
    ensure!(said.starts_with("HTTP/2 200") && said.contains("ratelimit: \"wide\";r=0"), "{said}");
    // Nobody is told where nobody asked for it.
    site.write("limit.yaml", &rate_limit(ON_SERVICE, &both.replace("requests: 9", "requests: 900"), ""))?;
    let quiet = || {
        send(to, HOST, "/x", &[("x-user", "eve")])
            .is_ok_and(|seen| seen.who() == "web" && seen.got("ratelimit").is_empty())
    };
    wait_for("silence", LIMIT, quiet)?;
    Ok(())
}

#[test]
fn tricks_gain_nothing() -> Result<()> {
    let site = site(&rate_limit(ON_SERVICE, BY_USER, ""))?;
    let _agent = site.start(&[])?;
    let to = site.at(PORT);
    ensure!(admitted(to, 6, &[("x-user", "eve")])? == 5, "the first ones");
    let tricks: [&[(&str, &str)]; 6] = [
        &[("X-USER", "eve")],
        &[("x-User", " eve ")],
        &[("x-user", "eve"), ("x-forwarded-for", "203.0.113.9")],
        &[("x-user", "eve"), ("forwarded", "for=203.0.113.9")],
        &[("x-user", "eve"), ("x-real-ip", "203.0.113.9")],
        &[("x-user", "eve"), ("cookie", "x-user=other")],
    ];
    for trick in tricks {
        ensure!(admitted(to, 1, trick)? == 0, "{trick:?}");
    }
    // Those without a value are counted by their address: one bucket for this client, whatever else it says.
    ensure!(admitted(to, 4, &[])? == 4, "without a value");
    ensure!(admitted(to, 4, &[("x-users", "eve"), ("x-forwarded-for", "203.0.113.7")])? == 1, "the same");
    // A connection that is kept is held to it like new ones.
    let mut connection = Connection::open(to, common::TIMEOUT)?;
    let seen = edge::send_on(&mut connection, HOST, "/", &[("x-user", "eve")])?;
    ensure!(seen.response.status == 429, "{seen:?}");
    let seen = edge::send_on(&mut connection, HOST, "/", &[("x-user", "fay")])?;
    ensure!(seen.who() == "web", "a refusal costs the connection nothing: {seen:?}");
    Ok(())
}

#[test]
fn trusted_proxies_say_who_asked_them_and_nobody_else_does() -> Result<()> {
    let by_address = "[{name: each, key: [{type: SourceAddress}], window: {requests: 3, per: 15m}}]";
    let site = site(&rate_limit(ON_SERVICE, by_address, ""))?;
    let _agent = site.start(&["--set", "gateway.http.trusted-hops=1"])?;
    let to = site.at(PORT);
    let from = |value: &str, times| admitted(to, times, &[("x-forwarded-for", value)]);
    for client in ["192.0.2.1", "192.0.2.2", "2001:db8::1"] {
        ensure!(from(client, 4)? == 3, "{client}");
    }
    let spent = [
        "203.0.113.9, 192.0.2.1",
        "203.0.113.9,192.0.2.1:8080",
        "::ffff:192.0.2.1",
        "192.0.2.2,",
        "2001:0DB8::0:1",
        "[2001:db8::1]",
        "[2001:db8::1]:443",
    ];
    for spelling in spent {
        ensure!(from(spelling, 1)? == 0, "{spelling}");
    }
    let twice = [("x-forwarded-for", "203.0.113.9"), ("X-Forwarded-For", "192.0.2.1")];
    ensure!(admitted(to, 1, &twice)? == 0, "two fields");
    // Who says nothing, or no address, is the connection's client, whatever the words.
    ensure!(
        admitted(to, 1, &[])? == 1 && from("unknown", 1)? == 1 && from("192.0.2.1, _x", 4)? == 1,
        "no address"
    );
    Ok(())
}

#[test]
fn a_change_keeps_the_counts_of_what_means_the_same() -> Result<()> {
    let site = site(&rate_limit(ON_SERVICE, BY_USER, ""))?;
    let _agent = site.start(&[])?;
    let to = site.at(PORT);
    ensure!(admitted(to, 5, &[("x-user", "ann")])? == 5, "the first ones");
    site.write("limit.yaml", &rate_limit(ON_SERVICE, BY_USER, "  response: {status: 503, body: later}\n"))?;
    let answer = || send(to, HOST, "/x", &[("x-user", "ann")]);
    wait_for("the new answer", LIMIT, || answer().is_ok_and(|seen| seen.response.status == 503))?;
    let seen = answer()?;
    ensure!(&*seen.response.body == b"later", "{seen:?}");
    // Shadow: it goes on counting, and refuses nobody.
    site.write("limit.yaml", &rate_limit(ON_SERVICE, BY_USER, "  mode: Shadow\n"))?;
    wait_for("nobody to be refused", LIMIT, || answer().is_ok_and(|seen| seen.who() == "web"))?;
    // Another quota begins anew.
    site.write("limit.yaml", &rate_limit(ON_SERVICE, &BY_USER.replace("requests: 5", "requests: 3"), ""))?;
    wait_for("the new quota", LIMIT, || {
        admitted(to, 20, &[("x-user", "gus")]).is_ok_and(|count| count < 20)
    })?;
    ensure!(admitted(to, 6, &[("x-user", "hal")])? == 3, "the new quota");
    // What can't be read leaves the last good one in force.
    site.write("limit.yaml", &rate_limit(ON_SERVICE, "[{name: each, window: {requests: 0, per: 1s}}]", ""))?;
    ensure!(admitted(to, 4, &[("x-user", "ida")])? == 3, "the last good one");
    Ok(())
}

#[test]
fn a_request_refused_by_one_limit_spends_nothing_of_others() -> Result<()> {
    let both = "[{name: wide, window: {requests: 4, per: 15m}}, \
                {name: narrow, key: [{type: Query, name: who}], window: {requests: 1, per: 15m}}]";
    let site = site(&rate_limit(ON_SERVICE, both, ""))?;
    let _agent = site.start(&[])?;
    let to = site.at(PORT);
    let who = |path: &str| send(to, HOST, path, &[]).map(|seen| seen.who());
    ensure!(who("/?who=a")? == "web", "the first");
    for _ in 0..10 {
        ensure!(who("/?who=a")? == "429" && who("/?x=1&wh%6f=a")? == "429", "its second");
    }
    for other in ["b", "c", "d"] {
        ensure!(who(&format!("/?who={other}"))? == "web", "{other}: what was refused has spent");
    }
    ensure!(who("/?who=e")? == "429", "the fifth of all");
    Ok(())
}

#[test]
fn as_many_are_in_flight_as_may_be() -> Result<()> {
    let (release, gate) = std::sync::mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let slow = http(listen()?, move |request| {
        let waits = request.target == "/slow";
        if waits {
            let _ = gate.lock().map(|gate| gate.recv_timeout(Duration::from_secs(20)));
        }
        echo_reply("web", request)
    })?;
    let limit = rate_limit(
        "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: shop, sectionName: all}",
        "[{name: busy, inFlight: 2}]",
        "",
    );
    let site = Site::new(&[
        ("gateway.yaml", &gateway(OPEN)),
        ("services.yaml", &service("default", "web", 80, &[slow])),
        ("routes.yaml", &route("shop", "", RULES)),
        ("limit.yaml", &limit),
    ])?;
    let agent = site.start(&[])?;
    let to = site.at(PORT);
    let waiting: Vec<_> = (0..2)
        .map(|_| std::thread::spawn(move || send(to, HOST, "/slow", &[]).map(|seen| seen.who())))
        .collect();
    let taken = || limits(&agent).is_ok_and(|shown| shown[0]["admitted"] == 2);
    wait_for("both to be in flight", LIMIT, taken)?;
    let seen = send(to, HOST, "/", &[])?;
    ensure!(seen.response.status == 429, "{seen:?}");
    ensure!(seen.got("ratelimit-policy") == ["\"busy\";q=2;qu=\"concurrent-requests\""], "{seen:?}");
    for _ in 0..2 {
        release.send(()).context("letting one go")?;
    }
    for thread in waiting {
        let who = thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        ensure!(who == "web", "{who}");
    }
    ensure!(send(to, HOST, "/", &[])?.who() == "web", "nothing is in flight any more");
    Ok(())
}

#[test]
fn a_gateways_clients_and_grpc_calls_are_limited() -> Result<()> {
    let target = "{group: gateway.networking.k8s.io, kind: Gateway, name: edge, sectionName: http}";
    let limit = rate_limit(target, "[{name: all, rate: {requests: 2, per: 1h}}]", "")
        .replace("namespace: default", "namespace: infra");
    let site = site(&limit)?;
    let _agent = site.start(&[])?;
    let to = site.at(PORT);
    ensure!(admitted(to, 5, &[])? == 2, "the rate's burst");
    let url = format!("http://{to}/a.b/c");
    let fields = ["-H", "content-type: application/grpc", "-H", "host: shop.test", "-d", ""];
    let mut curl = exec::command("curl", ["-sSi", "--max-time", "5", "--http2-prior-knowledge"]);
    let said = exec::stdout(curl.args(fields).arg(&url))?;
    ensure!(said.starts_with("HTTP/2 200") && said.contains("grpc-status: 8"), "RESOURCE_EXHAUSTED: {said}");
    Ok(())
}
