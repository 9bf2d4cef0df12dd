//! A gibibyte through the agent, opaque and as chunked HTTP either way: it arrives intact, the agent's memory does not
//! grow with it, and a receiver that is slow stops the sender instead of filling the agent.

mod common;
mod content;

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use common::{LIMIT, Mesh, peak, reset_peak};
use content::{BLOCK, Content, LAST_CHUNK, PIECE, chunk, line};
use lab::{PodSpec, ServiceSpec, Topology, unprivileged};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
/// What the agent's peak may rise by, whatever passes through it: buffers of a few connections, not their content.
const GROWTH_MAX: u64 = 16 * MIB;
/// What the sockets on the way may hold before a sender is stopped: two connections with send and receive buffers.
const IN_FLIGHT_MAX: u64 = 64 * MIB;
/// How long a write that cannot go on is waited for before it counts as stopped.
const STOPPED: Duration = Duration::from_secs(1);
const TARGET: u16 = 7000;
const OPAQUE: u16 = 81;
const HTTP: u16 = 80;

fn topology() -> Topology {
    Topology::with_nodes(2)
        .pod(PodSpec::new("client", "node1"))
        .pod(PodSpec::new("server", "node2").label("app", "bulk"))
        .service(ServiceSpec::new("bulk").port("http", HTTP, TARGET).port("tcp", OPAQUE, TARGET))
}

/// Reads a head and returns its first line; its end must be chunked content.
fn head(from: &mut impl BufRead) -> Result<String> {
    let first = line(from)?;
    let mut chunked = false;
    loop {
        let header = line(from)?.to_lowercase();
        if header.is_empty() {
            ensure!(chunked, "{first:?} has no chunked content");
            return Ok(first);
        }
        chunked |= header == "transfer-encoding: chunked";
    }
}

#[test]
fn content_that_was_changed_moved_or_cut_is_seen() {
    let mut bytes = Vec::new();
    Content::new().write(&mut bytes, 3 * BLOCK as u64).expect("a vector takes everything");
    let check = |bytes: &[u8]| Content::new().read(&mut &*bytes, 3 * BLOCK as u64);
    check(&bytes).expect("what was written is what is expected");
    assert!(check(&bytes[..bytes.len() - 1]).is_err(), "cut");
    bytes[2 * BLOCK + 7] ^= 1;
    assert!(check(&bytes).is_err(), "changed");
    bytes[2 * BLOCK + 7] ^= 1;
    bytes.rotate_left(BLOCK);
    assert!(check(&bytes).is_err(), "moved by a whole block");
}

const REQUEST: &[u8] = b"GET /bulk HTTP/1.1\r\nHost: bulk\r\n\r\n";
const UPLOAD: &[u8] = b"POST /bulk HTTP/1.1\r\nHost: bulk\r\nTransfer-Encoding: chunked\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

/// A lab with a client, a server and the agent between them.
struct Bench {
    mesh: Mesh,
    listener: TcpListener,
    fresh: u64,
}

impl Bench {
    fn up(name: &str) -> Result<Self> {
        let mesh = Mesh::up(name, topology(), &[])?;
        let address = SocketAddr::new(mesh.pod_ip("server", 0)?, TARGET);
        let listener = mesh.lab.pod("server")?.in_netns(|| TcpListener::bind(address))??;
        let fresh = reset_peak(mesh.agents[0].pid())?;
        Ok(Self { mesh, listener, fresh })
    }

    fn dial(&self, port: u16) -> Result<TcpStream> {
        let to = self.mesh.service("bulk", 0, port)?;
        bounded(self.mesh.lab.pod("client")?.in_netns(|| TcpStream::connect_timeout(&to, LIMIT))??)
    }

    /// A client connected to a port; `begin` is what it sends before the agent dials the server.
    fn connect(&self, port: u16, begin: &[u8]) -> Result<(TcpStream, TcpStream)> {
        let mut client = self.dial(port)?;
        client.write_all(begin)?;
        let (server, peer) = self.listener.accept()?;
        ensure!(peer.ip() == self.mesh.pod_ip("client", 0)?, "the peer was {peer}");
        Ok((client, bounded(server)?))
    }

    /// Fails if the agent ever held more than its fresh peak and the allowance, or captured nothing.
    fn check_memory(&self) -> Result<()> {
        let growth = peak(self.mesh.agents[0].pid())?.saturating_sub(self.fresh);
        println!("the agent held {} KiB; its peak is {} KiB more", self.fresh / 1024, growth / 1024);
        ensure!(growth <= GROWTH_MAX, "the agent's peak rose by {} KiB", growth / 1024);
        let captured = self.mesh.metric("node1", "sluice_capture_packets_total{reason=\"captured\"}")?;
        ensure!(captured >= 1.0, "nothing passed the agent");
        Ok(())
    }
}

fn bounded(stream: TcpStream) -> Result<TcpStream> {
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// Runs one side on a thread of its own and the other one here.
fn both<A: Send>(there: impl FnOnce() -> Result<A> + Send, here: impl FnOnce() -> Result<()>) -> Result<A> {
    std::thread::scope(|scope| {
        let there = scope.spawn(there);
        let here = here();
        let there = there.join().map_err(|_| anyhow!("a side panicked"))?;
        // Both are told: either may be the cause of the other.
        match (there, here) {
            (Ok(answer), Ok(())) => Ok(answer),
            (Err(error), Ok(())) | (Ok(_), Err(error)) => Err(error),
            (Err(there), Err(here)) => bail!("{there:#}; and the other side: {here:#}"),
        }
    })
}

#[test]
fn a_gibibyte_each_way_over_an_opaque_connection() -> Result<()> {
    if unprivileged("a_gibibyte_each_way_over_an_opaque_connection") {
        return Ok(());
    }
    let bench = Bench::up("bulk_opaque")?;
    let (client, server) = bench.connect(OPAQUE, b"")?;
    for (mut from, to) in [(&client, &server), (&server, &client)] {
        let receive = || {
            let mut to = BufReader::with_capacity(256 * 1024, to);
            Content::new().read(&mut to, GIB)?;
            ensure!(to.fill_buf()?.is_empty(), "more arrived than was sent");
            Ok(())
        };
        both(receive, || {
            Content::new().write(&mut from, GIB).context("sending")?;
            from.shutdown(Shutdown::Write).context("ending")
        })?;
    }
    bench.check_memory()
}

#[test]
fn a_gibibyte_as_a_chunked_answer() -> Result<()> {
    if unprivileged("a_gibibyte_as_a_chunked_answer") {
        return Ok(());
    }
    let bench = Bench::up("bulk_answer")?;
    let (client, mut server) = bench.connect(HTTP, REQUEST)?;
    let receive = || {
        let mut client = BufReader::with_capacity(256 * 1024, client);
        ensure!(head(&mut client)?.starts_with("HTTP/1.1 200 "), "the answer is no 200");
        Content::new().read_chunked(&mut client)
    };
    let received = both(receive, || {
        server.write_all(ANSWER)?;
        Content::new().write_chunked(&mut server, GIB).context("sending")
    })?;
    ensure!(received == GIB, "{received} bytes arrived");
    bench.check_memory()
}

#[test]
fn a_gibibyte_as_a_chunked_upload() -> Result<()> {
    if unprivileged("a_gibibyte_as_a_chunked_upload") {
        return Ok(());
    }
    let bench = Bench::up("bulk_upload")?;
    let (mut client, server) = bench.connect(HTTP, UPLOAD)?;
    let receive = || {
        let mut server = BufReader::with_capacity(256 * 1024, server);
        ensure!(head(&mut server)?.starts_with("POST /bulk "), "the request is another one");
        let received = Content::new().read_chunked(&mut server)?;
        server.get_mut().write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")?;
        Ok(received)
    };
    let received = both(receive, || {
        Content::new().write_chunked(&mut client, GIB).context("sending")?;
        let answer = line(&mut BufReader::new(&client))?;
        ensure!(answer.starts_with("HTTP/1.1 204 "), "the upload was answered with {answer:?}");
        Ok(())
    })?;
    ensure!(received == GIB, "{received} bytes arrived");
    bench.check_memory()
}

/// What a sender did until it was stopped.
struct Stopped {
    /// Bytes of content in what was sent or begun.
    content: u64,
    /// What of it is still to be sent.
    rest: Vec<u8>,
}

/// Writes content until no more is taken.
fn write_until_stopped(to: &mut TcpStream, chunked: bool) -> Result<Stopped> {
    to.set_write_timeout(Some(STOPPED))?;
    let mut content = Content::new();
    while content.at <= IN_FLIGHT_MAX {
        let piece = content.next(PIECE);
        let framed = if chunked { chunk(piece) } else { piece.to_vec() };
        let mut rest = framed.as_slice();
        while !rest.is_empty() {
            match to.write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Ok(Stopped { content: content.at, rest: rest.to_vec() });
                }
                Err(error) => return Err(error).context("sending to a reader that does not read"),
            }
        }
    }
    bail!("{} bytes were taken for a reader that does not read", content.at)
}

#[test]
fn a_reader_that_does_not_read_stops_the_sender() -> Result<()> {
    if unprivileged("a_reader_that_does_not_read_stops_the_sender") {
        return Ok(());
    }
    let bench = Bench::up("bulk_slow")?;
    for (what, port, begin, upload) in [
        ("opaque upload", OPAQUE, &b""[..], true),
        ("opaque answer", OPAQUE, b"", false),
        ("chunked upload", HTTP, UPLOAD, true),
        ("chunked answer", HTTP, REQUEST, false),
    ] {
        let (client, mut server) = bench.connect(port, begin)?;
        let chunked = port == HTTP;
        if chunked && !upload {
            server.write_all(ANSWER)?;
        }
        let (mut sender, receiver) = if upload { (client, server) } else { (server, client) };
        let Stopped { content, mut rest } = write_until_stopped(&mut sender, chunked).context(what)?;
        println!("{what}: stopped after {} KiB", content / 1024);
        // Once it is read, everything comes, and the sender goes on.
        let receive = || {
            let mut receiver = BufReader::new(receiver);
            if chunked {
                head(&mut receiver)?;
                return Content::new().read_chunked(&mut receiver);
            }
            Content::new().read(&mut receiver, content)?;
            Ok(content)
        };
        let all = both(receive, || {
            rest.extend_from_slice(if chunked { LAST_CHUNK } else { b"" });
            sender.set_write_timeout(Some(LIMIT))?;
            sender.write_all(&rest).context("going on")
        });
        let all = all.context(what)?;
        ensure!(all == content, "{what}: {all} of {content} bytes arrived");
    }
    bench.check_memory()
}
