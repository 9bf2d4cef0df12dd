//! Policy while agents come and go: what is denied stays denied, and what is allowed goes on, whoever runs, is stopped,
//! killed or starting. A counter within the pod shows what got through.

mod common;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use common::{LIMIT, Mesh, leftovers};
use lab::documents::replace_file;
use lab::pingpong::{Keeps, PingPong, echo};
use lab::{
    Agent, AgentOptions, Footprint, Lab, PodSpec, Program, ServiceSpec, Topology, exec, unaccelerated,
    unprivileged, wait_for,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const NODE: &str = "node1";
const HTTP: u16 = 8080;
const ECHO: u16 = 7000;
const UDP: u16 = 5353;
const HAMMER: &str = include_str!("policy_life/hammer.py");
/// How long something that shall not come is waited for.
const SILENCE: Duration = Duration::from_millis(700);
const DENY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec:\n  \
    selector: {matchLabels: {app: server}}\n  action: DENY\n  rules: [{from: [{source: {namespaces: [bad]}}]}]\n";

fn topology() -> Topology {
    let client = |name: &str, namespace: &str, node: &str| PodSpec {
        namespace: namespace.to_owned(),
        ..PodSpec::new(name, node)
    };
    let service = ServiceSpec::new("server").port("http", 80, HTTP).port("tcp", 81, ECHO);
    Topology::with_nodes(2)
        .pod(client("friend", "good", NODE))
        .pod(client("foe", "bad", NODE))
        .pod(client("far-foe", "bad", "node2"))
        .pod(PodSpec::new("server", NODE).label("app", "server").runs(Program::Http { port: HTTP }))
        .service(service.undeclared_port(82, HTTP))
}

/// A node with a BPF file system, a server under policy, and no agent yet.
struct Site {
    mesh: Mesh,
    bpffs: PathBuf,
}

impl Site {
    fn up(name: &str) -> Result<Self> {
        let lab = Lab::for_test(name, topology())?;
        let config = lab.directory().join("config");
        lab.write_documents(&config)?;
        replace_file(&config.join("policy.yaml"), DENY)?;
        let mesh = Mesh { agents: Vec::new(), lab, config };
        echo(&mesh.lab.pod("server")?, SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), ECHO))?;
        let bpffs = mesh.lab.node(NODE)?.mount_bpffs()?;
        let site = Self { mesh, bpffs };
        site.count_strangers()?;
        Ok(site)
    }

    fn start(&self, arguments: &[String]) -> Result<Agent> {
        let pins = ["--bpffs".to_owned(), self.bpffs.display().to_string()];
        let options = AgentOptions::new(&self.mesh.config)?.with(pins).with(arguments.to_vec());
        self.mesh.lab.node(NODE)?.start_agent(&options.with(["--drain-timeout", "1"]))
    }

    /// Counts, within the server and before anything else sees it, all of TCP and UDP that is not the friend's: also what
    /// somebody would send on the foe's behalf from another address. The lab has looked whether the server listens, and the end of
    /// that may come late.
    fn count_strangers(&self) -> Result<()> {
        let friend = self.mesh.lab.pod("friend")?.address().both();
        let [node4, node6] = self.mesh.lab.node(NODE)?.address().both();
        let hook = "type filter hook prerouting priority -400;";
        let table = format!(
            "table inet seen {{\ncounter strangers {{}}\n\
             set four {{ type ipv4_addr . inet_service . inet_service; size 64; flags dynamic; }}\n\
             set six {{ type ipv6_addr . inet_service . inet_service; size 64; flags dynamic; }}\n\
             chain in {{ {hook}\niif lo accept\n\
             ip saddr {} accept\nip6 saddr {} accept\n\
             ip saddr {node4} tcp flags & syn == 0 accept\nip6 saddr {node6} tcp flags & syn == 0 accept\n\
             meta l4proto {{ tcp, udp }} counter name strangers\n\
             add @four {{ ip saddr . th sport . th dport }}\nadd @six {{ ip6 saddr . th sport . th dport }}\n}}\n}}\n",
            friend[0], friend[1]
        );
        self.mesh.lab.pod("server")?.netns().nft(&table)
    }

    fn strangers(&self) -> Result<u64> {
        let mut nft = self.mesh.lab.pod("server")?.command("nft")?;
        let text = exec::stdout(nft.args(["list", "counter", "inet", "seen", "strangers"]))?;
        let words: Vec<&str> = text.split_whitespace().collect();
        let packets = words.iter().position(|word| *word == "packets").context("no packets counted")?;
        words[packets + 1].parse().with_context(|| text.clone())
    }

    fn denies(&self, when: &str) -> Result<()> {
        let strangers = self.strangers()?;
        if strangers == 0 {
            return Ok(());
        }
        let mut nft = self.mesh.lab.pod("server")?.command("nft")?;
        let who = exec::stdout(nft.args(["list", "table", "inet", "seen"]))?;
        bail!("{when}: {strangers} packets got through, of these (source, its port, port):\n{who}")
    }

    /// Starts a foe's knocking at all of the server's doors; from the other node, which has no agent, at its own ones.
    fn hammer(&self, foe: &str) -> Result<Hammer> {
        let mut targets = Vec::new();
        for family in 0..2 {
            let pod = self.mesh.pod_ip("server", family)?;
            targets.extend([HTTP, ECHO].map(|port| format!("{pod}/{port}/direct")));
            targets.push(format!("{pod}/{UDP}/udp"));
            if foe == "far-foe" {
                continue;
            }
            let service = self.mesh.service("server", family, 0)?.ip();
            targets.extend([80, 81, 82].map(|port| format!("{service}/{port}/service")));
        }
        let mut command = self.mesh.lab.pod(foe)?.command("python3")?;
        command.args(["-c", HAMMER]).args(targets).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("the hammer")?;
        let mut output = BufReader::new(child.stdout.take().context("the hammer's output")?);
        let mut line = String::new();
        output.read_line(&mut line).context("the hammer's first line")?;
        ensure!(line == "knocking\n", "the hammer said {line:?}");
        Ok(Hammer { child, output })
    }

    /// Starts the friend's conversations, which must go on in every state: direct ones, and through the service.
    fn friends(&self) -> Result<[Vec<PingPong>; 2]> {
        let friend = self.mesh.lab.pod("friend")?;
        let (mut direct, mut service) = (Vec::new(), Vec::new());
        for family in 0..2 {
            let pod = SocketAddr::new(self.mesh.pod_ip("server", family)?, ECHO);
            for keeps in [Keeps::None, Keeps::One] {
                direct.push(PingPong::start(&friend, pod, keeps)?);
            }
            service.push(PingPong::start(&friend, self.mesh.service("server", family, 81)?, Keeps::None)?);
        }
        Ok([direct, service])
    }

    fn status(&self) -> Result<serde_json::Value> {
        Ok(self.mesh.verb(NODE, "status")?["capture"]["policy"].clone())
    }
}

/// A client that is to get nothing through.
struct Hammer {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Hammer {
    /// Ends it; how many rounds it made. It fails if anybody answered.
    fn stop(mut self) -> Result<u64> {
        drop(self.child.stdin.take());
        let mut line = String::new();
        self.output.read_line(&mut line).context("the hammer's last line")?;
        ensure!(self.child.wait().context("the hammer's end")?.success(), "the hammer failed: {line:?}");
        let (rounds, answered) = line.trim().split_once(' ').with_context(|| line.clone())?;
        ensure!(answered == "[]", "the foe was answered: {answered}");
        rounds.parse().with_context(|| line.clone())
    }
}

impl Drop for Hammer {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn beat(clients: &[PingPong], when: &str) -> Result<()> {
    clients.iter().try_for_each(|client| client.wait_answers(30, LIMIT)).with_context(|| when.to_owned())
}

fn signal(agent: &Agent, signal: Signal) -> Result<()> {
    kill(Pid::from_raw(i32::try_from(agent.pid())?), signal).context("signalling the agent")
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

/// Every state after the other, knocked at all the while.
fn whole_life(name: &str, arguments: impl Fn(&Site) -> Result<Vec<String>>) -> Result<()> {
    let site = Site::up(name)?;
    let common = arguments(&site)?;
    let with = |more: &[&str]| [common.clone(), words(more)].concat();
    let mut agent = site.start(&common)?;
    let status = &site.mesh.verb(NODE, "status")?["capture"];
    ensure!(status["policy"]["outlives_agent"] == true, "{status}");
    let accelerates = common.iter().any(|word| word == "--acceleration");
    ensure!(status["acceleration"]["active"] == accelerates, "{status}");
    let (hammer, far) = (site.hammer("foe")?, site.hammer("far-foe")?);
    let [direct, service] = site.friends()?;
    let all_is_well = |when: &str| {
        beat(&direct, when)?;
        beat(&service, when)?;
        site.denies(when)
    };
    all_is_well("running")?;
    signal(&agent, Signal::SIGSTOP)?;
    beat(&direct, "halted")?;
    site.denies("halted")?;
    signal(&agent, Signal::SIGCONT)?;
    all_is_well("running on")?;
    let remove = common.clone();
    let (keep, layout) = (with(&["--on-stop", "keep"]), with(&["--destinations-max", "1000"]));
    // (how it ends, with what the next one starts)
    for (end, next) in [
        ("killed", &remove),
        ("stopped with remove", &keep),
        ("stopped with keep", &remove),
        ("killed before another layout", &layout),
        ("stopped before another layout", &remove),
    ] {
        if end.starts_with("killed") {
            agent.kill9()?;
        } else {
            ensure!(agent.terminate()?.success(), "the agent failed at its stop");
            let left = leftovers(&site.mesh.lab, NODE)?;
            ensure!(left.contains("sluice") == end.ends_with("keep"), "{end}: {left}");
        }
        all_is_well(end)?;
        agent = site.start(next)?;
        all_is_well(&format!("started after one was {end}"))?;
    }
    let rounds = [hammer.stop()?, far.stop()?];
    site.denies("at the end")?;
    let dropped = site
        .mesh
        .metric(NODE, "sluice_policy_drops_total{policy=\"default/p\",rule=\"0\",tier=\"kernel\"}")?;
    println!("{name}: {rounds:?} rounds, {dropped} drops counted by the last agent");
    ensure!(rounds.iter().all(|rounds| *rounds > 500) && dropped > 0.0, "{rounds:?} rounds, {dropped} drops");
    direct.into_iter().chain(service).try_for_each(|client| client.stop().map(drop))?;
    // An agent without the policy lifts it, at its start or later.
    ensure!(agent.terminate()?.success(), "the agent failed at its stop");
    std::fs::remove_file(site.mesh.config.join("policy.yaml"))?;
    let agent = site.start(&remove)?;
    reaches(&site)?;
    ensure!(site.strangers()? > 0, "the counter does not count");
    drop(agent);
    Ok(())
}

/// The foe gets an answer, directly and in both families.
fn reaches(site: &Site) -> Result<()> {
    for family in 0..2 {
        let to = SocketAddr::new(site.mesh.pod_ip("server", family)?, HTTP);
        let answer = site.mesh.get("foe", to, "server", "/")?;
        ensure!(answer.status == 200, "the foe got {}", answer.status);
    }
    Ok(())
}

#[test]
fn what_is_denied_stays_denied_whatever_becomes_of_the_agent() -> Result<()> {
    if unprivileged("what_is_denied_stays_denied_whatever_becomes_of_the_agent") {
        return Ok(());
    }
    whole_life("life", |_| Ok(Vec::new()))
}

#[test]
fn what_is_denied_stays_denied_with_balancing_and_acceleration() -> Result<()> {
    if unprivileged("what_is_denied_stays_denied_with_balancing_and_acceleration")
        || unaccelerated("what_is_denied_stays_denied_with_balancing_and_acceleration")
    {
        return Ok(());
    }
    whole_life("tiers", |site| {
        let cgroup = site.mesh.lab.node(NODE)?.cgroup().path().display().to_string();
        Ok(words(&["--cgroup", &cgroup, "--acceleration", "on"]))
    })
}

/// Nobody knows whether a file that can't be read holds the policy; the agent waits with its start until that can be known.
#[test]
fn what_is_denied_stays_denied_while_a_file_cannot_be_read() -> Result<()> {
    if unprivileged("what_is_denied_stays_denied_while_a_file_cannot_be_read") {
        return Ok(());
    }
    let site = Site::up("unread")?;
    let agent = site.start(&[])?;
    let log = agent.log_path().to_owned();
    let hammer = site.hammer("foe")?;
    agent.kill9()?;
    let file = site.mesh.config.join("policy.yaml");
    replace_file(&file, "kind: [\n")?;
    let waits = "The start waits until they are mended";
    std::thread::scope(|scope| {
        let starting = scope.spawn(|| site.start(&[]));
        let told = || std::fs::read_to_string(&log).unwrap_or_default();
        let waiting = wait_for("the agent to wait", LIMIT, || told().contains(waits));
        let denied = site.denies("unread");
        replace_file(&file, DENY)?;
        let agent = starting.join().map_err(|_| anyhow::anyhow!("the start panicked"))?;
        let told = told();
        waiting.with_context(|| told.clone())?;
        denied?;
        ensure!(told.matches(waits).count() == 1 && told.contains("policy.yaml"), "it said:\n{told}");
        let _agent = agent?;
        site.denies("mended")
    })?;
    let rounds = hammer.stop()?;
    ensure!(rounds > 0, "nobody knocked");
    site.denies("at the end")
}

#[test]
fn cleanup_lifts_what_a_stopped_agent_has_left() -> Result<()> {
    if unprivileged("cleanup_lifts_what_a_stopped_agent_has_left") {
        return Ok(());
    }
    let site = Site::up("lift")?;
    let bare = Footprint::of(&site.mesh.lab.node(NODE)?)?;
    let agent = site.start(&[])?;
    let log = agent.log_path().to_owned();
    ensure!(agent.terminate()?.success(), "the agent failed at its stop");
    let said = std::fs::read_to_string(log)?;
    ensure!(said.contains("policies stay in force at this node's pods"), "the stop said:\n{said}");
    let left = Footprint::of(&site.mesh.lab.node(NODE)?)?;
    let left = left.since(&bare);
    let guards = left.iter().filter(|line| line.contains("guard_pod") || line.contains("watch_pod"));
    ensure!(guards.count() >= 6, "three pods have not two programs each: {left:?}");
    for capture in ["from_pod", "from_uplink", "nft:", "rule:", "route:"] {
        ensure!(!left.iter().any(|line| line.contains(capture)), "{capture} stays: {left:?}");
    }
    let binary = lab::agent::built_binary()?;
    if left.iter().any(|line| line.starts_with("tcx:")) {
        // Whoever looks in another directory is told that programs are at work.
        let mut astray = site.mesh.lab.node(NODE)?.command(&binary)?;
        let output = astray.arg("cleanup").arg("--bpffs").arg(site.bpffs.join("elsewhere")).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1) && said.contains("guard_pod on tcx"), "astray: {said}");
    }
    let mut cleanup = site.mesh.lab.node(NODE)?.command(binary)?;
    let said = exec::stdout(cleanup.arg("cleanup").arg("--bpffs").arg(&site.bpffs))?;
    let now = Footprint::of(&site.mesh.lab.node(NODE)?)?;
    ensure!(now == bare, "left {:?} after {said}", now.since(&bare));
    reaches(&site)
}

/// All files below a directory.
fn files(directory: &Path) -> BTreeSet<PathBuf> {
    let paths = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { BTreeSet::from([path]) }).collect()
}

/// What somebody unpins is still in force, and is pinned again: it would end with the agent.
#[test]
fn a_forced_cleanup_under_an_agent_lifts_no_policy() -> Result<()> {
    if unprivileged("a_forced_cleanup_under_an_agent_lifts_no_policy") {
        return Ok(());
    }
    let site = Site::up("forced")?;
    let agent = site.start(&[])?;
    let hammer = site.hammer("foe")?;
    let [direct, service] = site.friends()?;
    beat(&direct, "running")?;
    let running = files(&site.bpffs);
    // Without tcx (before 6.6) there are the maps alone.
    ensure!(running.len() >= 8, "few are pinned: {running:?}");
    let mut cleanup = site.mesh.lab.node(NODE)?.command(lab::agent::built_binary()?)?;
    let said = exec::stdout(cleanup.args(["cleanup", "--force", "--bpffs"]).arg(&site.bpffs))?;
    ensure!(said.contains("pin maps-"), "{said}");
    wait_for("everything to be pinned again", LIMIT, || files(&site.bpffs) == running)?;
    ensure!(site.status()?["outlives_agent"] == true, "{}", site.status()?);
    site.denies("pinned again")?;
    agent.kill9()?;
    beat(&direct, "killed")?;
    site.denies("killed")?;
    ensure!(hammer.stop()? > 0, "nobody knocked");
    direct.into_iter().chain(service).try_for_each(|client| client.stop().map(drop))
}

#[test]
fn without_pins_policies_end_with_the_agent_and_status_says_so() -> Result<()> {
    if unprivileged("without_pins_policies_end_with_the_agent_and_status_says_so") {
        return Ok(());
    }
    let site = Site::up("unpinned")?;
    let bare = Footprint::of(&site.mesh.lab.node(NODE)?)?;
    let agent = site.mesh.start_agent(NODE)?;
    ensure!(site.status()?["outlives_agent"] == false, "{}", site.status()?);
    let binary = lab::agent::built_binary()?;
    let text = exec::stdout(site.mesh.lab.node(NODE)?.command(binary)?.arg("status"))?;
    ensure!(text.contains("ENDS WITH THE AGENT"), "{text}");
    ensure!(agent.terminate()?.success(), "the agent failed at its stop");
    let left = Footprint::of(&site.mesh.lab.node(NODE)?)?;
    ensure!(left.since(&bare).is_empty(), "left behind: {:?}", left.since(&bare));
    reaches(&site)
}

/// A conversation that the pod has begun goes on with the next agent, and nobody else's begins.
#[test]
fn conversations_outlive_an_agent() -> Result<()> {
    if unprivileged("conversations_outlive_an_agent") {
        return Ok(());
    }
    let site = Site::up("talks")?;
    let agent = site.start(&[])?;
    let mut talks = Vec::new();
    for family in 0..2 {
        let (server, foe) = (site.mesh.pod_ip("server", family)?, site.mesh.pod_ip("foe", family)?);
        let bind = |pod: &str, at| -> Result<UdpSocket> {
            let socket = site.mesh.lab.pod(pod)?.in_netns(|| UdpSocket::bind(SocketAddr::new(at, 0)))??;
            socket.set_read_timeout(Some(SILENCE))?;
            Ok(socket)
        };
        let (ours, theirs, stranger) = (bind("server", server)?, bind("foe", foe)?, bind("foe", foe)?);
        ours.send_to(b"question", theirs.local_addr()?)?;
        let from = theirs.recv_from(&mut [0; 9]).context("the question")?.1;
        talks.push((ours, theirs, stranger, from));
    }
    agent.kill9()?;
    let hears = |when: &str| -> Result<()> {
        for (ours, theirs, stranger, from) in &talks {
            stranger.send_to(b"unasked", from)?;
            theirs.send_to(b"answer", from)?;
            let mut heard = [0; 9];
            let read = ours.recv(&mut heard).with_context(|| format!("{when}: the answer"))?;
            ensure!(&heard[..read] == b"answer", "{when}: heard {:?}", &heard[..read]);
            let more = ours.recv(&mut heard);
            ensure!(more.is_err(), "{when}: a stranger was heard as well");
        }
        Ok(())
    };
    hears("killed")?;
    let agent = site.start(&[])?;
    hears("adopted")?;
    ensure!(agent.terminate()?.success(), "the agent failed at its stop");
    hears("stopped")?;
    let agent = site.start(&[])?;
    hears("started again")?;
    wait_for("the guard to be counted", LIMIT, || {
        site.mesh
            .metric(NODE, "sluice_policy_drops_total{policy=\"default/p\"")
            .is_ok_and(|drops| drops > 1.0)
    })?;
    drop(agent);
    Ok(())
}
