//! What is in the kernel before, between and after agents: pins that the next one takes over without a gap, and
//! `cleanup`, which leaves nothing.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use aya::programs::tc::{SchedClassifier, TcAttachType};
use common::{LIMIT, Mesh, leftovers};
use lab::emulated::is_emulated;
use lab::pingpong::{Keeps, PingPong, echo};
use lab::{
    Agent, AgentOptions, Footprint, Lab, PodSpec, ServiceSpec, Topology, exec, kernel_version, unprivileged,
    wait_for,
};
use serde_json::Value;

const NODE: &str = "node1";
const CAPTURED: &str = "sluice_capture_packets_total{reason=\"captured\"}";
/// The port that no service leads to.
const DIRECT: u16 = 7001;
/// The longest that an application may be cut off while an agent is replaced.
const GAP_MAX: Duration = Duration::from_millis(50);

fn topology() -> Topology {
    Topology::with_nodes(1)
        .pod(PodSpec::new("client", NODE))
        .pod(PodSpec::new("backend", NODE).label("app", "echo"))
        .service(ServiceSpec::new("echo").port("tcp", 81, 7000))
}

/// A lab whose node has a BPF file system, an echo behind a service, and no agent yet.
struct Site {
    mesh: Mesh,
    bpffs: PathBuf,
}

impl Site {
    fn up(name: &str) -> Result<Self> {
        let lab = Lab::for_test(name, topology())?;
        let config = lab.directory().join("config");
        lab.write_documents(&config)?;
        let mesh = Mesh { agents: Vec::new(), lab, config };
        // A port that is dialled only directly: where a client has both ways to one port of one pod, connection tracking
        // gives some of its connections other source ports, agent or not.
        for port in [7000, DIRECT] {
            echo(&mesh.lab.pod("backend")?, SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), port))?;
        }
        let bpffs = mesh.lab.node(NODE)?.mount_bpffs()?;
        Ok(Self { mesh, bpffs })
    }

    fn start(&self, arguments: &[&str]) -> Result<Agent> {
        let pins = ["--bpffs".to_owned(), self.bpffs.display().to_string()];
        let options = AgentOptions::new(&self.mesh.config)?.with(pins).with(arguments.iter().copied());
        self.mesh.lab.node(NODE)?.start_agent(&options)
    }

    fn footprint(&self) -> Result<Footprint> {
        Footprint::of(&self.mesh.lab.node(NODE)?)
    }

    /// Where the agent keeps its pins.
    fn pins(&self) -> Result<PathBuf> {
        let mut roots = fs::read_dir(&self.bpffs)?.flatten().map(|entry| entry.path());
        let root = roots.find(|path| path.is_dir()).context("no directory of pins")?;
        Ok(root)
    }

    /// `sluice cleanup`: its exit code and what it said.
    fn cleanup(&self, arguments: &[&str]) -> Result<(Option<i32>, String)> {
        let binary = lab::agent::built_binary()?;
        let mut command = self.mesh.lab.node(NODE)?.command(binary)?;
        command.arg("cleanup").arg("--bpffs").arg(&self.bpffs).args(arguments);
        let output = command.output()?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.code(), String::from_utf8_lossy(&said).into_owned()))
    }

    /// The interfaces' programs at TC ingress, by interface; a number that each load gives anew tells two apart.
    fn programs(&self) -> Result<BTreeMap<String, Vec<u32>>> {
        let node = self.mesh.lab.node(NODE)?;
        let interfaces = node.netns().links()?;
        node.in_netns(|| {
            let ids = |interface: &String| {
                let (_, programs) = SchedClassifier::query_tcx(interface, TcAttachType::Ingress).ok()?;
                Some((interface.clone(), programs.iter().map(aya::programs::ProgramInfo::id).collect()))
            };
            interfaces.iter().filter_map(ids).collect()
        })
    }
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// tcx, and with it links that can be pinned, came with 6.6.
fn has_tcx() -> bool {
    kernel_version() >= (6, 6)
}

#[test]
fn a_killed_agents_place_is_taken_in_one_step() -> Result<()> {
    if unprivileged("a_killed_agents_place_is_taken_in_one_step") {
        return Ok(());
    }
    let site = Site::up("adopt")?;
    let bare = site.footprint()?;
    let first = site.start(&[])?;
    let to = site.mesh.service("echo", 0, 81)?;
    let client = PingPong::start(&site.mesh.lab.pod("client")?, to, Keeps::None)?;
    client.wait_answers(50, LIMIT)?;
    let counted = site.mesh.metric(NODE, CAPTURED)?;
    ensure!(counted >= 50.0, "{counted} connections were captured");
    ports_are_apart(&site)?;
    let pins = site.pins()?;
    let (links, before) = (names(&pins.join("links")), site.programs()?);
    let maps = names(&pins).into_iter().find(|name| name.starts_with("maps-")).context("no maps")?;
    ensure!(names(&pins.join(&maps)).contains(&"DESTINATIONS".to_owned()), "{:?}", names(&pins.join(&maps)));
    let status = site.mesh.verb(NODE, "status")?;
    ensure!(status["capture"]["pins"] == pins.display().to_string(), "{}", status["capture"]["pins"]);

    first.kill9()?;
    client.wait_answers(50, LIMIT)?;
    ensure!(site.programs()? == before, "killed: {:?}, before {before:?}", site.programs()?);

    let second = site.start(&[])?;
    client.wait_answers(50, LIMIT)?;
    ensure!(site.mesh.metric(NODE, CAPTURED)? > counted, "the second agent counts anew, or captures nothing");
    ensure!(names(&pins.join("links")) == links, "links {:?}, before {links:?}", names(&pins.join("links")));
    if has_tcx() {
        let after = site.programs()?;
        for (interface, programs) in &before {
            let now = after.get(interface).cloned().unwrap_or_default();
            ensure!(now.len() == programs.len(), "{interface}: {now:?} after {programs:?}");
            ensure!(programs.is_empty() || now != *programs, "{interface}: still the old program");
        }
    }
    client.stop()?;
    ensure!(second.terminate()?.success(), "the agent failed at its stop");
    let left = site.footprint()?;
    ensure!(left.since(&bare).is_empty(), "left behind: {:?}", left.since(&bare));
    Ok(())
}

/// What the agent dials in a pod's name never has a port that the pod itself may take.
fn ports_are_apart(site: &Site) -> Result<()> {
    let sockets =
        site.mesh.lab.node(NODE)?.in_netns(|| fs::read_to_string("/proc/thread-self/net/tcp"))??;
    // Both ends are words of hexadecimal digits, ADDRESS:PORT.
    let port = |end: &str| u16::from_str_radix(end.rsplit(':').next()?, 16).ok();
    let local = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let (local, remote) = (words.next()?, words.next()?);
        (port(remote)? == 7000).then(|| port(local))?
    };
    let ports: Vec<u16> = sockets.lines().filter_map(local).collect();
    ensure!(ports.len() >= 20, "{} sockets towards the backend:\n{sockets}", ports.len());
    ensure!(ports.iter().all(|port| *port >= 61000), "ports of pods among {ports:?}");
    Ok(())
}

#[test]
fn replacing_an_agent_is_not_noticed() -> Result<()> {
    if unprivileged("replacing_an_agent_is_not_noticed") {
        return Ok(());
    }
    let site = Site::up("replace")?;
    let keep = ["--on-stop", "keep", "--drain-timeout", "1"];
    let mut agent = site.start(&keep)?;
    let client = site.mesh.lab.pod("client")?;
    let service = site.mesh.service("echo", 0, 81)?;
    let direct = SocketAddr::new(site.mesh.pod_ip("backend", 0)?, DIRECT);
    let clients = [
        ("direct, one connection", direct, Keeps::One),
        ("direct, many connections", direct, Keeps::None),
        ("captured, one connection", service, Keeps::One),
        ("captured, many connections", service, Keeps::None),
    ];
    let started = clients.map(|(what, to, keeps)| Ok((what, PingPong::start(&client, to, keeps)?)));
    let started = started.into_iter().collect::<Result<Vec<_>>>()?;
    let beat = |count| {
        started.iter().try_for_each(|(what, client)| client.wait_answers(count, LIMIT).context(*what))
    };
    beat(100)?;
    for killed in [true, false, true] {
        if killed {
            agent.kill9()?;
        } else {
            ensure!(agent.terminate()?.success(), "the agent failed at its stop");
            ensure!(!leftovers(&site.mesh.lab, NODE)?.is_empty(), "nothing was kept");
        }
        beat(50)?;
        agent = site.start(&keep)?;
        let captured = site.mesh.metric(NODE, CAPTURED)?;
        beat(100)?;
        ensure!(site.mesh.metric(NODE, CAPTURED)? > captured, "the next agent captures nothing");
    }
    let mut late = Vec::new();
    for (what, client) in started {
        let rhythm = client.stop()?;
        println!("{what}: {rhythm:?}");
        // An emulated machine has gaps of its own; there every state must have been answered in, which is seen above.
        if !is_emulated() && rhythm.longest > GAP_MAX + rhythm.machine {
            late.push(format!("{what}: {rhythm:?}"));
        }
    }
    ensure!(late.is_empty(), "longer than {GAP_MAX:?}: {late:?}");
    drop(agent);
    Ok(())
}

#[test]
fn another_layout_is_built_anew() -> Result<()> {
    if unprivileged("another_layout_is_built_anew") {
        return Ok(());
    }
    let site = Site::up("layout")?;
    site.start(&[])?.kill9()?;
    let pins = site.pins()?;
    let before = names(&pins);
    let agent = site.start(&["--destinations-max", "1000"])?;
    let after = names(&pins);
    ensure!(after.len() == 2 && before.len() == 2 && after != before, "{before:?}, then {after:?}");
    let client =
        PingPong::start(&site.mesh.lab.pod("client")?, site.mesh.service("echo", 0, 81)?, Keeps::None)?;
    client.wait_answers(20, LIMIT)?;
    client.stop()?;
    ensure!(site.mesh.metric(NODE, CAPTURED)? >= 20.0, "the new layout captures nothing");
    for (metric, expected) in [("sluice_bpf_map_capacity", 1000.0), ("sluice_bpf_map_entries", 2.0)] {
        let value = site.mesh.metric(NODE, &format!("{metric}{{map=\"DESTINATIONS\"}}"))?;
        ensure!((value - expected).abs() < 0.5, "{metric} is {value}");
    }
    drop(agent);
    Ok(())
}

#[test]
fn links_of_interfaces_that_are_gone_are_let_go() -> Result<()> {
    if unprivileged("links_of_interfaces_that_are_gone_are_let_go") {
        return Ok(());
    }
    let site = Site::up("gone")?;
    let netns = site.mesh.lab.node(NODE)?.netns();
    netns.ip_batch("link add pod-late type veth peer name pod-peer\nlink set pod-late up\n")?;
    let first = site.start(&[])?;
    let hooks = names(&site.pins()?.join("links")).len();
    ensure!(!has_tcx() || hooks >= 4, "{hooks} links are pinned");
    first.kill9()?;
    netns.ip_batch("link del pod-late\n")?;
    let second = site.start(&[])?;
    let now = names(&site.pins()?.join("links")).len();
    ensure!(!has_tcx() || now == hooks - 2, "{now} links are pinned, {hooks} before two interfaces went");
    drop(second);
    Ok(())
}

#[test]
fn cleanup_leaves_nothing_and_can_be_repeated() -> Result<()> {
    if unprivileged("cleanup_leaves_nothing_and_can_be_repeated") {
        return Ok(());
    }
    let site = Site::up("cleanup")?;
    let bare = site.footprint()?;
    let agent = site.start(&["--on-stop", "keep"])?;
    let running = site.footprint()?;
    let (code, said) = site.cleanup(&[])?;
    ensure!(code == Some(1) && said.contains("--force"), "under an agent: {code:?}, {said}");
    ensure!(
        running == site.footprint()?,
        "a refused cleanup changed {:?}",
        site.footprint()?.since(&running)
    );

    ensure!(agent.terminate()?.success(), "the agent failed at its stop");
    let kept = site.footprint()?;
    ensure!(!kept.since(&bare).is_empty(), "nothing was kept");
    for round in ["kept", "killed"] {
        if round == "killed" {
            site.start(&[])?.kill9()?;
        }
        let (code, said) = site.cleanup(&[])?;
        ensure!(code == Some(0), "{round}: {code:?}, {said}");
        for word in
            ["pin maps-", "rule ip rule with fwmark 0x1510", "route local default", "nft table inet sluice"]
        {
            ensure!(said.contains(word), "{round}: {word:?} is not among\n{said}");
        }
        let left = site.footprint()?;
        ensure!(left == bare, "{round}: left {:?}, took {:?}", left.since(&bare), bare.since(&left));
        let (code, said) = site.cleanup(&["-o", "json"])?;
        ensure!(code == Some(0) && said.trim() == "[]", "{round}, again: {code:?}, {said}");
    }

    let agent = site.start(&[])?;
    let (code, said) = site.cleanup(&["--force"])?;
    ensure!(code == Some(0), "forced: {code:?}, {said}");
    wait_for("the agent to put its rules back", LIMIT, || {
        leftovers(&site.mesh.lab, NODE).is_ok_and(|left| left.contains("rule") && left.contains("sluice"))
    })?;
    ensure!(agent.terminate()?.success(), "the agent failed at its stop");
    let left = site.footprint()?;
    ensure!(left.since(&bare).is_empty(), "after the stop: {:?}", left.since(&bare));
    Ok(())
}

#[test]
fn pins_that_cannot_be_are_refused_at_the_start() -> Result<()> {
    if unprivileged("pins_that_cannot_be_are_refused_at_the_start") {
        return Ok(());
    }
    let site = Site::up("nopins")?;
    let bare = site.footprint()?;
    let elsewhere = site.mesh.lab.directory().join("elsewhere");
    let options = |arguments: &[&str]| -> Result<AgentOptions> {
        Ok(AgentOptions::new(&site.mesh.config)?.with(arguments.iter().copied()))
    };
    for (arguments, words) in [
        (
            vec!["--bpffs", elsewhere.to_str().context("a path")?],
            ["not on a BPF file system", "mount -t bpf"],
        ),
        (vec!["--bpffs", "off", "--on-stop", "keep"], ["--on-stop keep needs pins", "--bpffs off"]),
    ] {
        let Err(error) = site.mesh.lab.node(NODE)?.start_agent(&options(&arguments)?) else {
            bail!("an agent started with {arguments:?}")
        };
        let error = format!("{error:#}");
        ensure!(words.iter().all(|word| error.contains(word)), "{arguments:?}: {error}");
        let left = site.footprint()?;
        ensure!(left == bare, "{arguments:?} left {:?}", left.since(&bare));
    }
    let binary = lab::agent::built_binary()?;
    let mut check = site.mesh.lab.node(NODE)?.command(&binary)?;
    check.args(["check", "-o", "json", "--uplink", "eth0", "--pod-interfaces", "pod-*", "--bpffs"]);
    let output = check.arg(&elsewhere).output()?;
    ensure!(output.status.code() == Some(1), "check found no fault: {output:?}");
    let checks: Value = serde_json::from_slice(&output.stdout).context("the answer of check")?;
    let outcome = |name: &str| {
        let rows = checks.as_array().into_iter().flatten();
        rows.filter(|row| row["name"] == name).map(|row| row["outcome"].clone()).next()
    };
    ensure!(outcome("bpffs").is_some_and(|outcome| outcome == "failed"), "{checks}");
    let tcx = if has_tcx() { "ok" } else { "warning" };
    ensure!(outcome("tcx").is_some_and(|outcome| outcome == tcx), "{checks}");
    for name in ["IP_LOCAL_PORT_RANGE", "cgroup v2", "XDP", "sock_ops", "sk_msg", "ring buffer", "BTF", "nft"]
    {
        ensure!(outcome(name).is_some_and(|outcome| outcome != "failed"), "{name}: {checks}");
    }
    ensure!(!elsewhere.exists(), "a directory was made where no pins can be");
    let agent = site.mesh.lab.node(NODE)?.start_agent(&options(&[])?)?;
    let status = site.mesh.verb(NODE, "status")?;
    ensure!(status["capture"]["pins"] == "not pinned: --bpffs off", "{}", status["capture"]["pins"]);
    let text = exec::stdout(site.mesh.lab.node(NODE)?.command(lab::agent::built_binary()?)?.arg("status"))?;
    ensure!(text.contains("pins: not pinned"), "{text}");
    drop(agent);
    Ok(())
}

#[test]
fn a_full_map_sends_the_rest_direct() -> Result<()> {
    if unprivileged("a_full_map_sends_the_rest_direct") {
        return Ok(());
    }
    let site = Site::up("full")?;
    let agent = site.start(&["--destinations-max", "1"])?;
    let status = site.mesh.verb(NODE, "status")?;
    let capture = &status["capture"];
    ensure!(capture["destinations"] == 1 && capture["destinations_over_capacity"] == 1, "{capture}");
    let client = site.mesh.lab.pod("client")?;
    let mut captured = 0;
    for family in 0..2 {
        let before = site.mesh.metric(NODE, CAPTURED)?;
        let to = site.mesh.service("echo", family, 81)?;
        let pings = PingPong::start(&client, to, Keeps::None)?;
        pings.wait_answers(5, LIMIT).with_context(|| format!("family {family}"))?;
        pings.stop()?;
        captured += i32::from(site.mesh.metric(NODE, CAPTURED)? > before);
    }
    ensure!(captured == 1, "{captured} of the two destinations were captured");
    drop(agent);
    Ok(())
}

#[test]
fn programs_of_others_are_told() -> Result<()> {
    if unprivileged("programs_of_others_are_told") {
        return Ok(());
    }
    // Before tcx our own filters have one place on an interface, and those of others need a compiler here.
    if !has_tcx() {
        return Ok(());
    }
    let site = Site::up("foreign")?;
    let others = |mesh: &Mesh| mesh.metric(NODE, "sluice_capture_foreign_programs{hook=\"tcx\"}");
    let alone = site.mesh.start_agent(NODE)?;
    wait_for("a first look at the hooks", LIMIT, || others(&site.mesh).is_ok_and(|count| count < 0.5))?;
    alone.kill9()?;
    // What is pinned elsewhere belongs to nobody that this agent knows.
    site.start(&[])?.kill9()?;
    let agent = site.mesh.start_agent(NODE)?;
    wait_for("the others' programs to be counted", LIMIT, || {
        others(&site.mesh).is_ok_and(|count| count >= 3.0)
    })?;
    let status = site.mesh.verb(NODE, "status")?;
    let foreign = status["capture"]["foreign"].as_array().cloned().unwrap_or_default();
    let named = foreign.iter().any(|one| one["name"] == "from_pod" && one["hook"] == "tcx");
    ensure!(named, "{foreign:?}");
    ensure!(agent.log().contains("somebody else's program"), "nothing was logged:\n{}", agent.log());
    let text = exec::stdout(site.mesh.lab.node(NODE)?.command(lab::agent::built_binary()?)?.arg("status"))?;
    ensure!(text.contains("others' program on tcx"), "{text}");
    drop(agent);
    let (code, said) = site.cleanup(&[])?;
    ensure!(code == Some(0) && said.contains("pin links/"), "{code:?}, {said}");
    Ok(())
}

#[test]
fn why_says_what_the_kernel_does() -> Result<()> {
    if unprivileged("why_says_what_the_kernel_does") {
        return Ok(());
    }
    let site = Site::up("why")?;
    let agent = site.start(&[])?;
    let why = |source: &str, destination: &str, format: &[&str]| -> Result<(Option<i32>, String)> {
        let mut command = site.mesh.lab.node(NODE)?.command(lab::agent::built_binary()?)?;
        let output = command.args(["why", source, destination]).args(format).output()?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.code(), String::from_utf8_lossy(&said).into_owned()))
    };
    let client = site.mesh.lab.pod("client")?;
    let backend = site.mesh.pod_ip("backend", 0)?;
    // Each is asked for and then done; the kernel's counters say whether the answer was true.
    let echo = site.mesh.service("echo", 0, 81)?;
    for (destination, dialled, verdict, reason) in [
        ("echo:81".to_owned(), echo, "agent", "captured"),
        (format!("[::ffff:{}]:81", echo.ip()), echo, "agent", "captured"),
        (format!("{backend}:{DIRECT}"), SocketAddr::new(backend, DIRECT), "direct", "no_route"),
    ] {
        let (code, said) = why("client", &destination, &["-o", "json"])?;
        ensure!(code == Some(0), "{destination}: {code:?}, {said}");
        let answer: Value = serde_json::from_str(&said).context("the answer of why")?;
        ensure!(answer["verdict"] == verdict && answer["reason"] == reason, "{destination}: {said}");
        let series = format!("sluice_capture_packets_total{{reason=\"{reason}\"}}");
        let before = site.mesh.metric(NODE, &series)?;
        let pings = PingPong::start(&client, dialled, Keeps::None)?;
        pings.wait_answers(5, LIMIT)?;
        pings.stop()?;
        let grown = site.mesh.metric(NODE, &series)? - before;
        ensure!(grown >= 5.0, "{destination}: {grown} packets were counted as {reason}");
    }
    let (code, text) = why("default/client", "echo.default.svc:81", &[])?;
    ensure!(code == Some(0) && text.contains("agent (agent L4), captured"), "{code:?}, {text}");
    for word in ["pod default/client", "service default/echo", "DESTINATIONS", "LISTENERS", "default/echo:81"]
    {
        ensure!(text.contains(word), "no {word:?} in\n{text}");
    }
    for (source, destination, word) in [
        ("nobody", "echo:81", "source `nobody`"),
        ("client", "echo", "no port"),
        ("client", "echo:65536", "destination `echo:65536`: the port is not a number from 1 to 65535"),
        ("client:0", "echo:81", "source `client:0`: the port is not a number"),
        ("client", "echo:99", "the service has no TCP port 99; it has "),
        ("a b", "echo:81", "neither"),
    ] {
        let (code, said) = why(source, destination, &[])?;
        ensure!(code == Some(1) && said.contains(word), "{source} {destination}: {code:?}, {said}");
    }
    drop(agent);
    Ok(())
}
