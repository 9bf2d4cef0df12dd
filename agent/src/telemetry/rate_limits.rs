//! The series of rate limits: what was let through and refused, by limit and never by key, read when the metrics are.

use std::sync::OnceLock;

use prometheus::{Error, IntCounterVec, IntGaugeVec, Opts, Registry};

/// What is known of one limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimitReading {
    /// The document.
    pub policy: String,
    /// The limit's name within it.
    pub limit: String,
    /// Requests by outcome.
    pub requests: [(&'static str, u64); 3],
    /// Keys that are remembered.
    pub keys: usize,
    /// Keys that were forgotten although they counted something.
    pub evicted: u64,
}

type Read = Box<dyn Fn() -> Vec<RateLimitReading> + Send + Sync>;

/// The series, and who is asked for them.
pub(super) struct RateLimitSeries {
    requests: IntCounterVec,
    keys: IntGaugeVec,
    evicted: IntCounterVec,
    read: OnceLock<Read>,
}

impl RateLimitSeries {
    pub fn new(registry: &Registry) -> Result<Self, Error> {
        let requests =
            Opts::new("sluice_rate_limit_requests_total", "Requests that met a limit, by outcome.");
        let keys = Opts::new("sluice_rate_limit_keys", "Keys that a limit remembers.");
        let evicted = Opts::new(
            "sluice_rate_limit_evicted_total",
            "Keys that a limit forgot for others although they counted something.",
        );
        let series = Self {
            requests: IntCounterVec::new(requests, &["policy", "limit", "outcome"])?,
            keys: IntGaugeVec::new(keys, &["policy", "limit"])?,
            evicted: IntCounterVec::new(evicted, &["policy", "limit"])?,
            read: OnceLock::new(),
        };
        registry.register(Box::new(series.requests.clone()))?;
        registry.register(Box::new(series.keys.clone()))?;
        registry.register(Box::new(series.evicted.clone()))?;
        Ok(series)
    }

    /// Only the first reader is taken.
    pub fn watch(&self, read: impl Fn() -> Vec<RateLimitReading> + Send + Sync + 'static) {
        let _ = self.read.set(Box::new(read));
    }

    /// Asks for the counts anew. Limits come and go with their documents, and their series with them.
    pub fn refresh(&self) {
        let Some(read) = self.read.get() else { return };
        self.requests.reset();
        self.keys.reset();
        self.evicted.reset();
        for reading in read() {
            let (policy, limit) = (reading.policy.as_str(), reading.limit.as_str());
            for (outcome, count) in reading.requests {
                self.requests.with_label_values(&[policy, limit, outcome]).inc_by(count);
            }
            let keys = i64::try_from(reading.keys).unwrap_or(i64::MAX);
            self.keys.with_label_values(&[policy, limit]).set(keys);
            self.evicted.with_label_values(&[policy, limit]).inc_by(reading.evicted);
        }
    }
}
