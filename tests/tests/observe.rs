//! `sluice observe`: what the kernel did with real connections, as it did it.

mod common;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use common::{LIMIT, Mesh};
use lab::pingpong::{Keeps, PingPong, echo};
use lab::{PodSpec, ServiceSpec, Topology, exec, unprivileged, wait_for};
use serde_json::Value;

const NODE: &str = "node1";
const PORT: u16 = 7000;

fn mesh(name: &str) -> Result<Mesh> {
    let topology = Topology::with_nodes(1)
        .pod(PodSpec::new("client", NODE))
        .pod(PodSpec::new("backend", NODE).label("app", "echo"))
        .service(ServiceSpec::new("echo").port("tcp", 81, PORT));
    let mesh = Mesh::up(name, topology, &[])?;
    echo(&mesh.lab.pod("backend")?, SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), PORT))?;
    Ok(mesh)
}

/// So many connections, one after the other.
fn dial(mesh: &Mesh, to: SocketAddr, count: u64) -> Result<()> {
    let pings = PingPong::start(&mesh.lab.pod("client")?, to, Keeps::None)?;
    pings.wait_answers(count, LIMIT)?;
    pings.stop().map(drop)
}

fn observe(mesh: &Mesh, arguments: &[&str]) -> Result<Vec<Value>> {
    let mut command = mesh.lab.node(NODE)?.command(lab::agent::built_binary()?)?;
    let text = exec::stdout(command.args(["observe", "-o", "json"]).args(arguments))?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

#[test]
fn each_verdict_is_seen_with_its_ends_and_its_reason() -> Result<()> {
    if unprivileged("each_verdict_is_seen_with_its_ends_and_its_reason") {
        return Ok(());
    }
    let mesh = mesh("observe")?;
    for family in 0..2 {
        let service = mesh.service("echo", family, 81)?;
        let direct = SocketAddr::new(mesh.pod_ip("backend", family)?, PORT);
        dial(&mesh, service, 5)?;
        dial(&mesh, direct, 5)?;
        for (to, verdict, reason, name) in [
            (service, "agent", "captured", "default/echo"),
            (direct, "direct", "no_route", "default/backend"),
        ] {
            let ip = to.ip().to_string();
            let port = to.port().to_string();
            let filter =
                ["--from", "client", "--to", &ip, "--port", &port, "--verdict", reason, "--last", "3"];
            wait_for(&format!("{to} to be seen"), LIMIT, || {
                observe(&mesh, &filter).is_ok_and(|flows| flows.len() == 3)
            })?;
            for flow in observe(&mesh, &filter)? {
                ensure!(flow["verdict"] == verdict && flow["reason"] == reason, "{flow}");
                ensure!(flow["destination_name"] == name && flow["source_pod"] == "default/client", "{flow}");
                let source: SocketAddr = flow["source"].as_str().unwrap_or_default().parse()?;
                ensure!(source.ip() == mesh.pod_ip("client", family)?, "{flow}");
                ensure!(flow["destination"] == to.to_string(), "{flow}");
            }
        }
    }
    ensure!(observe(&mesh, &["--from", "backend"])?.is_empty(), "a filter let everything pass");
    // What nothing can fit is no empty answer.
    for (filter, words) in [
        (["--from", "nobody"], "no pod or service of this name"),
        (["--pod", "nobody/"], "no pod or service in this namespace"),
        (["--port", "0"], "--port"),
        (["--verdict", "bogus"], "captured_inbound"),
    ] {
        let mut command = mesh.lab.node(NODE)?.command(lab::agent::built_binary()?)?;
        let output = command.arg("observe").args(filter).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && said.contains(words), "{filter:?}: {}, {said}", output.status);
    }
    Ok(())
}

#[test]
fn one_connection_is_one_event_and_is_seen_live() -> Result<()> {
    if unprivileged("one_connection_is_one_event_and_is_seen_live") {
        return Ok(());
    }
    let mesh = mesh("observe_live")?;
    let service = mesh.service("echo", 0, 81)?;
    let mut command = mesh.lab.node(NODE)?.command(lab::agent::built_binary()?)?;
    command.args(["observe", "--follow", "--to", "echo"]).stdout(Stdio::piped());
    let mut watching = command.spawn().context("starting observe")?;
    let lines = BufReader::new(watching.stdout.take().context("its output")?).lines();
    let pings = PingPong::start(&mesh.lab.pod("client")?, service, Keeps::One)?;
    pings.wait_answers(200, LIMIT)?;
    // It shows itself while the connection is open.
    let line = lines.map_while(Result::ok).next().context("observe ended")?;
    let seen =
        line.contains("captured") && line.contains("(default/client) -> ") && line.contains("(default/echo)");
    ensure!(seen, "{line}");
    let _ = watching.kill();
    watching.wait()?;
    pings.stop()?;
    let closed = ["--to", "echo", "--kind", "close"];
    wait_for("the end to be told", LIMIT, || observe(&mesh, &closed).is_ok_and(|told| told.len() == 1))?;
    let flows = observe(&mesh, &["--to", "echo", "--last", "100"])?;
    let kinds: Vec<_> = flows.iter().filter_map(|flow| flow["kind"].as_str()).collect();
    ensure!(kinds == ["verdict", "close"], "events for one connection of 200 packets: {flows:?}");
    Ok(())
}
