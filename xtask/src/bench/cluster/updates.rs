//! Thousands of endpoints change each second, for a minute.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::followers::Followers;
use super::row::Row;
use super::site::{NODES, Plans, Site};
use crate::bench::process::{cpu_seconds, rss_kib};

/// Endpoint changes a second.
const RATE: u32 = 5_000;
/// Writes a second: each is one step of the store with the slices of many services.
const WRITES: u32 = 25;
/// What is asked: cores for each agent.
const CORES_MOST: f64 = 1.0;

/// Measures it.
pub fn run(plans: &Plans, seconds: u32, followers: usize) -> Result<Vec<Row>> {
    let site = Site::up(plans)?;
    let (options, trust) = site.access();
    let simulated = Followers::start(&site.runtime, followers, &options, &trust);
    let world = site.documents.0;
    let slices = RATE / WRITES / world.endpoints;
    let cpu = |site: &Site| NODES.iter().map(|node| cpu_seconds(site.pid(node)?)).collect::<Result<Vec<_>>>();
    let (before, commands) = (cpu(&site)?, site.redis_info("stats", "total_commands_processed")?);
    let begin = Instant::now();
    let (mut revision, mut late) = (0, Duration::ZERO);
    for number in 0..seconds * WRITES {
        let due = begin + number * Duration::from_secs(1) / WRITES;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        late = late.max(due.elapsed());
        // Every endpoint of a slice changes each time that its turn comes.
        let slice = |index: u32| {
            let position = number * slices + index;
            let flip = (position / world.services).is_multiple_of(2);
            site.documents.slice(position % world.services, |nth| nth.is_multiple_of(2) == flip)
        };
        revision = site.write(&(0..slices).map(slice).collect::<Vec<_>>())?;
    }
    let took = begin.elapsed();
    let after = cpu(&site)?;
    let commands = site.redis_info("stats", "total_commands_processed")? - commands;
    let last = Instant::now();
    let converged = site.wait_revision(last, revision)? - last;
    site.check_order()?;
    ensure!(simulated.refused() == 0, "simulated nodes refused tables");
    let tables: Vec<_> =
        NODES.iter().map(|node| site.watcher(node).seen().last().map(|seen| seen.table)).collect();
    ensure!(tables.iter().all(|table| *table == tables[0]), "nodes end with different tables: {tables:?}");
    let versions = site.watcher(NODES[0]).seen().iter().filter(|seen| seen.at > begin).count();
    let positions = simulated.positions();
    let behind = positions.iter().filter(|position| {
        position.is_none_or(|position| Some(position.revision) != tables[0].map(|table| table.revision))
    });
    let behind = u32::try_from(behind.count()).context("there are few")?;
    let cores = before.iter().zip(&after).map(|(before, after)| (after - before) / took.as_secs_f64());
    let memory = NODES.iter().map(|node| Ok(rss_kib(site.pid(node)?)? / 1024.0)).collect::<Result<_>>()?;
    let per_second = |count: f64| count / took.as_secs_f64();
    let changed = f64::from(seconds * WRITES * slices * world.endpoints);
    Ok(vec![
        Row::one("endpoint updates", "1/s", per_second(changed)),
        Row::one("writes of documents", "1/s", per_second(f64::from(seconds * WRITES))),
        Row::one("the latest write was late by", "ms", late.as_secs_f64() * 1000.0),
        Row::one(
            "tables in force one after the other",
            "1/s",
            per_second(f64::from(u32::try_from(versions)?)),
        ),
        Row::new("cores of each agent", "cores", cores.collect())?.at_most(CORES_MOST),
        Row::one("last update -> applied on all three", "ms", converged.as_secs_f64() * 1000.0),
        Row::one("simulated nodes that are behind then", "nodes", behind.into()),
        Row::one("commands of Redis", "1/s", per_second(commands)),
        Row::new("memory of each agent", "MiB", memory)?,
    ])
}
