//! `cargo xtask bench floods`: what a well-behaved client's p99 is beside 10,000 slow connections and beside a flood of
//! resets, against its quiet value in the same run.
//!
//! Quiet windows and floods take turns, and medians over the rounds are compared, because attackers, agent, client and
//! upstream share one machine. Latencies below [`FLOOR_MICROS`] are its scheduler's and fail nothing.

mod attack;
mod client;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::backend;
use lab::loopback::{LoopbackAgent, Site, service};

use attack::{Resets, Slow};
use client::Window;

/// How.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// How often everything is measured
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of each window; the default lasts until slow heads are cut, all at about the same time
    #[arg(long, default_value_t = 12)]
    seconds: u64,
    /// Slow connections: most dribble a head, every twentieth takes nothing of a large answer
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
    /// Streams opened and reset per second, over eight connections
    #[arg(long, default_value_t = 10_000)]
    resets: u32,
    /// Requests per second of each of the two well-behaved clients, one of HTTP/1.1 and one of HTTP/2
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// What the agent may hold at any time, in MiB
    #[arg(long, default_value_t = 256)]
    memory: u64,
    /// The agent's binary
    #[arg(long, default_value_os_t = crate::workspace().join("target/release/sluice"))]
    binary: PathBuf,
}

/// How many times its quiet value a p99 may be.
const RATIO_MAX: u128 = 3;
/// A p99 up to this many microseconds is no sign of a flood on a machine that everybody here shares.
const FLOOR_MICROS: u128 = 2_000;
/// A machine on which a quiet p99 is longer is too busy to say anything.
const QUIET_MAX_MICROS: u128 = 10_000;
/// The answer that slow readers ask for: more than all socket buffers on its way.
const LARGE_BYTES: usize = 16 * 1024 * 1024;
/// What it is made of.
const PIECE: &[u8] = &[b'x'; 64 * 1024];
/// How long slow connections are there before the window begins.
const SETTLED: Duration = Duration::from_secs(2);
/// The port of the listener.
const PORT: u16 = 8080;

const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: infra}
spec:
  gatewayClassName: sluice
  addresses: [{type: IPAddress, value: GATEWAY_IP}]
  listeners:
  - {name: http, port: 8080, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: default}
spec:
  parentRefs: [{name: edge, namespace: infra}]
  rules:
  - backendRefs: [{name: web, port: 80}]
";

/// What one kind of window came to over the rounds.
#[derive(Debug, Default)]
struct Kind {
    http1: Vec<u128>,
    http2: Vec<u128>,
    memory_kib: u64,
}

impl Kind {
    fn add(&mut self, window: Window, agent: &LoopbackAgent<'_>) -> Result<()> {
        self.http1.push(window.http1);
        self.http2.push(window.http2);
        self.memory_kib = self.memory_kib.max(agent.resident_kib()?);
        Ok(())
    }
}

/// Runs it; fails when a p99 or the memory is beyond its bound, or a request of the well-behaved clients unanswered.
pub fn run(options: &Options) -> Result<ExitCode> {
    ensure!(options.rounds > 0 && options.seconds > 0 && options.rate > 0, "all counts begin at 1");
    super::raise_open_files()?;
    let upstream = backend::raw(backend::listen()?, |stream| drop(serve(&stream)))?;
    let services = service("default", "web", 80, &[upstream]);
    let binary = options.binary.canonicalize().context("no such binary of the agent; --binary names one")?;
    let site = Site::with_binary(binary, &[("gateway.yaml", GATEWAY), ("services.yaml", &services)])?;
    let agent = site.start(&[])?;
    let to = site.at(PORT);
    let window = || client::measure(to, options.rate, Duration::from_secs(options.seconds));
    // Pools fill and code is paged in.
    window()?;
    let (mut quiet, mut slow, mut resets) = (Kind::default(), Kind::default(), Kind::default());
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        quiet.add(window()?, &agent)?;
        let flood = Slow::start(to, options.connections)?;
        // The large answers have filled every buffer on their way.
        thread::sleep(SETTLED);
        slow.add(window().context("beside slow connections")?, &agent)?;
        println!("  slow: {}", flood.stop()?);
        quiet.add(window()?, &agent)?;
        let flood = Resets::start(to, options.resets);
        resets.add(window().context("beside resets")?, &agent)?;
        println!("  resets: {}", flood.stop()?);
    }
    let kinds = [("quiet", &quiet), ("slow connections", &slow), ("resets", &resets)];
    let fits = kinds.map(|(name, kind)| report(name, kind, &quiet, options.memory * 1024));
    if median(&quiet.http1).max(median(&quiet.http2)) > QUIET_MAX_MICROS {
        println!("this run is invalid: the machine is busy with something else");
        return Ok(ExitCode::FAILURE);
    }
    Ok(if fits.into_iter().all(|fits| fits) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The upstream: small answers, and large ones that are never held whole.
fn serve(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    let mut stream = stream;
    while !reader.fill_buf()?.is_empty() {
        if !backend::read_head(&mut reader)?.starts_with("GET /large ") {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")?;
            continue;
        }
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {LARGE_BYTES}\r\n\r\n")?;
        for _ in 0..LARGE_BYTES / PIECE.len() {
            stream.write_all(PIECE)?;
        }
    }
    Ok(())
}

/// Prints a line; whether it is within the bounds.
fn report(name: &str, kind: &Kind, quiet: &Kind, memory_kib: u64) -> bool {
    let bound = |values: &[u128]| (RATIO_MAX * median(values)).max(FLOOR_MICROS);
    let (http1, http2) = (median(&kind.http1), median(&kind.http2));
    let fits = http1 <= bound(&quiet.http1) && http2 <= bound(&quiet.http2) && kind.memory_kib <= memory_kib;
    println!(
        "{name:>16}: p99 {http1} us in HTTP/1.1 {:?}, {http2} us in HTTP/2 {:?}, at most {} MiB held: {}",
        spread(&kind.http1),
        spread(&kind.http2),
        kind.memory_kib / 1024,
        if fits { "fits" } else { "TOO MUCH" }
    );
    fits
}

fn spread(values: &[u128]) -> (u128, u128) {
    (values.iter().min().copied().unwrap_or_default(), values.iter().max().copied().unwrap_or_default())
}

fn median(values: &[u128]) -> u128 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds() {
        let kind = |http1: u128, http2: u128, memory_kib| Kind {
            http1: vec![1, http1, u128::MAX],
            http2: vec![http2; 3],
            memory_kib,
        };
        let quiet = kind(1_000, 800, 10);
        let check =
            |other: Kind, expected| assert_eq!(report("x", &other, &quiet, 100), expected, "{other:?}");
        check(kind(3_000, 2_400, 100), true);
        check(kind(3_001, 800, 10), false);
        check(kind(1_000, 2_401, 10), false);
        check(kind(1_000, 800, 101), false);
        let quick = kind(100, 100, 10);
        assert!(report("x", &kind(2_000, 2_000, 10), &quick, 100), "the floor");
        assert!(!report("x", &kind(2_001, 100, 10), &quick, 100), "above the floor");
    }
}
