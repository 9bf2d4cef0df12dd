//! Rate limits as they are shown.

mod kernel;
mod tier;

use serde::{Deserialize, Serialize};

use crate::compile::{LimitCounter, LimitPolicy, RoutingTable};
use crate::limit::quota::SharedUse;
use crate::limit::top::{TopKey, fingerprint};
use crate::model::{
    Cost, CostSource, KernelLimit, KeyPart, Limit, LimitTarget, ObjectName, Override, OverrideValue, Quota,
};
use crate::telemetry::{KernelLimitReading, RateLimitReading};

pub(super) use kernel::said as said_of_kernel;

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

/// What a node has leased of a limit and not used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLeasedDump {
    /// The node.
    pub node: String,
    /// Units; none where that is not known.
    pub leased: Option<u64>,
    /// How long ago it said so, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
    /// Why it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Option<String>,
}

/// How a limit of the cluster is used on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedDump {
    /// Questions to the store.
    pub asked: u64,
    /// Requests that were decided while it was away.
    pub away: u64,
    /// Units that this node has leased and not used.
    #[serde(alias = "leased")]
    pub leased_on_this_node: u64,
    /// The same of each node that is alive, this one among them; empty where nobody leases, or the agent is alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leased_by_node: Vec<NodeLeasedDump>,
}

/// Other numbers for a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverrideDump {
    /// The values of the key's parts; those of fields, cookies and queries by the beginning of their SHA-256.
    pub values: Vec<String>,
    /// What is let through.
    pub quota: String,
}

/// A key that came often within the last five to ten minutes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopKeyDump {
    /// Its values; those of fields, cookies and queries by the beginning of their SHA-256.
    pub key: String,
    /// Requests that were let through, about and no fewer.
    pub admitted: u64,
    /// Requests that were refused, or would have been; likewise.
    pub refused: u64,
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
    /// Where it is kept: `node`, by this agent for this node; `cluster, exact` or `cluster, leased`, by all nodes together;
    /// `kernel`, by this node's kernel, without the agent.
    pub tier: String,
    /// Why there: what of the document chose it.
    #[serde(default)]
    pub why: String,
    /// Of a limit of the kernel, where it is held to or why it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<String>,
    /// What it counts: `requests`, opaque `connections`, or in the kernel `connections` or `packets`.
    #[serde(default)]
    pub counts: String,
    /// `enforce`, or `shadow` where it only counts.
    pub mode: String,
    /// What is let through, e.g. `100 in 15m`.
    pub quota: String,
    /// What a request costs, where that is not one, e.g. `5` or `2, or what the header x-cost says, at most 10`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<String>,
    /// What is counted apart.
    pub key: Vec<String>,
    /// Whom it does not hold for: networks and addresses, and as whom senders are proven.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exempt: Vec<String>,
    /// Other numbers for some keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<OverrideDump>,
    /// Where it was asked for, the keys that were refused most often, and then those that were let through most often.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<TopKeyDump>,
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

/// The table's limits, each with so many of its keys; `of_kernel` says what the kernel does with one of its own, `None`: nothing;
/// `guarded` are the interfaces that have the guard.
pub fn limits(
    table: &RoutingTable,
    top: usize,
    guarded: &[String],
    of_kernel: impl Fn(&ObjectName, &KernelLimit) -> Option<KernelLimitReading>,
) -> LimitsDump {
    let of_policy = |policy: &LimitPolicy| -> Vec<LimitDump> {
        let asked = policy.limits.iter().map(|counter| limit(policy, (counter, "requests"), top));
        let opaque = policy.connections.iter().map(|counter| limit(policy, (counter, "connections"), top));
        let kernel = policy.kernel.iter();
        let kernel =
            kernel.map(|limit| kernel::limit(policy, limit, (of_kernel(&policy.name, limit), guarded)));
        asked.chain(opaque).chain(kernel).collect()
    };
    LimitsDump {
        limits: table.limits.policies().iter().flat_map(|policy| of_policy(policy)).collect(),
        store: None,
    }
}

fn limit(policy: &LimitPolicy, (counter, counts): (&LimitCounter, &str), top: usize) -> LimitDump {
    let usage = counter.usage();
    LimitDump {
        policy: policy.name.to_string(),
        limit: counter.limit.name.to_string(),
        targets: policy.targets.iter().map(target).collect(),
        tier: tier::tier(counter).to_owned(),
        why: tier::why(&counter.limit, counter.is_shared()),
        held: None,
        counts: counts.to_owned(),
        mode: if policy.shadow { "shadow" } else { "enforce" }.to_owned(),
        quota: describe_quota(counter.limit.quota),
        cost: cost(&counter.limit.cost),
        key: counter.limit.key.iter().map(part).collect(),
        exempt: exempt(&counter.limit),
        overrides: counter.limit.overrides.iter().map(|other| override_of(&counter.limit, other)).collect(),
        top: if top == 0 { Vec::new() } else { counter.top(top).into_iter().map(top_key).collect() },
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
        cluster: counter.shared_usage().map(|SharedUse { asked, away, leased, .. }| SharedDump {
            asked,
            away,
            leased_on_this_node: leased,
            leased_by_node: Vec::new(),
        }),
    }
}

fn top_key(key: TopKey) -> TopKeyDump {
    TopKeyDump { key: key.label, admitted: key.admitted, refused: key.refused }
}

fn override_of(limit: &Limit, other: &Override) -> OverrideDump {
    let shown = |(part, value): (&KeyPart, &OverrideValue)| match (part, value) {
        (KeyPart::Header(_) | KeyPart::Cookie(_) | KeyPart::Query(_), OverrideValue::Text(text)) => {
            fingerprint(text.as_bytes())
        }
        (_, value) => value.to_string(),
    };
    OverrideDump {
        values: limit.key.iter().zip(&other.values).map(shown).collect(),
        quota: describe_quota(other.quota),
    }
}

/// Whom a limit does not hold for, as its document has it.
pub(super) fn exempt(limit: &Limit) -> Vec<String> {
    let networks = limit.exempt.iter().map(|net| OverrideValue::Network(*net).to_string());
    let principals = limit.exempt_principals.iter().map(ToString::to_string);
    networks.chain(principals).collect()
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
        LimitTarget::SentBy(pods) => format!("sent by pods {pods}"),
        LimitTarget::SentFrom(Some(node)) => format!("sent by pods of node {node}"),
        LimitTarget::SentFrom(None) => "sent by pods of each node".to_owned(),
        LimitTarget::Enters(pods) => format!("enters pods {pods}"),
        LimitTarget::EntersNode(Some(node)) => format!("enters pods of node {node}"),
        LimitTarget::EntersNode(None) => "enters pods of each node".to_owned(),
    }
}

fn span(nanoseconds: u64) -> String {
    format!("{:?}", std::time::Duration::from_nanos(nanoseconds))
}

/// What is let through, e.g. `100 in any 15m`.
pub(super) fn describe_quota(quota: Quota) -> String {
    match quota {
        Quota::Rate { requests, window_ns, burst } => {
            format!("{requests} in {}, {burst} at once", span(window_ns))
        }
        Quota::Window { requests, window_ns } => format!("{requests} in any {}", span(window_ns)),
        Quota::InFlight { requests } => format!("{requests} in flight"),
    }
}

fn cost(cost: &Cost) -> Option<String> {
    let Some(said) = &cost.said else { return (cost.units != 1).then(|| cost.units.to_string()) };
    let by = match &said.by {
        CostSource::Header(name) => format!("header {name}"),
        CostSource::Query(name) => format!("query {name}"),
    };
    let most = said.max.map_or_else(|| "what may come at once".to_owned(), |max| max.to_string());
    Some(format!("{}, or what the {by} says, at most {most}", cost.units))
}

/// What is counted apart.
pub(super) fn describe_key(key: &[KeyPart]) -> String {
    if key.is_empty() {
        return "all together".to_owned();
    }
    format!("by {}", key.iter().map(part).collect::<Vec<_>>().join(", "))
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
        KeyPart::PathTemplate(part) => {
            let texts: Vec<&str> = part.templates.iter().map(|template| &*template.text).collect();
            let by = part.name.as_ref().map_or_else(|| "template".to_owned(), |name| format!("{{{name}}}"));
            format!("path {by} of {}", texts.join(" "))
        }
        KeyPart::Method => "method".to_owned(),
        KeyPart::Host => "host".to_owned(),
        KeyPart::Route => "route".to_owned(),
    }
}

/// The same for the metrics.
pub fn read_limits(dump: LimitsDump) -> Vec<RateLimitReading> {
    let read = |limit: LimitDump| {
        let shadow = limit.mode == "shadow";
        let refused = |of: bool| if shadow == of { limit.refused } else { 0 };
        let mut counted = vec![
            ("admitted", limit.admitted),
            ("refused", refused(false)),
            ("shadow_refused", refused(true)),
        ];
        let of_kernel = limit.tier == kernel::TIER;
        counted.extend(of_kernel.then_some(("uncounted", limit.uncounted)));
        RateLimitReading {
            policy: limit.policy,
            limit: limit.limit,
            counted,
            of_kernel,
            keys: limit.keys,
            evicted: limit.evicted,
            pushed: limit.push_down.is_some().then_some(limit.pushed_down),
            store: limit.cluster.map(|cluster| (cluster.asked, cluster.away)),
        }
    };
    dump.limits.into_iter().map(read).collect()
}
