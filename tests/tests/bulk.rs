//! A gibibyte through the agent, opaque and as chunked HTTP either way: it arrives intact, the agent's memory does not
//! grow with it, and a receiver that is slow stops the sender instead of filling the agent.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use common::{LIMIT, Mesh};
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
/// Bytes given to one write; a chunk of HTTP carries as many.
const PIECE: usize = 100_000;

fn topology() -> Topology {
    Topology::with_nodes(2)
        .pod(PodSpec::new("client", "node1"))
        .pod(PodSpec::new("server", "node2").label("app", "bulk"))
        .service(ServiceSpec::new("bulk").port("http", HTTP, TARGET).port("tcp", OPAQUE, TARGET))
}

/// Bytes that are not the same anywhere: noise of a prime length, over and over, each time under another number.
struct Content {
    at: u64,
    block: Vec<u8>,
}

const BLOCK: usize = 65_521;

impl Content {
    fn new() -> Self {
        let mut state = 0x9e37_79b9_u32;
        let block = (0..BLOCK).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        });
        let mut content = Self { at: 0, block: block.collect() };
        content.number();
        content
    }

    fn number(&mut self) {
        let number = self.at / BLOCK as u64;
        self.block[..8].copy_from_slice(&number.to_be_bytes());
    }

    /// The next bytes, at most `len` of them and at least one.
    fn next(&mut self, len: usize) -> &[u8] {
        let from = usize::try_from(self.at % BLOCK as u64).expect("below the block's length");
        if from == 0 {
            self.number();
        }
        let to = BLOCK.min(from + len);
        self.at += (to - from) as u64;
        &self.block[from..to]
    }

    /// Fails unless these are the next bytes.
    fn expect(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let at = self.at;
            let expected = self.next(bytes.len());
            let (now, rest) = bytes.split_at(expected.len());
            ensure!(now == expected, "changed between bytes {at} and {}", at + now.len() as u64);
            bytes = rest;
        }
        Ok(())
    }

    /// Writes the next `len` bytes.
    fn write(&mut self, to: &mut impl Write, mut len: u64) -> std::io::Result<()> {
        while len > 0 {
            let piece = self.next(usize::try_from(len.min(PIECE as u64)).unwrap_or(PIECE));
            let written = piece.len() as u64;
            to.write_all(piece)?;
            len -= written;
        }
        Ok(())
    }

    /// Writes the next `len` bytes as chunks.
    fn write_chunked(&mut self, to: &mut impl Write, mut len: u64) -> std::io::Result<()> {
        while len > 0 {
            let piece = self.next(usize::try_from(len.min(PIECE as u64)).unwrap_or(PIECE));
            len -= piece.len() as u64;
            to.write_all(&chunk(piece))?;
        }
        to.write_all(LAST_CHUNK)
    }

    /// Reads the next `len` bytes and compares them.
    fn read(&mut self, from: &mut impl BufRead, mut len: u64) -> Result<()> {
        while len > 0 {
            let bytes = from.fill_buf()?;
            ensure!(!bytes.is_empty(), "ended after {} bytes, {len} too early", self.at);
            let now = bytes.len().min(usize::try_from(len).unwrap_or(usize::MAX));
            self.expect(&bytes[..now])?;
            from.consume(now);
            len -= now as u64;
        }
        Ok(())
    }

    /// Reads chunks to their end, compares them, and returns how many bytes they carried.
    fn read_chunked(&mut self, from: &mut impl BufRead) -> Result<u64> {
        let start = self.at;
        loop {
            let size = line(from)?;
            let size = u64::from_str_radix(&size, 16).with_context(|| format!("chunk size {size:?}"))?;
            self.read(from, size)?;
            ensure!(line(from)?.is_empty(), "a chunk longer than it said");
            if size == 0 {
                return Ok(self.at - start);
            }
        }
    }
}

const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

fn chunk(content: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", content.len()).as_bytes(), content, b"\r\n"].concat()
}

/// A line without its end.
fn line(from: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    line.strip_suffix("\r\n").map(str::to_owned).with_context(|| format!("a line that ends as {line:?}"))
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

/// Forgets a process's peak, which loading the kernel programs has set, and returns what it holds now.
fn reset_peak(pid: u32) -> Result<u64> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").context("resetting the agent's peak")?;
    peak(pid)
}

/// The most memory that a process has held since, in bytes.
fn peak(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the agent's status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().with_context(|| line.to_owned())?;
    Ok(kib * 1024)
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
