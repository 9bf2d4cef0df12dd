//! What the kernel is told of destinations: those that the agent takes from pods, and this node's pods at the port of tunnels.

use std::net::SocketAddr;

use agent_common::capture::{Action, HBONE_PORT};

use super::CaptureSettings;
use crate::compile::RoutingTable;

/// Every destination with what is done with it. Tunnels come last, and so win where a service has that port.
pub(super) fn destinations<'a>(
    table: &'a RoutingTable,
    settings: &'a CaptureSettings,
) -> impl Iterator<Item = (SocketAddr, Action)> + 'a {
    let taken = table.frontends.keys().map(|to| (*to, Action::Agent));
    let here = move |workload: &str| settings.tunnels && workload == settings.node;
    let pods = table
        .workloads
        .iter()
        .filter(move |(_, workload)| workload.is_tunnelled() && workload.node.as_deref().is_some_and(here));
    taken.chain(pods.map(|(address, _)| (SocketAddr::new(*address, HBONE_PORT), Action::Tunnel)))
}
