//! `cargo xtask bench limit`: what a limit on every request costs, each proxy held against itself without one, in one run: the
//! agent's algorithms beside HAProxy's stick-tables, nginx's limit_req and Envoy's local rate limit. No request is ever refused.

mod variant;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use super::contender::{Binaries, start_backend};
use super::figure::Spread;
use super::load::{self, Loop};
use super::process;
use super::track::Track;
use variant::{Limited, VARIANTS};

/// Connections of the load.
const CONNECTIONS: u32 = 32;

/// How.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// How often everything is measured; all take turns within a round
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// The agent's binary
    #[arg(long, default_value_os_t = crate::workspace().join("target/release/sluice"))]
    binary: PathBuf,
}

/// What one was measured at, by round.
#[derive(Debug, Default)]
struct Measured {
    per_second: Vec<f64>,
    /// Processor seconds for 100,000 requests.
    cpu: Vec<f64>,
}

/// Runs it and prints the table; fails where a proxy failed.
pub fn run(options: &Options) -> Result<ExitCode> {
    ensure!(options.rounds > 0 && options.seconds > 0, "--rounds and --seconds begin at 1");
    super::prepare()?;
    let binaries = Binaries { sluice: options.binary.clone(), before: None };
    let track = Track::lay()?;
    let _backend = start_backend(&track)?;
    let mut running = Vec::new();
    for variant in VARIANTS {
        match variant.contender.program(&binaries) {
            Ok(program) => running.push((variant, variant.start(&track, &program)?, Measured::default())),
            Err(hint) => println!("skipped: {} {}: {hint}", variant.contender.name(), variant.name),
        }
    }
    ensure!(!running.is_empty(), "nobody to compare");
    for round in 0..options.rounds as usize {
        let count = running.len();
        for place in 0..count {
            let (variant, server, measured) = &mut running[(place + round) % count];
            server.check()?;
            let before = process::cpu_seconds(server.pid())?;
            let (address, seconds) = (variant.address(), options.seconds);
            let load = Loop { address, path: "/100", connections: CONNECTIONS, closes: false, seconds };
            let counted = load::wrk(&track, &load).with_context(|| format!("{variant:?}"))?;
            let used = process::cpu_seconds(server.pid())? - before;
            measured.per_second.push(counted.per_second);
            measured.cpu.push(used * 100_000.0 / counted.requests.max(1.0));
        }
        println!("round {} of {}", round + 1, options.rounds);
    }
    println!(
        "\n{:<8} {:<10} {:>10} {:>9} {:>22}",
        "proxy", "limit", "requests/s", "cpu s", "rate, by that without"
    );
    for (variant, _, measured) in &running {
        let own = running.iter().find(|(other, ..)| other.contender == variant.contender && other.is_off());
        println!("{}", line(variant, measured, own.map(|(_, _, off)| off)));
    }
    println!(
        "cpu s: processor seconds for 100,000 requests; ratios are of values of the same round, [lowest-highest]"
    );
    Ok(ExitCode::SUCCESS)
}

/// A row of the table.
fn line(variant: &Limited, measured: &Measured, off: Option<&Measured>) -> String {
    let middle = |values: &[f64]| Spread::of(values.to_vec()).map_or(f64::NAN, |spread| spread.median);
    let ratios = off.map(|off| {
        let pairs = measured.per_second.iter().zip(&off.per_second);
        pairs.map(|(with, without)| with / without).collect::<Vec<f64>>()
    });
    let ratio = ratios.and_then(Spread::of).map_or_else(String::new, |spread| {
        format!("{:.3} [{:.3}-{:.3}]", spread.median, spread.low, spread.high)
    });
    let (rate, cpu) = (middle(&measured.per_second), middle(&measured.cpu));
    format!("{:<8} {:<10} {rate:>10.0} {cpu:>9.3} {ratio:>22}", variant.contender.name(), variant.name)
}
