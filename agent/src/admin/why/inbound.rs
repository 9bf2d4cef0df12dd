//! Connections to pods whose policy asks of requests: who decides, and by which rules.

use std::net::{IpAddr, SocketAddr};

use agent_common::capture::Reason;

use super::super::status::Status;
use crate::compile::{Foreseen, PolicyClient, RoutingTable};
use crate::model::PolicyAction;

/// The rules that a request of the source would be asked about at an endpoint; `None`: it does not depend on the request.
pub(super) fn rules(source: IpAddr, endpoint: SocketAddr, table: &RoutingTable) -> Option<String> {
    let Foreseen::ByRequest(_) = table.foresee_access(PolicyClient::direct(source), endpoint) else {
        return None;
    };
    let rules =
        table.rules_of_requests(PolicyClient::direct(source), endpoint).into_iter().map(|(policy, rule)| {
            let action = match policy.action {
                PolicyAction::Allow => "allows",
                PolicyAction::Deny => "denies",
                PolicyAction::Audit => "audits",
            };
            format!("rule {rule} of {} {action}", policy.name)
        });
    Some(rules.collect::<Vec<_>>().join(", "))
}

/// What the programs do with a connection to a pod that no frontend leads to; `None`: it goes on to the pod.
pub(super) fn kernel(
    (source, destination): (IpAddr, SocketAddr),
    table: &RoutingTable,
    status: &Status,
    step: &mut impl FnMut(&str, String),
) -> Option<Reason> {
    let by_request =
        matches!(table.foresee_access(PolicyClient::direct(source), destination), Foreseen::ByRequest(_));
    if !by_request || !status.capture.inbound.contains(&destination.ip()) {
        return None;
    }
    step("POLICY_RULES", "the request decides: the agent takes the connection".to_owned());
    if status.drain.draining {
        step("LISTENERS", "the agent is draining, none is left: no_listener".to_owned());
        step("guard_pod", "what only the agent may let by is dropped".to_owned());
        return Some(Reason::NoListener);
    }
    step("LISTENERS", format!("one of {} workers gets it: captured_inbound", status.workers.len()));
    Some(Reason::CapturedInbound)
}
