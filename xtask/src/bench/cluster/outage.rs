//! Redis goes, for a long time, and comes back empty.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::wait::wait_until;

use super::row::Row;
use super::site::{LIMIT, NODES, Plans, Site};

/// Requests a second.
const RATE: u32 = 500;

/// Measures it.
pub fn run(plans: &Plans, lasts: Duration) -> Result<Vec<Row>> {
    let mut site = Site::up(plans)?;
    let (_, epoch) = site.leader()?;
    let load = site.load(NODES[0], RATE)?;
    load.wait_requests(RATE as usize, LIMIT)?;
    let restarted = NODES[2];
    site.wait_kept(restarted)?;
    site.redis.stop()?;
    let begin = Instant::now();
    site.take_agent(restarted)?.kill9()?;
    let starting = Instant::now();
    site.start_agent(restarted)?;
    let ready = starting.elapsed();
    let kept = site.watcher(restarted).wait(starting, LIMIT, |table| table.epoch == epoch)? - starting;
    let served = site.load(restarted, 50)?;
    served.wait_requests(100, LIMIT)?;
    let served = served.stop()?;
    ensure!(served.failures().next().is_none(), "from disk: {:?}", served.failure_kinds());
    std::thread::sleep(lasts.saturating_sub(begin.elapsed()));
    let back = Instant::now();
    site.redis.start_again(&site.lab)?;
    let converged =
        NODES.iter().map(|node| site.watcher(node).wait(back, LIMIT, |table| table.epoch > epoch));
    let converged = converged.collect::<Result<Vec<_>>>()?.into_iter().max().context("there are nodes")?;
    let documents = site.documents.0.services as usize * 3;
    wait_until("the documents to be back", LIMIT, || {
        let last = |node: &&str| site.watcher(node).last();
        NODES
            .iter()
            .all(|node| last(node).documents.count >= documents && last(node).store_error.is_none())
            .then_some(())
    })?;
    load.wait_requests(RATE as usize, LIMIT)?;
    let report = load.stop()?;
    let failed = report.failures().count();
    if failed > 0 {
        println!("requests failed: {:?}", report.failure_kinds());
    }
    site.check_order()?;
    let count = |count: usize| u32::try_from(count).map(f64::from);
    Ok(vec![
        Row::one("Redis was away for", "s", (back - begin).as_secs_f64()),
        Row::one("requests meanwhile", "requests", count(report.samples.len())?),
        Row::one("requests that failed", "requests", count(failed)?).at_most(0.0),
        Row::times("an agent restarted meanwhile: ready", &[ready])?,
        Row::times("an agent restarted meanwhile: table of its disk", &[kept])?,
        Row::times("Redis back, empty -> a new table on all three", &[converged - back])?,
    ])
}
