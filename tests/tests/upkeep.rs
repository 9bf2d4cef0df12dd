//! What the node's other software and its configuration do to capture, and how traffic goes on.

mod common;

use anyhow::{Result, ensure};
use common::{LIMIT, Mesh};
use lab::{AgentOptions, Lab, PodSpec, Program, ServiceSpec, Topology, exec, unprivileged, wait_for};
use serde_json::Value;

const NODE: &str = "node1";

fn topology() -> Topology {
    Topology::with_nodes(1)
        .pod(PodSpec::new("client", NODE))
        .pod(PodSpec::new("backend", NODE).label("app", "web").runs(Program::Http { port: 8080 }))
        .service(ServiceSpec::new("web").port("http", 80, 8080))
}

/// Whether a request gets its answer, and through the agent.
fn passes_the_agent(mesh: &Mesh, family: usize) -> Option<bool> {
    let response = mesh.get("client", mesh.service("web", family, 80).ok()?, "web", "/").ok()?;
    (response.status == 200).then(|| response.header("via").is_some())
}

fn run(mesh: &Mesh, words: &[&str]) -> Result<()> {
    exec::run(mesh.lab.node(NODE)?.command(words[0])?.args(&words[1..])).map(drop)
}

#[test]
fn what_others_take_away_is_put_back() -> Result<()> {
    if unprivileged("what_others_take_away_is_put_back") {
        return Ok(());
    }
    let mesh = Mesh::up("upkeep", topology(), &[])?;
    ensure!(passes_the_agent(&mesh, 0) == Some(true), "not captured at the start");
    for (said, words) in [
        ("ip rule", &["ip", "rule", "del", "fwmark", "0x1510"][..]),
        ("ip rule", &["ip", "-6", "rule", "del", "fwmark", "0x1510"]),
        ("ip rule", &["ip", "route", "flush", "table", "1510"]),
        ("ip rule", &["ip", "-6", "route", "flush", "table", "1510"]),
        ("nft table", &["nft", "delete", "table", "inet", "sluice"]),
        ("nft table", &["nft", "flush", "table", "inet", "sluice"]),
    ] {
        let times = |log: &str| {
            log.lines().filter(|line| line.contains(said) && line.contains("installed again")).count()
        };
        let before = times(&mesh.agents[0].log());
        run(&mesh, words)?;
        wait_for(&format!("{words:?} to be undone"), LIMIT, || times(&mesh.agents[0].log()) > before)?;
        for family in 0..2 {
            ensure!(passes_the_agent(&mesh, family) == Some(true), "after {words:?}, family {family}");
        }
    }
    Ok(())
}

#[test]
fn what_cannot_be_repaired_makes_traffic_go_direct() -> Result<()> {
    if unprivileged("what_cannot_be_repaired_makes_traffic_go_direct") {
        return Ok(());
    }
    let mesh = Mesh::up("pause", topology(), &[])?;
    let rule =
        |verb: &'static str| ["ip", "rule", verb, "fwmark", "0x1510", "priority", "50", "table", "main"];
    run(&mesh, &rule("add"))?;
    wait_for("traffic to go direct", LIMIT, || passes_the_agent(&mesh, 0) == Some(false))?;
    let paused = mesh.verb(NODE, "status")?["capture"]["paused"].clone();
    ensure!(paused.as_str().is_some_and(|reason| reason.contains("0x1510")), "paused: {paused}");
    run(&mesh, &rule("del"))?;
    wait_for("traffic to be captured", LIMIT, || passes_the_agent(&mesh, 0) == Some(true))?;
    ensure!(mesh.verb(NODE, "status")?["capture"]["paused"].is_null(), "still paused");
    Ok(())
}

#[test]
fn a_node_without_ipv6_captures_ipv4() -> Result<()> {
    if unprivileged("a_node_without_ipv6_captures_ipv4") {
        return Ok(());
    }
    let lab = Lab::for_test("only_ipv4", topology())?;
    let config = lab.directory().join("config");
    lab.write_documents(&config)?;
    lab.node(NODE)?.netns().sysctls(&[("ipv6/conf/lo/disable_ipv6", "1")])?;
    let binary = AgentOptions::new(&config)?.binary;
    let mut check = lab.node(NODE)?.command(binary)?;
    check.args(["check", "-o", "json", "--pod-interfaces", "pod-*"]);
    let checks: Value = serde_json::from_str(&exec::stdout(&mut check)?)?;
    let ipv6 = checks.as_array().and_then(|checks| checks.iter().find(|check| check["name"] == "IPv6"));
    ensure!(ipv6.is_some_and(|check| check["outcome"] == "warning"), "{checks}");
    let mut mesh = Mesh { agents: Vec::new(), lab, config };
    mesh.agents.push(mesh.start_agent(NODE)?);
    ensure!(passes_the_agent(&mesh, 0) == Some(true), "IPv4 is not captured");
    ensure!(passes_the_agent(&mesh, 1) == Some(false), "IPv6 does not go direct");
    ensure!(mesh.agents.remove(0).terminate()?.success(), "the agent failed at its stop");
    let left = common::leftovers(&mesh.lab, NODE)?;
    ensure!(left.is_empty(), "left behind:\n{left}");
    Ok(())
}
