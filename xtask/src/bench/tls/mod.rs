//! `cargo xtask bench tls`: TLS that ends at a gateway, beside nginx, HAProxy and Envoy in one run: requests per second on
//! kept connections, connections per second with full and with resumed handshakes, processor time, memory of idle ones. Then
//! mutual TLS between two nodes, by two agents and by two nginx.
//!
//! The clients share one core: where a proxy is faster than they are, its processor time tells.

mod client;
mod goal;
mod material;
mod pair;
mod peer;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::contender::{Binaries, Contender, Running, start_backend};
use super::figure::Figure;
use super::load::{self, Counted, Loop};
use super::report::Report;
use super::row::Metric;
use super::track::{CLIENT_CORE, PROXY_CORE, Server, Track};
use super::{facts, process};
use client::Manner;
use material::Material;
use pair::{Load, Pair, Port};

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
    /// Only these rows, named as in the table
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// The agent's binary
    #[arg(long, default_value_os_t = crate::workspace().join("target/release/sluice"))]
    binary: PathBuf,
    /// Where the record goes; without it, a complete run writes docs/bench and a partial one writes none
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Kept(&'static str),
    Connect(Manner),
    Memory,
    Pair(&'static str, Port),
}

/// Memory comes first: it takes each proxy fresh.
const ROWS: [(&str, Work); 9] = [
    ("memory", Work::Memory),
    ("100@32", Work::Kept("/100")),
    ("16k@32", Work::Kept("/16k")),
    ("full", Work::Connect(Manner { resumes: false, mutual: false })),
    ("resumed", Work::Connect(Manner { resumes: true, mutual: false })),
    ("mutual", Work::Connect(Manner { resumes: false, mutual: true })),
    ("pair-100@32", Work::Pair("/100", Port::Opaque)),
    ("pair-16k@32", Work::Pair("/16k", Port::Opaque)),
    ("pair-http@32", Work::Pair("/100", Port::Http)),
];

impl Work {
    fn is_done_by(self, contender: Contender) -> bool {
        match self {
            Self::Memory | Self::Connect(Manner { mutual: true, .. }) => peer::MUTUAL.contains(&contender),
            Self::Pair(..) => pair::ALL.contains(&contender),
            Self::Kept(_) | Self::Connect(_) => true,
        }
    }
}

/// Runs it and prints the table; fails where a contender failed or a goal is missed.
pub fn run(options: &Options) -> Result<ExitCode> {
    ensure!(options.rounds > 0 && options.seconds > 0, "--rounds and --seconds begin at 1");
    if let Some(unknown) = options.rows.iter().find(|row| ROWS.iter().all(|(name, _)| name != row)) {
        bail!("no row '{unknown}'; there are {}", ROWS.map(|(name, _)| name).join(", "));
    }
    super::prepare()?;
    let binaries = Binaries { sluice: options.binary.clone(), before: None };
    let track = Track::lay()?;
    let _backend = start_backend(&track)?;
    let material = Material::make(track.directory())?;
    let (mut contenders, mut remarks) = (Vec::new(), Vec::new());
    for contender in peer::ALL.into_iter().filter(|one| options.only.is_empty() || options.only.contains(one))
    {
        match contender.program(&binaries) {
            Ok(_) => contenders.push(contender),
            Err(hint) => remarks.push(format!("skipped: {}: {hint}", contender.name())),
        }
    }
    ensure!(!contenders.is_empty(), "nobody to compare: {}", remarks.join("; "));
    let mut facts = facts::gather(&contenders, &binaries);
    let mut bench = Bench { options, track: &track, material: &material, figures: Vec::new(), remarks };
    for (name, work) in ROWS {
        if options.rows.is_empty() || options.rows.iter().any(|row| row == name) {
            let able: Vec<_> = contenders.iter().copied().filter(|one| work.is_done_by(*one)).collect();
            bench.row(name, work, (&able, &binaries))?;
        }
    }
    let signatures = client::signatures_per_second(&material.server(), PROXY_CORE)?;
    facts.push(("signatures of ring with P-256 on one core, in a second", format!("{signatures:.0}")));
    let Bench { figures, remarks, .. } = bench;
    conclude(options, &Report { contenders, figures, remarks, facts })
}

/// Runs every load but the idle one through agents at `binary`, for a compiler to learn from.
pub fn train(track: &Track, binary: &Path, seconds: u32) -> Result<()> {
    let binaries = Binaries { sluice: binary.to_owned(), before: None };
    let material = Material::make(track.directory())?;
    let set_up = (track, &material);
    let gateway = peer::start(Contender::Sluice, set_up, &binaries)?;
    let pair = Pair::start(Contender::Sluice, binary)?;
    for (name, work) in ROWS.into_iter().filter(|(_, work)| *work != Work::Memory) {
        let taken = match work {
            Work::Pair(path, port) => pair.measure(Load { path, port, connections: KEPT, seconds }),
            _ => measure(work, &gateway, set_up, seconds),
        };
        taken.with_context(|| format!("running {name}"))?;
    }
    pair.stop()
}

/// Prints and writes what came of it.
fn conclude(options: &Options, report: &Report) -> Result<ExitCode> {
    println!("\n{}", report.table());
    for (name, value) in &report.facts {
        println!("{name}: {value}");
    }
    println!("rates of `full`, `resumed` and `mutual` are those of connections with one request each");
    println!("CPU of `pair` rows is that of both proxies; n: ratio to nginx");
    for remark in &report.remarks {
        println!("{remark}");
    }
    let goals = goal::judge(&report.figures);
    for goal in &goals {
        println!("goal: {goal}");
    }
    let complete = options.only.is_empty() && options.rows.is_empty();
    let default = complete.then(|| crate::workspace().join("docs/bench"));
    if let Some(directory) = options.out.clone().or(default) {
        fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
        let mut record = report.json();
        record["verdict"] = json!(goals.iter().map(ToString::to_string).collect::<Vec<_>>());
        let text = serde_json::to_string_pretty(&record).context("writing the record")? + "\n";
        let path = directory.join("tls.json");
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        println!("wrote {}", path.display());
    }
    let failed = report.remarks.iter().any(|remark| remark.starts_with("failed"));
    let met = goals.iter().all(|goal| goal.met);
    Ok(if failed || !met { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

struct Bench<'a> {
    options: &'a Options,
    track: &'a Track,
    material: &'a Material,
    figures: Vec<Figure>,
    remarks: Vec<String>,
}

impl Bench<'_> {
    /// Measures a row: of proxies that all run, or that are started for each value.
    fn row(&mut self, name: &'static str, work: Work, who: (&[Contender], &Binaries)) -> Result<()> {
        if let Work::Pair(path, port) = work {
            return self.pairs(name, (path, port), who);
        }
        let (contenders, binaries) = who;
        let set_up = (self.track, self.material);
        let mut running = Vec::new();
        if work != Work::Memory {
            for contender in contenders {
                running.push(peer::start(*contender, set_up, binaries)?);
            }
        }
        let seconds = self.options.seconds;
        for round in 0..self.options.rounds {
            for place in 0..contenders.len() {
                let place = (place + round as usize) % contenders.len();
                let taken = if let Some(running) = running.get(place) {
                    measure(work, running, set_up, seconds)
                } else {
                    measure(work, &peer::start(contenders[place], set_up, binaries)?, set_up, seconds)
                };
                self.note(name, (contenders[place], round), taken);
            }
        }
        Ok(())
    }

    fn pairs(
        &mut self,
        name: &'static str,
        (path, port): (&'static str, Port),
        (contenders, binaries): (&[Contender], &Binaries),
    ) -> Result<()> {
        let pairs: Vec<Pair> =
            contenders.iter().map(|one| Pair::start(*one, &binaries.sluice)).collect::<Result<_>>()?;
        let load = Load { path, port, connections: KEPT, seconds: self.options.seconds };
        for round in 0..self.options.rounds {
            for place in 0..pairs.len() {
                let place = (place + round as usize) % pairs.len();
                self.note(name, (contenders[place], round), pairs[place].measure(load));
            }
        }
        Ok(())
    }

    fn note(
        &mut self,
        row: &'static str,
        (contender, round): (Contender, u32),
        taken: Result<Vec<(Metric, f64)>>,
    ) {
        let name = contender.name();
        match taken {
            Ok(values) => {
                for (metric, value) in values {
                    println!("round {} {row:<12} {name:<8} {value:.2} {}", round + 1, metric.label());
                    let rounds = vec![None; self.options.rounds as usize];
                    let figure = self.figure(row, metric);
                    figure.values.entry(contender).or_insert(rounds)[round as usize] = Some(value);
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
}

fn measure(
    work: Work,
    running: &Running,
    (track, material): (&Track, &Material),
    seconds: u32,
) -> Result<Vec<(Metric, f64)>> {
    let pid = running.server.as_ref().map(Server::pid).context("a contender without a process")?;
    let address = |mutual| peer::address(running.contender, mutual);
    match work {
        Work::Kept(path) => {
            let load = Loop { address: address(false), path, connections: KEPT, closes: false, seconds };
            with_cpu(pid, || load::wrk_tls(track, &load))
        }
        Work::Connect(manner) => {
            let to = address(manner.mutual);
            let load = || client::run(to, material, manner, (seconds, CLIENT_CORE));
            with_cpu(pid, || track.client.enter(load)?)
        }
        Work::Memory => {
            let fresh = process::rss_kib(pid)?;
            let open = || client::idle(address(true), material, IDLE as usize);
            let idle = track.client.enter(open)??;
            let with_idle = process::rss_kib(pid)?;
            drop(idle);
            Ok(vec![
                (Metric::Fresh, fresh / 1024.0),
                (Metric::WithIdle, with_idle / 1024.0),
                (Metric::PerIdle, (with_idle - fresh) / f64::from(IDLE)),
            ])
        }
        Work::Pair(..) => bail!("pairs are no single process"),
    }
}

fn with_cpu(pid: u32, load: impl FnOnce() -> Result<Counted>) -> Result<Vec<(Metric, f64)>> {
    let before = process::cpu_seconds(pid)?;
    let counted = load()?;
    ensure!(counted.requests > 0.0, "no request was answered");
    let used = process::cpu_seconds(pid)? - before;
    Ok(vec![(Metric::Rate, counted.per_second), (Metric::Cpu, used * 100_000.0 / counted.requests)])
}
