//! Connections that are open when a policy comes, where no hook of the packet's way would cut them: those to high ports, and
//! those that acceleration has joined.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use anyhow::{Context, Result, ensure};
use common::{LIMIT, Mesh};
use lab::agent::built_binary;
use lab::documents::replace_file;
use lab::{AgentOptions, Lab, PodSpec, Program, Topology, exec, unaccelerated, unprivileged, wait_for};

const PEER: &str = include_str!("policy_open/peer.py");
const NODE: &str = "node1";
/// Higher than the first port that a pod's kernel takes for connections of its own.
const HIGH: u16 = 40_001;
const LOW: u16 = 9000;
const JOINED: &str = "sluice_acceleration_connections_total{reason=\"joined\"}";
const DENY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec:\n  \
    selector: {matchLabels: {app: server}}\n  action: DENY\n  rules: [{from: [{source: {namespaces: [bad]}}]}]\n";

fn topology() -> Topology {
    let serve = |port: u16| {
        let argv = ["python3", "-c", PEER, "serve", &port.to_string()].map(str::to_owned).to_vec();
        Program::Server { argv, port }
    };
    let client = |name: &str, node: &str, namespace: &str| PodSpec {
        namespace: namespace.to_owned(),
        ..PodSpec::new(name, node)
    };
    Topology::with_nodes(2)
        .pod(client("friend", NODE, "good"))
        .pod(client("foe", NODE, "bad").runs(serve(LOW)))
        .pod(client("far-foe", "node2", "bad"))
        .pod(PodSpec::new("server", NODE).label("app", "server").runs(serve(HIGH)).runs(serve(LOW)))
}

/// A connection in another process's hands.
struct Talk {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    what: String,
}

impl Talk {
    /// Connects from a pod, or from the node itself.
    fn open(mesh: &Mesh, from: &str, to: (IpAddr, u16)) -> Result<Self> {
        Self::start(mesh, from, "talk", to)
    }

    /// Connects, or streams datagrams.
    fn start(mesh: &Mesh, from: &str, how: &str, to: (IpAddr, u16)) -> Result<Self> {
        let mut command = match from {
            NODE => mesh.lab.node(NODE)?.command("python3")?,
            pod => mesh.lab.pod(pod)?.command("python3")?,
        };
        command.args(["-c", PEER, how, &to.0.to_string(), &to.1.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("a client")?;
        let input = child.stdin.take().context("a client's input")?;
        let output = BufReader::new(child.stdout.take().context("a client's output")?);
        let mut talk = Self { child, input, output, what: format!("{from} at {}:{}", to.0, to.1) };
        let greeting = talk.line()?;
        ensure!(greeting == "h", "{}: greeted by {greeting:?}", talk.what);
        Ok(talk)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line).context("a client's line")?;
        Ok(line.trim().to_owned())
    }

    fn goes_on(&mut self) -> Result<()> {
        self.input.write_all(b"ask\n").context("asking a client")?;
        let said = self.line()?;
        ensure!(said == "x", "{}: {said:?} instead of an answer", self.what);
        Ok(())
    }

    /// Whether nothing of what it sends comes back any more.
    fn is_silent(&mut self) -> Result<bool> {
        self.input.write_all(b"ask\n").context("asking a client")?;
        Ok(self.line()? == "silence")
    }

    /// Whether it is cut, without a word of its own.
    fn is_reset(&mut self) -> Result<()> {
        self.input.write_all(b"wait\n").context("asking a client")?;
        let said = self.line()?;
        ensure!(said == "ConnectionResetError", "{}: {said:?} instead of a reset", self.what);
        Ok(())
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Who talks to whom before the policy: those that it is about to cut, and those that go on.
fn talks(mesh: &Mesh, ports: &[u16]) -> Result<(Vec<Talk>, Vec<Talk>)> {
    let (mut cut, mut kept) = (Vec::new(), Vec::new());
    for family in 0..2 {
        let server = mesh.pod_ip("server", family)?;
        for port in ports {
            for foe in ["foe", "far-foe"] {
                cut.push(Talk::open(mesh, foe, (server, *port))?);
            }
            for other in ["friend", NODE] {
                kept.push(Talk::open(mesh, other, (server, *port))?);
            }
        }
        // What the pod has begun itself.
        kept.push(Talk::open(mesh, "server", (mesh.pod_ip("foe", family)?, LOW))?);
    }
    cut.iter_mut().chain(&mut kept).try_for_each(Talk::goes_on)?;
    Ok((cut, kept))
}

#[test]
fn connections_to_high_ports_are_reset_when_a_policy_comes() -> Result<()> {
    if unprivileged("connections_to_high_ports_are_reset_when_a_policy_comes") {
        return Ok(());
    }
    let mut mesh = Mesh::up("highports", topology(), &[])?;
    let (mut cut, mut kept) = talks(&mesh, &[HIGH])?;
    mesh.write("policy.yaml", DENY)?;
    cut.iter_mut().try_for_each(Talk::is_reset)?;
    kept.iter_mut().try_for_each(Talk::goes_on)?;
    // An agent that comes to a pod whose connections nobody has judged.
    let agent = mesh.agents.remove(0);
    ensure!(agent.terminate()?.success(), "the agent failed at its stop");
    let (mut cut, mut more) = talks(&mesh, &[HIGH])?;
    let agent = mesh.start_agent(NODE)?;
    cut.iter_mut().try_for_each(Talk::is_reset)?;
    kept.iter_mut().chain(&mut more).try_for_each(Talk::goes_on)?;
    let log = agent.log();
    ensure!(log.contains("connections that policies refuse were reset"), "nothing was logged:\n{log}");
    let mut observe = mesh.lab.node(NODE)?.command(built_binary()?)?;
    let filter = ["observe", "-o", "json", "--kind", "drop", "--tier", "kernel", "--verdict", "refused"];
    let told = exec::stdout(observe.args(filter).args(["--policy", "default/p"]))?;
    ensure!(told.lines().count() == cut.len(), "{} were reset, and this is told:\n{told}", cut.len());
    Ok(())
}

#[test]
fn datagrams_under_way_are_cut_when_a_policy_comes() -> Result<()> {
    if unprivileged("datagrams_under_way_are_cut_when_a_policy_comes") {
        return Ok(());
    }
    let mesh = Mesh::up("udpopen", topology(), &[])?;
    let (mut cut, mut kept) = (Vec::new(), Vec::new());
    for family in 0..2 {
        let to = (mesh.pod_ip("server", family)?, LOW);
        for foe in ["foe", "far-foe"] {
            cut.push(Talk::start(&mesh, foe, "stream", to)?);
        }
        kept.push(Talk::start(&mesh, "friend", "stream", to)?);
        // What the pod has begun itself.
        kept.push(Talk::start(&mesh, "server", "stream", (mesh.pod_ip("foe", family)?, LOW))?);
    }
    mesh.write("policy.yaml", DENY)?;
    for talk in &mut cut {
        wait_for(&format!("{} to be cut", talk.what.clone()), LIMIT, || talk.is_silent().unwrap_or(false))?;
    }
    // For good, and nobody else.
    for talk in &mut cut {
        ensure!(talk.is_silent()?, "{} goes on", talk.what);
    }
    kept.iter_mut().try_for_each(Talk::goes_on)
}

#[test]
fn joined_connections_are_reset_when_a_policy_comes() -> Result<()> {
    if unprivileged("joined_connections_are_reset_when_a_policy_comes")
        || unaccelerated("joined_connections_are_reset_when_a_policy_comes")
    {
        return Ok(());
    }
    let lab = Lab::for_test("joinedopen", topology())?;
    let config = lab.directory().join("config");
    lab.write_documents(&config)?;
    let mesh = Mesh { agents: Vec::new(), lab, config };
    let node = mesh.lab.node(NODE)?;
    let cgroup = node.cgroup().path().display().to_string();
    let options = AgentOptions::new(&mesh.config)?.with(["--cgroup", &cgroup, "--acceleration", "on"]);
    let _agent = node.start_agent(&options)?;
    wait_for("all pods to take part", LIMIT, || {
        mesh.verb(NODE, "status").is_ok_and(|status| status["capture"]["acceleration"]["pods"] == 6)
    })
    .with_context(|| {
        format!("{:?}", mesh.verb(NODE, "status").map(|status| status["capture"]["acceleration"].clone()))
    })?;
    let (mut cut, mut kept) = talks(&mesh, &[HIGH, LOW])?;
    // In each family: the foe's and the friend's to two ports, and the server's own.
    let joined = mesh.metric(NODE, JOINED)?;
    ensure!(joined >= 10.0, "{joined} connections were joined");
    replace_file(&mesh.config.join("policy.yaml"), DENY)?;
    cut.iter_mut().try_for_each(Talk::is_reset)?;
    kept.iter_mut().try_for_each(Talk::goes_on)
}
