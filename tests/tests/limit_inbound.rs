//! Limits of what enters pods: whoever sends it and by whatever way it comes, the pod's own node counts it, and once.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

use anyhow::{Context, Result, ensure};
use common::{LIMIT, Mesh, TIMEOUT};
use lab::{PodSpec, Program, ServiceSpec, Topology, exec, unprivileged, wait_for};

/// nginx.
const PORT: u16 = 8080;
/// nghttpd, which speaks HTTP/2 alone.
const H2: u16 = 8081;
const RAW: u16 = 7000;
const EDGE: u16 = 8888;
const NGHTTPD: &str = "mkdir -p www && echo hello > www/x && exec nghttpd --no-tls -d www 8081";

/// Two nodes with an agent and one that will have none; of the two pods on the first one is limited.
fn topology() -> Topology {
    let argv = ["sh", "-c", NGHTTPD].map(str::to_owned).to_vec();
    let server = PodSpec::new("server", "node1")
        .label("app", "server")
        .label("networking.istio.io/tunnel", "http")
        .runs(Program::Http { port: PORT })
        .runs(Program::Server { argv, port: H2 });
    Topology::with_nodes(3)
        .pod(PodSpec::new("near", "node1"))
        .pod(PodSpec::new("far", "node2"))
        .pod(PodSpec::new("bare", "node3"))
        .pod(server)
        .pod(PodSpec::new("free", "node1").label("app", "free").runs(Program::Http { port: PORT }))
        .service(
            ServiceSpec::new("server")
                .port("http", 80, PORT)
                .undeclared_port(82, PORT)
                .port("http2", 83, H2)
                .port("tcp", 81, RAW),
        )
}

fn document(limits: &str) -> String {
    format!(
        "apiVersion: sluice.dev/v1alpha1\nkind: RateLimit\nmetadata: {{name: calm, namespace: default}}\nspec:\n\
         \x20 selector: {{matchLabels: {{app: server}}}}\n  direction: Inbound\n  limits: {limits}\n"
    )
}

/// Three for each user, or for each address where nobody is named.
fn three() -> String {
    document("[{name: each, key: [{type: Header, name: x-user}], window: {requests: 3, per: 15m}}]")
        + "  response: {fields: Always}\n"
}

const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  gatewayClassName: sluice
  listeners: [{name: http, port: 8888, protocol: HTTP}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: edge}
spec:
  parentRefs: [{name: edge}]
  rules:
  - backendRefs: [{name: server, port: 80}]
";

/// Waits until the programs take what enters the server, or no longer do.
fn wait_captured(mesh: &Mesh, addresses: usize) -> Result<()> {
    let captured = || -> Result<usize> {
        let status = mesh.verb("node1", "status")?;
        Ok(status["capture"]["inbound"].as_array().context("no inbound in the status")?.len())
    };
    wait_for("the pods that are captured inbound", LIMIT, || captured().is_ok_and(|now| now == addresses))
}

/// The statuses of requests to these ends, one after the other.
fn asked(mesh: &Mesh, pod: &str, ends: &[SocketAddr], arguments: &[&str]) -> Result<Vec<String>> {
    let mut statuses = Vec::new();
    for to in ends {
        let url = format!("http://{to}/x");
        let words = [&["-o", "/dev/null", "-w", "%{http_code}", &url], arguments].concat();
        statuses.push(mesh.curl(pod, &words).with_context(|| format!("{pod} to {to}"))?);
    }
    Ok(statuses)
}

fn sluice(mesh: &Mesh, node: &str, words: &[&str]) -> Result<String> {
    exec::stdout(mesh.lab.node(node)?.command(lab::agent::built_binary()?)?.args(words))
}

const BEYOND: [&str; 6] = ["200", "200", "200", "429", "429", "429"];

#[test]
fn requests_are_counted_once_wherever_they_come_from() -> Result<()> {
    if unprivileged("requests_are_counted_once_wherever_they_come_from") {
        return Ok(());
    }
    let documents = [("limit.yaml", three()), ("edge.yaml", GATEWAY.to_owned())];
    let documents = documents.each_ref().map(|(name, text)| (*name, text.as_str()));
    let mut mesh = Mesh::up("limit_inbound", topology(), &documents)?;
    drop(mesh.agents.pop());
    wait_captured(&mesh, 2)?;
    for family in 0..2 {
        let pod = SocketAddr::new(mesh.pod_ip("server", family)?, PORT);
        let (declared, undeclared) =
            (mesh.service("server", family, 80)?, mesh.service("server", family, 82)?);
        let each = [declared, pod, undeclared, undeclared, pod, declared];
        for client in ["near", "far", "bare"] {
            let statuses = asked(&mesh, client, &each, &[])?;
            ensure!(statuses == BEYOND, "{client}, family {family}: {statuses:?}");
        }
        let free = [SocketAddr::new(mesh.pod_ip("free", family)?, PORT); 5];
        ensure!(asked(&mesh, "far", &free, &[])? == ["200"; 5], "a pod that is not selected");
        let own = mesh.lab.node("node1")?.in_netns(|| lab::http::get(pod, "server", "/x", TIMEOUT))??;
        ensure!(own.status == 200 && own.header("via").is_none(), "the node's probes: {own:?}");
    }
    versions(&mesh)?;
    gateways(&mesh)?;
    let shown = mesh.verb("node1", "limits")?["limits"].clone();
    ensure!(shown[0]["targets"][0] == "enters pods default/app=server", "{shown}");
    // Six clients by address, eight users of HTTP versions, two of Gateways, with as many refusals.
    ensure!(shown[0]["admitted"] == 3 * 16 && shown[0]["refused"] == 3 * 16, "{shown}");
    let elsewhere = mesh.verb("node2", "limits")?["limits"].clone();
    ensure!(
        elsewhere[0]["admitted"] == 0 && elsewhere[0]["refused"] == 0,
        "another node counts: {elsewhere}"
    );
    answers(&mesh)?;
    let held =
        "requests that enter pod default/server on node node1 are held to default/calm each (3 in any 900s";
    let service = mesh.service("server", 0, 80)?.to_string();
    for (node, client, to) in
        [("node1", "near", "server:8080"), ("node2", "far", "server:8080"), ("node1", "near", &service)]
    {
        let said = sluice(&mesh, node, &["why", client, to])?;
        ensure!(said.contains(held), "{node}, {to}: {said}");
    }
    let said = sluice(&mesh, "node1", &["why", "near", "free:8080"])?;
    ensure!(!said.contains("calm"), "{said}");
    ensure!(mesh.agents[0].log().contains("rate_limited_by[default/calm limit each]"), "the access log");
    Ok(())
}

/// Each version that a client and the pod may speak with the agent between them.
fn versions(mesh: &Mesh) -> Result<()> {
    let [declared, h2] = [80, 83].map(|port| mesh.service("server", 0, port));
    let (declared, h2) = (declared?, h2?);
    for client in ["near", "far"] {
        for (user, to, more) in [
            ("1-to-1", declared, &[][..]),
            ("1-to-2", h2, &[]),
            ("2-to-1", declared, &["--http2-prior-knowledge"]),
            ("2-to-2", h2, &["--http2-prior-knowledge"]),
        ] {
            let user = format!("x-user: {client}-{user}");
            let statuses = asked(mesh, client, &[to; 6], &[&["-H", &user], more].concat())?;
            ensure!(statuses == BEYOND, "{user}: {statuses:?}");
        }
    }
    Ok(())
}

/// Who is let through is told what is left, and clients of gRPC what they understand.
fn answers(mesh: &Mesh) -> Result<()> {
    let h2 = format!("http://{}/x", mesh.service("server", 0, 83)?);
    for client in ["near", "far"] {
        let url = format!("http://{}/x", mesh.service("server", 0, 80)?);
        let user = format!("x-user: told-{client}");
        let got = mesh.curl(client, &["-o", "/dev/null", "-D", "-", "-H", &user, &url])?.to_lowercase();
        ensure!(got.contains("ratelimit: \"each\";r=2\r\n"), "{client}: {got}");
        let beyond = format!("x-user: {client}-2-to-2");
        let grpc = ["-X", "POST", "-H", "content-type: application/grpc", "--http2-prior-knowledge"];
        let got = mesh.curl(client, &[&grpc[..], &["-D", "-", "-H", &beyond, &h2]].concat())?.to_lowercase();
        ensure!(got.contains("grpc-status: 8"), "{client}: {got}");
    }
    Ok(())
}

/// Clients of Gateways on the pod's node and on another.
fn gateways(mesh: &Mesh) -> Result<()> {
    for (node, client) in [("node1", "near"), ("node2", "far")] {
        let to = SocketAddr::new(mesh.lab.node(node)?.address().both()[0], EDGE);
        let user = format!("x-user: by-{node}");
        let statuses = asked(mesh, client, &[to; 6], &["-H", &user])?;
        ensure!(statuses == BEYOND, "{user}: {statuses:?}");
    }
    Ok(())
}

/// A server of the pod that sends back what it gets, one connection after the other in threads of their own, and datagrams.
fn echo(mesh: &Mesh) -> Result<()> {
    let address = SocketAddr::new(mesh.pod_ip("server", 0)?, RAW);
    let listener = mesh.lab.pod("server")?.in_netns(|| TcpListener::bind(address))??;
    let datagrams = mesh.lab.pod("server")?.in_netns(|| UdpSocket::bind(address))??;
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
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((read, from)) = datagrams.recv_from(&mut buffer) {
            if datagrams.send_to(&buffer[..read], from).is_err() {
                return;
            }
        }
    });
    Ok(())
}

fn echoes(stream: &mut TcpStream) -> bool {
    let mut answer = [0; 4];
    stream.write_all(b"ping").and_then(|()| stream.read_exact(&mut answer)).is_ok_and(|()| answer == *b"ping")
}

/// A connection that was answered; `None`: it was closed.
fn open(mesh: &Mesh, pod: &str, to: SocketAddr) -> Result<Option<TcpStream>> {
    let mut stream = match mesh.lab.pod(pod)?.in_netns(|| TcpStream::connect_timeout(&to, TIMEOUT))? {
        // The reset may come as soon as the handshake is over.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
        connected => connected?,
    };
    stream.set_read_timeout(Some(TIMEOUT))?;
    Ok(echoes(&mut stream).then_some(stream))
}

/// Two are open at a time, by the service and by the pod's own address, and each that ends makes room.
fn two_at_a_time(mesh: &Mesh, pod: &str) -> Result<()> {
    let ends = [mesh.service("server", 0, 81)?, SocketAddr::new(mesh.pod_ip("server", 0)?, RAW)];
    let mut held = Vec::new();
    for to in ends {
        held.push(open(mesh, pod, to)?.with_context(|| format!("{pod} to {to}"))?);
    }
    for to in ends {
        ensure!(open(mesh, pod, to)?.is_none(), "{pod} to {to}: a third at the same time");
    }
    drop(held.pop());
    wait_for("room for another", LIMIT, || open(mesh, pod, ends[0]).is_ok_and(|opened| opened.is_some()))
}

const OPEN: &str = "[{name: open, counts: Connections, key: [{type: SourceAddress}], inFlight: 2}]";

#[test]
fn connections_are_counted_and_nothing_else_is_kept_out() -> Result<()> {
    if unprivileged("connections_are_counted_and_nothing_else_is_kept_out") {
        return Ok(());
    }
    let mut mesh = Mesh::up("limit_inbound_open", topology(), &[])?;
    drop(mesh.agents.pop());
    echo(&mesh)?;
    let raw = SocketAddr::new(mesh.pod_ip("server", 0)?, RAW);
    let mut before = open(&mesh, "bare", raw)?.context("without a limit")?;
    mesh.write("limit.yaml", &document(OPEN))?;
    wait_captured(&mesh, 2)?;
    ensure!(echoes(&mut before), "what was open before goes on, uncounted");
    for pod in ["near", "far", "bare"] {
        two_at_a_time(&mesh, pod)?;
        let own = SocketAddr::new(mesh.pod_ip(pod, 0)?, 0);
        let socket = mesh.lab.pod(pod)?.in_netns(|| UdpSocket::bind(own))??;
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.send_to(b"ping", raw)?;
        let (read, from) = socket.recv_from(&mut [0; 8]).with_context(|| format!("{pod}'s datagrams"))?;
        ensure!((read, from) == (4, raw), "{read} bytes of {from}");
    }
    let to = SocketAddr::new(mesh.pod_ip("server", 0)?, PORT);
    ensure!(asked(&mesh, "far", &[to; 5], &[])? == ["200"; 5], "requests are no connections");
    let line = "\"connection_termination_details\":\"rate_limited_by[default/calm limit open]\"";
    wait_for("the closed ones in the access log", LIMIT, || mesh.agents[0].log().contains(line))?;
    let said = sluice(&mesh, "node1", &["why", "near", &raw.to_string()])?;
    ensure!(
        said.contains("opaque connections that enter pod default/server on node node1 are held to"),
        "{said}"
    );
    std::fs::remove_file(mesh.config.join("limit.yaml"))?;
    wait_captured(&mesh, 0)?;
    let many: Vec<_> = (0..4).map(|_| open(&mesh, "far", raw)).collect::<Result<_>>()?;
    ensure!(many.iter().all(Option::is_some), "the limit is gone");
    Ok(())
}

#[test]
fn what_comes_by_tunnels_is_counted() -> Result<()> {
    if unprivileged("what_comes_by_tunnels_is_counted") {
        return Ok(());
    }
    let limits = format!(
        "[{}, {{name: each, key: [{{type: SourceIdentity}}], window: {{requests: 3, per: 15m}}, \
         cluster: {{mode: Exact}}}}]",
        OPEN.trim_matches(['[', ']'])
    );
    let mesh = Mesh::secured("limit_inbound_mtls", topology(), &[("limit.yaml", &document(&limits))], &[])?;
    wait_captured(&mesh, 2)?;
    echo(&mesh)?;
    let (pod, service) = (SocketAddr::new(mesh.pod_ip("server", 0)?, PORT), mesh.service("server", 0, 80)?);
    let statuses = asked(&mesh, "far", &[service, pod, service, service, pod, service], &[])?;
    ensure!(statuses == BEYOND, "{statuses:?}");
    let near = asked(&mesh, "near", &[service, pod], &[])?;
    ensure!(near == ["429"; 2], "another pod with the same account: {near:?}");
    let made = "sluice_tls_handshakes_total{outcome=\"ok\",role=\"server\"}";
    ensure!(mesh.metric("node1", made)? >= 1.0, "no tunnel was made");
    two_at_a_time(&mesh, "far")
}
