//! Gives the kernel's flows the names that the routing table knows.

use agent_common::capture::Reason;

use crate::admin::{FlowDump, FlowsDump};
use crate::capture::{Flow, Flows};
use crate::compile::RoutingTable;
use crate::telemetry::rfc3339;

/// The flows from a number on.
pub(super) fn dump(flows: &Flows, since: u64, table: &RoutingTable) -> FlowsDump {
    let (found, next) = flows.since(since);
    FlowsDump { next, lost: flows.lost(), flows: found.iter().map(|flow| named(flow, table)).collect() }
}

fn named(flow: &Flow, table: &RoutingTable) -> FlowDump {
    let pod = |ip| table.workloads.get(&ip).map(|pod| pod.name.to_string());
    let service = table.frontends.get(&flow.destination).map(|frontend| frontend.service.to_string());
    let taken = [Reason::Captured, Reason::CapturedInbound].map(Reason::as_str).contains(&flow.reason);
    FlowDump {
        number: flow.number,
        time: rfc3339(flow.at).to_string(),
        source: flow.source.to_string(),
        source_pod: pod(flow.source.ip()),
        destination: flow.destination.to_string(),
        destination_name: service.or_else(|| pod(flow.destination.ip())),
        verdict: if taken { "agent" } else { "direct" }.to_owned(),
        reason: flow.reason.to_owned(),
        interface: flow.interface,
    }
}
