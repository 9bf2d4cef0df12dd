//! A source that floods a Gateway beyond its limit: how soon the guard at the edge drops it, what becomes of another client's p99
//! meanwhile, and what its packets cost the node when they reach the agent and when they are dropped.
//!
//! The node's uplink is received by a thread of its own (NAPI's), on the agent's core, so that what the kernel does for a packet is
//! counted as the node's: else it would be done, and counted, where the packet was sent.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::Lab;
use lab::http::Connection;

use super::super::open_loop::{self, Schedule};
use super::super::track::CLIENT_CORE;
use super::edge::{CUT, Edge, OTHER, Packets, REACHED, Source};
use crate::bench::cluster::row::Row;

/// The refusals after which the source is cut off.
pub const AFTER: u32 = 100;
/// How long whoever may be cut off waits for an answer.
const BRIEF: Duration = Duration::from_millis(500);
/// A flood that is not cut off by then never is.
const FLOOD_MAX: Duration = Duration::from_secs(20);
/// Requests of another client in a second.
const CALM: u32 = 1_000;
/// Requests of the flood in a second, while they reach the agent.
const REQUESTS: u32 = 10_000;
/// Pairs of a quiet time and one beside the flood, in each round.
const PAIRS: u32 = 2;

/// From the verdict to the first packet dropped, in milliseconds.
const CUT_MAX: f64 = 1_000.0;
/// The other client's p99 by its quiet value.
const BESIDE_MAX: f64 = 1.2;

#[derive(Debug, Default)]
struct Measured {
    /// Milliseconds from the request that brings the verdict to the first packet dropped.
    cut: Vec<f64>,
    /// p99 of another client, in milliseconds, and of each pair its ratio.
    quiet: Vec<f64>,
    beside: Vec<f64>,
    ratio: Vec<f64>,
    /// Milliseconds of the node's processor for 1,000 packets, and of each round its ratio.
    reaching: Vec<f64>,
    dropped: Vec<f64>,
    saved: Vec<f64>,
}

/// Runs it.
pub fn run(binary: &Path, rounds: u32, seconds: u32) -> Result<Vec<Row>> {
    let edge = Edge::up(binary)?;
    let mut measured = Measured::default();
    for round in 0..rounds {
        measured.take(&edge, round, Duration::from_secs(seconds.into())).context("the flood")?;
        println!("round {} of {rounds}", round + 1);
    }
    measured.rows()
}

impl Measured {
    fn take(&mut self, edge: &Edge, round: u32, time: Duration) -> Result<()> {
        // Whoever was cut off in an earlier round still is.
        let source = edge.source(round)?;
        let to = edge.address(CUT.port)?;
        self.cut.push(milliseconds(edge.lab.underlay().enter(|| flood(to))??));
        ensure!(edge.dropped()? > 0.0, "the guard has dropped nothing");
        for pair in 0..PAIRS {
            let turn = |beside: bool| -> Result<f64> {
                let flood = beside.then(|| source.start()).transpose()?;
                let taken = calm(&edge.lab, to, time / PAIRS);
                flood.map_or(Ok(0), Packets::stop)?;
                taken
            };
            let first = (round + pair) % 2 == 1;
            let one = turn(first)?;
            let other = turn(!first)?;
            let (quiet, beside) = if first { (other, one) } else { (one, other) };
            self.quiet.push(quiet);
            self.beside.push(beside);
            self.ratio.push(beside / quiet);
        }
        let dropped = dropped(edge, &source, time / 2)?;
        let reaching = reaching(edge, time)?;
        self.dropped.push(dropped);
        self.reaching.push(reaching);
        self.saved.push(dropped / reaching);
        Ok(())
    }

    fn rows(self) -> Result<Vec<Row>> {
        Ok(vec![
            Row::new("flood: verdict to the first packet dropped", "ms", self.cut)?.at_most(CUT_MAX),
            Row::new("flood: another client's p99, quiet", "ms", self.quiet)?,
            Row::new("flood: its p99 beside the flood", "ms", self.beside)?,
            Row::new("flood: that by its quiet value", "", self.ratio)?.at_most_typically(BESIDE_MAX),
            Row::new("flood: CPU of 1,000 packets that reach the agent", "ms", self.reaching)?,
            Row::new("flood: CPU of 1,000 packets that XDP drops", "ms", self.dropped)?,
            Row::new("flood: that by those that reach the agent", "", self.saved)?.at_most_typically(1.0),
        ])
    }
}

/// Asks until nobody answers: from the request whose refusal is the verdict, which is no later than that, to the one that is not
/// answered, which is the first packet dropped.
fn flood(to: std::net::SocketAddr) -> Result<Duration> {
    let mut connection = Connection::open(to, BRIEF).context("the flood's connection")?;
    let (begun, mut refused, mut verdict) = (Instant::now(), 0, None);
    while begun.elapsed() < FLOOD_MAX {
        let sent = Instant::now();
        match connection.get("bench", "/", &[]) {
            Ok(answer) => refused += u32::from(answer.status == 429),
            Err(_) if refused >= AFTER => return verdict.context("no verdict").map(|at| sent - at),
            Err(error) => return Err(error).with_context(|| format!("after {refused} refusals")),
        }
        if refused == AFTER {
            verdict.get_or_insert(sent);
        }
    }
    anyhow::bail!("it is never cut off: {refused} refusals")
}

/// The p99 of a client that keeps to the rules, in milliseconds.
fn calm(lab: &Lab, to: std::net::SocketAddr, time: Duration) -> Result<f64> {
    let schedule = Schedule { address: to, rate: CALM, time, core: CLIENT_CORE };
    let latency = lab.node(OTHER)?.in_netns(|| open_loop::run(&schedule))?.context("another client")?;
    Ok(milliseconds(Duration::from_micros(u64::try_from(latency.p99).context("a time")?)))
}

/// What 1,000 packets cost that the guard drops.
fn dropped(edge: &Edge, source: &Source, time: Duration) -> Result<f64> {
    let (before, seen) = (edge.cpu()?, edge.dropped()?);
    let flood = source.start()?;
    // The flood is what is measured here.
    std::thread::sleep(time);
    let sent = flood.stop()?;
    let cost = edge.cpu()?.saturating_sub(before);
    let packets = edge.dropped()? - seen;
    ensure!(packets > 0.9 * f64::from(sent), "of {sent} packets the guard has dropped {packets}");
    Ok(milliseconds(cost) * 1000.0 / packets)
}

/// What 1,000 packets cost of requests that the agent refuses.
fn reaching(edge: &Edge, time: Duration) -> Result<f64> {
    edge.as_world()?;
    let to = edge.address(REACHED.port)?;
    let schedule = Schedule { address: to, rate: REQUESTS, time, core: CLIENT_CORE };
    let (before, seen) = (edge.cpu()?, edge.packets()?);
    let sent = edge.lab.underlay().enter(|| open_loop::spread(&schedule, &[to]))??;
    let (cost, packets) = (edge.cpu()?.saturating_sub(before), edge.packets()? - seen);
    ensure!(sent.refused > sent.admitted && packets > 0.0, "{sent:?}");
    Ok(milliseconds(cost) * 1000.0 / packets)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
