//! What a table costs in memory and time, measured in one process.
//!
//! Everything is measured in one thread, but for memory, which is that of a process that does nothing but follow.

use std::fs;
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use agent::compile::wire::{Change, Parts, Touched};
use agent::compile::{RoutingTable, TableVersion, compile, compile_parts, recompile};
use agent::model::Model;
use anyhow::{Context, Result, ensure};

use super::row::Row;
use super::world::{self, World};

/// Measures all of it.
pub fn run(world: World, rounds: u32) -> Result<Vec<Row>> {
    let mut rows = published(world, rounds)?;
    rows.extend(compiled(world, rounds)?);
    rows.extend(small_changes(world, rounds)?);
    rows.extend(memory(world)?);
    Ok(rows)
}

/// Looks addresses up in tables of several sizes, as a connection does.
pub fn lookups(endpoints: u32) -> Result<Vec<Row>> {
    const LOOKUPS: u32 = 2_000_000;
    let mut rows = Vec::new();
    for services in [10, 1_000, 10_000] {
        let world = World { services, endpoints };
        let table = compile(&world.model(), &RoutingTable::default(), TableVersion::default());
        let address =
            |service: u32| SocketAddr::new(Ipv4Addr::from_bits(world::CLUSTER_IPS + service).into(), 80);
        let mut values = Vec::new();
        for round in 0..6 {
            let since = Instant::now();
            let found = (0..LOOKUPS).filter(|number| {
                // A step that shares no factor with the sizes, so that no two in a row are neighbours.
                let service = number.wrapping_mul(7919) % services;
                black_box(table.frontends.get(&address(service))).is_some()
            });
            ensure!(found.count() == LOOKUPS as usize, "every service has a frontend");
            if round > 0 {
                values.push(since.elapsed().as_secs_f64() * 1e9 / f64::from(LOOKUPS));
            }
        }
        rows.push(Row::new(&format!("a look-up among {services} services"), "ns", values)?);
    }
    Ok(rows)
}

/// The table as a whole, and a change of one endpoint, as they are published and read.
fn published(world: World, rounds: u32) -> Result<Vec<Row>> {
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
fn compiled(world: World, rounds: u32) -> Result<Vec<Row>> {
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
fn small_changes(world: World, rounds: u32) -> Result<Vec<Row>> {
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
fn changed(world: World, model: &Model, (count, round): (u32, u32), pods: bool) -> Model {
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
fn memory(world: World) -> Result<Vec<Row>> {
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
        Row::new(name, "MiB", vec![value])
    };
    Ok(vec![next("memory, parts")?, next("memory, parts and table")?])
}

/// A process that follows the table in a file, and prints the memory that it takes.
pub fn follow(file: &Path) -> Result<ExitCode> {
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
    Row::one(name, "KiB", value)
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
    Row::times(name, times)
}
