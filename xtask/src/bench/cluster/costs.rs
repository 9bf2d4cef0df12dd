//! What a cluster costs while nothing happens: Redis, and the agents.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::followers::Followers;
use super::row::Row;
use super::site::{NODES, Plans, Site};
use crate::bench::process::{cpu_seconds, rss_kib};

/// How long it is looked at.
const QUIET: Duration = Duration::from_secs(20);

/// Measures it.
pub fn run(plans: &Plans, followers: usize) -> Result<Vec<Row>> {
    let empty = Site::up(&Plans { documents: plans.documents.of_services(1), ..plans.clone() })?;
    let memory_of = |site: &Site| {
        NODES.iter().map(|node| Ok(rss_kib(site.pid(node)?)? / 1024.0)).collect::<Result<Vec<f64>>>()
    };
    let small = memory_of(&empty)?;
    drop(empty);
    let site = Site::up(plans)?;
    let (options, trust) = site.access();
    let _simulated = Followers::start(&site.runtime, followers, &options, &trust);
    let cpu = |site: &Site| NODES.iter().map(|node| cpu_seconds(site.pid(node)?)).collect::<Result<Vec<_>>>();
    let (before, commands) = (cpu(&site)?, site.redis_info("stats", "total_commands_processed")?);
    let begin = Instant::now();
    std::thread::sleep(QUIET);
    let took = begin.elapsed().as_secs_f64();
    let commands = site.redis_info("stats", "total_commands_processed")? - commands;
    let cores = cpu(&site)?.into_iter().zip(before).map(|(after, before)| (after - before) / took * 1000.0);
    let cores = Row::new("an agent, quiet", "mcores", cores.collect())?;
    let (written, applied) = site.took;
    Ok(vec![
        Row::times("writing all documents", &[written])?,
        Row::times("agents ready -> a change applied on all", &[applied])?,
        Row::one("Redis, quiet", "cmd/s", commands / took),
        Row::one("Redis at rest", "MiB", site.redis_info("memory", "used_memory")? / 1_048_576.0),
        cores,
        Row::new("memory of an agent, 1 service", "MiB", small)?,
        Row::new("memory of an agent", "MiB", memory_of(&site)?)?,
    ])
}
