//! Flow events as `/flows` shows them.

use std::time::Duration;

use crate::admin::{FlowDump, FlowsDump, protocol_name};
use crate::telemetry::{Flow, FlowLog, FlowRule, rfc3339};

/// The flows from a number on.
pub(super) fn dump(flows: &FlowLog, since: u64) -> FlowsDump {
    let (found, next) = flows.since(since);
    FlowsDump {
        agent: rfc3339(flows.began()).to_string(),
        next,
        lost: flows.lost(),
        flows: found.iter().map(shown).collect(),
    }
}

/// One flow.
pub(super) fn shown(flow: &Flow) -> FlowDump {
    let event = &flow.event;
    let (policy, rule) = match &event.rule {
        None => (None, None),
        Some(FlowRule::Policy(denied)) => (Some(denied.policy.to_string()), Some(denied.rule_label())),
        Some(FlowRule::NoRoom) => (Some("-".to_owned()), Some("no_room".to_owned())),
        Some(FlowRule::HiddenPorts) => (Some("-".to_owned()), Some("hidden_ports".to_owned())),
        Some(FlowRule::Guard(name)) => (Some(name.clone()), None),
        Some(FlowRule::Limit(policy, limit)) => (Some(policy.to_string()), Some(limit.to_string())),
    };
    FlowDump {
        number: flow.number,
        time: rfc3339(flow.at).to_string(),
        source: event.source.to_string(),
        source_pod: flow.source_pod.as_ref().map(ToString::to_string),
        destination: event.destination.to_string(),
        destination_name: flow.destination_name.as_ref().map(ToString::to_string),
        kind: event.kind.as_str().to_owned(),
        tier: event.tier.as_str().to_owned(),
        verdict: event.verdict.to_owned(),
        reason: event.reason.to_owned(),
        protocol: protocol_name(event.protocol),
        policy,
        rule,
        endpoint: event.endpoint.map(|endpoint| endpoint.to_string()),
        endpoint_pod: flow.endpoint_pod.as_ref().map(ToString::to_string),
        sent_bytes: event.bytes.map(|(sent, _)| sent),
        received_bytes: event.bytes.map(|(_, received)| received),
        rtt_us: event.rtt.map(microseconds),
        lasted_us: event.lasted.map(microseconds),
        by_server: event.by_server,
        process: (event.process != 0).then_some(event.process),
        interface: event.interface,
    }
}

/// As dumps show times.
pub(super) fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
