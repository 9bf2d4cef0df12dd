//! What is dialled to a STRICT pod while its node's agent drains: nothing can go direct there, so that the agent takes it to the
//! end of the drain.

mod common;

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use common::{LIMIT, Mesh, TIMEOUT};
use lab::load::{Load, Plan};
use lab::pingpong::{Keeps, PingPong, echo};
use lab::{PodSpec, Program, ServiceSpec, Topology, unprivileged, wait_for};

const HTTP: u16 = 80;
const OPAQUE: u16 = 81;
const TARGET: u16 = 7000;
const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: istio-system}\nspec: {mtls: {mode: STRICT}}\n";
const ROUNDS: usize = 3;
/// New connections that are served in one drain, at least.
const ANSWERS: u64 = 100;
/// In the last second nothing new is taken; what then is left to do may take a busy machine some more.
const LAST: Duration = Duration::from_secs(3);

fn up(name: &str, arguments: &[&str]) -> Result<Mesh> {
    let meshed = |name: &str, node: &str| {
        PodSpec::new(name, node).label("app", name).label("networking.istio.io/tunnel", "http")
    };
    let topology = Topology::with_nodes(2)
        .pod(meshed("client", "node1"))
        .pod(meshed("web", "node2").runs(Program::Http { port: 8080 }))
        .service(ServiceSpec::new("web").port("http", HTTP, 8080).port("tcp", OPAQUE, TARGET));
    let mesh = Mesh::secured(name, topology, &[("strict.yaml", STRICT)], arguments)?;
    echo(&mesh.lab.pod("web")?, SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), TARGET))?;
    Ok(mesh)
}

/// A connection that goes through a tunnel and keeps the drain from ending.
fn held(mesh: &Mesh) -> Result<TcpStream> {
    let to = mesh.service("web", 0, OPAQUE)?;
    let mut held = mesh.lab.pod("client")?.in_netns(|| TcpStream::connect_timeout(&to, TIMEOUT))??;
    held.set_read_timeout(Some(TIMEOUT))?;
    ping(&mut held)?;
    Ok(held)
}

fn ping(held: &mut TcpStream) -> Result<()> {
    held.write_all(b"x")?;
    held.read_exact(&mut [0]).context("the connection that was open all along")
}

/// How often the agent of node2 has begun to drain.
fn drains(mesh: &Mesh) -> usize {
    let log = mesh.lab.directory().join("agents").join("node2").join("agent.log");
    std::fs::read_to_string(log).unwrap_or_default().lines().filter(|line| line.contains("draining")).count()
}

#[test]
fn what_is_dialled_in_a_drain_is_served() -> Result<()> {
    if unprivileged("what_is_dialled_in_a_drain_is_served") {
        return Ok(());
    }
    let mut mesh = up("mesh_drain", &["--drain-timeout", "10"])?;
    let plan = Plan {
        address: mesh.service("web", 0, HTTP)?,
        host: "web".to_owned(),
        paths: vec!["/".to_owned()],
        rate: 50,
    };
    for round in 0..ROUNDS {
        let mut held = held(&mesh)?;
        let before = drains(&mesh);
        let agent = mesh.agents.pop().context("the agent of node2")?;
        let stopping = std::thread::spawn(move || agent.terminate());
        wait_for("the drain", LIMIT, || drains(&mesh) > before)?;
        let client = mesh.lab.pod("client")?;
        let pings = PingPong::start(&client, mesh.service("web", 0, OPAQUE)?, Keeps::None)?;
        let load = Load::start(&client.netns(), &plan)?;
        let served = pings.wait_answers(ANSWERS, LIMIT).and_then(|()| load.wait_requests(100, LIMIT));
        let (rhythm, report) = (pings.stop()?, load.stop()?);
        served
            .with_context(|| format!("round {round}: {:?} {:?}", rhythm.failures, report.failure_kinds()))?;
        ensure!(rhythm.failures.is_empty(), "round {round}: {:?}", rhythm.failures);
        let failed = report.failure_kinds();
        ensure!(failed.is_empty(), "round {round}: of {} requests: {failed:?}", report.samples.len());
        ping(&mut held)?;
        drop(held);
        let status = stopping.join().map_err(|_| anyhow!("the stop panicked"))??;
        ensure!(status.success(), "round {round}: the agent ended with {status}");
        let agent = mesh.start_secured("node2", &["--drain-timeout", "10"])?;
        mesh.agents.push(agent);
    }
    Ok(())
}

#[test]
fn a_drain_that_never_falls_silent_serves_to_its_last_second() -> Result<()> {
    if unprivileged("a_drain_that_never_falls_silent_serves_to_its_last_second") {
        return Ok(());
    }
    let mut mesh = up("mesh_drain_busy", &["--drain-timeout", "8"])?;
    let client = mesh.lab.pod("client")?;
    let began = Instant::now();
    let pings = PingPong::start(&client, mesh.service("web", 0, OPAQUE)?, Keeps::None)?;
    pings.wait_answers(ANSWERS, LIMIT)?;
    let agent = mesh.agents.pop().context("the agent of node2")?;
    let stopping = std::thread::spawn(move || agent.terminate());
    let status = stopping.join().map_err(|_| anyhow!("the stop panicked"))??;
    let ended = began.elapsed();
    ensure!(status.success(), "the agent ended with {status}");
    // The next agent takes what is dialled then, and what was while there was none.
    let agent = mesh.start_secured("node2", &[])?;
    mesh.agents.push(agent);
    pings.wait_answers(ANSWERS, LIMIT)?;
    let rhythm = pings.stop()?;
    let early: Vec<_> = rhythm.failures.iter().filter(|(at, _)| *at + LAST < ended).collect();
    ensure!(early.is_empty(), "the agent ended after {ended:?}: {early:?} of {:?}", rhythm.failures);
    Ok(())
}
