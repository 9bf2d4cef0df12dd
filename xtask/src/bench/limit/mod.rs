//! `cargo xtask bench limit`: what limits cost, and what they save.
//!
//! Limits of one node on every request, each proxy held against itself without one in one run: the agent's algorithms beside
//! HAProxy's stick-tables, nginx's limit_req and Envoy's local rate limit, none of which refuses anything. Limits that all nodes count
//! together in a real Redis. A flood that goes on beyond its limit until the kernel drops it. And decisions alone: of many keys, and the
//! kernel's.

mod cluster;
mod edge;
mod fleet;
mod flood;
mod instructions;
mod kernel;
mod keys;
mod paired;
mod site;
mod variant;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Map, Value, json};

use self::fleet::Fleet;
use super::cluster::row::Row;
use super::contender::{Binaries, Contender, start_backend};
use super::track::{CLIENT_CORE, Track};
use super::{facts, process};

/// How.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// How often everything is measured; all take turns within a round
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// How many pairs of short turns a proxy with a limit and the same without take
    #[arg(long, default_value_t = 30)]
    turns: u32,
    /// Only these sections; without it, all
    #[arg(long, value_delimiter = ',', value_enum)]
    only: Vec<Section>,
    /// The agent's binary
    #[arg(long, default_value_os_t = crate::workspace().join("target/release/sluice"))]
    binary: PathBuf,
    /// Where the record goes; without it, a complete run writes docs/bench and a partial one writes none
    #[arg(long)]
    out: Option<PathBuf>,
}

/// A part of the measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Section {
    /// All proxies with and without a limit, by turns of some seconds
    Rounds,
    /// The same by pairs of short turns
    Turns,
    /// The agent's instructions for a request
    Instructions,
    /// Limits that all nodes count together
    Cluster,
    /// A flood that the kernel drops
    Flood,
    /// Decisions of a worker where each request is another key's
    Keys,
    /// The kernel's limits on a packet that they let through
    Kernel,
}

/// Runs it and prints the rows; fails where a proxy failed or a line is missed.
pub fn run(options: &Options) -> Result<ExitCode> {
    ensure!(options.rounds > 0 && options.seconds > 0, "--rounds and --seconds begin at 1");
    ensure!(options.turns > 0, "--turns begins at 1");
    super::prepare()?;
    let binary = options.binary.canonicalize().context("no such binary of the agent; --binary names one")?;
    let binaries = Binaries { sluice: binary, before: None };
    let mut rows = Vec::new();
    let mut note = |section: Section, taken: Vec<Row>| {
        println!("{section:?}:");
        for row in &taken {
            println!("{}", row.line());
        }
        rows.extend(taken);
    };
    let wants = |section: Section| options.wants(section);
    if [Section::Rounds, Section::Turns, Section::Instructions].into_iter().any(wants) {
        on_the_track(options, &binaries, &mut note)?;
    }
    let (program, rounds, seconds) = (&binaries.sluice, options.rounds, options.seconds);
    if wants(Section::Cluster) {
        note(Section::Cluster, beside_the_agents(|| cluster::run(program, rounds, seconds))?);
    }
    if wants(Section::Flood) {
        note(Section::Flood, beside_the_agents(|| flood::run(program, rounds, seconds))?);
    }
    if wants(Section::Keys) {
        note(Section::Keys, beside_the_agents(|| keys::run(rounds))?);
    }
    if wants(Section::Kernel) {
        note(Section::Kernel, beside_the_agents(|| kernel::run(rounds))?);
    }
    conclude(options, &rows, &binaries)
}

impl Options {
    fn wants(&self, section: Section) -> bool {
        self.only.is_empty() || self.only.contains(&section)
    }
}

/// The sections that compare proxies.
fn on_the_track(
    options: &Options,
    binaries: &Binaries,
    note: &mut dyn FnMut(Section, Vec<Row>),
) -> Result<()> {
    let track = Track::lay()?;
    let _backend = start_backend(&track)?;
    if options.wants(Section::Rounds) || options.wants(Section::Turns) {
        let mut fleet = Fleet::start(&track, binaries)?;
        if options.wants(Section::Rounds) {
            note(Section::Rounds, fleet.rounds(options.rounds, options.seconds)?);
        }
        if options.wants(Section::Turns) {
            note(Section::Turns, fleet.turns(options.turns)?);
        }
    }
    if options.wants(Section::Instructions) {
        note(Section::Instructions, instructions::run(&track, binaries)?);
    }
    Ok(())
}

/// Runs it, with all that it starts, on the core that the agents have not.
fn beside_the_agents<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let bound = scope.spawn(|| {
            process::bind(0, CLIENT_CORE)?;
            work()
        });
        bound.join().map_err(|_| anyhow!("whoever measures panicked"))?
    })
}

/// Says what was missed and writes the record.
fn conclude(options: &Options, rows: &[Row], binaries: &Binaries) -> Result<ExitCode> {
    println!(
        "ratios are of values of the same round, [lowest-highest]; paired: of the same turn, [95 % of the median]"
    );
    let missed: Vec<&Row> = rows.iter().filter(|row| !row.is_held()).collect();
    for row in &missed {
        println!("missed: {}", row.what);
    }
    let default = options.only.is_empty().then(|| crate::workspace().join("docs/bench"));
    if let Some(directory) = options.out.clone().or(default) {
        write(&directory, rows, binaries)?;
    }
    Ok(if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn write(directory: &Path, rows: &[Row], binaries: &Binaries) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    let contenders = [Contender::Nginx, Contender::Haproxy, Contender::Envoy, Contender::Sluice];
    let there: Vec<_> = contenders.into_iter().filter(|one| one.program(binaries).is_ok()).collect();
    let facts: Map<String, Value> = facts::gather(&there, binaries)
        .into_iter()
        .map(|(name, value)| (name.to_owned(), json!(value)))
        .collect();
    let record = json!({ "facts": facts, "rows": rows });
    let text = serde_json::to_string_pretty(&record).context("writing the record")? + "\n";
    let path = directory.join("limit.json");
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    println!("wrote {}", path.display());
    Ok(())
}

#[cfg(test)]
mod checked {
    use agent::config::{InputFile, State, load};

    /// How many documents about limits a text has, beside the Service that they lead to; nothing is wrong with it.
    pub(super) fn limits_of(documents: String) -> usize {
        let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: default}\nspec:\n  \
                       clusterIP: 10.96.0.1\n  ports: [{name: http, port: 80, targetPort: 8080}]\n";
        let text = Ok(documents + service);
        let state = load(&State::default(), vec![InputFile { path: "edge.yaml".into(), text }]);
        let said: Vec<_> = state.report.lines().map(|(_, line)| line).collect();
        assert_eq!(said, Vec::<String>::new());
        state.model.limits.iter().count()
    }
}
