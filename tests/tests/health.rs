//! Health checks, alone and in a cluster: a pod that says that it can't take work is given none on any node, and comes back;
//! and what the others see of an agent that ends.

mod common;

#[path = "cluster/site.rs"]
#[allow(unused, reason = "the cluster's own tests use more of it")]
mod site;

use std::io::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use common::{LIMIT, Mesh};
use lab::{Lab, PodSpec, Program, ServiceSpec, Topology, exec, unprivileged, wait_for};
use nix::sys::signal::Signal;
use serde_json::Value;
use site::{NODES, Site};

/// What the probes of these tests ask: every second, and one failure is enough.
const EVERY_SECOND: &str = "periodSeconds: 1, timeoutSeconds: 1";
/// Period, timeout and what it takes to tell everybody, on a machine that is busy.
const BOUND: Duration = Duration::from_secs(8);
const PEER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/health_peer.py");

/// The lab's Pods, some of them with a readiness probe.
fn pods(lab: &Lab, probes: &[(&str, &str)]) -> String {
    let all = lab::documents::pods(lab.topology());
    let with_probe = |pod: &str| {
        let probe = probes.iter().find(|(name, _)| pod.contains(&format!("  name: {name}\n")));
        probe.map_or_else(
            || pod.to_owned(),
            |(_, probe)| {
                let image = "image: lab/main\n";
                pod.replace(image, &format!("{image}      readinessProbe: {{{probe}, {EVERY_SECOND}}}\n"))
            },
        )
    };
    all.split("---\n").map(with_probe).collect::<Vec<_>>().join("---\n")
}

/// A file whose being there makes nginx answer `/static/ready` with 200, and with 404 otherwise.
struct Switch(PathBuf);

impl Switch {
    fn of(lab: &Lab, pod: &str) -> Result<Self> {
        let switch = Self(lab.pod(pod)?.directory().join("www/static/ready"));
        switch.set(true)?;
        Ok(switch)
    }

    fn set(&self, well: bool) -> Result<()> {
        if well {
            std::fs::write(&self.0, "yes")?;
        } else {
            std::fs::remove_file(&self.0)?;
        }
        Ok(())
    }
}

const HTTP: &str = "httpGet: {path: /static/ready, port: 8080}";

fn server(name: &str, app: &str, node: &str) -> PodSpec {
    PodSpec::new(name, node).label("app", app).runs(Program::Http { port: 8080 })
}

/// Why the endpoints of a pod get no work; empty: they do.
fn out(endpoints: &Value, pod: &str) -> Vec<String> {
    let all = endpoints["endpoints"].as_array().cloned().unwrap_or_default();
    let of = all.iter().filter(|one| one["pod"] == format!("default/{pod}") && one["ready"] == false);
    of.map(|one| one["out"].as_str().unwrap_or_default().to_owned()).collect()
}

fn wait_out(mesh: &Mesh, pod: &str, why: &str) -> Result<()> {
    let told = || mesh.verb("node1", "endpoints").map(|endpoints| out(&endpoints, pod));
    wait_for("the pod to be out", LIMIT, || {
        told().is_ok_and(|told| !told.is_empty() && told.iter().all(|one| one.contains(why)))
    })
    .with_context(|| format!("{pod}, {why}: {:?}\n{}", told(), mesh.agents[0].log()))
}

fn wait_in(mesh: &Mesh, pod: &str) -> Result<()> {
    let told = || mesh.verb("node1", "endpoints").map(|endpoints| out(&endpoints, pod));
    wait_for("the pod to take work", LIMIT, || told().is_ok_and(|told| told.is_empty()))
        .with_context(|| format!("{pod}: {:?}\n{}", told(), mesh.agents[0].log()))
}

#[test]
fn a_pod_that_fails_is_out_until_it_passes() -> Result<()> {
    if unprivileged("a_pod_that_fails_is_out_until_it_passes") {
        return Ok(());
    }
    let topology = Topology::with_nodes(1)
        .pod(PodSpec::new("client", "node1"))
        .pod(server("web-a", "web", "node1"))
        .pod(server("web-b", "web", "node1"))
        .service(ServiceSpec::new("web").port("http", 80, 8080));
    let mesh = Mesh::up("health_http", topology, &[])?;
    let (a, b) = (Switch::of(&mesh.lab, "web-a")?, Switch::of(&mesh.lab, "web-b")?);
    mesh.write("pods.yaml", &pods(&mesh.lab, &[("web-a", HTTP), ("web-b", HTTP)]))?;
    wait_for("the pods to be asked", LIMIT, || {
        mesh.metric("node1", "sluice_probes_total{outcome=\"passed\"}").is_ok_and(|passed| passed >= 2.0)
    })?;
    wait_in(&mesh, "web-a")?;
    wait_in(&mesh, "web-b")?;
    let (begun, to) = (Instant::now(), mesh.service("web", 0, 80)?);
    b.set(false)?;
    wait_out(&mesh, "web-b", "probe failed: HTTP 404, since 2")?;
    ensure!(begun.elapsed() < BOUND, "it took {:?}", begun.elapsed());
    let status = mesh.verb("node1", "status")?;
    let unhealthy = status["unhealthy"].as_array().cloned().unwrap_or_default();
    ensure!(
        unhealthy.len() == 1
            && unhealthy[0]
                .as_str()
                .is_some_and(|text| text.starts_with("default/web-b (probe failed: HTTP 404")),
        "{unhealthy:?}"
    );
    for _ in 0..10 {
        let response = mesh.get("client", to, "web", "/")?;
        ensure!(response.status == 200 && response.header("x-pod") == Some("web-a"), "{}", response.text());
    }
    // With the last one a service has none, and says so: nothing is sent to who can't take it.
    a.set(false)?;
    wait_out(&mesh, "web-a", "HTTP 404")?;
    let response = mesh.get("client", to, "web", "/")?;
    let told = response.header("proxy-status").unwrap_or_default().to_owned();
    ensure!(response.status == 503 && !told.is_empty(), "{} {told}", response.status);
    for (switch, pod) in [(&a, "web-a"), (&b, "web-b")] {
        switch.set(true)?;
        wait_in(&mesh, pod)?;
    }
    ensure!(mesh.get("client", to, "web", "/")?.status == 200);
    ensure!(mesh.metric("node1", "sluice_probes_total{outcome=\"failed\"}")? >= 2.0);
    Ok(())
}

/// The Python with grpcio that `scripts/setup` makes; `None`: there is none, which is said. CI, which has it, fails instead.
fn python(test: &str) -> Result<Option<PathBuf>> {
    let target = lab::agent::built_binary()?;
    let target = target.parent().and_then(Path::parent).context("the binary lies in target/PROFILE")?;
    let python = target.join("grpc/bin/python");
    match exec::run(std::process::Command::new(&python).args(["-c", "import grpc"])) {
        Ok(_) => Ok(Some(python)),
        Err(error) if std::env::var_os("CI").is_none() => {
            eprintln!("SKIPPED {test}: there is no grpcio (scripts/setup): {error:#}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[test]
fn pods_are_asked_by_tcp_and_grpc() -> Result<()> {
    const NAME: &str = "pods_are_asked_by_tcp_and_grpc";
    if unprivileged(NAME) {
        return Ok(());
    }
    let Some(python) = python(NAME)? else { return Ok(()) };
    let argv = [&*python.to_string_lossy(), PEER, "50051", "serving"].map(str::to_owned).to_vec();
    let topology = Topology::with_nodes(1)
        .pod(server("plain", "plain", "node1"))
        .pod(PodSpec::new("rpc", "node1").label("app", "rpc").runs(Program::Server { argv, port: 50051 }))
        .service(ServiceSpec::new("plain").port("http", 80, 8080))
        .service(ServiceSpec::new("rpc").port("grpc", 80, 50051));
    let mesh = Mesh::up("health_rpc", topology, &[])?;
    let serving = mesh.lab.pod("rpc")?.directory().join("serving");
    std::fs::write(&serving, "yes")?;
    let probes = [("plain", "tcpSocket: {port: 8080}"), ("rpc", "grpc: {port: 50051, service: shop}")];
    mesh.write("pods.yaml", &pods(&mesh.lab, &probes))?;
    wait_for("the pods to be asked", LIMIT, || {
        mesh.metric("node1", "sluice_probes_total{outcome=\"passed\"}").is_ok_and(|passed| passed >= 2.0)
    })?;
    wait_in(&mesh, "plain")?;
    wait_in(&mesh, "rpc")?;
    std::fs::remove_file(&serving)?;
    wait_out(&mesh, "rpc", "gRPC health NOT_SERVING")?;
    let nft = |rules: &str| exec::run(mesh.lab.pod("plain")?.command("nft")?.arg(rules));
    nft("add table inet cut; add chain inet cut in { type filter hook input priority 0; }; \
         add rule inet cut in tcp dport 8080 reject with tcp reset")?;
    wait_out(&mesh, "plain", "connection refused")?;
    nft("delete table inet cut")?;
    wait_in(&mesh, "plain")?;
    // One that does not answer at all, after one that does.
    nft("add table inet cut; add chain inet cut in { type filter hook input priority 0; }; \
         add rule inet cut in tcp dport 8080 drop")?;
    wait_out(&mesh, "plain", "no answer within 1 s")?;
    ensure!(mesh.metric("node1", "sluice_probes_total{outcome=\"timed_out\"}")? >= 1.0);
    std::fs::write(&serving, "yes")?;
    wait_in(&mesh, "rpc")
}

/// One metric of a node.
fn metric<T: std::str::FromStr + std::iter::Sum<T>>(site: &Site, node: &str, prefix: &str) -> Result<T> {
    site.metric(node, prefix)
}

/// Likewise, where it is a whole number.
fn count(site: &Site, node: &str, prefix: &str) -> Result<u64> {
    metric(site, node, prefix)
}

#[test]
fn what_a_node_finds_out_steers_traffic_on_all() -> Result<()> {
    if unprivileged("what_a_node_finds_out_steers_traffic_on_all") {
        return Ok(());
    }
    let mut site = Site::up("health_cluster")?;
    let switch = Switch::of(&site.lab, "web-b")?;
    site.sluice_with("node1", &["apply", "-f", "-"], pods(&site.lab, &[("web-b", HTTP)]))?;
    site.start_all()?;
    let ready = |site: &Site, node: &str| site.ready_endpoints(node, "web").map(|ready| ready.len());
    wait_for("the pod to be asked", LIMIT, || {
        count(&site, "node3", "sluice_probes_total{outcome=\"passed\"}").is_ok_and(|passed| passed >= 1)
    })?;
    for node in NODES {
        wait_for("both endpoints", LIMIT, || ready(&site, node).is_ok_and(|ready| ready == 2))?;
    }
    ensure!(
        count(&site, "node1", "sluice_probes_total{outcome=\"passed\"}")? == 0,
        "node1 asks another's pod"
    );
    let begun = Instant::now();
    switch.set(false)?;
    for node in NODES {
        wait_for("the endpoint to go", LIMIT, || ready(&site, node).is_ok_and(|ready| ready == 1))
            .with_context(|| format!("{node}: {:?}", site.cluster(node)))?;
    }
    ensure!(begun.elapsed() < BOUND, "it took {:?}", begun.elapsed());
    // Why is told on every node, although one has asked.
    let why = |site: &Site| -> Result<String> {
        let cluster = site.cluster("node1")?;
        let nodes = cluster["nodes"].as_array().cloned().unwrap_or_default();
        let third = nodes.iter().find(|node| node["node"] == "node3").context("node3 is known")?;
        Ok(third["unhealthy"][0].as_str().unwrap_or_default().to_owned())
    };
    wait_for("the reason to be known", LIMIT, || {
        why(&site).is_ok_and(|why| why.starts_with("default/web-b (probe failed: HTTP 404, since 2"))
    })
    .with_context(|| format!("{:?}", why(&site)))?;
    let endpoints = site.sluice("node1", &["endpoints"])?;
    ensure!(endpoints.contains("out: probe failed: HTTP 404, since 2"), "{endpoints}");
    switch.set(true)?;
    for node in NODES {
        wait_for("the endpoint to come back", LIMIT, || ready(&site, node).is_ok_and(|ready| ready == 2))?;
    }
    Ok(())
}

#[test]
fn an_agent_that_ends_says_so_first() -> Result<()> {
    if unprivileged("an_agent_that_ends_says_so_first") {
        return Ok(());
    }
    let mut site = Site::up("health_drain")?;
    site.start_all()?;
    for pod in ["web-a", "web-b"] {
        let big = std::fs::File::create(site.lab.pod(pod)?.directory().join("www/static/big"))?;
        big.set_len(64 << 20)?;
    }
    // An answer that nobody reads keeps the agent from ending.
    let to = (std::net::IpAddr::from(site.lab.cluster_ip(site::HOST)?.v4), 80);
    let mut stream = site.lab.pod("client-node3")?.in_netns(|| TcpStream::connect(to))??;
    stream.write_all(b"GET /static/big HTTP/1.1\r\nhost: web\r\n\r\n")?;
    let mut first = [0; 12];
    std::io::Read::read_exact(&mut stream, &mut first)?;
    ensure!(&first == b"HTTP/1.1 200", "{}", String::from_utf8_lossy(&first));
    site.signal("node3", Signal::SIGTERM)?;
    let state = |site: &Site| -> Result<Value> {
        let cluster = site.cluster("node1")?;
        let nodes = cluster["nodes"].as_array().context("there are nodes")?;
        Ok(nodes
            .iter()
            .find(|node| node["node"] == "node3")
            .map_or(Value::Null, |node| node["state"].clone()))
    };
    wait_for("node1 to hear of it", LIMIT, || state(&site).is_ok_and(|state| state == "draining"))
        .with_context(|| format!("{:?}", site.cluster("node1")))?;
    ensure!(count(&site, "node1", "sluice_nodes{state=\"draining\"}")? == 1);
    // It gives way, and takes no endpoint along.
    wait_for("another leader", LIMIT, || site.leader().is_ok_and(|leader| leader != "node3"))?;
    ensure!(site.ready_endpoints("node1", "web")?.len() == 2);
    drop(stream);
    wait_for("node3 to have left", LIMIT, || state(&site).is_ok_and(|state| state.is_null()))?;
    ensure!(site.terminate("node3")?.success());
    ensure!(site.ready_endpoints("node1", "web")?.len() == 2);
    Ok(())
}

#[test]
fn the_cluster_has_metrics() -> Result<()> {
    if unprivileged("the_cluster_has_metrics") {
        return Ok(());
    }
    let mut site = Site::up("health_metrics")?;
    site.start_all()?;
    let leader = site.leader()?;
    for node in NODES {
        let leads = count(&site, node, "sluice_leader ")?;
        ensure!(leads == u64::from(node == leader), "{node}: {leads}");
        ensure!(count(&site, node, "sluice_nodes{state=\"serving\"}")? == 3, "{node}");
        ensure!(count(&site, node, "sluice_nodes{state=\"dead\"}")? == 0, "{node}");
        let age: f64 = metric(&site, node, "sluice_table_age_seconds ")?;
        ensure!((0.0..60.0).contains(&age), "{node}: {age}");
        ensure!(count(&site, node, "sluice_store_up ")? == 1, "{node}");
        ensure!(count(&site, node, "sluice_publications_fenced_total ")? == 0, "{node}");
        ensure!(count(&site, node, "sluice_cluster_faults_total ")? == 0, "{node}");
        let published = count(&site, node, "sluice_publications_total ")?;
        ensure!((published > 0) == (node == leader), "{node}: {published}");
    }
    let mut altered = site.stored_table()?;
    let middle = altered.len() / 2;
    altered[middle] ^= 1;
    site.store_table(&altered)?;
    wait_for("the refusal to be counted", LIMIT, || {
        count(&site, "node2", "sluice_tables_refused_total{reason=\"bad_signature\"}")
            .is_ok_and(|count| count > 0)
    })?;
    site.stop_redis()?;
    wait_for("the outage to be told", LIMIT, || {
        count(&site, "node2", "sluice_store_up ").is_ok_and(|up| up == 0)
    })?;
    site.start_redis()?;
    wait_for("its end to be told", LIMIT, || {
        count(&site, "node2", "sluice_store_up ").is_ok_and(|up| up == 1)
            && count(&site, "node2", "sluice_store_reconnects_total ").is_ok_and(|count| count >= 1)
    })
}
