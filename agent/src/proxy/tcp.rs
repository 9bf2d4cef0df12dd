//! Opaque connections: choose an endpoint, connect, move bytes, say how it went.

mod entering;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::access::{self, ACCESS_DENIED, Client, Refused};
use super::carrier::Carrier;
use super::limits::{Held, RATE_LIMITED, RefusedBy, admit_connection};
use super::{Context, Downstream, Early, Protocol, upstream_tls};
use crate::balance::Pick;
use crate::compile::{Cluster, Frontend, OUTSIDE_MESH, RoutingTable, Security, UpstreamTls};
use crate::identity::{PeerRefusal, edge_backends};
use crate::model::{Asked, ObjectName, Workload};
use crate::net::{
    Bridging, ConnectSource, ConnectTarget, Line, PeerAlert, RelayFailure, Relayed, relay_bridged, tcp_info,
};
use crate::telemetry::{ConnectionRecord, Flag, ResponseFlags};
use entering::enter;

/// How long one endpoint may take to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Endpoints tried for one connection.
const DIALS_MAX: usize = 3;

/// Where an opaque connection may go.
#[derive(Debug, Clone)]
pub(super) struct Dial {
    /// The cluster to choose from; `None`: the address that the client dialled.
    cluster: Option<Arc<Cluster>>,
    /// The Service whose endpoint the client dialled, where it is a headless one.
    headless: Option<ObjectName>,
    original: SocketAddr,
    /// Whether no table knows the address.
    unknown: bool,
    /// Who dials instead of the client.
    instead: Option<ConnectSource>,
    /// What the connection is kept within, and the Service that is asked for in TLS whose terms name nobody.
    security: Option<(Security, ObjectName)>,
    /// Whether the endpoint has refused the TLS that it was spoken to in, by what it was shown.
    refused: PeerAlert,
}

impl Dial {
    /// Where the client dialled, which no table knows: the node's NAT may.
    pub(super) fn unknown(original: SocketAddr) -> Self {
        Self { unknown: true, ..Self::pod(original) }
    }

    /// The Service that is dialled, if it is one.
    fn service(&self) -> Option<&ObjectName> {
        self.cluster.as_ref().map(|cluster| &cluster.key.service).or(self.headless.as_ref())
    }

    /// Whom the endpoint sees.
    fn source(&self, peer: SocketAddr) -> ConnectSource {
        match (self.unknown, self.instead) {
            (true, _) => ConnectSource::Translated,
            (false, Some(source)) => source,
            (false, None) => ConnectSource::Pod(peer.ip()),
        }
    }

    /// An endpoint of a cluster, for a client of a Gateway. `is_tls`: the client's bytes are TLS already, and get no other.
    pub(super) fn gateway(
        cluster: &Arc<Cluster>,
        (original, source): (SocketAddr, ConnectSource),
        is_tls: bool,
    ) -> Self {
        let security = secured(cluster, &cluster.from_gateways);
        let security = security.filter(|(security, _)| !is_tls || *security == Security::Mesh);
        let cluster = Some(Arc::clone(cluster));
        Self { cluster, instead: Some(source), security, ..Self::pod(original) }
    }

    /// The pod that the client dialled.
    pub(super) fn pod(original: SocketAddr) -> Self {
        let refused = PeerAlert::default();
        Self {
            cluster: None,
            headless: None,
            original,
            unknown: false,
            instead: None,
            security: None,
            refused,
        }
    }

    /// An endpoint of the service; of a headless one, the endpoint that the client dialled.
    pub(super) fn frontend(frontend: &Frontend, original: SocketAddr) -> Self {
        let cluster = (!frontend.headless).then(|| frontend.tcp.clone());
        let headless = frontend.headless.then(|| frontend.service.clone());
        let security = secured(&frontend.tcp, &frontend.tcp.from_pods);
        Self { cluster, headless, security, ..Self::pod(original) }
    }

    /// Whether HTTP may use a connection that was opened by it.
    pub(super) fn is_as_it_comes(&self) -> bool {
        self.security.is_none()
    }

    /// Whether an endpoint may be dialled at all.
    fn may_reach(&self, context: &Context, target: ConnectTarget) -> Result<(), Undialled> {
        let by_mesh = matches!(self.security, Some((Security::Mesh, _)));
        if by_mesh && !upstream_tls::is_in_mesh(&context.tables.load(), target.source, target.address.ip()) {
            return Err(unreached(target.address, OUTSIDE_MESH));
        }
        Ok(())
    }

    fn tls(&self) -> Option<(&UpstreamTls, String)> {
        let (security, service) = self.security.as_ref()?;
        security.tls().map(|tls| (&**tls, service.fqdn()))
    }
}

/// What connections to a cluster are kept within, where the way alone does not say.
fn secured(cluster: &Cluster, security: &Security) -> Option<(Security, ObjectName)> {
    (*security != Security::Way).then(|| (security.clone(), cluster.key.service.clone()))
}

/// A connection to an endpoint.
#[derive(Debug)]
pub(super) struct Dialled<Io = TcpStream> {
    pub(super) io: Io,
    pub(super) address: SocketAddr,
    pick: Option<Pick>,
    client_error: Option<io::Error>,
}

impl Dialled {
    /// Says that the client's connection broke before there was anything to relay: the endpoint's is to be reset.
    pub(super) fn without_client(self, error: io::Error) -> Self {
        Self { client_error: Some(error), ..self }
    }

    /// For the HTTP side, which may use it if its route leads to the same endpoint.
    pub(super) fn into_early(self) -> Early {
        let Self { io, pick, .. } = self;
        Early { io, pick }
    }

    fn map<Other>(self, io: impl FnOnce(TcpStream) -> Other) -> Dialled<Other> {
        let Self { io: socket, address, pick, client_error } = self;
        Dialled { io: io(socket), address, pick, client_error }
    }
}

/// No endpoint could be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Undialled {
    flag: Flag,
    details: &'static str,
    last: Option<SocketAddr>,
}

impl Undialled {
    /// What exactly was wrong.
    pub(super) fn details(&self) -> &'static str {
        self.details
    }

    /// The endpoint whose policy refuses the client, where that is why.
    pub(super) fn refused_by(&self) -> Option<SocketAddr> {
        self.last.filter(|_| self.flag == Flag::AccessDenied)
    }
}

/// Connects to an endpoint, and to another one where the first can't be reached. What a policy refuses is counted.
pub(super) async fn dial(context: &Context, client: Client<'_>, dial: &Dial) -> Result<Dialled, Undialled> {
    let allowed = |endpoint| access::check(context, client, endpoint, Asked::Opaque);
    let connect = |target| connect_secured(context, dial, target);
    dial_allowed(context, client.peer, dial, (allowed, connect)).await
}

/// The same for a connection of which nobody looks at a byte.
pub(super) async fn dial_line(
    context: &Context,
    client: Client<'_>,
    dial: &Dial,
) -> Result<Dialled<Line>, Undialled> {
    let allowed = |endpoint| access::check(context, client, endpoint, Asked::Opaque);
    let open = async |target: ConnectTarget| {
        if dial.tls().is_some() {
            return connect_secured(context, dial, target).await.map(Line::Socket);
        }
        dial.may_reach(context, target)?;
        reached(context.connector.open(target), target.address).await
    };
    dial_allowed(context, client.peer, dial, (allowed, open)).await
}

/// The same before the client's protocol is told: what a policy refuses now it may allow once there is a request, and it
/// is not counted.
pub(super) async fn dial_early(
    context: &Context,
    client: Client<'_>,
    dial: &Dial,
) -> Result<Dialled, Undialled> {
    let allowed = |endpoint| access::foresee(context, client, endpoint, Asked::Opaque);
    let connect = |target| connect_secured(context, dial, target);
    dial_allowed(context, client.peer, dial, (allowed, connect)).await
}

async fn dial_allowed<Io>(
    context: &Context,
    peer: SocketAddr,
    dial: &Dial,
    (allowed, connect): (
        impl Fn(SocketAddr) -> Result<(), Refused>,
        impl AsyncFn(ConnectTarget) -> Result<Io, Undialled>,
    ),
) -> Result<Dialled<Io>, Undialled> {
    let Some(cluster) = &dial.cluster else {
        let source = dial.source(peer);
        let translated = if dial.unknown { access::check_translated(context) } else { Ok(()) };
        translated.and_then(|()| allowed(dial.original)).map_err(|by| refused(dial.original, &by))?;
        let io = connect(ConnectTarget { address: dial.original, source }).await?;
        return Ok(Dialled { io, address: dial.original, pick: None, client_error: None });
    };
    let mut tried = Vec::new();
    let mut failure = Undialled { flag: Flag::NoHealthyUpstream, details: "no_healthy_upstream", last: None };
    while tried.len() < DIALS_MAX {
        let Some(pick) = cluster.pick(peer.ip(), context.random.next(), &tried) else { break };
        let address = pick.upstream().address;
        if tried.contains(&address) {
            break;
        }
        allowed(address).map_err(|by| refused(address, &by))?;
        match connect(ConnectTarget { address, source: dial.source(peer) }).await {
            Ok(io) => return Ok(Dialled { io, address, pick: Some(pick), client_error: None }),
            Err(error) => failure = error,
        }
        tried.push(address);
    }
    Err(failure)
}

/// A policy of the endpoint's pod refuses the client.
fn refused(address: SocketAddr, by: &Refused) -> Undialled {
    Undialled { flag: Flag::AccessDenied, details: by.details(), last: Some(address) }
}

/// Connects as somebody, within what the connection shall be kept within; each step has the time that an endpoint has.
async fn connect_secured(
    context: &Context,
    dial: &Dial,
    target: ConnectTarget,
) -> Result<TcpStream, Undialled> {
    dial.may_reach(context, target)?;
    let io = connect(context, target).await?;
    let Some((tls, name)) = dial.tls() else { return Ok(io) };
    let shaking = upstream_tls::shake_opaque(io, tls, (&name, dial.refused.clone()));
    match tokio::time::timeout(CONNECT_TIMEOUT, shaking).await {
        Ok(shaken) => shaken.map_err(|details| unreached(target.address, details)),
        Err(_) => Err(unreached(target.address, "connect_timeout")),
    }
}

fn unreached(address: SocketAddr, details: &'static str) -> Undialled {
    Undialled { flag: Flag::UpstreamConnectFailure, details, last: Some(address) }
}

/// Connects as somebody, within the time that an endpoint has.
pub(super) async fn connect(context: &Context, target: ConnectTarget) -> Result<TcpStream, Undialled> {
    reached(context.connector.connect(target), target.address).await
}

async fn reached<Io>(
    connecting: impl Future<Output = io::Result<Io>>,
    address: SocketAddr,
) -> Result<Io, Undialled> {
    let failed = |details| unreached(address, details);
    match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(io)) => Ok(io),
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "connecting upstream");
            Err(failed(connect_details(&error)))
        }
        Err(_) => Err(failed("connect_timeout")),
    }
}

fn connect_details(error: &io::Error) -> &'static str {
    if let Some(refusal) = error.get_ref().and_then(|inner| inner.downcast_ref::<PeerRefusal>()) {
        return refusal.name();
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect_refused",
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "connect_unreachable",
        io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse => "connect_no_source_port",
        _ => "connect_failed",
    }
}

/// Relays a connection to its end and records it. `dialled`: what came of dialling already. The table is let go before the
/// relaying, which may take days.
pub(super) async fn serve<Io: Carrier>(
    context: &Context,
    mut downstream: Downstream<Io>,
    table: Arc<RoutingTable>,
    to: Dial,
    dialled: Option<Result<Dialled, Undialled>>,
) {
    let start = (SystemTime::now(), Instant::now());
    let peer = downstream.peer;
    let source = table.workloads.get(&peer.ip()).cloned();
    let mut held = match to.service() {
        Some(service) => {
            let client = Client { peer, origin: &downstream.origin };
            admit_connection(context, &table, service, (client, source.as_ref())).await
        }
        None => Ok(Held::default()),
    };
    let dialled = match dialled {
        _ if held.is_err() => Err(Undialled { flag: Flag::RateLimited, details: RATE_LIMITED, last: None }),
        Some(dialled) => {
            if let Ok(early) = &dialled {
                let client = Client { peer, origin: &downstream.origin };
                access::observe(context, client, early.address, Asked::Opaque);
            }
            dialled.map(|dialled| dialled.map(Io::upstream))
        }
        None => Io::dial(context, Client { peer, origin: &downstream.origin }, &to).await,
    };
    let client = (Client { peer, origin: &downstream.origin }, source.as_ref());
    let dialled = enter(context, &table, client, dialled, &mut held).await;
    let upstream = match &dialled {
        Ok(dialled) => Some(dialled.address),
        Err(undialled) => undialled.last,
    };
    let mut ended = Ended {
        source,
        upstream,
        destination: upstream.and_then(|address| table.workloads.get(&address.ip()).cloned()),
        limited: held.as_ref().err().cloned(),
        ..Ended::default()
    };
    drop(table);
    match dialled {
        Ok(dialled) => {
            downstream.shown.is(Protocol::Opaque, upstream);
            context.recorder.connection_opened(&record(&downstream, &to, start, &ended));
            ended.relayed = Io::carry(context, &mut downstream, dialled, to.source(peer)).await;
            (ended.flags, ended.details) = outcome(ended.relayed.failure.as_ref(), &to.refused);
            ended.rtt = tcp_info(downstream.io.as_raw_fd()).and_then(|info| info.rtt);
        }
        Err(undialled) => {
            (ended.flags, ended.details) = (undialled.flag.into(), undialled.details);
            context.recorder.connection_opened(&record(&downstream, &to, start, &ended));
            // The client sees a reset, as it would from the endpoint itself.
            downstream.io.reset();
        }
    }
    drop(held);
    context.recorder.connection(&record(&downstream, &to, start, &ended));
}

/// How a connection went.
#[derive(Default)]
struct Ended {
    source: Option<Arc<Workload>>,
    upstream: Option<SocketAddr>,
    destination: Option<Arc<Workload>>,
    relayed: Relayed,
    flags: ResponseFlags,
    details: &'static str,
    limited: Option<RefusedBy>,
    rtt: Option<Duration>,
}

/// Sends on what was read before, then copies both ways.
pub(super) async fn relay_with_prefix(
    context: &Context,
    downstream: &mut Downstream,
    dialled: Dialled<Line>,
    source: ConnectSource,
) -> Relayed {
    // A connection that was dialled before the client spoke may have been allowed when it was.
    let client = Client { peer: downstream.peer, origin: &downstream.origin };
    let refused = access::until_refused(context, client, (dialled.address, source), Asked::Opaque);
    let prefix = std::mem::take(&mut downstream.read);
    let allowed = access::may_go_on(context, client, (dialled.address, source));
    let mut upstream = match dialled.io {
        Line::Socket(upstream) => upstream,
        Line::Stream(stream) => {
            let prefix = if allowed { prefix.freeze() } else { Bytes::new() };
            return stream.relay(&mut downstream.io, prefix, Box::pin(refused)).await;
        }
    };
    if let Some(error) = dialled.client_error {
        let _ = upstream.set_zero_linger();
        return Relayed { failure: Some(RelayFailure::Downstream(error)), ..Relayed::default() };
    }
    if allowed
        && !prefix.is_empty()
        && let Err(error) = upstream.write_all(&prefix).await
    {
        let _ = downstream.io.set_zero_linger();
        return Relayed { failure: Some(RelayFailure::Upstream(error)), ..Relayed::default() };
    }
    let kernel = context.bridges.get().map(|kernel| &**kernel).filter(|_| allowed);
    let bridging = Bridging::new(kernel, (&downstream.io, &upstream), prefix.len() as u64);
    let mut relayed = relay_bridged(&mut downstream.io, &mut upstream, &bridging, refused).await;
    if allowed {
        relayed.sent += prefix.len() as u64;
    }
    relayed
}

fn outcome(failure: Option<&RelayFailure>, refused: &PeerAlert) -> (ResponseFlags, &'static str) {
    match failure {
        Some(RelayFailure::Upstream(_)) if refused.is_heard() => {
            (Flag::UpstreamConnectFailure.into(), edge_backends::REFUSED)
        }
        None => (ResponseFlags::default(), ""),
        Some(RelayFailure::Downstream(_)) => (Flag::DownstreamClosed.into(), "downstream_reset"),
        Some(RelayFailure::Upstream(_)) => (Flag::UpstreamClosed.into(), "upstream_reset"),
        Some(RelayFailure::Stopped) => (Flag::AccessDenied.into(), ACCESS_DENIED),
    }
}

fn record<'a, Io>(
    downstream: &'a Downstream<Io>,
    to: &'a Dial,
    (start, since): (SystemTime, Instant),
    ended: &'a Ended,
) -> ConnectionRecord<'a> {
    ConnectionRecord {
        start,
        duration: since.elapsed(),
        origin: &downstream.origin,
        peer: downstream.peer,
        original_destination: downstream.original_destination,
        source: ended.source.as_ref(),
        identity: None,
        cluster: to.cluster.as_ref().map(|cluster| &cluster.key),
        upstream: ended.upstream,
        destination: ended.destination.as_ref(),
        flags: ended.flags,
        details: ended.details,
        limited: ended.limited.as_ref().map(RefusedBy::by),
        sent_bytes: ended.relayed.sent,
        received_bytes: ended.relayed.received,
        rtt: ended.rtt,
    }
}
