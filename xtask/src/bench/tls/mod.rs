//! `cargo xtask bench tls`: TLS that ends at a gateway, beside nginx, HAProxy and Envoy in one run: requests per second on
//! kept connections, connections per second with full and with resumed handshakes, processor time, memory of idle ones.
//!
//! The clients share one core: where a proxy is faster than they are, its processor time tells.

mod client;
mod peer;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use super::contender::{Binaries, Contender, Running, start_backend};
use super::figure::Figure;
use super::load::{self, Counted, Loop};
use super::report::Report;
use super::row::Metric;
use super::track::{CLIENT_CORE, PROXY_CORE, Server, Track};
use super::{facts, process};

/// Connections that lie idle while memory is taken.
const IDLE: u32 = 5000;
/// Connections of the loads that keep them.
const KEPT: u32 = 32;

/// How.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// How often everything is measured; the contenders take turns within a round
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Only these contenders
    #[arg(long, value_delimiter = ',', value_enum)]
    only: Vec<Contender>,
    /// The agent's binary
    #[arg(long, default_value_os_t = crate::workspace().join("target/release/sluice"))]
    binary: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Kept(&'static str),
    Connect { resumes: bool },
    Memory,
}

/// Memory comes first: it takes each proxy fresh.
const ROWS: [(&str, Work); 5] = [
    ("memory", Work::Memory),
    ("100@32", Work::Kept("/100")),
    ("16k@32", Work::Kept("/16k")),
    ("full", Work::Connect { resumes: false }),
    ("resumed", Work::Connect { resumes: true }),
];

/// Runs it and prints the table; fails where a contender failed.
pub fn run(options: &Options) -> Result<ExitCode> {
    ensure!(options.rounds > 0 && options.seconds > 0, "--rounds and --seconds begin at 1");
    super::prepare()?;
    let binaries = Binaries { sluice: options.binary.clone(), before: None };
    let track = Track::lay()?;
    let _backend = start_backend(&track)?;
    let pem = peer::certificate(&track)?;
    let (mut contenders, mut remarks) = (Vec::new(), Vec::new());
    for contender in peer::ALL.into_iter().filter(|one| options.only.is_empty() || options.only.contains(one))
    {
        match contender.program(&binaries) {
            Ok(_) => contenders.push(contender),
            Err(hint) => remarks.push(format!("skipped: {}: {hint}", contender.name())),
        }
    }
    ensure!(!contenders.is_empty(), "nobody to compare: {}", remarks.join("; "));
    let facts = facts::gather(&contenders, &binaries);
    let mut bench = Bench { options, track: &track, pem, figures: Vec::new(), remarks };
    for (name, work) in ROWS {
        bench.row(name, work, (&contenders, &binaries))?;
    }
    let signatures = client::signatures_per_second(&bench.pem, PROXY_CORE)?;
    let Bench { figures, remarks, .. } = bench;
    let report = Report { contenders, figures, remarks, facts };
    println!("\n{}", report.table());
    for (name, value) in &report.facts {
        println!("{name}: {value}");
    }
    println!("ring signs {signatures:.0} times a second with the certificate's key on one core");
    println!(
        "rates of `full` and `resumed` are those of connections with one request each; n: ratio to nginx"
    );
    for remark in &report.remarks {
        println!("{remark}");
    }
    let failed = report.remarks.iter().any(|remark| remark.starts_with("failed"));
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

struct Bench<'a> {
    options: &'a Options,
    track: &'a Track,
    /// The certificate and its key.
    pem: PathBuf,
    figures: Vec<Figure>,
    remarks: Vec<String>,
}

impl Bench<'_> {
    /// Measures a row: of proxies that all run, or that are started for each value.
    fn row(&mut self, name: &'static str, work: Work, who: (&[Contender], &Binaries)) -> Result<()> {
        let (contenders, binaries) = who;
        let mut running = Vec::new();
        if work != Work::Memory {
            for contender in contenders {
                running.push(peer::start(*contender, self.track, binaries)?);
            }
        }
        for round in 0..self.options.rounds {
            for place in 0..contenders.len() {
                let place = (place + round as usize) % contenders.len();
                if let Some(running) = running.get(place) {
                    self.take(name, work, running, round);
                } else {
                    let fresh = peer::start(contenders[place], self.track, binaries)?;
                    self.take(name, work, &fresh, round);
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, row: &'static str, work: Work, running: &Running, round: u32) {
        let name = running.contender.name();
        match self.measure(work, running) {
            Ok(values) => {
                for (metric, value) in values {
                    println!("round {} {row:<8} {name:<8} {value:.2} {}", round + 1, metric.label());
                    let rounds = vec![None; self.options.rounds as usize];
                    let figure = self.figure(row, metric);
                    figure.values.entry(running.contender).or_insert(rounds)[round as usize] = Some(value);
                }
            }
            Err(error) => {
                self.remarks.push(format!("failed: {name} at {row} in round {}: {error:#}", round + 1));
            }
        }
    }

    fn figure(&mut self, row: &'static str, metric: Metric) -> &mut Figure {
        let known = self.figures.iter().position(|figure| figure.row == row && figure.metric == metric);
        let at = known.unwrap_or_else(|| {
            self.figures.push(Figure { row, metric, values: BTreeMap::new() });
            self.figures.len() - 1
        });
        &mut self.figures[at]
    }

    fn measure(&self, work: Work, running: &Running) -> Result<Vec<(Metric, f64)>> {
        let pid = running.server.as_ref().map(Server::pid).context("a contender without a process")?;
        let address = peer::address(running.contender);
        let seconds = self.options.seconds;
        match work {
            Work::Kept(path) => {
                let load = Loop { address, path, connections: KEPT, closes: false, seconds };
                with_cpu(pid, || load::wrk_tls(self.track, &load))
            }
            Work::Connect { resumes } => {
                let load = || client::run(address, &self.pem, resumes, (seconds, CLIENT_CORE));
                with_cpu(pid, || self.track.client.enter(load)?)
            }
            Work::Memory => {
                let fresh = process::rss_kib(pid)?;
                let open = || client::idle(address, &self.pem, IDLE as usize);
                let idle = self.track.client.enter(open)??;
                let with_idle = process::rss_kib(pid)?;
                drop(idle);
                Ok(vec![
                    (Metric::Fresh, fresh / 1024.0),
                    (Metric::WithIdle, with_idle / 1024.0),
                    (Metric::PerIdle, (with_idle - fresh) / f64::from(IDLE)),
                ])
            }
        }
    }
}

fn with_cpu(pid: u32, load: impl FnOnce() -> Result<Counted>) -> Result<Vec<(Metric, f64)>> {
    let before = process::cpu_seconds(pid)?;
    let counted = load()?;
    ensure!(counted.requests > 0.0, "no request was answered");
    let used = process::cpu_seconds(pid)? - before;
    Ok(vec![(Metric::Rate, counted.per_second), (Metric::Cpu, used * 100_000.0 / counted.requests)])
}
