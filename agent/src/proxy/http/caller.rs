//! The phases of a request that do not depend on the version that its client speaks.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use http::uri::Scheme;
use tokio::time::Instant;

use super::HttpSettings;
use super::heads::{ForwardedCertificate, RequestWriter};
use super::pace::BODY_TOO_LONG;
use super::plan::{Entry, Plan, Planned, plan};
use super::upstream::Goal;
use crate::compile::{RoutingTable, Security};
use crate::http::body::Framing;
use crate::http::grpc;
use crate::http::h1::{Known, RequestHead, Version};
use crate::model::{AppProtocol, Workload};
use crate::net::{ConnectSource, tcp_info};
use crate::proxy::access::Client;
use crate::proxy::admission::Slot;
use crate::proxy::answer::Problem;
use crate::proxy::open::Shown;
use crate::proxy::{Context, Handshaken, access};
use crate::route::{Normalisation, RequestView, rewrite_path};
use crate::telemetry::{Origin, ServedRecord};

/// The longest `x-request-id` that is taken from a client.
const MAX_REQUEST_ID_BYTES: usize = 256;

/// A client's connection as the phases of its requests see it.
#[derive(Clone, Copy)]
pub(in crate::proxy) struct Caller<'a> {
    /// What the worker's connections share.
    pub ctx: &'a Context,
    /// The connection's settings.
    pub settings: &'a HttpSettings,
    /// Where it entered.
    pub origin: &'a Origin,
    /// The client.
    pub peer: SocketAddr,
    /// What the client dialled.
    pub original_destination: SocketAddr,
    /// What the connection's TLS handshake told, where it had one.
    pub tls: Option<&'a Handshaken>,
}

/// The version spoken with an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::proxy) enum Wire {
    /// HTTP/1.1
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
}

/// What the upstream sees instead of what the client sent.
#[derive(Debug)]
pub(in crate::proxy) struct Outgoing<'a> {
    /// The new path and query, where a rewrite gives one.
    pub target: Option<String>,
    /// The authority.
    pub authority: Cow<'a, str>,
}

impl Caller<'_> {
    /// The client as policies ask about it.
    pub fn client(&self) -> Client<'_> {
        Client { peer: self.peer, origin: self.origin }
    }

    /// Records the end of the connection. `socket` is still there; `served`: a request came, so that a count of no bytes at
    /// all is that of a connection whose bytes went past TCP.
    pub fn record_end(&self, shown: &Shown, socket: RawFd, served: bool) {
        let info = tcp_info(socket);
        let counted = info.filter(|info| info.received > 0 || !served);
        self.ctx.recorder.served(&ServedRecord {
            peer: self.peer,
            original_destination: self.original_destination,
            since: shown.since(),
            bytes: counted.map(|info| (info.received, info.sent)),
            rtt: info.and_then(|info| info.rtt),
        });
    }

    /// The client's pod, where known, and the one that it dialled, where the connection was taken on its way into it.
    pub fn ends<'t>(&self, table: &'t RoutingTable) -> [Option<&'t Arc<Workload>>; 2] {
        let pod = |address: SocketAddr| table.workloads.get(&address.ip().to_canonical());
        let into = self.origin.is_inbound().then_some(self.original_destination);
        [pod(self.peer), into.and_then(pod)]
    }

    /// What the table asks for, by the client's pod, of a request that was taken on and whose body is not known to be too long.
    pub fn plan<'t>(
        &self,
        table: &'t RoutingTable,
        head: &RequestHead,
        slot: &Result<Slot, Problem>,
        source: Option<&Arc<Workload>>,
    ) -> Planned<'t> {
        if let Err(problem) = slot {
            return Planned::unrouted(Plan::Fail(*problem));
        }
        if let (Some(most), Framing::Length(length)) = (self.settings.body_max, head.framing())
            && length > most
        {
            return Planned::unrouted(Plan::Fail(BODY_TOO_LONG));
        }
        let source = source.map(|source| &**source);
        let original_destination = self.original_destination;
        let entry = Entry { origin: self.origin, original_destination, source, tls: self.tls };
        let planned = plan(table, head, entry);
        let as_it_came = self.settings.path.normalisation == Normalisation::None;
        if as_it_came { planned } else { planned.unless_it_climbs(head.path()) }
    }

    /// Keeps the client's request id where it is one, else makes one.
    pub fn choose_request_id(&self, head: &RequestHead, request_id: &mut String) {
        let given = head.fields().first(Known::XRequestId).and_then(|value| std::str::from_utf8(value).ok());
        match given {
            Some(id) if !id.is_empty() && id.len() <= MAX_REQUEST_ID_BYTES => request_id.push_str(id),
            _ => self.ctx.http.write_request_id(request_id),
        }
    }

    /// The version to speak with an upstream whose port declares `protocol`, for a client that speaks `client`.
    ///
    /// What is declared is spoken. A captured client whose port declares nothing gets what it would get without us: its
    /// own version to the end. A gateway's backend that declares nothing gets HTTP/1.1, which every server speaks.
    pub fn wire(&self, protocol: AppProtocol, client: Version) -> Wire {
        match (protocol, self.origin) {
            (AppProtocol::Http2 | AppProtocol::Grpc, _) => Wire::Http2,
            (AppProtocol::Undeclared, Origin::Outbound | Origin::Inbound | Origin::Tunnel(_))
                if client == Version::Http2 =>
            {
                Wire::Http2
            }
            _ => Wire::Http1,
        }
    }

    /// The path and authority that the upstream sees.
    pub fn outgoing<'h>(&self, planned: &Planned<'h>, head: &'h RequestHead) -> Outgoing<'h> {
        let mut target = None;
        let mut authority = planned.request_changes().into_authority();
        if let (Some(rewrite), Some(matched)) = (planned.rewrite(), planned.route) {
            let path = rewrite.path.as_ref();
            target = path.map(|path| rewrite_path(&matched, path, head.path(), head.query()));
            authority = authority.or(rewrite.authority.as_deref());
        }
        let authority = match (authority, head.authority()) {
            (Some(set), _) => Cow::Borrowed(set),
            (None, "") => Cow::Owned(self.original_destination.to_string()),
            (None, received) => Cow::Borrowed(received),
        };
        Outgoing { target, authority }
    }

    /// The protocol that the client asks to switch to, where it may.
    pub fn upgrade<'h>(&self, head: &'h RequestHead) -> Option<&'h [u8]> {
        head.upgrade().filter(|protocol| self.settings.upgrades.allow(protocol))
    }

    /// Whom the endpoint sees: a captured client by its own address.
    pub fn upstream_source(&self, goal: Goal<'_>) -> ConnectSource {
        match (self.origin, goal) {
            (_, Goal::Unknown(_)) => ConnectSource::Translated,
            (Origin::Outbound | Origin::Inbound | Origin::Tunnel(_), _) => ConnectSource::Pod(self.peer.ip()),
            (Origin::Gateway(name), _) => access::gateway_source(&self.ctx.tables.load(), name),
        }
    }

    /// What a connection to an endpoint is kept within, and the name that is asked for in TLS whose terms have none: the host that
    /// the client asks for, or the Service where it asks for none.
    pub fn security(&self, goal: Goal<'_>, host: &str) -> (Security, Option<Arc<str>>) {
        let (table, frontend);
        let (security, service) = match (self.origin, goal) {
            (Origin::Gateway(_), Goal::Cluster(cluster)) => (&cluster.from_gateways, &cluster.key.service),
            (Origin::Outbound, Goal::Cluster(cluster)) => (&cluster.from_pods, &cluster.key.service),
            (Origin::Outbound, Goal::Address(_)) => {
                table = self.ctx.tables.load();
                frontend = table.frontends.get(&self.original_destination);
                match frontend {
                    Some(frontend) => (&frontend.tcp.from_pods, &frontend.service),
                    None => return (Security::Way, None),
                }
            }
            _ => return (Security::Way, None),
        };
        let name = security.tls().filter(|tls| tls.terms.hostname.is_empty());
        let name = name.map(|_| if host.is_empty() { service.fqdn().into() } else { host.into() });
        (security.clone(), name)
    }

    /// The scheme in which the upstream is asked.
    pub fn upstream_scheme(&self, planned: &Planned<'_>) -> Scheme {
        let goal = match planned.plan {
            Plan::Forward { cluster } => Goal::Cluster(cluster),
            _ => self.original(planned),
        };
        let (security, _) = self.security(goal, "");
        if security.tls().is_some() { Scheme::HTTPS } else { Scheme::HTTP }
    }

    /// Where a request goes that is sent to the address that the client dialled.
    pub fn original(&self, planned: &Planned<'_>) -> Goal<'static> {
        let address = self.original_destination;
        let known = planned.route.is_some() || self.origin.is_inbound();
        if known { Goal::Address(address) } else { Goal::Unknown(address) }
    }
}

impl<'a> Caller<'a> {
    /// Writes the request's head for the upstream, in either version.
    pub fn writer<'h>(
        &self,
        planned: &Planned<'h>,
        outgoing: &'h Outgoing<'h>,
        head: &'h RequestHead,
        request_id: &'h str,
    ) -> RequestWriter<'h>
    where
        'a: 'h,
    {
        RequestWriter {
            head,
            target: outgoing.target.as_deref(),
            authority: &outgoing.authority,
            changes: planned.request_changes(),
            // The pod sees an inbound client for itself, and what agents on the way have added.
            client: (!self.origin.is_inbound()).then(|| self.peer.ip()),
            request_id,
            trust_forwarded: self.settings.trust_forwarded,
            upgrade: self.upgrade(head),
            client_certificate: self.client_certificate(),
        }
    }

    /// What upstreams are told of the client's certificate.
    fn client_certificate(&self) -> ForwardedCertificate<'a> {
        match self.tls.filter(|tls| tls.asks_clients).map(|tls| &tls.client) {
            None => ForwardedCertificate::Foreign,
            Some(None) => ForwardedCertificate::Removed,
            Some(Some(client)) => ForwardedCertificate::Set(&client.forwarded),
        }
    }
}

/// Whether a request is gRPC.
pub(in crate::proxy) fn is_grpc(head: &RequestHead) -> bool {
    head.fields().first(Known::ContentType).is_some_and(grpc::is_grpc)
}

/// When a request must be over: the soonest of its own time, of its one try's, and of what a gRPC client gives it.
pub(in crate::proxy) fn deadline(
    planned: &Planned<'_>,
    head: &RequestHead,
    start: Instant,
) -> Option<(Instant, Problem)> {
    let route = planned.route.map(|matched| matched.route);
    // Zero turns a route's timeout off.
    let on = |timeout: Option<Duration>| timeout.filter(|timeout| !timeout.is_zero());
    let whole = route.and_then(|route| on(route.timeout)).map(|timeout| (timeout, Problem::RequestTimeout));
    let try_ = route.and_then(|route| on(route.try_timeout)).map(|timeout| (timeout, Problem::TryTimeout));
    let mut given = None;
    if head.fields().has(Known::GrpcTimeout) && is_grpc(head) {
        given = head.fields().first(Known::GrpcTimeout).and_then(grpc::timeout);
    }
    let given = given.map(|timeout| (timeout, Problem::RequestTimeout));
    let (timeout, problem) =
        [whole, try_, given].into_iter().flatten().min_by_key(|(timeout, _)| *timeout)?;
    Some((start.checked_add(timeout)?, problem))
}
