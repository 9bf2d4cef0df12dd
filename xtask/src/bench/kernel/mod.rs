//! `cargo xtask bench kernel`: what the kernel programs cost and gain, each beside what it is held against.
//!
//! A row is a pair of measurements that take turns, so that what disturbs the machine disturbs both; only their ratio carries
//! over to another machine. To add one, implement [`Measure`] in a file of its own and put a line into [`ROWS`].

mod ground;
pub mod peer;
mod record;
mod sockets;
mod xdp;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use lab::is_root;

use super::figure::Spread;

/// How.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// How often each pair is measured
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of each measurement of the socket rows
    #[arg(long, default_value_t = 2)]
    seconds: u32,
    /// Only these rows, named as in the table
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Transfers of 10 GiB each way, and no other rows
    #[arg(long)]
    bulk: bool,
    /// The agent's binary
    #[arg(long, default_value_os_t = crate::workspace().join("target/release/sluice"))]
    binary: PathBuf,
    /// Where the record goes; without it, a complete run writes docs/bench and a partial one writes none
    #[arg(long)]
    out: Option<PathBuf>,
}

/// What a row is made with.
#[derive(Debug)]
struct Setup {
    binary: PathBuf,
    seconds: u32,
}

/// A pair of measurements; what it needs is there from its making to its end.
trait Measure {
    /// What the subject is held against.
    fn baseline(&mut self) -> Result<f64>;
    /// What is of interest.
    fn subject(&mut self) -> Result<f64>;
}

/// What a ratio of subject to baseline shall be.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Goal {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
    /// It is shown and not judged.
    Shown,
}

impl Goal {
    fn met(self, ratio: f64) -> bool {
        match self {
            Self::AtMost(most) => ratio <= most,
            Self::AtLeast(least) => ratio >= least,
            Self::Shown => true,
        }
    }

    fn describe(self, ratio: f64) -> String {
        let met = if self.met(ratio) { "met" } else { "MISSED" };
        match self {
            Self::AtMost(most) => format!("<= {most:.2} {met}"),
            Self::AtLeast(least) => format!(">= {least:.2} {met}"),
            Self::Shown => "-".to_owned(),
        }
    }
}

/// A row of the table.
struct Row {
    name: &'static str,
    unit: &'static str,
    /// What is compared: the subject, and what it is held against.
    compared: (&'static str, &'static str),
    goal: Goal,
    make: fn(&Setup) -> Result<Box<dyn Measure>>,
}

const GUARD_ROWS: &[Row] = &[
    Row {
        name: "guard-v4",
        unit: "ns/packet",
        compared: ("guard with 100,000 denied", "bare XDP_DROP"),
        goal: Goal::AtMost(2.5),
        make: |_| xdp::veth_v4(),
    },
    Row {
        name: "guard-v6",
        unit: "ns/packet",
        compared: ("guard with 100,000 denied", "bare XDP_DROP"),
        goal: Goal::AtMost(2.5),
        make: |_| xdp::veth_v6(),
    },
    Row {
        name: "guard-alone",
        unit: "ns/packet",
        compared: ("guard without a driver", "bare XDP_DROP, likewise"),
        goal: Goal::Shown,
        make: |_| xdp::alone(),
    },
];

/// Measures and prints; fails where a goal is missed.
pub fn run(options: &Options) -> Result<ExitCode> {
    ensure!(is_root(), "the bench loads kernel programs: run it as root");
    ensure!(options.rounds > 0 && options.seconds > 0, "--rounds and --seconds begin at 1");
    let rows = chosen(options)?;
    let setup = Setup { binary: options.binary.clone(), seconds: options.seconds };
    println!(
        "{:<16} {:<10} {:>10} {:>10}  {:<22} goal",
        "row", "unit", "subject", "baseline", "ratio [low-high]"
    );
    let mut taken = Vec::new();
    for row in rows {
        let figures = measure(row, &setup, options.rounds).with_context(|| format!("row {}", row.name))?;
        let (subject, baseline, ratio) = (figures.subject.median, figures.baseline.median, figures.ratio);
        let range = format!("{:.2} [{:.2}-{:.2}]", ratio.median, ratio.low, ratio.high);
        println!(
            "{:<16} {:<10} {subject:>10.1} {baseline:>10.1}  {range:<22} {}   {} : {}",
            row.name,
            row.unit,
            row.goal.describe(ratio.median),
            row.compared.0,
            row.compared.1
        );
        taken.push((row, figures));
    }
    let complete = options.rows.is_empty() && !options.bulk;
    let default = complete.then(|| crate::workspace().join("docs/bench"));
    if let Some(directory) = options.out.clone().or(default) {
        record::write(&directory, options, &taken)?;
    }
    let met = taken.iter().all(|(row, figures)| row.goal.met(figures.ratio.median));
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The rows that were asked for.
fn chosen(options: &Options) -> Result<Vec<&'static Row>> {
    let known: Vec<&Row> = if options.bulk {
        sockets::BULK_ROWS.iter().collect()
    } else {
        GUARD_ROWS.iter().chain(sockets::ROWS).collect()
    };
    if let Some(unknown) = options.rows.iter().find(|name| known.iter().all(|row| row.name != **name)) {
        let names: Vec<&str> = known.iter().map(|row| row.name).collect();
        bail!("no row '{unknown}'; there are {}", names.join(", "));
    }
    let wanted = |row: &&Row| options.rows.is_empty() || options.rows.iter().any(|name| name == row.name);
    Ok(known.into_iter().filter(wanted).collect())
}

struct Figures {
    subject: Spread,
    baseline: Spread,
    /// Of subject to baseline in the same round.
    ratio: Spread,
}

fn measure(row: &Row, setup: &Setup, rounds: u32) -> Result<Figures> {
    let mut pair = (row.make)(setup)?;
    let (mut subjects, mut baselines) = (Vec::new(), Vec::new());
    // The first round only warms up.
    for round in 0..=rounds {
        let (baseline, subject) = (pair.baseline()?, pair.subject()?);
        if round > 0 {
            baselines.push(baseline);
            subjects.push(subject);
        }
    }
    let ratios = subjects.iter().zip(&baselines).map(|(subject, baseline)| subject / baseline).collect();
    Ok(Figures {
        subject: Spread::of(subjects).context("no round")?,
        baseline: Spread::of(baselines).context("no round")?,
        ratio: Spread::of(ratios).context("no round")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals() {
        for (goal, ratio, met, text) in [
            (Goal::AtMost(2.5), 2.5, true, "<= 2.50 met"),
            (Goal::AtMost(2.5), 2.51, false, "<= 2.50 MISSED"),
            (Goal::AtLeast(1.4), 1.4, true, ">= 1.40 met"),
            (Goal::AtLeast(1.4), 1.39, false, ">= 1.40 MISSED"),
            (Goal::Shown, 99.0, true, "-"),
        ] {
            assert_eq!((goal.met(ratio), goal.describe(ratio).as_str()), (met, text));
        }
    }
}
