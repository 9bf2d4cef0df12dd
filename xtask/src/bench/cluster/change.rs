//! One endpoint changes, again and again, beside requests through one of the agents. Quiet times and times with changes take turns,
//! so that whatever else becomes of the machine meanwhile is in both. Requests beside which the processor was away are told apart.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::load::Sample;

use super::followers::Followers;
use super::row::Row;
use super::site::{NODES, Plans, Site};
use super::witness::{Away, Witness};

/// Requests a second.
const RATE: u32 = 200;
/// So many changes are made one after another, and as many requests pass before them in which nothing changes.
const TURN: u32 = 40;
const QUIET: usize = 5 * RATE as usize;
/// Between two changes at least.
const EVERY: Duration = Duration::from_millis(150);
/// What is asked: milliseconds, bytes for a follower, and the p99 of requests by that of quiet times.
const APPLIED_MOST: f64 = 150.0;
const BYTES_MOST: f64 = 4096.0;
const SLOWER_MOST: f64 = 1.2;

/// Measures it.
pub fn run(plans: &Plans, changes: u32, followers: usize) -> Result<Vec<Row>> {
    let site = Site::up(&Plans { apart: true, ..plans.clone() })?;
    let (options, trust) = site.access();
    let simulated = Followers::start(&site.runtime, followers, &options, &trust);
    let load = site.load(NODES[0], RATE)?;
    load.wait_requests(RATE as usize, Duration::from_mins(1))?;
    let witness = Witness::start()?;
    let before = simulated.taken();
    let (mut times, mut turns) = (Vec::new(), Vec::new());
    // The first service has an endpoint that is not ready from the start.
    let mut number = 0;
    while number < changes {
        let begin = Instant::now();
        load.wait_requests(QUIET, Duration::from_mins(1))?;
        let middle = Instant::now();
        for _ in 0..TURN.min(changes - number) {
            number += 1;
            let service = number.wrapping_mul(97) % site.documents.0.services;
            let write = site.documents.slice(service, |nth| nth != number % site.documents.0.endpoints);
            let begin = Instant::now();
            let revision = site.write(&[write])?;
            times.push(site.wait_revision(begin, revision)? - begin);
            std::thread::sleep(EVERY.saturating_sub(begin.elapsed()));
        }
        turns.push(Turn { quiet: begin..middle, busy: middle..Instant::now() });
    }
    let after = simulated.taken();
    let (report, away) = (load.stop()?, witness.stop()?);
    ensure!(report.failures().next().is_none(), "requests failed: {:?}", report.failure_kinds());
    ensure!(simulated.refused() == 0, "simulated nodes refused tables");
    let mut rows = vec![
        Row::percentile("one endpoint -> applied on all three, p50", &times, 50)?,
        Row::percentile("one endpoint -> applied on all three, p99", &times, 99)?.at_most(APPLIED_MOST),
    ];
    rows.extend(of_requests(&report.samples, &turns, &away)?);
    if followers > 0 {
        let (bytes, tables) = (after.0 - before.0, after.1 - before.1);
        ensure!(tables > 0, "simulated nodes followed nothing");
        let each = u32::try_from(bytes / tables).context("a delta is small")?;
        rows.push(Row::one("bytes of one change for a follower", "B", each.into()).at_most(BYTES_MOST));
    }
    site.check_order()?;
    Ok(rows)
}

/// A quiet time and the time with changes after it.
struct Turn {
    quiet: Range<Instant>,
    busy: Range<Instant>,
}

/// What requests saw of it: all of them, and those beside which the processor was there.
fn of_requests(samples: &[Sample], turns: &[Turn], away: &Away) -> Result<Vec<Row>> {
    let quiet: Vec<_> = turns.iter().map(|turn| &turn.quiet).collect();
    let busy: Vec<_> = turns.iter().map(|turn| &turn.busy).collect();
    let p99 = |what: &str, spans: &[&Range<Instant>], all: bool| {
        let within = samples.iter().filter(|sample| spans.iter().any(|span| span.contains(&sample.due)));
        let counts = within.filter(|sample| all || !away.touches(&(sample.due..sample.done)));
        let took: Vec<_> = counts.map(|sample| sample.done - sample.due).collect();
        Row::percentile(&format!("p99 of requests, {what}"), &took, 99)
    };
    let mut rows = vec![p99("before the first change", quiet.get(..1).unwrap_or_default(), true)?];
    for (whose, all) in [("all of them", true), ("where the processor was there", false)] {
        let (still, moved) =
            (p99(&format!("quiet, {whose}"), &quiet, all)?, p99(&format!("busy, {whose}"), &busy, all)?);
        let ratio =
            Row::one(&format!("busy by quiet, {whose}"), "x", moved.value.median / still.value.median);
        rows.extend([still, moved, ratio.at_most(SLOWER_MOST)]);
    }
    let seconds = |spans: &[&Range<Instant>]| {
        spans.iter().map(|span| (span.end - span.start).as_secs_f64()).sum::<f64>()
    };
    rows.extend([("quiet", &quiet), ("busy", &busy)].map(|(what, spans)| {
        let per_second = f64::from(u32::try_from(away.count(spans)).unwrap_or(u32::MAX)) / seconds(spans);
        Row::one(&format!("the processor was away, {what}"), "1/s", per_second)
    }));
    Ok(rows)
}
