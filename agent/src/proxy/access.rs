//! Policy in the agent: whether a client may have what it asks for of the pod that it is about to be connected to. The kernel
//! lets everything through that the agent sends, so the agent asks what the kernel would have asked, and what only the
//! request tells.

use std::net::{IpAddr, SocketAddr};

use super::Context;
use crate::compile::{Denied, Foreseen};
use crate::model::Asked;
use crate::net::ConnectSource;

/// What a refusal is called, in answers and in the access log.
pub(super) const ACCESS_DENIED: &str = "rbac_access_denied";

/// A policy refuses, of which this is known; it has been counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused(pub(super) Option<Denied>);

/// Asks the table in force, which may be newer than the one that a request goes by, and counts a refusal.
pub(super) fn check(
    context: &Context,
    client: SocketAddr,
    endpoint: SocketAddr,
    asked: Asked<'_>,
) -> Result<(), Refused> {
    context.tables.load().check_access(client.ip(), endpoint, asked).map_err(|denied| {
        context.recorder.denied(&denied, client, endpoint);
        Refused(Some(denied))
    })
}

/// Asks about an address of which only the node's NAT knows what is behind it. Nobody could ask the policy of that pod, so
/// where there are policies it is refused: the client's next connection goes that way by itself, past the guard.
pub(super) fn check_translated(context: &Context) -> Result<(), Refused> {
    if context.tables.load().policies.is_empty() { Ok(()) } else { Err(Refused(None)) }
}

/// Whether a client may have what it asks for; counts nothing.
pub(super) fn may_reach(context: &Context, client: IpAddr, endpoint: SocketAddr, asked: Asked<'_>) -> bool {
    context.tables.load().check_access(client, endpoint, asked).is_ok()
}

/// As above for what shows no requests, of an endpoint that only the node's NAT may understand.
pub(super) fn may_go_on(context: &Context, client: IpAddr, endpoint: (SocketAddr, ConnectSource)) -> bool {
    let (address, source) = endpoint;
    let known = source != ConnectSource::Translated || check_translated(context).is_ok();
    known && may_reach(context, client, address, Asked::Opaque)
}

/// Whether it depends on the request what a client may have; counts nothing.
pub(super) fn depends_on_request(context: &Context, client: IpAddr, endpoint: SocketAddr) -> bool {
    matches!(context.tables.load().foresee_access(client, endpoint), Foreseen::ByRequest(_))
}

/// Waits until a client may no longer have an endpoint's connection, of which the agent sees no requests. An endpoint that
/// only the node's NAT understands is refused once there are policies, like a connection that would be made then.
pub(super) async fn until_refused(
    context: &Context,
    client: SocketAddr,
    endpoint: (SocketAddr, ConnectSource),
    asked: Asked<'_>,
) {
    let (address, source) = endpoint;
    loop {
        // A change from here on is not missed.
        let changed = context.table_changed.notified();
        let known = if source == ConnectSource::Translated { check_translated(context) } else { Ok(()) };
        if known.and_then(|()| check(context, client, address, asked)).is_err() {
            return;
        }
        changed.await;
    }
}
