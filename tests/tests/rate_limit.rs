//! Rate limits through the real binary: what is admitted, what a refused client gets, and what tricks gain.

mod common;
mod edge;
mod limited;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::LIMIT;
use edge::{OPEN, PORT, gateway, route, send};
use lab::backend::{echo_reply, http, listen};
use lab::http::Connection;
use lab::loopback::{Site, service};
use lab::{exec, wait_for};
use limited::{HOST, ON_SERVICE, RULES, admitted, limits, rate_limit, site};
use serde_json::Value;

const BY_USER: &str = "[{name: each, key: [{type: Header, name: x-user}], window: {requests: 5, per: 15m}}]";

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

    let shown = limits(&agent, &[])?;
    ensure!(shown[0]["admitted"] == 15 && shown[0]["refused"] == 10 && shown[0]["keys"] == 3, "{shown}");
    ensure!(shown[0]["tier"] == "node", "{shown}");
    ensure!(
        shown[0]["why"].as_str().is_some_and(|why| why.contains("each node counts for itself")),
        "{shown}"
    );
    let metrics = agent.scrape()?;
    for (outcome, count) in [("admitted", 15.0), ("refused", 10.0), ("shadow_refused", 0.0)] {
        let labels = [("policy", "default/calm"), ("limit", "each"), ("outcome", outcome)];
        let seen = metrics.sum("sluice_rate_limit_requests_total", &labels);
        ensure!((seen - count).abs() < 0.5, "{outcome}: {seen} and not {count}");
    }
    let refused = || {
        let log = site.access().unwrap_or_default();
        let named =
            |line: &&Value| line["response_code_details"] == "rate_limited_by[default/calm limit each]";
        log.iter().filter(|line| line["response_flags"] == "RL").filter(named).count() == 10
    };
    wait_for("ten refusals in the access log", LIMIT, refused)?;
    let words =
        ["observe", "-o", "json", "--last", "100", "--verdict", "rate_limited", "--policy", "default/calm"];
    let told = String::from_utf8(agent.verb(&words)?.stdout)?;
    let told: Vec<Value> = told.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(told.len() == 10, "{told:?}");
    for event in &told {
        ensure!(
            event["kind"] == "drop" && event["tier"] == "agent L7" && event["verdict"] == "refused",
            "{event}"
        );
        ensure!(event["rule"] == "each" && event["destination"] == to.to_string(), "{event}");
    }
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
fn a_document_says_what_fields_a_refusal_has() -> Result<()> {
    let response = "  response:\n    body: '{}'\n    headers:\n\
                    \x20   - {name: Content-Type, value: application/json}\n\
                    \x20   - {name: X-Reason, value: 'calm, please'}\n\
                    \x20   - {name: set-cookie, value: a=b}\n    - {name: set-cookie, value: c=d}\n";
    let site = site(&rate_limit(ON_SERVICE, BY_USER, response))?;
    let _agent = site.start(&[])?;
    let to = site.at(PORT);
    for _ in 0..5 {
        let seen = send(to, HOST, "/x", &[("x-user", "ann")])?;
        ensure!(seen.who() == "web" && seen.got("x-reason").is_empty(), "who is let through: {seen:?}");
    }
    let seen = send(to, HOST, "/x", &[("x-user", "ann")])?;
    ensure!(seen.response.status == 429 && &*seen.response.body == b"{}", "{seen:?}");
    ensure!(seen.got("content-type") == ["application/json"], "in the place of ours: {seen:?}");
    ensure!(seen.got("x-reason") == ["calm, please"] && seen.got("set-cookie") == ["a=b", "c=d"], "{seen:?}");
    ensure!(seen.got("retry-after").len() == 1 && seen.got("ratelimit").len() == 1, "{seen:?}");

    let curl = |fields: &[&str]| {
        let h2 = ["-sSi", "--max-time", "5", "--http2-prior-knowledge", "-H", "host: shop.test"];
        let mut curl = exec::command("curl", h2);
        exec::stdout(curl.args(["-H", "x-user: ann"]).args(fields).arg(format!("http://{to}/a.b/c")))
    };
    let lines = |said: &str, wanted: &[&str]| {
        let all: Vec<_> = said.lines().map(|line| line.trim_end().to_owned()).collect();
        wanted.iter().all(|wanted| all.iter().filter(|line| line == wanted).count() == 1)
    };
    let added = ["x-reason: calm, please", "set-cookie: a=b", "set-cookie: c=d"];
    let said = curl(&[])?;
    ensure!(said.starts_with("HTTP/2 429") && said.contains("ratelimit: \"each\";r=0;t="), "{said}");
    ensure!(lines(&said, &added) && lines(&said, &["content-type: application/json"]), "{said}");
    // A gRPC client is told of the limit as well; its message stays gRPC.
    let said = curl(&["-H", "content-type: application/grpc", "-d", ""])?;
    ensure!(lines(&said, &added) && lines(&said, &["content-type: application/grpc"]), "{said}");
    ensure!(lines(&said, &["grpc-status: 8", "ratelimit-policy: \"each\";q=5;w=900"]), "{said}");
    ensure!(said.contains("retry-after: ") && said.contains("ratelimit: \"each\";r=0;t="), "{said}");
    ensure!(!said.contains("application/json"), "{said}");
    Ok(())
}

#[test]
fn it_is_shown_who_holds_to_a_limit_and_why() -> Result<()> {
    let all = "[{name: own, window: {requests: 9, per: 1h}}, {name: busy, inFlight: 5}, \
               {name: exact, window: {requests: 9, per: 1h}, cluster: {mode: Exact}}, \
               {name: leased, window: {requests: 9, per: 1h}, cluster: {mode: Leased}}]";
    let site = site(&rate_limit(ON_SERVICE, all, ""))?;
    let agent = site.start(&[])?;
    let shown = limits(&agent, &[])?;
    let table = String::from_utf8(agent.verb(&["limits"])?.stdout)?;
    let alone = "without `--redis` this agent is the whole cluster";
    for (at, tier, because, is_alone) in [
        (0, "node", "each node counts for itself", false),
        (1, "node", "in flight is known to its node alone", false),
        (2, "cluster, exact", "Redis decides each request", true),
        (3, "cluster, leased", "portions that Redis gives", true),
    ] {
        let limit = &shown[at];
        let why = limit["why"].as_str().with_context(|| shown.to_string())?;
        ensure!(limit["tier"] == tier && why.contains(because), "{limit}");
        ensure!(why.contains(alone) == is_alone && table.contains(why), "{limit}: {table}");
    }
    ensure!(shown[3]["cluster"]["leased_on_this_node"] == 0, "{shown}");
    ensure!(shown[3]["cluster"]["leased_by_node"].is_null(), "an agent alone: {shown}");
    ensure!(table.contains("cluster, leased (0 on this node)"), "{table}");
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
fn paths_of_one_template_are_counted_together() -> Result<()> {
    let of = |name: &str| {
        format!(
            "[{{name: each, window: {{requests: 3, per: 15m}}, ifMissing: Exempt, \
             key: [{{type: PathTemplate, {name}templates: ['/users/{{id}}/orders/*', '/users/{{id}}']}}]}}]"
        )
    };
    let site = site(&rate_limit(ON_SERVICE, &of(""), ""))?;
    let agent = site.start(&[])?;
    let to = site.at(PORT);
    let who = |path: &str| send(to, HOST, path, &[]).map(|seen| seen.who());
    for path in ["/users/1/orders/1", "/users/2/orders/1", "/users/2/orders/7?a=b"] {
        ensure!(who(path)? == "web", "{path}");
    }
    for path in [
        "/users/3/orders/1",
        "/users//3/orders/1",
        "/users/3/orders/1/",
        "/users/x/../3/orders/1",
        "/users/3/%6frders/1",
        "/./users/3/orders/%31",
    ] {
        ensure!(who(path)? == "429", "{path}");
    }
    ensure!(who("/users/3")? == "web", "another template");
    for _ in 0..5 {
        ensure!(who("/users/3/orders")? == "web", "none");
    }
    let shown = limits(&agent, &["--top", "9"])?;
    ensure!(shown[0]["key"][0] == "path template of /users/{id}/orders/* /users/{id}", "{shown}");
    ensure!(shown[0]["top"][0]["key"] == "/users/{id}/orders/*", "{shown}");
    // By the value that stands for a name, whichever template takes the path.
    site.write("limit.yaml", &rate_limit(ON_SERVICE, &of("name: id, "), ""))?;
    wait_for("the new key", LIMIT, || who("/users/3/orders/1").is_ok_and(|who| who == "web"))?;
    for path in ["/users/4/orders/1", "/users/4", "/users/%34/orders/2"] {
        ensure!(who(path)? == "web", "{path}");
    }
    ensure!(who("/users/4/orders/3")? == "429" && who("/users/4")? == "429", "the fourth of one user");
    ensure!(who("/users/5")? == "web", "another user");
    Ok(())
}

#[test]
fn who_has_proven_nothing_is_exempt_by_no_name() -> Result<()> {
    let any = "[{name: all, window: {requests: 2, per: 15m}, exemptPrincipals: ['*']}]";
    let site = site(&rate_limit(ON_SERVICE, any, ""))?;
    let _agent = site.start(&[])?;
    ensure!(admitted(site.at(PORT), 5, &[])? == 2, "a client of a Gateway");
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
    let taken = || limits(&agent, &[]).is_ok_and(|shown| shown[0]["admitted"] == 2);
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
