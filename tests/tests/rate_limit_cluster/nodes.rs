//! Nodes that count one limit together in a real Redis, without agents around them.
#![allow(dead_code, reason = "every test binary uses its own part of this")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::cluster::{CountersReading, RedisCounters, RedisOptions};
use agent::limit::counters::{Counters, KeyWriter, SharedKey};
use agent::limit::holdings::{Held, Holdings};
use agent::limit::quota::{Begun, SharedLimit, SharedQuota, SharedSettings, WhenAway, shared_rate};
use agent::limit::{Rate, Verdict, Window};
use anyhow::{Context, Result};
use lab::redis::Redis;
use lab::wait::{PATIENCE, wait_for};

const NODES: usize = 3;
const POLICY: &str = "default/calm";
const LIMIT: &str = "each";
const SECOND: u64 = 1_000_000_000;

/// So many requests in any quarter of an hour.
pub fn window(requests: u32) -> SharedQuota {
    SharedQuota::Window(Window { requests, window: 900 * SECOND })
}

/// So many requests each second, and as many at once.
pub fn rate(requests: u32) -> Result<SharedQuota> {
    rate_in(requests, Duration::from_secs(1))
}

/// Likewise in another span.
pub fn rate_in(requests: u32, span: Duration) -> Result<SharedQuota> {
    let window = u64::try_from(span.as_nanos())?;
    let nanoseconds = Rate::new(requests.into(), window, requests.into())?;
    let microseconds = shared_rate(requests, window, requests).context("too large")?;
    Ok(SharedQuota::Rate(nanoseconds, microseconds))
}

/// A node's part of it.
#[derive(Clone)]
pub struct Node {
    pub limit: Arc<SharedLimit>,
    pub redis: Arc<RedisCounters>,
    counters: Arc<dyn Counters>,
    start: Instant,
}

impl Node {
    /// Whether it lets a request of a key through.
    pub async fn asks(&self, key: SharedKey) -> bool {
        self.asks_for(key, 1).await
    }

    /// Likewise one that costs so much.
    pub async fn asks_for(&self, key: SharedKey, cost: u32) -> bool {
        let at = (self.now(), cost);
        let verdict = match self.limit.begin(key, at, Some(&self.counters)) {
            Begun::Known(verdict) => verdict,
            Begun::Asked(waiting) => self.limit.finish(key, at, waiting, Some(&self.counters)).await,
        };
        matches!(verdict, Verdict::Admitted { .. })
    }

    /// Gives back a request that was let through.
    pub fn gives_back(&self, key: SharedKey) {
        self.limit.give_back(key, (self.now(), 1), Some(&self.counters));
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX) + SECOND
    }

    /// How many of so many requests it lets through, one after the other.
    pub async fn lets_through(&self, key: SharedKey, of: usize) -> usize {
        let mut count = 0;
        for _ in 0..of {
            count += usize::from(self.asks(key).await);
        }
        count
    }

    /// The key of this name.
    pub fn key(&self, name: &str) -> SharedKey {
        let mut writer = self.limit.writer();
        std::hash::Hasher::write(&mut writer, name.as_bytes());
        writer.key()
    }

    /// Tells the others what it holds, as agents do.
    pub fn tells(&self, name: &str) {
        let limit = Arc::clone(&self.limit);
        self.redis.tell(name, move || {
            let held = Held { policy: POLICY.to_owned(), limit: LIMIT.to_owned(), units: limit.leased(0) };
            Some(Holdings::new(std::iter::once(held)))
        });
    }

    /// What it knows of what the nodes hold, by name; `None`: the store can't be asked.
    pub fn hears(&self) -> Option<Vec<(String, Option<u64>)>> {
        let held = self.redis.held().ok()?;
        let units = |told: Option<(Holdings, Duration)>| told.and_then(|(held, _)| held.of(POLICY, LIMIT));
        Some(held.into_iter().map(|node| (node.node, units(node.told))).collect())
    }

    pub fn reading(&self) -> CountersReading {
        self.redis.reading()
    }
}

/// Three nodes, which know of each other.
pub fn start(redis: &Redis, quota: SharedQuota, settings: SharedSettings) -> Result<Vec<Node>> {
    let nodes = start_at(&format!("redis://{}", redis.address), quota, settings)?;
    tell(redis)?;
    wait_up(&nodes)?;
    Ok(nodes)
}

/// Likewise, whatever is there.
pub fn start_at(url: &str, quota: SharedQuota, settings: SharedSettings) -> Result<Vec<Node>> {
    let start = Instant::now();
    let node = |_| {
        let limit = SharedLimit::new(settings, quota, KeyWriter::new(b"test"), 1024);
        let redis = Arc::new(RedisCounters::start(RedisOptions::new(url, "x"))?);
        redis.open();
        let counters: Arc<dyn Counters> = Arc::<RedisCounters>::clone(&redis);
        Ok(Node { limit: Arc::new(limit), redis, counters, start })
    };
    (0..NODES).map(node).collect()
}

/// Lets the store know of the nodes, as their heartbeats do.
pub fn tell(redis: &Redis) -> Result<()> {
    for node in ["node1", "node2", "node3"] {
        redis.ask(&["ZADD", "{sluice:x}:nodes", "9000000000000000", node])?;
    }
    Ok(())
}

/// Waits until all nodes reach the store and know of each other.
pub fn wait_up(nodes: &[Node]) -> Result<()> {
    wait_for("the nodes to reach Redis", PATIENCE, || {
        nodes.iter().map(Node::reading).all(|seen| seen.state == "up" && seen.nodes == 3)
    })
}

/// Waits until no node reaches the store.
pub fn wait_away(nodes: &[Node]) -> Result<()> {
    wait_for("the nodes to miss Redis", PATIENCE, || {
        nodes.iter().map(Node::reading).all(|seen| seen.state == "away")
    })
}

pub fn exact(away: WhenAway) -> SharedSettings {
    SharedSettings { leased: false, away }
}

pub fn leased(away: WhenAway) -> SharedSettings {
    SharedSettings { leased: true, away }
}

/// How long a decision may take that the store is not there for, on a machine that does other things too.
pub const SOON: Duration = Duration::from_millis(250);
