//! Connections that are not HTTP, through capture: Redis, servers that speak first, closes and resets of every kind,
//! on ports that are declared as TCP and on ports of which nothing is said.

mod common;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use common::{Mesh, TIMEOUT};
use lab::{PodSpec, Program, ServiceSpec, Topology, exec, unprivileged};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{setsockopt, sockopt};

const CAPTURED: &str = "sluice_capture_packets_total{reason=\"captured\"}";
/// The service of the raw server: a declared port and an undeclared one, with what they are.
const RAW: [(u16, &str); 2] = [(7001, "declared"), (7002, "undeclared")];
const RAW_TARGET: u16 = 7000;
const REDIS: [(u16, &str); 2] = [(6379, "declared"), (6380, "undeclared")];
const NATS: [(u16, &str); 2] = [(4222, "declared"), (4223, "undeclared")];

/// The store is on the other node, the raw server on the client's own.
fn topology() -> Topology {
    let store = PodSpec::new("store", "node2").label("app", "store");
    let web = PodSpec::new("web-1", "node2").label("app", "web");
    Topology::with_nodes(2)
        .pod(PodSpec::new("client", "node1"))
        .pod(PodSpec::new("raw-1", "node1").label("app", "raw"))
        .pod(store.runs(Program::Redis { port: 6379 }).runs(Program::Nats { port: 4222 }))
        .pod(web.runs(Program::Http { port: 8080 }))
        .service(ServiceSpec::new("raw").port("tcp", 7001, RAW_TARGET).undeclared_port(7002, RAW_TARGET))
        .service(
            ServiceSpec::new("store")
                .port("tcp", 6379, 6379)
                .undeclared_port(6380, 6379)
                .port("tcp", 4222, 4222)
                .undeclared_port(4223, 4222),
        )
        .service(ServiceSpec::new("web").undeclared_port(82, 8080))
}

/// A connection from the client pod, every read and write of it bounded.
fn dial(mesh: &Mesh, to: SocketAddr) -> Result<TcpStream> {
    let stream = mesh.lab.pod("client")?.in_netns(|| TcpStream::connect_timeout(&to, TIMEOUT))??;
    bounded(stream)
}

fn bounded(stream: TcpStream) -> Result<TcpStream> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

/// The raw server's listeners, IPv4 and IPv6.
fn raw_server(mesh: &Mesh) -> Result<[TcpListener; 2]> {
    let bind = |family| -> Result<TcpListener> {
        let address = SocketAddr::new(mesh.pod_ip("raw-1", family)?, RAW_TARGET);
        Ok(mesh.lab.pod("raw-1")?.in_netns(|| TcpListener::bind(address))??)
    };
    Ok([bind(0)?, bind(1)?])
}

/// Both ends of a connection through the agent, for each port and family.
fn each_raw(mesh: &Mesh, check: impl Fn(TcpStream, TcpStream) -> Result<()>) -> Result<()> {
    let listeners = raw_server(mesh)?;
    for (port, kind) in RAW {
        for (family, listener) in listeners.iter().enumerate() {
            let before = mesh.metric("node1", CAPTURED)?;
            let client = dial(mesh, mesh.service("raw", family, port)?)?;
            let (server, peer) = listener.accept()?;
            ensure!(
                peer.ip() == mesh.pod_ip("client", family)?,
                "{kind}, family {family}: the peer was {peer}"
            );
            check(client, bounded(server)?).with_context(|| format!("{kind} port, family {family}"))?;
            ensure!(mesh.metric("node1", CAPTURED)? > before, "{kind}, family {family}: not captured");
        }
    }
    Ok(())
}

fn read_all(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).with_context(|| format!("after {} bytes", bytes.len()))?;
    Ok(bytes)
}

fn redis_cli(mesh: &Mesh, to: SocketAddr, arguments: &[&str]) -> Result<Command> {
    let mut command = mesh.lab.pod("client")?.command("redis-cli")?;
    command.args(["-h", &to.ip().to_string(), "-p", &to.port().to_string()]).args(arguments);
    Ok(command)
}

#[test]
fn redis_answers_commands_and_pipelines() -> Result<()> {
    if unprivileged("redis_answers_commands_and_pipelines") {
        return Ok(());
    }
    let mesh = Mesh::up("redis", topology(), &[])?;
    for (port, kind) in REDIS {
        for family in 0..2 {
            let to = mesh.service("store", family, port)?;
            let before = mesh.metric("node1", CAPTURED)?;
            let ask = |words: &[&str]| exec::stdout(&mut redis_cli(&mesh, to, words)?);
            let key = format!("key-{port}-{family}");
            for (words, expected) in [
                (&["PING"][..], "PONG"),
                (&["SET", &key, kind], "OK"),
                (&["GET", &key], kind),
                (&["GET", "no such key"], ""),
            ] {
                let answer = ask(words)?;
                ensure!(answer.trim() == expected, "{kind}, family {family}: {words:?} answered {answer:?}");
            }
            // 10,000 commands that wait for no answer in between.
            let commands: String =
                (0..10_000).fold(String::new(), |text, n| text + &format!("SET pipelined:{n} {n}\r\n"));
            let piped = exec::run_with_input(&mut redis_cli(&mesh, to, &["--pipe"])?, &commands)?;
            let said = String::from_utf8_lossy(&piped.stdout);
            ensure!(said.contains("errors: 0, replies: 10000"), "{kind}, family {family}: {said}");
            let source = format!("addr={}:", source_text(&mesh, family)?);
            ensure!(ask(&["CLIENT", "LIST"])?.contains(&source), "{kind}: Redis does not see {source}");
            let captured = mesh.metric("node1", CAPTURED)? - before;
            ensure!(captured >= 6.0, "{kind}, family {family}: {captured} of 6 connections were captured");
        }
    }
    Ok(())
}

/// The client pod's address as Redis writes it.
fn source_text(mesh: &Mesh, family: usize) -> Result<String> {
    let ip = mesh.pod_ip("client", family)?;
    Ok(if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() })
}

/// A program that keeps talking, line by line.
struct Talker {
    child: Child,
    lines: Receiver<String>,
}

impl Talker {
    fn start(mut command: Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().context("its output is piped")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            let lines = BufReader::new(stdout).lines();
            lines.map_while(Result::ok).all(|line| sender.send(line).is_ok());
        });
        Ok(Self { child, lines })
    }

    /// The next line that contains `word`.
    fn says(&self, word: &str) -> Result<String> {
        let end = Instant::now() + TIMEOUT;
        loop {
            let line = self.lines.recv_timeout(end.saturating_duration_since(Instant::now()));
            let line = line.with_context(|| format!("waiting for {word:?}"))?;
            if line.contains(word) {
                return Ok(line);
            }
        }
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn redis_pushes_over_connections_kept_open() -> Result<()> {
    if unprivileged("redis_pushes_over_connections_kept_open") {
        return Ok(());
    }
    let mesh = Mesh::up("pubsub", topology(), &[])?;
    for (port, kind) in REDIS {
        let to = mesh.service("store", 0, port)?;
        let subscriber = Talker::start(redis_cli(&mesh, to, &["SUBSCRIBE", "news"])?)?;
        subscriber.says("subscribe").context(kind)?;
        let monitor = Talker::start(redis_cli(&mesh, to, &["MONITOR"])?)?;
        monitor.says("OK").context(kind)?;
        for round in 0..3 {
            let news = format!("{kind}-{round}");
            let heard = exec::stdout(&mut redis_cli(&mesh, to, &["PUBLISH", "news", &news])?)?;
            ensure!(heard.trim() == "1", "{kind}: {heard:?} subscribers heard it");
            subscriber.says(&news).context("the subscriber")?;
            monitor.says(&news).context("the monitor")?;
        }
    }
    Ok(())
}

#[test]
fn a_server_that_speaks_first_is_heard_at_once() -> Result<()> {
    // With this many greetings in this time, no timer of even 50 ms is in their way.
    const GREETINGS: usize = 100;
    const WITHIN: Duration = Duration::from_secs(5);
    if unprivileged("a_server_that_speaks_first_is_heard_at_once") {
        return Ok(());
    }
    let mesh = Mesh::up("first", topology(), &[])?;
    for (port, kind) in NATS {
        for family in 0..2 {
            let to = mesh.service("store", family, port)?;
            let captured = mesh.metric("node1", CAPTURED)?;
            let begin = Instant::now();
            for _ in 0..GREETINGS {
                // The client never sends a byte.
                let mut greeting = String::new();
                BufReader::new(dial(&mesh, to)?).read_line(&mut greeting).context("the greeting")?;
                ensure!(greeting.starts_with("INFO {"), "{kind}, family {family}: {greeting:?}");
            }
            let took = begin.elapsed();
            println!("{kind}, family {family}: {GREETINGS} greetings in {took:?}");
            ensure!(took < WITHIN, "{kind}, family {family}: {GREETINGS} greetings took {took:?}");
            let captured = mesh.metric("node1", CAPTURED)? - captured;
            ensure!(captured >= 100.0, "{kind}, family {family}: only {captured} were captured");
        }
    }
    Ok(())
}

#[test]
fn a_session_goes_on_after_the_servers_first_word() -> Result<()> {
    if unprivileged("a_session_goes_on_after_the_servers_first_word") {
        return Ok(());
    }
    let mesh = Mesh::up("session", topology(), &[])?;
    for (port, kind) in NATS {
        let mut client = BufReader::new(dial(&mesh, mesh.service("store", 0, port)?)?);
        let mut line = String::new();
        client.read_line(&mut line).context("the greeting")?;
        let turns = [
            ("CONNECT {\"verbose\":false}\r\nPING\r\n", &["PONG\r\n"][..]),
            ("SUB news 1\r\nPUB news 5\r\nhello\r\n", &["MSG news 1 5\r\n", "hello\r\n"]),
            ("PING\r\n", &["PONG\r\n"]),
        ];
        for (said, answers) in turns {
            client.get_mut().write_all(said.as_bytes())?;
            for answer in answers {
                line.clear();
                client.read_line(&mut line).with_context(|| format!("{kind}: the answer to {said:?}"))?;
                ensure!(line == *answer, "{kind}: {said:?} was answered with {line:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn either_side_may_end_its_own_direction_first() -> Result<()> {
    if unprivileged("either_side_may_end_its_own_direction_first") {
        return Ok(());
    }
    let mesh = Mesh::up("half_close", topology(), &[])?;
    let bulk: Vec<u8> = (0..1_000_000u32).map(|n| n.to_be_bytes()[3]).collect();
    each_raw(&mesh, |mut client, mut server| {
        client.write_all(b"*1\r\nquestion")?;
        client.shutdown(Shutdown::Write)?;
        ensure!(read_all(&mut server)? == b"*1\r\nquestion", "the server did not hear the question");
        std::thread::scope(|scope| {
            // More than the sockets on the way hold, so that it is read while it is written.
            let writing =
                scope.spawn(|| server.write_all(&bulk).and_then(|()| server.shutdown(Shutdown::Write)));
            ensure!(read_all(&mut client)? == bulk, "the answer after the client's end was cut or changed");
            writing.join().map_err(|_| anyhow::anyhow!("the server panicked"))?.context("the server's answer")
        })
    })
    .context("the client ends first")?;
    each_raw(&mesh, |mut client, mut server| {
        server.write_all(b"that is all")?;
        server.shutdown(Shutdown::Write)?;
        ensure!(read_all(&mut client)? == b"that is all", "the client did not hear the server");
        client.write_all(b"understood")?;
        client.shutdown(Shutdown::Write)?;
        ensure!(read_all(&mut server)? == b"understood", "what came after the server's end was lost");
        Ok(())
    })
    .context("the server ends first")?;
    each_raw(&mesh, |mut client, mut server| {
        client.shutdown(Shutdown::Write)?;
        ensure!(read_all(&mut server)?.is_empty(), "the server heard what nobody said");
        server.write_all(b"goodbye")?;
        server.shutdown(Shutdown::Write)?;
        ensure!(read_all(&mut client)? == b"goodbye", "the answer to silence was lost");
        Ok(())
    })
    .context("the client ends without a word")
}

/// Ends a connection with RST.
fn reset(stream: TcpStream) -> Result<()> {
    setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    drop(stream);
    Ok(())
}

fn is_reset(mut stream: TcpStream, who: &str) -> Result<()> {
    let read = stream.read(&mut [0; 16]);
    let kind = read.as_ref().map_err(std::io::Error::kind);
    ensure!(kind == Err(ErrorKind::ConnectionReset), "{who} read {read:?} instead of a reset");
    Ok(())
}

#[test]
fn resets_are_passed_on_both_ways() -> Result<()> {
    if unprivileged("resets_are_passed_on_both_ways") {
        return Ok(());
    }
    let mesh = Mesh::up("resets", topology(), &[])?;
    let spoken = |client: &TcpStream, server: &TcpStream| -> Result<()> {
        for (mut from, mut to) in [(client, server), (server, client)] {
            from.write_all(b"0123")?;
            to.read_exact(&mut [0; 4])?;
        }
        Ok(())
    };
    each_raw(&mesh, |client, server| {
        spoken(&client, &server)?;
        reset(client)?;
        is_reset(server, "the server")
    })
    .context("the client resets")?;
    each_raw(&mesh, |client, server| {
        spoken(&client, &server)?;
        reset(server)?;
        is_reset(client, "the client")
    })
    .context("the server resets")?;
    each_raw(&mesh, |client, server| {
        reset(client)?;
        is_reset(server, "the server")
    })
    .context("the client resets before anybody has spoken")?;
    each_raw(&mesh, |client, server| {
        reset(server)?;
        is_reset(client, "the client")
    })
    .context("the server resets before anybody has spoken")
}

#[test]
fn a_silent_client_of_a_silent_server_stays_connected() -> Result<()> {
    // Longer than anything that the agent could be waiting for on its own account.
    const SILENCE: Duration = Duration::from_millis(1500);
    if unprivileged("a_silent_client_of_a_silent_server_stays_connected") {
        return Ok(());
    }
    let mesh = Mesh::up("silence", topology(), &[])?;
    for family in 0..2 {
        let mut client = dial(&mesh, mesh.service("web", family, 82)?)?;
        client.set_read_timeout(Some(SILENCE))?;
        let mut read = client.read(&mut [0; 16]);
        // A read with a time limit is not begun again after a signal (signal(7)).
        while read.as_ref().is_err_and(|e| e.kind() == ErrorKind::Interrupted) {
            read = client.read(&mut [0; 16]);
        }
        let open =
            read.as_ref().is_err_and(|e| matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
        ensure!(open, "family {family}: the silent connection ended with {read:?}");
        client.set_read_timeout(Some(TIMEOUT))?;
        client.write_all(b"GET /late HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")?;
        let answer = String::from_utf8(read_all(&mut client)?)?;
        ensure!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("/late"), "{answer}");
        ensure!(
            answer.to_lowercase().contains("\r\nvia:"),
            "the late request was not taken for HTTP: {answer}"
        );
    }
    Ok(())
}

#[test]
fn a_pod_with_more_connections_than_a_range_has_ports_keeps_its_address() -> Result<()> {
    if unprivileged("a_pod_with_more_connections_than_a_range_has_ports_keeps_its_address") {
        return Ok(());
    }
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let mesh = Mesh::up("ports", topology(), &[])?;
    let [listener, _] = raw_server(&mesh)?;
    let (to, client) = (mesh.service("raw", 0, 7001)?, mesh.pod_ip("client", 0)?);
    let mut held = Vec::new();
    // The range that comes first has 4,536 ports.
    while held.len() < 4_700 {
        let near = dial(&mesh, to)?;
        let (far, peer) = listener.accept()?;
        held.push((near, far));
        ensure!(peer.ip() == client, "connection {} came from {peer}", held.len());
    }
    Ok(())
}
