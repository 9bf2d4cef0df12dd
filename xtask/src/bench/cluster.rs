//! `cargo xtask bench cluster`: what a large table costs those who publish it and those who follow.
//!
//! One section measures in this process, without any other part. The others run a real Redis, three agents in nodes of their
//! own, and simulated nodes beside them, all on this machine: who has more of them has better figures. Where requests are measured
//! their node has a processor for itself (`cores`).

mod change;
mod cores;
mod costs;
mod documents;
mod failover;
mod followers;
mod inside;
mod outage;
pub(super) mod row;
mod site;
mod updates;
mod watcher;
mod witness;
mod world;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use self::documents::Documents;
use self::failover::End;
use self::row::Row;
use self::site::Plans;
use self::world::World;
use super::facts;

/// How.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// How often what is measured in one process is, and how often the leader ends
    #[arg(long)]
    rounds: Option<u32>,
    /// Services; each has a route
    #[arg(long, default_value_t = 10_000)]
    services: u32,
    /// Endpoints of each service, each a pod
    #[arg(long, default_value_t = 10)]
    endpoints: u32,
    /// Only these sections; without it, all
    #[arg(long, value_delimiter = ',', value_enum)]
    only: Vec<Section>,
    /// The agent's binary
    #[arg(long, default_value_os_t = crate::workspace().join("target/release/sluice"))]
    binary: PathBuf,
    /// Simulated nodes beside the three
    #[arg(long, default_value_t = 100)]
    followers: usize,
    /// How many times one endpoint changes
    #[arg(long, default_value_t = 400)]
    changes: u32,
    /// For how many seconds endpoints change all the time
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// For how many seconds Redis is away
    #[arg(long, default_value_t = 30)]
    outage: u32,
    /// Where the record goes; without it, a run of the usual size writes docs/bench
    #[arg(long)]
    out: Option<PathBuf>,
    /// Follows the table in a file and prints the memory that it takes
    #[arg(long, hide = true)]
    follow: Option<PathBuf>,
}

/// A part of the measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Section {
    /// In this process alone
    Inside,
    /// Look-ups in tables of several sizes
    Lookup,
    /// The leader is killed
    Failover,
    /// The leader is told to stop
    Handover,
    /// One endpoint changes
    Change,
    /// Endpoints change all the time
    Updates,
    /// Redis goes and comes back empty
    Outage,
    /// Nothing happens
    Costs,
}

impl Section {
    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    fn run(self, options: &Options) -> Result<Vec<Row>> {
        let world = World { services: options.services, endpoints: options.endpoints };
        let plans =
            Plans { binary: options.binary.clone(), documents: Documents(world), ttl: "10s", apart: false };
        match self {
            Self::Inside => inside::run(world, options.rounds.unwrap_or(5)),
            Self::Lookup => inside::lookups(options.endpoints),
            Self::Failover => failover::run(&plans, options.rounds.unwrap_or(20), End::Killed),
            Self::Handover => failover::run(&plans, options.rounds.unwrap_or(20), End::Asked),
            Self::Change => change::run(&plans, options.changes, options.followers),
            Self::Updates => updates::run(&plans, options.seconds, options.followers),
            Self::Outage => outage::run(&plans, Duration::from_secs(options.outage.into())),
            Self::Costs => costs::run(&plans, options.followers),
        }
    }
}

/// Measures and prints.
pub fn run(options: &Options) -> Result<ExitCode> {
    if let Some(file) = &options.follow {
        return inside::follow(file);
    }
    ensure!(options.rounds != Some(0), "--rounds begins at 1");
    let wanted = |section: &Section| options.only.is_empty() || options.only.contains(section);
    for section in <Section as clap::ValueEnum>::value_variants().iter().copied().filter(wanted) {
        println!("{}:", section.name());
        let rows = section.run(options)?;
        for row in &rows {
            println!("{}", row.line());
        }
        let usual = options.services == 10_000 && options.endpoints == 10;
        let default = usual.then(|| crate::workspace().join("docs/bench"));
        if let Some(directory) = options.out.clone().or(default) {
            write(&directory, options, section, &rows)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Puts a section into the record, beside those that earlier runs have put there.
fn write(directory: &Path, options: &Options, section: Section, rows: &[Row]) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    let path = directory.join("cluster.json");
    let before =
        fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Map<String, Value>>(&text).ok());
    let mut record = before.unwrap_or_default();
    let facts: Map<String, Value> =
        facts::machine().into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect();
    let endpoints = options.services * options.endpoints;
    record.insert(
        section.name(),
        json!({ "facts": facts, "services": options.services, "endpoints": endpoints, "rows": rows }),
    );
    let text = serde_json::to_string_pretty(&record).context("writing the record")? + "\n";
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    println!("wrote {}", path.display());
    Ok(())
}
