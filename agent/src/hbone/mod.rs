//! HBONE: pods' connections between nodes as HTTP/2 CONNECT streams within mutual TLS, as Istio's ambient mesh has them.
//!
//! [`TunnelConnector`] dials, [`accept`] answers, [`relay`] moves bytes between a stream and a socket. Who speaks with whom is
//! [`Mesh`]'s to say; who may, is for whoever serves the streams. `docs/hbone.md` has what goes over the wire.

mod client;
mod counts;
mod fields;
mod heard;
mod pair;
mod recent;
mod refusals;
mod relay;
mod server;
mod standing;

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::time_provider::TimeProvider;

use crate::compile::RoutingTable;
use crate::identity::tls::Terms;
use crate::identity::{Expected, Peer, PeerRefusal, RefusedPeer, SpiffeId, WorkloadCertificates};
use crate::model::{GatewayKey, Workload};
use crate::net::ConnectSource;

pub use client::TunnelConnector;
pub use counts::{Role, Tally, TunnelCounts};
pub use pair::pair;
use recent::Recent;
pub use recent::RecentRefusals;
use refusals::Refusals;
pub use relay::{Broken, StreamEnd, relay};
pub use server::{Tunnel, Unmade, accept, destination, refuse};
pub use standing::{LOST, Standing, is_proof};

/// The port that tunnels are dialled at, on the pod's own address.
pub const PORT: u16 = agent_common::capture::HBONE_PORT;
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Streams of one connection; the next one gets a connection of its own.
const STREAMS_MAX: u32 = 64;
/// What a peer may have open beside them: a request for a proof.
const STREAMS_SPARE: u32 = 1;
/// What a peer may send on a stream before it has been taken.
const STREAM_WINDOW_BYTES: u32 = 512 * 1024;
/// The same of a connection: the sum of its streams', so that streams that nobody reads from never stop the others.
const CONNECTION_WINDOW_BYTES: u32 = STREAM_WINDOW_BYTES * STREAMS_MAX;
/// The largest frame that a peer may send: what is read at once goes as one.
const FRAME_MAX_BYTES: u32 = 64 * 1024;
/// The largest head of a request or an answer.
const HEAD_MAX_BYTES: u32 = 16 * 1024;

/// Who is in the mesh, and as whom this node's workloads speak; shared by all workers.
pub struct Mesh {
    node: Arc<str>,
    /// The cluster's name, for what peers are told of pods.
    cluster: Arc<str>,
    tables: Arc<ArcSwap<RoutingTable>>,
    certificates: Arc<WorkloadCertificates>,
    clock: Arc<dyn TimeProvider>,
    counts: TunnelCounts,
    refusals: Refusals,
    recent: Recent,
}

/// Both ends of a connection that goes through a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ends {
    source: Arc<Workload>,
    destination: Arc<Workload>,
}

impl Mesh {
    /// The mesh as this node of a cluster sees it.
    pub fn new(
        (node, cluster): (Arc<str>, Arc<str>),
        tables: Arc<ArcSwap<RoutingTable>>,
        certificates: Arc<WorkloadCertificates>,
        clock: Arc<dyn TimeProvider>,
    ) -> Self {
        Self {
            node,
            cluster,
            tables,
            certificates,
            clock,
            counts: TunnelCounts::default(),
            refusals: Refusals::default(),
            recent: Recent::default(),
        }
    }

    /// What happened to tunnels.
    pub fn counts(&self) -> &TunnelCounts {
        &self.counts
    }

    /// A handshake came to nothing: counts it, and says so in the log. `ends`: who dialled, and what.
    pub fn refused(
        &self,
        role: Role,
        ends: (SocketAddr, SocketAddr),
        expected: Option<&Peer>,
        refused: &RefusedPeer,
    ) {
        self.counts.handshakes.refused(role, refused.why);
        // Whoever looks for open ports goes away.
        if (role, refused.why) != (Role::Server, PeerRefusal::Closed) {
            let (source, destination) = (ends.0.ip().to_canonical(), ends.1.ip().to_canonical());
            self.recent.note((role, source, destination, refused.why), self.now());
        }
        let RefusedPeer { why, presented } = refused;
        let Some(left_out) = self.due(role, ends, *why) else { return };
        let (source, destination) = ends;
        tracing::warn!(
            role = role.name(),
            %source,
            %destination,
            reason = why.name(),
            expected = expected.map(tracing::field::display),
            presented = presented.as_ref().map(tracing::field::display),
            left_out,
            "no tunnel: {why}"
        );
    }

    /// A stream of a tunnel to this node is refused, before anything is dialled for it: counts it, and says so in the log. `peer`: as
    /// whom who asks for it is proven.
    pub fn refused_stream(&self, ends: (SocketAddr, SocketAddr), peer: &SpiffeId, why: PeerRefusal) {
        self.counts.streams.refused(Role::Server, why);
        let Some(left_out) = self.due(Role::Server, ends, why) else { return };
        let (source, destination) = ends;
        tracing::warn!(
            role = Role::Server.name(),
            %source,
            %destination,
            reason = why.name(),
            %peer,
            left_out,
            "a stream of a tunnel is refused: {why}"
        );
    }

    /// Whether a refusal is told now; how many like it have not been.
    fn due(
        &self,
        role: Role,
        (source, destination): (SocketAddr, SocketAddr),
        why: PeerRefusal,
    ) -> Option<u64> {
        let peer = if role == Role::Client { destination } else { source };
        self.refusals.due((role, peer.ip(), why), self.now())
    }

    /// Tunnels that came to nothing in the last minute, the last first.
    pub fn recent_refusals(&self) -> Vec<RecentRefusals> {
        self.recent.all(self.now())
    }

    /// The certificates of this node's workloads.
    pub fn certificates(&self) -> &Arc<WorkloadCertificates> {
        &self.certificates
    }

    /// The time by which certificates hold.
    pub fn now(&self) -> SystemTime {
        let since = self.clock.current_time().map_or(0, |time| time.as_secs());
        SystemTime::UNIX_EPOCH + Duration::from_secs(since)
    }

    /// Whose certificates this node needs: those of its own pods, and of Gateways where there are tunnels to make for them.
    pub fn wanted(&self) -> HashSet<SpiffeId> {
        let table = self.tables.load();
        let own = table.workloads.values().filter(|workload| self.runs(workload));
        let mut wanted: HashSet<_> = own.filter_map(|workload| self.identity(workload)).collect();
        if table.workloads.values().any(|workload| self.is_reached_by_tunnel(workload)) {
            wanted.extend(table.speakers().filter_map(|speaker| self.identity(&speaker.workload)));
        }
        wanted
    }

    /// The ends of a tunnel, where a connection to this address from one of this node's pods, or for a Gateway, shall go through
    /// one.
    pub(crate) fn ends(&self, source: ConnectSource, destination: IpAddr) -> Option<Ends> {
        let table = self.tables.load();
        let source = match source {
            ConnectSource::Pod(pod) => table.workloads.get(&pod).filter(|pod| self.runs(pod))?,
            ConnectSource::Gateway(gateway) => table.speaker(gateway)?,
            ConnectSource::Node | ConnectSource::Translated => return None,
        };
        let destination = table.workloads.get(&destination).filter(|pod| self.is_reached_by_tunnel(pod))?;
        Some(Ends { source: Arc::clone(source), destination: Arc::clone(destination) })
    }

    fn is_reached_by_tunnel(&self, workload: &Workload) -> bool {
        let elsewhere = workload.node.as_ref().is_some_and(|node| *node != self.node);
        elsewhere && workload.is_tunnelled()
    }

    /// How the pod that was dialled speaks with the one that dialled, or with a Gateway, where no pod has that address.
    pub fn arrival(&self, source: IpAddr, destination: IpAddr) -> Result<Terms, PeerRefusal> {
        let table = self.tables.load();
        let own = table.workloads.get(&destination).filter(|own| self.runs(own));
        let missing = PeerRefusal::NoOwnCertificate;
        if let Some(source) = table.workloads.get(&source) {
            return self.terms(own.ok_or(missing)?, source);
        }
        let gateways: HashSet<_> =
            table.speakers().filter_map(|speaker| self.identity(&speaker.workload)).collect();
        if gateways.is_empty() {
            return Err(PeerRefusal::UnknownPeer);
        }
        self.terms_for(own.ok_or(missing)?, Peer::Gateway(Arc::new(gateways)))
    }

    /// Whether who has proven to be this at an address is still to be believed there.
    pub fn is_still(&self, address: IpAddr, peer: &Expected) -> bool {
        let is_pod = self.tables.load().workloads.contains_key(&address);
        if is_pod {
            self.expected(address).as_ref() == Some(peer)
        } else {
            self.gateway(address, peer).is_some()
        }
    }

    /// The Gateway that has proven to be this at an address, where that is no pod's.
    pub fn gateway(&self, address: IpAddr, peer: &Expected) -> Option<GatewayKey> {
        let table = self.tables.load();
        if table.workloads.contains_key(&address) {
            return None;
        }
        let mut speakers = table.speakers();
        let found = speakers.find(|speaker| self.identity(&speaker.workload).as_ref() == Some(&peer.id));
        found.map(|speaker| speaker.key)
    }

    /// Who the pod at an address is, by the table in force.
    pub fn expected(&self, pod: IpAddr) -> Option<Expected> {
        let table = self.tables.load();
        let pod = table.workloads.get(&pod)?;
        Some(Expected { id: self.identity(pod)?, node: pod.node.clone()? })
    }

    /// How a workload of this node speaks with another one.
    pub(crate) fn terms(&self, own: &Workload, peer: &Workload) -> Result<Terms, PeerRefusal> {
        let expected = self.identity(peer).zip(peer.node.clone());
        let (id, node) = expected.ok_or(PeerRefusal::UnknownPeer)?;
        self.terms_for(own, Expected { id, node }.into())
    }

    fn terms_for(&self, own: &Workload, peer: Peer) -> Result<Terms, PeerRefusal> {
        let own = self.identity(own).ok_or(PeerRefusal::NoOwnCertificate)?;
        let own = self.certificates.obtain(&own, self.now()).ok_or(PeerRefusal::NoOwnCertificate)?;
        Ok(Terms { own, bundle: self.certificates.bundle(), peer })
    }

    fn identity(&self, workload: &Workload) -> Option<SpiffeId> {
        let bundle = self.certificates.bundle();
        SpiffeId::of_workload(bundle.trust_domain(), &workload.name.namespace, &workload.service_account).ok()
    }

    fn runs(&self, workload: &Workload) -> bool {
        workload.node.as_ref() == Some(&self.node)
    }

    fn clock(&self) -> Arc<dyn TimeProvider> {
        Arc::clone(&self.clock)
    }
}

impl fmt::Debug for Mesh {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Mesh({})", self.node)
    }
}
