//! Listeners of Gateways, which the agent opens on the node itself.

use super::View;
use crate::compile::GatewayListener;

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
        || status.capture.mode == "off"
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
