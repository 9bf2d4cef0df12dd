//! Services, their endpoints, and the traffic policy of a host.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{BackendTls, ClientTls, Labels, ObjectName, TlsRules};

/// What a port's owner says that is spoken on it (`appProtocol`, else the port name's prefix as in Istio).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AppProtocol {
    /// HTTP/1.1; never sniffed, never dialled early.
    Http,
    /// HTTP/2 with prior knowledge (`http2`, `kubernetes.io/h2c`).
    Http2,
    /// gRPC over HTTP/2.
    Grpc,
    /// Opaque bytes: never sniffed (`tcp`, `tls`, `https`, `mongo`, `mysql`, `redis`, ...).
    Tcp,
    /// Nothing said: the first byte from either side decides.
    #[serde(rename = "auto")]
    Undeclared,
}

impl AppProtocol {
    /// The protocol's name as it is shown: `http`, `http2`, `grpc`, `tcp`, `auto`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
            Self::Undeclared => "auto",
        }
    }
}

/// A Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The service's name.
    pub name: ObjectName,
    /// Its ClusterIPs (v4, v6); empty for a headless service.
    pub cluster_ips: Vec<IpAddr>,
    /// Whether `clusterIP: None`: clients dial the endpoints' own addresses.
    pub headless: bool,
    /// Its TCP ports.
    pub ports: Vec<ServicePort>,
    /// Its UDP ports. What is spoken on them is of no concern: they are balanced, and never relayed.
    pub datagram_ports: Vec<ServicePort>,
    /// How long after its last connection a client is led to the same endpoint (`sessionAffinity: ClientIP`).
    pub affinity: Option<Duration>,
}

/// One port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// The port's name; empty for a single unnamed port.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub name: Arc<str>,
    /// The port that clients dial.
    pub port: u16,
    /// What is spoken on it.
    pub protocol: AppProtocol,
    /// How Gateways speak TLS with its endpoints, where they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Arc<BackendTls>>,
}

/// One address that serves one port of one service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// The service it belongs to.
    pub service: ObjectName,
    /// The service's port (the one that clients dial).
    pub service_port: u16,
    /// Where to connect.
    pub address: SocketAddr,
    /// Whether it may be given new work.
    pub ready: bool,
    /// The pod behind it, where known.
    pub pod: Option<ObjectName>,
    /// The pod's uid, or the address where no pod is known: what an endpoint *is*, across address reuse.
    pub uid: Arc<str>,
    /// The node that runs it, where known.
    pub node: Option<Arc<str>>,
    /// Labels that subsets select on.
    pub labels: Arc<Labels>,
}

/// How an endpoint is chosen (DestinationRule `loadBalancer`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LbPolicy {
    /// Each in turn.
    RoundRobin,
    /// Any, evenly at random.
    Random,
    /// The one with fewer requests in flight of two drawn at random (Istio's default).
    #[default]
    LeastRequest,
    /// By the client's address: one that comes back meets the same endpoint for as long as it is there
    /// (`consistentHash.useSourceIp`).
    SourceIp,
}

/// What DestinationRules say of one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrafficPolicy {
    /// The DestinationRule it comes from.
    pub source: ObjectName,
    /// The service it is about.
    pub service: ObjectName,
    /// The balancing of the service itself.
    pub lb: LbPolicy,
    /// Balancing by service port, where `portLevelSettings` give one.
    pub port_lb: Vec<(u16, LbPolicy)>,
    /// The TLS that clients speak with its endpoints.
    pub tls: TlsRules<ClientTls>,
    /// Named subsets.
    pub subsets: Vec<Subset>,
}

/// A named part of a service's endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subset {
    /// Its name, as routes call it.
    pub name: Arc<str>,
    /// An endpoint belongs when it has all of these labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// The subset's own balancing, where it overrides the service's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lb: Option<LbPolicy>,
    /// The TLS that clients speak with its endpoints, where that differs from the service's.
    #[serde(default, skip_serializing_if = "TlsRules::is_empty")]
    pub tls: TlsRules<ClientTls>,
}
