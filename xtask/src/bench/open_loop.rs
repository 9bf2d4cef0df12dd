//! Latency at a fixed rate: requests leave when they are due, whatever became of the ones before, and their time counts
//! from when they were due.
//!
//! One thread that never sleeps keeps the schedule to the microsecond. It yields between two looks, because the backend
//! shares its core.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Requests on one connection; proxies close theirs after 1,000.
const REQUESTS_PER_CONNECTION: u32 = 800;
const CONNECTIONS_MIN: u32 = 32;
/// The part of the run that does not count: connections open, pools fill, caches warm.
const WARM_UP: Duration = Duration::from_millis(500);
/// A run whose answers are this late has stalled.
const STALL: Duration = Duration::from_secs(5);

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// Where it goes.
    pub address: SocketAddr,
    /// Requests per second.
    pub rate: u32,
    /// For how long, beside the warm-up.
    pub time: Duration,
    /// The core that sends.
    pub core: usize,
}

/// Latencies in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    /// Half of the requests took no longer.
    pub p50: u128,
    /// 99 of 100 took no longer.
    pub p99: u128,
}

/// Sends from the calling thread, which stays bound to the core.
pub fn run(schedule: &Schedule) -> Result<Latency> {
    let mut cores = CpuSet::new();
    cores.set(schedule.core).context("that core")?;
    sched_setaffinity(Pid::from_raw(0), &cores).context("binding the sender to its core")?;
    let total = (schedule.time + WARM_UP).as_secs_f64() * f64::from(schedule.rate);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate times seconds")]
    let total = total as u32;
    let count = (total / REQUESTS_PER_CONNECTION + 1).max(CONNECTIONS_MIN);
    let connections: Vec<Connection> =
        (0..count).map(|_| Connection::open(schedule.address)).collect::<Result<_>>()?;
    let mut sender =
        Sender { idle: (0..connections.len()).collect(), connections, busy: Vec::new(), taken: Vec::new() };
    let begin = Instant::now();
    let due = |number: u32| begin + Duration::from_secs_f64(f64::from(number) / f64::from(schedule.rate));
    let counts_from = begin + WARM_UP;
    let mut number = 0;
    while number < total || !sender.busy.is_empty() {
        while number < total && due(number) <= Instant::now() && sender.send(due(number))? {
            number += 1;
        }
        sender.receive(counts_from)?;
        std::thread::yield_now();
    }
    percentiles(sender.taken)
}

struct Sender {
    connections: Vec<Connection>,
    /// Connections without a request, the longest idle first.
    idle: VecDeque<usize>,
    busy: Vec<(usize, Instant)>,
    taken: Vec<Duration>,
}

impl Sender {
    /// Sends the request that was due then; `false` when every connection is busy, and its time runs on.
    fn send(&mut self, due: Instant) -> Result<bool> {
        let Some(index) = self.idle.pop_front() else { return Ok(false) };
        self.connections[index].send()?;
        self.busy.push((index, due));
        Ok(true)
    }

    fn receive(&mut self, counts_from: Instant) -> Result<()> {
        let mut at = 0;
        while let Some(&(index, due)) = self.busy.get(at) {
            if self.connections[index].receive()? {
                if due >= counts_from {
                    self.taken.push(due.elapsed());
                }
                self.busy.swap_remove(at);
                self.idle.push_back(index);
            } else {
                ensure!(due.elapsed() < STALL, "no answer for {} s", STALL.as_secs());
                at += 1;
            }
        }
        Ok(())
    }
}

/// A kept connection with at most one request under way.
struct Connection {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Connection {
    fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true).context("setting no delay")?;
        stream.set_nonblocking(true).context("setting non-blocking")?;
        Ok(Self { stream, answer: Vec::with_capacity(1024) })
    }

    fn send(&mut self) -> Result<()> {
        // A request this small always fits an empty socket's buffer.
        self.stream.write_all(b"GET /100 HTTP/1.1\r\nHost: bench\r\n\r\n").context("sending a request")
    }

    /// Whether the answer is there in full.
    fn receive(&mut self) -> Result<bool> {
        let mut bytes = [0; 4096];
        match self.stream.read(&mut bytes) {
            Ok(0) => bail!("the connection was closed before its answer was there"),
            Ok(read) => self.answer.extend_from_slice(&bytes[..read]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error).context("reading an answer"),
        }
        let Some(length) = answer_length(&self.answer)? else { return Ok(false) };
        ensure!(self.answer.len() <= length, "more bytes than the answer has");
        let complete = self.answer.len() == length;
        if complete {
            self.answer.clear();
        }
        Ok(complete)
    }
}

/// The length of an answer, head and body, once its head is there.
fn answer_length(bytes: &[u8]) -> Result<Option<usize>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&bytes[..end]).context("a head that is no text")?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "answered with {:?}", head.lines().next());
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let length = length.context("an answer without a length")?;
    Ok(Some(end + 4 + length))
}

fn percentiles(mut taken: Vec<Duration>) -> Result<Latency> {
    taken.sort_unstable();
    let at = |percent: usize| taken.get((taken.len() * percent / 100).min(taken.len().saturating_sub(1)));
    let (p50, p99) = (at(50).context("no request counted")?, at(99).context("no request counted")?);
    Ok(Latency { p50: p50.as_micros(), p99: p99.as_micros() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_whole_or_not_or_wrong() {
        let check = |text: &str, expected: Option<usize>| {
            assert_eq!(answer_length(text.as_bytes()).ok(), Some(expected), "{text:?}");
        };
        check("HTTP/1.1 200 OK\r\nCONTENT-length: 3\r\n\r\nab", Some(41));
        check("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n", None);
        for bad in ["HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n", "HTTP/1.1 200 OK\r\nno: 1\r\n\r\n"] {
            assert!(answer_length(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn percentiles_of_a_ramp() {
        let taken = (1..=200).rev().map(Duration::from_micros).collect();
        assert_eq!(percentiles(taken).expect("some"), Latency { p50: 101, p99: 199 });
        assert!(percentiles(Vec::new()).is_err());
    }
}
