//! Policy in the agent: whether a client may reach the pod that it is about to be connected to. The kernel lets everything
//! through that the agent sends, so the agent asks what the kernel would have asked.

use std::net::{IpAddr, SocketAddr};

use super::Context;

/// What a refusal is called, in answers and in the access log.
pub(super) const ACCESS_DENIED: &str = "rbac_access_denied";

/// A policy refuses; it has been counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused;

/// Asks the table in force, which may be newer than the one that a request goes by, and counts a refusal.
pub(super) fn check(context: &Context, client: IpAddr, endpoint: SocketAddr) -> Result<(), Refused> {
    context.tables.load().check_access(client, endpoint).map_err(|denied| {
        context.recorder.denied(&denied, client, endpoint);
        Refused
    })
}

/// Asks about an address of which only the node's NAT knows what is behind it. Nobody could ask the policy of that pod, so
/// where there are policies it is refused: the client's next connection goes that way by itself, past the guard.
pub(super) fn check_translated(context: &Context) -> Result<(), Refused> {
    if context.tables.load().policies.is_empty() { Ok(()) } else { Err(Refused) }
}

/// Whether a client may reach an endpoint; counts nothing.
pub(super) fn may_reach(context: &Context, client: IpAddr, endpoint: SocketAddr) -> bool {
    context.tables.load().check_access(client, endpoint).is_ok()
}

/// Waits until a client may no longer reach an endpoint.
pub(super) async fn until_refused(context: &Context, client: IpAddr, endpoint: SocketAddr) {
    loop {
        // A change from here on is not missed.
        let changed = context.table_changed.notified();
        if check(context, client, endpoint).is_err() {
            return;
        }
        changed.await;
    }
}
