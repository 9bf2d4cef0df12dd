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

/// The statuses that answers may have.
const ADMITTED: u16 = 200;
const REFUSED: u16 = 429;

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

/// What became of requests that may be refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Answered with 200.
    pub admitted: u32,
    /// Answered with 429.
    pub refused: u32,
    /// From the first request to the last answer.
    pub took: Duration,
}

/// Sends from the calling thread, which stays bound to the core. All requests have to be let through.
pub fn run(schedule: &Schedule) -> Result<Latency> {
    let total = requests(schedule, schedule.time + WARM_UP);
    let mut sender = Sender::open(schedule, &[schedule.address], total)?;
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
    ensure!(sender.refused == 0, "{} requests were refused", sender.refused);
    percentiles(sender.taken)
}

/// Likewise to several addresses in turn, for no longer than the schedule says: what could not be sent by then is not sent.
/// Requests may be refused.
pub fn spread(schedule: &Schedule, addresses: &[SocketAddr]) -> Result<Sent> {
    let total = requests(schedule, schedule.time);
    let mut sender = Sender::open(schedule, addresses, total)?;
    let begin = Instant::now();
    let due = |number: u32| begin + Duration::from_secs_f64(f64::from(number) / f64::from(schedule.rate));
    let mut number = 0;
    loop {
        let sends = number < total && begin.elapsed() < schedule.time;
        if !sends && sender.busy.is_empty() {
            break;
        }
        while sends && number < total && due(number) <= Instant::now() && sender.send(Instant::now())? {
            number += 1;
        }
        sender.receive(begin)?;
        std::thread::yield_now();
    }
    let admitted = u32::try_from(sender.taken.len()).context("a count")? - sender.refused;
    Ok(Sent { admitted, refused: sender.refused, took: begin.elapsed() })
}

fn requests(schedule: &Schedule, time: Duration) -> u32 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate times seconds")]
    let total = (time.as_secs_f64() * f64::from(schedule.rate)) as u32;
    total
}

struct Sender {
    connections: Vec<Connection>,
    /// Connections without a request, the longest idle first.
    idle: VecDeque<usize>,
    busy: Vec<(usize, Instant)>,
    taken: Vec<Duration>,
    refused: u32,
}

impl Sender {
    /// Opens the connections for so many requests, to each address as many, and binds the calling thread.
    fn open(schedule: &Schedule, addresses: &[SocketAddr], total: u32) -> Result<Self> {
        let mut cores = CpuSet::new();
        cores.set(schedule.core).context("that core")?;
        sched_setaffinity(Pid::from_raw(0), &cores).context("binding the sender to its core")?;
        let count = (total / REQUESTS_PER_CONNECTION + 1).max(CONNECTIONS_MIN) as usize;
        let addresses = addresses.iter().cycle().take(count.next_multiple_of(addresses.len().max(1)));
        let connections: Vec<_> = addresses.map(|to| Connection::open(*to)).collect::<Result<_>>()?;
        let idle = (0..connections.len()).collect();
        Ok(Self { connections, idle, busy: Vec::new(), taken: Vec::new(), refused: 0 })
    }

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
            if let Some(status) = self.connections[index].receive()? {
                self.refused += u32::from(status == REFUSED);
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

    /// The status of the answer, once that is there in full.
    fn receive(&mut self) -> Result<Option<u16>> {
        let mut bytes = [0; 4096];
        match self.stream.read(&mut bytes) {
            Ok(0) => bail!("the connection was closed before its answer was there"),
            Ok(read) => self.answer.extend_from_slice(&bytes[..read]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error).context("reading an answer"),
        }
        let Some((status, length)) = answer_head(&self.answer)? else { return Ok(None) };
        ensure!(self.answer.len() <= length, "more bytes than the answer has");
        let complete = self.answer.len() == length;
        if complete {
            self.answer.clear();
        }
        Ok(complete.then_some(status))
    }
}

/// The status of an answer and its length, head and body, once its head is there.
fn answer_head(bytes: &[u8]) -> Result<Option<(u16, usize)>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&bytes[..end]).context("a head that is no text")?;
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.split(' ').next()?.parse().ok());
    let status = status.filter(|status| [ADMITTED, REFUSED].contains(status));
    let status = status.with_context(|| format!("answered with {:?}", head.lines().next()))?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let length = length.context("an answer without a length")?;
    Ok(Some((status, end + 4 + length)))
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
        let check = |text: &str, expected: Option<(u16, usize)>| {
            assert_eq!(answer_head(text.as_bytes()).ok(), Some(expected), "{text:?}");
        };
        check("HTTP/1.1 200 OK\r\nCONTENT-length: 3\r\n\r\nab", Some((200, 41)));
        check("HTTP/1.1 429 No\r\ncontent-length: 3\r\n\r\nabc", Some((429, 41)));
        check("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n", None);
        for bad in ["HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n", "HTTP/1.1 200 OK\r\nno: 1\r\n\r\n"] {
            assert!(answer_head(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn percentiles_of_a_ramp() {
        let taken = (1..=200).rev().map(Duration::from_micros).collect();
        assert_eq!(percentiles(taken).expect("some"), Latency { p50: 101, p99: 199 });
        assert!(percentiles(Vec::new()).is_err());
    }
}
