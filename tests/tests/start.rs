//! Bad starts: each ends with code 1 and one line that says what to do, leaves nothing behind, and disturbs nobody.

mod common;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail, ensure};
use common::{LIMIT, Mesh};
use lab::wait::wait_until;
use lab::{
    AgentOptions, Footprint, Lab, PodSpec, Program, ServiceSpec, Topology, exec, kernel_version,
    unprivileged, wait_for,
};
use serde_json::Value;

const NODE: &str = "node1";

fn topology() -> Topology {
    let backend = PodSpec::new("backend", NODE).label("app", "web").runs(Program::Http { port: 8080 });
    Topology::with_nodes(1)
        .pod(PodSpec::new("client", NODE))
        .pod(backend)
        .service(ServiceSpec::new("web").port("http", 80, 8080))
}

/// A lab with documents and a binary that anybody may run.
struct Site {
    lab: Lab,
    config: PathBuf,
    binary: PathBuf,
}

impl Site {
    fn up(name: &str) -> Result<Self> {
        let lab = Lab::for_test(name, topology())?;
        let config = lab.directory().join("config");
        lab.write_documents(&config)?;
        let binary = AgentOptions::new(&config)?.binary;
        Ok(Self { lab, config, binary })
    }

    fn footprint(&self) -> Result<Footprint> {
        Footprint::of(&self.lab.node(NODE)?)
    }

    /// `words` run in the node; what stands for the agent with its usual arguments is up to them.
    fn command(&self, words: &[&str]) -> Result<Command> {
        let mut command = self.lab.node(NODE)?.command(words[0])?;
        command.args(&words[1..]);
        Ok(command)
    }

    /// The agent with its usual arguments and those given; an argument given twice would be a usage error.
    fn agent(&self, uplink: &[&str], arguments: &[&str]) -> Result<Command> {
        let mut command = self.command(&[&self.binary.to_string_lossy()])?;
        usual(&mut command, &self.config, uplink, arguments);
        Ok(command)
    }
}

fn usual(command: &mut Command, config: &Path, uplink: &[&str], arguments: &[&str]) {
    command.args(["agent", "--node", NODE, "--pod-interfaces", "pod-*"]);
    command.arg("--config").arg(config).args(uplink).args(arguments);
}

const ETH0: &[&str] = &["--uplink", "eth0"];
/// Ports that are free whoever else runs.
const FREE: &[&str] = &[
    "--admin",
    "127.0.0.1:0",
    "--metrics",
    "127.0.0.1:0",
    "--health",
    "127.0.0.1:0",
    "--outbound-port",
    "0",
    "--inbound-port",
    "0",
];

/// Runs it to its end, which a bad start reaches by itself.
fn ended(mut command: Command, directory: &Path) -> Result<(ExitStatus, String)> {
    let path = directory.join("stderr");
    let errors = fs::File::create(&path).context("a file for standard error")?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
    let mut child: Child = command.spawn().context("starting the agent")?;
    let mut failure = None;
    let status = wait_until("the agent to end", LIMIT, || match child.try_wait() {
        Ok(status) => status,
        Err(error) => {
            failure = Some(error);
            None
        }
    });
    let said = fs::read_to_string(&path).unwrap_or_default();
    if status.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let status = status.with_context(|| format!("{failure:?}; it said:\n{said}"))?;
    Ok((status, said))
}

/// Runs an agent that must refuse: code 1, one line with all of `words`, and the node as it was.
fn refuses(site: &Site, what: &str, command: Command, words: &[&str]) -> Result<()> {
    let before = site.footprint()?;
    let (status, said) = ended(command, &site.lab.directory()).with_context(|| what.to_owned())?;
    ensure!(status.code() == Some(1), "{what}: ended with {status}:\n{said}");
    let lines: Vec<&str> = said.lines().collect();
    let [line] = lines.as_slice() else { bail!("{what}: {} lines instead of one:\n{said}", lines.len()) };
    for word in words {
        ensure!(line.contains(word), "{what}: no {word:?} in {line:?}");
    }
    let after = site.footprint()?;
    ensure!(after.since(&before).is_empty(), "{what}: left {:?}", after.since(&before));
    ensure!(before.since(&after).is_empty(), "{what}: removed {:?}", before.since(&after));
    Ok(())
}

#[test]
fn a_port_that_is_taken() -> Result<()> {
    if unprivileged("a_port_that_is_taken") {
        return Ok(());
    }
    let site = Site::up("taken")?;
    let take = |address: &str| -> Result<TcpListener> {
        let address: SocketAddr = address.parse()?;
        Ok(site.lab.node(NODE)?.in_netns(|| TcpListener::bind(address))??)
    };
    for (taken, word, flag) in [
        ("127.0.0.1:15000", "127.0.0.1:15000", "--admin"),
        ("[::]:15020", "[::]:15020", "--metrics"),
        ("[::]:15021", "[::]:15021", "--health"),
        ("127.0.0.1:15001", "127.0.0.1:15001", "--outbound-port"),
        ("[::1]:15001", "[::1]:15001", "--outbound-port"),
        ("127.0.0.1:15006", "127.0.0.1:15006", "--inbound-port"),
    ] {
        let holder = take(taken)?;
        refuses(&site, taken, site.agent(ETH0, &[])?, &[word, flag, "taken by another process"])?;
        drop(holder);
    }
    let gateway = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata:\n  name: edge\n\
                   spec:\n  gatewayClassName: sluice\n  listeners:\n  - {name: web, port: 8888, protocol: HTTP}\n";
    lab::documents::replace_file(&site.config.join("gateway.yaml"), gateway)?;
    let _holder = take("[::]:8888")?;
    // Without capture it would do nothing at all; with it pods must not go without because somebody has a port.
    let off = site.agent(ETH0, &["--capture", "off"])?;
    refuses(&site, "gateway", off, &["edge", "8888", "another process has the port"])?;
    let Site { lab, config, .. } = site;
    let mut mesh = Mesh { agents: Vec::new(), lab, config };
    mesh.agents.push(mesh.start_agent(NODE)?);
    let status = mesh.verb(NODE, "status")?;
    let listeners = status["listeners"].as_array().context("listeners")?;
    let edge = listeners.iter().find(|one| one["name"] == "default/edge/web").context("it is not listed")?;
    ensure!(
        edge["error"].as_str().is_some_and(|error| error.contains("another process has the port")),
        "{edge}"
    );
    ensure!(status["capture"]["uplinks"][0]["name"] == "eth0", "{status}");
    Ok(())
}

#[test]
fn a_node_that_is_not_as_said() -> Result<()> {
    if unprivileged("a_node_that_is_not_as_said") {
        return Ok(());
    }
    let site = Site::up("not_as_said")?;
    let unknown = site.agent(&["--uplink", "eth7"], &[])?;
    refuses(&site, "unknown uplink", unknown, &["uplink eth7 does not exist", "ip link"])?;

    let mut no_nft = site.agent(ETH0, &[])?;
    no_nft.env("PATH", "/nonexistent");
    refuses(&site, "nft missing", no_nft, &["nft", "install the nftables package"])?;

    let mut no_config = site.command(&[&site.binary.to_string_lossy()])?;
    usual(&mut no_config, Path::new("/nonexistent/documents"), ETH0, &[]);
    refuses(&site, "no configuration", no_config, &["--config", "/nonexistent/documents"])?;

    for family in ["-4", "-6"] {
        let rule = |verb| site.command(&["ip", family, "rule", verb, "fwmark", "0x1520", "table", "77"]);
        exec::run(&mut rule("add")?)?;
        refuses(&site, "mark taken", site.agent(ETH0, &[])?, &["fwmark 0x1520", "table 77", "--own-mark"])?;
        exec::run(&mut rule("del")?)?;
    }
    Ok(())
}

#[test]
fn a_privilege_that_is_missing() -> Result<()> {
    if unprivileged("a_privilege_that_is_missing") {
        return Ok(());
    }
    let site = Site::up("privilege")?;
    // Where the build lies, not everybody may look.
    let binary = site.lab.directory().join("sluice");
    fs::copy(&site.binary, &binary).context("copying the binary")?;
    let binary = binary.to_string_lossy();
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", &binary];
    let no_bpf = ["setpriv", "--bounding-set=-all,+net_admin", &binary];
    let no_perfmon = ["setpriv", "--bounding-set=-all,+net_admin,+bpf", &binary];
    let no_net = ["setpriv", "--bounding-set=-all,+bpf,+sys_admin", &binary];
    for (words, missing) in [
        (&nobody[..], "CAP_NET_ADMIN and CAP_BPF and CAP_PERFMON missing"),
        (&no_bpf, "CAP_BPF and CAP_PERFMON missing"),
        (&no_perfmon, "CAP_PERFMON missing"),
        (&no_net, "CAP_NET_ADMIN missing"),
    ] {
        let mut command = site.command(words)?;
        usual(&mut command, &site.config, ETH0, &[]);
        refuses(&site, words[1], command, &["needs root", "CAP_NET_ADMIN", "--capture off"])?;
        let mut check = site.command(words)?;
        check.args(["check", "-o", "json", "--pod-interfaces", "pod-*"]).args(ETH0);
        let output = check.output()?;
        ensure!(output.status.code() == Some(1), "{words:?}: check ended with {}", output.status);
        let row = row(&output.stdout, "privileges")?;
        let detail = row["detail"].as_str().unwrap_or_default();
        ensure!(row["outcome"] == "failed" && detail.starts_with(missing), "{words:?}: {row}");
    }
    starts_without_sys_admin(&site, &binary)
}

/// Nothing that the agent cannot do without is lacking, and check says what is done without.
fn starts_without_sys_admin(site: &Site, binary: &str) -> Result<()> {
    let cgroup = site.lab.node(NODE)?.cgroup().path().display().to_string();
    let words = ["setpriv", "--bounding-set=-sys_admin", binary];
    let mut check = site.command(&words)?;
    check.args(["check", "-o", "json", "--pod-interfaces", "pod-*", "--cgroup", &cgroup]).args(ETH0);
    let output = check.output()?;
    ensure!(output.status.success(), "check: {}", String::from_utf8_lossy(&output.stdout));
    for name in ["privileges", "acceleration", "others' programs"] {
        let row = row(&output.stdout, name)?;
        let detail = row["detail"].as_str().unwrap_or_default();
        ensure!(row["outcome"] == "warning" && detail.contains("CAP_SYS_ADMIN"), "{name}: {row}");
        ensure!(!detail.contains("this kernel fails"), "{name} blames the kernel: {row}");
    }
    let mut command = site.command(&words)?;
    usual(&mut command, &site.config, ETH0, &["--bpffs", "off"]);
    let log = site.lab.directory().join("without-sys-admin");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&log)?);
    let mut agent = command.spawn().context("starting the agent")?;
    let said = || fs::read_to_string(&log).unwrap_or_default();
    let ready = wait_for("the agent to be ready", LIMIT, || said().contains("ready"));
    let running = agent.try_wait()?.is_none();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(agent.id())?),
        nix::sys::signal::Signal::SIGTERM,
    )?;
    let ended = agent.wait()?;
    ensure!(ready.is_ok() && running && ended.success(), "{ended}:\n{}", said());
    Ok(())
}

/// A row of what check answers.
fn row(answer: &[u8], name: &str) -> Result<Value> {
    let rows: Value = serde_json::from_slice(answer).context("the answer of check")?;
    let found = rows.as_array().into_iter().flatten().find(|row| row["name"] == name);
    found.cloned().with_context(|| format!("no row {name}: {rows}"))
}

#[test]
fn programs_of_others_that_come_first_are_told() -> Result<()> {
    if unprivileged("programs_of_others_that_come_first_are_told") {
        return Ok(());
    }
    // The order of programs on a hook came with tcx.
    if kernel_version() < (6, 6) {
        return Ok(());
    }
    let site = Site::up("others")?;
    let interface = site.lab.pod("client")?.host_interface();
    let node = site.lab.node(NODE)?;
    let cgroup = node.cgroup().path().display().to_string();
    let check = || -> Result<String> {
        let mut check = site.command(&[&site.binary.to_string_lossy()])?;
        check.args(["check", "-o", "json", "--pod-interfaces", "pod-*", "--acceleration", "off"]);
        let output = check.args(["--cgroup", &cgroup]).args(ETH0).output()?;
        let row = row(&output.stdout, "others' programs")?;
        Ok(row["detail"].as_str().unwrap_or_default().to_owned())
    };
    let agent = node.start_agent(&AgentOptions::new(&site.config)?.with(["--cgroup", &cgroup]))?;
    let alone = check()?;
    ensure!(
        !alone.contains(&interface) && !alone.contains(&cgroup),
        "an agent's own are called others': {alone}"
    );
    let index = || nix::net::if_::if_nametoindex(&*interface).context("the interface's number");
    let program = pass_program()?;
    let first =
        node.in_netns(|| Ok::<_, anyhow::Error>(link(&program, index()?, BPF_TCX_INGRESS, BPF_F_BEFORE)?))??;
    let last = node.in_netns(|| Ok::<_, anyhow::Error>(link(&program, index()?, BPF_TCX_EGRESS, 0)?))??;
    let group = fs::File::open(&cgroup)?;
    let socket = link(&connect_program()?, u32::try_from(group.as_raw_fd())?, BPF_CGROUP_INET4_CONNECT, 0)?;
    let said = check()?;
    for words in [
        format!("tcx {interface} ingress: without a name"),
        format!("tcx {interface} egress: without a name"),
        format!("cgroup connect4 of {cgroup}: without a name"),
    ] {
        ensure!(said.contains(&words), "no {words:?} in {said:?}");
    }
    ensure!(said.matches("BEFORE OURS").count() == 1, "only one comes before ours: {said}");
    ensure!(!said.contains("from_pod"), "ours are called others': {said}");
    let status = || exec::stdout(&mut site.command(&[&site.binary.to_string_lossy(), "status"])?);
    wait_for("the agent to tell of it", LIMIT, || {
        status().is_ok_and(|text| text.contains("COMES BEFORE OURS") && text.contains("connect4 of"))
    })?;
    drop((first, last, socket, agent));
    Ok(())
}

#[test]
fn a_second_agent_leaves_the_first_alone() -> Result<()> {
    if unprivileged("a_second_agent_leaves_the_first_alone") {
        return Ok(());
    }
    let site = Site::up("second")?;
    let Site { lab, config, binary } = site;
    let mut mesh = Mesh { agents: Vec::new(), lab, config };
    mesh.agents.push(mesh.start_agent(NODE)?);
    let site = Site { lab: Lab::open(mesh.lab.id())?, config: mesh.config.clone(), binary };
    let captured = || {
        let response = mesh.get("client", mesh.service("web", 0, 80)?, "web", "/")?;
        ensure!(response.header("via").is_some(), "the first agent no longer captures");
        Ok(())
    };
    captured()?;
    // Ports of its own do not make it welcome: rules and tables are the node's.
    for arguments in [&[][..], FREE] {
        refuses(&site, "second", site.agent(ETH0, arguments)?, &["another agent", "stop it first"])?;
        captured()?;
    }
    // Without capture there is nothing to share but the ports.
    let off = site.agent(ETH0, &["--capture", "off"])?;
    refuses(&site, "second without capture", off, &["127.0.0.1:15000", "--admin"])?;
    captured()
}

#[test]
fn an_interface_that_cannot_be_hooked() -> Result<()> {
    if unprivileged("an_interface_that_cannot_be_hooked") {
        return Ok(());
    }
    let site = Site::up("unhookable")?;
    let client = site.lab.pod("client")?;
    let interface = client.host_interface();
    let node = site.lab.node(NODE)?;
    let full = node.in_netns(|| fill_hook(&interface))??;
    refuses(&site, "full hook", site.agent(ETH0, &[])?, &[&interface, "cannot be attached", "bpftool net"])?;
    // With room for one it starts.
    drop(full);
    let agent = node.start_agent(&AgentOptions::new(&site.config)?)?;
    ensure!(agent.terminate()?.success(), "the agent failed at its stop");
    Ok(())
}

/// More than the kernel lets be attached to one side of an interface.
const PROGRAMS_MAX: usize = 128;

/// Attaches programs to an interface's ingress until the kernel refuses. They go when the answer is dropped.
fn fill_hook(interface: &str) -> Result<Vec<OwnedFd>> {
    let index = nix::net::if_::if_nametoindex(interface).context("the interface's number")?;
    let mut links = Vec::new();
    while links.len() < PROGRAMS_MAX {
        // One program cannot be there twice.
        match link(&pass_program().context("loading a program")?, index, BPF_TCX_INGRESS, 0) {
            Ok(link) => links.push(link),
            Err(error) if error.raw_os_error() == Some(libc::ERANGE) => return Ok(links),
            Err(error) => return Err(error).context("attaching a program"),
        }
    }
    bail!("the hook takes {PROGRAMS_MAX} programs and more")
}

const BPF_PROG_LOAD: i64 = 5;
const BPF_LINK_CREATE: i64 = 28;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
const BPF_CGROUP_INET4_CONNECT: u32 = 10;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
/// Without a program that it is relative to: before all.
const BPF_F_BEFORE: u32 = 1 << 3;

/// `r0 = -1; exit`: nothing decided, the next program is asked.
fn pass_program() -> std::io::Result<OwnedFd> {
    const CODE: [u64; 2] = [0xffff_ffff_0000_00b7, 0x0000_0000_0000_0095];
    load(BPF_PROG_TYPE_SCHED_CLS, &CODE, 0)
}

/// `r0 = 1; exit`: sockets may connect to where they want.
fn connect_program() -> std::io::Result<OwnedFd> {
    const CODE: [u64; 2] = [0x0000_0001_0000_00b7, 0x0000_0000_0000_0095];
    load(BPF_PROG_TYPE_CGROUP_SOCK_ADDR, &CODE, BPF_CGROUP_INET4_CONNECT)
}

fn load(kind: u32, code: &'static [u64; 2], attach_type: u32) -> std::io::Result<OwnedFd> {
    #[repr(C)]
    struct Load {
        kind: u32,
        instructions: u32,
        code: u64,
        licence: u64,
        log_and_name: [u64; 5],
        interface: u32,
        attach_type: u32,
        rest: [u64; 6],
    }
    let load = Load {
        kind,
        instructions: 2,
        code: code.as_ptr() as u64,
        licence: c"GPL".as_ptr() as u64,
        log_and_name: [0; 5],
        interface: 0,
        attach_type,
        rest: [0; 6],
    };
    bpf(BPF_PROG_LOAD, &load)
}

/// Attaches a program to an interface, or to the cgroup of a file descriptor.
fn link(program: &OwnedFd, target: u32, attach_type: u32, flags: u32) -> std::io::Result<OwnedFd> {
    #[repr(C)]
    struct Link {
        program: i32,
        target: u32,
        attach_type: u32,
        flags: u32,
        rest: [u64; 6],
    }
    bpf(BPF_LINK_CREATE, &Link { program: program.as_raw_fd(), target, attach_type, flags, rest: [0; 6] })
}

/// The system call, for commands that answer with a file descriptor.
#[expect(unsafe_code, reason = "bpf(2) has no safe wrapper for programs that are not read from an object")]
fn bpf<T>(command: i64, attributes: &T) -> std::io::Result<OwnedFd> {
    // SAFETY: the attributes are plain integers and outlive the call, as does what their addresses lead to.
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    match i32::try_from(answer) {
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(std::io::Error::last_os_error()),
    }
}
