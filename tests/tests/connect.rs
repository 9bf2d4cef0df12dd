//! Balancing at `connect()`: what a pod's sockets are led to and what they are told, seen by the programs that hold them.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use common::{LIMIT, Mesh};
use lab::{AgentOptions, Lab, PodSpec, Program, ServiceSpec, Topology, exec, unprivileged, wait_for};

const BALANCED: &str = "sluice_connect_decisions_total{reason=\"balanced\"}";
const AFFINITY: &str = "sluice_connect_decisions_total{reason=\"affinity\"}";
const AGENT_L7: &str = "sluice_connect_decisions_total{reason=\"agent_l7\"}";
const CLOSED: &str = "sluice_connect_decisions_total{reason=\"closed\"}";
const CAPTURED: &str = "sluice_capture_packets_total{reason=\"captured\"}";
const DNS_TARGET: u16 = 5353;
/// The service that only the documents know: nothing but balancing at `connect()` leads there.
const OWN: [&str; 2] = ["10.96.1.1", "fd00:96::101"];

/// Answers each datagram with the pod's name and the sender, in either family.
const DATAGRAM_SERVER: &str = r"
import select, socket, sys
name, port = sys.argv[1], int(sys.argv[2])
ready = socket.create_server(('', port), family=socket.AF_INET6, dualstack_ipv6=True)
sockets = []
for family, address in ((socket.AF_INET, '0.0.0.0'), (socket.AF_INET6, '::')):
    s = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.bind((address, port))
    sockets.append(s)
while True:
    for s in select.select(sockets, [], [])[0]:
        data, peer = s.recvfrom(2048)
        s.sendto((name + ' ' + peer[0]).encode(), peer)
";

/// Prints for each connection: what the socket calls its peer, what the kernel's table says, who answered, whom it saw.
const CONNECTIONS: &str = r"
import os, socket, sys
address, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
family = socket.AF_INET6 if ':' in address else socket.AF_INET
for _ in range(count):
    s = socket.socket(family)
    s.settimeout(10)
    s.connect((address, port))
    peer = s.getpeername()
    inode = str(os.fstat(s.fileno()).st_ino)
    table = open('/proc/self/net/tcp6' if ':' in address else '/proc/self/net/tcp').read().splitlines()
    remote = [line.split()[2] for line in table[1:] if line.split()[9] == inode][0]
    s.sendall(b'GET / HTTP/1.0\r\nHost: web\r\n\r\n')
    data = b''
    while True:
        part = s.recv(4096)
        if not part:
            break
        data += part
    head, body = data.decode().split('\r\n\r\n', 1)
    via = 'via' if '\nvia:' in head.lower() else 'direct'
    _, pod, saw, _ = body.split()
    print(peer[0], peer[1], remote.split(':')[0], pod, saw, via)
    s.close()
";

/// Prints for each datagram sent to a service: from where the answer came, and what it says.
const DATAGRAMS: &str = r"
import socket, sys
address, port, mode, sockets, each = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
family = socket.AF_INET6 if ':' in address else socket.AF_INET
for number in range(sockets):
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.settimeout(10)
    if mode == 'connected':
        s.connect((address, port))
    for _ in range(each):
        if mode == 'connected':
            s.send(b'?')
        else:
            s.sendto(b'?', (address, port))
        data, peer = s.recvfrom(2048)
        print(number, peer[0], peer[1], data.decode())
";

/// Opens two connections and a connected datagram socket to the service, and connections past it, tells who answers, and then
/// what becomes of each. Behind the second port there is another service as well.
const HOLDER: &str = r"
import errno, socket, sys
service, direct = sys.argv[1], sys.argv[2:]
tcp = socket.create_connection((service, 82), 10)
past = [socket.create_connection((ip, port), 10) for ip, port in [(service, 81)] + [(ip, 8080) for ip in direct]]
datagrams = socket.socket(socket.AF_INET6 if ':' in service else socket.AF_INET, socket.SOCK_DGRAM)
datagrams.settimeout(10)
datagrams.connect((service, 53))
datagrams.send(b'?')
print(datagrams.recv(2048).decode().split()[0], flush=True)
def end(s):
    s.settimeout(20)
    try:
        return 'data' if s.recv(1) else 'closed'
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
print('udp', end(datagrams), flush=True)
print('tcp', end(tcp), flush=True)
for s in past:
    s.sendall(b'GET / HTTP/1.0\r\nHost: web\r\n\r\n')
    print('past', s.recv(12).decode(), flush=True)
";

fn topology() -> Topology {
    let backend = |name: &str, node: &str| {
        let server = Program::Server {
            argv: ["python3", "-c", DATAGRAM_SERVER, name, &DNS_TARGET.to_string()]
                .map(ToOwned::to_owned)
                .to_vec(),
            port: DNS_TARGET,
        };
        PodSpec::new(name, node).label("app", "web").runs(Program::Http { port: 8080 }).runs(server)
    };
    Topology::with_nodes(2)
        .pod(PodSpec::new("client", "node1"))
        .pod(backend("near", "node1"))
        .pod(backend("far", "node2"))
        .service(ServiceSpec::new("web").port("http", 80, 8080).port("tcp", 81, 8080))
}

/// A service with a TCP and a UDP port, of these pods in both families; `spec` is the rest of its specification.
fn own_service(lab: &Lab, pods: &[&str], spec: &str) -> Result<String> {
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: own, namespace: default}}\nspec:\n  clusterIP: {v4}\n  \
         clusterIPs: [{v4}, \"{v6}\"]\n{spec}  ports:\n  - {{name: tcp, port: 81, targetPort: 8080}}\n  \
         - {{name: tcp-hold, port: 82, targetPort: {DNS_TARGET}}}\n  \
         - {{name: dns, port: 53, targetPort: {DNS_TARGET}, protocol: UDP}}\n",
        v4 = OWN[0],
        v6 = OWN[1],
    );
    for (family, kind) in ["IPv4", "IPv6"].into_iter().enumerate() {
        let mut endpoints = String::new();
        for pod in pods {
            let ip = lab.pod(pod)?.address().both()[family];
            writeln!(endpoints, "- {{addresses: [\"{ip}\"], conditions: {{ready: true}}}}")?;
        }
        let endpoints =
            if pods.is_empty() { "endpoints: []\n".to_owned() } else { format!("endpoints:\n{endpoints}") };
        write!(
            text,
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: own-{family}, namespace: \
             default, labels: {{kubernetes.io/service-name: own}}}}\naddressType: {kind}\nports:\n\
             - {{name: tcp, port: 8080, protocol: TCP}}\n- {{name: tcp-hold, port: {DNS_TARGET}, protocol: TCP}}\n\
             - {{name: dns, port: {DNS_TARGET}, protocol: UDP}}\n{endpoints}"
        )?;
    }
    Ok(text)
}

/// The lab with an agent on the client's node that balances below the node's cgroup.
fn mesh(name: &str, spec: &str) -> Result<Mesh> {
    let lab = Lab::for_test(name, topology())?;
    let config = lab.directory().join("config");
    lab.write_documents(&config)?;
    let mut mesh = Mesh { agents: Vec::new(), lab, config };
    mesh.write("own.yaml", &own_service(&mesh.lab, &["near", "far"], spec)?)?;
    let node = mesh.lab.node("node1")?;
    let cgroup = node.cgroup().path().display().to_string();
    let agent = node.start_agent(&AgentOptions::new(&mesh.config)?.with(["--cgroup", &cgroup]))?;
    mesh.agents.push(agent);
    Ok(mesh)
}

fn python(mesh: &Mesh, pod: &str, script: &str, arguments: &[&str]) -> Result<Vec<Vec<String>>> {
    let said = exec::stdout(mesh.lab.pod(pod)?.command("python3")?.args(["-c", script]).args(arguments))?;
    let words = |line: &str| line.split_whitespace().map(ToOwned::to_owned).collect();
    Ok(said.lines().map(words).collect())
}

/// How often each pod answered.
fn answers(lines: &[Vec<String>], column: usize) -> BTreeMap<String, usize> {
    let mut answers = BTreeMap::new();
    for line in lines {
        *answers.entry(line[column].clone()).or_default() += 1;
    }
    answers
}

/// A `/proc/net/tcp` address of a pod, as its own kernel writes it.
fn as_in_proc(ip: std::net::IpAddr) -> String {
    let octets = match ip {
        std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
        std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let words = octets.chunks(4).map(|w| u32::from_ne_bytes([w[0], w[1], w[2], w[3]]));
    words.fold(String::new(), |text, word| format!("{text}{word:08X}"))
}

#[test]
fn opaque_connections_are_led_where_they_are_dialled() -> Result<()> {
    if unprivileged("opaque_connections_are_led_where_they_are_dialled") {
        return Ok(());
    }
    let mesh = mesh("led", "")?;
    for family in 0..2 {
        let service = mesh.service("web", family, 81)?.ip();
        let own = mesh.pod_ip("client", family)?.to_string();
        let backends = [as_in_proc(mesh.pod_ip("near", family)?), as_in_proc(mesh.pod_ip("far", family)?)];
        let (balanced, captured) = (mesh.metric("node1", BALANCED)?, mesh.metric("node1", CAPTURED)?);
        let lines = python(&mesh, "client", CONNECTIONS, &[&service.to_string(), "81", "300"])?;
        for line in &lines {
            ensure!(line[0] == service.to_string() && line[1] == "81", "the peer is said to be {line:?}");
            ensure!(backends.contains(&line[2]), "the socket leads to {line:?}, not to {backends:?}");
            ensure!(line[4] == own, "the backend saw {line:?}, not {own}");
        }
        // Five standard deviations of 300 throws of a coin are 43.
        for (pod, count) in answers(&lines, 3) {
            ensure!((107..=193).contains(&count), "{pod} has {count} of 300");
        }
        ensure!(answers(&lines, 3).len() == 2, "one pod has all");
        let grown = mesh.metric("node1", BALANCED)? - balanced;
        ensure!(grown >= 300.0, "{grown} of 300 were balanced");
        ensure!((mesh.metric("node1", CAPTURED)? - captured).abs() < 0.5, "some were captured as well");
    }
    Ok(())
}

#[test]
fn an_address_in_disguise_is_led_and_told_in_disguise() -> Result<()> {
    if unprivileged("an_address_in_disguise_is_led_and_told_in_disguise") {
        return Ok(());
    }
    let mesh = mesh("disguise", "")?;
    let mapped = format!("::ffff:{}", OWN[0]);
    let own = mesh.pod_ip("client", 0)?.to_string();
    let lines = python(&mesh, "client", CONNECTIONS, &[&mapped, "81", "30"])?;
    for line in &lines {
        ensure!(line[0] == mapped && line[4] == own, "{line:?}");
    }
    ensure!(answers(&lines, 3).len() == 2, "{:?}", answers(&lines, 3));
    for mode in ["connected", "unconnected"] {
        let lines = python(&mesh, "client", DATAGRAMS, &[&mapped, "53", mode, "30", "1"])?;
        for line in &lines {
            ensure!(line[1] == mapped && line[2] == "53" && line[4] == own, "{mode}: {line:?}");
        }
        ensure!(answers(&lines, 3).len() == 2, "{mode}: {:?}", answers(&lines, 3));
    }
    Ok(())
}

#[test]
fn datagrams_are_led_and_answers_come_from_the_service() -> Result<()> {
    if unprivileged("datagrams_are_led_and_answers_come_from_the_service") {
        return Ok(());
    }
    let mesh = mesh("datagrams", "")?;
    for (family, service) in OWN.into_iter().enumerate() {
        let own = mesh.pod_ip("client", family)?.to_string();
        for mode in ["connected", "unconnected"] {
            let lines = python(&mesh, "client", DATAGRAMS, &[service, "53", mode, "40", "3"])?;
            let mut of_socket: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
            for line in &lines {
                ensure!(line[1] == service && line[2] == "53", "{mode}: the answer came from {line:?}");
                ensure!(line[4] == own, "{mode}: the backend saw {line:?}");
                of_socket.entry(&line[0]).or_default().insert(&line[3]);
            }
            let torn: Vec<_> = of_socket.iter().filter(|(_, pods)| pods.len() > 1).collect();
            ensure!(torn.is_empty(), "{mode}: one socket's datagrams went to several backends: {torn:?}");
            let answers = answers(&lines, 3);
            ensure!(answers.len() == 2, "{mode}: 40 sockets met {answers:?}");
        }
    }
    Ok(())
}

#[test]
fn a_client_comes_back_to_its_backend_until_that_goes() -> Result<()> {
    if unprivileged("a_client_comes_back_to_its_backend_until_that_goes") {
        return Ok(());
    }
    let mesh = mesh("affinity", "  sessionAffinity: ClientIP\n")?;
    for (family, service) in OWN.into_iter().enumerate() {
        let before = mesh.metric("node1", AFFINITY)?;
        let lines = python(&mesh, "client", CONNECTIONS, &[service, "81", "20"])?;
        let first = answers(&lines, 3);
        ensure!(first.len() == 1, "family {family}: 20 connections of one client met {first:?}");
        let grown = mesh.metric("node1", AFFINITY)? - before;
        ensure!(grown >= 19.0, "{grown} of 19 came back");
        let first = first.into_keys().next().context("one pod answered")?;
        let other = if first == "near" { "far" } else { "near" };
        let version = mesh.version("node1")?;
        mesh.write("own.yaml", &own_service(&mesh.lab, &[other], "  sessionAffinity: ClientIP\n")?)?;
        mesh.wait_version_above("node1", version)?;
        // The kernel hears of a table after the workers do.
        wait_for("the other backend to answer", LIMIT, || {
            let lines = python(&mesh, "client", CONNECTIONS, &[service, "81", "1"]);
            lines.is_ok_and(|lines| lines[0][3] == other)
        })?;
        let version = mesh.version("node1")?;
        mesh.write("own.yaml", &own_service(&mesh.lab, &["near", "far"], "  sessionAffinity: ClientIP\n")?)?;
        mesh.wait_version_above("node1", version)?;
        let lines = python(&mesh, "client", CONNECTIONS, &[service, "81", "20"])?;
        let now = answers(&lines, 3);
        ensure!(now.keys().eq([other]), "family {family}: with both there again, {now:?} and not {other}");
    }
    Ok(())
}

#[test]
fn a_hash_by_source_leads_a_client_to_one_backend() -> Result<()> {
    if unprivileged("a_hash_by_source_leads_a_client_to_one_backend") {
        return Ok(());
    }
    let mesh = mesh("hash", "")?;
    let version = mesh.version("node1")?;
    mesh.write(
        "hash.yaml",
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: own, namespace: default}\nspec:\n  \
         host: own\n  trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}\n",
    )?;
    mesh.wait_version_above("node1", version)?;
    wait_for("one backend to have all", LIMIT, || {
        let lines = python(&mesh, "client", CONNECTIONS, &[OWN[0], "81", "30"]);
        lines.is_ok_and(|lines| answers(&lines, 3).len() == 1)
    })
}

/// A program in the client pod, and what it says line by line.
fn holder(mesh: &Mesh, family: usize) -> Result<(Child, impl Iterator<Item = std::io::Result<String>>)> {
    let direct = [mesh.pod_ip("near", family)?.to_string(), mesh.pod_ip("far", family)?.to_string()];
    let mut child = mesh
        .lab
        .pod("client")?
        .command("python3")?
        .args(["-c", HOLDER, OWN[family]])
        .args(direct)
        .stdout(Stdio::piped())
        .spawn()?;
    let lines = BufReader::new(child.stdout.take().context("piped")?).lines();
    Ok((child, lines))
}

#[test]
fn sockets_of_a_backend_that_vanishes_are_closed_and_no_others() -> Result<()> {
    if unprivileged("sockets_of_a_backend_that_vanishes_are_closed_and_no_others") {
        return Ok(());
    }
    for family in 0..2 {
        let mesh = mesh(&format!("vanish{family}"), "")?;
        let (mut child, mut lines) = holder(&mesh, family)?;
        let answered = lines.next().context("the client ended early")??;
        ensure!(["near", "far"].contains(&answered.as_str()), "{answered}");
        let version = mesh.version("node1")?;
        // Every backend goes, so that both sockets lose theirs; the pods and their servers stay.
        mesh.write("own.yaml", &own_service(&mesh.lab, &[], "")?)?;
        mesh.wait_version_above("node1", version)?;
        let said = lines.collect::<std::io::Result<Vec<_>>>()?;
        ensure!(child.wait()?.success(), "the client failed: {said:?}");
        ensure!(said[0] == "udp ECONNABORTED", "family {family}: {said:?}");
        ensure!(said[1] == "tcp ECONNABORTED", "family {family}: {said:?}");
        ensure!(said[2..] == ["past HTTP/1.1 200"; 3], "family {family}: {said:?}");
        let closed = mesh.metric("node1", CLOSED)?;
        ensure!((closed - 2.0).abs() < 0.5, "{closed} were closed");
    }
    Ok(())
}

#[test]
fn what_needs_the_agent_still_meets_it_and_a_dead_agent_leads_nowhere() -> Result<()> {
    if unprivileged("what_needs_the_agent_still_meets_it_and_a_dead_agent_leads_nowhere") {
        return Ok(());
    }
    let mut mesh = mesh("tiers", "")?;
    for family in 0..2 {
        let service = mesh.service("web", family, 80)?.ip().to_string();
        let before = mesh.metric("node1", AGENT_L7)?;
        let lines = python(&mesh, "client", CONNECTIONS, &[&service, "80", "10"])?;
        for line in &lines {
            ensure!(line[0] == service && line[5] == "via", "an HTTP port went past the agent: {line:?}");
        }
        ensure!(mesh.metric("node1", AGENT_L7)? - before >= 10.0, "nobody said why");

        // A socket outside the cgroup is captured as ever, on the port that is balanced for others.
        let captured = mesh.metric("node1", CAPTURED)?;
        let text = mesh.get("client", mesh.service("web", family, 81)?, "web", "/")?.text();
        ensure!(text.contains(&mesh.pod_ip("client", family)?.to_string()), "{text}");
        ensure!(mesh.metric("node1", CAPTURED)? > captured, "not captured");
    }
    let status = mesh.verb("node1", "status")?;
    let connect = &status["capture"]["connect"];
    let cgroup = mesh.lab.node("node1")?.cgroup();
    ensure!(connect["cgroup"] == cgroup.path().display().to_string().as_str(), "{connect}");
    let tiers = connect["tiers"].as_array().context("no tiers")?;
    for (tier, reason) in [("balance", "opaque"), ("balance", "datagrams"), ("agent_l7", "declared_http")] {
        let found = tiers.iter().any(|one| one["tier"] == tier && one["reason"] == reason);
        ensure!(found, "no {tier} for {reason} in {connect}");
    }

    mesh.agents.remove(0).kill9()?;
    let service = mesh.service("web", 0, 81)?.ip().to_string();
    let lines = python(&mesh, "client", CONNECTIONS, &[&service, "81", "10"])?;
    for line in &lines {
        // The lab's kube-proxy translates: the socket itself leads to the service.
        ensure!(
            line[0] == service && line[2] == as_in_proc(service.parse()?),
            "led by a dead agent: {line:?}"
        );
    }
    Ok(())
}

#[test]
fn a_directory_that_is_no_cgroup_is_refused_at_the_start() -> Result<()> {
    if unprivileged("a_directory_that_is_no_cgroup_is_refused_at_the_start") {
        return Ok(());
    }
    let lab = Lab::for_test("no_cgroup", Topology::with_nodes(1))?;
    let config = lab.directory().join("config");
    lab.write_documents(&config)?;
    let node = lab.node("node1")?;
    let directory = lab.directory().display().to_string();
    let options = AgentOptions::new(&config)?.with(["--cgroup", &directory]);
    let Err(refused) = node.start_agent(&options) else { anyhow::bail!("it started") };
    let said = format!("{refused:#}");
    ensure!(said.contains("is not the directory of a cgroup") && said.contains(&directory), "{said}");
    let left = common::leftovers(&lab, "node1")?;
    ensure!(left.is_empty(), "left behind:\n{left}");
    Ok(())
}
