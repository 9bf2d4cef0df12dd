//! What is shown of rate limits: those of the table in force, and what those of the cluster are counted by.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use crate::admin::{LimitStoreDump, LimitsDump, NodeLeasedDump, limits};
use crate::capture::LimitCounters;
use crate::cluster::{ClusterView, NodeHolds, RedisCounters};
use crate::compile::RoutingTable;
use crate::limit::holdings::{Held, Holdings};
use crate::model::{KernelLimit, ObjectName};
use crate::telemetry::{LimitStoreReading, Metrics};

/// Of limits of the cluster, where there is none.
const ALONE: &str = "; without `--redis` this agent is the whole cluster";

/// The tier of limits that nodes lease of.
const LEASED: &str = "cluster, leased";
/// Why it is not known what a node has leased.
const AWAY: &str = "Redis does not answer";
const SILENT: &str = "it has told nothing of late: its agent may be older, or has no such limit";
const TOO_MANY: &str = "it has leased of more limits than it tells of";

/// The limits in force, each with so many of its keys; `kernel`: what those that the kernel holds to are counted by, where it holds
/// to any, and the interfaces that have the guard.
pub(super) fn dump(
    counters: Option<&RedisCounters>,
    (kernel, guarded): (Option<&LimitCounters>, &[String]),
    table: &RoutingTable,
    top: usize,
) -> LimitsDump {
    let store = counters.filter(|_| table.limits.are_shared()).map(|counters| {
        let reading = counters.reading();
        LimitStoreDump {
            state: reading.state.to_owned(),
            nodes: reading.nodes,
            calls: reading.calls,
            failures: reading.failures,
        }
    });
    let of_kernel = table.limits.of_kernel().next().and(kernel);
    if let Some(kernel) = of_kernel {
        kernel.look();
    }
    let read = |policy: &ObjectName, limit: &KernelLimit| of_kernel?.read(policy, &limit.name);
    let mut dump = LimitsDump { store, ..limits(table, top, guarded, read) };
    if counters.is_none() {
        for limit in dump.limits.iter_mut().filter(|limit| limit.cluster.is_some()) {
            limit.why.push_str(ALONE);
        }
    }
    dump
}

/// What this node has leased and not used, as the others are told; `None`: the table has no limit that nodes lease of.
pub(super) fn holdings(table: &RoutingTable) -> Option<Holdings> {
    let limits = table.limits.policies().iter().flat_map(|policy| policy.all().map(move |of| (policy, of)));
    let mut leased = limits.filter_map(|(policy, counter)| {
        let (policy, limit) = (policy.name.to_string(), counter.limit.name.to_string());
        Some(Held { policy, limit, units: counter.leased()? })
    });
    let first = leased.next()?;
    Some(Holdings::new(std::iter::once(first).chain(leased)))
}

/// Adds what each node has leased and not used, as they have told the store. `view`: who is there, where that does not answer.
pub(super) fn add_leased(
    dump: &mut LimitsDump,
    own: &str,
    counters: &RedisCounters,
    view: Option<&Mutex<ClusterView>>,
) {
    let mut leased = dump.limits.iter_mut().filter(|limit| limit.tier == LEASED).peekable();
    if leased.peek().is_none() {
        return;
    }
    let told = counters.held();
    let mut nodes: BTreeSet<String> = match &told {
        Ok(told) => told.iter().map(|told| told.node.clone()).collect(),
        Err(_) => view.map(alive).unwrap_or_default(),
    };
    nodes.insert(own.to_owned());
    let told = told.map(|told| told.into_iter().map(|NodeHolds { node, told }| (node, told)));
    let told: Result<BTreeMap<_, _>, _> = told.map(Iterator::collect);
    for limit in leased {
        let Some(cluster) = &mut limit.cluster else { continue };
        let of_node = |node: &String| {
            let known = match &told {
                _ if *node == own => Ok((cluster.leased_on_this_node, 0)),
                Err(_) => Err(AWAY),
                Ok(told) => match told.get(node).and_then(Option::as_ref) {
                    None => Err(SILENT),
                    Some((holdings, age)) => {
                        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
                        holdings.of(&limit.policy, &limit.limit).map(|units| (units, age)).ok_or(TOO_MANY)
                    }
                },
            };
            NodeLeasedDump {
                node: node.clone(),
                leased: known.ok().map(|(units, _)| units),
                age_ms: known.ok().map(|(_, age)| age),
                unknown: known.err().map(str::to_owned),
            }
        };
        cluster.leased_by_node = nodes.iter().map(of_node).collect();
    }
}

/// The nodes that were alive when the cluster was heard of last.
fn alive(view: &Mutex<ClusterView>) -> BTreeSet<String> {
    let view = view.lock().unwrap_or_else(PoisonError::into_inner);
    view.nodes.iter().filter(|node| node.alive).map(|node| node.name.to_string()).collect()
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
