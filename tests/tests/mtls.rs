//! Pods' connections between two nodes whose agents have certificates: nothing of them is to be read on the way, the pod sees
//! its client, closes and resets arrive, policies hold, and certificates are renewed under traffic.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use anyhow::{Context, Result, ensure};
use common::{LIMIT, Mesh, TIMEOUT};
use lab::ethernet::Wire;
use lab::load::{Load, Plan};
use lab::{PodSpec, Program, ServiceSpec, Topology, unprivileged, wait_for};
use nix::sys::socket::{setsockopt, sockopt};

const MARKER: &[u8] = b"PLAINTEXT-MARKER";
const RAW_TARGET: u16 = 7000;
const HTTP: u16 = 80;
const OPAQUE: u16 = 81;
const TUNNEL: u16 = 15008;

/// `web` is in the mesh, `bare` is not.
fn topology() -> Topology {
    let web = PodSpec::new("web", "node2").label("app", "web").label("networking.istio.io/tunnel", "http");
    let bare = PodSpec::new("bare", "node2").label("app", "bare");
    let ports = |name: &str| ServiceSpec::new(name).port("http", HTTP, 8080).port("tcp", OPAQUE, RAW_TARGET);
    Topology::with_nodes(2)
        .pod(PodSpec::new("client", "node1"))
        .pod(web.runs(Program::Http { port: 8080 }))
        .pod(bare.runs(Program::Http { port: 8080 }))
        .service(ports("web"))
        .service(ports("bare"))
}

/// Agents with certificates on both nodes.
fn up(name: &str, documents: &[(&str, &str)], arguments: &[&str]) -> Result<Mesh> {
    Mesh::secured(name, topology(), documents, arguments)
}

fn bounded(stream: TcpStream) -> Result<TcpStream> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

fn listen(mesh: &Mesh, pod: &str, family: usize) -> Result<TcpListener> {
    let address = SocketAddr::new(mesh.pod_ip(pod, family)?, RAW_TARGET);
    Ok(mesh.lab.pod(pod)?.in_netns(|| TcpListener::bind(address))??)
}

/// Both ends of a connection from the client to a service's opaque port.
fn connect(
    mesh: &Mesh,
    service: &str,
    family: usize,
    listener: &TcpListener,
) -> Result<(TcpStream, TcpStream)> {
    let to = mesh.service(service, family, OPAQUE)?;
    let client = mesh.lab.pod("client")?.in_netns(|| TcpStream::connect_timeout(&to, TIMEOUT))??;
    let (server, peer) = listener.accept()?;
    ensure!(peer.ip() == mesh.pod_ip("client", family)?, "{service}, family {family}: the peer was {peer}");
    Ok((bounded(client)?, bounded(server)?))
}

/// Sends markers one way and reads them at the other end, to the end.
fn transfer(mut from: TcpStream, mut to: TcpStream, bytes: usize) -> Result<()> {
    std::thread::scope(|scope| {
        let sent = scope.spawn(move || -> Result<TcpStream> {
            from.write_all(&MARKER.repeat(bytes / MARKER.len()))?;
            from.shutdown(Shutdown::Write)?;
            Ok(from)
        });
        let mut read = Vec::new();
        to.read_to_end(&mut read).context("reading markers")?;
        ensure!(read == MARKER.repeat(bytes / MARKER.len()), "{} of {bytes} bytes arrived", read.len());
        // The other half is still open.
        to.write_all(b"done")?;
        drop(to);
        let mut from = sent.join().expect("the writer does not panic")?;
        let mut answer = Vec::new();
        from.read_to_end(&mut answer).context("reading the answer")?;
        ensure!(answer == b"done", "{answer:?} came back");
        Ok(())
    })
}

fn handshakes(mesh: &Mesh, node: &str, role: &str, outcome: &str) -> Result<f64> {
    mesh.metric(node, &format!("sluice_tls_handshakes_total{{outcome=\"{outcome}\",role=\"{role}\"}}"))
}

#[test]
fn nothing_is_to_be_read_between_nodes_and_the_pod_sees_its_client() -> Result<()> {
    if unprivileged("nothing_is_to_be_read_between_nodes_and_the_pod_sees_its_client") {
        return Ok(());
    }
    let mesh = up("mtls", &[], &[])?;
    let wire = mesh.lab.node("node2")?.in_netns(|| Wire::open("eth0"))??;
    for (service, readable) in [("bare", true), ("web", false)] {
        for family in 0..2 {
            let listener = listen(&mesh, service, family)?;
            for upwards in [true, false] {
                let (client, server) = connect(&mesh, service, family, &listener)?;
                wire.holding(MARKER)?;
                let (from, to) = if upwards { (client, server) } else { (server, client) };
                transfer(from, to, 256 * 1024)?;
                let (frames, holding) = wire.holding(MARKER)?;
                ensure!(frames > 0, "{service}, family {family}: nothing came by");
                ensure!(
                    (holding > 0) == readable,
                    "{service}, family {family}, upwards {upwards}: {holding} of {frames} frames hold the marker"
                );
            }
            let answer =
                mesh.get("client", mesh.service(service, family, HTTP)?, service, "/PLAINTEXT-MARKER")?;
            let client = mesh.pod_ip("client", family)?.to_string();
            ensure!(answer.status == 200 && answer.text().contains(&client), "{service}: {}", answer.text());
            let (_, holding) = wire.holding(MARKER)?;
            ensure!((holding > 0) == readable, "{service}, family {family}: {holding} frames of requests");
        }
    }
    for (node, role) in [("node1", "client"), ("node2", "server")] {
        let done = handshakes(&mesh, node, role, "ok")?;
        ensure!(done >= 2.0, "{done} handshakes as {role} on {node}");
        let status = mesh.verb(node, "status")?;
        let identity =
            status["certificates"][0]["identity"].as_str().context("no certificate in the status")?;
        ensure!(identity == "spiffe://mesh.test/ns/default/sa/default", "{identity}");
    }
    for (node, family, reporter) in [
        ("node1", "istio_requests_total", "source"),
        ("node1", "istio_tcp_connections_opened_total", "source"),
        ("node2", "istio_tcp_connections_opened_total", "destination"),
    ] {
        is_proven(&mesh, (node, family, reporter))?;
    }
    Ok(())
}

/// Istio's metrics say of what went by tunnel who it was at either end, and of nothing else.
fn is_proven(mesh: &Mesh, (node, family, reporter): (&str, &str, &str)) -> Result<()> {
    const ID: &str = "spiffe://mesh.test/ns/default/sa/default";
    let lines = mesh.metrics(node, &format!("{family}{{"))?;
    let of = |workload: &str, proven: (&str, &str)| {
        let (security, id) = proven;
        let labels = [
            format!("reporter=\"{reporter}\""),
            format!("destination_workload=\"{workload}\""),
            format!("connection_security_policy=\"{security}\""),
            format!("source_principal=\"{id}\""),
            format!("destination_principal=\"{id}\""),
        ];
        lines.iter().any(|line| labels.iter().all(|label| line.contains(label)) && !line.ends_with(" 0"))
    };
    ensure!(of("web", ("mutual_tls", ID)), "{family} on {node}: {lines:#?}");
    ensure!(reporter != "source" || of("bare", ("none", "unknown")), "{family} on {node}: {lines:#?}");
    Ok(())
}

#[test]
fn resets_and_silence_arrive_as_they_are() -> Result<()> {
    if unprivileged("resets_and_silence_arrive_as_they_are") {
        return Ok(());
    }
    let mesh = up("mtls_ends", &[], &[])?;
    let listener = listen(&mesh, "web", 0)?;
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    for client_resets in [true, false] {
        let (mut client, mut server) = connect(&mesh, "web", 0, &listener)?;
        client.write_all(b"hello")?;
        let mut bytes = [0; 5];
        server.read_exact(&mut bytes)?;
        let (breaks, mut other) = if client_resets { (client, server) } else { (server, client) };
        setsockopt(&breaks, sockopt::Linger, &linger)?;
        drop(breaks);
        let seen = other.read(&mut bytes).map_err(|error| error.kind());
        ensure!(seen == Err(ErrorKind::ConnectionReset), "client resets: {client_resets}: {seen:?}");
    }
    // A port at which nobody listens.
    drop(listener);
    let to = mesh.service("web", 0, OPAQUE)?;
    // It may be told so before it knows that it is connected.
    let seen = match mesh.lab.pod("client")?.in_netns(|| TcpStream::connect_timeout(&to, TIMEOUT))? {
        Ok(client) => bounded(client)?.read(&mut [0]).map_err(|error| error.kind()),
        Err(error) => Err(error.kind()),
    };
    ensure!(seen == Err(ErrorKind::ConnectionReset), "nobody listens: {seen:?}");
    Ok(())
}

#[test]
fn the_end_of_a_tunnel_takes_only_the_workload_that_it_expects() -> Result<()> {
    if unprivileged("the_end_of_a_tunnel_takes_only_the_workload_that_it_expects") {
        return Ok(());
    }
    let mesh = up("mtls_hostile", &[], &[])?;
    let to = SocketAddr::new(mesh.pod_ip("web", 0)?, TUNNEL);
    let tell = |stream: TcpStream| -> Result<()> {
        let mut stream = bounded(stream)?;
        // The peer may have reset it already.
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        ensure!(!answer.starts_with(b"HTTP"), "answered {:?}", String::from_utf8_lossy(&answer));
        Ok(())
    };
    tell(mesh.lab.pod("client")?.in_netns(|| TcpStream::connect_timeout(&to, TIMEOUT))??)?;
    wait_for("the refusal of plaintext", LIMIT, || {
        handshakes(&mesh, "node2", "server", "not_tls").is_ok_and(|count| count >= 1.0)
    })?;
    // A node is no workload. It may be told so before it knows that it is connected.
    match mesh.lab.node("node1")?.in_netns(|| TcpStream::connect_timeout(&to, TIMEOUT))? {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        connected => tell(connected?)?,
    }
    wait_for("the refusal of a stranger", LIMIT, || {
        handshakes(&mesh, "node2", "server", "unknown_peer").is_ok_and(|count| count >= 1.0)
    })
}

#[test]
fn requests_within_a_tunnel_are_judged() -> Result<()> {
    if unprivileged("requests_within_a_tunnel_are_judged") {
        return Ok(());
    }
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec:\n  \
                  selector: {matchLabels: {app: web}}\n  rules:\n  - to: [{operation: {paths: [/ok]}}]\n";
    let mesh = up("mtls_policy", &[("policy.yaml", policy)], &[])?;
    for (path, expected) in [("/ok", 200), ("/no", 403)] {
        for family in 0..2 {
            // The end of the tunnel, past what the client's own agent says.
            let to = mesh.service("web", family, HTTP)?;
            let answer = mesh.get("client", to, "web", path)?;
            ensure!(answer.status == expected, "{path}: {} {}", answer.status, answer.text());
        }
    }
    ensure!(handshakes(&mesh, "node2", "server", "ok")? >= 1.0, "no tunnel was made");
    Ok(())
}

#[test]
fn certificates_are_renewed_under_traffic() -> Result<()> {
    const EXPIRY: &str = "sluice_certificate_expiry_timestamp_seconds";
    if unprivileged("certificates_are_renewed_under_traffic") {
        return Ok(());
    }
    let mesh = up("mtls_renewal", &[], &["--cert-life", "10s"])?;
    let listener = listen(&mesh, "web", 0)?;
    let (mut client, mut server) = connect(&mesh, "web", 0, &listener)?;
    let plan = Plan {
        address: mesh.service("web", 0, HTTP)?,
        host: "web".to_owned(),
        paths: vec!["/".to_owned()],
        rate: 100,
    };
    let load = Load::start(&mesh.lab.pod("client")?.netns(), &plan)?;
    let before = handshakes(&mesh, "node1", "client", "ok")?;
    for _ in 0..4 {
        let held = mesh.metric("node1", EXPIRY)?;
        wait_for("a newer certificate", LIMIT, || mesh.metric("node1", EXPIRY).is_ok_and(|now| now > held))?;
    }
    // Requests may go on through streams that are open; a new one is not opened upon a certificate that ends soon.
    let _another = connect(&mesh, "web", 0, &listener)?;
    wait_for("a tunnel with a newer certificate", LIMIT, || {
        handshakes(&mesh, "node1", "client", "ok").is_ok_and(|now| now > before)
    })?;
    load.wait_requests(50, LIMIT)?;
    let report = load.stop()?;
    let failed = report.failure_kinds();
    ensure!(failed.is_empty(), "of {} requests: {failed:?}", report.samples.len());
    let mut bytes = [0; 4];
    client.write_all(b"ping")?;
    server.read_exact(&mut bytes).context("the connection that was open all along")?;
    server.write_all(b"pong")?;
    client.read_exact(&mut bytes).context("the connection that was open all along")
}
