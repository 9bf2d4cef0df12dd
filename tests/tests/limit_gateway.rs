//! Limits of the kernel for a Gateway: the guard cuts who dials beyond them, others go on, and without a guard it is said that
//! nobody is held to them.

mod common;
mod edge;

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::{LIMIT, Mesh};
use edge::{OPEN, PORT, gateway};
use lab::address::WORLD;
use lab::http::Connection;
use lab::{AgentOptions, Lab, Topology, exec, unprivileged, wait_for};
use serde_json::Value;

const NODE: &str = "node1";
/// A node without an agent: a client with an address of its own.
const OTHER: &str = "node2";
/// How long a client waits that is expected to get nothing; the kernel asks anew after a second.
const BRIEF: Duration = Duration::from_millis(600);
const DIALS: &str = "kernel: {count: Connections}, rate: {requests: 1, per: 10m, burst: 5}";
const PACKETS: &str = "kernel: {count: Packets}, rate: {requests: 1, per: 10m, burst: 100}";

/// The Gateway has one listener at addresses of its own, or one for all of the node's.
fn document(limit: &str, mode: &str) -> String {
    format!(
        "apiVersion: sluice.dev/v1alpha1\nkind: RateLimit\nmetadata: {{name: calm, namespace: infra}}\nspec:\n  \
         targetRefs: [{{group: gateway.networking.k8s.io, kind: Gateway, name: edge}}]\n  mode: {mode}\n  limits:\n  \
         - {{name: dials, {limit}, key: [{{type: SourceAddress}}]}}\n"
    )
}

fn up(name: &str, limit: &str, own_addresses: bool, arguments: &[&str]) -> Result<(Mesh, [SocketAddr; 2])> {
    let lab = Lab::for_test(name, Topology::with_nodes(2))?;
    let config = lab.directory().join("config");
    lab.write_documents(&config)?;
    let mut mesh = Mesh { agents: Vec::new(), lab, config };
    let node = mesh.lab.node(NODE)?.address();
    let mut edge = gateway(OPEN);
    if own_addresses {
        edge = edge.replace("GATEWAY_IP", &format!("{}}}, {{type: IPAddress, value: '{}'", node.v4, node.v6));
    } else {
        edge = edge.replace("  addresses: [{type: IPAddress, value: GATEWAY_IP}]\n", "");
    }
    mesh.write("gateway.yaml", &edge)?;
    mesh.write("limit.yaml", &document(limit, "Enforce"))?;
    let options = AgentOptions::new(&mesh.config)?.with(arguments.iter().copied());
    mesh.agents.push(mesh.lab.node(NODE)?.start_agent(&options)?);
    Ok((mesh, node.both().map(|ip| SocketAddr::new(ip, PORT))))
}

/// How many of so many connections are accepted, one after another: from the world, or from the other node.
fn dial(mesh: &Mesh, world: bool, to: SocketAddr, count: usize) -> Result<usize> {
    let dial = move || (0..count).filter(|_| TcpStream::connect_timeout(&to, BRIEF).is_ok()).count();
    if world { mesh.lab.underlay().enter(dial) } else { mesh.lab.node(OTHER)?.in_netns(dial) }
}

fn counted(mesh: &Mesh, outcome: &str) -> Result<u64> {
    let name = "sluice_rate_limit_kernel_total";
    let series = format!("{name}{{limit=\"dials\",outcome=\"{outcome}\",policy=\"infra/calm\"}}");
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of packets")]
    let count = mesh.metric(NODE, &series)? as u64;
    Ok(count)
}

fn sluice(mesh: &Mesh, arguments: &[&str]) -> Result<String> {
    let binary = lab::agent::built_binary()?;
    exec::stdout(mesh.lab.node(NODE)?.command(binary)?.args(arguments))
}

#[test]
fn who_dials_beyond_the_limit_is_cut_and_others_go_on() -> Result<()> {
    if unprivileged("who_dials_beyond_the_limit_is_cut_and_others_go_on") {
        return Ok(());
    }
    for own_addresses in [true, false] {
        let name = format!("limit_gateway_{own_addresses}");
        let (mesh, to) = up(&name, DIALS, own_addresses, &["--guard", "eth0"])?;
        for to in to {
            let got = (dial(&mesh, true, to, 8)?, dial(&mesh, false, to, 4)?, dial(&mesh, true, to, 1)?);
            ensure!(got == (5, 4, 0), "{to}, own addresses {own_addresses}: {got:?}");
        }
        ensure!(counted(&mesh, "admitted")? == 18, "{} let through", counted(&mesh, "admitted")?);
        ensure!(counted(&mesh, "refused")? == 8, "{} refused", counted(&mesh, "refused")?);
        it_is_shown(&mesh, to[0])?;
        // What it only counts, it does not drop.
        let version = mesh.version(NODE)?;
        mesh.write("limit.yaml", &document(DIALS, "Shadow"))?;
        mesh.wait_version_above(NODE, version)?;
        wait_for("nothing to be dropped", LIMIT, || {
            dial(&mesh, true, to[0], 3).is_ok_and(|through| through == 3)
        })?;
        ensure!(counted(&mesh, "shadow_refused")? >= 3, "{} counted", counted(&mesh, "shadow_refused")?);
    }
    Ok(())
}

/// `limits`, `observe`, `why` and the metrics tell of what was refused, and by which limit.
fn it_is_shown(mesh: &Mesh, to: SocketAddr) -> Result<()> {
    let limit = &mesh.verb(NODE, "limits")?["limits"][0];
    ensure!(limit["tier"] == "kernel" && limit["admitted"] == 18 && limit["keys"] == 4, "{limit}");
    ensure!(limit["held"].as_str().is_some_and(|held| held.contains("come in by eth0")), "{limit}");
    ensure!(limit["why"].as_str().is_some_and(|why| why.contains("xdp drops")), "{limit}");
    let refused = ["--verdict", "rate_limited", "--protocol", "tcp"];
    let told = sluice(mesh, &[&["observe", "-o", "json", "--last", "1000"][..], &refused].concat())?;
    let told: Value = serde_json::from_str(told.lines().next().context("nothing was told")?)?;
    ensure!(told["policy"] == "infra/calm" && told["rule"] == "dials", "{told}");
    let why = sluice(mesh, &["why", &WORLD.v4.to_string(), &to.to_string()])?;
    ensure!(why.contains("limit dials") && why.contains("come in by eth0: drops what is beyond it"), "{why}");
    ensure!(mesh.metric(NODE, "sluice_guard_packets_total{reason=\"rate_limited\"")? > 7.5, "not the guard");
    ensure!(mesh.verb(NODE, "status")?["unmet"].as_array().is_none_or(Vec::is_empty), "something is unmet");
    Ok(())
}

/// All packets count, those of a connection that is there too.
#[test]
fn packets_to_a_gateway_are_counted() -> Result<()> {
    if unprivileged("packets_to_a_gateway_are_counted") {
        return Ok(());
    }
    let (mesh, to) = up("limit_gateway_packets", PACKETS, true, &["--guard", "eth0"])?;
    let ask = move || -> Result<usize> {
        let mut connection = Connection::open(to[0], BRIEF)?;
        Ok((0..500).take_while(|_| connection.request("GET", "shop.test", "/", &[]).is_ok()).count())
    };
    let asked = mesh.lab.underlay().enter(ask)??;
    // Each request is a packet, and its answer is acknowledged by the next or by one of its own.
    ensure!((40..100).contains(&asked), "{asked} requests were answered");
    ensure!(counted(&mesh, "admitted")? == 100, "{} let through", counted(&mesh, "admitted")?);
    ensure!(mesh.lab.node(OTHER)?.in_netns(ask)?? >= 40, "another client is cut as well");
    Ok(())
}

#[test]
fn without_a_guard_it_is_said_that_nobody_is_held_to_it() -> Result<()> {
    if unprivileged("without_a_guard_it_is_said_that_nobody_is_held_to_it") {
        return Ok(());
    }
    let (mesh, to) = up("limit_gateway_bare", DIALS, true, &[])?;
    ensure!(dial(&mesh, true, to[0], 9)? == 9, "somebody was cut");
    let held = mesh.verb(NODE, "limits")?["limits"][0]["held"].clone();
    ensure!(held.as_str().is_some_and(|held| held.contains("no interface is guarded (--guard)")), "{held}");
    let unmet = mesh.verb(NODE, "status")?["unmet"].to_string();
    ensure!(unmet.contains("RateLimit infra/calm: no interface is guarded"), "{unmet}");
    let why = sluice(&mesh, &["why", &WORLD.v4.to_string(), &to[0].to_string()])?;
    ensure!(why.contains("is not held to: no interface is guarded"), "{why}");
    Ok(())
}
