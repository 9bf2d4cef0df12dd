//! A source that floods a Gateway beyond its limit: the guard cuts it off in the kernel, others go on, and it is let in again.

mod common;
mod edge;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use common::{LIMIT, Mesh, TIMEOUT};
use edge::{OPEN, PORT, gateway, route};
use lab::address::WORLD;
use lab::agent::METRICS;
use lab::http::{Connection, get};
use lab::load::{Load, Plan};
use lab::promtext::Exposition;
use lab::{AgentOptions, Lab, PodSpec, Program, ServiceSpec, Topology, exec, unprivileged, wait_for};
use serde_json::Value;

const NODE: &str = "node1";
/// A node without an agent: a client with an address of its own.
const OTHER: &str = "node2";
const HOST: &str = "shop.test";
/// Refusals after which the source is cut off.
const AFTER: u32 = 50;
/// How long whoever is cut off waits for an answer.
const BRIEF: Duration = Duration::from_millis(500);

const RULES: &str =
    "  - matches: [{path: {value: /}}]\n    name: all\n    backendRefs: [{name: web, port: 80}]\n";

fn limit() -> String {
    format!(
        "apiVersion: sluice.dev/v1alpha1\nkind: RateLimit\nmetadata: {{name: calm, namespace: infra}}\nspec:\n\
         \x20 targetRefs: [{{group: gateway.networking.k8s.io, kind: Gateway, name: edge}}]\n\
         \x20 limits:\n\
         \x20 - {{name: each, key: [{{type: SourceAddress, prefixLengthV6: 64}}], rate: {{requests: 50, per: 1s}},\n\
         \x20    pushDown: {{after: {AFTER}, within: 10s, for: 6s}}}}\n"
    )
}

fn up() -> Result<(Mesh, SocketAddr)> {
    let web = PodSpec::new("web-a", NODE).label("app", "web").runs(Program::Http { port: 8080 });
    let topology = Topology::with_nodes(2).pod(web).service(ServiceSpec::new("web").port("http", 80, 8080));
    let lab = Lab::for_test("push_down", topology)?;
    let config = lab.directory().join("config");
    lab.write_documents(&config)?;
    let mut mesh = Mesh { agents: Vec::new(), lab, config };
    let node = mesh.lab.node(NODE)?.address();
    mesh.write("gateway.yaml", &gateway(OPEN).replace("GATEWAY_IP", &node.v4.to_string()))?;
    mesh.write("route.yaml", &route("shop", "", RULES))?;
    mesh.write("limit.yaml", &limit())?;
    let options = AgentOptions::new(&mesh.config)?.with(["--guard", "eth0"]);
    mesh.agents.push(mesh.lab.node(NODE)?.start_agent(&options)?);
    Ok((mesh, SocketAddr::new(node.v4.into(), PORT)))
}

/// What became of a flood.
#[derive(Debug, Default)]
struct Flood {
    admitted: u32,
    refused: u32,
    /// From the refusal after which the source is to be cut off to the last answer.
    late: Duration,
}

/// Asks without a pause until nobody answers.
fn flood(to: SocketAddr) -> Result<Flood> {
    let mut connection = Connection::open(to, BRIEF).context("the flood's connection")?;
    let (mut flood, begun) = (Flood::default(), Instant::now());
    let mut reached = None;
    while begun.elapsed() < LIMIT {
        let Ok(response) = connection.request("GET", HOST, "/", &[]) else { return Ok(flood) };
        match response.status {
            200 => flood.admitted += 1,
            429 => flood.refused += 1,
            status => anyhow::bail!("{status}: {flood:?}"),
        }
        if flood.refused == AFTER {
            reached.get_or_insert_with(Instant::now);
        }
        flood.late = reached.map_or(Duration::ZERO, |reached: Instant| reached.elapsed());
    }
    anyhow::bail!("it is never cut off: {flood:?}")
}

/// Whether somebody who keeps within the limit is answered.
fn answers(to: SocketAddr) -> bool {
    let answered = Connection::open(to, TIMEOUT).and_then(|mut one| one.request("GET", HOST, "/", &[]));
    answered.is_ok_and(|response| response.status == 200)
}

fn scrape(mesh: &Mesh) -> Result<Exposition> {
    let node = mesh.lab.node(NODE)?;
    Exposition::parse(&node.in_netns(|| get(METRICS, "localhost", "/metrics", TIMEOUT))??.text())
}

fn sluice(mesh: &Mesh, arguments: &[&str]) -> Result<String> {
    let binary = AgentOptions::new(&mesh.config)?.binary;
    exec::stdout(mesh.lab.node(NODE)?.command(&binary)?.args(arguments))
}

#[test]
fn a_flood_ends_in_the_kernel_and_others_go_on() -> Result<()> {
    if unprivileged("a_flood_ends_in_the_kernel_and_others_go_on") {
        return Ok(());
    }
    let (mesh, to) = up()?;
    let other = mesh.lab.node(OTHER)?;
    wait_for("the Gateway to answer", LIMIT, || other.in_netns(|| answers(to)).unwrap_or_default())?;
    // Within the limit: fifty each second.
    let plan = Plan { address: to, host: HOST.to_owned(), paths: vec!["/".to_owned()], rate: 20 };
    let load = Load::start(&other.netns(), &plan)?;
    let flooded = mesh.lab.underlay().enter(|| flood(to))??;
    load.wait_requests(40, LIMIT)?;
    let report = load.stop()?;
    let failed: Vec<_> = report.failures().map(|sample| format!("{:?}", sample.outcome)).collect();
    ensure!(failed.is_empty(), "another client's requests failed: {failed:?}");
    ensure!(flooded.late < Duration::from_secs(1), "cut off too late: {flooded:?}");
    ensure!(flooded.admitted >= 50 && flooded.refused >= AFTER, "{flooded:?}");
    println!("{flooded:?}; of the other client: p99 {:?}", report.percentile(99));

    // Everybody says so while it lasts.
    let said = sluice(&mesh, &["why", &WORLD.v4.to_string(), &to.to_string()])?;
    ensure!(said.contains("pushed_down") || said.contains("pushed down"), "why: {said}");
    let events = ["observe", "--verdict", "pushed_down", "--last", "1000", "-o", "json"];
    wait_for("the drops to be told", LIMIT, || {
        // On a machine that stalls the flood may have ended by itself in the very moment.
        let _ = mesh.lab.underlay().enter(|| Connection::open(to, Duration::from_millis(50)));
        sluice(&mesh, &events).is_ok_and(|seen| seen.contains("pushed_down"))
    })?;
    let shown: Value = serde_json::from_str(&sluice(&mesh, &["limits", "-o", "json"])?)?;
    // Told again for as long as it went on.
    ensure!(shown["limits"][0]["pushed_down"].as_u64() >= Some(1), "limits: {shown}");
    let metrics = scrape(&mesh)?;
    let limit = [("policy", "infra/calm"), ("limit", "each")];
    ensure!(metrics.sum("sluice_rate_limit_pushed_down_total", &limit) > 0.5, "no metric");
    ensure!(metrics.sum("sluice_guard_packets_total", &[("reason", "pushed_down")]) > 0.5, "not the guard");

    // Nothing of it reaches the agent any more, until its time is over.
    wait_for("its time to be over", LIMIT, || {
        let again = mesh.lab.underlay().enter(|| Connection::open(to, BRIEF)?.request("GET", HOST, "/", &[]));
        again.is_ok_and(|answered| answered.is_ok_and(|response| response.status == 200))
    })
}

#[test]
fn pods_are_never_pushed_down() -> Result<()> {
    if unprivileged("pods_are_never_pushed_down") {
        return Ok(());
    }
    let client = PodSpec::new("client", NODE);
    let web = PodSpec::new("web-a", NODE).label("app", "web").runs(Program::Http { port: 8080 });
    let topology =
        Topology::with_nodes(1).pod(client).pod(web).service(ServiceSpec::new("web").port("http", 80, 8080));
    let lab = Lab::for_test("push_down_pods", topology)?;
    let config = lab.directory().join("config");
    lab.write_documents(&config)?;
    let mut mesh = Mesh { agents: Vec::new(), lab, config };
    let on_service = limit().replace("namespace: infra", "namespace: default").replace(
        "{group: gateway.networking.k8s.io, kind: Gateway, name: edge}",
        "{kind: Service, name: web}",
    );
    mesh.write("limit.yaml", &on_service)?;
    let options = AgentOptions::new(&mesh.config)?.with(["--guard", "eth0"]);
    mesh.agents.push(mesh.lab.node(NODE)?.start_agent(&options)?);
    let to = SocketAddr::new(mesh.lab.cluster_ip("web")?.v4.into(), 80);
    let refused = mesh.lab.pod("client")?.in_netns(|| -> Result<u32> {
        let (mut connection, mut refused) = (Connection::open(to, TIMEOUT)?, 0);
        for _ in 0..400 {
            refused += u32::from(connection.request("GET", "web", "/", &[])?.status == 429);
        }
        Ok(refused)
    })??;
    ensure!(refused > AFTER, "{refused}");
    let shown: Value = serde_json::from_str(&sluice(&mesh, &["limits", "-o", "json"])?)?;
    ensure!(shown["limits"][0]["pushed_down"] == 0, "{shown}");
    Ok(())
}
