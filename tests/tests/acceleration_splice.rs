//! Opaque connections through the agent whose payload goes past it once it has caught up: the bytes, the ends, and who is woken.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Stdio};

use anyhow::{Context, Result, ensure};
use common::{LIMIT, Mesh};
use lab::emulated::transfer;
use lab::{PodSpec, Program, ServiceSpec, Topology, exec, unaccelerated, unprivileged, wait_for};

const PEER: &str = include_str!("acceleration/peer.py");
const NODE: &str = "node1";
const PORT: u16 = 9000;
/// Nothing is said of what is spoken there, so that connections go through the agent and are not balanced in the kernel.
const SERVICE: u16 = 9001;
/// The same server, but for a greeting that it says before the client says anything.
const GREETING_PORT: u16 = 9002;
const GREETING_SERVICE: u16 = 9003;
const REDIRECTED: &str = "sluice_acceleration_messages_total{reason=\"redirected\"}";
const PAST: &str = "sluice_acceleration_messages_total{reason=\"bridged\"}";
const BRIDGED: &str = "sluice_acceleration_bridges_total{reason=\"bridged\"}";
const NOW: &str = "sluice_acceleration_bridged ";
const FLOODED: &str = "sluice_acceleration_faults_total{reason=\"flooded\"}";
const SOCKETS: &str = "sluice_acceleration_sockets";

/// What a flood has in a guest: more than receivers may hold.
const FLOOD: usize = 256 << 20;

fn up(name: &str) -> Result<Mesh> {
    let server = |how: &str, port: u16| {
        let argv = ["python3", "-c", PEER, how, &port.to_string()].map(str::to_owned).to_vec();
        Program::Server { argv, port }
    };
    let pod = PodSpec::new("server", NODE).label("app", "peer");
    let peer = ServiceSpec::new("peer").undeclared_port(SERVICE, PORT);
    let topology = Topology::with_nodes(1)
        .pod(PodSpec::new("client", NODE))
        .pod(pod.runs(server("serve", PORT)).runs(server("greet", GREETING_PORT)))
        .service(peer.undeclared_port(GREETING_SERVICE, GREETING_PORT));
    Mesh::accelerated(name, topology, NODE)
}

fn arguments(what: &str, to: SocketAddr, size: usize) -> [String; 6] {
    let (host, port) = (to.ip().to_string(), to.port().to_string());
    ["-c".to_owned(), PEER.to_owned(), what.to_owned(), host, port, size.to_string()]
}

/// What the client says of a case.
fn case(mesh: &Mesh, what: &str, to: SocketAddr, size: usize) -> Result<String> {
    let mut command = mesh.lab.pod("client")?.command("python3")?;
    Ok(exec::stdout(command.args(arguments(what, to, size)))?.trim().to_owned())
}

/// What the server has found out on another connection; asked directly, which needs no agent.
fn kept(mesh: &Mesh) -> Result<String> {
    case(mesh, "kept", SocketAddr::new(mesh.pod_ip("server", 0)?, PORT), 0)
}

/// What the agent counts of acceleration, for whoever looks for a reason.
fn counts(mesh: &Mesh) -> String {
    let series =
        ["connections_total", "messages_total", "bridges_total", "bridged", "sockets", "faults_total"];
    let count = |series| {
        let prefix = format!("sluice_acceleration_{series}");
        mesh.metrics(NODE, &prefix).unwrap_or_else(|error| vec![format!("{prefix}: {error}")])
    };
    series.into_iter().flat_map(count).collect::<Vec<_>>().join("\n")
}

/// A case that says `said`, after which so many directions went past the agent.
fn bridges(mesh: &Mesh, (what, said): (&str, &str), to: SocketAddr, size: usize) -> Result<()> {
    let before = (mesh.metric(NODE, BRIDGED)?, mesh.metric(NODE, PAST)?);
    let found = case(mesh, what, to, size).with_context(|| format!("{what} of {size} with {to}"))?;
    ensure!(found == said, "{what} of {size} with {to}: {found:?} instead of {said:?}");
    wait_for("both directions to have gone past the agent", LIMIT, || {
        mesh.metric(NODE, BRIDGED).is_ok_and(|now| now - before.0 > 1.5)
    })
    .with_context(|| format!("{what} of {size} with {to}\n{}", counts(mesh)))?;
    let past = mesh.metric(NODE, PAST)? - before.1;
    ensure!(past > 40.0, "{what} of {size} with {to}: {past} messages went past the agent");
    Ok(())
}

/// All is over: no socket is joined, nothing is bridged.
fn wait_over(mesh: &Mesh) -> Result<()> {
    wait_for("the sockets to leave", LIMIT, || {
        mesh.metric(NODE, SOCKETS).is_ok_and(|sockets| sockets < 0.5)
    })?;
    wait_for("the bridges to go", LIMIT, || mesh.metric(NODE, NOW).is_ok_and(|bridged| bridged < 0.5))
}

/// A client that waits for lines of standard input.
struct Client {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Client {
    fn start(mesh: &Mesh, what: &str, to: SocketAddr, size: usize) -> Result<Self> {
        let mut command = mesh.lab.pod("client")?.command("python3")?;
        command.args(arguments(what, to, size)).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("a client")?;
        let output = BufReader::new(child.stdout.take().context("a client's output")?);
        Ok(Self { child, output })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line).context("a client's line")?;
        Ok(line.trim().to_owned())
    }

    fn go(&mut self) -> Result<()> {
        self.child.stdin.as_mut().context("a client's input")?.write_all(b"go\n").context("waking a client")
    }

    fn succeeds(mut self) -> Result<()> {
        ensure!(self.child.wait().context("a client's end")?.success(), "the client failed");
        Ok(())
    }
}

#[test]
fn every_byte_arrives_once_and_in_order() -> Result<()> {
    if unprivileged("every_byte_arrives_once_and_in_order")
        || unaccelerated("every_byte_arrives_once_and_in_order")
    {
        return Ok(());
    }
    let mesh = up("splice_bytes")?;
    for size in [1, 2000, 300_000, 5_000_000] {
        let said = format!("{size} bytes each way");
        for family in 0..2 {
            let to = mesh.service("peer", family, SERVICE)?;
            bridges(&mesh, ("chat", &said), to, size)?;
            bridges(&mesh, ("first", &said), to, size)?;
        }
    }
    let large = transfer(64 << 20, 16 << 20);
    bridges(&mesh, ("chat", &format!("{large} bytes each way")), mesh.service("peer", 0, SERVICE)?, large)?;
    wait_over(&mesh)
}

#[test]
fn a_server_that_speaks_first_is_spliced_too() -> Result<()> {
    if unprivileged("a_server_that_speaks_first_is_spliced_too")
        || unaccelerated("a_server_that_speaks_first_is_spliced_too")
    {
        return Ok(());
    }
    let mesh = up("splice_greets")?;
    for family in 0..2 {
        let to = mesh.service("peer", family, GREETING_SERVICE)?;
        bridges(&mesh, ("greeted-chat", "300000 bytes each way"), to, 300_000)?;
        bridges(&mesh, ("greeted-first", "2000 bytes each way"), to, 2000)?;
    }
    wait_over(&mesh)
}

#[test]
fn many_connections_keep_their_bytes_apart() -> Result<()> {
    if unprivileged("many_connections_keep_their_bytes_apart")
        || unaccelerated("many_connections_keep_their_bytes_apart")
    {
        return Ok(());
    }
    let mesh = up("splice_many")?;
    let (size, before) = (200_000, mesh.metric(NODE, BRIDGED)?);
    let said = case(&mesh, "chats", mesh.service("peer", 0, SERVICE)?, size)?;
    ensure!(said == format!("{size} bytes each way"), "{said}");
    let bridged = mesh.metric(NODE, BRIDGED)? - before;
    ensure!(bridged > 100.0, "only {bridged} of 130 directions went past the agent");
    wait_over(&mesh)
}

#[test]
fn ends_are_as_with_tcp() -> Result<()> {
    if unprivileged("ends_are_as_with_tcp") || unaccelerated("ends_are_as_with_tcp") {
        return Ok(());
    }
    let mesh = up("splice_ends")?;
    for family in 0..2 {
        let to = mesh.service("peer", family, SERVICE)?;
        bridges(&mesh, ("close", "True"), to, 3_000_000)?;
        bridges(&mesh, ("back", "True"), to, 3_000_000)?;
        ensure!(kept(&mesh)? == "True", "the server got other bytes after it had closed its side");
        bridges(&mesh, ("cut", "reset"), to, 0)?;
        let said = kept(&mesh)?;
        ensure!(said == "ECONNRESET", "the client's reset was {said} to the server");
        bridges(&mesh, ("slain", "ECONNRESET"), to, 0)?;
    }
    wait_over(&mesh)
}

#[test]
fn payload_does_not_wake_the_agent_and_is_counted() -> Result<()> {
    if unprivileged("payload_does_not_wake_the_agent_and_is_counted")
        || unaccelerated("payload_does_not_wake_the_agent_and_is_counted")
    {
        return Ok(());
    }
    let mesh = up("splice_asleep")?;
    let rounds = 5000u32;
    let bytes = ["istio_tcp_received_bytes_total", "istio_tcp_sent_bytes_total"];
    let counted = || Ok::<_, anyhow::Error>([mesh.metric(NODE, bytes[0])?, mesh.metric(NODE, bytes[1])?]);
    let counted_before = counted()?;
    let mut client = Client::start(&mesh, "rounds", mesh.service("peer", 0, SERVICE)?, rounds as usize)?;
    let line = client.line()?;
    ensure!(line == "ready", "{line:?}");
    wait_for("both directions to go past the agent", LIMIT, || {
        mesh.metric(NODE, NOW).is_ok_and(|bridged| bridged > 1.5)
    })
    .with_context(|| counts(&mesh))?;
    let status = || Ok::<_, anyhow::Error>(mesh.verb(NODE, "status")?["capture"]["acceleration"].clone());
    wait_for("the status to say so", LIMIT, || status().is_ok_and(|status| status["bridged"] == 2))
        .with_context(|| format!("{:?}", status()))?;
    let before = (mesh.metric(NODE, PAST)?, mesh.metric(NODE, REDIRECTED)?, worker_switches(&mesh)?);
    client.go()?;
    let line = client.line()?;
    ensure!(line == "done", "{line:?}");
    let woken = worker_switches(&mesh)? - before.2;
    let (past, redirected) = (mesh.metric(NODE, PAST)? - before.0, mesh.metric(NODE, REDIRECTED)? - before.1);
    ensure!(past > 9999.5, "{past} of 10000 messages went past the agent");
    ensure!(redirected < 0.5, "{redirected} messages went to the agent");
    // A relayed round trip wakes a worker twice.
    ensure!(woken < 100, "the workers were woken {woken} times in {rounds} round trips");
    client.go()?;
    ensure!(client.line()? == "over", "the client's end");
    client.succeeds()?;
    // The client's first line, its first 50 pings and the others; the answers.
    let expected = [f64::from(u32::try_from("rounds 5000\n".len())? + 50 + rounds), f64::from(50 + rounds)];
    wait_for("the connection's record", LIMIT, || {
        counted()
            .is_ok_and(|now| (0..2).all(|way| (now[way] - counted_before[way] - expected[way]).abs() < 0.5))
    })
    .with_context(|| format!("{counted_before:?}, then {:?}, not {expected:?} more", counted()))?;
    wait_over(&mesh)
}

/// How often threads of the agent's workers went to sleep.
fn worker_switches(mesh: &Mesh) -> Result<u64> {
    let mut switches = 0;
    for task in std::fs::read_dir(format!("/proc/{}/task", mesh.agents[0].pid()))?.flatten() {
        let name = std::fs::read_to_string(task.path().join("comm"))?;
        if name.starts_with("worker-") {
            let status = std::fs::read_to_string(task.path().join("status"))?;
            let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches"));
            let count = line.and_then(|line| line.split_whitespace().nth(1)).context("no count")?;
            switches += count.parse::<u64>().context("a count")?;
        }
    }
    Ok(switches)
}

#[test]
fn ends_are_told_when_the_agent_is_killed() -> Result<()> {
    if unprivileged("ends_are_told_when_the_agent_is_killed")
        || unaccelerated("ends_are_told_when_the_agent_is_killed")
    {
        return Ok(());
    }
    let mut mesh = up("splice_killed")?;
    let mut clients = Vec::new();
    for family in [0, 1, 0, 1] {
        let mut client = Client::start(&mesh, "torn", mesh.service("peer", family, SERVICE)?, 0)?;
        ensure!(client.line()? == "going", "the client is not going");
        clients.push(client);
    }
    wait_for("all directions to go past the agent", LIMIT, || {
        mesh.metric(NODE, NOW).is_ok_and(|bridged| bridged > 7.5)
    })?;
    mesh.agents.remove(0).kill9()?;
    for mut client in clients {
        let line = client.line()?;
        ensure!(["an end in order", "ECONNRESET in order"].contains(&line.as_str()), "the client: {line}");
        client.succeeds()?;
        let line = kept(&mesh)?;
        ensure!(["an end in order", "ECONNRESET in order"].contains(&line.as_str()), "the server: {line}");
    }
    Ok(())
}

#[test]
fn a_flooded_server_is_led_back_to_tcp_through_the_agent() -> Result<()> {
    if unprivileged("a_flooded_server_is_led_back_to_tcp_through_the_agent")
        || unaccelerated("a_flooded_server_is_led_back_to_tcp_through_the_agent")
    {
        return Ok(());
    }
    let mesh = up("splice_flood")?;
    let size = transfer(1 << 30, FLOOD);
    let to = mesh.service("peer", 0, SERVICE)?;
    let mut client = Client::start(&mesh, "floods", to, size)?;
    let line = client.line()?;
    ensure!(line.starts_with("stopped at ") && !line.contains(&size.to_string()), "{line:?}");
    ensure!(mesh.metric(NODE, PAST)? > 1000.0, "the flood did not go past the agent");
    ensure!(mesh.metric(NODE, FLOODED)? > 0.5, "nothing was flooded after {line:?}");
    ensure!(case(&mesh, "go", to, 0)? == "ok", "the server does not answer");
    let line = client.line()?;
    ensure!(line == format!("{size} bytes"), "{line:?}");
    client.succeeds()?;
    let status = mesh.verb(NODE, "status")?["capture"]["acceleration"].clone();
    ensure!(status["withdrawn"] == 0, "{status}");
    wait_over(&mesh)
}

#[test]
fn a_flooded_server_that_splices_misses_nothing_unknowingly() -> Result<()> {
    if unprivileged("a_flooded_server_that_splices_misses_nothing_unknowingly")
        || unaccelerated("a_flooded_server_that_splices_misses_nothing_unknowingly")
    {
        return Ok(());
    }
    let mesh = up("splice_drowned")?;
    let said = case(&mesh, "drowns", mesh.service("peer", 0, SERVICE)?, transfer(1 << 30, FLOOD))?;
    ensure!(said == "told", "the sender was {said}");
    let said = case(&mesh, "drowned", SocketAddr::new(mesh.pod_ip("server", 0)?, PORT), 0)?;
    ensure!(said == "0 and ECONNABORTED", "the receiver got {said}");
    ensure!(mesh.metric(NODE, FLOODED)? > 0.5, "the metric does not say so");
    wait_over(&mesh)
}
