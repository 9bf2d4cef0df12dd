//! Redis is killed while nodes that lease a limit are asked for more than it gives, and comes back with what it had counted or
//! without: what each `fail` says is what is done, and nobody gets more afterwards than the documents' bound.

#[path = "rate_limit_cluster/nodes.rs"]
mod nodes;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use agent::limit::quota::WhenAway;
use anyhow::{Context, Result, ensure};
use lab::redis::Redis;
use lab::wait::{PATIENCE, wait_for};
use nix::sys::signal::Signal;
use nodes::{Node, leased, rate, start, tell, wait_away, wait_up, window};
use tokio::task::JoinHandle;

/// What the limit is, and a node's share of it.
const LIMIT: u64 = 1500;
const SHARE: u64 = LIMIT / 3;
/// Leases may let a tenth more through.
const LEASED: u64 = LIMIT + LIMIT / 10;
/// Each node is asked for so many while nothing changes: more than all that is left.
const ASKED: usize = 1800;

/// Keeps what it has counted on its disk, whatever becomes of it.
const KEEPS: &str = "appendonly yes\nappendfsync always\n";

/// All modes, with a Redis that keeps its data and with one that does not.
const MATRIX: [(WhenAway, bool); 6] = [
    (WhenAway::Share, false),
    (WhenAway::Share, true),
    (WhenAway::Closed, false),
    (WhenAway::Closed, true),
    (WhenAway::Open, false),
    (WhenAway::Open, true),
];

/// Requests to all nodes that go on until they are stopped.
struct Load {
    stop: Arc<AtomicBool>,
    admitted: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<u64>>,
}

impl Load {
    fn start(nodes: &[Node], key: &'static str) -> Self {
        let (stop, admitted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let task = |node: &Node| {
            let (node, stop, admitted) = (node.clone(), Arc::clone(&stop), Arc::clone(&admitted));
            tokio::spawn(async move {
                let (key, mut count) = (node.key(key), 0);
                while !stop.load(Ordering::Relaxed) {
                    if node.asks(key).await {
                        count += 1;
                        admitted.fetch_add(1, Ordering::Relaxed);
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                count
            })
        };
        let tasks = nodes.iter().map(task).collect();
        Self { stop, admitted, tasks }
    }

    fn admitted(&self) -> u64 {
        self.admitted.load(Ordering::Relaxed)
    }

    /// How many requests each node has let through.
    async fn stop(self) -> Result<Vec<u64>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut counts = Vec::new();
        for task in self.tasks {
            counts.push(task.await?);
        }
        Ok(counts)
    }
}

/// All nodes at once; how many of so many requests each lets through.
async fn together(nodes: &[Node], key: &'static str, of: usize) -> Result<Vec<u64>> {
    let task = |node: &Node| {
        let node = node.clone();
        tokio::spawn(async move { node.lets_through(node.key(key), of).await as u64 })
    };
    let tasks: Vec<_> = nodes.iter().map(task).collect();
    let mut counts = Vec::new();
    for task in tasks {
        counts.push(task.await?);
    }
    Ok(counts)
}

/// Requests that were decided without Redis.
fn away(nodes: &[Node]) -> u64 {
    nodes.iter().map(|node| node.limit.usage(0).away).sum()
}

fn add(counts: &mut [u64], more: &[u64]) {
    for (count, more) in counts.iter_mut().zip(more) {
        *count += more;
    }
}

fn sum(counts: &[u64]) -> u64 {
    counts.iter().sum()
}

/// What nodes let through in a run, each by itself.
struct Run {
    nodes: Vec<Node>,
    mode: WhenAway,
    /// Until all of them missed Redis, which was killed in the middle of it.
    before: Vec<u64>,
    /// While it was away.
    away: Vec<u64>,
    /// From its start on.
    after: Vec<u64>,
    /// Of all of them, and of the last, those that were decided without Redis.
    without: (u64, u64),
}

impl Run {
    /// A run of a limit of which only one span passes.
    async fn of(mode: WhenAway, keeps: bool) -> Result<Self> {
        let mut redis = Redis::start(if keeps { KEEPS } else { "" })?;
        let nodes = start(&redis, window(u32::try_from(LIMIT)?), leased(mode))?;
        let load = Load::start(&nodes, "all");
        wait_for("a third of the limit", PATIENCE, || load.admitted() >= LIMIT / 3)?;
        redis.signal(Signal::SIGKILL)?;
        wait_away(&nodes)?;
        let before = load.stop().await?;
        let while_away = together(&nodes, "all", ASKED).await?;
        let without = away(&nodes);
        let load = Load::start(&nodes, "all");
        redis.restart()?;
        tell(&redis)?;
        wait_up(&nodes)?;
        let mut after = load.stop().await?;
        add(&mut after, &together(&nodes, "all", ASKED).await?);
        let all = away(&nodes);
        let run = Self { mode, before, away: while_away, after, without: (all, all - without), nodes };
        run.is_over().await?;
        Ok(run)
    }

    /// Another client gets what Redis grants.
    async fn is_over(&self) -> Result<()> {
        let (begun, without) = (Instant::now(), away(&self.nodes));
        let mut admitted = 0;
        while admitted < LIMIT * 9 / 10 && begun.elapsed() < PATIENCE {
            admitted += sum(&together(&self.nodes, "another", 100).await?);
        }
        if self.mode == WhenAway::Open {
            // A machine that is slow may have sent Redis away once more.
            admitted -= (away(&self.nodes) - without).min(admitted);
        }
        ensure!((LIMIT / 2..=LEASED).contains(&admitted), "{admitted} of another client's");
        Ok(())
    }

    /// How many each node has let through by then.
    fn totals(&self) -> Vec<u64> {
        let mut totals = self.before.clone();
        add(&mut totals, &self.away);
        add(&mut totals, &self.after);
        totals
    }

    fn holds(&self, keeps: bool) -> Result<()> {
        let (before, total) = (sum(&self.before), sum(&self.totals()));
        match self.mode {
            WhenAway::Share => {
                for (before, away) in self.before.iter().zip(&self.away) {
                    ensure!(*away == SHARE.saturating_sub(*before), "less what it had let through before");
                }
                ensure!(sum(&self.after) == 0, "its share holds for the rest of the span");
                ensure!(total <= LIMIT + LEASED, "twice the limit");
            }
            WhenAway::Closed => {
                ensure!(sum(&self.away) == 0, "none are let through");
                for (before, total) in self.before.iter().zip(self.totals()) {
                    ensure!(total <= SHARE.max(*before), "its share holds");
                }
                ensure!(total <= if keeps { LEASED } else { LIMIT + LEASED }, "the bound");
            }
            WhenAway::Open => {
                ensure!(sum(&self.away) == 3 * ASKED as u64, "all are let through");
                let after = sum(&self.after) - self.without.1;
                ensure!(after <= LEASED, "as Redis counts from then on");
                ensure!(!keeps || total - self.without.0 <= LEASED, "what it had counted counts");
            }
        }
        ensure!(before >= LIMIT / 3, "{before} before");
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_redis_that_is_killed_under_load_and_comes_back_gives_nobody_more_than_the_bound() -> Result<()> {
    for (mode, keeps) in MATRIX {
        let case = || format!("{mode:?}, {}", if keeps { "with its data" } else { "empty" });
        let run = Run::of(mode, keeps).await.with_context(case)?;
        run.holds(keeps).with_context(|| {
            let Run { before, away, after, without, .. } = &run;
            format!("{}: {before:?}, then {away:?}, then {after:?}; {without:?} without Redis", case())
        })?;
    }
    Ok(())
}

/// Of a rate many spans pass. The bound is one of all that the time gives, so that a slow machine is within it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rate_goes_on_after_its_redis_was_killed_under_load() -> Result<()> {
    for (mode, keeps) in MATRIX {
        let mut redis = Redis::start(if keeps { KEEPS } else { "" })?;
        let nodes = start(&redis, rate(u32::try_from(LIMIT)?)?, leased(mode))?;
        let begun = Instant::now();
        let load = Load::start(&nodes, "all");
        wait_for("a full bucket to be spent", PATIENCE, || load.admitted() >= LIMIT)?;
        redis.signal(Signal::SIGKILL)?;
        wait_away(&nodes)?;
        let mut admitted = sum(&load.stop().await?);
        let while_away = sum(&together(&nodes, "all", ASKED).await?);
        let load = Load::start(&nodes, "all");
        redis.restart()?;
        tell(&redis)?;
        wait_up(&nodes)?;
        // Beyond the span in which shares hold.
        let back = (Instant::now(), load.admitted());
        wait_for("a bucket and more by Redis", PATIENCE, || {
            load.admitted() > back.1 + LIMIT && back.0.elapsed() > Duration::from_secs(2)
        })?;
        admitted += while_away + sum(&load.stop().await?) + sum(&together(&nodes, "all", ASKED).await?);
        let (seconds, without) = (begun.elapsed().as_secs_f64(), away(&nodes));
        let (counted, buckets) = match mode {
            WhenAway::Open => (admitted - without, if keeps { 1.0 } else { 2.0 }),
            WhenAway::Closed | WhenAway::Share => (admitted, 2.0),
        };
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let (counted, bucket) = (counted as f64, LIMIT as f64);
        // Leases: a tenth.
        let most = bucket * (buckets + seconds) + bucket / 10.0;
        ensure!(
            counted <= most,
            "{mode:?}, {keeps}: {counted} of at most {most} in {seconds}, {without} without Redis"
        );
        ensure!(mode != WhenAway::Closed || while_away == 0, "{while_away} although it is closed");
        ensure!(mode != WhenAway::Open || while_away == 3 * ASKED as u64, "{while_away} although it is open");
    }
    Ok(())
}
