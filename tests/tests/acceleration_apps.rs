//! Programs of the field on accelerated connections, pod to pod and through the agent: nginx, Redis, PostgreSQL, iperf3, half-closes,
//! readers that ask how much is unread, large transfers. Each gets the very bytes that it would get by TCP.

mod common;

use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use common::{LIMIT, Mesh};
use lab::emulated::transfer;
use lab::{PodSpec, Program, ServiceSpec, Topology, exec, unaccelerated, unprivileged, wait_for};
use serde_json::Value;

const PEER: &str = include_str!("acceleration/peer.py");
/// PostgreSQL does not run as root.
const POSTGRES: &str = include_str!("acceleration/postgres.sh");
const NODE: &str = "node1";
const HTTP: u16 = 8080;
const REDIS: u16 = 6379;
const SQL: u16 = 5432;
const IPERF: u16 = 5201;
const PYTHON: u16 = 9000;
const JOINED: &str = "sluice_acceleration_connections_total{reason=\"joined\"}";
const REDIRECTED: &str = "sluice_acceleration_messages_total{reason=\"redirected\"}";

/// Which way connections take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// To the pod: one accelerated connection.
    Pod,
    /// To the service, which the agent takes: two.
    Agent,
}

const WAYS: [Way; 2] = [Way::Pod, Way::Agent];

struct Apps {
    mesh: Mesh,
}

impl Apps {
    /// A pod with these programs, a client beside it, and an agent that accelerates.
    fn up(name: &str, programs: Vec<Program>) -> Result<Self> {
        let mut service = ServiceSpec::new("apps");
        let mut server = PodSpec::new("server", NODE).label("app", "apps");
        for program in programs {
            let port = program.port();
            service = match program {
                Program::Http { .. } => service.port("http", port, port),
                // Nothing is said of them, so that the agent takes them and finds out.
                _ => service.undeclared_port(port, port),
            };
            server = server.runs(program);
        }
        let topology = Topology::with_nodes(1).pod(PodSpec::new("client", NODE)).pod(server).service(service);
        let mesh = Mesh::accelerated(name, topology, NODE)?;
        let apps = Self { mesh };
        let status = &apps.mesh.verb(NODE, "status")?["capture"]["acceleration"];
        ensure!(status["active"] == true && status["pods"] == 4, "acceleration: {status}");
        Ok(apps)
    }

    fn host(&self, way: Way) -> Result<IpAddr> {
        match way {
            Way::Pod => self.mesh.pod_ip("server", 0),
            Way::Agent => Ok(self.mesh.lab.cluster_ip("apps")?.v4.into()),
        }
    }

    /// Runs a client in its pod, and returns what it prints. Its connections must have been joined on every leg.
    fn client(&self, way: Way, connections: f64, argv: &[&str]) -> Result<String> {
        let before = self.mesh.metric(NODE, JOINED)?;
        let (program, arguments) = argv.split_first().context("a command line")?;
        let mut command = self.mesh.lab.pod("client")?.command(program)?;
        let said = exec::stdout(command.args(arguments)).with_context(|| format!("{way:?}"))?;
        let joined = self.mesh.metric(NODE, JOINED)? - before;
        let legs = if way == Way::Pod { 1.0 } else { 2.0 };
        ensure!(joined > legs * connections - 0.5, "{way:?} {program}: {joined} legs were joined\n{said}");
        Ok(said)
    }

    /// An iperf3 client whose connections are opened a moment apart: it gives them their roles by the order in which the server
    /// takes them, and the agent, which dials each by itself, keeps none of those that come at once.
    fn iperf3(&self, way: Way, mode: &[&str]) -> Result<Value> {
        let (host, port) = (self.host(way)?.to_string(), IPERF.to_string());
        let slowly = ["strace", "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null"];
        let apart = ["-e", "trace=connect", "-e", "inject=connect:delay_exit=50ms"];
        let argv = ["iperf3", "-J", "-t", "1", "-c", &host, "-p", &port];
        // Control, and one for the bytes at least.
        let said = self.client(way, 2.0, &[&slowly[..], &apart, &argv, mode].concat())?;
        serde_json::from_str(&said).with_context(|| said.clone())
    }

    fn path(&self, name: &str) -> String {
        self.mesh.lab.directory().join(name).display().to_string()
    }
}

fn python() -> Program {
    let argv = ["python3", "-c", PEER, "serve", &PYTHON.to_string()].map(str::to_owned).to_vec();
    Program::Server { argv, port: PYTHON }
}

/// Lines of which no two are alike.
fn lines(count: u32) -> String {
    let line = |n: u32| format!("{n:08} {:08x}{:08x}\n", n.wrapping_mul(0x9e37_79b1), !n);
    (0..count).map(line).collect::<Vec<_>>().concat()
}

#[test]
fn nginx_and_redis() -> Result<()> {
    if unprivileged("nginx_and_redis") || unaccelerated("nginx_and_redis") {
        return Ok(());
    }
    let apps = Apps::up("apps_web", vec![Program::Http { port: HTTP }, Program::Redis { port: REDIS }])?;
    let large = lines(1_500_000);
    std::fs::write(apps.mesh.lab.pod("server")?.directory().join("www/static/large"), &large)?;
    for way in WAYS {
        let (host, body) = (apps.host(way)?.to_string(), apps.path("body"));
        let url = format!("http://{host}:{HTTP}/static/large");
        apps.client(way, 1.0, &["curl", "-sSf", "--max-time", "20", "-o", &body, &url])?;
        ensure!(std::fs::read_to_string(&body)? == large, "{way:?}: nginx's file is another one");
        let wrk = ["wrk", "-t1", "-c32", "-d1s", &format!("http://{host}:{HTTP}/")];
        let said = apps.client(way, 32.0, &wrk)?;
        ensure!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "{way:?}: {said}");

        let (redis, value) = (["-h", &host, "-p", &REDIS.to_string()].map(str::to_owned), &large[..4 << 20]);
        let redis: Vec<&str> = redis.iter().map(String::as_str).collect();
        std::fs::write(apps.path("value"), value)?;
        let set = format!("redis-cli {} -x set key < {}", redis.join(" "), apps.path("value"));
        ensure!(apps.client(way, 1.0, &["sh", "-c", &set])?.trim() == "OK", "{way:?}: redis refuses 4 MiB");
        let got = apps.client(way, 1.0, &[&["redis-cli"][..], &redis, &["--raw", "get", "key"]].concat())?;
        ensure!(got.strip_suffix('\n') == Some(value), "{way:?}: redis gives another value back");
        let load = ["-P", "16", "-n", "20000", "-d", "100", "-q", "-t", "set,get,lrange_100"];
        let said = apps.client(way, 50.0, &[&["redis-benchmark"][..], &redis, &load].concat())?;
        ensure!(said.contains("GET") && !said.contains("Error"), "{way:?}: {said}");
    }
    Ok(())
}

#[test]
fn postgresql() -> Result<()> {
    if unprivileged("postgresql") || unaccelerated("postgresql") {
        return Ok(());
    }
    let argv = ["sh", "-c", POSTGRES, "sh", &SQL.to_string()].map(str::to_owned).to_vec();
    let apps = Apps::up("apps_sql", vec![Program::Server { argv, port: SQL }])?;
    let (rows, many) = (lines(300_000), 2000);
    std::fs::write(apps.path("in"), &rows)?;
    let numbers =
        |word: &str, end: &str| (0..many).map(|n| format!("{word}{n}{end}\n")).collect::<Vec<_>>().concat();
    std::fs::write(apps.path("statements"), numbers("SELECT ", ";"))?;
    let answers = numbers("", "");
    for way in WAYS {
        let (host, port) = (apps.host(way)?.to_string(), SQL.to_string());
        let psql = ["psql", "-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", "-U", "postgres"];
        let psql = [&psql[..], &["-h", &host, "-p", &port]].concat();
        let into = format!("\\copy rows from '{}'", apps.path("in"));
        let out = format!("\\copy (select line from rows order by line) to '{}'", apps.path("out"));
        let create = "drop table if exists rows; create table rows (line text);";
        apps.client(way, 1.0, &[&psql[..], &["-c", create, "-c", &into, "-c", &out]].concat())?;
        ensure!(std::fs::read_to_string(apps.path("out"))? == rows, "{way:?}: other rows come back");
        let said = apps.client(way, 1.0, &[&psql[..], &["-f", &apps.path("statements")]].concat())?;
        ensure!(said == answers, "{way:?}: answers are missing or out of order");
    }
    Ok(())
}

#[test]
fn iperf3() -> Result<()> {
    if unprivileged("iperf3") || unaccelerated("iperf3") {
        return Ok(());
    }
    let argv = ["iperf3", "-s", "-p", &IPERF.to_string()].map(str::to_owned).to_vec();
    let apps = Apps::up("apps_iperf", vec![Program::Server { argv, port: IPERF }])?;
    for way in WAYS {
        for mode in [["-P", "2"], ["-R", "-i0"], ["--bidir", "-b2G"], ["--bidir", "-t3"]] {
            let report = apps.iperf3(way, &mode)?;
            let received = report["end"]["sum_received"]["bytes"].as_u64().unwrap_or(0);
            ensure!(report["error"].is_null() && received > 1 << 20, "{way:?} {mode:?}: {report}");
        }
    }
    Ok(())
}

#[test]
fn large_transfers_half_closes_and_counts_of_unread_bytes() -> Result<()> {
    if unprivileged("large_transfers_half_closes_and_counts_of_unread_bytes")
        || unaccelerated("large_transfers_half_closes_and_counts_of_unread_bytes")
    {
        return Ok(());
    }
    let apps = Apps::up("apps_bytes", vec![python()])?;
    let (swap, behind) = (transfer(32 << 20, 16 << 20), transfer(256 << 20, 16 << 20));
    let [swapped, followed] = [swap, behind].map(|size| format!("{size} bytes each way"));
    let cases = [
        // Never so much that a slow reader is led back to TCP: it waits in `recv`.
        ("swap", swap, swapped.as_str()),
        ("behind", behind, followed.as_str()),
        ("half", 30_000_000, "True"),
        ("fionread", 0, "[1000, 600, 0]"),
        ("peek", 0, "[600, 600, True, True]"),
    ];
    for way in WAYS {
        let (host, port) = (apps.host(way)?.to_string(), PYTHON.to_string());
        for (what, size, expected) in cases {
            let argv = ["python3", "-c", PEER, what, &host, &port, &size.to_string()];
            let said = apps.client(way, 1.0, &argv)?;
            ensure!(said.trim() == expected, "{way:?} {what}: {said:?} instead of {expected:?}");
        }
    }
    Ok(())
}

#[test]
fn a_transfer_outlives_an_agent_that_is_killed_in_its_midst() -> Result<()> {
    if unprivileged("a_transfer_outlives_an_agent_that_is_killed_in_its_midst")
        || unaccelerated("a_transfer_outlives_an_agent_that_is_killed_in_its_midst")
    {
        return Ok(());
    }
    let mut apps = Apps::up("apps_killed", vec![python()])?;
    let (host, size) = (apps.host(Way::Pod)?.to_string(), transfer(256 << 20, 16 << 20));
    let mut command = apps.mesh.lab.pod("client")?.command("python3")?;
    command.args(["-c", PEER, "behind", &host, &PYTHON.to_string(), &size.to_string()]);
    let mut client = command.stdout(Stdio::piped()).spawn().context("a client")?;
    let before = apps.mesh.metric(NODE, REDIRECTED)?;
    let moved = || apps.mesh.metric(NODE, REDIRECTED).is_ok_and(|now| now > before + 50.0);
    wait_for("bytes to be on the way", LIMIT, moved)?;
    ensure!(client.try_wait().context("a look at the client")?.is_none(), "it is over too early to tell");
    apps.mesh.agents.remove(0).kill9()?;
    let mut line = String::new();
    BufReader::new(client.stdout.take().context("its output")?).read_line(&mut line)?;
    ensure!(client.wait().context("its end")?.success(), "the client failed after {line:?}");
    ensure!(line.trim() == format!("{size} bytes each way"), "{line:?}");
    Ok(())
}
