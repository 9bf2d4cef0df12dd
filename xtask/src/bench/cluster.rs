//! `cargo xtask bench cluster`: what a large table costs those who publish it and those who follow.
//!
//! Everything is measured in one thread of this process, but for memory, which is that of a process that does nothing but
//! follow. The figures are of this machine; the sizes hold everywhere.

mod world;

use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use agent::compile::wire::{Change, Parts, Touched};
use agent::compile::{RoutingTable, TableVersion, compile, compile_parts, recompile};
use agent::model::Model;
use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use super::facts;
use super::figure::Spread;
use world::World;

/// How.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// How often everything is measured
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Services; each has a route
    #[arg(long, default_value_t = 10_000)]
    services: u32,
    /// Endpoints of each service, each a pod
    #[arg(long, default_value_t = 10)]
    endpoints: u32,
    /// Where the record goes; without it, a run of the usual size writes docs/bench
    #[arg(long)]
    out: Option<PathBuf>,
    /// Follows the table in a file and prints the memory that it takes
    #[arg(long, hide = true)]
    follow: Option<PathBuf>,
}

/// A figure by its name, with its unit.
#[derive(Debug)]
struct Row {
    name: &'static str,
    unit: &'static str,
    spread: Spread,
}

/// Measures and prints.
pub fn run(options: &Options) -> Result<ExitCode> {
    if let Some(file) = &options.follow {
        return follow(file);
    }
    ensure!(options.rounds > 0, "--rounds begins at 1");
    let world = World { services: options.services, endpoints: options.endpoints };
    let mut rows = published(&world, options.rounds)?;
    rows.extend(compiled(&world, options.rounds)?);
    rows.extend(small_changes(&world, options.rounds)?);
    rows.extend(memory(&world)?);
    println!("{:<28} {:>12}  {:<8} [low-high]", "", "median", "unit");
    for Row { name, unit, spread } in &rows {
        println!("{name:<28} {:>12.2}  {unit:<8} [{:.2}-{:.2}]", spread.median, spread.low, spread.high);
    }
    let usual = options.services == 10_000 && options.endpoints == 10;
    let default = usual.then(|| crate::workspace().join("docs/bench"));
    if let Some(directory) = options.out.clone().or(default) {
        write(&directory, options, &rows)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The table as a whole, and a change of one endpoint, as they are published and read.
fn published(world: &World, rounds: u32) -> Result<Vec<Row>> {
    let model = world.model();
    let mut after = model.clone();
    world.flip(&mut after, 1, 0);
    let whole = Change::whole(&model).encode();
    let small = Change::between(&model, &after).encode();
    let mut parts = Parts::default();
    let read = Change::decode(&whole).context("reading the whole")?;
    ensure!(Change::between(&after, &model).len() == 1, "one endpoint is one record");
    let rows = vec![
        size("whole bytes", whole.len()),
        size("delta bytes", small.len()),
        times("whole + encode", rounds, || drop(Change::whole(&model).encode()))?,
        times("decode", rounds, || drop(black_box(Change::decode(&whole))))?,
        times("apply whole", rounds, || {
            parts = Parts::default();
            drop(black_box(parts.apply(&read)));
        })?,
        times("between, one endpoint", rounds, || drop(black_box(Change::between(&model, &after))))?,
        times("Parts::model", rounds, || drop(black_box(parts.model())))?,
    ];
    ensure!(parts.model() == model, "what is followed is what was published");
    Ok(rows)
}

/// Whole compilations.
fn compiled(world: &World, rounds: u32) -> Result<Vec<Row>> {
    let model = world.model();
    let nothing = RoutingTable::default();
    let mut parts = Parts::default();
    parts.apply(&Change::whole(&model)).context("the whole fits")?;
    let table = compile(&model, &nothing, TableVersion::default());
    let version = TableVersion::default();
    Ok(vec![
        times("compile, first", rounds, || drop(black_box(compile(&model, &nothing, version))))?,
        times("compile, nothing new", rounds, || drop(black_box(compile(&model, &table, version))))?,
        times("compile_parts, first", rounds, || drop(black_box(compile_parts(&parts, &nothing, version))))?,
    ])
}

/// Changes as a follower takes them: decoded, applied, compiled, and the table before dropped.
fn small_changes(world: &World, rounds: u32) -> Result<Vec<Row>> {
    let mut model = world.model();
    let mut parts = Parts::default();
    parts.apply(&Change::whole(&model)).context("the whole fits")?;
    let mut table = compile_parts(&parts, &RoutingTable::default(), TableVersion::default());
    let mut rows = Vec::new();
    for (name, count, pods) in [
        ("one endpoint", 1, false),
        ("one pod", 1, true),
        ("100 endpoints", 100, false),
        ("100 pods", 100, true),
    ] {
        let mut times = Vec::new();
        for round in 0..=rounds * 4 {
            let after = changed(world, &model, (count, round), pods);
            let bytes = Change::between(&model, &after).encode();
            model = after;
            let since = Instant::now();
            let change = Change::decode(&bytes).context("reading a change")?;
            let mut touched = Touched::default();
            touched.extend(parts.apply(&change).context("applying a change")?);
            table = recompile(&parts, &touched, &table, TableVersion::default());
            times.push(since.elapsed());
        }
        // The first one warms up.
        rows.push(row(name, &times[1..])?);
    }
    ensure!(parts.model() == model, "what is followed is what was published");
    ensure!(table.clusters.len() == model.services.len(), "all services are in the table");
    Ok(rows)
}

/// A model in which that many endpoints, each of another service, are other than before; with `pods`, so are their pods.
fn changed(world: &World, model: &Model, (count, round): (u32, u32), pods: bool) -> Model {
    let mut after = model.clone();
    for index in 0..count {
        let service = (index * 97 + round * 13) % world.services;
        world.flip(&mut after, service, round % world.endpoints);
        if pods {
            world::flip_pod(&mut after, service, round % world.endpoints);
        }
    }
    after
}

/// What a process that follows holds.
fn memory(world: &World) -> Result<Vec<Row>> {
    let directory = crate::workspace().join("target/tmp");
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    let file = directory.join(format!("cluster-{}.table", std::process::id()));
    fs::write(&file, Change::whole(&world.model()).encode()).context("writing the table")?;
    let program = std::env::current_exe().context("finding this program")?;
    let output = Command::new(program).args(["bench", "cluster", "--follow"]).arg(&file).output();
    fs::remove_file(&file).context("removing the table")?;
    let output = output.context("starting a follower")?;
    ensure!(output.status.success(), "the follower failed: {}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stdout);
    let mut figures = said.split_whitespace().map(str::parse::<f64>);
    let mut next = |name| -> Result<Row> {
        let value = figures.next().context("the follower said too little")??;
        Ok(Row { name, unit: "MiB", spread: Spread::of(vec![value]).context("one value")? })
    };
    Ok(vec![next("memory, parts")?, next("memory, parts and table")?])
}

fn follow(file: &Path) -> Result<ExitCode> {
    let start = resident()?;
    let mut parts = Parts::default();
    {
        let bytes = fs::read(file).context("reading the table")?;
        parts.apply(&Change::decode(&bytes).context("decoding the table")?).context("the whole fits")?;
    }
    let with_parts = resident()?;
    let table = compile_parts(&parts, &RoutingTable::default(), TableVersion::default());
    let with_table = resident()?;
    println!("{:.1} {:.1}", with_parts - start, with_table - start);
    drop((table, parts));
    Ok(ExitCode::SUCCESS)
}

/// Resident memory in MiB.
fn resident() -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status").context("reading /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").trim().parse().context("VmRSS is a number")?;
    Ok(kib / 1024.0)
}

fn size(name: &'static str, bytes: usize) -> Row {
    let value = f64::from(u32::try_from(bytes).unwrap_or(u32::MAX)) / 1024.0;
    Row { name, unit: "KiB", spread: Spread { median: value, low: value, high: value } }
}

fn times(name: &'static str, rounds: u32, mut work: impl FnMut()) -> Result<Row> {
    let mut times = Vec::new();
    for _ in 0..=rounds {
        let since = Instant::now();
        work();
        times.push(since.elapsed());
    }
    row(name, &times[1..])
}

fn row(name: &'static str, times: &[Duration]) -> Result<Row> {
    let milliseconds = times.iter().map(|time| time.as_secs_f64() * 1000.0).collect();
    Ok(Row { name, unit: "ms", spread: Spread::of(milliseconds).context("no round")? })
}

fn write(directory: &Path, options: &Options, rows: &[Row]) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    let machine: Map<String, Value> =
        facts::machine().into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect();
    let figure = |row: &Row| json!({ "row": row.name, "unit": row.unit, "value": row.spread });
    let record = json!({
        "facts": machine,
        "rounds": options.rounds,
        "services": options.services,
        "endpoints": options.services * options.endpoints,
        "rows": rows.iter().map(figure).collect::<Vec<_>>(),
    });
    let path = directory.join("cluster.json");
    let text = serde_json::to_string_pretty(&record).context("writing the record")? + "\n";
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    println!("wrote {}", path.display());
    Ok(())
}
