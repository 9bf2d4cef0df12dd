//! Where the socket rows are measured: a node with a client's and a server's pod, with an agent or without, each process bound
//! to a core, and the agent's own word on which way the traffic took.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::agent::{Agent, AgentOptions, METRICS};
use lab::exec;
use lab::http::get;
use lab::{Lab, PodSpec, Program, ServiceSpec, Topology};

use super::super::process::{bind, bind_threads};
use super::Setup;

const NODE: &str = "node1";
const CLIENT: &str = "client";
const SERVER: &str = "server";
/// The pod's ports.
const NGINX: u16 = 8080;
const PEER: u16 = 9000;
/// The service's ports: HTTP, nothing said, declared to be no HTTP.
const HTTP: u16 = 80;
const UNDECLARED: u16 = 9000;
const OPAQUE: u16 = 9001;
/// The core of the client, always.
const CLIENT_CORE: usize = 1;
/// The core of the agent; without one, of the server.
const OTHER_CORE: usize = 0;
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether there is an agent, and what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// No agent: the plain veth path.
    Absent,
    /// Without acceleration.
    Plain,
    /// With acceleration.
    Accelerating,
}

/// What takes the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The client dials the server's pod: no agent is on the way.
    Pod,
    /// The client dials a service that the agent takes.
    Agent,
    /// The client dials a service whose endpoint is chosen at `connect()`.
    Balanced,
}

/// Which of the server's programs is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// nginx.
    Nginx,
    /// The server of `peer.rs`.
    Peer,
}

/// The node.
pub struct Ground {
    // The agent first: it stops before the lab goes.
    agent: Option<Agent>,
    lab: Lab,
}

impl Ground {
    /// Lays it, with the server on a core of its own or on the client's.
    pub fn lay(setup: &Setup, name: &str, presence: Presence, beside: bool) -> Result<Self> {
        let own = std::env::current_exe().context("finding the running binary")?;
        let argv = [&own.display().to_string(), "bench", "peer", "serve", &PEER.to_string()];
        let argv = argv.map(str::to_owned).to_vec();
        let server = PodSpec::new(SERVER, NODE).label("app", SERVER);
        let service = ServiceSpec::new(SERVER)
            .port("http", HTTP, NGINX)
            .undeclared_port(UNDECLARED, PEER)
            .port("tcp", OPAQUE, PEER);
        let topology = Topology::with_nodes(1)
            .pod(PodSpec::new(CLIENT, NODE))
            .pod(server.runs(Program::Http { port: NGINX }).runs(Program::Server { argv, port: PEER }))
            .service(service);
        let lab = Lab::for_test(&format!("bench_{name}"), topology)?;
        let core = if beside { CLIENT_CORE } else { OTHER_CORE };
        for pid in lab.pod(SERVER)?.cgroup().pids() {
            bind(pid, core)?;
        }
        let mut ground = Self { agent: None, lab };
        if presence != Presence::Absent {
            ground.agent = Some(ground.start(setup, presence)?);
        }
        Ok(ground)
    }

    fn start(&self, setup: &Setup, presence: Presence) -> Result<Agent> {
        let config = self.lab.directory().join("config");
        self.lab.write_documents(&config)?;
        let node = self.lab.node(NODE)?;
        let cgroup = node.cgroup().path().display().to_string();
        let acceleration = if presence == Presence::Accelerating { "on" } else { "off" };
        let options = AgentOptions { binary: setup.binary.clone(), ..AgentOptions::new(config)? }.with([
            "--cgroup",
            &cgroup,
            "--acceleration",
            acceleration,
            "--workers",
            "1",
            "--access-log",
            "off",
        ]);
        let agent = node.start_agent(&options)?;
        bind_threads(agent.pid(), OTHER_CORE)?;
        Ok(agent)
    }

    /// Where the client finds a program of the server.
    pub fn address(&self, target: Target, way: Way) -> Result<SocketAddr> {
        let (ip, port) = match (way, target) {
            (Way::Pod, Target::Nginx) => (self.lab.pod(SERVER)?.address().v4, NGINX),
            (Way::Pod, Target::Peer) => (self.lab.pod(SERVER)?.address().v4, PEER),
            (Way::Agent, Target::Nginx) => (self.lab.cluster_ip(SERVER)?.v4, HTTP),
            (Way::Agent, Target::Peer) => (self.lab.cluster_ip(SERVER)?.v4, UNDECLARED),
            (Way::Balanced, _) => (self.lab.cluster_ip(SERVER)?.v4, OPAQUE),
        };
        Ok(SocketAddr::new(ip.into(), port))
    }

    /// What a program of the client's pod prints, on the client's core.
    pub fn client(&self, argv: &[String]) -> Result<String> {
        let mut command = self.lab.pod(CLIENT)?.command("taskset")?;
        exec::stdout(command.args(["-c", &CLIENT_CORE.to_string()]).args(argv))
    }

    /// What the agent counts under a name that begins so; 0 without an agent.
    pub fn count(&self, series: &str) -> Result<f64> {
        if self.agent.is_none() {
            return Ok(0.0);
        }
        let node = self.lab.node(NODE)?;
        let text = node.in_netns(|| get(METRICS, "localhost", "/metrics", LOOK_TIMEOUT))??.text();
        Ok(sum(&text, series))
    }
}

fn sum(exposition: &str, series: &str) -> f64 {
    let lines = exposition.lines().filter(|line| line.starts_with(series));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_summed_by_their_beginning() {
        let text = "# HELP a\na{reason=\"x\"} 3\na{reason=\"y\"} 4\nab 8\nb 5\n";
        for (series, expected) in [("a{", 7.0), ("a{reason=\"x\"}", 3.0), ("c", 0.0)] {
            assert!((sum(text, series) - expected).abs() < f64::EPSILON, "{series}");
        }
    }
}
