//! Pods whose AuthorizationPolicy asks of requests: the agent of their node takes what comes in and judges it.

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::{LIMIT, Mesh, TIMEOUT};
use lab::agent::METRICS;
use lab::http::{Connection, get};
use lab::{PodSpec, Program, ServiceSpec, Topology, backend, exec, unprivileged, wait_for};
use serde_json::Value;

/// How long a connection that nobody answers is waited for.
const SILENCE: Duration = Duration::from_millis(700);
/// nginx, which says who its peer is.
const PORT: u16 = 8080;
/// nghttpd, which speaks HTTP/2 alone.
const H2: u16 = 8081;
/// A server of the test's own, which counts requests and gives bodies back.
const ECHO: u16 = 8082;
/// A server of the test's own, which switches protocols.
const SWITCH: u16 = 8083;
const NGHTTPD: &str = "mkdir -p www && echo hello > www/ok && exec nghttpd --no-tls -d www 8081";
const CAPTURED: &str = "sluice_capture_packets_total{reason=\"captured_inbound\"}";
const REFUSED: &str = "sluice_policy_drops_total{policy=\"default/p\",rule=\"none\",tier=\"agent\"}";
/// Lets pods of the namespace `good` read two paths.
const READERS: &str = "
  rules:
  - from: [{source: {namespaces: [good]}}]
    to: [{operation: {methods: [GET], paths: [/ok, '/files/*']}}]
";

fn topology() -> Topology {
    let client = |name: &str, node: &str, namespace: &str| PodSpec {
        namespace: namespace.to_owned(),
        ..PodSpec::new(name, node)
    };
    let server = PodSpec::new("server", "node1").label("app", "server").runs(Program::Http { port: PORT });
    Topology::with_nodes(2)
        .pod(client("near", "node1", "good"))
        .pod(client("far", "node2", "good"))
        .pod(client("foe", "node1", "bad"))
        .pod(client("far-foe", "node2", "bad"))
        .pod(server)
        .pod(PodSpec::new("free", "node1").label("app", "free").runs(Program::Http { port: PORT }))
        .service(ServiceSpec::new("server").port("http", 80, PORT).undeclared_port(82, PORT))
}

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p}}\nspec:\n  selector: {{matchLabels: {{app: server}}}}{spec}"
    )
}

/// Counts what enters the server from each of these pods before anything else sees it: requests for TCP connections, and
/// data in them. (Acknowledgements of what went before may come at any time.)
fn count_in_server(mesh: &Mesh, pods: &[&str]) -> Result<()> {
    let mut chain = Vec::new();
    for pod in pods {
        for (family, word) in ["ip", "ip6"].into_iter().enumerate() {
            let from = format!("{word} saddr {}", mesh.pod_ip(pod, family)?);
            chain.push(format!("{from} tcp flags & (syn | psh) != 0 counter comment \"{pod}\""));
        }
    }
    let (hook, chain) = ("type filter hook prerouting priority -400;", chain.join("\n"));
    mesh.lab.pod("server")?.netns().nft(&format!("table inet seen {{\nchain in {{ {hook}\n{chain}\n}}\n}}\n"))
}

fn seen(mesh: &Mesh, pod: &str) -> Result<u64> {
    let mut nft = mesh.lab.pod("server")?.command("nft")?;
    let text = exec::stdout(nft.args(["list", "chain", "inet", "seen", "in"]))?;
    let comment = format!("comment \"{pod}\"");
    let packets = text.lines().filter(|line| line.trim().ends_with(&comment)).map(|line| -> Result<u64> {
        let (_, counted) = line.split_once("counter packets ").context("a rule without a counter")?;
        Ok(counted.split(' ').next().unwrap_or_default().parse()?)
    });
    let packets = packets.collect::<Result<Vec<_>>>().with_context(|| text.clone())?;
    ensure!(packets.len() == 2, "not both families of {pod} are counted:\n{text}");
    Ok(packets.iter().sum())
}

fn connect(mesh: &Mesh, pod: &str, to: SocketAddr) -> Result<Connection> {
    Ok(mesh.lab.pod(pod)?.in_netns(|| Connection::open(to, TIMEOUT))??)
}

/// What the two agents have refused together.
fn refused(mesh: &Mesh) -> Result<f64> {
    Ok(mesh.metric("node1", REFUSED)? + mesh.metric("node2", REFUSED)?)
}

fn server(mesh: &Mesh, family: usize, port: u16) -> Result<SocketAddr> {
    Ok(SocketAddr::new(mesh.pod_ip("server", family)?, port))
}

/// Waits until both nodes have the table that a change of documents makes.
fn change(mesh: &Mesh, text: &str) -> Result<()> {
    let before = [mesh.version("node1")?, mesh.version("node2")?];
    mesh.write("policy.yaml", text)?;
    for (node, version) in ["node1", "node2"].into_iter().zip(before) {
        mesh.wait_version_above(node, version)?;
    }
    Ok(())
}

/// Waits until the programs have the table as well, which the status tells after them.
fn wait_captured(mesh: &Mesh, addresses: usize) -> Result<()> {
    let captured = || -> Result<usize> {
        let status = mesh.verb("node1", "status")?;
        Ok(status["capture"]["inbound"].as_array().context("no inbound in the status")?.len())
    };
    wait_for("the pods that are captured inbound", LIMIT, || captured().is_ok_and(|now| now == addresses))
}

fn why(mesh: &Mesh, node: &str, source: &str, destination: &str) -> Result<Value> {
    let binary = lab::agent::built_binary()?;
    let arguments = ["why", source, destination, "-o", "json"];
    let text = exec::stdout(mesh.lab.node(node)?.command(binary)?.args(arguments))?;
    serde_json::from_str(&text).with_context(|| text.clone())
}

#[test]
fn each_request_is_judged_once_wherever_it_comes_from() -> Result<()> {
    if unprivileged("each_request_is_judged_once_wherever_it_comes_from") {
        return Ok(());
    }
    let mesh = Mesh::up("inbound", topology(), &[("policy.yaml", &policy(READERS))])?;
    wait_captured(&mesh, 2)?;
    count_in_server(&mesh, &["near", "far", "foe", "far-foe"])?;
    for pod in ["near", "far"] {
        for family in 0..2 {
            for to in [
                server(&mesh, family, PORT)?,
                mesh.service("server", family, 80)?,
                mesh.service("server", family, 82)?,
            ] {
                judge(&mesh, pod, family, to).with_context(|| format!("{pod} to {to}"))?;
            }
        }
    }
    for foe in ["foe", "far-foe"] {
        for family in 0..2 {
            let to = server(&mesh, family, PORT)?;
            let answered = mesh.lab.pod(foe)?.in_netns(|| TcpStream::connect_timeout(&to, SILENCE))?;
            ensure!(answered.is_err(), "{foe} is answered at {to}, which no request of theirs may be");
        }
        ensure!(seen(&mesh, foe)? == 0, "packets of {foe} got through");
    }
    ensure!(seen(&mesh, "near")? > 0 && seen(&mesh, "far")? > 0, "the counters do not count");
    let told = || {
        let log = mesh.agents[0].log();
        log.lines().any(|line| line.contains("\"direction\":\"inbound\"") && line.contains("UAEX"))
    };
    wait_for("the access log to tell of a refused inbound request", LIMIT, told)?;
    let metrics =
        mesh.lab.node("node1")?.in_netns(|| get(METRICS, "localhost", "/metrics", TIMEOUT))??.text();
    let reported = metrics.lines().any(|line| {
        let labels =
            ["reporter=\"destination\"", "destination_workload=\"server\"", "source_workload=\"far\""];
        line.starts_with("istio_requests_total{") && labels.iter().all(|label| line.contains(label))
    });
    ensure!(reported, "no request is counted on its destination's side");
    Ok(())
}

/// Allowed and refused requests of one pod to one address, each on a connection of its own.
fn judge(mesh: &Mesh, pod: &str, family: usize, to: SocketAddr) -> Result<()> {
    for path in ["/ok", "/ok?a=/admin", "/files/x", "/x/../ok"] {
        let response = connect(mesh, pod, to)?.get("server", path, &[("Connection", "close")])?;
        let client = mesh.pod_ip(pod, family)?.to_string();
        ensure!(response.status == 200, "{path}: {}", response.status);
        ensure!(response.text().split(' ').any(|word| word == client), "{path}: {:?}", response.text());
    }
    let (before, counted) = (seen(mesh, pod)?, refused(mesh)?);
    let cases = [("POST", "/ok"), ("GET", "/admin"), ("GET", "/ok/../admin"), ("GET", "/%6fk/x")];
    for (method, path) in cases {
        let response = connect(mesh, pod, to)?.request(method, "server", path, &[("Connection", "close")])?;
        ensure!(response.status == 403, "{method} {path}: {}", response.status);
        ensure!(response.text().contains("rbac_access_denied"), "{:?}", response.text());
    }
    let (after, now) = (seen(mesh, pod)?, refused(mesh)?);
    ensure!(after == before, "{} packets of refused requests reached the pod", after - before);
    ensure!((now - counted - 4.0).abs() < 0.5, "{} refusals counted, not 4", now - counted);
    Ok(())
}

#[test]
fn only_what_must_be_judged_is_taken_and_every_step_is_shown() -> Result<()> {
    if unprivileged("only_what_must_be_judged_is_taken_and_every_step_is_shown") {
        return Ok(());
    }
    let mesh = Mesh::up("inbound_shown", topology(), &[("policy.yaml", &policy(READERS))])?;
    wait_captured(&mesh, 2)?;
    let before = mesh.metric("node1", CAPTURED)?;
    for family in 0..2 {
        let free = SocketAddr::new(mesh.pod_ip("free", family)?, PORT);
        let response = mesh.get("far", free, "free", "/admin")?;
        ensure!(
            response.status == 200 && response.header("via").is_none(),
            "a pod without policy: {response:?}"
        );
        let to = server(&mesh, family, PORT)?;
        let probe = mesh.lab.node("node1")?.in_netns(|| get(to, "server", "/admin", TIMEOUT))??;
        ensure!(probe.status == 200 && probe.header("via").is_none(), "the node's probe: {probe:?}");
    }
    ensure!((mesh.metric("node1", CAPTURED)? - before).abs() < 0.5, "something was captured");
    let to = server(&mesh, 0, PORT)?;
    ensure!(mesh.get("far", to, "server", "/ok")?.header("via").is_some(), "the agent had no part in it");
    ensure!(mesh.metric("node1", CAPTURED)? > before, "nothing was captured");
    let status = mesh.verb("node2", "status")?;
    ensure!(
        status["capture"]["inbound"] == serde_json::json!([]),
        "another node's pod: {}",
        status["capture"]
    );

    let rule = "rule 0 of default/p allows";
    for (node, source, tier, reason) in [
        ("node1", "good/near", "agent L7", "captured_inbound"),
        ("node1", "good/far", "agent L7", "captured_inbound"),
        ("node2", "good/far", "kernel", "no_route"),
    ] {
        let said = why(&mesh, node, source, "server:8080")?;
        ensure!(said["tier"] == tier && said["reason"] == reason, "{node}, {source}: {said}");
        ensure!(said.to_string().contains(rule), "{node}, {source}: no rule in {said}");
    }
    let said = why(&mesh, "node1", "bad/foe", "server:8080")?;
    ensure!(said["verdict"] == "refused", "the foe: {said}");
    let flows = exec::stdout(
        mesh.lab.node("node1")?.command(lab::agent::built_binary()?)?.args(["observe", "-o", "json"]),
    )?;
    ensure!(flows.contains("captured_inbound"), "no such flow in {flows}");
    Ok(())
}

#[test]
fn verdicts_are_mixed_on_one_connection_and_other_protocols_are_judged() -> Result<()> {
    if unprivileged("verdicts_are_mixed_on_one_connection_and_other_protocols_are_judged") {
        return Ok(());
    }
    let mut pods = topology();
    let argv = ["sh", "-c", NGHTTPD].map(str::to_owned).to_vec();
    let server_pod = pods.pods.iter_mut().find(|pod| pod.name == "server").context("no server")?;
    server_pod.programs.push(Program::Server { argv, port: H2 });
    let mesh = Mesh::up("inbound_mixed", pods, &[("policy.yaml", &policy(READERS))])?;
    wait_captured(&mesh, 2)?;
    count_in_server(&mesh, &["near", "far"])?;
    for (pod, family) in [("near", 0), ("far", 1), ("near", 1), ("far", 0)] {
        for to in [server(&mesh, family, PORT)?, mesh.service("server", family, 82)?] {
            let packets = opaque(&mesh, pod, to)?;
            ensure!(packets == 0, "{pod}: {packets} packets of an opaque connection to {to} reached the pod");
        }
        let mut connection = connect(&mesh, pod, server(&mesh, family, PORT)?)?;
        for (method, path, expected) in [
            ("GET", "/ok", 200),
            ("POST", "/ok", 403),
            ("GET", "/admin", 403),
            ("GET", "/ok", 200),
            ("PUT", "/x", 403),
        ] {
            let status = connection.request(method, "server", path, &[])?.status;
            ensure!(status == expected, "{pod}, family {family}: {method} {path} was answered {status}");
            ensure!(connection.is_reusable(), "{pod}: closed after {method} {path}");
        }
        let url =
            |path: &str| -> Result<String> { Ok(format!("http://{}{path}", server(&mesh, family, H2)?)) };
        let curl = |arguments: &[&str]| {
            let format = ["-w", " %{http_code} %{http_version}", "--http2-prior-knowledge"];
            mesh.curl(pod, &[&format[..], arguments].concat())
        };
        let got = curl(&[&url("/ok")?])?;
        ensure!(got.trim() == "hello\n 200 2", "{got:?}");
        let got = curl(&["-X", "POST", &url("/ok")?])?;
        ensure!(got.ends_with("403 2"), "{got:?}");
        let grpc = ["-D", "-", "-X", "POST", "-H", "content-type: application/grpc", &url("/a.B/C")?];
        let got = curl(&grpc)?.to_lowercase();
        ensure!(got.contains("grpc-status: 7"), "{got:?}");
    }
    Ok(())
}

/// Sends something that is no request; the answer must be a cut. Gives how many packets reached the pod.
fn opaque(mesh: &Mesh, pod: &str, to: SocketAddr) -> Result<u64> {
    let before = seen(mesh, pod)?;
    let mut stream = mesh.lab.pod(pod)?.in_netns(|| TcpStream::connect_timeout(&to, TIMEOUT))??;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(b"\x00\x01 no request\r\n")?;
    let answer = stream.read(&mut [0; 64]);
    let late = answer.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
    ensure!(!matches!(answer, Ok(1..)) && !late, "{pod}: an opaque connection was answered {answer:?}");
    Ok(seen(mesh, pod)? - before)
}

#[test]
fn policies_come_and_go_under_open_connections() -> Result<()> {
    if unprivileged("policies_come_and_go_under_open_connections") {
        return Ok(());
    }
    let mesh = Mesh::up("inbound_live", topology(), &[])?;
    wait_captured(&mesh, 0)?;
    let to = server(&mesh, 0, PORT)?;
    let post = |connection: &mut Connection| -> Result<u16> {
        Ok(connection.request("POST", "server", "/ok", &[])?.status)
    };
    let mut carried = connect(&mesh, "near", mesh.service("server", 0, 80)?)?;
    ensure!(post(&mut carried)? == 200 && post(&mut connect(&mesh, "far", to)?)? == 200, "without policy");
    for round in 0..2 {
        change(&mesh, &policy(READERS))?;
        wait_captured(&mesh, 2)?;
        ensure!(post(&mut carried)? == 403, "round {round}: what the agent carried already is judged");
        let mut taken = connect(&mesh, "far", to)?;
        ensure!(post(&mut taken)? == 403 && taken.get("server", "/ok", &[])?.status == 200, "round {round}");
        std::fs::remove_file(mesh.config.join("policy.yaml"))?;
        wait_captured(&mesh, 0)?;
        ensure!(post(&mut taken)? == 200, "round {round}: what was captured goes on");
        ensure!(post(&mut carried)? == 200, "round {round}: what was carried goes on");
        let direct = mesh.get("far", to, "server", "/admin")?;
        ensure!(direct.status == 200 && direct.header("via").is_none(), "round {round}: {direct:?}");
    }
    Ok(())
}

/// A server in the pod that switches protocols and then sends back what it gets.
fn switch(mesh: &Mesh) -> Result<()> {
    let any = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), SWITCH);
    let listener = mesh.lab.pod("server")?.in_netns(|| TcpListener::bind(any))??;
    backend::raw(listener, |mut stream| {
        let Ok(copy) = stream.try_clone() else { return };
        let mut reader = std::io::BufReader::new(copy);
        if backend::read_head(&mut reader).is_ok() {
            let head = b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
            // A client that goes away ends its own connection and nothing else.
            let _ = stream.write_all(head).and_then(|()| std::io::copy(&mut reader, &mut stream).map(drop));
        }
    })?;
    Ok(())
}

fn tunnel(mesh: &Mesh, path: &str) -> Result<TcpStream> {
    let to = server(mesh, 1, SWITCH)?;
    let mut stream = mesh.lab.pod("far")?.in_netns(|| TcpStream::connect_timeout(&to, TIMEOUT))??;
    stream.set_read_timeout(Some(LIMIT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    ensure!(head.starts_with(b"HTTP/1.1 101"), "{path}: {}", String::from_utf8_lossy(&head));
    Ok(stream)
}

/// The bytes of a tunnel are no requests; it stands and falls with the one that opened it.
#[test]
fn tunnels_are_judged_by_the_request_that_opened_them() -> Result<()> {
    if unprivileged("tunnels_are_judged_by_the_request_that_opened_them") {
        return Ok(());
    }
    let rules = |path: &str| {
        policy(&format!("\n  action: DENY\n  rules: [{{to: [{{operation: {{paths: ['{path}']}}}}]}}]\n"))
    };
    let mesh = Mesh::up("inbound_tunnel", topology(), &[("policy.yaml", &rules("/none"))])?;
    wait_captured(&mesh, 2)?;
    switch(&mesh)?;
    let (mut stays, mut goes) = (tunnel(&mesh, "/stays")?, tunnel(&mesh, "/goes")?);
    let echoed = |stream: &mut TcpStream| -> std::io::Result<[u8; 4]> {
        stream.write_all(b"ping")?;
        let mut back = [0; 4];
        stream.read_exact(&mut back).map(|()| back)
    };
    ensure!(echoed(&mut stays)? == *b"ping" && echoed(&mut goes)? == *b"ping", "before the change");
    change(&mesh, &rules("/goes"))?;
    // Cut without a word of the client: the read ends long before its time.
    let cut = goes.read(&mut [0; 9]);
    let late = cut.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
    ensure!(!matches!(cut, Ok(1..)) && !late, "what its request may no longer have goes on: {cut:?}");
    ensure!(echoed(&mut stays)? == *b"ping", "the other tunnel was cut");
    ensure!(tunnel(&mesh, "/goes").is_err(), "another one is opened");
    Ok(())
}

/// A server in the pod that counts requests and gives their bodies back.
fn echo(mesh: &Mesh) -> Result<Arc<AtomicUsize>> {
    let any = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), ECHO);
    let listener = mesh.lab.pod("server")?.in_netns(|| TcpListener::bind(any))??;
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&requests);
    backend::http(listener, move |request| {
        counter.fetch_add(1, Ordering::SeqCst);
        backend::Reply { status: 200, headers: Vec::new(), body: request.body.clone() }
    })?;
    Ok(requests)
}

#[test]
fn large_bodies_pass_unchanged_and_refused_ones_do_not_arrive() -> Result<()> {
    if unprivileged("large_bodies_pass_unchanged_and_refused_ones_do_not_arrive") {
        return Ok(());
    }
    let rules = "
  action: DENY
  rules:
  - to: [{operation: {paths: ['/private/{**}'], notMethods: [HEAD]}}]
  - when: [{key: 'request.headers[X-Role]', values: [guest]}]
  - to: [{operation: {hosts: [evil.test]}}]
  - when: [{key: 'request.headers[upgrade]', values: [spdy]}]
";
    let mesh = Mesh::up("inbound_bulk", topology(), &[("policy.yaml", &policy(rules))])?;
    wait_captured(&mesh, 2)?;
    let requests = echo(&mesh)?;
    let body: Vec<u8> =
        (0u32..3 << 20).flat_map(|word| word.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    let (file, back) = (mesh.lab.directory().join("body"), mesh.lab.directory().join("back"));
    std::fs::write(&file, &body)?;
    for (count, (pod, family)) in (1..).zip([("near", 0), ("far", 1)]) {
        let url =
            |path: &str| -> Result<String> { Ok(format!("http://{}{path}", server(&mesh, family, ECHO)?)) };
        let (from, to) = (format!("@{}", file.display()), back.display().to_string());
        let (code, upload) = (["-w", "%{http_code}", "-o", &to], ["--data-binary", from.as_str()]);
        let got = mesh.curl(pod, &[&code[..], &upload, &[&url("/public")?]].concat())?;
        ensure!(got == "200", "{pod}: {got}");
        ensure!(std::fs::read(&back)? == body, "{pod}: the body came back changed");
        for (arguments, rule) in [
            (&["/private"][..], 0),
            (&["/private/a/b"], 0),
            (&["/public", "-H", "X-Role: guest"], 1),
            (&["/public", "-H", "x-role: admin", "-H", "x-role: guest"], 1),
            (&["/public", "-H", "Host: EVIL.test:81"], 2),
            (&["/public", "-H", "Upgrade: spdy", "-H", "Connection: upgrade"], 3),
        ] {
            let counted = |rule: i32| {
                let series = format!(
                    "sluice_policy_drops_total{{policy=\"default/p\",rule=\"{rule}\",tier=\"agent\"}}"
                );
                mesh.metric("node1", &series)
            };
            let before = counted(rule)?;
            let (path, rest) = arguments.split_first().context("a path")?;
            // A request with content switches no protocol.
            let upload = if rule == 3 { &[] } else { &upload[..] };
            let got = mesh.curl(pod, &[&code[..], upload, &[&url(path)?], rest].concat())?;
            ensure!(got == "403", "{pod} {arguments:?}: {got}");
            ensure!(
                (counted(rule)? - before - 1.0).abs() < 0.5,
                "{pod} {arguments:?}: not counted for rule {rule}"
            );
        }
        ensure!(
            requests.load(Ordering::SeqCst) == count,
            "{} requests arrived",
            requests.load(Ordering::SeqCst)
        );
    }
    Ok(())
}

/// A Gateway's route may give a request another path; the pod's policy is about that one.
#[test]
fn gateways_are_judged_by_what_the_pod_would_see() -> Result<()> {
    if unprivileged("gateways_are_judged_by_what_the_pod_would_see") {
        return Ok(());
    }
    let edge = "apiVersion: gateway.networking.k8s.io/v1
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
  - matches: [{path: {value: /staff}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /admin}}}]
    backendRefs: [{name: server, port: 80}]
  - filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-role, value: guest}]}}]
    matches: [{path: {value: /guest}}]
    backendRefs: [{name: server, port: 80}]
  - backendRefs: [{name: server, port: 80}]
";
    let rules = "
  action: DENY
  rules:
  - to: [{operation: {paths: ['/admin*']}}]
  - when: [{key: 'request.headers[x-role]', notValues: [user, admin]}]
";
    let documents = [("edge.yaml", edge), ("policy.yaml", &policy(rules))];
    let mesh = Mesh::up("inbound_edge", topology(), &documents)?;
    wait_captured(&mesh, 2)?;
    for (node, pod) in [("node1", "near"), ("node2", "far")] {
        let to = SocketAddr::new(mesh.lab.node(node)?.address().both()[0], 8888);
        let ask = |path: &str, role: Option<&str>| -> Result<u16> {
            let mut headers = vec![("Connection", "close")];
            headers.extend(role.map(|role| ("x-role", role)));
            Ok(connect(&mesh, pod, to)?.get("shop", path, &headers)?.status)
        };
        for (path, role, expected) in [
            ("/open", Some("user"), 200),
            ("/open", None, 403),
            ("/open", Some("other"), 403),
            ("/staff", Some("admin"), 403),
            ("/admin", Some("admin"), 403),
            ("//admin", Some("admin"), 403),
            ("/guest", Some("admin"), 403),
        ] {
            let status = ask(path, role)?;
            ensure!(status == expected, "{node}: {path} with {role:?} was answered {status}");
        }
    }
    Ok(())
}
