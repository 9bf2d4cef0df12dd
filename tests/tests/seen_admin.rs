//! The admin addresses and the command line, asked as operators ask them.

mod common;
mod edge;

use std::process::Output;

use anyhow::{Context, Result, ensure};
use common::{LIMIT, TIMEOUT};
use edge::{OPEN, PORT, check, gateway, route, services};
use lab::http::Connection;
use lab::loopback::{LoopbackAgent, Site, service};
use lab::wait_for;
use serde_json::Value;

const RULES: &str =
    "  - matches: [{path: {type: Exact, value: /exact}, headers: [{name: x-group, value: beta}]}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-set, value: y}]}}]
    backendRefs: [{name: web, port: 80, weight: 9}, {name: next, port: 80, weight: 1}]
    timeouts: {request: 2s}
  - matches: [{path: {value: /old}}]
    filters: [{type: RequestRedirect, requestRedirect: {scheme: https, statusCode: 301}}]
  - backendRefs: [{name: web, port: 80}]
";

fn site() -> Result<Site> {
    let services = services(&["web", "next"])? + &service("default", "empty", 80, &[]);
    let unready = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-9, labels: {kubernetes.io/service-name: web}}\n\
                   addressType: IPv4\nports: [{name: http, port: 9}]\nendpoints: [{addresses: [127.0.0.1], conditions: {ready: false}}]\n";
    Site::new(&[
        ("gateway.yaml", &gateway(OPEN)),
        ("services.yaml", &(services + unready)),
        ("routes.yaml", &route("r", "  hostnames: [shop.test]\n", RULES)),
        ("extra.yaml", "apiVersion: v1\nkind: Gadget\nmetadata: {name: g}\n"),
    ])
}

fn json(agent: &LoopbackAgent<'_>, path: &str) -> Result<Value> {
    let response = agent.ask(agent.admin, path)?;
    ensure!(
        response.status == 200 && response.header("content-type") == Some("application/json"),
        "{response:?}"
    );
    Ok(serde_json::from_slice(&response.body)?)
}

fn post(agent: &LoopbackAgent<'_>, path: &str) -> Result<(u16, String)> {
    let mut connection = Connection::open(agent.admin, TIMEOUT)?;
    let response = connection.request("POST", "localhost", path, &[("Content-Length", "0")])?;
    Ok((response.status, response.text()))
}

#[test]
fn dumps_show_the_table_and_the_agent() -> Result<()> {
    let site = site()?;
    let agent = site.start(&[])?;
    check(site.at(PORT), "shop.test", "/", &[], "web")?;
    let routes = json(&agent, "/routes")?;
    let hosts = routes["hosts"].as_array().context("hosts")?;
    let shop = hosts.iter().find(|host| host["name"] == "shop.test").context("no host shop.test")?;
    ensure!(
        shop["listener"] == "infra/edge/http" && shop["addresses"][0] == *site.at(PORT).to_string(),
        "{shop}"
    );
    let kinds: Vec<_> =
        shop["rules"].as_array().context("rules")?.iter().map(|rule| rule["source"].clone()).collect();
    ensure!(kinds == ["default/r"; 3], "{shop}");
    let exact = &shop["rules"][0];
    ensure!(exact["timeout_ms"] == 2000 && exact["destinations"][0]["weight"] == 9, "{exact}");
    ensure!(shop["rules"][1]["redirect"].as_str().is_some_and(|to| to.starts_with("301")), "{shop}");
    let endpoints = json(&agent, "/endpoints")?;
    let readiness: Vec<_> = endpoints["endpoints"]
        .as_array()
        .context("endpoints")?
        .iter()
        .map(|e| (&e["cluster"], &e["ready"]))
        .collect();
    ensure!(
        readiness.len() == 3 && readiness.iter().filter(|(_, ready)| **ready == false).count() == 1,
        "{readiness:?}"
    );
    ensure!(endpoints["empty"][0] == "default/empty:80", "{endpoints}");
    let info = json(&agent, "/server_info")?;
    ensure!(info["state"] == "LIVE" && info["node"]["id"] == "edge" && info["version"].is_string(), "{info}");
    let dump = json(&agent, "/config_dump")?;
    let keys: Vec<_> = dump.as_object().context("an object")?.keys().map(String::as_str).collect();
    ensure!(keys == ["certificates", "policies", "services", "workloadState", "workloads"], "{keys:?}");
    ensure!(dump["services"].as_array().is_some_and(|all| all.len() == 3), "{dump}");
    let status = json(&agent, "/status")?;
    ensure!(status["config"].to_string().contains("the kind Gadget"), "{status}");
    let clusters = agent.ask(agent.admin, "/clusters")?.text();
    ensure!(
        clusters.contains(
            "outbound|80||web.default.svc.cluster.local::127.0.0.1:9::health_flags::/failed_eds_health\n"
        ),
        "{clusters}"
    );
    let help = agent.ask(agent.admin, "/help")?.text();
    for path in help.lines().filter_map(|line| line.trim().strip_prefix('/')?.split(':').next()) {
        // The one that has nothing to answer without a question.
        let question = if path == "why" { "?source=10.1.2.3&destination=127.0.0.1:9" } else { "" };
        let status = agent.ask(agent.admin, &format!("/{path}{question}"))?.status;
        ensure!(status == 200, "/help names /{path}, which answers {status}");
    }
    ensure!(agent.ask(agent.admin, "/nothing")?.status == 404);
    Ok(())
}

#[test]
fn stats_are_the_metrics_as_envoy_writes_them() -> Result<()> {
    let site = site()?;
    let agent = site.start(&[])?;
    check(site.at(PORT), "shop.test", "/", &[], "web")?;
    let stats =
        |query: &str| agent.ask(agent.admin, &format!("/stats{query}")).map(|response| response.text());
    let all = stats("")?;
    for line in all.lines() {
        let (name, value) = line.rsplit_once(": ").with_context(|| line.to_owned())?;
        ensure!(!name.is_empty() && value.parse::<f64>().is_ok(), "{line}");
    }
    let used = stats("?usedonly")?;
    ensure!(
        used.lines().count() < all.lines().count() && !used.lines().any(|line| line.ends_with(": 0")),
        "{used}"
    );
    let requests = || stats("?filter=^istio_requests_total");
    wait_for("the request to be counted", LIMIT, || requests().is_ok_and(|text| !text.is_empty()))?;
    let filtered = requests()?;
    ensure!(
        filtered.lines().count() == 1
            && filtered.contains("source_workload=\"edge\"")
            && filtered.ends_with(": 1\n"),
        "{filtered}"
    );
    let metrics = agent.scrape()?;
    let of_gateway =
        [("source_workload_namespace", "infra"), ("reporter", "source"), ("destination_service_name", "web")];
    ensure!((metrics.sum("istio_requests_total", &of_gateway) - 1.0).abs() < 0.5);
    for (query, status) in [("?filter=(", 400), ("?unknown", 400)] {
        ensure!(agent.ask(agent.admin, &format!("/stats{query}"))?.status == status, "{query}");
    }
    Ok(())
}

#[test]
fn logging_changes_by_post_alone() -> Result<()> {
    let site = site()?;
    let agent = site.start(&[])?;
    let level = || agent.ask(agent.admin, "/logging").map(|response| response.text());
    ensure!(level()?.contains("is info"), "{}", level()?);
    ensure!(agent.ask(agent.admin, "/logging?level=debug")?.status == 405);
    ensure!(level()?.contains("is info"), "a GET changed the level to {}", level()?);
    let (status, text) = post(&agent, "/logging?level=debug")?;
    ensure!(status == 200 && text.contains("debug"), "{status} {text}");
    ensure!(level()?.contains("is debug"), "{}", level()?);
    let (status, text) = post(&agent, "/logging?level=nonsense%20")?;
    ensure!(status == 400, "{status} {text}");
    ensure!(level()?.contains("is debug"), "{}", level()?);
    post(&agent, "/logging?level=warn")?;
    let (status, _) = post(&agent, "/logging?agent::config:trace")?;
    ensure!(status == 200 && level()?.contains("agent::config=trace"), "{}", level()?);
    // At this level the next document is not announced, and an error still is.
    let count = |what: &str| site.log().matches(what).count();
    let infos = count("\"level\":\"info\",");
    agent.apply(
        "wrong.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: bad}\nspec: {ports: [{port: 0}]}\n",
    )?;
    wait_for("the error to be logged", LIMIT, || count("wrong.yaml") > 0)?;
    ensure!(count("\"level\":\"info\",\"time\"") <= infos, "{}", site.log());
    // And the access log goes off and on.
    let lines = || site.access().map(|lines| lines.len()).unwrap_or_default();
    check(site.at(PORT), "shop.test", "/1", &[], "web")?;
    wait_for("the first request's line", LIMIT, || lines() == 1)?;
    post(&agent, "/logging?access=off")?;
    // A line is written after its answer, so only the next answer on the connection proves that it was left out.
    let mut kept = Connection::open(site.at(PORT), TIMEOUT)?;
    for path in ["/2", "/between"] {
        ensure!(kept.get("shop.test", path, &[])?.status == 200);
    }
    post(&agent, "/logging?access=on")?;
    check(site.at(PORT), "shop.test", "/3", &[], "web")?;
    let has = |path: &str| site.access().is_ok_and(|lines| lines.iter().any(|line| line["path"] == path));
    wait_for("the third request's line", LIMIT, || has("/3"))?;
    ensure!(has("/1") && !has("/2"), "{:?}", site.access()?);
    Ok(())
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn verbs_print_tables_and_json() -> Result<()> {
    let site = site()?;
    let agent = site.start(&[])?;
    let listening = format!("infra/edge/http {}", site.at(PORT));
    for (verb, words, key) in [
        (
            "status",
            vec!["edge (ready", "capture      off", listening.as_str(), "extra.yaml:1: error", "1 rejected"],
            "listeners",
        ),
        (
            "routes",
            vec![
                "HOST ",
                "shop.test (infra/edge/http)",
                "redirect 301",
                "default/web:80=9",
                "timeout 2000 ms",
            ],
            "hosts",
        ),
        (
            "endpoints",
            vec!["CLUSTER ", "default/web:80", "not ready", "default/empty:80", "none"],
            "endpoints",
        ),
    ] {
        let table = agent.verb(&[verb])?;
        let shown = text(&table);
        ensure!(table.status.code() == Some(0), "{verb}: {shown}");
        for word in words {
            ensure!(shown.contains(word), "{verb} shows no {word:?}:\n{shown}");
        }
        let output = agent.verb(&[verb, "-o", "json"])?;
        let value: Value = serde_json::from_slice(&output.stdout).with_context(|| text(&output))?;
        ensure!(value[key].as_array().is_some_and(|list| !list.is_empty()), "{verb}: {value}");
    }
    drop(agent);
    Ok(())
}

/// Runs the binary without an agent.
fn sluice(site: &Site, arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let output = site.command().args(arguments).output()?;
    Ok((output.status.code(), text(&output)))
}

#[test]
fn exit_codes_are_0_1_and_2() -> Result<()> {
    let site = site()?;
    for (arguments, code, said) in [
        (&["--version"][..], 0, "sluice 0."),
        (&["help"], 0, "Usage"),
        (&[], 2, "Usage"),
        (&["nonsense"], 2, "nonsense"),
        (&["status", "--admin", "here"], 2, "--admin"),
        (&["status", "-o", "xml"], 2, "table, json"),
        (&["analyze"], 2, "FILES"),
        (&["agent"], 2, "--config"),
        (&["agent", "--config", "x", "--workers", "0"], 2, "--workers"),
        (&["status", "--admin", "127.0.0.1:1"], 1, "no agent answers at 127.0.0.1:1"),
        (&["check", "--capture", "off"], 0, "capture is off"),
        (&["check", "--capture", "off", "-o", "json"], 0, "[]"),
        (&["agent", "--capture", "off", "--config", "/nonexistent"], 1, "/nonexistent"),
        (
            &["agent", "--capture", "off", "--config", "/nonexistent", "--ca", "/no-ca"],
            1,
            "--ca: reading /no-ca/",
        ),
    ] {
        let (found, shown) = sluice(&site, arguments)?;
        ensure!(found == Some(code) && shown.contains(said), "{arguments:?}: {found:?} {shown}");
        ensure!(!shown.contains("panicked"), "{shown}");
        let repeated = shown.matches("os error 111").count();
        ensure!(repeated <= 1, "the reason is there {repeated} times: {shown}");
    }
    let (code, shown) = sluice(&site, &["check"])?;
    ensure!(code == Some(1) && shown.contains("FAILED"), "without privilege: {code:?} {shown}");
    let (code, shown) = sluice(&site, &["check", "-o", "json"])?;
    let checks: Value = serde_json::from_str(&shown)?;
    let failed = checks.as_array().is_some_and(|all| all.iter().any(|check| check["outcome"] == "failed"));
    ensure!(code == Some(1) && failed, "{shown}");
    Ok(())
}

const BROKEN: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
  hosts: [web]
  http:
  - route:
    - destination: {host: web}
      weigth: 10
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec:
  parentRefs: [{name: edge}]
  rules:
  - matches: [{path: {type: Exact, value: nope}}]
---
apiVersion: sluice.dev/v1alpha1
kind: RateLimit
metadata: {name: calm, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: gone}]
  limits:
  - {name: none, window: {requests: 0, per: 1s}}
---
apiVersion: sluice.dev/v1alpha1
kind: RateLimit
metadata: {name: lost, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: gone}]
  limits: [{name: busy, inFlight: 1}]
";

#[test]
fn analyze_takes_the_examples_and_names_what_is_broken() -> Result<()> {
    let site = Site::new(&[])?;
    // Copies, for the checkout may be closed to the unprivileged.
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
    let mut files = Vec::new();
    for directory in ["", "/strangler", "/gateway"].map(|part| format!("{examples}{part}")) {
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "yaml") {
                let name = path.file_name().context("a name")?.to_string_lossy().into_owned();
                site.write(&name, &std::fs::read_to_string(&path)?)?;
                files.push(site.config().join(name).display().to_string());
            }
        }
    }
    ensure!(files.len() >= 9, "only {files:?}");
    for file in &files {
        let (code, shown) = sluice(&site, &["analyze", file])?;
        ensure!(code == Some(0) && shown.contains(" 0 errors"), "{file}: {code:?} {shown}");
    }
    site.write("broken.yaml", BROKEN)?;
    let broken = site.config().join("broken.yaml").display().to_string();
    let (code, shown) = sluice(&site, &["analyze", &broken])?;
    ensure!(code == Some(1), "{code:?} {shown}");
    for line in [
        format!("{broken}:9: error: VirtualService shop/web: spec.http[0].route[0].weigth: unknown field"),
        format!("{broken}:17: error: HTTPRoute default/r: spec.rules[0].matches[0].path.value: `nope`"),
        format!("{broken}:25: error: RateLimit shop/calm: spec.limits[0].window.requests: 0 is not"),
        format!("{broken}:31: error: RateLimit shop/lost: spec.targetRefs[0]: there is no Service shop/gone"),
        "4 objects: 4 errors, ".to_owned(),
    ] {
        ensure!(shown.contains(&line), "no {line:?} in\n{shown}");
    }
    let (code, shown) = sluice(&site, &["analyze", "-o", "json", &broken])?;
    let report: Value = serde_json::from_str(&shown)?;
    let message = &report["objects"][0]["messages"][0];
    ensure!(code == Some(1) && message["line"] == 9, "{report}");
    ensure!(message["field"] == "spec.http[0].route[0].weigth" && message["severity"] == "error", "{report}");
    let (code, shown) = sluice(&site, &["analyze", &site.config().display().to_string()])?;
    ensure!(code == Some(1) && shown.contains("broken.yaml:9"), "a directory: {code:?} {shown}");
    let (code, shown) = sluice(&site, &["analyze", "/nonexistent.yaml"])?;
    ensure!(code == Some(1) && shown.contains("/nonexistent.yaml"), "{code:?} {shown}");
    Ok(())
}
