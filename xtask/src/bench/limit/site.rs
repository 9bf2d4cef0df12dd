//! Where limits of the cluster are measured: three nodes with an agent each and a server beside it, and a fourth with Redis. All agents
//! share the first core; Redis, the servers and the load share the other.

use std::fmt::Write;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::agent::{ADMIN, METRICS};
use lab::http::{Connection, get};
use lab::promtext::Exposition;
use lab::store::ClusterStore;
use lab::{Agent, AgentOptions, Lab, PodSpec, Program, ServiceSpec, Topology, exec, wait_for};
use serde_json::Value;

use super::super::process;
use super::super::track::PROXY_CORE;

/// The nodes with agents.
pub const NODES: [&str; 3] = ["node1", "node2", "node3"];
/// The node with Redis.
const STORE: &str = "node4";
const CLUSTER: &str = "bench";
/// Nothing that is waited for takes longer, and no answer.
const LIMIT: Duration = Duration::from_mins(1);
const TIMEOUT: Duration = Duration::from_secs(5);

/// A listener of every node, and the limit of what comes to it.
#[derive(Debug, Clone, Copy)]
pub struct Listener {
    /// What it and its limit are called.
    pub name: &'static str,
    /// Its port.
    pub port: u16,
    /// The limit without its name, in one line of YAML.
    pub limit: Option<&'static str>,
}

/// The cluster. Everything in it ends with it.
pub struct Site {
    agents: Vec<Agent>,
    redis: ClusterStore,
    /// Where it is.
    pub lab: Lab,
}

/// A Gateway without an address with these listeners, a route to the service `web`, and the limits.
pub fn documents(listeners: &[Listener]) -> String {
    const GATEWAY: &str = "group: gateway.networking.k8s.io, kind: Gateway, name: edge";
    let mut text = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: edge, namespace: default}\nspec:\n  \
                    gatewayClassName: sluice\n  listeners:\n"
        .to_owned();
    for Listener { name, port, .. } in listeners {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  - {{name: {name}, port: {port}, protocol: HTTP}}");
    }
    text += "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: edge, namespace: default}\nspec:\n  \
             parentRefs: [{name: edge}]\n  rules: [{backendRefs: [{name: web, port: 80}]}]\n";
    for Listener { name, limit, .. } in listeners {
        let Some(limit) = limit else { continue };
        let _ = write!(
            text,
            "---\napiVersion: sluice.dev/v1alpha1\nkind: RateLimit\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  \
             targetRefs: [{{{GATEWAY}, sectionName: {name}}}]\n  limits: [{{name: {name}, {limit}}}]\n"
        );
    }
    text
}

/// What every agent here is started with.
pub const ARGUMENTS: [&str; 6] = [
    "--workers",
    "1",
    "--access-log",
    "off",
    // Connections are not closed after so many requests, as with the peers.
    "--set",
    "gateway.http.connection.max-requests=off",
];

impl Site {
    /// Everything running, and all limits in force on all nodes.
    pub fn up(binary: &Path, listeners: &[Listener]) -> Result<Self> {
        let web = |node: &&str| {
            PodSpec::new(&format!("web-{node}"), node).label("app", "web").runs(Program::Http { port: 8080 })
        };
        let topology = NODES.iter().map(web).fold(Topology::with_nodes(4), Topology::pod);
        let lab =
            Lab::for_test("bench_limit", topology.service(ServiceSpec::new("web").port("http", 80, 8080)))?;
        let redis = ClusterStore::start(&lab, STORE)?;
        let directory = lab.directory().join("documents");
        lab.write_documents(&directory)?;
        fs::write(directory.join("edge.yaml"), documents(listeners)).context("writing documents")?;
        let mut apply = lab.node(NODES[0])?.command(binary)?;
        apply.env("SLUICE_REDIS", redis.url()).env("SLUICE_CLUSTER", CLUSTER);
        exec::run(apply.args(["apply", "-f"]).arg(&directory))?;
        let mut site = Self { agents: Vec::new(), redis, lab };
        for node in NODES {
            let state = site.lab.directory().join(format!("state-{node}")).display().to_string();
            let clustered = AgentOptions::clustered(site.redis.url())?;
            let options = AgentOptions { binary: binary.to_owned(), ..clustered }
                .with(["--cluster", CLUSTER, "--insecure-unsigned", "--state", &state])
                .with(ARGUMENTS);
            let agent = site.lab.node(node)?.start_agent(&options)?;
            process::bind_threads(agent.pid(), PROXY_CORE)?;
            site.agents.push(agent);
        }
        for node in NODES {
            site.wait_limits(node, listeners).with_context(|| format!("{node}: {:?}", site.limits(node)))?;
        }
        Ok(site)
    }

    fn wait_limits(&self, node: &str, listeners: &[Listener]) -> Result<()> {
        let count = listeners.iter().filter(|one| one.limit.is_some()).count();
        wait_for("the limits to be in force", LIMIT, || {
            self.limits(node).is_ok_and(|shown| {
                shown["limits"].as_array().is_some_and(|limits| limits.len() == count)
                    && shown["store"]["state"] == "up"
                    && shown["store"]["nodes"] == NODES.len()
            })
        })?;
        for listener in listeners {
            let to = self.address(node, listener.port)?;
            wait_for("a listener to answer", LIMIT, || {
                self.lab.underlay().enter(|| answers(to)).unwrap_or_default()
            })?;
        }
        Ok(())
    }

    fn limits(&self, node: &str) -> Result<Value> {
        let look = || get(ADMIN, "localhost", "/limits", TIMEOUT);
        Ok(serde_json::from_slice(&self.lab.node(node)?.in_netns(look)??.body)?)
    }

    /// Where a node listens.
    pub fn address(&self, node: &str, port: u16) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.lab.node(node)?.address().v4.into(), port))
    }

    /// Processor time of all agents.
    pub fn cpu(&self) -> Result<Duration> {
        self.agents.iter().map(|agent| process::cpu_time(agent.pid())).sum()
    }

    /// What all agents count of a limit.
    pub fn count(&self, metric: &str, limit: &str) -> Result<f64> {
        let one = |node: &&str| Ok(metrics(&self.lab, node)?.sum(metric, &[("limit", limit)]));
        NODES.iter().map(one).sum()
    }

    /// Scripts that Redis has run, the cluster's own with them.
    pub fn calls(&self) -> Result<f64> {
        Ok(scripts(&String::from_utf8(self.redis.ask(&self.lab, &["INFO", "commandstats"])?)?))
    }
}

/// The metrics of a node's agent.
pub fn metrics(lab: &Lab, node: &str) -> Result<Exposition> {
    let look = || get(METRICS, "localhost", "/metrics", TIMEOUT);
    Exposition::parse(&lab.node(node)?.in_netns(look)??.text())
}

/// Whether a request is let through.
pub fn answers(to: SocketAddr) -> bool {
    let answered = Connection::open(to, TIMEOUT).and_then(|mut one| one.get("bench", "/", &[]));
    answered.is_ok_and(|answer| answer.status == 200)
}

/// The calls of what runs scripts.
fn scripts(commandstats: &str) -> f64 {
    let calls = |line: &str| {
        let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        ["eval", "evalsha"].contains(&name).then(|| rest.split(',').next()?.parse::<f64>().ok())?
    };
    commandstats.lines().filter_map(calls).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_counted() {
        let text = "# Commandstats\r\ncmdstat_evalsha:calls=7,usec=9\r\ncmdstat_get:calls=5,usec=1\r\ncmdstat_eval:calls=2,usec=1\r\n";
        assert!((scripts(text) - 9.0).abs() < f64::EPSILON);
    }
}
