//! Listeners of Gateways, which the agent opens on the node itself.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::View;
use crate::compile::{Action, Backend, GatewayListener};

/// The listener that is dialled, where the agent has it open.
pub(super) fn listener<'a>(view: &View<'a>) -> Option<&'a GatewayListener> {
    let View { asked, table, status, .. } = *view;
    let to = asked.destination;
    let is_dialled = |one: &GatewayListener| {
        one.port == to.port() && (one.addresses.is_empty() || one.addresses.contains(&to.ip()))
    };
    let closed = |name: &str| {
        status.listeners.iter().any(|listener| listener.name == name && listener.error.is_some())
    };
    // Without capture nobody has looked which addresses are the node's.
    let is_ours = status.capture.local_addresses.contains(&to.ip())
        || status.capture.is_off()
            && !table.frontends.contains_key(&to)
            && !table.workloads.contains_key(&to.ip());
    let mut listeners = table.gateways.iter().map(|one| &**one);
    listeners.find(|one| is_ours && is_dialled(one) && !closed(&one.name))
}

/// What it is for.
pub(super) fn describe(listener: &GatewayListener) -> String {
    let hosts: Vec<String> =
        listener.listeners.iter().map(|(name, host)| format!("{name} for {host}")).collect();
    format!("port {} of the node is the agent's: {}", listener.port, hosts.join(", "))
}

/// The endpoints that its requests may be led to.
pub(super) fn endpoints(listener: &GatewayListener) -> Vec<SocketAddr> {
    let routes = listener.hosts.iter().flat_map(|(_, host)| host.rules().map(|(_, route)| route));
    let forwards = routes.filter_map(|route| match &route.action {
        Action::Forward(forward) => Some(forward),
        Action::Redirect(_) | Action::Respond(_) | Action::Original => None,
    });
    let backends = forwards.flat_map(|forward| &forward.backends);
    let clusters = backends.filter_map(|weighted| match &weighted.backend {
        Backend::Cluster(cluster) => Some(cluster),
        Backend::Original | Backend::Invalid { .. } => None,
    });
    let endpoints = clusters.flat_map(|cluster| cluster.endpoints.iter().map(|one| one.address));
    endpoints.collect::<BTreeSet<_>>().into_iter().collect()
}
