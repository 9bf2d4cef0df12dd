//! The traffic of the socket rows: a server and clients that do one thing each and print one number. They run as processes of
//! their own in the lab's pods, as the programs look at the sockets of a cgroup.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Linger;

/// What a round trip carries.
const PING_BYTES: usize = 64;
/// What a write of a stream carries.
const BLOCK_BYTES: usize = 64 * 1024;
/// Round trips between two looks at the clock.
const BATCH: u32 = 64;
/// Nobody waits longer for a byte.
const PATIENCE: Duration = Duration::from_secs(30);
/// Calls of `connect()` that warm up.
const WARM: usize = 200;

/// What is done.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Answer the clients below
    Serve {
        /// The port, on IPv4
        port: u16,
    },
    /// Round trips per second
    Ping {
        /// The server
        to: SocketAddr,
        /// For how long
        seconds: f64,
    },
    /// Bytes per second that the server has read
    Stream {
        /// The server
        to: SocketAddr,
        /// For how long
        seconds: f64,
    },
    /// Bytes per second of a transfer of which the server checks every byte, both ways in turn
    Bulk {
        /// The server
        to: SocketAddr,
        /// Each way; whole blocks are sent
        bytes: u64,
    },
    /// The median of so many calls of `connect()`, in nanoseconds
    Connect {
        /// The server
        to: SocketAddr,
        /// Calls
        count: usize,
    },
}

/// What a connection is for, said by its first byte, with which no HTTP begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Purpose {
    Echo = 1,
    Sink = 2,
    Bulk = 3,
}

/// Does it.
pub fn run(verb: &Verb) -> Result<ExitCode> {
    let number = match verb {
        Verb::Serve { port } => serve(*port)?,
        Verb::Ping { to, seconds } => ping(*to, Duration::try_from_secs_f64(*seconds)?)?,
        Verb::Stream { to, seconds } => stream(*to, Duration::try_from_secs_f64(*seconds)?)?,
        Verb::Bulk { to, bytes } => bulk(*to, bytes.div_ceil(BLOCK_BYTES as u64))?,
        Verb::Connect { to, count } => connect(*to, *count)?,
    };
    println!("{number}");
    Ok(ExitCode::SUCCESS)
}

fn serve(port: u16) -> Result<f64> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).context("listening")?;
    for stream in listener.incoming() {
        // Those that do nothing but connect are reset before they are taken.
        let Ok(stream) = stream else { continue };
        std::thread::spawn(move || {
            if let Err(error) = answer(stream) {
                eprintln!("a connection: {error}");
            }
        });
    }
    bail!("the listener has ended")
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut purpose = [0];
    if stream.read(&mut purpose)? == 0 {
        return Ok(());
    }
    match purpose[0] {
        byte if byte == Purpose::Echo as u8 => echo(&mut stream),
        byte if byte == Purpose::Sink as u8 => sink(&mut stream),
        byte if byte == Purpose::Bulk as u8 => {
            let mut blocks = [0; 8];
            stream.read_exact(&mut blocks)?;
            let blocks = u64::from_be_bytes(blocks);
            check_blocks(&mut stream, blocks)?;
            stream.write_all(&[Purpose::Bulk as u8])?;
            send_blocks(&mut stream, blocks)
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn echo(stream: &mut TcpStream) -> io::Result<()> {
    let mut piece = [0; PING_BYTES];
    stream.write_all(&[Purpose::Echo as u8])?;
    loop {
        match stream.read_exact(&mut piece) {
            Ok(()) => stream.write_all(&piece)?,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Reads to the end and tells how much it was.
fn sink(stream: &mut TcpStream) -> io::Result<()> {
    let mut piece = vec![0; BLOCK_BYTES];
    let mut read = 0u64;
    loop {
        match stream.read(&mut piece)? {
            0 => return stream.write_all(&read.to_be_bytes()),
            len => read += len as u64,
        }
    }
}

fn dial(to: SocketAddr, purpose: Purpose) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(to).with_context(|| format!("connecting to {to}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(&[purpose as u8]).context("saying what for")?;
    Ok(stream)
}

fn ping(to: SocketAddr, time: Duration) -> Result<f64> {
    let mut stream = dial(to, Purpose::Echo)?;
    let mut piece = [7; PING_BYTES];
    stream.read_exact(&mut piece[..1]).context("the server's first byte")?;
    let (since, mut trips) = (Instant::now(), 0u32);
    while since.elapsed() < time {
        for _ in 0..BATCH {
            stream.write_all(&piece)?;
            stream.read_exact(&mut piece)?;
        }
        trips += BATCH;
    }
    Ok(f64::from(trips) / since.elapsed().as_secs_f64())
}

fn stream(to: SocketAddr, time: Duration) -> Result<f64> {
    let mut stream = dial(to, Purpose::Sink)?;
    let piece = vec![7; BLOCK_BYTES];
    let (since, mut sent) = (Instant::now(), 0u64);
    while since.elapsed() < time {
        stream.write_all(&piece)?;
        sent += piece.len() as u64;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut read = [0; 8];
    let deadline = Instant::now() + PATIENCE;
    Patient { stream: &mut stream, deadline }.read_exact(&mut read).context("the server's count")?;
    let read = u64::from_be_bytes(read);
    ensure!(read == sent, "{sent} bytes were sent, {read} came");
    Ok(per_second(sent, since.elapsed()))
}

/// Reads on until the deadline where the kernel says that there is nothing yet. On an accelerated socket it does so to one who waits
/// in `recv` and is woken by something else than bytes: by the acknowledgement of its own end, or by room to send.
struct Patient<'a> {
    stream: &'a mut TcpStream,
    deadline: Instant,
}

impl Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < self.deadline => {
                }
                read => return read,
            }
        }
    }
}

fn bulk(to: SocketAddr, blocks: u64) -> Result<f64> {
    let mut stream = dial(to, Purpose::Bulk)?;
    let since = Instant::now();
    stream.write_all(&blocks.to_be_bytes())?;
    send_blocks(&mut stream, blocks).context("sending")?;
    stream.read_exact(&mut [0]).context("the server found a wrong byte, or too few")?;
    check_blocks(&mut stream, blocks).context("what came back")?;
    ensure!(stream.read(&mut [0])? == 0, "more came than was sent");
    Ok(per_second(2 * blocks * BLOCK_BYTES as u64, since.elapsed()))
}

fn connect(to: SocketAddr, count: usize) -> Result<f64> {
    let mut nanos = Vec::with_capacity(count);
    for number in 0..WARM + count {
        let since = Instant::now();
        let stream = TcpStream::connect(to).with_context(|| format!("connecting to {to}"))?;
        let took = since.elapsed();
        if number >= WARM {
            nanos.push(took.as_nanos());
        }
        // A reset leaves no socket behind that would keep its port.
        setsockopt(&stream, Linger, &libc_linger()).context("asking for a reset")?;
    }
    nanos.sort_unstable();
    let median = *nanos.get(count / 2).context("no call")?;
    Ok(f64::from(u32::try_from(median).context("a call of seconds")?))
}

fn libc_linger() -> nix::libc::linger {
    nix::libc::linger { l_onoff: 1, l_linger: 0 }
}

#[expect(clippy::cast_precision_loss, reason = "a rate")]
fn per_second(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64()
}

/// A block in which no two places look alike, but for its first eight bytes: there each has its number.
fn block() -> Vec<u8> {
    (0u32..).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).take(BLOCK_BYTES).collect()
}

fn send_blocks(to: &mut impl Write, blocks: u64) -> io::Result<()> {
    let mut block = block();
    for number in 0..blocks {
        block[..8].copy_from_slice(&number.to_be_bytes());
        to.write_all(&block)?;
    }
    Ok(())
}

fn check_blocks(from: &mut impl Read, blocks: u64) -> io::Result<()> {
    let (mut expected, mut seen) = (block(), vec![0; BLOCK_BYTES]);
    for number in 0..blocks {
        expected[..8].copy_from_slice(&number.to_be_bytes());
        from.read_exact(&mut seen)?;
        if seen != expected {
            return Err(io::Error::other(format!("block {number} of {blocks} differs")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_that_is_lost_doubled_or_changed_is_found() {
        let mut good = Vec::new();
        send_blocks(&mut good, 3).expect("to memory");
        let check = |bytes: &[u8]| check_blocks(&mut &bytes[..], 3).is_ok();
        assert!(check(&good));
        let mut lost = good.clone();
        lost.remove(BLOCK_BYTES + 100);
        let mut doubled = good.clone();
        doubled.insert(BLOCK_BYTES + 100, good[BLOCK_BYTES + 100]);
        let mut changed = good.clone();
        changed[2 * BLOCK_BYTES + 5000] ^= 1;
        // A whole block too few, with the same bytes behind its number.
        let skipped = [&good[..BLOCK_BYTES], &good[2 * BLOCK_BYTES..], &good[..BLOCK_BYTES]].concat();
        for bad in [&lost, &doubled, &changed, &skipped] {
            assert!(!check(bad));
        }
    }

    #[test]
    fn clients_and_the_server_understand_each_other() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback");
        let to = listener.local_addr().expect("loopback");
        let server = std::thread::spawn(move || {
            for stream in listener.incoming().take(3) {
                stream.and_then(answer).expect("a client that keeps to the rules");
            }
        });
        let brief = Duration::from_millis(20);
        assert!(ping(to, brief).expect("ping") > 0.0);
        assert!(stream(to, brief).expect("stream") > 0.0);
        assert!(bulk(to, 40).expect("bulk") > 0.0);
        server.join().expect("the server");
    }
}
