//! Joined connections whose bytes are not read: the pod is taken out of acceleration, which is told, and the node's memory for TCP is
//! not filled. No stream ever has a hole: a connection that cannot be led back is broken.

mod common;

use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use common::{LIMIT, Mesh};
use lab::documents::replace_file;
use lab::emulated::transfer;
use lab::{PodSpec, Program, ServiceSpec, Topology, exec, unaccelerated, unprivileged, wait_for};

const PEER: &str = include_str!("acceleration/peer.py");
const NODE: &str = "node1";
const PORT: u16 = 9000;
const JOINED: &str = "sluice_acceleration_connections_total{reason=\"joined\"}";
const OPTED_OUT: &str = "sluice_acceleration_connections_total{reason=\"opted_out\"}";
const STALLED: &str = "sluice_acceleration_faults_total{reason=\"stalled\"}";
const FLOODED: &str = "sluice_acceleration_faults_total{reason=\"flooded\"}";
const HELD_BACK: &str = "sluice_capture_packets_total{reason=\"held_back\"}";
const SOCKETS: &str = "sluice_acceleration_sockets";

/// What a flood has in a guest: more than receivers may hold.
const FLOOD: usize = 256 << 20;

fn accelerated(name: &str) -> Result<Mesh> {
    let argv = ["python3", "-c", PEER, "serve", &PORT.to_string()].map(str::to_owned).to_vec();
    let topology = Topology::with_nodes(1)
        .pod(PodSpec::new("client", NODE))
        .pod(PodSpec::new("server", NODE).label("app", "peer").runs(Program::Server { argv, port: PORT }))
        .pod(PodSpec::new("other", NODE))
        .service(ServiceSpec::new("peer").undeclared_port(PORT, PORT));
    Mesh::accelerated(name, topology, NODE)
}

fn arguments(mesh: &Mesh, what: &str, size: usize) -> Result<[String; 6]> {
    Ok(arguments_to(mesh.pod_ip("server", 0)?, what, size))
}

fn arguments_to(host: IpAddr, what: &str, size: usize) -> [String; 6] {
    let host = host.to_string();
    ["-c".to_owned(), PEER.to_owned(), what.to_owned(), host, PORT.to_string(), size.to_string()]
}

/// What a client in a pod says.
fn case(mesh: &Mesh, pod: &str, what: &str, size: usize) -> Result<String> {
    let mut command = mesh.lab.pod(pod)?.command("python3")?;
    Ok(exec::stdout(command.args(arguments(mesh, what, size)?))?.trim().to_owned())
}

/// A client in the pod `client`, at work.
fn start(mesh: &Mesh, what: &str, size: usize) -> Result<(Child, BufReader<std::process::ChildStdout>)> {
    start_with(mesh, &arguments(mesh, what, size)?)
}

fn start_with(mesh: &Mesh, arguments: &[String]) -> Result<(Child, BufReader<std::process::ChildStdout>)> {
    let mut command = mesh.lab.pod("client")?.command("python3")?;
    let mut child = command.args(arguments).stdout(Stdio::piped()).spawn().context("a client")?;
    let output = BufReader::new(child.stdout.take().context("its output")?);
    Ok((child, output))
}

/// Waits until one pod, of two addresses, takes no part any more.
fn wait_withdrawn(mesh: &Mesh) -> Result<()> {
    let withdrawn = || Ok::<_, anyhow::Error>(mesh.verb(NODE, "status")?["capture"]["acceleration"].clone());
    wait_for("a pod to be withdrawn", 2 * LIMIT, || withdrawn().is_ok_and(|status| status["withdrawn"] == 2))
        .with_context(|| format!("{:?}", withdrawn()))?;
    let status = withdrawn()?;
    ensure!(status["active"] == true && status["pods"] == 4, "the other pods take part no more: {status}");
    Ok(())
}

#[test]
fn a_pod_whose_connection_stalls_goes_back_to_tcp() -> Result<()> {
    if unprivileged("a_pod_whose_connection_stalls_goes_back_to_tcp")
        || unaccelerated("a_pod_whose_connection_stalls_goes_back_to_tcp")
    {
        return Ok(());
    }
    let mesh = accelerated("watch_stalled")?;
    let before = mesh.metric(NODE, JOINED)?;
    let (mut client, _output) = start(&mesh, "splice", 1000)?;
    wait_for("the connection to be joined", LIMIT, || {
        mesh.metric(NODE, JOINED).is_ok_and(|now| now > before + 0.5)
    })?;
    wait_withdrawn(&mesh)?;
    ensure!(mesh.metric(NODE, STALLED)? > 0.5, "the metric does not say so");
    let log = mesh.agents[0].log();
    let own = mesh.pod_ip("client", 0)?.to_string();
    ensure!(log.contains("are not read") && log.contains("stalled") && log.contains(&own), "{log}");
    client.kill().context("ending the client")?;
    client.wait().context("its end")?;

    let before = (mesh.metric(NODE, JOINED)?, mesh.metric(NODE, OPTED_OUT)?);
    let said = case(&mesh, "client", "splice", 1000)?;
    ensure!(said == "1000 spliced", "by TCP: {said}");
    ensure!((mesh.metric(NODE, JOINED)? - before.0).abs() < 0.5, "a new connection was joined");
    ensure!(mesh.metric(NODE, OPTED_OUT)? - before.1 > 0.5, "a new connection was not counted");
    // Others are what they were.
    let said = case(&mesh, "other", "swap", 1 << 20)?;
    ensure!(said == "1048576 bytes each way", "{said}");
    ensure!(mesh.metric(NODE, JOINED)? - before.0 > 0.5, "another pod's connection was not joined");
    Ok(())
}

#[test]
fn a_receiver_that_does_not_keep_up_stops_its_sender() -> Result<()> {
    if unprivileged("a_receiver_that_does_not_keep_up_stops_its_sender")
        || unaccelerated("a_receiver_that_does_not_keep_up_stops_its_sender")
    {
        return Ok(());
    }
    let mesh = accelerated("watch_flooded")?;
    let size = transfer(1 << 30, FLOOD);
    let (mut client, mut output) = start(&mesh, "flood", size)?;
    let mut line = String::new();
    output.read_line(&mut line).context("the client's first line")?;
    let sent = line.trim().strip_prefix("stopped at ").and_then(|number| number.parse().ok());
    let sent: usize = sent.with_context(|| format!("the client said {line:?}"))?;
    ensure!(sent < size, "{sent} bytes were taken although nobody read");
    ensure!(sent > 64 << 20, "the connection was not joined: only {sent} bytes were taken");
    ensure!(mesh.metric(NODE, FLOODED)? > 0.5, "the metric does not say so");
    // It reads, so that its other connections may be accelerated.
    let status = mesh.verb(NODE, "status")?["capture"]["acceleration"].clone();
    ensure!(status["withdrawn"] == 0 && status["unwatched"].is_null(), "{status}");
    // The bytes that were handed over, then those that TCP has: none lost, doubled or overtaken.
    ensure!(case(&mesh, "other", "go", 0)? == "ok", "the server does not answer");
    line.clear();
    output.read_line(&mut line).context("the client's last line")?;
    ensure!(client.wait().context("its end")?.success(), "the client failed after {line:?}");
    ensure!(line.trim() == format!("{size} bytes"), "{line:?}");
    wait_for("the sockets to leave", LIMIT, || mesh.metric(NODE, SOCKETS).is_ok_and(|sockets| sockets < 0.5))
}

#[test]
fn the_sender_of_a_receiver_that_is_not_known_to_read_is_held_back_until_it_is() -> Result<()> {
    if unprivileged("the_sender_of_a_receiver_that_is_not_known_to_read_is_held_back_until_it_is")
        || unaccelerated("the_sender_of_a_receiver_that_is_not_known_to_read_is_held_back_until_it_is")
    {
        return Ok(());
    }
    let mesh = accelerated("watch_held")?;
    let size = transfer(1 << 30, FLOOD);
    let (mut client, mut output) = start(&mesh, "sip", size)?;
    let mut line = String::new();
    output.read_line(&mut line).context("the client's first line")?;
    ensure!(line.starts_with("stopped at ") && !line.contains(&size.to_string()), "{line:?}");
    ensure!(mesh.metric(NODE, HELD_BACK)? > 0.5, "none of its packets was dropped");
    // Longer than a receiver that takes nothing has.
    let before = mesh.metric(NODE, HELD_BACK)?;
    wait_for("TCP to try again", LIMIT, || mesh.metric(NODE, HELD_BACK).is_ok_and(|now| now > before + 0.5))?;
    ensure!(case(&mesh, "other", "go", 0)? == "ok", "the server does not answer");
    line.clear();
    output.read_line(&mut line).context("the client's last line")?;
    ensure!(client.wait().context("its end")?.success(), "the client failed after {line:?}");
    ensure!(line.trim() == format!("{size} bytes"), "{line:?}");
    ensure!((mesh.metric(NODE, FLOODED)? - 1.0).abs() < 0.5, "one flood is one");
    let status = mesh.verb(NODE, "status")?["capture"]["acceleration"].clone();
    ensure!(status["withdrawn"] == 0, "it reads: {status}");
    // Nobody is held back any more.
    let before = mesh.metric(NODE, HELD_BACK)?;
    let said = case(&mesh, "other", "swap", 1 << 20)?;
    ensure!(said == "1048576 bytes each way", "{said}");
    ensure!((mesh.metric(NODE, HELD_BACK)? - before).abs() < 0.5, "packets are dropped still");
    Ok(())
}

#[test]
fn a_flooded_receiver_that_splices_is_told_and_misses_nothing_unknowingly() -> Result<()> {
    if unprivileged("a_flooded_receiver_that_splices_is_told_and_misses_nothing_unknowingly")
        || unaccelerated("a_flooded_receiver_that_splices_is_told_and_misses_nothing_unknowingly")
    {
        return Ok(());
    }
    let mesh = accelerated("watch_drowned")?;
    let said = case(&mesh, "client", "drown", transfer(1 << 30, FLOOD))?;
    ensure!(said == "told", "the sender was {said}");
    let said = case(&mesh, "other", "drowned", 0)?;
    ensure!(said == "0 and ECONNABORTED", "the receiver got {said}");
    wait_withdrawn(&mesh)?;
    ensure!(mesh.metric(NODE, FLOODED)? > 0.5, "the metric does not say so");
    let log = mesh.agents[0].log();
    ensure!(log.contains("connection was broken"), "{log}");
    wait_for("the sockets to leave", LIMIT, || mesh.metric(NODE, SOCKETS).is_ok_and(|sockets| sockets < 0.5))
}

#[test]
fn a_slow_server_behind_the_agent_withdraws_nobody() -> Result<()> {
    if unprivileged("a_slow_server_behind_the_agent_withdraws_nobody")
        || unaccelerated("a_slow_server_behind_the_agent_withdraws_nobody")
    {
        return Ok(());
    }
    let mesh = accelerated("watch_agent")?;
    // The agent's connection to it is TCP's, and so the agent waits.
    let file = mesh.config.join("pods.yaml");
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let quiet = "  name: server\n  annotations: {sluice.dev/acceleration: \"off\"}\n";
    let changed = text.replace("  name: server\n", quiet);
    ensure!(changed != text, "no pod is called server: {text}");
    replace_file(&file, &changed)?;
    let status = || Ok::<_, anyhow::Error>(mesh.verb(NODE, "status")?["capture"]["acceleration"].clone());
    wait_for("the server to opt out", LIMIT, || status().is_ok_and(|status| status["opted_out"] == 2))?;

    let size = transfer(1 << 30, FLOOD);
    let service = mesh.lab.cluster_ip("peer")?.v4.into();
    let (mut client, mut output) = start_with(&mesh, &arguments_to(service, "flood", size))?;
    let mut line = String::new();
    output.read_line(&mut line).context("the client's first line")?;
    ensure!(line.starts_with("stopped at ") && !line.contains(&size.to_string()), "{line:?}");
    ensure!(mesh.metric(NODE, FLOODED)? > 0.5, "the agent's end was not flooded after {line:?}");
    ensure!(status()?["withdrawn"] == 0, "{}", status()?);
    ensure!(case(&mesh, "other", "go", 0)? == "ok", "the server does not answer");
    line.clear();
    output.read_line(&mut line).context("the client's last line")?;
    ensure!(client.wait().context("its end")?.success(), "the client failed after {line:?}");
    ensure!(line.trim() == format!("{size} bytes"), "{line:?}");
    Ok(())
}
