//! What is told and explained of each verdict: `sluice observe` while it happens, `sluice why` and `sluice connections` of
//! what is open and over.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::{LIMIT, Mesh};
use lab::agent::AgentOptions;
use lab::ethernet::{Wire, udp};
use lab::http::get;
use lab::wait::wait_until;
use lab::{Lab, PodSpec, Program, ServiceSpec, Topology, exec, unaccelerated, unprivileged, wait_for};
use serde_json::Value;

const NODE: &str = "node1";
/// The server that counts.
const PORT: u16 = 7000;
const HTTP: u16 = 8080;
/// How long a connection that nobody answers is waited for.
const SILENCE: Duration = Duration::from_millis(300);

/// Answers each connection with the number of its bytes, in eight digits.
const SERVER: &str = r"
import socket, sys, threading
def serve(c):
    n = 0
    while True:
        data = c.recv(65536)
        if not data:
            break
        n += len(data)
    c.sendall(b'%08d' % n)
    c.close()
listener = socket.create_server(('', int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
";

/// Tells its port once it is connected; goes on when told to, and tells what the server has counted.
const CLIENT: &str = r"
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
print(s.getsockname()[1], flush=True)
sys.stdin.readline()
s.sendall(b'x' * int(sys.argv[3]))
s.shutdown(socket.SHUT_WR)
answer = b''
while len(answer) < 8:
    answer += s.recv(8 - len(answer))
s.recv(1)
print(int(answer), flush=True)
";

fn topology() -> Topology {
    let argv = ["python3", "-c", SERVER, &PORT.to_string()].map(str::to_owned).to_vec();
    let counter = Program::Server { argv, port: PORT };
    let foe = PodSpec { namespace: "bad".to_owned(), ..PodSpec::new("foe", NODE) };
    Topology::with_nodes(1)
        .pod(PodSpec::new("client", NODE))
        .pod(foe)
        .pod(
            PodSpec::new("backend", NODE)
                .label("app", "count")
                .runs(counter)
                .runs(Program::Http { port: HTTP }),
        )
        .pod(PodSpec::new("shut", NODE).label("app", "shut").runs(Program::Http { port: HTTP }))
        .service(
            ServiceSpec::new("count").port("http", 80, HTTP).port("tcp", 81, PORT).undeclared_port(82, HTTP),
        )
        .service(ServiceSpec::new("shut").port("http", 80, HTTP).port("tcp", 81, HTTP))
}

/// Lets nobody of the namespace `bad` into one pod.
const POLICY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: keep-out}\nspec:\n  \
    selector: {matchLabels: {app: shut}}\n  action: DENY\n  rules:\n  - from: [{source: {namespaces: [nobody]}}]\n  \
    - from: [{source: {namespaces: [bad]}}]\n";
const RULE: &str = "policy default/keep-out rule 1";

/// An agent with more arguments than others have.
fn mesh(name: &str, documents: &[(&str, &str)], arguments: &[&str]) -> Result<Mesh> {
    let lab = Lab::for_test(name, topology())?;
    let config = lab.directory().join("config");
    lab.write_documents(&config)?;
    let mut mesh = Mesh { agents: Vec::new(), lab, config };
    for (file, text) in documents {
        mesh.write(file, text)?;
    }
    let options = AgentOptions::new(&mesh.config)?.with(arguments.iter().copied());
    let agent = mesh.lab.node(NODE)?.start_agent(&options)?;
    mesh.agents.push(agent);
    Ok(mesh)
}

/// As [`mesh`], with the node's pods below `--cgroup`.
fn mesh_of_sockets(name: &str, acceleration: &str) -> Result<Mesh> {
    let lab = Lab::for_test(name, topology())?;
    let config = lab.directory().join("config");
    lab.write_documents(&config)?;
    let mut mesh = Mesh { agents: Vec::new(), lab, config };
    let node = mesh.lab.node(NODE)?;
    let cgroup = node.cgroup().path().display().to_string();
    let options = AgentOptions::new(&mesh.config)?;
    let agent = node.start_agent(&options.with(["--cgroup", &cgroup, "--acceleration", acceleration]))?;
    mesh.agents.push(agent);
    Ok(mesh)
}

fn sluice(mesh: &Mesh, arguments: &[&str]) -> Result<String> {
    exec::stdout(mesh.lab.node(NODE)?.command(lab::agent::built_binary()?)?.args(arguments))
}

fn observe(mesh: &Mesh, arguments: &[&str]) -> Result<Vec<Value>> {
    let text = sluice(mesh, &[&["observe", "-o", "json", "--last", "1000"], arguments].concat())?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

fn why(mesh: &Mesh, source: &str, destination: &str) -> Result<Value> {
    let text = sluice(mesh, &["why", source, destination, "-o", "json"])?;
    serde_json::from_str(&text).with_context(|| text.clone())
}

/// Waits for an event, and gives the first that fits.
fn told(mesh: &Mesh, arguments: &[&str]) -> Result<Value> {
    wait_until(&format!("an event of {arguments:?}"), LIMIT, || {
        observe(mesh, arguments).ok()?.into_iter().next()
    })
    .with_context(|| format!("told instead: {:#?}", observe(mesh, &[])))
}

/// Fails unless these fields of a document are as expected.
fn check(document: &Value, expected: &[(&str, &str)]) -> Result<()> {
    for (field, value) in expected {
        ensure!(document[field] == *value, "{field} is not {value}: {document:#}");
    }
    Ok(())
}

/// A client that has connected and waits.
struct Waiting {
    child: Child,
    output: BufReader<ChildStdout>,
    port: u16,
}

impl Waiting {
    fn connect(mesh: &Mesh, pod: &str, to: SocketAddr, bytes: usize) -> Result<Self> {
        let mut command: Command = mesh.lab.pod(pod)?.command("python3")?;
        command.args(["-c", CLIENT, &to.ip().to_string(), &to.port().to_string(), &bytes.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("a client")?;
        let mut output = BufReader::new(child.stdout.take().context("a client's output")?);
        let mut line = String::new();
        output.read_line(&mut line).context("a client's first line")?;
        let port = line.trim().parse().with_context(|| format!("the client said {line:?}"))?;
        Ok(Self { child, output, port })
    }

    /// Sends, and gives what the server has counted.
    fn finish(mut self) -> Result<u64> {
        self.child.stdin.take().context("a client's input")?.write_all(b"\n")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(self.child.wait()?.success(), "the client failed");
        line.trim().parse().with_context(|| format!("the client said {line:?}"))
    }
}

/// A connection from a pod, whatever becomes of it.
fn knock(mesh: &Mesh, pod: &str, to: SocketAddr) -> Result<()> {
    mesh.lab.pod(pod)?.in_netns(|| drop(TcpStream::connect_timeout(&to, SILENCE)))
}

#[test]
fn each_verdict_is_told_live_and_explained_with_its_rule() -> Result<()> {
    if unprivileged("each_verdict_is_told_live_and_explained_with_its_rule") {
        return Ok(());
    }
    let mesh = mesh("verdicts", &[("policy.yaml", POLICY)], &[])?;
    for family in 0..2 {
        let service = |name: &str, port| mesh.service(name, family, port);
        let pod = |name: &str, port| mesh.pod_ip(name, family).map(|ip| SocketAddr::new(ip, port));
        let unknown = if family == 0 { "10.97.9.9:81" } else { "[fd00:97::9]:81" };
        let captured = |tier| ("verdict", tier, "agent", "captured", None);
        // who, whom -> the event's kind, tier, verdict, reason and rule, and the verdict of `why`
        let cases = [
            ("client", pod("backend", PORT)?, ("verdict", "kernel", "direct", "no_route", None), "direct"),
            ("client", unknown.parse()?, ("verdict", "kernel", "direct", "no_route", None), "direct"),
            ("client", service("count", 81)?, captured("agent L4"), "agent"),
            ("client", service("count", 80)?, captured("agent L7"), "agent"),
            ("client", service("count", 82)?, captured("agent"), "agent"),
            (
                "foe",
                pod("shut", HTTP)?,
                ("drop", "kernel", "dropped", "rbac_access_denied", Some(RULE)),
                "refused",
            ),
        ];
        for (from, to, (kind, tier, verdict, reason, rule), explained) in cases {
            knock(&mesh, from, to)?;
            let (ip, port) = (to.ip().to_string(), to.port().to_string());
            let filter = [
                "--from",
                &mesh.pod_ip(from, family)?.to_string(),
                "--to",
                &ip,
                "--port",
                &port,
                "--kind",
                kind,
            ];
            let event = told(&mesh, &filter)?;
            check(&event, &[("tier", tier), ("verdict", verdict), ("reason", reason)])?;
            let pod = if from == "foe" { "bad/foe" } else { "default/client" };
            check(&event, &[("source_pod", pod), ("destination", &to.to_string())])?;
            if let Some(rule) = rule {
                let said = format!(
                    "policy {} rule {}",
                    event["policy"].as_str().unwrap_or("-"),
                    event["rule"].as_str().unwrap_or("-")
                );
                ensure!(said == rule, "{event:#}");
            }
            // What would become of it, and what became of that one.
            let asked = why(&mesh, &mesh.pod_ip(from, family)?.to_string(), &to.to_string())?;
            check(&asked, &[("state", "hypothetical"), ("verdict", explained), ("reason", reason)])?;
            ensure!(asked["rule"].as_str() == rule, "{asked:#}");
            let past = why(&mesh, event["source"].as_str().context("a source")?, &to.to_string())?;
            check(&past, &[("state", "past"), ("verdict", verdict)])?;
            ensure!(past["rule"].as_str() == rule, "{past:#}");
        }
    }
    Ok(())
}

#[test]
fn a_refusal_of_the_agent_is_told_with_its_rule() -> Result<()> {
    if unprivileged("a_refusal_of_the_agent_is_told_with_its_rule") {
        return Ok(());
    }
    let mesh = mesh("refusals", &[("policy.yaml", POLICY)], &[])?;
    let to = mesh.service("shut", 0, 80)?;
    let answer = mesh.lab.pod("foe")?.in_netns(|| get(to, "shut", "/", LIMIT))??;
    ensure!(answer.status == 403, "the agent answered {}", answer.status);
    let filter = ["--from", "bad/foe", "--kind", "drop", "--policy", "default/keep-out"];
    let event = told(&mesh, &filter)?;
    check(
        &event,
        &[("tier", "agent"), ("verdict", "refused"), ("reason", "rbac_access_denied"), ("rule", "1")],
    )?;
    let said = why(&mesh, "bad/foe", &to.to_string())?;
    check(&said, &[("verdict", "refused"), ("tier", "agent L7"), ("rule", RULE)])?;
    // An opaque connection is reset, and both its refusal and its end are told.
    let opaque = mesh.service("shut", 0, 81)?;
    knock(&mesh, "foe", opaque)?;
    let closed = told(&mesh, &["--from", "bad/foe", "--kind", "close", "--port", "81"])?;
    check(&closed, &[("tier", "agent L4"), ("reason", "rbac_access_denied")])?;
    let source = closed["source"].as_str().context("a source")?;
    let past = why(&mesh, source, &opaque.to_string())?;
    check(&past, &[("state", "past"), ("verdict", "refused"), ("tier", "agent"), ("rule", RULE)])?;
    let text = sluice(&mesh, &["why", source, &opaque.to_string()])?;
    let first = text.lines().next().unwrap_or_default();
    ensure!(
        first.starts_with("past: ") && first.ends_with(&format!("rbac_access_denied by {RULE}")),
        "{text}"
    );
    Ok(())
}

#[test]
fn connections_through_the_agent_are_shown_with_what_serves_them() -> Result<()> {
    if unprivileged("connections_through_the_agent_are_shown_with_what_serves_them") {
        return Ok(());
    }
    let mesh = mesh("connections", &[], &[])?;
    let opaque = mesh.service("count", 0, 81)?;
    let undeclared = mesh.service("count", 0, 80)?;
    let waiting = Waiting::connect(&mesh, "client", opaque, 3000)?;
    let silent = mesh.lab.pod("client")?.in_netns(|| TcpStream::connect_timeout(&undeclared, LIMIT))??;
    let find = |port: u16| -> Result<Value> {
        wait_until(&format!("the connection of port {port}"), LIMIT, || {
            let all = mesh.verb(NODE, "connections").ok()?;
            let source = format!("{}:{port}", mesh.pod_ip("client", 0).ok()?);
            all["connections"].as_array()?.iter().find(|one| one["source"] == source.as_str()).cloned()
        })
    };
    let one = find(waiting.port)?;
    let backend = SocketAddr::new(mesh.pod_ip("backend", 0)?, PORT).to_string();
    check(&one, &[("tier", "agent L4"), ("verdict", "agent"), ("reason", "opaque"), ("protocol", "opaque")])?;
    check(
        &one,
        &[("endpoint", &backend), ("endpoint_pod", "default/backend"), ("source_pod", "default/client")],
    )?;
    check(&one, &[("destination_name", "default/count"), ("destination", &opaque.to_string())])?;
    ensure!(one["since"].is_string() && one["sent_bytes"] == 0, "{one:#}");
    let live = why(&mesh, one["source"].as_str().context("a source")?, &opaque.to_string())?;
    check(&live, &[("state", "live"), ("verdict", "agent"), ("tier", "agent L4"), ("reason", "opaque")])?;
    let other = find(silent.local_addr()?.port())?;
    check(&other, &[("tier", "agent L7"), ("reason", "declared_http"), ("protocol", "http/1")])?;
    drop(silent);
    let port = waiting.port;
    ensure!(waiting.finish()? == 3000, "bytes were lost");
    let source = format!("{}:{port}", mesh.pod_ip("client", 0)?);
    let closed = told(&mesh, &["--from", &source, "--kind", "close"])?;
    check(
        &closed,
        &[("tier", "agent L4"), ("verdict", "agent"), ("reason", "closed"), ("endpoint", &backend)],
    )?;
    ensure!(closed["sent_bytes"] == 3000 && closed["received_bytes"] == 8, "{closed:#}");
    ensure!(closed["rtt_us"].is_u64() && closed["lasted_us"].is_u64(), "{closed:#}");
    wait_for("no connection to be shown any more", LIMIT, || {
        mesh.verb(NODE, "connections")
            .is_ok_and(|all| all["connections"].as_array().is_some_and(Vec::is_empty))
    })?;
    // The requests' connection is over, too, without a byte.
    let served = told(&mesh, &["--kind", "close", "--tier", "agent L7"])?;
    ensure!(served["sent_bytes"] == 0 && served["received_bytes"] == 0, "{served:#}");
    Ok(())
}

#[test]
fn sockets_are_told_of_with_what_they_were_led_to_and_their_bytes() -> Result<()> {
    if unprivileged("sockets_are_told_of_with_what_they_were_led_to_and_their_bytes") {
        return Ok(());
    }
    let mesh = mesh_of_sockets("sockets", "off")?;
    for family in 0..2 {
        let service = mesh.service("count", family, 81)?;
        let backend = SocketAddr::new(mesh.pod_ip("backend", family)?, PORT);
        let waiting = Waiting::connect(&mesh, "client", service, 100_000)?;
        let source = SocketAddr::new(mesh.pod_ip("client", family)?, waiting.port).to_string();
        let connect = told(&mesh, &["--from", &source, "--kind", "connect"])?;
        check(&connect, &[("verdict", "balanced"), ("reason", "balanced"), ("tier", "kernel")])?;
        check(&connect, &[("destination", &service.to_string()), ("endpoint", &backend.to_string())])?;
        let open = told(&mesh, &["--from", &source, "--kind", "open"])?;
        check(
            &open,
            &[("verdict", "balanced"), ("reason", "established"), ("destination_name", "default/count")],
        )?;
        ensure!(open["rtt_us"].is_u64(), "{open:#}");
        let live = why(&mesh, &source, &service.to_string())?;
        check(
            &live,
            &[("state", "live"), ("verdict", "balanced"), ("tier", "kernel"), ("reason", "balanced")],
        )?;
        ensure!(live["live"][0]["endpoint"] == backend.to_string(), "{live:#}");
        ensure!(waiting.finish()? == 100_000, "bytes were lost");
        let closed = told(&mesh, &["--from", &source, "--to", "count", "--kind", "close"])?;
        check(
            &closed,
            &[("verdict", "balanced"), ("reason", "closed"), ("endpoint_pod", "default/backend")],
        )?;
        ensure!(closed["sent_bytes"] == 100_000 && closed["received_bytes"] == 8, "{closed:#}");
        // The other end tells the same.
        let filter = ["--from", &source, "--to", &backend.to_string(), "--kind", "close"];
        let by_server = wait_until("the server's end", LIMIT, || {
            observe(&mesh, &filter).ok()?.into_iter().find(|flow| flow["by_server"] == true)
        })?;
        ensure!(by_server["sent_bytes"] == 100_000 && by_server["received_bytes"] == 8, "{by_server:#}");
        let past = why(&mesh, &source, &service.to_string())?;
        check(&past, &[("state", "past"), ("verdict", "balanced")])?;
    }
    // A connection that is cut.
    let backend = SocketAddr::new(mesh.pod_ip("backend", 0)?, PORT);
    let mut waiting = Waiting::connect(&mesh, "client", backend, 1)?;
    let source = SocketAddr::new(mesh.pod_ip("client", 0)?, waiting.port).to_string();
    exec::stdout(mesh.lab.pod("client")?.command("ss")?.args(["-K", "dst", &backend.ip().to_string()]))?;
    let cut = told(&mesh, &["--from", &source, "--kind", "close", "--verdict", "plain"])?;
    check(&cut, &[("reason", "reset"), ("tier", "kernel")])?;
    waiting.child.kill()?;
    waiting.child.wait()?;
    Ok(())
}

/// A service whose clients come back, with a port for datagrams.
fn own_service(mesh: &Mesh) -> Result<String> {
    let backend = mesh.pod_ip("backend", 0)?;
    Ok(format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: own, namespace: default}}\nspec:\n  clusterIP: 10.96.1.1\n  \
         clusterIPs: [10.96.1.1]\n  sessionAffinity: ClientIP\n  ports:\n  - {{name: tcp, port: 81, targetPort: {PORT}}}\n  \
         - {{name: dns, port: 53, targetPort: 5353, protocol: UDP}}\n---\napiVersion: discovery.k8s.io/v1\n\
         kind: EndpointSlice\nmetadata: {{name: own-v4, namespace: default, labels: {{kubernetes.io/service-name: own}}}}\n\
         addressType: IPv4\nports:\n- {{name: tcp, port: {PORT}, protocol: TCP}}\n- {{name: dns, port: 5353, protocol: UDP}}\n\
         endpoints:\n- {{addresses: [\"{backend}\"], conditions: {{ready: true}}}}\n"
    ))
}

#[test]
fn clients_that_come_back_and_datagrams_are_told() -> Result<()> {
    if unprivileged("clients_that_come_back_and_datagrams_are_told") {
        return Ok(());
    }
    let mesh = mesh_of_sockets("affinity", "off")?;
    let before = mesh.version(NODE)?;
    mesh.write("own.yaml", &own_service(&mesh)?)?;
    mesh.wait_version_above(NODE, before)?;
    let own: SocketAddr = "10.96.1.1:81".parse()?;
    let backend = SocketAddr::new(mesh.pod_ip("backend", 0)?, PORT).to_string();
    for reason in ["balanced", "affinity"] {
        let waiting = Waiting::connect(&mesh, "client", own, 5)?;
        let source = SocketAddr::new(mesh.pod_ip("client", 0)?, waiting.port).to_string();
        let event = told(&mesh, &["--from", &source, "--kind", "connect"])?;
        check(&event, &[("verdict", "balanced"), ("reason", reason), ("endpoint", &backend)])?;
        let live = why(&mesh, &source, &own.to_string())?;
        check(&live, &[("state", "live"), ("verdict", "balanced"), ("reason", reason)])?;
        waiting.finish()?;
    }
    let asked = why(&mesh, "client", &own.to_string())?;
    check(
        &asked,
        &[("state", "hypothetical"), ("verdict", "balanced"), ("reason", "affinity"), ("tier", "kernel")],
    )?;
    // Three datagrams of one socket are one event, which names the process in place of an address.
    let script = "import os, socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
        for _ in range(3): s.sendto(b'?', ('10.96.1.1', 53))\nprint(os.getpid())";
    let process = exec::stdout(mesh.lab.pod("client")?.command("python3")?.args(["-c", script]))?;
    let event = told(&mesh, &["--to", "10.96.1.1:53", "--protocol", "udp", "--kind", "connect"])?;
    check(
        &event,
        &[("verdict", "balanced"), ("destination_name", "default/own"), ("endpoint_pod", "default/backend")],
    )?;
    let process: u32 = process.trim().parse().with_context(|| process.clone())?;
    ensure!(event["process"] == process, "process {process}: {event:#}");
    let all = observe(&mesh, &["--protocol", "udp"])?;
    ensure!(all.len() == 1, "{} events of one socket: {all:#?}", all.len());
    Ok(())
}

#[test]
fn what_is_accelerated_is_said_to_be_and_its_bytes_are_not_made_up() -> Result<()> {
    if unprivileged("what_is_accelerated_is_said_to_be_and_its_bytes_are_not_made_up")
        || unaccelerated("what_is_accelerated_is_said_to_be_and_its_bytes_are_not_made_up")
    {
        return Ok(());
    }
    let mesh = mesh_of_sockets("joined", "on")?;
    ensure!(mesh.verb(NODE, "status")?["capture"]["acceleration"]["active"] == true, "acceleration is off");
    let backend = SocketAddr::new(mesh.pod_ip("backend", 0)?, PORT);
    let waiting = Waiting::connect(&mesh, "client", backend, 50_000)?;
    let source = SocketAddr::new(mesh.pod_ip("client", 0)?, waiting.port).to_string();
    let one = wait_until("the connection to be shown", LIMIT, || {
        let all = mesh.verb(NODE, "connections").ok()?;
        all["connections"].as_array()?.iter().find(|one| one["source"] == source.as_str()).cloned()
    })?;
    check(
        &one,
        &[
            ("tier", "kernel"),
            ("verdict", "direct"),
            ("reason", "joined"),
            ("destination", &backend.to_string()),
        ],
    )?;
    ensure!(one["accelerated"] == true && one["sent_bytes"].is_null(), "{one:#}");
    let live = why(&mesh, &source, &backend.to_string())?;
    check(&live, &[("state", "live"), ("verdict", "direct"), ("reason", "joined")])?;
    ensure!(waiting.finish()? == 50_000, "bytes were lost");
    let closed = told(&mesh, &["--from", &source, "--kind", "close"])?;
    check(&closed, &[("verdict", "accelerated"), ("reason", "closed")])?;
    ensure!(closed["sent_bytes"].is_null() && closed["received_bytes"].is_null(), "{closed:#}");
    let text = sluice(&mesh, &["observe", "--from", &source, "--kind", "close"])?;
    ensure!(text.contains("bytes unknown"), "{text}");
    // The agent's leg of a captured connection, likewise.
    let service = mesh.service("count", 0, 80)?;
    let curl = mesh.curl("client", &[&format!("http://{service}/")])?;
    ensure!(!curl.is_empty(), "nobody answered");
    let leg = told(
        &mesh,
        &["--from", "client", "--to", "count", "--port", "80", "--kind", "close", "--tier", "kernel"],
    )?;
    check(&leg, &[("destination", &service.to_string())])?;
    Ok(())
}

#[test]
fn what_the_guard_drops_is_told_and_explained() -> Result<()> {
    if unprivileged("what_the_guard_drops_is_told_and_explained") {
        return Ok(());
    }
    let guard = "apiVersion: sluice.dev/v1alpha1\nkind: EdgeGuard\nmetadata: {name: edge}\nspec: {deny: [192.0.2.0/24]}\n";
    let mesh = mesh("guarded", &[("guard.yaml", guard)], &["--guard", "eth0"])?;
    let outside = mesh.lab.underlay().enter(|| Wire::open("node-1"))??;
    let ends = ("192.0.2.9".parse()?, "198.51.100.1".parse()?);
    outside.send(&udp(ends, b"denied"))?;
    let event = told(&mesh, &["--from", "192.0.2.9", "--tier", "guard"])?;
    check(
        &event,
        &[
            ("kind", "drop"),
            ("verdict", "dropped"),
            ("reason", "denied"),
            ("protocol", "udp"),
            ("policy", "edge"),
        ],
    )?;
    let said = why(&mesh, "192.0.2.9", "198.51.100.1:80")?;
    check(
        &said,
        &[("verdict", "dropped"), ("tier", "guard"), ("reason", "denied"), ("rule", "EdgeGuard edge")],
    )?;
    let said = why(&mesh, "203.0.113.1", "198.51.100.1:80")?;
    ensure!(said["verdict"] != "dropped", "{said:#}");
    // A flood is told in part, and what is left out is counted.
    let flood: Vec<_> = std::iter::repeat_with(|| udp(ends, b"flood")).take(3000).collect();
    outside.send_all(&flood)?;
    let dropped = || mesh.metric(NODE, "sluice_guard_packets_total{reason=\"denied\",verdict=\"drop\"}");
    wait_for("all of the flood to be dropped", LIMIT, || dropped().is_ok_and(|count| count > 3000.5))?;
    let flows = |mesh: &Mesh| -> Result<Value> {
        let answer =
            mesh.lab.node(NODE)?.in_netns(|| get(lab::agent::ADMIN, "localhost", "/flows", LIMIT))??;
        serde_json::from_str(&answer.text()).context("/flows")
    };
    wait_for("every drop to be told or counted as lost", LIMIT, || {
        flows(&mesh).is_ok_and(|dump| {
            let told = dump["flows"].as_array().map_or(0, Vec::len) as u64;
            let lost = dump["lost"].as_u64().unwrap_or(0);
            told + lost == 3001 && told >= 2 && lost > 0
        })
    })
    .with_context(|| format!("{:?}", flows(&mesh).map(|dump| dump["lost"].clone())))
}

#[test]
fn without_a_listener_connections_go_direct_and_it_is_told() -> Result<()> {
    if unprivileged("without_a_listener_connections_go_direct_and_it_is_told") {
        return Ok(());
    }
    let mesh = mesh("unheard", &[], &["--drain-timeout", "20"])?;
    let service = mesh.service("count", 0, 81)?;
    let waiting = Waiting::connect(&mesh, "client", service, 10)?;
    nix_terminate(mesh.agents[0].pid())?;
    wait_for("the agent to drain", LIMIT, || {
        mesh.verb(NODE, "status").is_ok_and(|status| status["drain"]["draining"] == true)
    })?;
    knock(&mesh, "client", service)?;
    let event = told(&mesh, &["--from", "client", "--kind", "verdict", "--verdict", "no_listener"])?;
    check(&event, &[("verdict", "direct"), ("tier", "kernel"), ("destination", &service.to_string())])?;
    let said = why(&mesh, "client", &service.to_string())?;
    check(&said, &[("verdict", "direct"), ("reason", "no_listener")])?;
    ensure!(waiting.finish()? == 10, "the drained connection lost bytes");
    Ok(())
}

fn nix_terminate(pid: u32) -> Result<()> {
    exec::run(&mut exec::command("kill", ["-TERM", &pid.to_string()])).map(drop)
}
