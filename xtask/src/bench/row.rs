//! What is measured: the rows of the table, and how one value of each is taken.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use super::contender::{Contender, Running};
use super::load::{self, Counted, Loop};
use super::track::{CLIENT_CORE, Track};
use super::{idle, open_loop, process};

/// Requests per second at which latency is taken.
const FIXED_RATE: u32 = 5000;
/// Connections that lie idle while memory is taken.
const IDLE: u32 = 5000;

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Its name, also in `--rows`.
    pub name: &'static str,
    /// What is done.
    pub work: Work,
}

/// What is done to a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// wrk on kept connections
    Rate(&'static str, u32),
    /// wrk with one request on each connection
    Connect,
    /// A fixed rate
    Latency,
    /// h2load
    Http2(&'static str),
    /// Fresh, and with idle connections
    Memory,
}

/// What a value says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Requests per second
    Rate,
    /// Seconds of the proxy's processor for 100,000 requests
    Cpu,
    /// Microseconds at a fixed rate
    P50,
    /// Microseconds at a fixed rate
    P99,
    /// MiB
    Fresh,
    /// MiB
    WithIdle,
    /// KiB
    PerIdle,
}

/// Every row, in the order of the table.
pub const ROWS: [Row; 11] = [
    // Memory comes first: it takes each proxy fresh.
    row("memory", Work::Memory),
    row("100@1", Work::Rate("/100", 1)),
    row("100@32", Work::Rate("/100", 32)),
    row("100@256", Work::Rate("/100", 256)),
    row("16k@1", Work::Rate("/16k", 1)),
    row("16k@32", Work::Rate("/16k", 32)),
    row("16k@256", Work::Rate("/16k", 256)),
    row("connect", Work::Connect),
    row("latency", Work::Latency),
    row("h2-100", Work::Http2("/100")),
    row("h2-16k", Work::Http2("/16k")),
];

const fn row(name: &'static str, work: Work) -> Row {
    Row { name, work }
}

impl Metric {
    /// The words of the table.
    pub fn label(self) -> &'static str {
        match self {
            Self::Rate => "req/s",
            Self::Cpu => "CPU s per 100k",
            Self::P50 => "p50 us at 5k/s",
            Self::P99 => "p99 us at 5k/s",
            Self::Fresh => "RSS MiB fresh",
            Self::WithIdle => "RSS MiB, 5,000 idle",
            Self::PerIdle => "KiB per idle",
        }
    }
}

impl Row {
    /// Whether a contender can serve it.
    pub fn is_served(&self, track: &Track, contender: Contender) -> bool {
        match self.work {
            Work::Http2(_) => load::speaks_h2(track, contender.h2_address()),
            // The backend's memory says nothing about a proxy's.
            Work::Memory => contender != Contender::Direct,
            _ => true,
        }
    }

    /// Takes one value of each of its metrics.
    pub fn measure(&self, track: &Track, running: &Running, seconds: u32) -> Result<Vec<(Metric, f64)>> {
        let pid = running.server.as_ref().map(super::track::Server::pid);
        let contender = running.contender;
        let closed = |path, connections, closes| Loop {
            address: contender.address(),
            path,
            connections,
            closes,
            seconds,
        };
        match self.work {
            Work::Rate(path, connections) => {
                with_cpu(pid, || load::wrk(track, &closed(path, connections, false)))
            }
            Work::Connect => with_cpu(pid, || load::wrk(track, &closed("/100", 32, true))),
            Work::Http2(path) => with_cpu(pid, || load::h2load(track, contender.h2_address(), path, seconds)),
            Work::Latency => latency(track, contender, seconds),
            Work::Memory => memory(track, contender, pid.context("direct has no process")?),
        }
    }
}

fn with_cpu(pid: Option<u32>, load: impl FnOnce() -> Result<Counted>) -> Result<Vec<(Metric, f64)>> {
    let before = pid.map(process::cpu_seconds).transpose()?;
    let counted = load()?;
    ensure!(counted.requests > 0.0, "no request was answered");
    let mut values = vec![(Metric::Rate, counted.per_second)];
    if let (Some(pid), Some(before)) = (pid, before) {
        let used = process::cpu_seconds(pid)? - before;
        values.push((Metric::Cpu, used * 100_000.0 / counted.requests));
    }
    Ok(values)
}

fn latency(track: &Track, contender: Contender, seconds: u32) -> Result<Vec<(Metric, f64)>> {
    let schedule = open_loop::Schedule {
        address: contender.address(),
        rate: FIXED_RATE,
        time: Duration::from_secs(seconds.into()),
        core: CLIENT_CORE,
    };
    let latency = track.client.enter(|| open_loop::run(&schedule))??;
    let micros =
        |value: u128| u32::try_from(value).map(f64::from).map_err(|_| anyhow!("a latency of {value} us"));
    Ok(vec![(Metric::P50, micros(latency.p50)?), (Metric::P99, micros(latency.p99)?)])
}

/// Of a proxy that was just started.
fn memory(track: &Track, contender: Contender, pid: u32) -> Result<Vec<(Metric, f64)>> {
    let fresh = process::rss_kib(pid)?;
    let idle = track.client.enter(|| idle::open(contender.address(), IDLE as usize))??;
    let with_idle = process::rss_kib(pid)?;
    drop(idle);
    let each = (with_idle - fresh) / f64::from(IDLE);
    Ok(vec![(Metric::Fresh, fresh / 1024.0), (Metric::WithIdle, with_idle / 1024.0), (Metric::PerIdle, each)])
}
