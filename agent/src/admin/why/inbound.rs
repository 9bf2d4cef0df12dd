//! Connections to pods whose policy asks of requests, or whose agent counts what enters them: who decides, and by which rules.

use std::net::{IpAddr, SocketAddr};

use agent_common::capture::{HBONE_PORT, Reason};

use super::super::status::Status;
use super::View;
use crate::compile::{Foreseen, PolicyClient, RoutingTable};
use crate::model::PolicyAction;

/// The rules that a client's request would be asked about at an endpoint; `None`: it does not depend on the request.
pub(super) fn rules(client: PolicyClient, endpoint: SocketAddr, table: &RoutingTable) -> Option<String> {
    let Foreseen::ByRequest(_) = table.foresee_access(client, endpoint) else { return None };
    let rules = table.rules_of_requests(client, endpoint).into_iter().map(|(policy, rule)| {
        let action = match policy.action {
            PolicyAction::Allow => "allows",
            PolicyAction::Deny => "denies",
            PolicyAction::Audit => "audits",
        };
        format!("rule {rule} of {} {action}", policy.name)
    });
    Some(rules.collect::<Vec<_>>().join(", "))
}

/// What the agent of a pod has to do with a connection to it: judge its requests, or count; `None`: nothing.
pub(super) fn judged(
    client: PolicyClient,
    endpoint: SocketAddr,
    table: &RoutingTable,
) -> Option<&'static str> {
    match table.foresee_access(client, endpoint) {
        Foreseen::ByRequest(_) => Some("the request decides"),
        Foreseen::Counted(_) => Some("what enters the pod is limited"),
        Foreseen::Watched => Some("what enters the pod is counted"),
        Foreseen::Allowed | Foreseen::Denied(_) => None,
    }
}

/// Whether the programs take it for a tunnel to a pod of this node, before anybody asks a policy.
pub(super) fn tunnel(view: &View<'_>, step: &mut impl FnMut(&str, String)) -> bool {
    let View { asked, table, status, .. } = *view;
    let pod = table.workloads.get(&asked.destination.ip());
    let taken = asked.destination.port() == HBONE_PORT
        && table.realm.tunnels
        && pod.is_some_and(|pod| pod.is_tunnelled() && view.is_here(Some(pod)))
        && !status.capture.is_off()
        && !status.capture.inbound_released
        && status.capture.paused.is_none();
    if taken {
        let found = "the port of tunnels: the agent takes the connection, and the certificates that both ends show decide; \
                     the pod's policies are asked about what is sent by the tunnel";
        step("DESTINATIONS", found.to_owned());
    }
    taken
}

/// Tunnels between the two ends that this node, where the dialled one runs, has refused lately.
pub(super) fn failing_tunnels(view: &View<'_>, step: &mut impl FnMut(&str, String)) {
    let ends = (view.asked.source, view.asked.destination.ip());
    let taken = view.status.refused_tunnels.iter().filter(|one| !one.is_dialled());
    for refused in taken.filter(|one| (one.source, one.destination) == ends) {
        step("tunnels", format!("lately none was made {refused}"));
    }
}

/// The other node whose agent takes it for a tunnel to a pod there: nothing of this one asks a policy of it.
pub(super) fn tunnel_elsewhere<'a>(view: &View<'a>, step: &mut impl FnMut(&str, String)) -> Option<&'a str> {
    let View { asked, table, .. } = *view;
    let pod = table.workloads.get(&asked.destination.ip())?;
    let node = pod.node.as_deref()?;
    let is_tunnel = asked.destination.port() == HBONE_PORT && table.realm.tunnels && pod.is_tunnelled();
    if !is_tunnel || view.is_here(Some(pod)) {
        return None;
    }
    let found = format!(
        "the port of tunnels of a pod of node {node}: its agent takes the connection, and the certificates that both ends \
         show decide: ask there"
    );
    step("tunnels", found);
    Some(node)
}

/// What the programs do with a connection to a pod that no frontend leads to; `None`: it goes on to the pod.
pub(super) fn kernel(
    (source, destination): (IpAddr, SocketAddr),
    table: &RoutingTable,
    status: &Status,
    step: &mut impl FnMut(&str, String),
) -> Option<Reason> {
    let why = judged(PolicyClient::direct(source), destination, table)?;
    if !status.capture.inbound.contains(&destination.ip()) {
        return None;
    }
    step("POLICY_RULES", format!("{why}: the agent takes the connection"));
    if status.capture.inbound_released {
        step("LISTENERS", "the agent is draining, none is left: no_listener".to_owned());
        step("guard_pod", "what only the agent may let by is dropped".to_owned());
        return Some(Reason::NoListener);
    }
    step("LISTENERS", format!("one of {} workers gets it: captured_inbound", status.workers.len()));
    Some(Reason::CapturedInbound)
}
