//! Policy in the agent: whether a client may have what it asks for of the pod that it is about to be connected to. The kernel
//! lets everything through that the agent sends, so the agent asks what the kernel would have asked, and what only the
//! request tells.

use std::net::SocketAddr;

use super::Context;
pub(super) use crate::compile::ACCESS_DENIED;
use crate::compile::{Denied, Foreseen, PolicyClient, RoutingTable, Way};
use crate::model::{Asked, GatewayKey, Identity};
use crate::net::ConnectSource;
use crate::telemetry::Origin;

/// Who asks for something.
#[derive(Debug, Clone, Copy)]
pub(super) struct Client<'a> {
    /// Its address.
    pub(super) peer: SocketAddr,
    /// Where its connection entered.
    pub(super) origin: &'a Origin,
}

impl Client<'_> {
    /// As policies see it.
    fn of_policy(self, table: &RoutingTable) -> PolicyClient {
        let way = match self.origin {
            Origin::Outbound | Origin::Inbound => Way::Direct,
            Origin::Tunnel(None) => Way::Tunnel,
            Origin::Tunnel(Some(gateway)) => Way::GatewayTunnel(*gateway),
            Origin::Gateway(name) => speaker(table, name).map_or(Way::Relayed, Way::Gateway),
        };
        PolicyClient { way, ..PolicyClient::direct(self.peer.ip()) }
    }

    /// As whom it is proven, wherever it goes.
    pub(super) fn proven(self, table: &RoutingTable) -> Option<Identity<'_>> {
        // Who speaks for a Gateway is nobody's proof of its clients.
        let asks_gateway = matches!(self.origin, Origin::Gateway(_));
        if asks_gateway { None } else { table.proven(self.of_policy(table)) }
    }
}

/// As whom a Gateway's listener speaks.
fn speaker(table: &RoutingTable, listener: &str) -> Option<GatewayKey> {
    let gateway = table.gateways.iter().find(|gateway| *gateway.name == *listener)?;
    gateway.speaker.as_ref().map(|speaker| speaker.key)
}

/// Whom endpoints see that a Gateway's listener dials.
pub(super) fn gateway_source(table: &RoutingTable, listener: &str) -> ConnectSource {
    // Without tunnels there is nobody to be told.
    let speaker = if table.realm.tunnels { speaker(table, listener) } else { None };
    speaker.map_or(ConnectSource::Node, ConnectSource::Gateway)
}

/// A policy refuses, of which this is known; it has been counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused(pub(super) Option<Denied>);

impl Refused {
    /// Its name, in the access log.
    pub(super) fn details(&self) -> &'static str {
        self.0.as_ref().map_or(ACCESS_DENIED, Denied::reason)
    }
}

/// Asks the table in force, which may be newer than the one that a request goes by, and counts a refusal; tells of what policies
/// say that refuse nobody.
pub(super) fn check(
    context: &Context,
    client: Client<'_>,
    endpoint: SocketAddr,
    asked: Asked<'_>,
) -> Result<(), Refused> {
    observe(context, client, endpoint, asked);
    judge(context, client, endpoint, asked)
}

/// Tells of what policies say that refuse nobody.
pub(super) fn observe(context: &Context, client: Client<'_>, endpoint: SocketAddr, asked: Asked<'_>) {
    let table = context.tables.load();
    for observed in table.observe_access(client.of_policy(&table), endpoint, asked) {
        context.recorder.observed(&observed, client.peer, endpoint);
    }
}

/// Asks, and counts a refusal.
fn judge(
    context: &Context,
    client: Client<'_>,
    endpoint: SocketAddr,
    asked: Asked<'_>,
) -> Result<(), Refused> {
    let table = context.tables.load();
    table.check_access(client.of_policy(&table), endpoint, asked).map_err(|denied| {
        context.recorder.denied(&denied, client.peer, endpoint);
        Refused(Some(denied))
    })
}

/// Asks about an address of which only the node's NAT knows what is behind it. Nobody could ask the policy of that pod, so
/// where there are policies it is refused: the client's next connection goes that way by itself, past the guard.
pub(super) fn check_translated(context: &Context) -> Result<(), Refused> {
    if context.tables.load().policies.is_empty() { Ok(()) } else { Err(Refused(None)) }
}

/// Whether a client may have what it asks for; a refusal is not counted, as somebody will ask again.
pub(super) fn may_reach(
    context: &Context,
    client: Client<'_>,
    endpoint: SocketAddr,
    asked: Asked<'_>,
) -> bool {
    let may = foresee(context, client, endpoint, asked).is_ok();
    if may {
        observe(context, client, endpoint, asked);
    }
    may
}

/// What would be said; counts nothing.
pub(super) fn foresee(
    context: &Context,
    client: Client<'_>,
    endpoint: SocketAddr,
    asked: Asked<'_>,
) -> Result<(), Refused> {
    let table = context.tables.load();
    let checked = table.check_access(client.of_policy(&table), endpoint, asked);
    checked.map_err(|denied| Refused(Some(denied)))
}

/// As above for what shows no requests, of an endpoint that only the node's NAT may understand.
pub(super) fn may_go_on(
    context: &Context,
    client: Client<'_>,
    endpoint: (SocketAddr, ConnectSource),
) -> bool {
    let (address, source) = endpoint;
    let known = source != ConnectSource::Translated || check_translated(context).is_ok();
    known && foresee(context, client, address, Asked::Opaque).is_ok()
}

/// Whether it depends on the request what a client may have, or it is counted; counts nothing itself.
pub(super) fn depends_on_request(context: &Context, client: Client<'_>, endpoint: SocketAddr) -> bool {
    let table = context.tables.load();
    let foreseen = table.foresee_access(client.of_policy(&table), endpoint);
    matches!(foreseen, Foreseen::ByRequest(_) | Foreseen::Counted(_) | Foreseen::Watched)
}

/// Waits until a client may no longer have an endpoint's connection, of which the agent sees no requests. An endpoint that
/// only the node's NAT understands is refused once there are policies, like a connection that would be made then.
pub(super) async fn until_refused(
    context: &Context,
    client: Client<'_>,
    endpoint: (SocketAddr, ConnectSource),
    asked: Asked<'_>,
) {
    let (address, source) = endpoint;
    loop {
        // A change from here on is not missed.
        let changed = context.table_changed.notified();
        let known = if source == ConnectSource::Translated { check_translated(context) } else { Ok(()) };
        if known.and_then(|()| judge(context, client, address, asked)).is_err() {
            return;
        }
        changed.await;
    }
}
