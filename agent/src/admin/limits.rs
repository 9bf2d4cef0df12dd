//! Rate limits as they are shown.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::compile::{LimitCounter, LimitPolicy, RoutingTable, limit_time};
use crate::limit::quota::SharedUse;
use crate::model::{ClusterMode, KeyPart, LimitTarget, Quota};
use crate::telemetry::RateLimitReading;

/// The limits in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsDump {
    /// One entry for each limit of each document, by name.
    pub limits: Vec<LimitDump>,
    /// What those of the cluster are counted by; none where there are none, or the agent is alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<LimitStoreDump>,
}

/// What limits of the cluster are counted by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitStoreDump {
    /// `up`, `away`, or `connecting`.
    pub state: String,
    /// How many nodes share limits.
    pub nodes: u32,
    /// Scripts that were run.
    pub calls: u64,
    /// Those of them that failed.
    pub failures: u64,
}

/// How a limit of the cluster is used on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedDump {
    /// Questions to the store.
    pub asked: u64,
    /// Requests that were decided while it was away.
    pub away: u64,
    /// Requests that may be let through of what was leased.
    pub leased: u64,
}

/// A limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitDump {
    /// The document.
    pub policy: String,
    /// The limit's name within it.
    pub limit: String,
    /// What it is about.
    pub targets: Vec<String>,
    /// Where it is kept: `node`, by this agent for this node; `cluster, exact` or `cluster, leased`, by all nodes together.
    pub tier: String,
    /// `enforce`, or `shadow` where it only counts.
    pub mode: String,
    /// What is let through, e.g. `100 in 15m`.
    pub quota: String,
    /// What is counted apart.
    pub key: Vec<String>,
    /// Requests that were let through.
    pub admitted: u64,
    /// Requests that were refused, or would have been.
    pub refused: u64,
    /// Keys that are remembered.
    pub keys: usize,
    /// Keys that were forgotten although they counted something.
    pub evicted: u64,
    /// Requests that were let through uncounted, as nothing could be forgotten for them.
    pub uncounted: u64,
    /// When the guard keeps a source out, e.g. `after 100 refusals in 10s, for 60s`; none: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push_down: Option<String>,
    /// How often the guard was told to keep a source out; of one that goes on before it acts, again.
    #[serde(default)]
    pub pushed_down: u64,
    /// Of a limit of the cluster, how it is used on this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<SharedDump>,
}

/// The table's limits.
pub fn limits(table: &RoutingTable) -> LimitsDump {
    let of_policy = |policy: &LimitPolicy| -> Vec<LimitDump> {
        policy.limits.iter().map(|counter| limit(policy, counter)).collect()
    };
    LimitsDump {
        limits: table.limits.policies().iter().flat_map(|policy| of_policy(policy)).collect(),
        store: None,
    }
}

fn limit(policy: &LimitPolicy, counter: &LimitCounter) -> LimitDump {
    let usage = counter.usage();
    LimitDump {
        policy: policy.name.to_string(),
        limit: counter.limit.name.to_string(),
        targets: policy.targets.iter().map(target).collect(),
        tier: tier(counter).to_owned(),
        mode: if policy.shadow { "shadow" } else { "enforce" }.to_owned(),
        quota: quota(counter.limit.quota),
        key: counter.limit.key.iter().map(part).collect(),
        admitted: usage.admitted,
        refused: usage.refused,
        keys: usage.keys,
        evicted: usage.evicted,
        uncounted: usage.uncounted,
        push_down: counter.limit.push_down.map(|rule| {
            let (within, lasts) = (span(rule.within_ns), span(rule.lasts_ns));
            format!("after {} refusals in {within}, for {lasts}", rule.after)
        }),
        pushed_down: usage.pushed,
        cluster: counter.shared().map(|shared| {
            let SharedUse { asked, away, leased, .. } = shared.usage(limit_time(Instant::now()));
            SharedDump { asked, away, leased }
        }),
    }
}

fn tier(counter: &LimitCounter) -> &'static str {
    match counter.limit.cluster.map(|cluster| cluster.mode).filter(|_| counter.shared().is_some()) {
        None => "node",
        Some(ClusterMode::Exact) => "cluster, exact",
        Some(ClusterMode::Leased) => "cluster, leased",
    }
}

fn target(target: &LimitTarget) -> String {
    let with = |kind: &str, name: &dyn std::fmt::Display, part: &Option<std::sync::Arc<str>>| match part {
        Some(part) => format!("{kind} {name}/{part}"),
        None => format!("{kind} {name}"),
    };
    match target {
        LimitTarget::Service(name) => with("Service", name, &None),
        LimitTarget::Gateway(name, listener) => with("Gateway", name, listener),
        LimitTarget::Route(kind, name, rule) => with(kind.as_str(), name, rule),
    }
}

fn span(nanoseconds: u64) -> String {
    format!("{:?}", std::time::Duration::from_nanos(nanoseconds))
}

fn quota(quota: Quota) -> String {
    match quota {
        Quota::Rate { requests, window_ns, burst } => {
            format!("{requests} in {}, {burst} at once", span(window_ns))
        }
        Quota::Window { requests, window_ns } => format!("{requests} in any {}", span(window_ns)),
        Quota::InFlight { requests } => format!("{requests} in flight"),
    }
}

fn part(part: &KeyPart) -> String {
    match part {
        KeyPart::SourceAddress { v4: 32, v6: 128 } => "source address".to_owned(),
        KeyPart::SourceAddress { v4, v6 } => format!("source network /{v4}, /{v6}"),
        KeyPart::SourceIdentity => "source identity".to_owned(),
        KeyPart::Header(name) => format!("header {name}"),
        KeyPart::Cookie(name) => format!("cookie {name}"),
        KeyPart::Query(name) => format!("query {name}"),
        KeyPart::Path => "path".to_owned(),
        KeyPart::Method => "method".to_owned(),
        KeyPart::Host => "host".to_owned(),
        KeyPart::Route => "route".to_owned(),
    }
}

/// The same for the metrics.
pub fn read_limits(table: &RoutingTable) -> Vec<RateLimitReading> {
    let dump = limits(table);
    let read = |limit: LimitDump| {
        let shadow = limit.mode == "shadow";
        let refused = |of: bool| if shadow == of { limit.refused } else { 0 };
        let requests =
            [("admitted", limit.admitted), ("refused", refused(false)), ("shadow_refused", refused(true))];
        RateLimitReading {
            policy: limit.policy,
            limit: limit.limit,
            requests,
            keys: limit.keys,
            evicted: limit.evicted,
            pushed: limit.push_down.is_some().then_some(limit.pushed_down),
            store: limit.cluster.map(|cluster| (cluster.asked, cluster.away)),
        }
    };
    dump.limits.into_iter().map(read).collect()
}
