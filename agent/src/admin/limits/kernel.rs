//! Limits that the kernel holds to, as they are shown.

use agent_common::limit::Outcome;

use super::tier::why_of_kernel;
use super::{LimitDump, describe_quota, part, target};
use crate::compile::LimitPolicy;
use crate::model::{KernelCount, KernelKey, KernelLimit, KeyPart, LimitTarget, OverrideValue, Quota};
use crate::telemetry::KernelLimitReading;

/// What [`LimitDump::tier`] says of them.
pub(super) const TIER: &str = "kernel";

pub(super) fn limit(
    policy: &LimitPolicy,
    limit: &KernelLimit,
    (reading, guarded): (Option<KernelLimitReading>, &[String]),
) -> LimitDump {
    let held = place(policy, reading, guarded);
    let KernelLimitReading { by_outcome, keys, evicted, .. } = reading.unwrap_or_default();
    let of = |outcome: Outcome| by_outcome[outcome as usize];
    LimitDump {
        policy: policy.name.to_string(),
        limit: limit.name.to_string(),
        targets: policy.targets.iter().map(target).collect(),
        tier: TIER.to_owned(),
        why: why_of_kernel(is_about_services(policy), policy.is_about_gateways()).to_owned(),
        held: Some(held),
        counts: what(limit.count).to_owned(),
        mode: if policy.shadow { "shadow" } else { "enforce" }.to_owned(),
        quota: amount(limit),
        cost: None,
        exempt: limit.exempt.iter().map(|net| OverrideValue::Network(*net).to_string()).collect(),
        overrides: Vec::new(),
        top: Vec::new(),
        key: key(limit.key).into_iter().collect(),
        admitted: of(Outcome::Admitted),
        refused: of(Outcome::Refused) + of(Outcome::ShadowRefused),
        keys,
        evicted,
        uncounted: of(Outcome::Uncounted),
        push_down: None,
        pushed_down: 0,
        cluster: None,
    }
}

/// A limit in words, such as `connections, 5 in 1s, 10 at once, by source address`.
pub fn said(limit: &KernelLimit) -> String {
    let by = key(limit.key).map_or_else(|| "all together".to_owned(), |key| format!("by {key}"));
    format!("{}, {}, {by}", what(limit.count), amount(limit))
}

fn what(count: KernelCount) -> &'static str {
    match count {
        KernelCount::Connections => "connections",
        KernelCount::Packets => "packets",
    }
}

/// Where it is held to, and why not elsewhere.
fn place(policy: &LimitPolicy, reading: Option<KernelLimitReading>, guarded: &[String]) -> String {
    let Some(KernelLimitReading { ends, listeners, .. }) = reading else {
        return "not held to: this agent has no programs in the kernel".to_owned();
    };
    let mut places = Vec::new();
    if is_about_services(policy) {
        places.push(match ends {
            0 => "not held to: its services have no endpoints".to_owned(),
            ends => {
                format!("where the agent takes them and at this node's pods, for {ends} addresses and ports")
            }
        });
    }
    if policy.is_about_gateways() {
        places.push(match (guarded, listeners) {
            ([], _) => "not held to: no interface is guarded (--guard), where what comes to its Gateways would be counted".to_owned(),
            (_, 0) => "not held to: its Gateways have no listeners".to_owned(),
            (names, some) => {
                format!("where frames come in by {}, for {some} addresses and ports of Gateways", names.join(", "))
            }
        });
    }
    places.join("; ")
}

fn is_about_services(policy: &LimitPolicy) -> bool {
    policy.targets.iter().any(|target| matches!(target, LimitTarget::Service(_)))
}

fn amount(limit: &KernelLimit) -> String {
    describe_quota(Quota::Rate { requests: limit.amount, window_ns: limit.window_ns, burst: limit.burst })
}

fn key(key: KernelKey) -> Option<String> {
    match key {
        KernelKey::Together => None,
        KernelKey::SourceAddress { v4, v6 } => Some(part(&KeyPart::SourceAddress { v4, v6 })),
        KernelKey::SourceIdentity => Some(part(&KeyPart::SourceIdentity)),
    }
}
