//! Three nodes with agents, pods and services, and a fourth with Redis; the documents are in the store.
#![allow(dead_code, reason = "every test binary uses its own part of this")]

use std::fs::File;
use std::iter::Sum;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::agent::{Agent, AgentOptions, built_binary};
use lab::http::get;
use lab::load::{Load, Plan};
use lab::store::{self, ClusterStore};
use lab::{Lab, PodSpec, Program, ServiceSpec, Topology, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// The nodes with agents.
pub const NODES: [&str; 3] = ["node1", "node2", "node3"];
/// The node with Redis.
const STORE: &str = "node4";
/// The service that is asked.
pub const HOST: &str = "web";
const CLUSTER: &str = "shop";
const TIMEOUT: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(30);

/// The cluster. Everything in it ends with it.
pub struct Site {
    agents: Vec<(String, Agent)>,
    redis: ClusterStore,
    pub lab: Lab,
}

fn topology() -> Topology {
    let server = |name: &str, app: &str, version: &str, node: &str| {
        PodSpec::new(name, node)
            .label("app", app)
            .label("version", version)
            .runs(Program::Http { port: 8080 })
    };
    let clients = NODES.iter().map(|node| PodSpec::new(&format!("client-{node}"), node));
    let pods = clients.chain([
        server("web-a", "web", "v1", "node1"),
        server("web-b", "web", "v1", "node3"),
        server("web-v2", "web-v2", "v2", "node2"),
    ]);
    let topology = pods.fold(Topology::with_nodes(4), Topology::pod);
    let service = |name: &str| ServiceSpec::new(name).port("http", 80, 8080);
    topology.service(service("web")).service(service("web-v2"))
}

/// A route that leads the service to a version.
pub fn service_to(version: &str) -> String {
    let name = if version == "v1" { "web" } else { "web-v2" };
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: web, namespace: default}}\nspec:\n  \
         parentRefs: [{{kind: Service, group: \"\", name: web}}]\n  rules:\n  - backendRefs:\n    - {{name: {name}, port: 80}}\n"
    )
}

/// Routes that nothing asks for.
pub fn many_routes(count: usize) -> String {
    let route = |number: usize| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r{number}, namespace: default}}\nspec:\n  \
             parentRefs: [{{kind: Service, group: \"\", name: web-v2}}]\n  rules:\n  - matches: [{{path: {{type: PathPrefix, value: /r{number}}}}}]\n    \
             backendRefs: [{{name: web-v2, port: 80}}]\n"
        )
    };
    (0..count).map(route).collect::<Vec<_>>().join("---\n")
}

impl Site {
    /// The lab with Redis, certificates and documents, without agents.
    pub fn up(name: &str) -> Result<Self> {
        let lab = Lab::for_test(name, topology())?;
        store::certify(&lab, &NODES)?;
        let redis = ClusterStore::start(&lab, STORE)?;
        let site = Self { agents: Vec::new(), redis, lab };
        let documents = site.lab.directory().join("documents");
        site.lab.write_documents(&documents)?;
        site.sluice("node1", &["apply", "-f", &documents.display().to_string()])?;
        Ok(site)
    }

    /// A path of this test's own.
    pub fn path(&self, name: &str) -> String {
        self.lab.directory().join(name).display().to_string()
    }

    /// The directory of a node's certificates.
    pub fn ca_of(&self, node: &str) -> String {
        store::certificates(&self.lab, node).display().to_string()
    }

    /// The URL of the store.
    pub fn redis_url(&self) -> String {
        self.redis.url().to_owned()
    }

    /// Starts an empty Redis and waits until it answers.
    pub fn start_redis(&mut self) -> Result<()> {
        self.redis.start_again(&self.lab)
    }

    /// Kills Redis; it has kept nothing.
    pub fn stop_redis(&mut self) -> Result<()> {
        self.redis.stop()
    }

    /// Starts Redis with what an earlier [`Site::dump`] wrote.
    pub fn restore_redis(&mut self) -> Result<()> {
        self.stop_redis()?;
        self.start_redis()
    }

    /// Writes what Redis holds now to the file that it reads when it starts.
    pub fn dump(&self) -> Result<()> {
        self.redis_cli(&["SAVE"]).map(drop)
    }

    /// A command to Redis.
    pub fn redis_cli(&self, arguments: &[&str]) -> Result<Vec<u8>> {
        self.redis.ask(&self.lab, arguments)
    }

    /// The name of a key of the store.
    pub fn key(name: &str) -> String {
        format!("{{sluice:{CLUSTER}}}:{name}")
    }

    /// The table as the store has it.
    pub fn stored_table(&self) -> Result<Vec<u8>> {
        let mut bytes = self.redis_cli(&["HGET", &Self::key("table"), "body"])?;
        ensure!(bytes.pop() == Some(b'\n') && bytes.len() > 100, "the store has no table");
        Ok(bytes)
    }

    /// Writes a table past all scripts, as whoever has the password could, and tells everybody.
    pub fn store_table(&self, bytes: &[u8]) -> Result<()> {
        let file = self.lab.directory().join("table.bin");
        std::fs::write(&file, bytes).context("the table")?;
        let mut command = self.redis.cli(&self.lab)?;
        let command = command.args(["-x", "HSET", &Self::key("table"), "body"]);
        let output = command.stdin(File::open(&file).context("the table")?).output().context("redis-cli")?;
        ensure!(output.status.success(), "redis-cli: {output:?}");
        self.redis_cli(&["HSET", &Self::key("table"), "digest", &format!("{:x}", bytes.len())])?;
        self.redis_cli(&["PUBLISH", &Self::key("events"), "table"]).map(drop)
    }

    /// The same table, signed by a node of another authority.
    pub fn signed_by_a_stranger(&self, table: &[u8]) -> Result<Vec<u8>> {
        let (ca, out) = (self.path("strange-ca"), self.path("strange-node"));
        self.run("node1", &["ca", "init", "--dir", &ca, "--trust-domain", "shop.example"], None)?;
        self.run("node1", &["ca", "node", "--dir", &ca, "--name", "node1", "--out", &out], None)?;
        let identity =
            agent::identity::NodeIdentity::load(&PathBuf::from(out), std::time::SystemTime::now())?;
        let sealed = agent::cluster::seal::Sealed::open(table)?;
        Ok([sealed.signed, &identity.sign(sealed.signed).to_bytes()].concat())
    }

    /// Starts a node's agent.
    pub fn start(&mut self, node: &str) -> Result<()> {
        let (ca, state) = (self.ca_of(node), self.path(&format!("state-{node}")));
        let options = AgentOptions::clustered(&self.redis_url())?.with([
            "--cluster",
            CLUSTER,
            "--lease-ttl",
            "2s",
            "--ca",
            &ca,
            "--state",
            &state,
        ]);
        let agent = self.lab.node(node)?.start_agent(&options)?;
        self.agents.push((node.to_owned(), agent));
        Ok(())
    }

    /// Starts all agents and waits until one of them leads and all know of each other.
    pub fn start_all(&mut self) -> Result<()> {
        for node in NODES {
            self.start(node)?;
        }
        for node in NODES {
            wait_for("the nodes to know each other", LIMIT, || {
                self.cluster(node).is_ok_and(|cluster| {
                    let nodes = cluster["nodes"].as_array().cloned().unwrap_or_default();
                    nodes.iter().filter(|node| node["alive"] == true).count() == NODES.len()
                        && cluster["leader"]["node"].is_string()
                })
            })
            .with_context(|| format!("{node}: {:?}", self.cluster(node)))?;
        }
        Ok(())
    }

    /// Cuts a node off from Redis, without a word to either, or joins it again.
    pub fn cut(&self, node: &str, cut: bool) -> Result<()> {
        let rules = if cut {
            format!(
                "add table inet cut; add chain inet cut out {{ type filter hook output priority 0; }}; add rule inet cut out tcp dport {} drop",
                lab::redis::PORT
            )
        } else {
            "delete table inet cut".to_owned()
        };
        lab::exec::stdout(self.lab.node(node)?.command("nft")?.arg(rules)).map(drop)
    }

    /// The directory that a node's agent keeps its state in.
    pub fn state_of(&self, node: &str) -> PathBuf {
        self.lab.directory().join(format!("state-{node}"))
    }

    fn take(&mut self, node: &str) -> Result<Agent> {
        let index = self.agents.iter().position(|(name, _)| name == node);
        Ok(self.agents.remove(index.with_context(|| format!("no agent runs on {node}"))?).1)
    }

    pub fn kill9(&mut self, node: &str) -> Result<()> {
        self.take(node)?.kill9()
    }

    pub fn terminate(&mut self, node: &str) -> Result<ExitStatus> {
        self.take(node)?.terminate()
    }

    pub fn signal(&self, node: &str, signal: Signal) -> Result<()> {
        let (_, agent) = self.agents.iter().find(|(name, _)| name == node).context("no agent runs there")?;
        kill(Pid::from_raw(i32::try_from(agent.pid())?), signal).context("signalling the agent")
    }

    /// What a node's agent knows of the cluster.
    pub fn cluster(&self, node: &str) -> Result<Value> {
        let text = self
            .lab
            .node(node)?
            .in_netns(|| get(lab::agent::ADMIN, "localhost", "/cluster", TIMEOUT))??
            .text();
        serde_json::from_str(&text).with_context(|| text.clone())
    }

    /// What a node's agent has logged.
    pub fn log(&self, node: &str) -> Result<String> {
        let agent = self.agents.iter().find(|(name, _)| name == node);
        Ok(agent.with_context(|| format!("no agent on {node}"))?.1.log())
    }

    /// The node that leads, as node1 knows it.
    pub fn leader(&self) -> Result<String> {
        let cluster = self.cluster("node1")?;
        Ok(cluster["leader"]["node"].as_str().with_context(|| format!("nobody leads: {cluster}"))?.to_owned())
    }

    fn status(&self, node: &str) -> Result<Value> {
        let text = self
            .lab
            .node(node)?
            .in_netns(|| get(lab::agent::ADMIN, "localhost", "/status", TIMEOUT))??
            .text();
        serde_json::from_str(&text).with_context(|| text.clone())
    }

    /// One metric of a node: the sum over all series whose line starts with `prefix`.
    pub fn metric<T: FromStr + Sum<T>>(&self, node: &str, prefix: &str) -> Result<T> {
        let ask = || get(lab::agent::METRICS, "localhost", "/metrics", TIMEOUT);
        let text = self.lab.node(node)?.in_netns(ask)??.text();
        let values: Vec<T> = text
            .lines()
            .filter(|line| line.starts_with(prefix))
            .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
            .collect();
        ensure!(!values.is_empty(), "{node} has no metric {prefix}");
        Ok(values.into_iter().sum())
    }

    /// The term of the table that a node has in force.
    pub fn epoch(&self, node: &str) -> Result<u64> {
        self.status(node)?["table"]["epoch"].as_u64().context("status has no epoch")
    }

    /// How many rules a node's table has.
    pub fn routes(&self, node: &str) -> Result<u64> {
        self.status(node)?["table"]["routes"].as_u64().context("status has no routes")
    }

    /// The endpoints of a service that a node gives new work.
    pub fn ready_endpoints(&self, node: &str, service: &str) -> Result<Vec<String>> {
        let text = self.sluice_plain(node, &["endpoints", "-o", "json"])?;
        let dump: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
        let endpoints = dump["endpoints"].as_array().with_context(|| text.clone())?;
        let of = |endpoint: &&Value| {
            endpoint["cluster"]
                .as_str()
                .is_some_and(|cluster| cluster.contains(&format!("default/{service}:")))
                && endpoint["ready"] == true
                // Each pod has an address of either family.
                && endpoint["address"].as_str().is_some_and(|address| address.starts_with("10."))
        };
        Ok(endpoints
            .iter()
            .filter(of)
            .filter_map(|endpoint| Some(endpoint["address"].as_str()?.to_owned()))
            .collect())
    }

    /// The table that an answer to a pod of a node names.
    pub fn answered_table(&self, node: &str) -> Result<String> {
        let to = (std::net::IpAddr::from(self.lab.cluster_ip(HOST)?.v4), 80).into();
        let pod = self.lab.pod(&format!("client-{node}"))?;
        let response = pod.in_netns(|| get(to, HOST, "/", TIMEOUT))??;
        Ok(response.header("x-table").unwrap_or_default().to_owned())
    }

    /// The version that answers a pod of a node.
    pub fn answer(&self, node: &str) -> Result<String> {
        let to = (std::net::IpAddr::from(self.lab.cluster_ip(HOST)?.v4), 80).into();
        let pod = self.lab.pod(&format!("client-{node}"))?;
        let response = pod.in_netns(|| get(to, HOST, "/", TIMEOUT))??;
        ensure!(response.status == 200, "{node}: {}", response.status);
        Ok(response.header("x-version").unwrap_or_default().to_owned())
    }

    /// Waits until pods of all nodes are answered so.
    pub fn wait_answers(&self, what: &str, version: &str) -> Result<()> {
        for node in NODES {
            wait_for(what, LIMIT, || self.answer(node).is_ok_and(|answer| answer == version))?;
        }
        Ok(())
    }

    /// Load from a pod of a node.
    pub fn load(&self, node: &str) -> Result<Running> {
        let address = (std::net::IpAddr::from(self.lab.cluster_ip(HOST)?.v4), 80).into();
        let plan = Plan { address, host: HOST.to_owned(), paths: vec!["/".to_owned()], rate: 100 };
        Ok(Running(Load::start(&self.lab.pod(&format!("client-{node}"))?.netns(), &plan)?))
    }

    /// Waits until a node has kept the table that it has in force, as a whole or as a change.
    pub fn wait_kept(&self, node: &str) -> Result<()> {
        let version = self.status(node)?["table"]["version"].as_u64().context("no version")?;
        let has_it = |file: &str| {
            let bytes = std::fs::read(self.state_of(node).join(file)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).contains(&format!("\"version\":{version}}}"))
        };
        let kept = || has_it("table") || has_it("changes");
        wait_for("the table to be kept", LIMIT, kept)
    }

    /// A verb that talks to the store, in a node. It must succeed.
    pub fn sluice(&self, node: &str, arguments: &[&str]) -> Result<String> {
        self.run(node, arguments, Some(String::new()))
    }

    /// Likewise, with something on its standard input.
    pub fn sluice_with(&self, node: &str, arguments: &[&str], input: String) -> Result<String> {
        self.run(node, arguments, Some(input))
    }

    /// A verb that asks a node's agent.
    pub fn sluice_plain(&self, node: &str, arguments: &[&str]) -> Result<String> {
        self.run(node, arguments, None)
    }

    fn run(&self, node: &str, arguments: &[&str], input: Option<String>) -> Result<String> {
        let store = input.is_some();
        let output = self.output(
            node,
            arguments,
            &input.unwrap_or_default(),
            store.then(|| self.redis_url()).as_deref(),
        )?;
        ensure!(output.status.success(), "sluice {arguments:?}: {}", both(&output));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Likewise; its exit code, and all that it said.
    pub fn try_sluice_with(&self, node: &str, arguments: &[&str], input: &str) -> Result<(i32, String)> {
        let output = self.output(node, arguments, input, Some(&self.redis_url()))?;
        Ok((output.status.code().context("it was killed")?, both(&output)))
    }

    /// Likewise, by somebody who is no operator.
    pub fn try_unsealed(&self, node: &str, arguments: &[&str], input: &str) -> Result<(i32, String)> {
        let mut command = self.command(node, arguments, Some(&self.redis_url()))?;
        command.env_remove("SLUICE_CA");
        let output = finish(command, input)?;
        Ok((output.status.code().context("it was killed")?, both(&output)))
    }

    /// A verb with another store.
    pub fn try_sluice_at(&self, redis: &str, node: &str, arguments: &[&str]) -> Result<(i32, String)> {
        let output = self.output(node, arguments, "", Some(redis))?;
        Ok((output.status.code().context("it was killed")?, both(&output)))
    }

    /// A verb that goes on until it is told to stop; what it says is in a file of this test's own.
    pub fn start_verb(&self, node: &str, arguments: &[&str], said: &str) -> Result<Verb> {
        let file = File::create(self.path(said)).context("a file for what it says")?;
        let mut command = self.command(node, arguments, Some(&self.redis_url()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        Ok(Verb(command.spawn().context("starting sluice")?))
    }

    /// An agent that should not start.
    pub fn try_agent(&self, node: &str, arguments: &[&str], more: &[&str]) -> Result<(i32, String)> {
        let all: Vec<&str> = [&["agent", "--node", node, "--capture", "off"], arguments, more].concat();
        let output = self.output(node, &all, "", None)?;
        Ok((output.status.code().context("it was killed")?, both(&output)))
    }

    fn output(&self, node: &str, arguments: &[&str], input: &str, redis: Option<&str>) -> Result<Output> {
        finish(self.command(node, arguments, redis)?, input)
    }

    fn command(&self, node: &str, arguments: &[&str], redis: Option<&str>) -> Result<Command> {
        let mut command: Command = self.lab.node(node)?.command(built_binary()?)?;
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(redis) = redis {
            command.env("SLUICE_REDIS", redis).env("SLUICE_CLUSTER", CLUSTER);
            command.env("SLUICE_CA", store::operator(&self.lab));
        }
        Ok(command)
    }
}

/// Runs a command with something on its standard input.
fn finish(mut command: Command, input: &str) -> Result<Output> {
    let mut child = command.spawn().context("starting sluice")?;
    let mut stdin = child.stdin.take().context("its standard input")?;
    if let Err(error) = std::io::Write::write_all(&mut stdin, input.as_bytes())
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        bail!("writing to sluice: {error}");
    }
    drop(stdin);
    child.wait_with_output().context("waiting for sluice")
}

fn both(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// Load that runs.
pub struct Running(Load);

impl Running {
    /// Ends it; what failed.
    pub fn stop(self) -> Result<Vec<String>> {
        self.0.wait_requests(20, LIMIT)?;
        let report = self.0.stop()?;
        Ok(report.failures().map(|sample| format!("{:?}", sample.outcome)).collect())
    }
}

/// A verb that runs.
pub struct Verb(Child);

impl Verb {
    /// Tells it to stop and waits for it.
    pub fn terminate(mut self) -> Result<ExitStatus> {
        kill(Pid::from_raw(i32::try_from(self.0.id())?), Signal::SIGTERM)?;
        self.0.wait().context("waiting for sluice")
    }
}

impl Drop for Verb {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
