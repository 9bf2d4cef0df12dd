//! Three nodes with an agent each, a fourth with Redis, a service that is really asked, and a large table beside it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use agent::cluster::{DocumentWrite, RedisOptions, RedisStore, Store, Trust, Written};
use anyhow::{Context, Result, bail, ensure};
use lab::load::{Load, Plan};
use lab::store::ClusterStore;
use lab::{Agent, AgentOptions, Lab, PodSpec, Program, ServiceSpec, Topology, built_binary, exec};
use nix::sched::{CloneFlags, setns};
use tokio::runtime::Runtime;

use super::cores::{Cores, Machine};
use super::documents::Documents;
use super::watcher::Watcher;

/// The nodes with agents.
pub const NODES: [&str; 3] = ["node1", "node2", "node3"];
/// The cluster's name.
pub const CLUSTER: &str = "bench";
/// The node with Redis.
const STORE: &str = "node4";
/// The service that is really asked.
const HOST: &str = "web";
/// Documents that one write has while the table is made.
const BATCH: usize = 600;
/// Nothing takes longer.
pub const LIMIT: Duration = Duration::from_mins(1);

/// How a site is set up.
#[derive(Debug, Clone)]
pub struct Plans {
    /// The agent.
    pub binary: PathBuf,
    /// What is in the table.
    pub documents: Documents,
    /// The life of the lease.
    pub ttl: &'static str,
    /// Whether the node with the requests has a processor for itself.
    pub apart: bool,
}

/// The cluster. Everything in it ends with it.
pub struct Site {
    watchers: BTreeMap<&'static str, Watcher>,
    agents: BTreeMap<&'static str, Agent>,
    options: BTreeMap<&'static str, AgentOptions>,
    client: RedisStore,
    /// Where whoever talks to Redis runs.
    pub runtime: Runtime,
    /// Redis.
    pub redis: ClusterStore,
    /// Where it is.
    pub lab: Lab,
    /// What is in the table.
    pub documents: Documents,
    /// How long it took to write all documents, and until all agents had them.
    pub took: (Duration, Duration),
    /// Where the node with the requests is apart from the others.
    machine: Option<Machine>,
}

fn topology() -> Topology {
    let server = |name: &str, node: &str| {
        PodSpec::new(name, node).label("app", HOST).runs(Program::Http { port: 8080 })
    };
    let clients = NODES.iter().map(|node| PodSpec::new(&format!("client-{node}"), node));
    let pods = clients.chain([server("web-a", "node1"), server("web-b", "node2")]);
    let topology = pods.fold(Topology::with_nodes(4), Topology::pod);
    topology.service(ServiceSpec::new(HOST).port("http", 80, 8080))
}

impl Site {
    /// Everything running, and the table in force on all nodes.
    pub fn up(plans: &Plans) -> Result<Self> {
        let machine = plans.apart.then(Machine::look).transpose()?;
        let enter = |cores| machine.as_ref().map_or(Ok(()), |machine| machine.enter(cores));
        enter(Cores::First)?;
        let lab = Lab::for_test("bench", topology())?;
        enter(Cores::Others)?;
        let redis = ClusterStore::start(&lab, STORE)?;
        let runtime = runtime(&lab)?;
        let options = RedisOptions::new(redis.url(), CLUSTER);
        let connect = move || RedisStore::connect(options);
        let client = runtime.block_on(runtime.spawn(async move { connect() }))??;
        let mut site = Self {
            watchers: BTreeMap::new(),
            agents: BTreeMap::new(),
            options: BTreeMap::new(),
            client,
            runtime,
            redis,
            lab,
            documents: plans.documents,
            took: Default::default(),
            machine,
        };
        for node in NODES {
            let options = site.agent_options(node, plans)?;
            site.options.insert(node, options);
        }
        site.write_all()?;
        for node in NODES {
            site.start_agent(node)?;
            let watcher = Watcher::start(node, &site.lab.node(node)?.netns())?;
            site.watchers.insert(node, watcher);
        }
        let begin = Instant::now();
        let revision = site.write(&[site.documents.slice(0, |nth| nth != 0)])?;
        site.wait_revision(begin, revision)?;
        site.took.1 = begin.elapsed();
        Ok(site)
    }

    fn agent_options(&self, node: &str, plans: &Plans) -> Result<AgentOptions> {
        let state = self.state_of(node).display().to_string();
        let options = AgentOptions::clustered(self.redis.url())?;
        // Documents are written past `sluice apply`, which alone seals them.
        let arguments =
            ["--cluster", CLUSTER, "--lease-ttl", plans.ttl, "--insecure-unsigned", "--state", &state];
        Ok(AgentOptions { binary: plans.binary.clone(), ..options }.with(arguments))
    }

    /// The documents of the lab by `sluice apply`, those of the large table by the store's client, as many a write as fit.
    fn write_all(&mut self) -> Result<()> {
        let directory = self.lab.directory().join("documents");
        self.lab.write_documents(&directory)?;
        let mut apply = self.lab.node("node1")?.command(built_binary()?)?;
        apply.env("SLUICE_REDIS", self.redis.url()).env("SLUICE_CLUSTER", CLUSTER);
        exec::run(apply.args(["apply", "-f"]).arg(&directory))?;
        let begin = Instant::now();
        let all: Vec<DocumentWrite> =
            (0..self.documents.0.services).flat_map(|service| self.documents.of(service)).collect();
        for batch in all.chunks(BATCH) {
            self.write(batch)?;
        }
        self.took.0 = begin.elapsed();
        Ok(())
    }

    /// Starts the agent of a node and waits until it is ready.
    pub fn start_agent(&mut self, node: &'static str) -> Result<()> {
        let agent = self.lab.node(node)?.start_agent(&self.options[node])?;
        if let Some(machine) = self.machine.as_ref().filter(|_| node == NODES[0]) {
            machine.give(agent.pid(), Cores::First)?;
        }
        self.agents.insert(node, agent);
        Ok(())
    }

    /// Takes the agent of a node, to end it in one way or another.
    pub fn take_agent(&mut self, node: &str) -> Result<Agent> {
        self.agents.remove(node).with_context(|| format!("no agent runs on {node}"))
    }

    /// The number of a node's agent's process.
    pub fn pid(&self, node: &str) -> Result<u32> {
        self.agents.get(node).map(Agent::pid).with_context(|| format!("no agent runs on {node}"))
    }

    /// Whoever looks at a node's agent.
    pub fn watcher(&self, node: &str) -> &Watcher {
        &self.watchers[node]
    }

    /// Writes documents; the revision at which they are.
    pub fn write(&self, writes: &[DocumentWrite]) -> Result<u64> {
        let (client, writes) = (self.client.clone(), writes.to_vec());
        let write = async move {
            for _ in 0..100 {
                match client.write(&writes).await {
                    Ok(Written::At(revision)) => return Ok(revision),
                    Ok(Written::Conflict(ids)) => bail!("somebody else writes {ids:?}"),
                    // The client begins to connect when it is made.
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
            client.write(&writes).await?;
            bail!("the store took a document very late")
        };
        self.runtime.block_on(self.runtime.spawn(write))?
    }

    /// Waits until all agents that run have a table of that revision; when the last of them had.
    pub fn wait_revision(&self, since: Instant, revision: u64) -> Result<Instant> {
        let seen = self
            .agents
            .keys()
            .map(|node| self.watchers[node].wait(since, LIMIT, |table| table.revision >= revision));
        let seen: Vec<Instant> = seen.collect::<Result<_>>()?;
        seen.into_iter().max().context("no agent runs")
    }

    fn state_of(&self, node: &str) -> PathBuf {
        self.lab.directory().join(format!("state-{node}"))
    }

    /// Waits until a node has a table on its disk, which a thread of low priority writes.
    pub fn wait_kept(&self, node: &str) -> Result<()> {
        let table = self.state_of(node).join("table");
        lab::wait_for("a table on the disk", LIMIT, || table.is_file())
    }

    /// Who leads, as some agent knows it, and its term.
    pub fn leader(&self) -> Result<(&'static str, u64)> {
        let find = || {
            let leads = |node: &&&'static str| self.watchers[**node].last().role == "leader";
            let node = *self.agents.keys().find(leads)?;
            let known = self.watchers[node].last().leader?;
            (known.node == node).then_some((node, known.epoch))
        };
        lab::wait::wait_until("somebody to lead", LIMIT, find)
    }

    /// How the simulated nodes reach the store, and whom they believe.
    pub fn access(&self) -> (RedisOptions, Trust) {
        (RedisOptions::new(self.redis.url(), CLUSTER), Trust::Unsigned)
    }

    /// Requests from the pod of a node.
    pub fn load(&self, node: &str, rate: u32) -> Result<Load> {
        let address = std::net::SocketAddr::new(self.lab.cluster_ip(HOST)?.v4.into(), 80);
        let plan = Plan { address, host: HOST.to_owned(), paths: vec!["/".to_owned()], rate };
        let enter = |cores| self.machine.as_ref().map_or(Ok(()), |machine| machine.enter(cores));
        enter(Cores::First)?;
        let load = Load::start(&self.lab.pod(&format!("client-{node}"))?.netns(), &plan);
        enter(Cores::Others)?;
        load
    }

    /// A field of what Redis says of itself.
    pub fn redis_info(&self, section: &str, field: &str) -> Result<f64> {
        let text = String::from_utf8(self.redis.ask(&self.lab, &["INFO", section])?)?;
        let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let value = line.with_context(|| format!("Redis says nothing of {field}"))?;
        value.trim().parse().with_context(|| format!("{field} is a number"))
    }

    /// No table that an agent had in force was lower than the one before.
    pub fn check_order(&self) -> Result<()> {
        for (node, watcher) in &self.watchers {
            for pair in watcher.seen().windows(2) {
                let order = |at: usize| (pair[at].table.epoch, pair[at].table.version);
                ensure!(order(0) < order(1), "{node} went from {:?} to {:?}", pair[0], pair[1]);
            }
        }
        Ok(())
    }
}

/// A runtime whose threads are where Redis is.
fn runtime(lab: &Lab) -> Result<Runtime> {
    let netns = lab.node(STORE)?.netns();
    netns.open().context("the namespace of Redis")?;
    let enter = move || {
        let entered = netns.open().map(|namespace| setns(namespace, CloneFlags::CLONE_NEWNET));
        assert!(matches!(entered, Ok(Ok(()))), "a namespace that is there can be entered: {entered:?}");
    };
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    Ok(builder.worker_threads(2).enable_all().on_thread_start(enter).build()?)
}
