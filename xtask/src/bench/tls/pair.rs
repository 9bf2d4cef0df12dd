//! Two nodes with a proxy each and mutual TLS between them: two agents, or two nginx. The client's pod is on one node, the
//! server's on the other; both proxies have one core, client and server the other.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::agent::{Agent, AgentOptions, METRICS};
use lab::http::get;
use lab::promtext::Exposition;
use lab::wait::{PATIENCE, wait_until};
use lab::{Lab, PodSpec, Program, ServiceSpec, Topology, exec};

use super::super::contender::Contender;
use super::super::load::{Counted, read_wrk};
use super::super::process::{self, bind, bind_threads};
use super::super::row::Metric;
use super::super::track::{CLIENT_CORE, PROXY_CORE, Server};
use super::material::Material;

/// Who is compared.
pub const ALL: [Contender; 2] = [Contender::Nginx, Contender::Sluice];

const NODES: [&str; 2] = ["node1", "node2"];
const CLIENT: &str = "client";
const SERVER: &str = "server";
/// The pod's port; the service's, declared to be HTTP and to be none.
const POD_PORT: u16 = 8080;
const HTTP: u16 = 80;
const OPAQUE: u16 = 81;
/// Where the nginx of either node listens.
const NGINX_PORT: u16 = 8600;
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// What the agents are told of the connections that they carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// That they are HTTP: each request is routed.
    Http,
    /// That they are bytes.
    Opaque,
}

/// A load of one measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// The page.
    pub path: &'static str,
    /// By which port of the service.
    pub port: Port,
    /// Connections at a time.
    pub connections: u32,
    /// How long.
    pub seconds: u32,
}

/// A pair of proxies that passes requests on.
pub struct Pair {
    contender: Contender,
    // The proxies first: they stop before the lab goes.
    agents: Vec<Agent>,
    servers: Vec<Server>,
    lab: Lab,
}

impl Pair {
    /// Lays the nodes and starts the proxies.
    pub fn start(contender: Contender, binary: &Path) -> Result<Self> {
        let server = PodSpec::new(SERVER, NODES[1]).label("app", SERVER);
        let server = server.label("networking.istio.io/tunnel", "http");
        let topology = Topology::with_nodes(2)
            .pod(PodSpec::new(CLIENT, NODES[0]))
            .pod(server.runs(Program::Http { port: POD_PORT }))
            .service(ServiceSpec::new(SERVER).port("http", HTTP, POD_PORT).port("tcp", OPAQUE, POD_PORT));
        let lab = Lab::for_test(&format!("bench_mtls_{}", contender.name()), topology)?;
        for (page, bytes) in [("100", 100), ("16k", 16 * 1024)] {
            let file = lab.pod(SERVER)?.directory().join("www/static").join(page);
            fs::write(file, vec![b'x'; bytes]).context("writing a page")?;
        }
        for pid in lab.pod(SERVER)?.cgroup().pids() {
            bind(pid, CLIENT_CORE)?;
        }
        let mut pair = Self { contender, agents: Vec::new(), servers: Vec::new(), lab };
        if contender == Contender::Nginx {
            pair.start_nginx()?;
        } else {
            pair.start_agents(binary)?;
        }
        for port in [Port::Http, Port::Opaque] {
            pair.wait(port)?;
        }
        Ok(pair)
    }

    fn start_agents(&mut self, binary: &Path) -> Result<()> {
        let config = self.lab.directory().join("config");
        self.lab.write_documents(&config)?;
        let ca = self.lab.directory().join("ca").display().to_string();
        let sluice = |words: &[&str]| exec::run(Command::new(binary).args(words)).map(drop);
        sluice(&["ca", "init", "--dir", &ca, "--trust-domain", "bench.test"])?;
        for name in NODES {
            let out = self.lab.directory().join(format!("ca-{name}")).display().to_string();
            sluice(&["ca", "node", "--dir", &ca, "--name", name, "--out", &out])?;
            let node = self.lab.node(name)?;
            let options = AgentOptions {
                binary: binary.to_owned(),
                config: Some(config.clone()),
                pod_interfaces: "pod-*".to_owned(),
                uplink: Some("eth0".to_owned()),
                arguments: Vec::new(),
            };
            let options = options.with([
                "--ca",
                &out,
                "--acceleration",
                "off",
                "--workers",
                "1",
                "--access-log",
                "off",
            ]);
            let agent = node.start_agent(&options)?;
            bind_threads(agent.pid(), PROXY_CORE)?;
            self.agents.push(agent);
        }
        Ok(())
    }

    fn start_nginx(&mut self) -> Result<()> {
        let directory = self.lab.directory();
        Material::make(&directory)?;
        let near = self.lab.node(NODES[0])?.address().v4;
        let far = SocketAddr::new(self.lab.node(NODES[1])?.address().v4.into(), NGINX_PORT);
        let pod = SocketAddr::new(self.lab.pod(SERVER)?.address().v4.into(), POD_PORT);
        let listens = [SocketAddr::new(near.into(), NGINX_PORT), far];
        let templates = [include_str!("../peers/mtls-near.conf"), include_str!("../peers/mtls-far.conf")];
        for (index, name) in ["near", "far"].into_iter().enumerate() {
            let text = templates[index]
                .replace("{{DIR}}", &directory.display().to_string())
                .replace("{{PORT}}", &listens[index].to_string())
                .replace("{{FAR}}", &[far, pod][index].to_string());
            let file = directory.join(format!("{name}.conf"));
            fs::write(&file, text).context("writing a configuration")?;
            let mut command = self.lab.node(NODES[index])?.command("taskset")?;
            command.args(["-c", &PROXY_CORE.to_string(), "nginx", "-e", "stderr", "-c"]).arg(file);
            command.arg("-p").arg(&directory);
            self.servers.push(Server::start(command, name, &directory)?);
        }
        Ok(())
    }

    fn wait(&mut self, port: Port) -> Result<()> {
        let address = self.address(port)?;
        wait_until(&format!("{} to answer at {address}", self.contender.name()), PATIENCE, || {
            if let Some(error) = self.servers.iter_mut().find_map(|server| server.check().err()) {
                return Some(Err(error));
            }
            let client = self.lab.pod(CLIENT).ok()?;
            let look = client.in_netns(|| get(address, SERVER, "/static/100", LOOK_TIMEOUT));
            matches!(look, Ok(Ok(answer)) if answer.status == 200 && answer.body.len() == 100)
                .then_some(Ok(()))
        })?
    }

    fn address(&self, port: Port) -> Result<SocketAddr> {
        let ip = |v4: std::net::Ipv4Addr| IpAddr::V4(v4);
        Ok(if self.contender == Contender::Nginx {
            SocketAddr::new(ip(self.lab.node(NODES[0])?.address().v4), NGINX_PORT)
        } else {
            let port = if port == Port::Http { HTTP } else { OPAQUE };
            SocketAddr::new(ip(self.lab.cluster_ip(SERVER)?.v4), port)
        })
    }

    /// The rate, and what both proxies spend.
    pub fn measure(&self, load: Load) -> Result<Vec<(Metric, f64)>> {
        let before = self.cpu()?;
        let counted = self.wrk(load)?;
        ensure!(counted.requests > 0.0, "no request was answered");
        let used = self.cpu()? - before;
        self.check_way()?;
        Ok(vec![(Metric::Rate, counted.per_second), (Metric::Cpu, used * 100_000.0 / counted.requests)])
    }

    /// Stops the agents as an operator would, so that they leave all that they leave at their end.
    pub fn stop(mut self) -> Result<()> {
        self.agents.drain(..).try_for_each(|agent| agent.terminate().map(drop))
    }

    fn wrk(&self, load: Load) -> Result<Counted> {
        let mut command = self.lab.pod(CLIENT)?.command("taskset")?;
        command.args(["-c", &CLIENT_CORE.to_string(), "wrk", "-t1", "--timeout", "10s"]);
        command.args([format!("-c{}", load.connections), format!("-d{}s", load.seconds)]);
        command.arg(format!("http://{}/static{}", self.address(load.port)?, load.path));
        read_wrk(&exec::stdout(&mut command)?)
    }

    fn cpu(&self) -> Result<f64> {
        let agents = self.agents.iter().map(Agent::pid);
        agents.chain(self.servers.iter().map(Server::pid)).map(process::cpu_seconds).sum()
    }

    /// The agents' own word that tunnels were made.
    fn check_way(&self) -> Result<()> {
        for (name, role) in NODES.into_iter().zip(["client", "server"]).take(self.agents.len()) {
            let node = self.lab.node(name)?;
            let text = node.in_netns(|| get(METRICS, "localhost", "/metrics", LOOK_TIMEOUT))??.text();
            let metrics = Exposition::parse(&text)?;
            let tunnels = metrics.sum("sluice_tls_handshakes_total", &[("outcome", "ok"), ("role", role)]);
            ensure!(tunnels >= 1.0, "no tunnel was made on {name}");
        }
        Ok(())
    }
}
