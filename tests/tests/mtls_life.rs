//! What open tunnels rest on, while it changes: certificates are renewed under load and a root follows another without anybody
//! noticing; who is revoked, or whose root has left, loses the tunnels that are open.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::{LIMIT, Mesh, TIMEOUT};
use lab::agent::{AgentOptions, built_binary};
use lab::load::{Load, Plan};
use lab::{Lab, PodSpec, Program, ServiceSpec, Topology, exec, unprivileged, wait_for};

const RAW_TARGET: u16 = 7000;
const HTTP: u16 = 80;
const OPAQUE: u16 = 81;
const EXPIRY: &str = "sluice_certificate_expiry_timestamp_seconds";
const LONG_CONNECTIONS: usize = 50;
const RATE: u32 = 300;
const ROTATIONS: usize = 10;
const ROUND: Duration = Duration::from_millis(100);
/// How long a step may take that needs a certificate of ten seconds to be renewed.
const RENEWAL: Duration = Duration::from_secs(30);

/// Two nodes with agents, certificates, and a CA.
struct Secured {
    mesh: Mesh,
    listener: TcpListener,
}

impl Secured {
    fn up(name: &str, arguments: &[&str]) -> Result<Self> {
        let web =
            PodSpec::new("web", "node2").label("app", "web").label("networking.istio.io/tunnel", "http");
        let topology = Topology::with_nodes(2)
            .pod(PodSpec::new("client", "node1"))
            .pod(web.runs(Program::Http { port: 8080 }))
            .service(ServiceSpec::new("web").port("http", HTTP, 8080).port("tcp", OPAQUE, RAW_TARGET));
        let lab = Lab::for_test(name, topology)?;
        let config = lab.directory().join("config");
        lab.write_documents(&config)?;
        let address = SocketAddr::new(lab.pod("web")?.address().both()[0], RAW_TARGET);
        let listener = lab.pod("web")?.in_netns(|| TcpListener::bind(address))??;
        let mut secured = Self { mesh: Mesh { agents: Vec::new(), lab, config }, listener };
        secured.ca(&["init", "--dir", "ca", "--trust-domain", "mesh.test"])?;
        for node in ["node1", "node2"] {
            secured.node("ca", node)?;
            let out = secured.path(node).display().to_string();
            let options =
                AgentOptions::new(&secured.mesh.config)?.with(["--ca", &out]).with(arguments.iter().copied());
            let agent = secured.mesh.lab.node(node)?.start_agent(&options)?;
            secured.mesh.agents.push(agent);
        }
        Ok(secured)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.mesh.lab.directory().join(name)
    }

    fn ca(&self, words: &[&str]) -> Result<String> {
        exec::stdout(
            Command::new(built_binary()?).arg("ca").args(words).current_dir(self.mesh.lab.directory()),
        )
    }

    /// Makes the files of a node, or makes them anew.
    fn node(&self, ca: &str, node: &str) -> Result<String> {
        self.ca(&["node", "--dir", ca, "--name", node, "--out", node, "--renew"])
    }

    /// Puts a file of the CA onto a node.
    fn hand_out(&self, file: &str, node: &str) -> Result<()> {
        let between = self.path(node).join(".new");
        fs::copy(self.path("ca").join(file), &between)?;
        Ok(fs::rename(between, self.path(node).join(file))?)
    }

    /// Both ends of a connection that goes through a tunnel.
    fn connect(&self) -> Result<[TcpStream; 2]> {
        let client = self.dial()?;
        let (server, _) = self.listener.accept()?;
        for end in [&client, &server] {
            end.set_nodelay(true)?;
            end.set_read_timeout(Some(LIMIT))?;
        }
        Ok([client, server])
    }

    /// A request that can't be sent on.
    fn request(&self) -> Result<()> {
        let answer = self.mesh.get("client", self.mesh.service("web", 0, HTTP)?, "web", "/")?;
        ensure!(answer.status == 503, "{} {}", answer.status, answer.text());
        Ok(())
    }

    fn dial(&self) -> Result<TcpStream> {
        let to = self.mesh.service("web", 0, OPAQUE)?;
        let client = self.mesh.lab.pod("client")?.in_netns(|| TcpStream::connect_timeout(&to, TIMEOUT))??;
        client.set_read_timeout(Some(LIMIT))?;
        Ok(client)
    }

    fn ended(&self, node: &str, role: &str, reason: &str) -> Result<f64> {
        let series = format!("sluice_tunnels_ended_total{{reason=\"{reason}\",role=\"{role}\"}}");
        self.mesh.metric(node, &series)
    }

    fn refused(&self, node: &str, role: &str, outcome: &str) -> Result<f64> {
        let series = format!("sluice_tls_handshakes_total{{outcome=\"{outcome}\",role=\"{role}\"}}");
        self.mesh.metric(node, &series)
    }

    fn alerts(&self, node: &str) -> Result<String> {
        Ok(self.mesh.verb(node, "status")?["alerts"].to_string())
    }

    /// Waits for a line of a node's logs, the access log among them, that holds all of this.
    fn says(&self, node: usize, parts: &[&str]) -> Result<()> {
        let agent = &self.mesh.agents[node - 1];
        let holds = |line: &str| parts.iter().all(|part| line.contains(part));
        wait_for("the line", LIMIT, || agent.log().lines().any(holds))
            .with_context(|| format!("no line of node{node} holds {parts:?}:\n{}", agent.log()))
    }

    /// What each end says of a handshake that this one refuses, the other one being told no more than that.
    fn both_say(&self, (by, role): (usize, &str), reason: &str) -> Result<()> {
        let [client, web] = [self.mesh.pod_ip("client", 0)?, self.mesh.pod_ip("web", 0)?];
        let ends = [format!("source={client}:"), format!("destination={web}:15008")];
        let (told, other) = (3 - by, if role == "server" { "client" } else { "server" });
        for (node, role, reason) in [(by, role, reason), (told, other, "refused")] {
            let (role, reason) = (format!("role=\"{role}\""), format!("reason=\"{reason}\""));
            self.says(
                node,
                &["no tunnel: ", &role, &reason, &ends[0], &ends[1], "expected=spiffe://mesh.test/"],
            )?;
        }
        self.says(by, &["no tunnel: ", "presented=spiffe://mesh.test/ns/default/sa/default"])?;
        // Where requests are sent, and where connections come from.
        let dialling = if role == "client" { reason } else { "refused" };
        let dialled = if role == "server" { reason } else { "refused" };
        let details = format!("\"response_code_details\":\"{dialling}\"");
        self.says(1, &["\"scope\":\"access\"", &details, "\"response_flags\":\"UF\""])?;
        let details = format!("\"connection_termination_details\":\"{dialling}\"");
        self.says(1, &["\"scope\":\"access\"", "\"direction\":\"outbound\"", &details])?;
        let details = format!("\"connection_termination_details\":\"{dialled}\"");
        self.says(2, &["\"scope\":\"access\"", "\"direction\":\"inbound\"", &details, &client.to_string()])?;
        for (node, reason) in [("node1", dialling), ("node2", dialled)] {
            let mut command = self.mesh.lab.node(node)?.command(built_binary()?)?;
            let told = exec::stdout(command.args(["observe", "--kind", "drop", "--verdict", reason]))?;
            ensure!(told.contains("refused") && told.contains(reason), "{node} tells {told}");
            let status = exec::stdout(self.mesh.lab.node(node)?.command(built_binary()?)?.arg("status"))?;
            let says = |line: &str| line.starts_with("NO TUNNEL") && line.contains(&format!(": {reason}: "));
            ensure!(status.lines().any(says), "{node}: {status}");
        }
        let mut why = self.mesh.lab.node("node1")?.command(built_binary()?)?;
        let service = self.mesh.service("web", 0, OPAQUE)?.to_string();
        let why = exec::stdout(why.args(["why", &client.to_string(), &service]))?;
        ensure!(why.contains(&format!("lately none was made from {client} to {web}: {dialling}: ")), "{why}");
        Ok(())
    }

    /// Waits until a node has newer certificates than now.
    fn wait_renewed(&self, node: &str) -> Result<()> {
        let held = self.mesh.metric(node, EXPIRY)?;
        let what = format!("a newer certificate on {node}");
        wait_for(&what, RENEWAL, || self.mesh.metric(node, EXPIRY).is_ok_and(|now| now > held))
    }
}

fn ping([client, server]: &mut [TcpStream; 2]) -> Result<()> {
    let mut bytes = [0; 4];
    client.write_all(b"ping")?;
    server.read_exact(&mut bytes)?;
    server.write_all(b"pong")?;
    client.read_exact(&mut bytes)?;
    ensure!(&bytes == b"pong", "{bytes:?} came back");
    Ok(())
}

/// Both ends learn that it is over, and not by a polite end.
fn both_are_reset(ends: [TcpStream; 2]) -> Result<()> {
    for mut end in ends {
        let read = end.read(&mut [0]).map_err(|error| error.kind());
        ensure!(read == Err(std::io::ErrorKind::ConnectionReset), "an end read {read:?}");
    }
    Ok(())
}

#[test]
fn who_is_revoked_loses_open_tunnels_and_gets_no_new_ones() -> Result<()> {
    if unprivileged("who_is_revoked_loses_open_tunnels_and_gets_no_new_ones") {
        return Ok(());
    }
    let site = Secured::up("mtls_revoked", &[])?;
    let mut open = site.connect()?;
    ping(&mut open)?;
    // Node 2 alone learns of it: its end is the one that was dialled.
    site.ca(&["revoke", "--dir", "ca", "--node", "node1"])?;
    site.hand_out("revoked.crl", "node2")?;
    both_are_reset(open).context("node1 is revoked")?;
    ensure!(site.ended("node2", "server", "revoked")? >= 1.0, "no tunnel was ended on node2");
    let read = site.dial()?.read(&mut [0]).map_err(|error| error.kind());
    ensure!(read == Err(std::io::ErrorKind::ConnectionReset), "a new connection read {read:?}");
    ensure!(site.refused("node2", "server", "revoked")? >= 1.0, "no handshake was refused on node2");
    ensure!(site.refused("node1", "client", "refused")? >= 1.0, "node1 does not count that it was refused");
    site.request()?;
    site.both_say((2, "server"), "revoked")?;
    // New files, and it is a node again.
    site.node("ca", "node1")?;
    site.wait_renewed("node1")?;
    let mut open = site.connect()?;
    ping(&mut open)?;
    // Node 1 alone learns of node 2: its end is the one that has dialled.
    site.ca(&["revoke", "--dir", "ca", "--node", "node2"])?;
    site.hand_out("revoked.crl", "node1")?;
    both_are_reset(open).context("node2 is revoked")?;
    ensure!(site.ended("node1", "client", "revoked")? >= 1.0, "no tunnel was ended on node1");
    let read = site.dial()?.read(&mut [0]).map_err(|error| error.kind());
    ensure!(read == Err(std::io::ErrorKind::ConnectionReset), "a new connection read {read:?}");
    ensure!(site.refused("node1", "client", "revoked")? >= 1.0, "no handshake was refused on node1");
    site.request()?;
    site.both_say((1, "client"), "revoked")?;
    // A node that learns of itself makes no certificates any more.
    site.hand_out("revoked.crl", "node2")?;
    wait_for("no certificates on node2", LIMIT, || {
        site.mesh.metrics("node2", EXPIRY).is_ok_and(|all| all.is_empty())
    })?;
    // It can't show any, and whoever dials is told that.
    let before = site.refused("node1", "client", "refused")?;
    let read = site.dial()?.read(&mut [0]).map_err(|error| error.kind());
    ensure!(read == Err(std::io::ErrorKind::ConnectionReset), "a new connection read {read:?}");
    ensure!(site.refused("node1", "client", "refused")? > before, "node1 does not count that it was refused");
    ensure!(site.refused("node2", "server", "no_own_certificate")? >= 1.0, "node2 does not say why");
    Ok(())
}

#[test]
fn a_root_that_leaves_the_bundle_takes_open_tunnels_along() -> Result<()> {
    if unprivileged("a_root_that_leaves_the_bundle_takes_open_tunnels_along") {
        return Ok(());
    }
    let site = Secured::up("mtls_root_gone", &[])?;
    let mut open = site.connect()?;
    ping(&mut open)?;
    site.ca(&["init", "--dir", "other", "--trust-domain", "mesh.test"])?;
    site.node("other", "node2")?;
    both_are_reset(open)?;
    let ended =
        site.ended("node2", "server", "unknown_issuer")? + site.ended("node1", "client", "unknown_issuer")?;
    ensure!(ended >= 1.0, "no tunnel was ended by its reason");
    Ok(())
}

/// Sends on every connection in turn until told to stop, ten times in a second at most; answers how many rounds all of them
/// passed.
fn keep_pinging(open: &mut [[TcpStream; 2]], stop: &Receiver<()>) -> Result<usize> {
    let mut rounds = 0;
    while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(ROUND) {
        for (number, ends) in open.iter_mut().enumerate() {
            ping(ends).with_context(|| format!("connection {number}, round {rounds}"))?;
        }
        rounds += 1;
    }
    Ok(rounds)
}

/// A root follows another while everything goes on, step by step as `docs/identity.md` says.
fn replace_root(site: &Secured) -> Result<()> {
    site.ca(&["rotate", "prepare", "--dir", "ca"])?;
    for node in ["node1", "node2"] {
        site.hand_out("bundle.pem", node)?;
        site.wait_renewed(node).context("the next root is in the bundle")?;
    }
    site.ca(&["rotate", "sign", "--dir", "ca"])?;
    for node in ["node1", "node2"] {
        site.node("ca", node)?;
        site.wait_renewed(node).context("the next root has issued")?;
    }
    // What the last node shows has to have come to the other one, which asks for it when its bundle changes.
    site.ca(&["rotate", "finish", "--dir", "ca"])?;
    for node in ["node1", "node2"] {
        site.hand_out("bundle.pem", node)?;
        site.wait_renewed(node).context("the old root is gone")?;
    }
    Ok(())
}

#[test]
fn ten_renewals_and_a_new_root_break_nothing_under_load() -> Result<()> {
    if unprivileged("ten_renewals_and_a_new_root_break_nothing_under_load") {
        return Ok(());
    }
    let site = Secured::up("mtls_rotations", &["--cert-life", "10s"])?;
    let mut open = Vec::new();
    for _ in 0..LONG_CONNECTIONS {
        open.push(site.connect()?);
    }
    let plan = Plan {
        address: site.mesh.service("web", 0, HTTP)?,
        host: "web".to_owned(),
        paths: vec!["/".to_owned()],
        rate: RATE,
    };
    let load = Load::start(&site.mesh.lab.pod("client")?.netns(), &plan)?;
    let (stopping, stop) = mpsc::channel();
    let pinged = std::thread::scope(|scope| {
        let open = &mut open;
        let pinging = scope.spawn(move || keep_pinging(open, &stop));
        let passed = (|| {
            replace_root(&site)?;
            // The CA's files are away for longer than half a life: what was read goes on.
            let (there, away) = (site.path("node1"), site.path("node1-away"));
            fs::rename(&there, &away)?;
            for _ in 0..2 {
                site.wait_renewed("node1").context("while the directory is away")?;
            }
            let told = site.alerts("node1")?;
            ensure!(told.contains("bundle.pem: No such file"), "nobody is told that it is away: {told}");
            fs::rename(&away, &there)?;
            for _ in 0..ROTATIONS - 5 {
                site.wait_renewed("node1")?;
            }
            anyhow::Ok(())
        })();
        drop(stopping);
        let pinged = pinging.join().expect("it does not panic");
        passed.and(pinged)
    });
    let report = load.stop()?;
    let rounds = pinged?;
    let failed = report.failure_kinds();
    ensure!(failed.is_empty(), "of {} requests: {failed:?}", report.samples.len());
    for node in ["node1", "node2"] {
        let ended = site.mesh.metrics(node, "sluice_tunnels_ended_total{")?;
        ensure!(ended.is_empty(), "tunnels were ended on {node}: {ended:?}");
        let proofs = site.mesh.metric(node, "sluice_tunnel_proofs_total{outcome=\"ok\"")?;
        ensure!(proofs >= 1.0, "nothing was shown anew on {node}");
    }
    ensure!(rounds >= 10, "{rounds} rounds of pings");
    eprintln!("{} requests, {rounds} rounds of {LONG_CONNECTIONS} connections", report.samples.len());
    Ok(())
}

#[test]
fn what_ends_soon_is_told_of() -> Result<()> {
    if unprivileged("what_ends_soon_is_told_of") {
        return Ok(());
    }
    let site = Secured::up("mtls_alert", &[])?;
    ensure!(site.alerts("node1")? == "[]", "{}", site.alerts("node1")?);
    let ends = |file: &str| {
        site.mesh.metric("node1", &format!("sluice_ca_file_expiry_timestamp_seconds{{file=\"{file}\"}}"))
    };
    let before = ends("intermediate.pem")?;
    site.ca(&["node", "--dir", "ca", "--name", "node1", "--out", "node1", "--renew", "--life", "90s"])?;
    wait_for("the alert", LIMIT, || {
        let told = site.alerts("node1").unwrap_or_default();
        ["intermediate.pem ends at ", "node.pem ends at "].iter().all(|text| told.contains(text))
    })?;
    let after = ends("intermediate.pem")?;
    ensure!(after > 0.0 && after < before, "it ends at {after}, and ended at {before}");
    ensure!(ends("bundle.pem")? > before, "the root ends before what it has issued");
    let text = exec::stdout(site.mesh.lab.node("node1")?.command(built_binary()?)?.arg("status"))?;
    ensure!(text.contains("\nALERT        intermediate.pem ends at "), "{text}");
    Ok(())
}
