//! How long a cluster is without a leader whose tables all accept.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::row::Row;
use super::site::{LIMIT, NODES, Plans, Site};

/// The life of the lease in these measurements.
pub const TTL: &str = "2s";
/// `TTL` and a third of it, and half a second, in milliseconds.
const FAILOVER_MOST: f64 = 2000.0 + 2000.0 / 3.0 + 500.0;
/// The same of one that was planned.
const HANDOVER_MOST: f64 = 200.0;

/// How the leader ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By `kill -9`.
    Killed,
    /// By SIGTERM.
    Asked,
}

/// Ends the leader again and again: from its end, or from the signal, until all others have a table of the next one.
pub fn run(plans: &Plans, rounds: u32, end: End) -> Result<Vec<Row>> {
    let mut site = Site::up(&Plans { ttl: TTL, ..plans.clone() })?;
    let mut times = Vec::new();
    for round in 0..rounds {
        let (leader, epoch) = site.leader()?;
        let agent = site.take_agent(leader)?;
        let begin = Instant::now();
        let ending = std::thread::spawn(move || match end {
            End::Killed => agent.kill9(),
            End::Asked => agent.terminate().map(drop),
        });
        let others = NODES.iter().filter(|node| **node != leader);
        let accepted = others
            .map(|node| site.watcher(node).wait(begin, LIMIT, |table| table.epoch > epoch))
            .collect::<Result<Vec<_>>>()?;
        let last = accepted.into_iter().max().context("there are others")?;
        let took: Duration = last - begin;
        println!(
            "round {round}: {leader} ended, all others had the next table after {:.0} ms",
            took.as_secs_f64() * 1000.0
        );
        times.push(took);
        ending.join().map_err(|_| anyhow::anyhow!("ending the agent panicked"))??;
        site.start_agent(leader)?;
        site.watcher(leader).wait(last, LIMIT, |table| table.epoch > epoch)?;
    }
    site.check_order()?;
    let services = site.documents.0.services;
    let (name, most) = match end {
        End::Killed => ("leader killed -> next table on all others", FAILOVER_MOST),
        End::Asked => ("leader told to stop -> next table on all others", HANDOVER_MOST),
    };
    Ok(vec![Row::times(&format!("{name}, {services} services"), &times)?.at_most(most)])
}
