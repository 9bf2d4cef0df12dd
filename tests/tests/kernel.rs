//! What capture needs of a kernel, in one short life of an agent: the programs load, connections of each kind are
//! captured, and the agent's death and stop leave what they should. Small enough for an emulated machine, so that
//! `cargo xtask vm --test kernel` proves it on kernels other than this one.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::{LIMIT, Mesh};
use lab::documents::replace_file;
use lab::{
    AgentOptions, Footprint, Lab, PodSpec, Program, ServiceSpec, Topology, exec, kernel_version,
    unprivileged, wait_for,
};
use serde_json::Value;

const NODE: &str = "node1";
const NOBODY: &str =
    "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: nobody}\nspec: {}\n";
/// How long a connection that nobody answers is waited for.
const SILENCE: Duration = Duration::from_secs(2);
/// Every port leads to both backends at random; so many requests miss one of them once in 2^19 runs.
const REQUESTS_MAX: usize = 20;

fn topology() -> Topology {
    let backend = |name: &str, node: &str| {
        PodSpec::new(name, node).label("app", "web").runs(Program::Http { port: 8080 })
    };
    Topology::with_nodes(2)
        .pod(PodSpec::new("client", NODE))
        .pod(backend("near", NODE))
        .pod(backend("far", "node2"))
        .service(
            ServiceSpec::new("web").port("http", 80, 8080).port("tcp", 81, 8080).undeclared_port(82, 8080),
        )
}

#[test]
fn captures_survives_its_agent_and_lets_go() -> Result<()> {
    if unprivileged("captures_survives_its_agent_and_lets_go") {
        return Ok(());
    }
    let lab = Lab::for_test("kernel", topology())?;
    let config = lab.directory().join("config");
    lab.write_documents(&config)?;
    let mut mesh = Mesh { agents: Vec::new(), lab, config };
    foreign_filter(&mesh)?;
    let bare = footprint(&mesh)?;
    preflight(&mesh)?;
    ensure!(footprint(&mesh)?.since(&bare).is_empty(), "the check changed the node");

    mesh.agents.push(mesh.start_agent(NODE)?);
    ensure!(attached(&mesh)? == expected_attach(), "attached as {}", attached(&mesh)?);
    every_port_is_captured(&mesh)?;
    let running = footprint(&mesh)?;
    ensure!(!running.since(&bare).is_empty(), "the running agent left no trace: the look is blind");

    mesh.agents.remove(0).kill9()?;
    let killed = footprint(&mesh)?;
    let filters = killed.since(&bare).iter().any(|line| line.contains("from_pod"));
    ensure!(filters == (expected_attach() == "clsact"), "of the killed agent: {:?}", killed.since(&bare));
    every_port_is_direct(&mesh)?;

    mesh.agents.push(mesh.start_agent(NODE)?);
    every_port_is_captured(&mesh)?;
    let (before, now) = (hooks(&running), hooks(&footprint(&mesh)?));
    ensure!(before == now, "before the kill {before:?}, after the restart {now:?}");
    a_policy_guards(&mesh)?;

    ensure!(mesh.agents.remove(0).terminate()?.success(), "the agent failed at its stop");
    let left = footprint(&mesh)?;
    ensure!(left.since(&bare).is_empty(), "left behind: {:?}", left.since(&bare));
    ensure!(bare.since(&left).is_empty(), "taken from others: {:?}", bare.since(&left));
    every_port_is_direct(&mesh)
}

/// Pinned, the guard stays whatever becomes of the agent, and the next one's takes its place.
#[test]
fn a_policy_outlives_its_agent() -> Result<()> {
    if unprivileged("a_policy_outlives_its_agent") {
        return Ok(());
    }
    let lab = Lab::for_test("outlives", topology())?;
    let config = lab.directory().join("config");
    lab.write_documents(&config)?;
    replace_file(&config.join("nobody.yaml"), NOBODY)?;
    let mesh = Mesh { agents: Vec::new(), lab, config };
    let node = mesh.lab.node(NODE)?;
    let bare = footprint(&mesh)?;
    let bpffs = node.mount_bpffs()?.display().to_string();
    let options = AgentOptions::new(&mesh.config)?.with(["--bpffs", &bpffs, "--drain-timeout", "1"]);
    let refused = |when: &str| -> Result<()> {
        for family in 0..2 {
            ensure!(!connects(&mesh, family)?, "{when}: the pod was reached, family {family}");
        }
        Ok(())
    };
    let agent = node.start_agent(&options)?;
    refused("running")?;
    agent.kill9()?;
    refused("killed")?;
    let agent = node.start_agent(&options)?;
    refused("started again")?;
    ensure!(agent.terminate()?.success(), "the agent failed at its stop");
    refused("stopped")?;
    let left = footprint(&mesh)?;
    ensure!(!left.lines().any(|line| line.contains("from_pod")), "capture stays: {:?}", left.since(&bare));
    let agent = node.start_agent(&options)?;
    refused("started once more")?;
    let counted = mesh.metric(NODE, "sluice_policy_drops_total{policy=\"default/nobody\"")?;
    ensure!(counted > 0.0, "nothing was counted as refused");
    ensure!(agent.terminate()?.success(), "the agent failed at its stop");
    // An agent that knows of no policy lifts it, and leaves nothing.
    fs::remove_file(mesh.config.join("nobody.yaml")).context("removing the policy")?;
    let agent = node.start_agent(&options)?;
    for family in 0..2 {
        ensure!(connects(&mesh, family)?, "the policy was not lifted, family {family}");
    }
    ensure!(agent.terminate()?.success(), "the agent failed at its stop");
    let left = footprint(&mesh)?;
    ensure!(left.since(&bare).is_empty(), "left behind: {:?}", left.since(&bare));
    Ok(())
}

/// Whether the client reaches a backend itself.
fn connects(mesh: &Mesh, family: usize) -> Result<bool> {
    let to = SocketAddr::new(mesh.pod_ip("near", family)?, 8080);
    let attempt = mesh.lab.pod("client")?.in_netns(|| TcpStream::connect_timeout(&to, SILENCE))?;
    Ok(attempt.is_ok())
}

fn footprint(mesh: &Mesh) -> Result<Footprint> {
    Footprint::of(&mesh.lab.node(NODE)?)
}

/// Somebody else's filter on the uplink, of the kind that agents share a queueing discipline with on older kernels.
fn foreign_filter(mesh: &Mesh) -> Result<()> {
    // The one instruction of the classic program returns 0: no match.
    for words in [
        &["qdisc", "add", "dev", "eth0", "clsact"][..],
        &["filter", "add", "dev", "eth0", "egress", "bpf", "bytecode", "1,6 0 0 0"],
    ] {
        exec::run(mesh.lab.node(NODE)?.command("tc")?.args(words))?;
    }
    Ok(())
}

/// `sluice check` finds nothing that stops capture; the programs load.
fn preflight(mesh: &Mesh) -> Result<()> {
    let binary = AgentOptions::new(&mesh.config)?.binary;
    let mut check = mesh.lab.node(NODE)?.command(binary)?;
    check.args(["check", "-o", "json", "--uplink", "eth0", "--pod-interfaces", "pod-*"]);
    let checks: Value = serde_json::from_str(&exec::stdout(&mut check)?).context("the answer of check")?;
    let checks = checks.as_array().context("check answers with a list")?;
    let programs = checks.iter().find(|check| check["name"] == "programs").context("no check of programs")?;
    ensure!(programs["outcome"] == "ok", "{programs}");
    ensure!(checks.iter().all(|check| check["outcome"] != "failed"), "{checks:?}");
    Ok(())
}

fn attached(mesh: &Mesh) -> Result<String> {
    let status = mesh.verb(NODE, "status")?;
    Ok(status["capture"]["attach"].as_str().unwrap_or_default().to_owned())
}

/// tcx came with 6.6.
fn expected_attach() -> &'static str {
    if kernel_version() >= (6, 6) { "tcx" } else { "clsact" }
}

/// Both backends answer on every kind of port in both families, see the pod's own address, and the programs say that
/// they captured it.
fn every_port_is_captured(mesh: &Mesh) -> Result<()> {
    const CAPTURED: &str = "sluice_capture_packets_total{reason=\"captured\"}";
    for port in [80, 81, 82] {
        for family in 0..2 {
            let captured = mesh.metric(NODE, CAPTURED)?;
            let own = mesh.pod_ip("client", family)?.to_string();
            let mut answered = BTreeSet::new();
            let mut sent = 0;
            while answered.len() < 2 && sent < REQUESTS_MAX {
                let text = mesh.get("client", mesh.service("web", family, port)?, "web", "/")?.text();
                let words: Vec<&str> = text.split_whitespace().collect();
                ensure!(
                    words.get(2) == Some(&own.as_str()),
                    "port {port}: the backend saw {text:?}, not {own}"
                );
                answered.insert(words[1].to_owned());
                sent += 1;
            }
            ensure!(answered.len() == 2, "port {port}, family {family}: only {answered:?} answered");
            let grown = mesh.metric(NODE, CAPTURED)? - captured;
            ensure!(grown >= f64::from(u32::try_from(sent)?), "port {port}: {grown} of {sent} were captured");
        }
    }
    Ok(())
}

/// A pod that nobody may reach is reached by nobody but its node, in both families, for as long as the policy is there.
fn a_policy_guards(mesh: &Mesh) -> Result<()> {
    let connects = |family: usize| connects(mesh, family);
    ensure!(connects(0)? && connects(1)?, "the backend is not reached without policy");
    mesh.write("nobody.yaml", NOBODY)?;
    for family in 0..2 {
        wait_for("the guard", LIMIT, || connects(family).is_ok_and(|connected| !connected))?;
        let to = SocketAddr::new(mesh.pod_ip("near", family)?, 8080);
        let probe = mesh.lab.node(NODE)?.in_netns(|| TcpStream::connect_timeout(&to, SILENCE))?;
        ensure!(probe.is_ok(), "the node's own probe is refused: {probe:?}");
    }
    let refused = mesh.metric(NODE, "sluice_policy_drops_total{policy=\"default/nobody\"")?;
    ensure!(refused > 0.0, "nothing was counted as refused");
    fs::remove_file(mesh.config.join("nobody.yaml")).context("removing the policy")?;
    for family in 0..2 {
        wait_for("the guard to go", LIMIT, || connects(family).unwrap_or(false))?;
    }
    Ok(())
}

/// Every port answers without the agent's header.
fn every_port_is_direct(mesh: &Mesh) -> Result<()> {
    for port in [80, 81, 82] {
        for family in 0..2 {
            let response = mesh.get("client", mesh.service("web", family, port)?, "web", "/")?;
            ensure!(response.status == 200 && response.header("via").is_none(), "port {port}: {response:?}");
        }
    }
    Ok(())
}

/// What is attached where, without the numbers that each load gives anew.
fn hooks(footprint: &Footprint) -> Vec<String> {
    let hooks = footprint.lines().filter(|line| line.contains("from_"));
    hooks.map(|line| line.split(" id ").next().unwrap_or(line).to_owned()).collect()
}

/// The kernel takes the programs of same-node acceleration, and passes the self-test or is said to fail a trial by name.
#[test]
fn acceleration_is_on_or_a_trial_is_named() -> Result<()> {
    if unprivileged("acceleration_is_on_or_a_trial_is_named") {
        return Ok(());
    }
    let mesh = Mesh::accelerated("kernel_accel", topology(), NODE)?;
    let status = mesh.verb(NODE, "status")?["capture"]["acceleration"].clone();
    eprintln!("acceleration: {status}");
    let reason = status["reason"].as_str().unwrap_or_default();
    ensure!(status["active"] == true || reason.contains("this kernel fails the self-test: "), "{status}");
    ensure!(status["active"] == false || status["not_found"] == 0, "pods were not found: {status}");
    Ok(())
}
