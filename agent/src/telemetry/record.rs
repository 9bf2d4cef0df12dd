//! The records that proxies hand over when a request or a connection ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::ResponseFlags;
use crate::compile::{ClusterKey, Denied, Observed, RouteName};
use crate::http::grpc::GrpcStatus;
use crate::identity::SpiffeId;
use crate::model::{GatewayKey, ObjectName, Workload};

/// Where a connection entered the agent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Origin {
    /// Captured from a local pod on its way out.
    Outbound,
    /// Captured on its way into a pod of this node.
    Inbound,
    /// Come through a tunnel to a pod of this node, from the pod that certificates have proven, or from this Gateway.
    Tunnel(Option<GatewayKey>),
    /// Accepted on a Gateway listener, by `namespace/gateway/listener`.
    Gateway(Arc<str>),
}

impl Origin {
    /// Whether it is on its way into a pod of this node.
    pub fn is_inbound(&self) -> bool {
        matches!(self, Self::Inbound | Self::Tunnel(_))
    }
}

/// TLS with a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TlsRecord<'a> {
    /// The listener that the server name led to, which several that share a port are told apart by; `None`: to none.
    pub listener: Option<&'a str>,
    /// `TLSv1.2`, `TLSv1.3`; `None` where the handshake came to nothing.
    pub version: Option<&'static str>,
    /// The server name that the client asked for.
    pub server_name: Option<&'a str>,
    /// The subject of the client's certificate, where it showed a valid one.
    pub subject: Option<&'a str>,
}

/// A limit that refused a request or a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitedBy<'a> {
    /// Its document.
    pub policy: &'a ObjectName,
    /// Its name within it.
    pub limit: &'a Arc<str>,
}

/// One request, at its end.
#[derive(Debug)]
pub struct RequestRecord<'a> {
    /// From the end of its head to the last byte of the answer; its end is now.
    pub duration: Duration,
    /// Where the connection entered.
    pub origin: &'a Origin,
    /// The client's address.
    pub peer: SocketAddr,
    /// What the client dialled.
    pub original_destination: SocketAddr,
    /// TLS with the client, where it is spoken, or was to be.
    pub tls: Option<TlsRecord<'a>>,
    /// The client's pod, where known.
    pub source: Option<&'a Arc<Workload>>,
    /// The cluster it was sent to, where a route named one.
    pub cluster: Option<&'a ClusterKey>,
    /// The endpoint it was sent to, where one was chosen.
    pub upstream: Option<SocketAddr>,
    /// The endpoint's pod, where known.
    pub destination: Option<&'a Arc<Workload>>,
    /// The route that took it.
    pub route: Option<&'a RouteName>,
    /// `GET`, ...; `-` where the head could not be read.
    pub method: &'a str,
    /// The authority as sent.
    pub authority: &'a str,
    /// Path and query as sent.
    pub path: &'a str,
    /// `HTTP/1.0`, `HTTP/1.1`, `HTTP/2`; `-` where TLS was to come first and did not.
    pub protocol: &'static str,
    /// The status that the client got; 0 where it got none.
    pub status: u16,
    /// Whether the request was gRPC, by its `Content-Type`.
    pub grpc: bool,
    /// The gRPC status that the client got, where it got one.
    pub grpc_status: Option<GrpcStatus>,
    /// Why it ended so.
    pub flags: ResponseFlags,
    /// What exactly was wrong (`header_obs_fold`, `connect_refused`, ...); empty for nothing.
    pub details: &'static str,
    /// The policy that refused it, where one did.
    pub denied: Option<&'a Denied>,
    /// The limit that refused it, where one did.
    pub limited: Option<LimitedBy<'a>>,
    /// Body bytes from the client.
    pub request_bytes: u64,
    /// Body bytes to the client.
    pub response_bytes: u64,
    /// The `x-request-id` sent on.
    pub request_id: &'a str,
    /// The client's user agent.
    pub user_agent: &'a [u8],
}

/// One opaque connection, at its end.
#[derive(Debug)]
pub struct ConnectionRecord<'a> {
    /// When it was accepted.
    pub start: SystemTime,
    /// From then to its end.
    pub duration: Duration,
    /// Where it entered.
    pub origin: &'a Origin,
    /// The client's address.
    pub peer: SocketAddr,
    /// What the client dialled.
    pub original_destination: SocketAddr,
    /// The client's pod, where known.
    pub source: Option<&'a Arc<Workload>>,
    /// As whom the client is proven, where it came by a tunnel.
    pub identity: Option<&'a SpiffeId>,
    /// The cluster it was sent to.
    pub cluster: Option<&'a ClusterKey>,
    /// The endpoint it was sent to.
    pub upstream: Option<SocketAddr>,
    /// The endpoint's pod, where known.
    pub destination: Option<&'a Arc<Workload>>,
    /// Why it ended so.
    pub flags: ResponseFlags,
    /// What exactly was wrong; empty for nothing.
    pub details: &'static str,
    /// The limit that refused it, where one did.
    pub limited: Option<LimitedBy<'a>>,
    /// Bytes from the client.
    pub sent_bytes: u64,
    /// Bytes to the client.
    pub received_bytes: u64,
    /// The round-trip time to the client, at the end.
    pub rtt: Option<Duration>,
}

/// One client connection that was served requests, at its end.
#[derive(Debug)]
pub struct ServedRecord {
    /// The client's address.
    pub peer: SocketAddr,
    /// What the client dialled.
    pub original_destination: SocketAddr,
    /// When it was accepted.
    pub since: SystemTime,
    /// Bytes from the client and to it, heads and frames included; `None` where TCP has not counted them.
    pub bytes: Option<(u64, u64)>,
    /// The round-trip time to the client, at the end.
    pub rtt: Option<Duration>,
}

/// Takes the records of one worker. Called on the data path: once its series exist nothing is allocated per call. A request
/// that is served waits for nobody; the end of a connection and a refusal wait at the most for another worker to tell of
/// one, or for a reader to copy a piece of what was told.
pub trait Recorder {
    /// A request ended.
    fn request(&self, record: &RequestRecord<'_>);
    /// An opaque connection was accepted and its destination chosen; counted again by [`Self::connection`] at its end.
    fn connection_opened(&self, record: &ConnectionRecord<'_>);
    /// An opaque connection ended.
    fn connection(&self, record: &ConnectionRecord<'_>);
    /// A client connection that was served requests ended.
    fn served(&self, record: &ServedRecord);
    /// A policy refused a client's request or connection to an endpoint.
    fn denied(&self, denied: &Denied, client: SocketAddr, endpoint: SocketAddr);
    /// A client's connection was not taken, for this reason.
    fn turned_away(&self, reason: &'static str, client: SocketAddr, dialled: SocketAddr);
    /// A policy that refuses nobody says something of a client's request or connection to an endpoint.
    fn observed(&self, observed: &Observed, client: SocketAddr, endpoint: SocketAddr);
    /// A client connection (of any protocol) was accepted or, with `opened` false, ended.
    fn downstream(&self, origin: &Origin, opened: bool);
}
