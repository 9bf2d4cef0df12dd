//! Limits of opaque connections to a service, through capture: how many are open at once, and how many come.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::{Context, Result, ensure};
use common::{LIMIT, Mesh, TIMEOUT};
use lab::{PodSpec, ServiceSpec, Topology, exec, unprivileged, wait_for};
use serde_json::Value;

const PORT: u16 = 7001;
const TARGET: u16 = 7000;

fn topology() -> Topology {
    Topology::with_nodes(1)
        .pod(PodSpec::new("client", "node1"))
        .pod(PodSpec::new("other", "node1"))
        .pod(PodSpec::new("raw-1", "node1").label("app", "raw"))
        .service(ServiceSpec::new("raw").port("tcp", PORT, TARGET))
}

fn document(limits: &str, rest: &str) -> String {
    format!(
        "apiVersion: sluice.dev/v1alpha1\nkind: RateLimit\nmetadata: {{name: calm, namespace: default}}\nspec:\n\
         \x20 targetRefs: [{{kind: Service, name: raw}}]\n  limits: {limits}\n{rest}"
    )
}

/// A server that sends back what it gets, one connection after the other in threads of their own.
fn echo(mesh: &Mesh) -> Result<()> {
    let address = SocketAddr::new(mesh.pod_ip("raw-1", 0)?, TARGET);
    let listener = mesh.lab.pod("raw-1")?.in_netns(|| TcpListener::bind(address))??;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok(read @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..read]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(())
}

/// A connection that was answered; `None`: it was closed.
fn open(mesh: &Mesh, pod: &str) -> Result<Option<TcpStream>> {
    let to = mesh.service("raw", 0, PORT)?;
    let mut stream = match mesh.lab.pod(pod)?.in_netns(|| TcpStream::connect_timeout(&to, TIMEOUT))? {
        // The reset may come as soon as the handshake is over.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
        connected => connected?,
    };
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut answer = [0; 4];
    let answered = stream.write_all(b"ping").and_then(|()| stream.read_exact(&mut answer));
    Ok(answered.is_ok_and(|()| answer == *b"ping").then_some(stream))
}

fn sluice(mesh: &Mesh, words: &[&str]) -> Result<String> {
    let mut command = mesh.lab.node("node1")?.command(lab::agent::built_binary()?)?;
    exec::stdout(command.args(words))
}

fn limits(mesh: &Mesh, words: &[&str]) -> Result<Value> {
    let text = sluice(mesh, &[&["limits", "-o", "json"], words].concat())?;
    let shown: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    Ok(shown["limits"].clone())
}

/// The one connection that was refused: its line in the access log, its event and what `why` says of it name the limit.
fn refusal_is_named(mesh: &Mesh) -> Result<()> {
    let line = "\"response_flags\":\"RL\",\"connection_termination_details\":\"rate_limited_by[default/calm limit open]\"";
    let agent = mesh.agents.first().context("no agent")?;
    wait_for("its line in the access log", LIMIT, || agent.log().contains(line))?;
    let words = ["observe", "-o", "json", "--from", "client", "--last", "100", "--kind", "drop"];
    let told =
        sluice(mesh, &[&words[..], &["--verdict", "rate_limited", "--policy", "default/calm"]].concat())?;
    let event: Value = serde_json::from_str(&told).with_context(|| format!("not one event: {told}"))?;
    ensure!(
        event["tier"] == "agent L4" && event["verdict"] == "refused" && event["rule"] == "open",
        "{event}"
    );
    let source = event["source"].as_str().context("no source")?;
    let to = mesh.service("raw", 0, PORT)?.to_string();
    let past = |text: &str| {
        let first = text.lines().next().unwrap_or_default();
        first.starts_with("past: ") && first.ends_with("rate_limited by RateLimit default/calm limit open")
    };
    wait_for("what became of it", LIMIT, || sluice(mesh, &["why", source, &to]).is_ok_and(|text| past(&text)))
        .with_context(|| format!("{:?}", sluice(mesh, &["why", source, &to])))
}

#[test]
fn so_many_connections_are_open_at_once_and_the_others_are_closed_by_name() -> Result<()> {
    if unprivileged("so_many_connections_are_open_at_once_and_the_others_are_closed_by_name") {
        return Ok(());
    }
    let two = "[{name: open, counts: Connections, key: [{type: SourceAddress}], inFlight: 2}]";
    let mesh = Mesh::up("limit_open", topology(), &[("limit.yaml", &document(two, ""))])?;
    echo(&mesh)?;
    let mut held =
        vec![open(&mesh, "client")?.context("the first")?, open(&mesh, "client")?.context("the second")?];
    ensure!(open(&mesh, "client")?.is_none(), "a third at the same time");
    ensure!(open(&mesh, "other")?.is_some(), "another client has its own");
    let shown = limits(&mesh, &["--top", "5"])?;
    let limit = &shown[0];
    ensure!(limit["counts"] == "connections" && limit["admitted"] == 3 && limit["refused"] == 1, "{shown}");
    let client = mesh.pod_ip("client", 0)?.to_string();
    ensure!(limit["top"][0]["key"] == client.as_str() && limit["top"][0]["refused"] == 1, "{shown}");

    let labels = "sluice_rate_limit_requests_total{limit=\"open\",outcome=\"refused\"";
    ensure!(mesh.metric("node1", labels)? > 0.5, "the limit's refusals");
    let closed = || {
        let lines = mesh.metrics("node1", "istio_tcp_connections_closed_total").unwrap_or_default();
        lines.iter().any(|line| line.contains("response_flags=\"RL\"") && line.ends_with(" 1"))
    };
    wait_for("the closed connection in the metrics", LIMIT, closed)?;
    refusal_is_named(&mesh)?;
    let why = sluice(&mesh, &["why", "client", &mesh.service("raw", 0, PORT)?.to_string()])?;
    ensure!(why.contains("default/calm open (2 in flight, by source address)"), "{why}");

    // One that ends makes room.
    held.pop();
    let mut again = None;
    wait_for("room for another", LIMIT, || {
        again = open(&mesh, "client").ok().flatten();
        again.is_some()
    })?;
    ensure!(open(&mesh, "client")?.is_none(), "two are open again");
    Ok(())
}

#[test]
fn so_many_new_connections_come_in_a_span() -> Result<()> {
    if unprivileged("so_many_new_connections_come_in_a_span") {
        return Ok(());
    }
    let five = "[{name: new, counts: Connections, key: [{type: SourceIdentity}], window: {requests: 5, per: 15m}}, \
                {name: requests, rate: {requests: 1, per: 1h}}]";
    let mesh = Mesh::up("limit_new", topology(), &[("limit.yaml", &document(five, ""))])?;
    echo(&mesh)?;
    for number in 0..5 {
        ensure!(open(&mesh, "client")?.is_some(), "{number}");
    }
    for _ in 0..3 {
        ensure!(open(&mesh, "client")?.is_none(), "beyond the window");
    }
    // In the shadow it is counted and closed for nobody.
    mesh.write("limit.yaml", &document(five, "  mode: Shadow\n"))?;
    wait_for("the shadow", LIMIT, || open(&mesh, "client").is_ok_and(|open| open.is_some()))?;
    let shown = limits(&mesh, &[])?;
    let new = shown.as_array().context("no list")?.iter().find(|limit| limit["limit"] == "new");
    let new = new.with_context(|| shown.to_string())?;
    ensure!(new["admitted"] == 5 && new["refused"].as_u64() >= Some(4), "{shown}");
    let requests = shown.as_array().context("no list")?.iter().find(|limit| limit["limit"] == "requests");
    ensure!(requests.is_some_and(|limit| limit["admitted"] == 0 && limit["refused"] == 0), "{shown}");
    Ok(())
}
