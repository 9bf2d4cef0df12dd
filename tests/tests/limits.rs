//! Limits: each is met by a client that goes too far, answered or cut as documented, named in the access log and counted;
//! whoever behaves is served during it and after.

mod edge;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edge::{OPEN, PORT, gateway, route, send_on};
use lab::agent::{AgentOptions, METRICS};
use lab::backend::{echo_reply, http, listen};
use lab::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, PRIORITY, block, frame,
    reset, settings, window_update,
};
use lab::http::{Connection, get};
use lab::loopback::{LoopbackAgent, Site, service};
use lab::promtext::Exposition;
use lab::{Lab, PodSpec, Program, ServiceSpec, Topology, unprivileged, wait_for};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
use serde_json::Value;

const TIMEOUT: Duration = Duration::from_secs(20);
/// A client writes a byte, and waits that long for an answer before it writes the next.
const DRIP: Duration = Duration::from_millis(20);

/// A backend that answers `/hold` only when it may.
struct Held {
    gate: Arc<Mutex<()>>,
    site: Site,
}

fn site() -> Result<Held> {
    let gate = Arc::new(Mutex::new(()));
    let waits = Arc::clone(&gate);
    let backend = http(listen()?, move |request| {
        if request.target == "/hold" {
            drop(waits.lock().unwrap_or_else(PoisonError::into_inner));
        }
        echo_reply("web", request)
    })?;
    let site = Site::new(&[
        ("gateway.yaml", &gateway(OPEN)),
        ("services.yaml", &service("default", "web", 80, &[backend])),
        ("routes.yaml", &route("r", "", "  - backendRefs: [{name: web, port: 80}]\n")),
    ])?;
    Ok(Held { gate, site })
}

impl Held {
    fn start(&self, settings: &[&str]) -> Result<LoopbackAgent<'_>> {
        let arguments: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
        self.site.start(&arguments)
    }

    fn at(&self) -> SocketAddr {
        self.site.at(PORT)
    }

    /// A kept connection that has been served.
    fn served(&self) -> Result<Connection> {
        let mut connection = Connection::open(self.at(), TIMEOUT)?;
        serves(&mut connection)?;
        Ok(connection)
    }

    fn stream(&self, bytes: &[u8]) -> Result<TcpStream> {
        let mut stream = TcpStream::connect_timeout(&self.at(), TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.write_all(bytes)?;
        Ok(stream)
    }

    /// Fails unless the last line of the access log about `details` has these flags and this status.
    fn logged(&self, details: &str, flags: &str, status: u64) -> Result<()> {
        wait_for(&format!("{details} in the access log"), TIMEOUT, || {
            let Ok(lines) = self.site.access() else { return false };
            let line = lines.iter().rev().find(|line| line["response_code_details"] == details);
            line.is_some_and(|line| line["response_flags"] == flags && line["response_code"] == status)
        })
    }
}

fn serves(connection: &mut Connection) -> Result<()> {
    let seen = send_on(connection, "web", "/", &[])?;
    ensure!(seen.who() == "web", "{seen:?}");
    Ok(())
}

fn hits(agent: &LoopbackAgent<'_>, limit: &str) -> Result<f64> {
    Ok(agent.scrape()?.sum("sluice_limit_hits_total", &[("limit", limit)]))
}

/// Waits until a limit has been hit so often; what is counted comes behind the answer.
fn hit(agent: &LoopbackAgent<'_>, limit: &str, times: f64) -> Result<()> {
    wait_for(limit, TIMEOUT, || hits(agent, limit).is_ok_and(|hits| hits > times - 0.5))?;
    let hits = hits(agent, limit)?;
    ensure!(hits < times + 0.5, "{limit} was hit {hits} times, not {times}");
    Ok(())
}

/// Reads to the end of the connection, which may be a reset.
fn rest(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    match stream.read_to_end(&mut all) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => Err(error).context("no end"),
        _ => Ok(all),
    }
}

fn refused(stream: &mut TcpStream) -> Result<()> {
    let text = String::from_utf8(rest(stream)?)?;
    ensure!(text.starts_with("HTTP/1.1 503 ") && text.contains("\r\nretry-after: 1\r\n"), "{text:?}");
    ensure!(text.contains("\r\nconnection: close\r\n"), "{text:?}");
    Ok(())
}

#[test]
fn connections_in_all() -> Result<()> {
    let held = site()?;
    let agent = held.start(&["connections.max=3"])?;
    let mut kept = [held.served()?, held.served()?, held.served()?];
    for request in [&b"GET / HTTP/1.1\r\nHost: web\r\n\r\n"[..], b""] {
        refused(&mut held.stream(request)?)?;
    }
    hit(&agent, "connections", 2.0)?;
    held.logged("connections", "OM", 503)?;
    for connection in &mut kept {
        serves(connection)?;
    }
    drop(kept);
    wait_for("a place", TIMEOUT, || held.served().is_ok())
}

/// A connection from another address of loopback.
fn connect_from(ip: Ipv4Addr, to: SocketAddr) -> Result<TcpStream> {
    let IpAddr::V4(there) = to.ip() else { anyhow::bail!("sites have IPv4 addresses") };
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let [a, b, c, d] = ip.octets();
    bind(fd.as_raw_fd(), &SockaddrIn::new(a, b, c, d, 0))?;
    let [a, b, c, d] = there.octets();
    connect(fd.as_raw_fd(), &SockaddrIn::new(a, b, c, d, to.port()))?;
    let stream = TcpStream::from(fd);
    stream.set_read_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

#[test]
fn connections_of_one_source() -> Result<()> {
    const ASK: &[u8] = b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
    let held = site()?;
    let agent = held.start(&["gateway.http.connections-per-source=2"])?;
    let greedy = Ipv4Addr::new(127, 0, 0, 2);
    let mut kept = Vec::new();
    for _ in 0..2 {
        kept.push(connect_from(greedy, held.at())?);
    }
    wait_for("both to be accepted", TIMEOUT, || {
        agent.scrape().is_ok_and(|seen| seen.sum("sluice_downstream_connections", &[]) > 1.5)
    })?;
    let mut third = connect_from(greedy, held.at())?;
    // It may have been turned away already.
    let _ = third.write_all(ASK);
    refused(&mut third)?;
    hit(&agent, "connections_per_source", 1.0)?;
    held.logged("connections_per_source", "OM", 503)?;
    held.served().context("another source")?;
    drop(kept);
    wait_for("a place for the greedy one", TIMEOUT, || {
        let ask = || -> Result<Vec<u8>> {
            let mut stream = connect_from(greedy, held.at())?;
            stream.write_all(ASK)?;
            rest(&mut stream)
        };
        ask().is_ok_and(|answer| answer.starts_with(b"HTTP/1.1 200 "))
    })
}

#[test]
fn connections_of_a_captured_pod() -> Result<()> {
    if unprivileged("connections_of_a_captured_pod") {
        return Ok(());
    }
    let topology = Topology::with_nodes(1)
        .pod(PodSpec::new("client", "node1"))
        .pod(PodSpec::new("server", "node1").label("app", "web").runs(Program::Http { port: 8080 }))
        .service(ServiceSpec::new("web").port("http", 80, 8080));
    let lab = Lab::for_test("limits", topology)?;
    let config = lab.directory().join("config");
    lab.write_documents(&config)?;
    let set = ["--set", "captured.http.connections-per-source=2"];
    let _agent = lab.node("node1")?.start_agent(&AgentOptions::new(&config)?.with(set))?;
    let web = SocketAddr::new(lab.cluster_ip("web")?.both()[0], 80);
    lab.pod("client")?.in_netns(|| -> Result<()> {
        let served = || -> Result<Connection> {
            let mut connection = Connection::open(web, TIMEOUT)?;
            ensure!(connection.get("web", "/", &[])?.status == 200, "not served");
            Ok(connection)
        };
        let kept = [served()?, served()?];
        // A pod is told nothing that its server would not tell it.
        let mut third = TcpStream::connect_timeout(&web, TIMEOUT)?;
        third.set_read_timeout(Some(TIMEOUT))?;
        ensure!(rest(&mut third)?.is_empty(), "an answer");
        drop(kept);
        wait_for("a place", TIMEOUT, || served().is_ok())
    })??;
    let metrics = lab.node("node1")?.in_netns(|| get(METRICS, "localhost", "/metrics", TIMEOUT))??;
    let hits = Exposition::parse(&metrics.text())?
        .sum("sluice_limit_hits_total", &[("limit", "connections_per_source")]);
    ensure!(hits > 0.5, "not counted");
    Ok(())
}

/// Has `count` requests held by their backend, of which the agent must shed some by `limit`.
fn shed(setting: &str, limit: &str, count: usize) -> Result<()> {
    let held = site()?;
    let agent = held.start(&[setting])?;
    let closed = held.gate.lock().unwrap_or_else(PoisonError::into_inner);
    let mut streams = Vec::new();
    for _ in 0..count {
        streams.push(held.stream(b"GET /hold HTTP/1.1\r\nHost: web\r\n\r\n")?);
    }
    wait_for("a request to be shed", TIMEOUT, || hits(&agent, limit).is_ok_and(|hits| hits > 0.5))?;
    held.logged(limit, "OM", 503)?;
    ensure!(agent.ask(agent.health, "/healthz/ready")?.status == 200, "probes are never shed");
    drop(closed);
    let mut statuses = Vec::new();
    for stream in &mut streams {
        let mut answer = [0; 12];
        stream.read_exact(&mut answer)?;
        statuses.push(String::from_utf8_lossy(&answer[9..]).into_owned());
    }
    for status in ["200", "503"] {
        ensure!(statuses.iter().any(|seen| seen == status), "no {status} in {statuses:?}");
    }
    held.served()?;
    // Those that were shed may ask again on the connection that they have.
    for stream in &mut streams {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")?;
        let text = String::from_utf8(rest(stream)?)?;
        ensure!(text.contains("HTTP/1.1 200 "), "{text}");
    }
    Ok(())
}

#[test]
fn requests_in_flight() -> Result<()> {
    // Each of two workers takes one.
    shed("overload.max-requests=2", "requests_in_flight", 3)
}

#[test]
fn bytes_that_requests_buffer() -> Result<()> {
    // Each of two workers takes eight times 64 KiB, and six of strangers.
    shed("overload.max-buffered=1MiB", "buffered_bytes", 17)
}

#[test]
fn bodies_that_are_too_long() -> Result<()> {
    let held = site()?;
    let agent = held.start(&["gateway.http.body.max-bytes=10"])?;
    let post = |rest: &str| format!("POST / HTTP/1.1\r\nHost: web\r\n{rest}");
    for (bytes, status) in [
        (post("Content-Length: 10\r\nConnection: close\r\n\r\n0123456789"), "200"),
        (post("Transfer-Encoding: chunked\r\nConnection: close\r\n\r\na\r\n0123456789\r\n0\r\n\r\n"), "200"),
        (post("Content-Length: 11\r\n\r\n0123456789a"), "413"),
        (post("Content-Length: 11\r\n\r\n"), "413"),
        (post("Transfer-Encoding: chunked\r\n\r\nb\r\n0123456789a\r\n0\r\n\r\n"), "413"),
        (post("Transfer-Encoding: chunked\r\n\r\n6\r\n012345\r\n6\r\n678901\r\n"), "413"),
    ] {
        let text = String::from_utf8(rest(&mut held.stream(bytes.as_bytes())?)?)?;
        ensure!(text.starts_with(&format!("HTTP/1.1 {status} ")), "not {status}: {text:?} for {bytes:?}");
        ensure!(
            text.contains("\r\nconnection: close\r\n") && text.matches("HTTP/1.1 ").count() == 1,
            "{text:?}"
        );
    }
    hit(&agent, "body_too_long", 4.0)?;
    held.logged("body_too_long", "DPE", 413)?;
    held.served().map(drop)
}

#[test]
fn bodies_that_come_too_slowly() -> Result<()> {
    let held = site()?;
    let agent = held.start(&["gateway.http.body.rate-grace=200ms", "gateway.http.body.min-rate=1000"])?;
    let start = b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 100000\r\n\r\n";
    let mut stream = held.stream(start)?;
    stream.set_read_timeout(Some(DRIP))?;
    let mut answer = Vec::new();
    let mut sent = 0;
    while !answer.ends_with(b"\n") {
        // A byte now and then: no pause is long.
        let _ = stream.write_all(b"x");
        sent += 1;
        let mut bytes = [0; 1024];
        match stream.read(&mut bytes) {
            Ok(read @ 1..) => answer.extend_from_slice(&bytes[..read]),
            Ok(0) => break,
            Err(error) => {
                ensure!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
            }
        }
        ensure!(sent < 1000, "nobody minds");
    }
    ensure!(answer.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&answer));
    ensure!(sent > 3, "the grace was none");
    hit(&agent, "body_too_slow", 1.0)?;
    held.logged("body_too_slow", "SI", 408)?;
    // As many bytes at once are no trouble.
    let whole = [&start[..], &vec![b'x'; 100_000]].concat();
    let mut stream = held.stream(&whole)?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    ensure!(status.ends_with(b"200"), "{status:?}");
    Ok(())
}

const ENHANCE_YOUR_CALM: [u8; 4] = [0, 0, 0, 11];

/// A request's head in a frame with these flags.
fn head(flags: u8, stream: u32, method: &str) -> Vec<u8> {
    let fields = [(":method", method), (":scheme", "http"), (":path", "/"), (":authority", "web")];
    frame(HEADERS, flags, stream, &block(&fields))
}

/// Streams that are opened and brought to their end, each by a frame of the client.
fn streams(count: u32, end: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    (0..count)
        .map(|number| 2 * number + 1)
        .flat_map(|id| [head(END_HEADERS, id, "POST"), end(id)].concat())
        .collect()
}

fn floods() -> Vec<(&'static str, Vec<u8>)> {
    let open = |flags| head(flags, 1, "POST");
    vec![
        ("h2_settings_flood", settings(&[]).repeat(20_000)),
        ("h2_ping_flood", frame(PING, 0, 0, &[0; 8]).repeat(20_000)),
        ("h2_window_update_flood", window_update(0, 1).repeat(20_000)),
        ("h2_other_frame_flood", frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1]).repeat(20_000)),
        ("h2_other_frame_flood", frame(0xfa, 0, 0, b"unknown").repeat(20_000)),
        ("h2_continuation_flood", [open(0), frame(CONTINUATION, 0, 1, &[]).repeat(20_000)].concat()),
        ("h2_data_flood", [open(END_HEADERS), frame(DATA, 0, 1, &[]).repeat(200_000)].concat()),
        ("h2_reset_flood", streams(10_000, |id| reset(id, 8))),
        // The agent is brought to reset the streams itself: windows that grow beyond bounds,
        // streams that depend on themselves.
        ("h2_provoked_reset_flood", streams(10_000, |id| window_update(id, 0x7fff_ffff))),
        (
            "h2_provoked_reset_flood",
            streams(10_000, |id| frame(PRIORITY, 0, id, &[&id.to_be_bytes()[..], &[0]].concat())),
        ),
    ]
}

#[test]
fn floods_of_frames() -> Result<()> {
    let held = site()?;
    let agent = held.start(&["gateway.http.http2.settings-per-second=5"])?;
    let mut good = held.served()?;
    for (limit, flood) in floods() {
        let before = hits(&agent, limit)?;
        let hello = [PREFACE, &settings(&[])].concat();
        let mut stream = held.stream(&hello)?;
        let mut writer = stream.try_clone()?;
        let all = std::thread::scope(|scope| {
            scope.spawn(move || writer.write_all(&flood));
            let all = rest(&mut stream);
            serves(&mut good).context("whoever behaves")?;
            all
        });
        let all = all.with_context(|| limit.to_owned())?;
        let calmed = all.windows(17).any(|bytes| {
            bytes[3..5] == [GOAWAY, 0] && bytes[5..9] == [0; 4] && bytes[13..] == ENHANCE_YOUR_CALM
        });
        ensure!(calmed, "{limit}: no GOAWAY in {} bytes", all.len());
        wait_for(limit, TIMEOUT, || hits(&agent, limit).is_ok_and(|hits| hits - before > 0.5))?;
        held.logged(limit, "DPE", 0)?;
    }
    // Within its budgets a client may do all of that.
    let few = [
        PREFACE,
        &settings(&[]).repeat(20),
        &frame(PING, 0, 0, &[0; 8]).repeat(50),
        &window_update(0, 1).repeat(500),
        &head(END_HEADERS | END_STREAM, 1, "GET"),
    ]
    .concat();
    let mut stream = held.stream(&few)?;
    let mut read = Vec::new();
    wait_for("an answer", TIMEOUT, || {
        let mut bytes = [0; 4096];
        let count = stream.read(&mut bytes).unwrap_or_default();
        read.extend_from_slice(&bytes[..count]);
        String::from_utf8_lossy(&read).contains("\"backend\":\"web\"")
    })
}

#[test]
fn settings_are_listed_and_mistakes_are_usage_errors() -> Result<()> {
    let held = site()?;
    let listed = held.site.command().args(["settings", "-o", "json"]).output()?;
    let settings: Vec<Value> = serde_json::from_slice(&listed.stdout)?;
    let max = settings.iter().find(|setting| setting["name"] == "connections.max").context("not listed")?;
    ensure!(listed.status.success() && max["default"] == "65536", "{max}");
    let table = held.site.command().arg("settings").output()?;
    ensure!(String::from_utf8(table.stdout)?.starts_with("NAME "), "no table");
    for (setting, said) in [
        ("connection.max=1", "`connections.max`"),
        ("connections.max=x", "a number"),
        ("connections.max=0", "range"),
    ] {
        for by_environment in [false, true] {
            let mut command = held.site.command();
            command.args(held.site.arguments());
            if by_environment {
                command.env("SLUICE_SET", format!("pool.max-idle=1,{setting}"));
            } else {
                command.args(["--set", setting]);
            }
            let output = command.output()?;
            let text = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.code() == Some(2) && text.contains(said), "{setting}: {text}");
        }
    }
    Ok(())
}
