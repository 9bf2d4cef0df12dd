//! What an HTTP proxy must let pass, with the programs and libraries that users run: WebSocket, uploads that wait for 100,
//! large downloads, event streams, load in both versions. Each goes through captured connections and through a Gateway.

mod common;
mod content;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use common::{LIMIT, Mesh, peak, reset_peak};
use content::{Content, line};
use lab::{PodSpec, Program, ServiceSpec, Topology, exec, unprivileged, wait_for};
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Bytes, Error, Message, WebSocket};

const MIB: u64 = 1 << 20;
/// The size of a large download.
const DOWNLOAD: u64 = 2048 * MIB;
/// The port of the test's own servers.
const TARGET: u16 = 7000;
/// How long an event stream is silent; far longer than any of the tests' other waits.
const SILENCE: Duration = Duration::from_secs(3);
/// What the agent's peak may rise by, whatever passes through it.
const GROWTH_MAX: u64 = 16 * MIB;

const EDGE: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  gatewayClassName: sluice
  listeners:
  - {name: http, port: 8888, protocol: HTTP}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: edge}
spec:
  parentRefs: [{name: edge}]
  rules:
  - matches: [{path: {value: /h1}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
    backendRefs: [{name: h1, port: 80}]
  - matches: [{path: {value: /h2}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
    backendRefs: [{name: h2, port: 80}]
  - backendRefs: [{name: peer, port: 80}]
";

/// A lab whose `peer` is served by the test itself.
fn topology() -> Topology {
    Topology::with_nodes(2)
        .pod(PodSpec::new("client", "node1"))
        .pod(PodSpec::new("peer", "node2").label("app", "peer"))
        .service(ServiceSpec::new("peer").port("http", 80, TARGET).undeclared_port(82, TARGET))
        .service(ServiceSpec::new("h1").port("http", 80, 8080))
        .service(ServiceSpec::new("h2").port("http2", 80, 8081))
}

/// Where clients enter.
#[derive(Debug, Clone, Copy)]
enum Path {
    /// From a pod, by this port of a service.
    Captured(&'static str, u16),
    /// By the Gateway's listener on the client's node.
    Gateway,
}

const PATHS: [Path; 3] = [Path::Captured("peer", 80), Path::Captured("peer", 82), Path::Gateway];

struct Passes {
    mesh: Mesh,
}

impl Passes {
    /// A mesh with its Gateway; `serve` takes each connection to the peer, on a thread of its own.
    fn up(name: &str, topology: Topology, serve: fn(TcpStream) -> Result<()>) -> Result<Self> {
        let mesh = Mesh::up(name, topology, &[("edge.yaml", EDGE)])?;
        let address = SocketAddr::new(mesh.pod_ip("peer", 0)?, TARGET);
        let listener = mesh.lab.pod("peer")?.in_netns(|| TcpListener::bind(address))??;
        // The threads end with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                std::thread::spawn(move || {
                    if let Err(error) = serve(stream) {
                        eprintln!("a server's connection: {error:#}");
                    }
                });
            }
        });
        let passes = Self { mesh };
        let listening = || passes.dial(Path::Gateway).is_ok();
        wait_for("the Gateway's listener", LIMIT, listening)?;
        Ok(passes)
    }

    fn address(&self, path: Path) -> Result<SocketAddr> {
        match path {
            Path::Captured(service, port) => self.mesh.service(service, 0, port),
            Path::Gateway => Ok(SocketAddr::from(([127, 0, 0, 1], 8888))),
        }
    }

    fn dial(&self, path: Path) -> Result<TcpStream> {
        let to = self.address(path)?;
        let connect = || TcpStream::connect_timeout(&to, LIMIT);
        let stream = match path {
            Path::Captured(..) => self.mesh.lab.pod("client")?.in_netns(connect)??,
            Path::Gateway => self.mesh.lab.node("node1")?.in_netns(connect)??,
        };
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(stream)
    }

    /// A program where the path's clients are.
    fn command(&self, path: Path, program: &str) -> Result<Command> {
        match path {
            Path::Captured(..) => self.mesh.lab.pod("client")?.command(program),
            Path::Gateway => self.mesh.lab.node("node1")?.command(program),
        }
    }

    fn url(&self, path: Path, target: &str) -> Result<String> {
        Ok(format!("http://{}{target}", self.address(path)?))
    }
}

/// A WebSocket server that echoes, and has the last word where its client has closed its sending side without a word.
fn echo(stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut socket = match tungstenite::accept(stream) {
        Ok(socket) => socket,
        Err(error) => bail!("no handshake: {error}"),
    };
    loop {
        match socket.read() {
            Ok(message @ (Message::Text(_) | Message::Binary(_))) => socket.send(message)?,
            // Pings and the closing handshake are answered by the library, with the next read.
            Ok(_) => {}
            Err(Error::ConnectionClosed) => return Ok(()),
            Err(Error::Protocol(_)) => {
                // A text frame of three bytes.
                socket.get_mut().write_all(b"\x81\x03bye")?;
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn websocket(passes: &Passes, path: Path) -> Result<WebSocket<TcpStream>> {
    let stream = passes.dial(path)?;
    let url = format!("ws://{}/chat", passes.address(path)?);
    match tungstenite::client(url, stream) {
        Ok((socket, response)) => {
            ensure!(response.status() == 101, "{response:?}");
            Ok(socket)
        }
        Err(error) => bail!("no handshake: {error}"),
    }
}

fn expect(socket: &mut WebSocket<TcpStream>, expected: &Message) -> Result<()> {
    let got = socket.read()?;
    ensure!(got == *expected, "{} bytes came, not {}", got.len(), expected.len());
    Ok(())
}

#[test]
fn ten_thousand_messages_of_a_websocket() -> Result<()> {
    if unprivileged("ten_thousand_messages_of_a_websocket") {
        return Ok(());
    }
    let passes = Passes::up("passes_ws", topology(), echo)?;
    for path in PATHS {
        let mut socket = websocket(&passes, path)?;
        for number in 0..10_000_usize {
            let message = match number % 3 {
                0 => Message::text(format!("message {number}")),
                1 => Message::binary(vec![u8::try_from(number % 251)?; number % 2000]),
                _ => Message::text(""),
            };
            socket.send(message.clone())?;
            expect(&mut socket, &message).with_context(|| format!("{path:?}: message {number}"))?;
        }
        socket.send(Message::Ping(Bytes::from_static(b"are you there")))?;
        expect(&mut socket, &Message::Pong(Bytes::from_static(b"are you there")))?;
        for size in [125, 126, 65_535, 65_536, 8 * MIB] {
            let mut bytes = Vec::new();
            Content::new().write(&mut bytes, size)?;
            let message = Message::binary(bytes);
            socket.send(message.clone())?;
            expect(&mut socket, &message).with_context(|| format!("{path:?}: {size} bytes"))?;
        }
        let goodbye = CloseFrame { code: CloseCode::Normal, reason: "enough".into() };
        socket.close(Some(goodbye.clone()))?;
        let closed = socket.read()?;
        ensure!(closed == Message::Close(Some(goodbye)), "{path:?}: {closed:?}");
        ensure!(matches!(socket.read(), Err(Error::ConnectionClosed)), "{path:?}: it is not closed");
        // One that closes its sending side alone still hears what its peer has to say.
        let mut socket = websocket(&passes, path)?;
        socket.send(Message::text("one"))?;
        expect(&mut socket, &Message::text("one"))?;
        socket.get_mut().shutdown(Shutdown::Write)?;
        expect(&mut socket, &Message::text("bye"))
            .with_context(|| format!("{path:?}: after half-closing"))?;
    }
    let tunnels = "istio_requests_total{";
    wait_for("the records", LIMIT, || passes.mesh.metric("node1", tunnels).is_ok_and(|count| count >= 6.0))
}

/// A server of one HTTP request: downloads, uploads and events.
fn serve(stream: TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    let mut reader = BufReader::with_capacity(256 * 1024, stream.try_clone()?);
    let mut stream = stream;
    let request = line(&mut reader)?;
    let (mut length, mut expects) = (0_u64, false);
    loop {
        let header = line(&mut reader)?.to_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length: ") {
            length = value.parse()?;
        }
        expects |= header == "expect: 100-continue";
    }
    let target = request.split(' ').nth(1).context("a request line")?;
    match target {
        "/upload" => {
            ensure!(expects, "the expectation was lost: {request}");
            ensure!(reader.buffer().is_empty(), "the body did not wait for 100");
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            Content::new().read(&mut reader, length)?;
            let body = format!("took {length}");
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            )?;
        }
        "/events" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")?;
            stream.set_read_timeout(Some(SILENCE))?;
            ensure!(reader.fill_buf().is_err(), "the client spoke or left in the silence");
            stream.write_all(b"data: 2\n\n")?;
        }
        _ => {
            let size: u64 = target.trim_start_matches('/').parse().context("a size")?;
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n")?;
            Content::new().write(&mut stream, size)?;
        }
    }
    Ok(())
}

#[test]
fn uploads_wait_for_100_and_silent_event_streams_go_on() -> Result<()> {
    if unprivileged("uploads_wait_for_100_and_silent_event_streams_go_on") {
        return Ok(());
    }
    let passes = Passes::up("passes_100", topology(), serve)?;
    let file = passes.mesh.lab.directory().join("upload");
    Content::new().write(&mut std::fs::File::create(&file)?, 8 * MIB)?;
    for path in PATHS {
        let url = passes.url(path, "/upload")?;
        let mut curl = passes.command(path, "curl")?;
        // Without the server's 100 it would wait for longer than it may take.
        curl.args([
            "-sSv",
            "--max-time",
            "15",
            "--expect100-timeout",
            "60",
            "-H",
            "Expect: 100-continue",
            "-T",
        ]);
        let output = exec::run(curl.arg(&file).arg(&url))?;
        let (said, verbose) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(said == format!("took {}", 8 * MIB), "{path:?}: {said}");
        ensure!(verbose.contains("< HTTP/1.1 100 Continue"), "{path:?}: {verbose}");

        let url = passes.url(path, "/events")?;
        let output = exec::stdout(passes.command(path, "curl")?.args(["-sSN", "--max-time", "20", &url]))?;
        ensure!(output == "data: 1\n\ndata: 2\n\n", "{path:?}: {output:?}");
    }
    Ok(())
}

#[test]
fn downloads_of_two_gibibytes_arrive_whole() -> Result<()> {
    if unprivileged("downloads_of_two_gibibytes_arrive_whole") {
        return Ok(());
    }
    let passes = Passes::up("passes_2g", topology(), serve)?;
    let agent = passes.mesh.agents[0].pid();
    for path in [Path::Captured("peer", 80), Path::Gateway] {
        let fresh = reset_peak(agent)?;
        let begun = std::time::Instant::now();
        let url = passes.url(path, &format!("/{DOWNLOAD}"))?;
        let mut curl = passes.command(path, "curl")?;
        curl.args(["-sS", "--fail", "--max-time", "120", &url]).stdout(Stdio::piped());
        let mut curl = curl.spawn().context("starting curl")?;
        let mut output = BufReader::with_capacity(256 * 1024, curl.stdout.take().context("a pipe")?);
        let read = Content::new().read(&mut output, DOWNLOAD).and_then(|()| {
            ensure!(output.fill_buf()?.is_empty(), "more came than was sent");
            Ok(())
        });
        drop(output);
        let status = curl.wait()?;
        read.with_context(|| format!("{path:?}"))?;
        ensure!(status.success(), "{path:?}: curl ended with {status}");
        let growth = peak(agent)?.saturating_sub(fresh);
        println!("{path:?}: {:?}; the agent's peak is {} KiB more", begun.elapsed(), growth / 1024);
        ensure!(growth <= GROWTH_MAX, "{path:?}: the agent's peak rose by {} KiB", growth / 1024);
    }
    Ok(())
}

const NGHTTPD: &str = "echo hello > www/index.html; exec nghttpd --no-tls -d www 8081";

#[test]
fn h2load_passes_in_both_versions_to_both_kinds_of_backend() -> Result<()> {
    if unprivileged("h2load_passes_in_both_versions_to_both_kinds_of_backend") {
        return Ok(());
    }
    let argv = ["sh", "-c", NGHTTPD].map(str::to_owned).to_vec();
    let topology = topology()
        .pod(PodSpec::new("h1", "node2").label("app", "h1").runs(Program::Http { port: 8080 }))
        .pod(PodSpec::new("h2", "node2").label("app", "h2").runs(Program::Server { argv, port: 8081 }));
    let passes = Passes::up("passes_load", topology, serve)?;
    for (service, target) in [("h1", "/h1/"), ("h2", "/h2/")] {
        for (path, target) in [(Path::Captured(service, 80), "/"), (Path::Gateway, target)] {
            let url = passes.url(path, target)?;
            for version in ["--no-tls-proto=h2c", "--h1"] {
                let mut load = passes.command(path, "h2load")?;
                let text = exec::stdout(load.args(["-n4000", "-c8", "-m16", "-t1", version, &url]))?;
                let all = text.contains("4000 succeeded, 0 failed, 0 errored, 0 timeout")
                    && text.contains("4000 2xx, 0 3xx, 0 4xx, 0 5xx");
                ensure!(all, "{path:?} {version}: {text}");
            }
        }
    }
    Ok(())
}

#[test]
fn connect_is_refused_where_http_is_declared() -> Result<()> {
    if unprivileged("connect_is_refused_where_http_is_declared") {
        return Ok(());
    }
    let passes = Passes::up("passes_connect", topology(), serve)?;
    // A port that declares nothing may be that of a forward proxy: what is sent there is not looked at.
    for path in [Path::Captured("peer", 80), Path::Gateway] {
        let mut stream = passes.dial(path)?;
        stream.write_all(b"CONNECT 127.0.0.1:15000 HTTP/1.1\r\nHost: 127.0.0.1:15000\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(
            answer.starts_with("HTTP/1.1 405 ") && answer.contains("connection: close"),
            "{path:?}: {answer}"
        );
    }
    Ok(())
}
