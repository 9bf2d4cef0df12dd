//! `cargo xtask bench kernel`: what the kernel programs cost and gain, each beside what it is held against.
//!
//! A row is a pair of measurements that take turns, so that what disturbs the machine disturbs both; only their ratio carries
//! over to another machine. To add one, implement [`Measure`] in a file of its own and put a line into [`ROWS`].

mod xdp;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use lab::is_root;

use super::figure::Spread;

/// How.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// How often each pair is measured
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Only these rows, named as in the table
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
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
    /// It is shown and not judged.
    Shown,
}

impl Goal {
    fn met(self, ratio: f64) -> bool {
        match self {
            Self::AtMost(most) => ratio <= most,
            Self::Shown => true,
        }
    }

    fn describe(self, ratio: f64) -> String {
        let met = if self.met(ratio) { "met" } else { "MISSED" };
        match self {
            Self::AtMost(most) => format!("<= {most:.2} {met}"),
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
    make: fn() -> Result<Box<dyn Measure>>,
}

const ROWS: &[Row] = &[
    Row {
        name: "guard-v4",
        unit: "ns/packet",
        compared: ("guard with 100,000 denied", "bare XDP_DROP"),
        goal: Goal::AtMost(2.5),
        make: xdp::veth_v4,
    },
    Row {
        name: "guard-v6",
        unit: "ns/packet",
        compared: ("guard with 100,000 denied", "bare XDP_DROP"),
        goal: Goal::AtMost(2.5),
        make: xdp::veth_v6,
    },
    Row {
        name: "guard-alone",
        unit: "ns/packet",
        compared: ("guard without a driver", "bare XDP_DROP, likewise"),
        goal: Goal::Shown,
        make: xdp::alone,
    },
];

/// Measures and prints; fails where a goal is missed.
pub fn run(options: &Options) -> Result<ExitCode> {
    ensure!(is_root(), "the bench loads kernel programs: run it as root");
    ensure!(options.rounds > 0, "--rounds begins at 1");
    let known = |name: &String| ROWS.iter().any(|row| row.name == name);
    if let Some(unknown) = options.rows.iter().find(|name| !known(name)) {
        anyhow::bail!("there is no row {unknown}");
    }
    println!(
        "{:<12} {:<10} {:>10} {:>10}  {:<22} goal",
        "row", "unit", "subject", "baseline", "ratio [low-high]"
    );
    let mut met = true;
    for row in ROWS.iter().filter(|row| options.rows.is_empty() || options.rows.iter().any(|n| n == row.name))
    {
        let figures = measure(row, options.rounds).with_context(|| format!("row {}", row.name))?;
        let (subject, baseline, ratio) = (figures.subject.median, figures.baseline.median, figures.ratio);
        let range = format!("{:.2} [{:.2}-{:.2}]", ratio.median, ratio.low, ratio.high);
        println!(
            "{:<12} {:<10} {subject:>10.1} {baseline:>10.1}  {range:<22} {}   {} : {}",
            row.name,
            row.unit,
            row.goal.describe(ratio.median),
            row.compared.0,
            row.compared.1
        );
        met &= row.goal.met(ratio.median);
    }
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Figures {
    subject: Spread,
    baseline: Spread,
    /// Of subject to baseline in the same round.
    ratio: Spread,
}

fn measure(row: &Row, rounds: u32) -> Result<Figures> {
    let mut pair = (row.make)()?;
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
            (Goal::Shown, 99.0, true, "-"),
        ] {
            assert_eq!((goal.met(ratio), goal.describe(ratio).as_str()), (met, text));
        }
    }
}
