//! The lab itself: that its pods see what pods of a cluster see, and that it leaves nothing.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::cgroup::Cgroup;
use lab::http::get;
use lab::load::{Load, Plan};
use lab::state::{Names, Owner, all_ids};
use lab::{Footprint, Lab, PodSpec, Program, ServiceSpec, Topology, exec, netns, unprivileged, wait_for};

const TIMEOUT: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(20);

fn web() -> Topology {
    let backend = |name: &str, node: &str| {
        PodSpec::new(name, node).label("app", "web").label("version", "v1").runs(Program::Http { port: 8080 })
    };
    Topology::with_nodes(2)
        .pod(PodSpec::new("client", "node1"))
        .pod(backend("near", "node1"))
        .pod(backend("far", "node2"))
        .service(ServiceSpec::new("web").port("http", 80, 8080))
        .service(ServiceSpec::new("nobody").port("http", 80, 8080))
}

fn curl(lab: &Lab, pod: &str, arguments: &[&str]) -> Result<String> {
    exec::stdout(lab.pod(pod)?.command("curl")?.args(["-sS", "--max-time", "5"]).args(arguments))
}

#[test]
fn service_names_resolve_in_every_form_and_family() -> Result<()> {
    if unprivileged("service_names_resolve_in_every_form_and_family") {
        return Ok(());
    }
    let lab = Lab::for_test("names", web())?;
    for name in ["web", "web.default", "web.default.svc", "web.default.svc.cluster.local"] {
        for family in ["-4", "-6"] {
            let text = curl(&lab, "client", &[family, &format!("http://{name}/some/path")])?;
            let words: Vec<&str> = text.split_whitespace().collect();
            ensure!(
                words.len() == 4 && words[0] == "v1" && words[3] == "/some/path",
                "{name} {family}: {text:?}"
            );
        }
    }
    // And for those who enter with `ip netns exec`.
    let netns = lab.pod("client")?.netns();
    let arguments = ["netns", "exec", netns.name(), "curl", "-sS", "--max-time", "5", "http://web/"];
    let text = exec::stdout(&mut exec::command("ip", arguments))?;
    ensure!(text.starts_with("v1 "), "through ip netns exec: {text:?}");
    Ok(())
}

#[test]
fn cluster_ips_reach_every_ready_pod_with_the_clients_address() -> Result<()> {
    if unprivileged("cluster_ips_reach_every_ready_pod_with_the_clients_address") {
        return Ok(());
    }
    let mut lab = Lab::for_test("cluster_ip", web())?;
    for family in 0..2 {
        let address = SocketAddr::new(lab.cluster_ip("web")?.both()[family], 80);
        let own = lab.pod("client")?.address().both()[family].to_string();
        let mut seen = BTreeSet::new();
        // 64 picks out of two leave one out in 2 of 2^64 runs.
        for _ in 0..64 {
            let response = lab.pod("client")?.in_netns(|| get(address, "web", "/", TIMEOUT))??;
            ensure!(response.text().split(' ').nth(2) == Some(own.as_str()), "the peer: {}", response.text());
            seen.insert(response.header("x-pod").unwrap_or_default().to_owned());
        }
        ensure!(seen == BTreeSet::from(["near".to_owned(), "far".to_owned()]), "answered by {seen:?}");
    }
    lab.set_ready("near", false)?;
    let address = SocketAddr::new(lab.cluster_ip("web")?.v4.into(), 80);
    for _ in 0..16 {
        let response = lab.pod("client")?.in_netns(|| get(address, "web", "/", TIMEOUT))??;
        ensure!(response.header("x-pod") == Some("far"), "a pod that is not ready answered");
    }
    let empty = SocketAddr::new(lab.cluster_ip("nobody")?.v4.into(), 80);
    let refused = lab.pod("client")?.in_netns(|| get(empty, "nobody", "/", TIMEOUT))?;
    ensure!(refused.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused), "not refused at once");
    Ok(())
}

#[test]
fn a_pod_reaches_itself_through_its_service_and_its_node_reaches_it_from_the_nodes_address() -> Result<()> {
    if unprivileged("a_pod_reaches_itself_through_its_service") {
        return Ok(());
    }
    let topology = Topology::with_nodes(1)
        .pod(PodSpec::new("only", "node1").label("app", "web").runs(Program::Http { port: 8080 }))
        .service(ServiceSpec::new("web").port("http", 80, 8080));
    let lab = Lab::for_test("hairpin", topology)?;
    for family in ["-4", "-6"] {
        let text = curl(&lab, "only", &[family, "http://web/"])?;
        ensure!(text.starts_with("- only "), "{family}: {text:?}");
    }
    let (pod, node) = (lab.pod("only")?, lab.node("node1")?);
    for (address, own) in pod.address().both().into_iter().zip(node.address().both()) {
        let response = node.in_netns(|| get(SocketAddr::new(address, 8080), "only", "/", TIMEOUT))??;
        ensure!(response.text() == format!("- only {own} /\n"), "as seen by the pod: {}", response.text());
    }
    Ok(())
}

#[test]
fn two_labs_live_side_by_side() -> Result<()> {
    if unprivileged("two_labs_live_side_by_side") {
        return Ok(());
    }
    let first = Lab::for_test("side_a", web())?;
    let second = Lab::for_test("side_b", web())?;
    ensure!(curl(&first, "client", &["http://web/"])?.starts_with("v1 "));
    drop(first);
    ensure!(
        curl(&second, "client", &["http://web/"])?.starts_with("v1 "),
        "the other lab's end broke this one"
    );
    ensure_gone(&format!("side_a_{}", std::process::id()))
}

#[test]
fn processes_are_in_their_cgroup_and_see_cgroups_and_bpffs() -> Result<()> {
    if unprivileged("processes_are_in_their_cgroup_and_see_cgroups_and_bpffs") {
        return Ok(());
    }
    let lab = Lab::for_test("cgroups", web())?;
    let pod = lab.pod("client")?;
    let own = exec::stdout(pod.command("cat")?.arg("/proc/self/cgroup"))?;
    ensure!(own.contains(&format!("/sluice-lab-{}/node1/pod-client\n", lab.id())), "cgroup: {own}");
    let mount = lab::cgroup::mount_point()?;
    let listed = exec::stdout(lab.node("node1")?.command("ls")?.arg(&mount))?;
    ensure!(listed.contains("cgroup.procs"), "cgroup v2 is hidden at {}", mount.display());
    ensure!(pod.node().cgroup().pids().len() == 1, "nginx of the pod 'near' is not in its node's subtree");
    Ok(())
}

#[test]
fn real_servers_speak_from_their_pods() -> Result<()> {
    if unprivileged("real_servers_speak_from_their_pods") {
        return Ok(());
    }
    let topology = Topology::with_nodes(2)
        .pod(PodSpec::new("client", "node1"))
        .pod(PodSpec::new("cache", "node2").label("app", "cache").runs(Program::Redis { port: 6379 }))
        .pod(PodSpec::new("bus", "node2").label("app", "bus").runs(Program::Nats { port: 4222 }))
        .service(ServiceSpec::new("cache").port("redis", 6379, 6379))
        .service(ServiceSpec::new("bus").undeclared_port(4222, 4222));
    let lab = Lab::for_test("servers", topology)?;
    let client = lab.pod("client")?;
    let answer = exec::stdout(client.command("redis-cli")?.args(["-h", "cache", "PING"]))?;
    ensure!(answer.trim() == "PONG", "redis: {answer:?}");
    for bus in lab.cluster_ip("bus")?.both() {
        let line = client.in_netns(|| -> std::io::Result<String> {
            let stream = std::net::TcpStream::connect_timeout(&SocketAddr::new(bus, 4222), TIMEOUT)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line)?;
            Ok(line)
        })??;
        ensure!(line.starts_with("INFO {"), "the NATS server speaks first: {line:?}");
    }
    Ok(())
}

#[test]
fn load_keeps_its_rate_and_reports_what_fails() -> Result<()> {
    if unprivileged("load_keeps_its_rate_and_reports_what_fails") {
        return Ok(());
    }
    let mut lab = Lab::for_test("load", web())?;
    let plan = Plan {
        address: SocketAddr::new(lab.cluster_ip("web")?.v4.into(), 80),
        host: "web".to_owned(),
        paths: vec!["/a".to_owned(), "/b".to_owned()],
        rate: 200,
    };
    let load = Load::start(&lab.pod("client")?.netns(), &plan)?;
    load.wait_requests(200, LIMIT)?;
    ensure!(load.so_far().failures().count() == 0, "{:?}", load.so_far().failure_kinds());
    // Without endpoints new connections are refused while kept ones live on: both are told apart.
    lab.set_ready("near", false)?;
    lab.set_ready("far", false)?;
    load.wait_requests(100, LIMIT)?;
    let report = load.stop()?;
    ensure!(report.failures().all(|s| s.outcome.as_ref().is_err_and(|e| e.starts_with("connect: "))));
    ensure!(report.failures().count() > 0, "refused connections were not counted");
    Ok(())
}

#[test]
fn files_are_served_with_and_without_a_length() -> Result<()> {
    if unprivileged("files_are_served_with_and_without_a_length") {
        return Ok(());
    }
    let lab = Lab::for_test("files", web())?;
    let far = lab.pod("far")?;
    let bytes: Vec<u8> = (0..1_u32 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    std::fs::write(far.directory().join("www/static/blob"), &bytes)?;
    let address = SocketAddr::new(far.address().v6.into(), 8080);
    for (path, header) in [("/static/blob", "content-length"), ("/chunked/blob", "transfer-encoding")] {
        let response = lab.pod("client")?.in_netns(|| get(address, "far", path, TIMEOUT))??;
        ensure!(response.header(header).is_some(), "{path} has no {header}: {:?}", response.headers);
        ensure!(response.body == bytes, "{path} arrived changed, {} bytes", response.body.len());
    }
    Ok(())
}

/// The victim's side of the test below: holds a lab until it is killed.
const VICTIM: &str = "LAB_TEST_VICTIM";

#[test]
fn a_killed_owner_leaves_nothing_that_down_does_not_clear() -> Result<()> {
    if unprivileged("a_killed_owner_leaves_nothing_that_down_does_not_clear") {
        return Ok(());
    }
    if std::env::var_os(VICTIM).is_some() {
        let lab = Lab::for_test("victim", web())?;
        println!("\nvictim {}", lab.id());
        std::io::stdin().read_line(&mut String::new())?;
        return Ok(());
    }
    let mut victim = Command::new(std::env::current_exe()?)
        .args(["--exact", "a_killed_owner_leaves_nothing_that_down_does_not_clear", "--nocapture"])
        .env(VICTIM, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let lines = BufReader::new(victim.stdout.take().context("piped")?).lines();
    let id = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("victim ").map(str::to_owned));
    let id = id.context("the victim did not say its id")?;
    ensure!(all_ids()?.contains(&id), "the lab of the victim is not listed");
    let owner = Names::of(&id)?.read()?.owner.context("a test's lab has an owner")?;
    ensure!(owner.is_alive());
    victim.kill()?;
    victim.wait()?;
    ensure!(!owner.is_alive());
    let group = Cgroup::of_lab(&id)?;
    wait_for("the victim's programs to die with it", LIMIT, || group.pids().is_empty())?;
    Lab::down(&id)?;
    ensure_gone(&id)?;
    Lab::down(&id).context("down is idempotent")
}

#[test]
fn a_lab_that_cannot_come_up_leaves_nothing() -> Result<()> {
    if unprivileged("a_lab_that_cannot_come_up_leaves_nothing") {
        return Ok(());
    }
    let argv = vec!["/nonexistent/server".to_owned()];
    let topology = web().pod(PodSpec::new("broken", "node1").runs(Program::Server { argv, port: 1 }));
    let error = Lab::for_test("broken", topology).expect_err("no such program");
    ensure!(format!("{error:#}").contains("/nonexistent/server"), "{error:#}");
    ensure_gone(&format!("broken_{}", std::process::id()))
}

#[test]
fn a_detached_lab_outlives_its_maker_and_can_be_opened() -> Result<()> {
    if unprivileged("a_detached_lab_outlives_its_maker_and_can_be_opened") {
        return Ok(());
    }
    let id = format!("detached_{}", std::process::id());
    drop(Lab::up(&id, web())?);
    let lab = Lab::open(&id)?;
    let answer = curl(&lab, "client", &["http://web/"]);
    Lab::down(&id)?;
    ensure!(answer?.starts_with("v1 "));
    ensure_gone(&id)?;
    Lab::open(&id).map(|_| ()).expect_err("it is down");
    Ok(())
}

#[test]
fn an_owner_that_is_gone_is_told_from_one_that_lives() -> Result<()> {
    let mut child = Command::new("true").spawn()?;
    let pid = child.id();
    child.wait()?;
    ensure!(!Owner { pid, started: 1 }.is_alive());
    ensure!(Owner::this_process()?.is_alive());
    Ok(())
}

#[test]
fn a_footprint_shows_what_was_left_and_nothing_else() -> Result<()> {
    if unprivileged("a_footprint_shows_what_was_left_and_nothing_else") {
        return Ok(());
    }
    let lab = Lab::for_test("footprint", web())?;
    let node = lab.node("node1")?;
    let before = Footprint::of(&node)?;
    let now = Footprint::of(&node)?;
    ensure!(now.since(&before).is_empty(), "two looks differ: {:?}", now.since(&before));
    node.netns().nft("table ip left {}")?;
    node.netns().ip_batch("rule add fwmark 5 table 77\nroute add local default dev lo table 77\n")?;
    let now = Footprint::of(&node)?;
    for wanted in ["nft: table ip left", "rule: ", "route: local default dev lo table 77"] {
        ensure!(now.since(&before).iter().any(|line| line.starts_with(wanted)), "no {wanted:?} in {now:?}");
    }
    Ok(())
}

fn ensure_gone(id: &str) -> Result<()> {
    let names = Names::of(id)?;
    let left = netns::with_prefix(&names.prefix())?;
    ensure!(left.is_empty(), "namespaces are left: {left:?}");
    ensure!(!names.directory().exists(), "{} is left", names.directory().display());
    let group = Cgroup::of_lab(id)?;
    ensure!(!group.path().exists(), "{} is left", group.path().display());
    let hosts: Vec<_> = std::fs::read_dir("/etc/netns").into_iter().flatten().flatten().collect();
    let prefix = names.prefix();
    ensure!(
        !hosts.iter().any(|e| e.file_name().to_string_lossy().starts_with(&prefix)),
        "hosts files are left"
    );
    let mounts = std::fs::read_to_string(Path::new("/proc/mounts"))?;
    ensure!(!mounts.contains(&format!("{} ", names.directory().display())), "a mount is left");
    Ok(())
}
