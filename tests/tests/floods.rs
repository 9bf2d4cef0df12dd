//! Many connections that send or take next to nothing, and streams that are reset as soon as they are opened: everybody
//! else is served, memory stays bounded, and who is too slow is cut. How long others wait beside them is measured by
//! `cargo xtask bench floods`.

mod edge;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use edge::{OPEN, PORT, gateway, route, send};
use lab::backend::{listen, raw, read_head};
use lab::frames::{END_STREAM, RawHttp2, Said, headers, reset};
use lab::loopback::{LoopbackAgent, Site, service};
use lab::wait_for;

/// How long one answer may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(20);
/// Connections of each kind of slow client.
const SLOW: usize = 1_000;
/// What the agent may hold beside them, in KiB.
const MEMORY_CAP_KIB: u64 = 192 * 1024;
/// A large answer: more than all buffers on its way.
const LARGE_BYTES: usize = 64 * 1024 * 1024;

/// What it is made of.
const PIECE: &[u8] = &[b'x'; 64 * 1024];

/// A gateway before a server of small answers and large ones.
fn site() -> Result<Site> {
    let upstream = raw(listen()?, |stream| drop(serve(&stream)))?;
    Site::new(&[
        ("gateway.yaml", &gateway(OPEN)),
        ("services.yaml", &service("default", "web", 80, &[upstream])),
        ("routes.yaml", &route("r", "", "  - backendRefs: [{name: web, port: 80}]\n")),
    ])
}

fn serve(stream: &TcpStream) -> std::io::Result<()> {
    let mut reader = std::io::BufReader::new(stream);
    let mut stream = stream;
    loop {
        if !read_head(&mut reader)?.starts_with("GET /large ") {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")?;
            continue;
        }
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {LARGE_BYTES}\r\n\r\n")?;
        for _ in 0..LARGE_BYTES / PIECE.len() {
            stream.write_all(PIECE)?;
        }
    }
}

/// Connections on which the same bytes have been sent.
fn open(to: SocketAddr, count: usize, bytes: &[u8]) -> Result<Vec<TcpStream>> {
    let one = |index: usize| -> Result<TcpStream> {
        let mut stream =
            TcpStream::connect_timeout(&to, LIMIT).with_context(|| format!("connection {index}"))?;
        stream.write_all(bytes)?;
        Ok(stream)
    };
    (0..count).map(one).collect()
}

/// A client of each version is served, and the agent holds no more than it may.
fn check(agent: &LoopbackAgent<'_>, to: SocketAddr) -> Result<()> {
    let seen = send(to, "web", "/", &[])?;
    ensure!(seen.response.status == 200 && seen.response.body == b"hello", "{seen:?}");
    let mut peer = RawHttp2::open(to, LIMIT)?;
    let get = [(":method", "GET"), (":scheme", "http"), (":authority", "web"), (":path", "/")];
    peer.send(&headers(1, END_STREAM, &get))?;
    let said = peer.hear(1)?;
    ensure!(said == Said::Status(200) && peer.body(1)? == b"hello", "{said:?}");
    let held = agent.resident_kib()?;
    ensure!(held <= MEMORY_CAP_KIB, "{held} KiB are held");
    Ok(())
}

/// What a connection that was cut got, if it has been cut.
fn ended(stream: &mut TcpStream) -> Result<Option<String>> {
    stream.set_nonblocking(true)?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() == ErrorKind::WouldBlock && answer.is_empty() => Ok(None),
        // Bytes that came after the end are answered with a reset.
        Err(error) if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionReset) => {
            Err(error).context("a slow connection")
        }
        _ => Ok(Some(String::from_utf8_lossy(&answer).into_owned())),
    }
}

#[test]
fn heads_that_dribble_are_cut_at_their_time_however_many() -> Result<()> {
    let site = site()?;
    let agent = site.start(&[])?;
    let to = site.at(PORT);
    let mut slow = open(to, SLOW, b"GET / HTTP/1.1\r\nHost: web\r\nX: ")?;
    // They have sent nothing at all, and part of HTTP/2's preface.
    slow.extend(open(to, SLOW / 10, b"")?);
    slow.extend(open(to, SLOW / 10, b"PRI * HTTP/2.0\r\n\r\nSM")?);
    let begin = Instant::now();
    let (mut told, mut dribbled) = (0, begin);
    while !slow.is_empty() {
        check(&agent, to)?;
        let again = dribbled.elapsed() > Duration::from_secs(1);
        let mut left = Vec::new();
        for mut stream in slow {
            if let Some(answer) = ended(&mut stream)? {
                told += usize::from(answer.starts_with("HTTP/1.1 408 "));
                continue;
            }
            if again && left.len() % 2 == 0 {
                // It may just have been cut.
                let _ = stream.write(b"x");
            }
            left.push(stream);
        }
        slow = left;
        if again {
            dribbled = Instant::now();
        }
        ensure!(begin.elapsed() < 3 * LIMIT, "{} connections are not cut", slow.len());
    }
    ensure!(begin.elapsed() > Duration::from_secs(5), "cut too early: {:?}", begin.elapsed());
    // Those that dribbled may lose their answer to a reset, as they sent on.
    ensure!(told >= SLOW / 3, "only {told} were told why");
    let cut = agent.scrape()?.sum("sluice_protocol_errors_total", &[("reason", "header_timeout")]);
    ensure!(cut >= 1_000.0, "{cut} slow heads were counted");
    Ok(())
}

#[test]
fn readers_that_take_nothing_hold_no_memory_of_ours() -> Result<()> {
    let site = site()?;
    let agent = site.start(&[])?;
    let to = site.at(PORT);
    let slow = open(to, SLOW / 4, b"GET /large HTTP/1.1\r\nHost: web\r\n\r\n")?;
    for _ in 0..50 {
        check(&agent, to)?;
    }
    drop(slow);
    check(&agent, to)
}

#[test]
fn resets_on_many_connections_end_them_and_nobody_else() -> Result<()> {
    let site = site()?;
    let agent = site.start(&[])?;
    let to = site.at(PORT);
    let get = [(":method", "GET"), (":scheme", "http"), (":authority", "web"), (":path", "/large")];
    let flood: Vec<u8> = (0..2_000_u32)
        .flat_map(|number| {
            let stream = 2 * number + 1;
            [headers(stream, END_STREAM, &get), reset(stream, 8)].concat()
        })
        .collect();
    for round in 0..4 {
        let mut attackers: Vec<RawHttp2> =
            (0..16).map(|_| RawHttp2::open(to, LIMIT)).collect::<std::io::Result<_>>()?;
        for peer in &mut attackers {
            // It is ended before it is all sent.
            let _ = peer.send(&flood);
        }
        check(&agent, to).with_context(|| format!("round {round}"))?;
        for mut peer in attackers {
            let said = peer.hear(u32::MAX)?;
            // Bytes that were on their way when the connection ended make the kernel reset it, GOAWAY and all.
            ensure!(matches!(said, Said::GoAway(11) | Said::Closed), "{said:?}");
        }
    }
    // A peer may hear of its end a moment before it is counted.
    wait_for("64 ends to be counted", LIMIT, || {
        let scraped = agent.scrape();
        scraped.is_ok_and(|all| all.sum("sluice_protocol_errors_total", &[("side", "downstream")]) >= 64.0)
    })?;
    check(&agent, to)
}
