//! What is shown of rate limits: those of the table in force, and what those of the cluster are counted by.

use std::sync::Arc;

use crate::admin::{LimitStoreDump, LimitsDump, limits};
use crate::cluster::RedisCounters;
use crate::compile::RoutingTable;
use crate::telemetry::{LimitStoreReading, Metrics};

/// The limits in force.
pub(super) fn dump(counters: Option<&RedisCounters>, table: &RoutingTable) -> LimitsDump {
    let store = counters.filter(|_| table.limits.are_shared()).map(|counters| {
        let reading = counters.reading();
        LimitStoreDump {
            state: reading.state.to_owned(),
            nodes: reading.nodes,
            calls: reading.calls,
            failures: reading.failures,
        }
    });
    LimitsDump { store, ..limits(table) }
}

/// Shows the counters in the metrics.
pub(super) fn watch(metrics: &Metrics, counters: Arc<RedisCounters>) {
    metrics.watch_limit_store(move || {
        let reading = counters.reading();
        LimitStoreReading {
            up: reading.state == "up",
            nodes: reading.nodes,
            calls: reading.calls,
            failures: reading.failures,
        }
    });
}
