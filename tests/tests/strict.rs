//! STRICT PeerAuthentication between nodes: what goes by tunnel is let in, and nothing else is, by the kernel itself.

mod common;

use std::fs;
use std::io::Read;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::{LIMIT, Mesh, TIMEOUT};
use lab::agent::{AgentOptions, built_binary};
use lab::documents::replace_file;
use lab::ethernet::{ETHERNET_LEN, Wire, patched, tcp};
use lab::http::get;
use lab::netns::Netns;
use lab::{Lab, PodSpec, Program, ServiceSpec, Topology, exec, unprivileged, wait_for};

const PORT: u16 = 8080;
/// Where the marker file is served.
const FILES: u16 = 9000;
const SYN: u8 = 2;
/// How long a connection that nobody answers is waited for.
const SILENCE: Duration = Duration::from_millis(700);
/// What the marker file is made of, all of it.
const MARKER: &[u8] = b"PLAINTEXT-MARKER";
/// What is sent last.
const LAST: &[u8] = b"END-OF-CAPTURE";
const MARKER_BYTES: usize = 10 * 1024 * 1024;
const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: istio-system}\nspec: {mtls: {mode: STRICT}}\n";

/// Everybody is labelled; node3 has no agent.
fn topology(files: &str) -> Topology {
    let meshed = |name: &str, node: &str| {
        PodSpec::new(name, node).label("app", name).label("networking.istio.io/tunnel", "http")
    };
    let of = |namespace: &str, pod: PodSpec| PodSpec { namespace: namespace.to_owned(), ..pod };
    let argv = ["python3", "-m", "http.server", "--bind", "0.0.0.0", "--directory", files, "9000"];
    let server = Program::Server { argv: argv.map(str::to_owned).to_vec(), port: FILES };
    Topology::with_nodes(3)
        .pod(meshed("client", "node1"))
        .pod(meshed("web", "node2").runs(Program::Http { port: PORT }).runs(server))
        .pod(meshed("near", "node2"))
        .pod(of("good", meshed("friend", "node1")))
        .pod(of("good", meshed("beside", "node2")))
        .pod(PodSpec::new("stranger", "node3"))
        .service(ServiceSpec::new("web").port("http", 80, PORT).port("tcp", 81, PORT).port("tcp", 90, FILES))
}

/// Agents with certificates on the first two nodes; the directory holds the marker file.
fn up(name: &str, peers: &str) -> Result<(Mesh, PathBuf)> {
    let files = std::env::temp_dir().join(format!("sluice-{name}-{}", std::process::id()));
    fs::create_dir_all(&files)?;
    fs::write(files.join("marker"), MARKER.repeat(MARKER_BYTES / MARKER.len()))?;
    let lab = Lab::for_test(name, topology(files.to_str().context("a path")?))?;
    let config = lab.directory().join("config");
    lab.write_documents(&config)?;
    replace_file(&config.join("peers.yaml"), peers)?;
    let path = |name: &str| lab.directory().join(name).display().to_string();
    let sluice = |words: &[&str]| exec::stdout(Command::new(built_binary()?).args(words));
    let ca = path("ca");
    sluice(&["ca", "init", "--dir", &ca, "--trust-domain", "mesh.test"])?;
    let mut mesh = Mesh { agents: Vec::new(), lab, config };
    for node in ["node1", "node2"] {
        let out = mesh.lab.directory().join(format!("ca-{node}")).display().to_string();
        sluice(&["ca", "node", "--dir", &ca, "--name", node, "--out", &out])?;
        let bpffs = mesh.lab.node(node)?.mount_bpffs()?.display().to_string();
        let options = AgentOptions::new(&mesh.config)?.with(["--ca", &out, "--bpffs", &bpffs]);
        let agent = mesh.lab.node(node)?.start_agent(&options)?;
        mesh.agents.push(agent);
    }
    Ok((mesh, files))
}

/// Packets of plaintext that the kernel of node2 has refused.
fn refused(mesh: &Mesh) -> Result<f64> {
    mesh.metric(
        "node2",
        "sluice_policy_drops_total{policy=\"istio-system/default\",rule=\"plaintext\",tier=\"kernel\"}",
    )
}

/// What a pod gets of a pod's own address.
fn reaches(mesh: &Mesh, pod: &str, to: SocketAddr) -> Result<bool> {
    let asked = mesh.lab.pod(pod)?.in_netns(|| get(to, "web", "/", SILENCE))?;
    Ok(asked.is_ok_and(|answer| answer.status == 200))
}

/// tcpdump on a node's uplink, until it is told to end.
struct Capture {
    child: Child,
    file: PathBuf,
}

impl Capture {
    fn start(mesh: &Mesh, node: &str) -> Result<Self> {
        let file = mesh.lab.directory().join(format!("{node}.pcap"));
        let mut command = mesh.lab.node(node)?.command("tcpdump")?;
        command.args(["-i", "eth0", "-s", "0", "-U", "-B", "65536", "-Z", "root", "-w"]).arg(&file);
        let child = command.stderr(Stdio::piped()).spawn().context("tcpdump")?;
        let capture = Self { child, file };
        // The file's header is there as soon as it listens.
        wait_for("tcpdump", LIMIT, || fs::metadata(&capture.file).is_ok_and(|file| file.len() >= 24))?;
        Ok(capture)
    }

    /// All that was captured. What comes last tells that everything before it is in the file.
    fn end(mut self, mesh: &Mesh) -> Result<Vec<u8>> {
        let to = SocketAddr::new(mesh.lab.node("node2")?.address().both()[0], 9);
        mesh.lab.node("node1")?.in_netns(|| UdpSocket::bind("0.0.0.0:0")?.send_to(LAST, to))??;
        wait_for("the end of the capture", LIMIT, || {
            fs::read(&self.file).is_ok_and(|file| holds(&file[file.len().saturating_sub(4096)..], LAST))
        })?;
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id())?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)?;
        let mut said = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut said)?;
        }
        self.child.wait()?;
        ensure!(said.contains("\n0 packets dropped by kernel"), "tcpdump has not seen all: {said}");
        Ok(fs::read(&self.file)?)
    }
}

/// Patches that send a frame to a node.
fn hardware_address(node: &Netns) -> Result<Vec<(usize, u8)>> {
    let links = exec::stdout(&mut exec::command("ip", ["-n", node.name(), "-j", "link", "show", "eth0"]))?;
    let links: serde_json::Value = serde_json::from_str(&links)?;
    let address = links[0]["address"].as_str().context("no address")?;
    let bytes = address.split(':').map(|byte| u8::from_str_radix(byte, 16));
    Ok(bytes.collect::<Result<Vec<_>, _>>()?.into_iter().enumerate().collect())
}

/// The frame with the checksum of its IPv4 header, without which the stack takes it for broken.
fn checked(mut frame: Vec<u8>) -> Vec<u8> {
    if frame[12..14] == [0x08, 0x00] {
        let words = frame[ETHERNET_LEN..ETHERNET_LEN + 20].chunks_exact(2);
        let sum: u32 = words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        let folded = (folded & 0xffff) + (folded >> 16);
        let at = ETHERNET_LEN + 10;
        frame[at..at + 2].copy_from_slice(&(!folded).to_be_bytes()[2..]);
    }
    frame
}

fn holds(captured: &[u8], needle: &[u8]) -> bool {
    captured.windows(needle.len()).any(|part| part == needle)
}

#[test]
fn no_byte_of_a_file_is_to_be_read_between_nodes_where_everything_is_strict() -> Result<()> {
    if unprivileged("no_byte_of_a_file_is_to_be_read_between_nodes_where_everything_is_strict") {
        return Ok(());
    }
    let (mesh, files) = up("strict_file", STRICT)?;
    let capture = Capture::start(&mesh, "node2")?;
    let fetched = mesh.lab.directory().join("fetched");
    let url = format!("http://{}/marker", mesh.service("web", 0, 90)?);
    mesh.curl("client", &["--max-time", "60", "-o", fetched.to_str().context("a path")?, &url])?;
    let fetched = fs::read(&fetched)?;
    ensure!(fetched == MARKER.repeat(MARKER_BYTES / MARKER.len()), "{} bytes came", fetched.len());
    for family in 0..2 {
        // HTTP by requests, and opaque: the pod names the client that it sees.
        for port in [80, 81] {
            let answer =
                mesh.get("client", mesh.service("web", family, port)?, "web", "/PLAINTEXT-MARKER")?;
            let client = mesh.pod_ip("client", family)?.to_string();
            ensure!(
                answer.status == 200 && answer.text().contains(&client),
                "port {port}: {}",
                answer.text()
            );
        }
    }
    let captured = capture.end(&mesh)?;
    ensure!(captured.len() > MARKER_BYTES, "only {} bytes were captured", captured.len());
    ensure!(!holds(&captured, MARKER), "the marker was to be read on the wire");
    ensure!(refused(&mesh)? == 0.0, "{} packets of plaintext", refused(&mesh)?);
    fs::remove_dir_all(files)?;
    Ok(())
}

#[test]
fn plaintext_to_a_strict_pod_dies_in_the_kernel_and_is_explained() -> Result<()> {
    if unprivileged("plaintext_to_a_strict_pod_dies_in_the_kernel_and_is_explained") {
        return Ok(());
    }
    let (mut mesh, files) = up("strict_kernel", STRICT)?;
    // The kernel's own check of sources would hide what the programs think of them.
    let node = mesh.lab.node("node2")?.netns();
    node.sysctls(&[("ipv4/conf/all/rp_filter", "0"), ("ipv4/conf/eth0/rp_filter", "0")])?;
    let liar = mesh.lab.node("node3")?.in_netns(|| Wire::sender("eth0"))??;
    let to_node = hardware_address(&node)?;
    for family in 0..2 {
        let web = SocketAddr::new(mesh.pod_ip("web", family)?, PORT);
        let before = refused(&mesh)?;
        let answered =
            mesh.lab.pod("stranger")?.in_netns(|| TcpStream::connect_timeout(&web, SILENCE).is_ok())?;
        ensure!(!answered, "family {family}: a stranger was let in");
        let moved = refused(&mesh)? - before;
        ensure!(moved >= 1.0, "family {family}: the kernel counted {moved} packets");
        // A pod of another node that dials the pod itself, past its agent, is no better.
        ensure!(!reaches(&mesh, "client", web)?, "family {family}: plaintext of a pod was let in");
        // One of the same node is known by its interface, and the node's own probes need not be.
        ensure!(reaches(&mesh, "near", web)?, "family {family}: the pod beside it was refused");
        let probe = mesh.lab.node("node2")?.in_netns(|| get(web, "web", "/", TIMEOUT))??;
        ensure!(probe.status == 200, "family {family}: a probe got {}", probe.status);
        // Whoever only says that it is the pod beside it, from elsewhere, is nobody.
        let (before, near) = (refused(&mesh)?, mesh.pod_ip("near", family)?);
        liar.send(&checked(patched(&tcp((near, web.ip()), SYN), &to_node)))?;
        wait_for("the count of a lie", LIMIT, || refused(&mesh).is_ok_and(|now| now > before))?;
        let stranger = mesh.pod_ip("stranger", family)?.to_string();
        let said = exec::stdout(mesh.lab.node("node2")?.command(built_binary()?)?.args([
            "why",
            &stranger,
            &web.to_string(),
        ]))?;
        for part in ["refused", "mtls_required", "PeerAuthentication istio-system/default is STRICT"] {
            ensure!(said.contains(part), "family {family}: `{part}` is missing in {said}");
        }
    }
    let curl =
        mesh.curl("stranger", &["--max-time", "1", &format!("http://{}:{PORT}/", mesh.pod_ip("web", 0)?)]);
    ensure!(curl.is_err(), "curl got {curl:?}");
    let status = mesh.verb("node2", "status")?;
    let policy = &status["capture"]["policy"];
    ensure!(policy["strict"] == 6 && policy["plaintext_refused"].as_u64() > Some(0), "status: {policy}");
    let web = SocketAddr::new(mesh.pod_ip("web", 0)?, PORT);
    // Without an agent what was refused stays refused, and the pod beside it goes on.
    let agent = mesh.agents.pop().context("node2's agent")?;
    agent.kill9()?;
    ensure!(!reaches(&mesh, "stranger", web)?, "a stranger was let in once the agent was gone");
    ensure!(reaches(&mesh, "near", web)?, "the pod beside it was refused once the agent was gone");
    fs::remove_dir_all(files)?;
    Ok(())
}

#[test]
fn principals_are_proven_by_tunnels_and_by_the_node_and_audits_refuse_nobody() -> Result<()> {
    if unprivileged("principals_are_proven_by_tunnels_and_by_the_node_and_audits_refuse_nobody") {
        return Ok(());
    }
    let policy = |name: &str, head: &str, rest: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}{head}}}\n\
             spec: {{selector: {{matchLabels: {{app: web}}}}, {rest}}}\n"
        )
    };
    let allow = "rules: [{from: [{source: {principals: [cluster.local/ns/good/sa/default]}}]}]";
    let dry_run = ", annotations: {istio.io/dry-run: 'true'}";
    let documents = policy("friends", "", allow)
        + &policy("watch", "", "action: AUDIT, rules: [{to: [{operation: {ports: ['8080']}}]}]")
        + &policy("later", dry_run, "action: DENY, rules: [{}]");
    let (mesh, files) = up("strict_principals", documents.trim_start_matches("---\n"))?;
    for family in 0..2 {
        // By tunnel, HTTP and opaque; the other's certificate names another workload.
        for port in [80, 81] {
            let to = mesh.service("web", family, port)?;
            let answer = mesh.get("friend", to, "web", "/")?;
            ensure!(answer.status == 200, "family {family}, port {port}: {}", answer.status);
            let refused = mesh.get("client", to, "web", "/");
            let allowed = refused.as_ref().is_ok_and(|answer| answer.status == 200);
            ensure!(!allowed, "family {family}, port {port}: the other was let in");
        }
        // In the kernel: the pods of the same node are who they are, and nobody else is anybody.
        let web = SocketAddr::new(mesh.pod_ip("web", family)?, PORT);
        for (pod, expected) in [("beside", true), ("near", false), ("friend", false), ("stranger", false)] {
            ensure!(reaches(&mesh, pod, web)? == expected, "family {family}: {pod}, expected {expected}");
        }
    }
    for (policy, outcome) in [("watch", "audited"), ("later", "would_deny")] {
        let series = format!(
            "sluice_policy_audits_total{{outcome=\"{outcome}\",policy=\"default/{policy}\",rule=\"0\"}}"
        );
        let counted = mesh.metric("node2", &series)?;
        ensure!(counted >= 4.0, "{policy}: {counted} counted as {outcome}");
    }
    let said = exec::stdout(mesh.lab.node("node2")?.command(built_binary()?)?.args([
        "why",
        &mesh.pod_ip("beside", 0)?.to_string(),
        &SocketAddr::new(mesh.pod_ip("web", 0)?, PORT).to_string(),
    ]))?;
    ensure!(said.contains("would_deny by rule 0 of default/later"), "{said}");
    fs::remove_dir_all(files)?;
    Ok(())
}

#[test]
fn a_port_and_a_namespace_may_be_open_and_changes_are_followed() -> Result<()> {
    if unprivileged("a_port_and_a_namespace_may_be_open_and_changes_are_followed") {
        return Ok(());
    }
    let web = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: web}\nspec:\n  \
               selector: {matchLabels: {app: web}}\n  portLevelMtls: {8080: {mode: PERMISSIVE}}\n";
    let (mesh, files) = up("strict_ports", &format!("{STRICT}---\n{web}"))?;
    let at = |port| Ok::<_, anyhow::Error>(SocketAddr::new(mesh.pod_ip("web", 0)?, port));
    ensure!(reaches(&mesh, "stranger", at(PORT)?)?, "the open port");
    ensure!(!reaches(&mesh, "stranger", at(FILES)?)?, "the other port");
    mesh.write("peers.yaml", STRICT)?;
    let open = at(PORT)?;
    wait_for("the port to close", LIMIT, || reaches(&mesh, "stranger", open).is_ok_and(|open| !open))?;
    let open = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: open}\n\
                spec: {mtls: {mode: PERMISSIVE}}\n";
    mesh.write("peers.yaml", &format!("{STRICT}---\n{open}"))?;
    let to = at(FILES)?;
    wait_for("the namespace to open", LIMIT, || reaches(&mesh, "stranger", to).is_ok_and(|open| open))?;
    fs::remove_dir_all(files)?;
    Ok(())
}
