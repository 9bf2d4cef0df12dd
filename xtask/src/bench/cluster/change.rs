//! One endpoint changes, again and again, beside requests through one of the agents. Quiet times and times with changes take turns,
//! so that whatever else becomes of the machine meanwhile is in both.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::followers::Followers;
use super::row::Row;
use super::site::{NODES, Plans, Site};

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
    let before = simulated.taken();
    let (mut times, mut quiet) = (Vec::new(), Vec::new());
    // The first service has an endpoint that is not ready from the start.
    for number in 1..=changes {
        if (number - 1) % TURN == 0 {
            let begin = Instant::now();
            load.wait_requests(QUIET, Duration::from_mins(1))?;
            quiet.push(begin..Instant::now());
        }
        let service = number.wrapping_mul(97) % site.documents.0.services;
        let write = site.documents.slice(service, |nth| nth != number % site.documents.0.endpoints);
        let begin = Instant::now();
        let revision = site.write(&[write])?;
        times.push(site.wait_revision(begin, revision)? - begin);
        std::thread::sleep(EVERY.saturating_sub(begin.elapsed()));
    }
    let first = quiet.first().cloned().context("nothing was changed")?;
    let busy = first.end..Instant::now();
    let after = simulated.taken();
    let report = load.stop()?;
    ensure!(report.failures().next().is_none(), "requests failed: {:?}", report.failure_kinds());
    ensure!(simulated.refused() == 0, "simulated nodes refused tables");
    let is_quiet = |sample: &&lab::load::Sample| quiet.iter().any(|turn| turn.contains(&sample.due));
    let took = |samples: Vec<&lab::load::Sample>| -> Vec<Duration> {
        samples.into_iter().map(|sample| sample.done - sample.due).collect()
    };
    let untouched = report.samples.iter().filter(|sample| first.contains(&sample.due)).collect();
    let untouched = Row::percentile("p99 of requests, before the first change", &took(untouched), 99)?;
    let within = report.samples.iter().filter(|sample| sample.due < busy.end);
    let (still, moving): (Vec<_>, Vec<_>) =
        within.filter(|sample| is_quiet(sample) || busy.contains(&sample.due)).partition(is_quiet);
    let quiet = Row::percentile("p99 of requests, quiet", &took(still), 99)?;
    let busy = Row::percentile("p99 of requests, while endpoints change", &took(moving), 99)?;
    let slower = busy.value.median / quiet.value.median;
    let mut rows = vec![
        Row::percentile("one endpoint -> applied on all three, p50", &times, 50)?,
        Row::percentile("one endpoint -> applied on all three, p99", &times, 99)?.at_most(APPLIED_MOST),
        untouched,
        quiet,
        busy,
        Row::one("p99 of requests, busy by quiet", "x", slower).at_most(SLOWER_MOST),
    ];
    if followers > 0 {
        let (bytes, tables) = (after.0 - before.0, after.1 - before.1);
        ensure!(tables > 0, "simulated nodes followed nothing");
        let each = u32::try_from(bytes / tables).context("a delta is small")?;
        rows.push(Row::one("bytes of one change for a follower", "B", each.into()).at_most(BYTES_MOST));
    }
    site.check_order()?;
    Ok(rows)
}
