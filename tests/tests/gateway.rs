//! Gateway mode: the real binary as an unprivileged reverse proxy, routed by Gateway and HTTPRoute documents.

mod common;
mod edge;

use std::net::TcpListener;

use anyhow::{Context, Result, ensure};
use common::{LIMIT, Mesh};
use edge::{OPEN, PORT, check, gateway, route, services};
use lab::loopback::Site;
use lab::{PodSpec, Program, ServiceSpec, Topology, unprivileged, wait_for};

#[test]
fn the_agent_runs_without_privilege() -> Result<()> {
    let site = Site::new(&[("gateway.yaml", &gateway(OPEN))])?;
    let agent = site.start(&[])?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or_default().to_owned()
    };
    ensure!(field("CapEff:").trim_start_matches('0').is_empty(), "it has {}", field("CapEff:"));
    ensure!(!field("Uid:").starts_with("0\t"), "it runs as root");
    for (address, path, expected) in [
        (agent.health, "/healthz", 200),
        (agent.health, "/readyz", 200),
        (agent.health, "/healthz/ready", 200),
        (agent.metrics, "/metrics", 200),
        (agent.metrics, "/stats/prometheus", 200),
        (agent.metrics, "/config_dump", 404),
        (agent.health, "/metrics", 404),
    ] {
        let status = agent.ask(address, path)?.status;
        ensure!(status == expected, "{path} answered {status}");
    }
    let status = agent.status()?;
    ensure!(status["capture"]["mode"] == "off" && status["ready"] == true, "{status}");
    Ok(())
}

#[test]
fn a_start_that_cannot_be_says_why_in_one_line_and_fails() -> Result<()> {
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let taken_port = taken.local_addr()?.port();
    let of_port = |port: u16| gateway(&format!("  - {{name: http, port: {port}, protocol: HTTP}}\n"));
    let privileged = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")?;
    let mut cases = vec![
        (of_port(taken_port).replace("GATEWAY_IP", "127.0.0.1"), vec!["infra/edge/http", "has the port"]),
        (gateway(OPEN).replace("GATEWAY_IP", "192.0.2.1"), vec!["infra/edge/http", "192.0.2.1"]),
    ];
    if privileged.trim() == "1024" {
        cases.push((of_port(81), vec!["infra/edge/http", ":81", "CAP_NET_BIND_SERVICE"]));
    }
    for (document, words) in cases {
        let site = Site::new(&[("gateway.yaml", &document)])?;
        let output = site.command().args(site.arguments()).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(1), "{words:?}: {:?}\n{said}", output.status);
        let last = said.lines().last().context("it said nothing")?;
        ensure!(words.iter().all(|word| last.contains(word)), "no {words:?} in {last}");
    }
    let site = Site::new(&[])?;
    let busy = format!("127.0.0.1:{taken_port}");
    let output = site.command().args(site.arguments()).args(["--admin", &busy]).output()?;
    // The flag is there twice.
    ensure!(output.status.code() == Some(2), "{output:?}");
    let output = site
        .command()
        .args(["agent", "--capture", "off", "--config", "/nonexistent", "--admin", &busy])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1) && said.contains(&busy) && said.contains("--admin"), "{said}");
    Ok(())
}

#[test]
fn listeners_and_hostnames_choose_the_route() -> Result<()> {
    let listeners = format!(
        "{OPEN}  - {{name: shop, port: 8080, protocol: HTTP, hostname: shop.example, allowedRoutes: {{namespaces: {{from: All}}}}}}\n  \
         - {{name: wild, port: 8080, protocol: HTTP, hostname: \"*.example\", allowedRoutes: {{namespaces: {{from: All}}}}}}\n  \
         - {{name: other, port: 8081, protocol: HTTP, allowedRoutes: {{namespaces: {{from: All}}}}}}\n"
    );
    let to = |service: &str| format!("  - backendRefs: [{{name: {service}, port: 80}}]\n");
    let section = |name: &str, section: &str, hosts: &str, service: &str| {
        route(name, hosts, &to(service))
            .replace("namespace: infra}]", &format!("namespace: infra, sectionName: {section}}}]"))
    };
    let by_port = route("by-port", "  hostnames: [port.test]\n", &to("port"))
        .replace("namespace: infra}]", "namespace: infra, port: 8081}]");
    let routes = [
        section("any", "http", "", "any"),
        section("shop", "shop", "", "shop"),
        section("wild", "wild", "  hostnames: [\"*.example\", api.example]\n", "wild"),
        section("deep", "wild", "  hostnames: [\"*.a.example\"]\n", "deep"),
        route("everywhere", "  hostnames: [all.test]\n", &to("all")),
        by_port,
    ];
    let names = ["any", "shop", "wild", "deep", "all", "port"];
    let site = Site::new(&[
        ("gateway.yaml", &gateway(&listeners)),
        ("services.yaml", &services(&names)?),
        ("routes.yaml", &routes.concat()),
    ])?;
    let agent = site.start(&[])?;
    for (port, host, expected) in [
        (PORT, "nowhere.test", "any"),
        (PORT, "shop.example", "shop"),
        (PORT, "SHOP.Example:8080", "shop"),
        (PORT, "shop.example.", "shop"),
        (PORT, "api.example", "wild"),
        (PORT, "x.y.example", "wild"),
        (PORT, "x.a.example", "deep"),
        (PORT, "example", "any"),
        (PORT, "all.test", "all"),
        (8081, "all.test", "all"),
        (8081, "port.test", "port"),
        (PORT, "port.test", "any"),
        (8081, "nowhere.test", "404"),
        (8081, "shop.example", "404"),
    ] {
        check(site.at(port), host, "/", &[], expected).with_context(|| format!("port {port}"))?;
    }
    let output = agent.verb(&["routes", "-o", "json"])?;
    let routes: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let hosts = routes["hosts"].as_array().context("hosts")?;
    for (host, listener) in [("shop.example", "shop"), ("*.a.example", "wild"), ("*", "http"), ("*", "other")]
    {
        let listener = format!("infra/edge/{listener}");
        let found = hosts.iter().any(|one| one["name"] == host && one["listener"] == *listener);
        ensure!(found, "{host} is not {listener}'s in {routes}");
    }
    let status = agent.status()?;
    let listed: Vec<_> = status["listeners"].as_array().context("listeners")?.iter().collect();
    for (name, port) in [("http", PORT), ("shop", PORT), ("wild", PORT), ("other", 8081)] {
        let wanted = (format!("infra/edge/{name}"), site.at(port).to_string());
        let found = listed.iter().any(|one| (one["name"] == *wanted.0) && (one["address"] == *wanted.1));
        ensure!(found, "no {wanted:?} in {listed:?}");
    }
    Ok(())
}

#[test]
fn matches_and_their_precedence_across_routes() -> Result<()> {
    let to = |service: &str| format!("    backendRefs: [{{name: {service}, port: 80}}]\n");
    let rule = |matches: &str, service: &str| format!("  - matches: [{matches}]\n{}", to(service));
    let prefix = |more: &str| format!("{{path: {{type: PathPrefix, value: /p}}{more}}}");
    let dated = |text: String, date: &str| {
        text.replace("namespace: default}", &format!("namespace: default, creationTimestamp: {date}}}"))
    };
    let newer = [
        rule(&prefix(""), "newer"),
        rule(&prefix(", method: PUT"), "put"),
        rule(&prefix(", headers: [{name: X-One, value: \"1\"}]"), "one"),
        rule(
            &prefix(
                ", headers: [{name: x-one, value: \"1\"}, {name: x-two, type: RegularExpression, value: \"[0-9]+\"}]",
            ),
            "two",
        ),
        rule(&prefix(", queryParams: [{name: q, value: \"1\"}]"), "query"),
        rule("{path: {value: /p/long}}", "long"),
        rule("{path: {type: Exact, value: /p/long/exact}}", "exact"),
        rule(
            "{path: {type: RegularExpression, value: \"/r/[0-9]+\"}}, {path: {type: Exact, value: /other}}",
            "regex",
        ),
        rule("{path: {value: /tie}}", "newer"),
    ];
    let routes = [
        dated(route("a-newer", "", &newer.concat()), "2026-02-01T00:00:00Z"),
        dated(route("z-older", "", &rule(&prefix(""), "older")), "2025-02-01T00:00:00Z"),
        dated(route("b-tie", "", &rule("{path: {value: /tie}}", "older")), "2026-02-01T00:00:00Z"),
    ];
    let names = ["newer", "older", "put", "one", "two", "query", "long", "exact", "regex"];
    let site = Site::new(&[
        ("gateway.yaml", &gateway(OPEN)),
        ("services.yaml", &services(&names)?),
        ("routes.yaml", &routes.concat()),
    ])?;
    let _agent = site.start(&[])?;
    let (one, two) = (("x-one", "1"), ("X-Two", "22"));
    for (what, headers, expected) in [
        // Of equals the older route, and of routes of one age the first by name.
        ("/p", &[][..], "older"),
        ("/tie", &[], "newer"),
        ("/p/x", &[], "older"),
        ("/px", &[], "404"),
        ("PUT /p", &[], "put"),
        ("PUT /p", &[one], "put"),
        ("/p", &[one], "one"),
        ("/p", &[one, two], "two"),
        ("/p", &[("x-one", "1"), ("x-two", "2a")], "one"),
        ("/p", &[("x-one", "11")], "older"),
        ("/p?q=1", &[], "query"),
        ("/p?q=2", &[], "older"),
        ("/p?a=b&q=1", &[one], "one"),
        ("/p/long", &[], "long"),
        ("/p/long/", &[one, two], "long"),
        ("/p/longer", &[], "older"),
        ("/p/long/exact", &[], "exact"),
        ("/p/long/exact/", &[], "long"),
        ("/r/12", &[], "regex"),
        ("/r/12x", &[], "404"),
        ("/r/", &[], "404"),
        ("/other", &[], "regex"),
        ("/", &[], "404"),
    ] {
        check(site.at(PORT), "any.test", what, headers, expected)?;
    }
    Ok(())
}

const MESH_ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: default}
spec:
  parentRefs: [{group: \"\", kind: Service, name: web, port: 80}]
  rules:
  - matches: [{path: {value: /new}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /old}}}]
    backendRefs: [{name: next, port: 80}]
  - matches: [{path: {value: /gone}}]
    backendRefs: [{name: missing, port: 80}]
  - backendRefs: [{name: web, port: 80}]
";

#[test]
fn an_httproute_on_a_service_routes_captured_pods() -> Result<()> {
    if unprivileged("an_httproute_on_a_service_routes_captured_pods") {
        return Ok(());
    }
    let backend = |name: &str| {
        PodSpec::new(&format!("{name}-1"), "node1").label("app", name).runs(Program::Http { port: 8080 })
    };
    let topology = Topology::with_nodes(1)
        .pod(PodSpec::new("client", "node1"))
        .pod(backend("web"))
        .pod(backend("next"))
        .service(ServiceSpec::new("web").port("http", 80, 8080).port("http", 81, 8080))
        .service(ServiceSpec::new("next").port("http", 80, 8080));
    let mesh = Mesh::up("mesh_route", topology, &[("route.yaml", MESH_ROUTE)])?;
    for family in 0..2 {
        for (port, path, expected) in [
            (80, "/new/a", "next-1"),
            (80, "/newer", "web-1"),
            (80, "/", "web-1"),
            (80, "/gone", ""),
            // The parent is one port of the Service.
            (81, "/new/a", "web-1"),
        ] {
            let response = mesh.get("client", mesh.service("web", family, port)?, "web", path)?;
            let status = if expected.is_empty() { 500 } else { 200 };
            let found = (response.status, response.header("x-pod").unwrap_or_default());
            ensure!(found == (status, expected), "{port} {path}: {found:?}");
            ensure!(
                path != "/new/a" || port == 81 || response.text().contains("/old/a"),
                "{}",
                response.text()
            );
        }
    }
    std::fs::remove_file(mesh.config.join("route.yaml"))?;
    let to = mesh.service("web", 0, 80)?;
    let back = || mesh.get("client", to, "web", "/new/a").is_ok_and(|r| r.header("x-pod") == Some("web-1"));
    wait_for("the route to go with its document", LIMIT, back)
}
