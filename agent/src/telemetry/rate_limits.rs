//! The series of rate limits: what was let through and refused, by limit and never by key, read when the metrics are.

use std::sync::OnceLock;

use agent_common::limit::Outcome;
use prometheus::{Error, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// What is known of one limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimitReading {
    /// The document.
    pub policy: String,
    /// The limit's name within it.
    pub limit: String,
    /// Requests by outcome; of a limit of the kernel connections or packets.
    pub counted: Vec<(&'static str, u64)>,
    /// Whether the kernel holds to it.
    pub of_kernel: bool,
    /// Keys that are remembered.
    pub keys: usize,
    /// Keys that were forgotten although they counted something.
    pub evicted: u64,
    /// Sources that the guard was told to keep out, where the limit has that done.
    pub pushed: Option<u64>,
    /// Of a limit of the cluster: questions to the store, and requests that were decided while it was away.
    pub store: Option<(u64, u64)>,
}

/// What is known of a limit that the kernel holds to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KernelLimitReading {
    /// Connections or packets by [`Outcome`], in the order of their numbers.
    pub by_outcome: [u64; Outcome::ALL.len()],
    /// Sources that are remembered.
    pub keys: usize,
    /// Sources that were forgotten for others, and begin anew where they come again.
    pub evicted: u64,
    /// Addresses and ports of services and their endpoints that it is about.
    pub ends: usize,
    /// Addresses and ports of Gateways that it is about.
    pub listeners: usize,
}

/// What limits of the cluster are counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitStoreReading {
    /// Whether it answers.
    pub up: bool,
    /// How many nodes share limits.
    pub nodes: u32,
    /// Scripts that were run.
    pub calls: u64,
    /// Those of them that failed.
    pub failures: u64,
}

type Read = Box<dyn Fn() -> Vec<RateLimitReading> + Send + Sync>;
type ReadStore = Box<dyn Fn() -> LimitStoreReading + Send + Sync>;

/// The series, and who is asked for them.
pub(super) struct RateLimitSeries {
    requests: IntCounterVec,
    kernel: IntCounterVec,
    keys: IntGaugeVec,
    evicted: IntCounterVec,
    pushed: IntCounterVec,
    asked: IntCounterVec,
    away: IntCounterVec,
    store: StoreSeries,
    read: OnceLock<Read>,
}

/// The series of the store.
struct StoreSeries {
    up: IntGauge,
    nodes: IntGauge,
    calls: IntCounterVec,
    read: OnceLock<ReadStore>,
}

impl StoreSeries {
    fn new(registry: &Registry) -> Result<Self, Error> {
        let calls = Opts::new("sluice_rate_limit_store_calls_total", "Scripts for limits of the cluster.");
        let series = Self {
            up: IntGauge::new(
                "sluice_rate_limit_store_up",
                "Whether limits of the cluster are counted by Redis.",
            )?,
            nodes: IntGauge::new("sluice_rate_limit_nodes", "Nodes that share limits of the cluster.")?,
            calls: IntCounterVec::new(calls, &["outcome"])?,
            read: OnceLock::new(),
        };
        registry.register(Box::new(series.up.clone()))?;
        registry.register(Box::new(series.nodes.clone()))?;
        registry.register(Box::new(series.calls.clone()))?;
        Ok(series)
    }

    fn refresh(&self) {
        let Some(read) = self.read.get() else { return };
        let reading = read();
        self.up.set(reading.up.into());
        self.nodes.set(reading.nodes.into());
        self.calls.reset();
        let answered = reading.calls.saturating_sub(reading.failures);
        self.calls.with_label_values(&["answered"]).inc_by(answered);
        self.calls.with_label_values(&["failed"]).inc_by(reading.failures);
    }
}

impl RateLimitSeries {
    pub fn new(registry: &Registry) -> Result<Self, Error> {
        let requests =
            Opts::new("sluice_rate_limit_requests_total", "Requests that met a limit, by outcome.");
        let kernel = Opts::new(
            "sluice_rate_limit_kernel_total",
            "Connections or packets that met a limit of the kernel, by outcome.",
        );
        let keys = Opts::new("sluice_rate_limit_keys", "Keys that a limit remembers.");
        let evicted = Opts::new(
            "sluice_rate_limit_evicted_total",
            "Keys that a limit forgot for others although they counted something.",
        );
        let pushed = Opts::new(
            "sluice_rate_limit_pushed_down_total",
            "How often the guard was told to keep out a source that a limit went on refusing.",
        );
        let asked = Opts::new("sluice_rate_limit_asked_total", "Questions to Redis about a limit.");
        let away = Opts::new(
            "sluice_rate_limit_away_total",
            "Requests that a limit of the cluster decided while Redis was away.",
        );
        let series = Self {
            requests: IntCounterVec::new(requests, &["policy", "limit", "outcome"])?,
            kernel: IntCounterVec::new(kernel, &["policy", "limit", "outcome"])?,
            keys: IntGaugeVec::new(keys, &["policy", "limit"])?,
            evicted: IntCounterVec::new(evicted, &["policy", "limit"])?,
            pushed: IntCounterVec::new(pushed, &["policy", "limit"])?,
            asked: IntCounterVec::new(asked, &["policy", "limit"])?,
            away: IntCounterVec::new(away, &["policy", "limit"])?,
            store: StoreSeries::new(registry)?,
            read: OnceLock::new(),
        };
        registry.register(Box::new(series.pushed.clone()))?;
        registry.register(Box::new(series.asked.clone()))?;
        registry.register(Box::new(series.away.clone()))?;
        registry.register(Box::new(series.requests.clone()))?;
        registry.register(Box::new(series.kernel.clone()))?;
        registry.register(Box::new(series.keys.clone()))?;
        registry.register(Box::new(series.evicted.clone()))?;
        Ok(series)
    }

    /// Only the first reader is taken.
    pub fn watch(&self, read: impl Fn() -> Vec<RateLimitReading> + Send + Sync + 'static) {
        let _ = self.read.set(Box::new(read));
    }

    /// Likewise for the store.
    pub fn watch_store(&self, read: impl Fn() -> LimitStoreReading + Send + Sync + 'static) {
        let _ = self.store.read.set(Box::new(read));
    }

    /// Asks for the counts anew. Limits come and go with their documents, and their series with them.
    pub fn refresh(&self) {
        self.store.refresh();
        let Some(read) = self.read.get() else { return };
        self.pushed.reset();
        self.asked.reset();
        self.away.reset();
        self.requests.reset();
        self.kernel.reset();
        self.keys.reset();
        self.evicted.reset();
        for reading in read() {
            let (policy, limit) = (reading.policy.as_str(), reading.limit.as_str());
            let series = if reading.of_kernel { &self.kernel } else { &self.requests };
            for (outcome, count) in reading.counted {
                series.with_label_values(&[policy, limit, outcome]).inc_by(count);
            }
            let keys = i64::try_from(reading.keys).unwrap_or(i64::MAX);
            self.keys.with_label_values(&[policy, limit]).set(keys);
            self.evicted.with_label_values(&[policy, limit]).inc_by(reading.evicted);
            if let Some(pushed) = reading.pushed {
                self.pushed.with_label_values(&[policy, limit]).inc_by(pushed);
            }
            if let Some((asked, away)) = reading.store {
                self.asked.with_label_values(&[policy, limit]).inc_by(asked);
                self.away.with_label_values(&[policy, limit]).inc_by(away);
            }
        }
    }
}
