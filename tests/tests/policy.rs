//! AuthorizationPolicies where they are enforced: a counter within the pod shows what got through.

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::{LIMIT, Mesh};
use lab::ethernet::{ETHERNET_LEN, Wire, patched, tcp, udp};
use lab::http::get;
use lab::{PodSpec, Program, ServiceSpec, Topology, exec, unprivileged, wait_for};

/// How long a connection that nobody answers is waited for.
const SILENCE: Duration = Duration::from_millis(700);
const PORT: u16 = 8080;
/// Sends an echo request and says whether it was answered.
const PING: &str = "import socket,sys,time
to=sys.argv[1]; v6=':' in to
s=socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_RAW, 58 if v6 else 1)
s.settimeout(0.7)
s.sendto(bytes([128,0,0,0,0,0,0,1] if v6 else [8,0,0xf7,0xfe,0,0,0,1]), (to,0))
end=time.monotonic()+0.7
try:
 while time.monotonic()<end:
  d,a=s.recvfrom(99)
  if a[0]==to and d[0 if v6 else 20]==(129 if v6 else 0): print('answered'); break
except TimeoutError: pass
";

/// Sends to a pod what would answer datagrams of its port 40000, and segments of its port 700, to port 9.
const ANSWER: &str = "import socket,sys
to=sys.argv[1]; family=socket.AF_INET6 if ':' in to else socket.AF_INET
u=socket.socket(family, socket.SOCK_DGRAM); u.bind(('',9)); u.sendto(b'!', (to,40000))
t=socket.socket(family, socket.SOCK_RAW, 6)
t.sendto(bytes([0,9,2,0xbc, 0,0,0,1, 0,0,0,1, 0x50,16,255,255, 0,0,0,0]), (to,0))
";

fn topology() -> Topology {
    let client = |name: &str, node: &str, namespace: &str| PodSpec {
        namespace: namespace.to_owned(),
        ..PodSpec::new(name, node)
    };
    Topology::with_nodes(2)
        .pod(client("friend", "node1", "good"))
        .pod(client("foe", "node1", "bad"))
        .pod(client("far-friend", "node2", "good"))
        .pod(client("far-foe", "node2", "bad"))
        .pod(PodSpec::new("server", "node1").label("app", "server").runs(Program::Http { port: PORT }))
        .pod(PodSpec::new("other", "node2").label("app", "other").runs(Program::Http { port: PORT }))
        .service(
            ServiceSpec::new("server").port("http", 80, PORT).port("tcp", 81, PORT).undeclared_port(82, PORT),
        )
}

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p}}\nspec:\n  selector: {{matchLabels: {{app: server}}}}\n{spec}"
    )
}

/// Refuses whatever comes from pods of the namespace `bad`.
fn deny() -> String {
    policy("  action: DENY\n  rules: [{from: [{source: {namespaces: [bad]}}]}]\n")
}

/// Lets nobody but one namespace through, and to one port alone.
fn allow() -> String {
    policy(&format!(
        "  rules: [{{from: [{{source: {{namespaces: [good]}}}}], to: [{{operation: {{ports: ['{PORT}']}}}}]}}]\n"
    ))
}

/// Counts, within the server, what comes from each of these pods, and TCP from anybody, before anything else sees it.
fn count_in_server(mesh: &Mesh, pods: &[&str]) -> Result<()> {
    let mut names = vec!["counter all_tcp {}".to_owned()];
    let mut chain = vec!["meta l4proto tcp counter name all_tcp".to_owned()];
    for pod in pods {
        let name = pod.replace('-', "_");
        names.push(format!("counter {name} {{}}"));
        for (family, word) in ["ip", "ip6"].into_iter().enumerate() {
            chain.push(format!("{word} saddr {} counter name {name}", mesh.pod_ip(pod, family)?));
        }
    }
    let (names, chain) = (names.join("\n"), chain.join("\n"));
    let hook = "type filter hook prerouting priority -400;";
    let table = format!("table inet seen {{\n{names}\nchain in {{ {hook}\n{chain}\n}}\n}}\n");
    mesh.lab.pod("server")?.netns().nft(&table)
}

fn seen(mesh: &Mesh, pod: &str) -> Result<u64> {
    let name = pod.replace('-', "_");
    let mut nft = mesh.lab.pod("server")?.command("nft")?;
    let text = exec::stdout(nft.args(["list", "counter", "inet", "seen", &name]))?;
    let words: Vec<&str> = text.split_whitespace().collect();
    let packets = words.iter().position(|word| *word == "packets").context("no packets in the counter")?;
    words[packets + 1].parse().with_context(|| text.clone())
}

/// Everything that a pod can try on the server's own addresses.
fn knock(mesh: &Mesh, pod: &str) -> Result<Vec<String>> {
    let mut answered = Vec::new();
    for family in 0..2 {
        let server = mesh.pod_ip("server", family)?;
        let from = mesh.lab.pod(pod)?;
        for port in [PORT, 40_001] {
            let to = SocketAddr::new(server, port);
            if from.in_netns(|| TcpStream::connect_timeout(&to, SILENCE))?.is_ok() {
                answered.push(to.to_string());
            }
            from.in_netns(|| send_datagram(to))??;
        }
        let ping = from.command("python3")?.args(["-c", PING, &server.to_string()]).output()?;
        ensure!(ping.status.success(), "ping: {}", String::from_utf8_lossy(&ping.stderr));
        if ping.stdout.starts_with(b"answered") {
            answered.push(format!("ping {server}"));
        }
    }
    Ok(answered)
}

fn send_datagram(to: SocketAddr) -> Result<()> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.send_to(b"datagram", to).context("sending a datagram")?;
    Ok(())
}

/// Whether a new connection of a pod is answered by the server itself.
fn reaches(mesh: &Mesh, pod: &str, family: usize) -> Result<bool> {
    let to = SocketAddr::new(mesh.pod_ip("server", family)?, PORT);
    Ok(mesh.lab.pod(pod)?.in_netns(|| get(to, "server", "/", SILENCE))?.is_ok_and(|r| r.status == 200))
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

#[test]
fn what_is_denied_does_not_enter_the_pod() -> Result<()> {
    if unprivileged("what_is_denied_does_not_enter_the_pod") {
        return Ok(());
    }
    let mesh = Mesh::up("deny", topology(), &[("policy.yaml", &deny())])?;
    count_in_server(&mesh, &["foe", "far-foe", "friend", "far-friend"])?;
    for foe in ["foe", "far-foe"] {
        let answered = knock(&mesh, foe)?;
        ensure!(answered.is_empty(), "{foe} was answered: {answered:?}");
        ensure!(seen(&mesh, foe)? == 0, "{} packets of {foe} got through", seen(&mesh, foe)?);
    }
    let drops = "sluice_policy_drops_total{policy=\"default/p\",rule=\"0\",tier=\"kernel\"}";
    // Per family: two connections with their retries, two datagrams and a ping; from two pods.
    let dropped = mesh.metric("node1", drops)?;
    ensure!(dropped >= 20.0, "{dropped} packets counted");
    for friend in ["friend", "far-friend"] {
        let answered = knock(&mesh, friend)?;
        ensure!(answered.len() == 4, "{friend} was answered by {answered:?} alone");
        ensure!(seen(&mesh, friend)? > 0, "the counter does not count");
    }
    for family in 0..2 {
        let to = SocketAddr::new(mesh.pod_ip("server", family)?, PORT);
        let probe = mesh.lab.node("node1")?.in_netns(|| get(to, "server", "/", SILENCE))??;
        ensure!(probe.status == 200, "the node's probe got {}", probe.status);
    }
    let status = mesh.verb("node1", "status")?;
    ensure!(status["capture"]["policy"]["pods"] == 2, "{}", status["capture"]);
    Ok(())
}

#[test]
fn changes_are_in_force_at_once_and_for_what_is_open() -> Result<()> {
    if unprivileged("changes_are_in_force_at_once_and_for_what_is_open") {
        return Ok(());
    }
    let mesh = Mesh::up("edits", topology(), &[])?;
    ensure!(reaches(&mesh, "foe", 0)? && reaches(&mesh, "far-foe", 1)?, "without policy all get through");
    count_in_server(&mesh, &["foe"])?;
    let to = SocketAddr::new(mesh.pod_ip("server", 0)?, PORT);
    let mut open = mesh.lab.pod("foe")?.in_netns(|| TcpStream::connect_timeout(&to, SILENCE))??;
    open.set_read_timeout(Some(SILENCE))?;
    ask(&mut open).context("the connection works at first")?;
    change(&mesh, &deny())?;
    wait_for("the guard", LIMIT, || !reaches(&mesh, "foe", 0).unwrap_or(true))?;
    let before = seen(&mesh, "foe")?;
    ensure!(ask(&mut open).is_err(), "a connection from before goes on");
    ensure!(seen(&mesh, "foe")? == before, "its packets get through");
    ensure!(reaches(&mesh, "friend", 0)?, "the friend is refused");
    change(&mesh, &allow())?;
    wait_for("the other rule", LIMIT, || {
        let name = "sluice_policy_drops_total{policy=\"default/p\",rule=\"none\",tier=\"kernel\"}";
        !reaches(&mesh, "foe", 1).unwrap_or(true) && mesh.metric("node1", name).is_ok_and(|count| count > 0.0)
    })?;
    ensure!(reaches(&mesh, "friend", 0)? && reaches(&mesh, "far-friend", 1)?, "the allowed are refused");
    std::fs::remove_file(mesh.config.join("policy.yaml"))?;
    wait_for("nothing to be refused", LIMIT, || {
        ["foe", "far-foe"].iter().all(|foe| (0..2).all(|family| reaches(&mesh, foe, family).unwrap_or(false)))
    })
}

fn ask(open: &mut TcpStream) -> Result<()> {
    open.write_all(b"GET / HTTP/1.1\r\nhost: server\r\n\r\n")?;
    let mut answer = [0; 512];
    let read = open.read(&mut answer)?;
    ensure!(answer[..read].starts_with(b"HTTP/1.1 200"), "answered {:?}", &answer[..read]);
    Ok(())
}

/// A pod that lets nobody in still gets its answers, from whatever port it asks.
#[test]
fn what_the_pod_begins_itself_goes_on() -> Result<()> {
    if unprivileged("what_the_pod_begins_itself_goes_on") {
        return Ok(());
    }
    let mesh = Mesh::up("begins", topology(), &[("policy.yaml", &policy(""))])?;
    ensure!(!reaches(&mesh, "friend", 0)?, "the pod is not closed");
    let script = "import socket,sys\n\
                  to=sys.argv[1]; family=socket.AF_INET6 if ':' in to else socket.AF_INET\n\
                  for port in (0, 700):\n \
                  s=socket.socket(family); s.settimeout(5); s.bind(('',port)); s.connect((to,8080))\n \
                  s.sendall(b'GET / HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n')\n \
                  d=b''.join(iter(lambda: s.recv(4096), b'')); print(d[:12].decode())\n \
                  u=socket.socket(family,socket.SOCK_DGRAM); u.settimeout(5); u.bind(('',port))\n \
                  u.sendto(b'x',(to,53)); print(u.recv(9).decode())\n";
    let echo = "import socket\n\
                s=socket.socket(socket.AF_INET6,socket.SOCK_DGRAM); s.setsockopt(41,26,0); s.bind(('::',53))\n\
                while True:\n d,a=s.recvfrom(99); s.sendto(b'echo',a)\n";
    let mut echoing = mesh.lab.pod("other")?.command("python3")?.args(["-c", echo]).spawn()?;
    let bound = || -> Result<bool> {
        Ok(exec::stdout(mesh.lab.pod("other")?.command("ss")?.args(["-Hlun", "sport", "=", ":53"]))?
            .contains(":53"))
    };
    wait_for("the echo", LIMIT, || bound().unwrap_or(false))?;
    let outcome = (0..2).try_for_each(|family| {
        let to = mesh.pod_ip("other", family)?.to_string();
        let said = exec::stdout(mesh.lab.pod("server")?.command("python3")?.args(["-c", script, &to]))?;
        let expected = ["HTTP/1.1 200", "echo", "HTTP/1.1 200", "echo"];
        ensure!(said.lines().collect::<Vec<_>>() == expected, "family {family}: {said}");
        Ok(())
    });
    echoing.kill()?;
    echoing.wait()?;
    outcome
}

/// A pod that sends, from its own interface, what looks like a question of another pod gets no answer of its own into it.
#[test]
fn nobody_begins_a_conversation_in_the_pods_name() -> Result<()> {
    if unprivileged("nobody_begins_a_conversation_in_the_pods_name") {
        return Ok(());
    }
    let mesh = Mesh::up("forged", topology(), &[("policy.yaml", &deny())])?;
    count_in_server(&mesh, &["foe", "friend"])?;
    for (pod, family) in [("foe", 0), ("foe", 1), ("friend", 0), ("friend", 1)] {
        let (server, own) = (mesh.pod_ip("server", family)?, mesh.pod_ip(pod, family)?);
        let wire = mesh.lab.pod(pod)?.in_netns(|| Wire::sender("eth0"))??;
        wire.send(&udp((server, own), b"?"))?;
        // From port 700, below those that a kernel chooses.
        let at = ETHERNET_LEN + if family == 0 { 20 } else { 40 };
        wire.send(&patched(&tcp((server, own), 2), &[(at, 2), (at + 1, 0xbc)]))?;
        exec::stdout(mesh.lab.pod(pod)?.command("python3")?.args(["-c", ANSWER, &server.to_string()]))?;
    }
    // Frames of one interface keep their order; the friend's answers show that such packets do arrive.
    wait_for("the friend's answers", LIMIT, || seen(&mesh, "friend").is_ok_and(|packets| packets >= 4))?;
    ensure!(seen(&mesh, "foe")? == 0, "{} packets of the foe got through", seen(&mesh, "foe")?);
    let drops = "sluice_policy_drops_total{policy=\"default/p\",rule=\"0\",tier=\"kernel\"}";
    wait_for("the foe's answers", LIMIT, || mesh.metric("node1", drops).is_ok_and(|count| count >= 4.0))
}

/// Through the service: what the agent carries is asked about as well, in every tier.
#[test]
fn the_agent_refuses_what_the_kernel_would() -> Result<()> {
    if unprivileged("the_agent_refuses_what_the_kernel_would") {
        return Ok(());
    }
    let mesh = Mesh::up("carried", topology(), &[])?;
    let tunnel = |pod: &str| -> Result<TcpStream> {
        let to = mesh.service("server", 0, 81)?;
        let mut open = mesh.lab.pod(pod)?.in_netns(|| TcpStream::connect_timeout(&to, SILENCE))??;
        open.set_read_timeout(Some(LIMIT))?;
        ask(&mut open).context("the connection works at first")?;
        Ok(open)
    };
    let (mut foe, mut friend) = (tunnel("foe")?, tunnel("friend")?);
    change(&mesh, &deny())?;
    // Cut without a word of the client: the read ends long before its time.
    let cut = foe.read(&mut [0; 9]);
    ensure!(!matches!(&cut, Ok(1..)) && !is_late(&cut), "a connection from before goes on: {cut:?}");
    ask(&mut friend).context("the friend's connection from before")?;
    drop((foe, friend));
    wait_for("the guard", LIMIT, || !reaches(&mesh, "foe", 0).unwrap_or(true))?;
    count_in_server(&mesh, &["foe", "far-foe"])?;
    for (foe, node, agent) in [("foe", "node1", 0), ("far-foe", "node2", 1)] {
        let lines = || mesh.agents[agent].log().matches("rbac_access_denied").count();
        let (logged, drops) =
            (lines(), "sluice_policy_drops_total{policy=\"default/p\",rule=\"0\",tier=\"agent\"}");
        let counted = mesh.metric(node, drops)?;
        for family in 0..2 {
            for port in [80, 82] {
                let response = mesh.get(foe, mesh.service("server", family, port)?, "server", "/")?;
                let body = response.text();
                ensure!(response.status == 403, "{foe} got {} at port {port}", response.status);
                ensure!(body.contains("rbac_access_denied"), "{body}");
            }
            let tcp = mesh.get(foe, mesh.service("server", family, 81)?, "server", "/");
            ensure!(tcp.is_err(), "{foe} got an answer at port 81");
        }
        ensure!(seen(&mesh, foe)? == 0 && seen(&mesh, "all_tcp")? == 0, "packets of {foe} got through");
        ensure!(mesh.metric(node, drops)? >= counted + 6.0, "refusals are not counted");
        wait_for("the access log", LIMIT, || lines() >= logged + 6)?;
    }
    for friend in ["friend", "far-friend"] {
        for port in [80, 81, 82] {
            for family in 0..2 {
                let response = mesh.get(friend, mesh.service("server", family, port)?, "server", "/")?;
                ensure!(response.status == 200, "{friend} got {} at port {port}", response.status);
            }
        }
    }
    ensure!(seen(&mesh, "all_tcp")? > 0, "the counter does not count");
    Ok(())
}

fn is_late(read: &std::io::Result<usize>) -> bool {
    read.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}
