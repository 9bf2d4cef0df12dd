//! Paths through the real binary: a rule for one exact path can't be reached around by another spelling of it, and what
//! the backend gets is what was matched.

mod common;
mod edge;

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Result, ensure};
use common::{LIMIT, Mesh};
use edge::{OPEN, PORT, gateway, route, send, services};
use lab::loopback::Site;
use lab::{PodSpec, Program, ServiceSpec, Topology, exec, unprivileged, wait_for};
use serde_json::Value;

/// What is sent, then who gets what of it at a Gateway listener, and on a captured connection.
const TABLE: [(&str, &str, &str); 17] = [
    ("/admin", "guard /admin", "guard /admin"),
    ("/%61dmin", "guard /admin", "guard /admin"),
    ("/a/../admin", "guard /admin", "guard /admin"),
    ("/a/%2e%2e/admin", "guard /admin", "guard /admin"),
    ("/./%61%64min", "guard /admin", "guard /admin"),
    (r"/a\..\admin", "guard /admin", "guard /admin"),
    ("//admin", "guard /admin", "web //admin"),
    ("/a/b/..//../admin", "web /a/admin", "web /a/admin"),
    ("/a%2f..%2fadmin", "400 path_escaped_slash", "web /a%2F..%2Fadmin"),
    ("/../admin", "400 path_above_root", "guard /admin"),
    ("/a/../b", "web /b", "web /b"),
    ("/a/%2e%2e/b", "web /b", "web /b"),
    ("/a//b", "web /a/b", "web /a//b"),
    (r"/a\b", "web /a/b", "web /a/b"),
    ("/a%2fb", "400 path_escaped_slash", "web /a%2Fb"),
    ("/%61?q=/../%2f", "web /a?q=/../%2f", "web /a?q=/../%2f"),
    ("/a%00", "400 path_null", "400 path_null"),
];

/// The agent's own answer as the table has it.
fn refusal(status: u16, text: &str) -> String {
    format!("{status} {}", text.trim_end().rsplit(": ").next().unwrap_or_default())
}

fn curl(to: SocketAddr, path: &str) -> Command {
    let mut command = Command::new("curl");
    let url = format!("http://{to}{path}");
    command.args([
        "-sS",
        "--max-time",
        "5",
        "--http2-prior-knowledge",
        "--path-as-is",
        "-H",
        "host: my.test",
        &url,
    ]);
    command
}

/// What the access log says of one request: the path that was matched, or the refused one and why.
fn record(path: &str, outcome: &str) -> (String, String) {
    match outcome.split_once(' ') {
        Some(("400", reason)) => (path.to_owned(), reason.to_owned()),
        Some((_, target)) => (target.to_owned(), String::new()),
        None => (String::new(), String::new()),
    }
}

#[test]
fn no_spelling_leads_around_a_rule_of_a_gateway() -> Result<()> {
    let rules = "  - matches: [{path: {type: Exact, value: /admin}}]\n    backendRefs: [{name: guard, port: 80}]\n  \
                 - backendRefs: [{name: web, port: 80}]\n";
    let site = Site::new(&[
        ("gateway.yaml", &gateway(OPEN)),
        ("services.yaml", &services(&["guard", "web"])?),
        ("routes.yaml", &route("guarded", "", rules)),
    ])?;
    let _agent = site.start(&[])?;
    for (path, expected, _) in TABLE {
        let seen = send(site.at(PORT), "my.test", path, &[])?;
        let target = seen.request["target"].as_str();
        let found = match target {
            Some(target) => format!("{} {target}", seen.who()),
            None => refusal(seen.response.status, &seen.response.text()),
        };
        ensure!(found == expected, "{path}: {found} and not {expected}");
        let text = exec::stdout(&mut curl(site.at(PORT), path))?;
        let found = match serde_json::from_str::<Value>(&text) {
            Ok(seen) => {
                let word = |name: &str| seen[name].as_str().unwrap_or_default().to_owned();
                format!("{} {}", word("backend"), word("target"))
            }
            Err(_) => refusal(400, &text),
        };
        ensure!(found == expected, "{path} in HTTP/2: {found} and not {expected}");
    }
    let whole = || site.access().is_ok_and(|lines| lines.len() == 2 * TABLE.len());
    wait_for("every line of the access log", LIMIT, whole)?;
    let word = |line: &Value, name: &str| line[name].as_str().unwrap_or_default().to_owned();
    let mut seen: Vec<_> =
        site.access()?.iter().map(|line| (word(line, "path"), word(line, "response_code_details"))).collect();
    let mut expected: Vec<_> =
        TABLE.iter().flat_map(|(path, outcome, _)| [record(path, outcome), record(path, outcome)]).collect();
    // Two workers may log in either order.
    seen.sort();
    expected.sort();
    ensure!(seen == expected, "the access log has {seen:?} and not {expected:?}");
    Ok(())
}

const GUARDED: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web]
  http:
  - match: [{uri: {exact: /admin}}]
    route: [{destination: {host: guard}}]
  - route: [{destination: {host: web}}]
";

#[test]
fn no_spelling_leads_around_a_rule_for_captured_pods() -> Result<()> {
    if unprivileged("no_spelling_leads_around_a_rule_for_captured_pods") {
        return Ok(());
    }
    let backend =
        |name: &str| PodSpec::new(name, "node1").label("app", name).runs(Program::Http { port: 8080 });
    let topology = Topology::with_nodes(1)
        .pod(PodSpec::new("client", "node1"))
        .pod(backend("web"))
        .pod(backend("guard"))
        .service(ServiceSpec::new("web").port("http", 80, 8080))
        .service(ServiceSpec::new("guard").port("http", 80, 8080));
    let mesh = Mesh::up("paths", topology, &[("guarded.yaml", GUARDED)])?;
    let to = mesh.service("web", 0, 80)?;
    for (path, _, expected) in TABLE {
        let response = mesh.get("client", to, "web", path)?;
        let text = response.text();
        let found = match text.split_whitespace().collect::<Vec<_>>()[..] {
            [_, pod, _, target] if response.status == 200 => format!("{pod} {target}"),
            _ => refusal(response.status, &text),
        };
        ensure!(found == expected, "{path}: {found} and not {expected}");
    }
    let methods = mesh.curl("client", &["-X", "TRACE", "-w", "%{http_code}", &format!("http://{to}/")])?;
    ensure!(methods.contains("method_trace") && methods.ends_with("405"), "{methods}");
    Ok(())
}
