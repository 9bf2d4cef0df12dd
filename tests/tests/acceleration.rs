//! Same-node acceleration on real traffic: what takes part and what does not, and that no byte is lost, doubled or overtaken.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use common::{LIMIT, Mesh};
use lab::agent::{Agent, AgentOptions};
use lab::documents::replace_file;
use lab::emulated::transfer;
use lab::{
    Lab, PodSpec, Program, ServiceSpec, Topology, accelerates_nothing, exec, unaccelerated, unprivileged,
    wait_for,
};
use serde_json::Value;

const PEER: &str = include_str!("acceleration/peer.py");
const NODE: &str = "node1";
const PORT: u16 = 9000;
const JOINED: &str = "sluice_acceleration_connections_total{reason=\"joined\"}";
const EARLY: &str = "sluice_acceleration_connections_total{reason=\"early_write\"}";
const ABSENT: &str = "sluice_acceleration_connections_total{reason=\"peer_absent\"}";
const OPTED_OUT: &str = "sluice_acceleration_connections_total{reason=\"opted_out\"}";
const ELSEWHERE: &str = "sluice_acceleration_connections_total{reason=\"elsewhere\"}";
const REDIRECTED: &str = "sluice_acceleration_messages_total{reason=\"redirected\"}";
const SOCKETS: &str = "sluice_acceleration_sockets";

fn topology() -> Topology {
    let argv = ["python3", "-c", PEER, "serve", &PORT.to_string()].map(str::to_owned).to_vec();
    let peer = Program::Server { argv, port: PORT };
    Topology::with_nodes(2)
        .pod(PodSpec::new("client", NODE))
        .pod(
            PodSpec::new("near", NODE)
                .label("app", "web")
                .runs(peer.clone())
                .runs(Program::Http { port: 8080 })
                .runs(Program::Redis { port: 6379 }),
        )
        .pod(PodSpec::new("quiet", NODE).runs(peer.clone()))
        .pod(PodSpec::new("far", "node2").runs(peer))
        .service(ServiceSpec::new("web").port("http", 80, 8080))
}

/// A lab whose first node has an agent that accelerates.
struct Accelerated {
    mesh: Mesh,
}

impl Accelerated {
    fn up(name: &str) -> Result<Self> {
        let lab = Lab::for_test(name, topology())?;
        let config = lab.directory().join("config");
        lab.write_documents(&config)?;
        let pods = std::fs::read_to_string(config.join("pods.yaml")).context("the lab's pods")?;
        let quiet = pods
            .replace("  name: quiet\n", "  name: quiet\n  annotations: {sluice.dev/acceleration: \"off\"}\n");
        ensure!(quiet != pods, "no pod named quiet in\n{pods}");
        replace_file(&config.join("pods.yaml"), &quiet)?;
        let mut accelerated = Self { mesh: Mesh { agents: Vec::new(), lab, config } };
        let agent = accelerated.start("on")?;
        accelerated.mesh.agents.push(agent);
        let status = accelerated.status()?;
        ensure!(status["active"] == true, "acceleration is off: {status}");
        ensure!(status["pods"] == 4 && status["opted_out"] == 2 && status["not_found"] == 0, "{status}");
        Ok(accelerated)
    }

    fn start(&self, mode: &str) -> Result<Agent> {
        let node = self.mesh.lab.node(NODE)?;
        let cgroup = node.cgroup().path().display().to_string();
        let options = AgentOptions::new(&self.mesh.config)?;
        node.start_agent(&options.with(["--cgroup", &cgroup, "--acceleration", mode]))
    }

    fn status(&self) -> Result<Value> {
        Ok(self.mesh.verb(NODE, "status")?["capture"]["acceleration"].clone())
    }

    fn count(&self, series: &str) -> Result<f64> {
        self.mesh.metric(NODE, series)
    }

    /// What the client says about one case with a pod.
    fn case(&self, what: &str, pod: &str, family: usize, size: usize) -> Result<String> {
        let host = self.mesh.pod_ip(pod, family)?.to_string();
        let mut command = self.mesh.lab.pod("client")?.command("python3")?;
        command.args(["-c", PEER, what, &host, &PORT.to_string(), &size.to_string()]);
        Ok(exec::stdout(&mut command)?.trim().to_owned())
    }

    /// Runs a case, and tells whether its connection was joined.
    fn joins(&self, what: &str, pod: &str, size: usize, said: &str) -> Result<bool> {
        let mut joined = Vec::new();
        for family in 0..2 {
            let before = self.count(JOINED)?;
            let seen = self.case(what, pod, family, size)?;
            ensure!(seen == said, "{what} with {pod}, family {family}: {seen:?} instead of {said:?}");
            joined.push(self.count(JOINED)? > before);
        }
        ensure!(joined[0] == joined[1], "{what} with {pod}: the families differ: {joined:?}");
        Ok(joined[0])
    }

    /// A transfer that has come half-way and waits.
    fn paused(&self, host: IpAddr, size: usize) -> Result<Paused> {
        let mut command = self.mesh.lab.pod("client")?.command("python3")?;
        command.args(["-c", PEER, "pause", &host.to_string(), &PORT.to_string(), &size.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("a client")?;
        let mut output = BufReader::new(child.stdout.take().context("a client's output")?);
        let mut line = String::new();
        output.read_line(&mut line).context("a client's first line")?;
        ensure!(line == "half\n", "the client said {line:?}");
        Ok(Paused { child, output })
    }

    /// The programs on the node's cgroup.
    fn attached(&self) -> Result<String> {
        let path = self.mesh.lab.node(NODE)?.cgroup().path().display().to_string();
        exec::stdout(std::process::Command::new("bpftool").args(["cgroup", "show", &path]))
    }
}

/// A client that waits for a line of standard input.
struct Paused {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Paused {
    fn finish(mut self) -> Result<String> {
        self.child.stdin.take().context("a client's input")?.write_all(b"go\n").context("waking a client")?;
        let mut line = String::new();
        self.output.read_line(&mut line).context("a client's last line")?;
        let status = self.child.wait().context("a client's end")?;
        ensure!(status.success(), "the client failed after {line:?}");
        Ok(line.trim().to_owned())
    }
}

#[test]
fn sockets_behave_as_with_tcp() -> Result<()> {
    if unprivileged("sockets_behave_as_with_tcp") || unaccelerated("sockets_behave_as_with_tcp") {
        return Ok(());
    }
    let lab = Accelerated::up("accel_sockets")?;
    let before = lab.count(REDIRECTED)?;
    let large = transfer(64 << 20, 16 << 20);
    let swapped = format!("{large} bytes each way");
    let cases = [
        ("swap", large, swapped.as_str()),
        ("fionread", 0, "[1000, 600, 0]"),
        ("peek", 0, "[600, 600, True, True]"),
        ("half", 3_000_000, "True"),
        ("early", 100_000, "told"),
        ("silent", 0, "hello"),
    ];
    for (what, size, said) in cases {
        ensure!(lab.joins(what, "near", size, said)?, "{what}: the connection was not joined");
    }
    ensure!(lab.count(REDIRECTED)? - before > 100.0, "hardly a message was redirected");
    // Both ends of every connection have left.
    wait_for("the sockets to leave", LIMIT, || lab.count(SOCKETS).is_ok_and(|sockets| sockets < 0.5))
}

#[test]
fn who_sends_before_the_other_end_is_in_stays_with_tcp() -> Result<()> {
    if unprivileged("who_sends_before_the_other_end_is_in_stays_with_tcp")
        || unaccelerated("who_sends_before_the_other_end_is_in_stays_with_tcp")
    {
        return Ok(());
    }
    let lab = Accelerated::up("accel_early")?;
    let before = lab.count(EARLY)?;
    for (what, size, said) in
        [("held-swap", 4 << 20, "4194304 bytes each way"), ("held-fionread", 0, "[1000, 600, 0]")]
    {
        ensure!(!lab.joins(what, "near", size, said)?, "{what}: the connection was joined");
    }
    ensure!(lab.count(EARLY)? - before > 3.5, "the connections were not counted as early writes");
    Ok(())
}

#[test]
fn others_are_left_alone() -> Result<()> {
    if unprivileged("others_are_left_alone") || unaccelerated("others_are_left_alone") {
        return Ok(());
    }
    let lab = Accelerated::up("accel_others")?;
    for (pod, series) in [("quiet", OPTED_OUT), ("far", ELSEWHERE)] {
        let before = (lab.count(series)?, lab.count(REDIRECTED)?);
        for (what, size, said) in
            [("swap", 1 << 20, "1048576 bytes each way"), ("fionread", 0, "[1000, 600, 0]")]
        {
            ensure!(!lab.joins(what, pod, size, said)?, "{what}: a connection to {pod} was joined");
        }
        let after = (lab.count(series)?, lab.count(REDIRECTED)?);
        ensure!(after.0 - before.0 > 3.5, "{pod}: {series} grew from {} to {}", before.0, after.0);
        ensure!((after.1 - before.1).abs() < 0.5, "{pod}: messages were redirected");
    }
    Ok(())
}

/// A server whose sockets no program sees: the waiting end leaves by itself.
#[test]
fn an_end_whose_peer_does_not_come_leaves_before_it_reads() -> Result<()> {
    if unprivileged("an_end_whose_peer_does_not_come_leaves_before_it_reads")
        || unaccelerated("an_end_whose_peer_does_not_come_leaves_before_it_reads")
    {
        return Ok(());
    }
    let lab = Accelerated::up("accel_absent")?;
    let before = (lab.count(ABSENT)?, lab.count(JOINED)?);
    // This process's sockets are in no cgroup of the lab, so that the server's end never enters.
    let listener = lab.mesh.lab.pod("near")?.in_netns(|| std::net::TcpListener::bind("[::]:9001"))??;
    let server = std::thread::spawn(move || -> std::io::Result<()> {
        for _ in 0..2 {
            let (mut stream, _) = listener.accept()?;
            stream.write_all(&[b'x'; 1000])?;
            // Until the client closes, which it does with bytes unread.
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        }
        Ok(())
    });
    let script = "import array,fcntl,select,socket,sys,termios,time\n\
                  s=socket.create_connection((sys.argv[1],9001),10)\n\
                  n=array.array('i',[0])\n\
                  end=time.monotonic()+10\n\
                  while n[0]!=1000 and time.monotonic()<end:\n \
                  select.select([s],[],[],1); fcntl.ioctl(s,termios.FIONREAD,n)\n\
                  print(n[0])\n";
    for family in 0..2 {
        let host = lab.mesh.pod_ip("near", family)?.to_string();
        let mut command = lab.mesh.lab.pod("client")?.command("python3")?;
        let said = exec::stdout(command.args(["-c", script, &host]))?;
        ensure!(said.trim() == "1000", "family {family}: FIONREAD says {said}");
    }
    server.join().ok().context("the server")??;
    ensure!(lab.count(ABSENT)? - before.0 > 1.5, "the connections were not counted as waiting in vain");
    ensure!((lab.count(JOINED)? - before.1).abs() < 0.5, "a connection was joined");
    Ok(())
}

#[test]
fn servers_and_clients_of_the_field_are_accelerated() -> Result<()> {
    if unprivileged("servers_and_clients_of_the_field_are_accelerated")
        || unaccelerated("servers_and_clients_of_the_field_are_accelerated")
    {
        return Ok(());
    }
    let lab = Accelerated::up("accel_field")?;
    let near = lab.mesh.pod_ip("near", 0)?.to_string();
    let large = vec![b'n'; 16 << 20];
    std::fs::write(lab.mesh.lab.pod("near")?.directory().join("www/static/large"), &large)?;
    let before = lab.count(JOINED)?;
    // nginx by sendfile, direct and through the agent.
    for url in [format!("http://{near}:8080/static/large"), "http://web/static/large".to_owned()] {
        let body = lab.mesh.lab.directory().join("body");
        lab.mesh.curl("client", &["-o", &body.display().to_string(), &url])?;
        ensure!(std::fs::read(&body)? == large, "{url}: the file is another one");
    }
    // One connection direct; two, the pod's and the agent's, through the agent.
    let joined = lab.count(JOINED)? - before;
    ensure!((2.5..3.5).contains(&joined), "{joined} connections were joined, not 3");
    let before = (lab.count(JOINED)?, lab.count(REDIRECTED)?);
    let mut wrk = lab.mesh.lab.pod("client")?.command("wrk")?;
    let said = exec::stdout(wrk.args(["-t1", "-c16", "-d1s", &format!("http://{near}:8080/")]))?;
    ensure!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "{said}");
    let mut redis = lab.mesh.lab.pod("client")?.command("redis-benchmark")?;
    let said = exec::stdout(
        redis.args(["-h", &near, "-P", "16", "-n", "50000", "-d", "100", "-q", "-t", "set,get"]),
    )?;
    ensure!(said.contains("GET"), "{said}");
    let after = (lab.count(JOINED)?, lab.count(REDIRECTED)?);
    ensure!(after.0 - before.0 > 60.0, "only {} of 16 and 50 connections were joined", after.0 - before.0);
    ensure!(after.1 - before.1 > 10_000.0, "only {} messages were redirected", after.1 - before.1);
    Ok(())
}

#[test]
fn requests_through_the_agent_are_redirected_on_both_legs() -> Result<()> {
    if unprivileged("requests_through_the_agent_are_redirected_on_both_legs")
        || unaccelerated("requests_through_the_agent_are_redirected_on_both_legs")
    {
        return Ok(());
    }
    let lab = Accelerated::up("accel_legs")?;
    for (family, flag) in ["-4", "-6"].into_iter().enumerate() {
        let before = (lab.count(JOINED)?, lab.count(REDIRECTED)?);
        let own = lab.mesh.pod_ip("client", family)?.to_string();
        let said = lab.mesh.curl("client", &[flag, "-i", "http://web/x"])?;
        ensure!(said.contains("via:") && said.contains(&own), "not through the agent: {said}");
        let grown = (lab.count(JOINED)? - before.0, lab.count(REDIRECTED)? - before.1);
        ensure!(grown.0 > 1.5, "{flag}: {} legs were joined, not 2", grown.0);
        ensure!(grown.1 > 3.5, "{flag}: {} messages were redirected, not 4", grown.1);
    }
    Ok(())
}

#[test]
fn an_agent_that_is_killed_or_stopped_leaves_joined_connections_whole() -> Result<()> {
    if unprivileged("an_agent_that_is_killed_or_stopped_leaves_joined_connections_whole")
        || unaccelerated("an_agent_that_is_killed_or_stopped_leaves_joined_connections_whole")
    {
        return Ok(());
    }
    let mut lab = Accelerated::up("accel_killed")?;
    let size = transfer(32 << 20, 16 << 20);
    for kill in [true, false] {
        let before = lab.count(JOINED)?;
        let mut paused = Vec::new();
        for family in 0..2 {
            paused.push(lab.paused(lab.mesh.pod_ip("near", family)?, size)?);
        }
        ensure!(lab.count(JOINED)? - before > 1.5, "the connections were not joined");
        ensure!(
            lab.attached()?.contains("accelerate"),
            "the look at the cgroup is blind: {}",
            lab.attached()?
        );
        let agent = lab.mesh.agents.remove(0);
        if kill {
            agent.kill9()?;
        } else {
            ensure!(agent.terminate()?.success(), "the agent failed at its stop");
        }
        wait_for("the programs to leave the cgroup", LIMIT, || {
            lab.attached().is_ok_and(|attached| !attached.contains("accelerate"))
        })?;
        // Bytes are on the way in both; new connections are TCP's, and so are those with a later agent.
        let said = lab.case("swap", "near", 0, 1 << 20)?;
        ensure!(said == "1048576 bytes each way", "without an agent: {said}");
        let agent = lab.start("on")?;
        lab.mesh.agents.push(agent);
        for paused in paused {
            ensure!(paused.finish()? == format!("{size} bytes each way"), "the transfer is not whole");
        }
        ensure!(
            lab.joins("swap", "near", 1 << 20, "1048576 bytes each way")?,
            "the next agent joins nothing"
        );
    }
    Ok(())
}

#[test]
fn why_it_is_off_is_said() -> Result<()> {
    if unprivileged("why_it_is_off_is_said") {
        return Ok(());
    }
    let lab = Lab::for_test("accel_off", topology())?;
    let config = lab.directory().join("config");
    lab.write_documents(&config)?;
    let mesh = Mesh { agents: Vec::new(), lab, config };
    let node = mesh.lab.node(NODE)?;
    let cgroup = node.cgroup().path().display().to_string();
    let cases: [(&[&str], &str); 2] =
        [(&[], "no --cgroup"), (&["--cgroup", &cgroup, "--acceleration", "off"], "--acceleration off")];
    for (arguments, reason) in cases {
        let agent = node.start_agent(&AgentOptions::new(&mesh.config)?.with(arguments.iter().copied()))?;
        let status = mesh.verb(NODE, "status")?["capture"]["acceleration"].clone();
        ensure!(status["active"] == false, "{arguments:?}: {status}");
        let said = status["reason"].as_str().unwrap_or_default();
        ensure!(said.contains(reason), "{arguments:?}: {said:?} does not say {reason:?}");
        ensure!(mesh.metric(NODE, "sluice_acceleration_active")? < 0.5, "the metric says that it is on");
        drop(agent);
    }
    if accelerates_nothing() {
        // Not even on demand, and the bytes go by TCP.
        let arguments = ["--cgroup", &cgroup, "--acceleration", "on"];
        let _agent = node.start_agent(&AgentOptions::new(&mesh.config)?.with(arguments))?;
        let status = mesh.verb(NODE, "status")?["capture"]["acceleration"].clone();
        let reason = status["reason"].as_str().unwrap_or_default();
        ensure!(status["active"] == false && reason.contains("FIONREAD"), "{status}");
        let host = mesh.pod_ip("near", 0)?.to_string();
        let mut command = mesh.lab.pod("client")?.command("python3")?;
        command.args(["-c", PEER, "swap", &host, &PORT.to_string(), "1000000"]);
        let said = exec::stdout(&mut command)?;
        ensure!(said.trim() == "1000000 bytes each way", "{said}");
    }
    // Whatever this kernel can, what it cannot is named, and no cgroup stays behind.
    let binary = lab::agent::built_binary()?;
    let mut check = node.command(binary)?;
    check.args(["check", "--pod-interfaces", "pod-*", "--cgroup", &cgroup, "--acceleration", "auto"]);
    let said = String::from_utf8_lossy(&check.output().context("sluice check")?.stdout).into_owned();
    let line =
        said.lines().find(|line| line.starts_with("acceleration")).context("check says nothing of it")?;
    let fault = if accelerates_nothing() { "FIONREAD" } else { "splice from a socket" };
    let named = line.contains(&format!("the self-test: {fault}: "));
    ensure!(named || line.contains("the kernel passes: "), "{line}");
    let left = std::fs::read_dir(&cgroup)?.flatten().map(|entry| entry.file_name().display().to_string());
    let left: Vec<_> = left.filter(|name| name.contains("self-test")).collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}
