//! The compiled table: plain data with one `Arc` per service, route and endpoint, so that a table that differs in one
//! entry shares all the others with its predecessor (and with them the balancing state that hangs off them).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::model::{
    AppProtocol, DirectResponse, HeaderOp, HostPattern, LbPolicy, ListenerProtocol, ObjectName, PathRewrite,
    Redirect, RequestMatch, SharedIndex, SharedMap, Speaker, Workload,
};
use crate::route::{HostTable, RequestOrigin, RequestView, RouteMatch, RuleSet};

use super::{
    GuardPolicy, LimitMemo, LimitTable, PolicyTable, Realm, SecuredBy, Security, TableVersion, TlsPort,
    Weights,
};

/// Everything that the proxies look up. Immutable; a request keeps the one it started with.
#[derive(Debug, Default)]
pub struct RoutingTable {
    /// Which table this is.
    pub version: TableVersion,
    /// Captured destinations: `ClusterIP:port`, and `pod:port` of headless services.
    pub frontends: SharedIndex<SocketAddr, Arc<Frontend>>,
    /// UDP ports of services by `ClusterIP:port`; the agent relays no datagram, the kernel balances them.
    pub datagrams: SharedIndex<SocketAddr, Arc<DatagramFrontend>>,
    /// Pods by address.
    pub workloads: Arc<HashMap<IpAddr, Arc<Workload>>>,
    /// Who may reach which pods.
    pub policies: PolicyTable,
    /// Where it is in force; each table has it of the one before.
    pub realm: Arc<Realm>,
    /// Gateway listeners, one entry for each port that is bound.
    pub gateways: Vec<Arc<GatewayListener>>,
    /// Every destination that a route can name.
    pub clusters: SharedMap<ClusterKey, Arc<Cluster>>,
    /// What the guard at the edge holds sources to.
    pub guard: Arc<GuardPolicy>,
    /// How many requests are let through.
    pub limits: Arc<LimitTable>,
}

/// One port of one service, as a captured connection meets it.
#[derive(Debug)]
pub struct Frontend {
    /// The service.
    pub service: ObjectName,
    /// Its port, which the client dialled.
    pub port: u16,
    /// What is spoken on it.
    pub protocol: AppProtocol,
    /// Whether the client dialled one endpoint by its own address (headless). Without a rule that says otherwise the
    /// traffic then goes where it was sent.
    pub headless: bool,
    /// Routes for requests, where the protocol allows HTTP.
    pub http: Arc<VirtualHost>,
    /// Where opaque connections go.
    pub tcp: Arc<Cluster>,
    /// How long after its last connection a client is led to the same endpoint.
    pub affinity: Option<Duration>,
}

/// One UDP port of one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatagramFrontend {
    /// The service.
    pub service: ObjectName,
    /// Its port.
    pub port: u16,
    /// How long after its last datagram a client is led to the same endpoint.
    pub affinity: Option<Duration>,
    /// The ready endpoints, sorted.
    pub ready: Vec<SocketAddr>,
    /// The endpoints that may not be given new work, sorted.
    pub unready: Vec<SocketAddr>,
}

/// One bound port of a Gateway with the hosts behind it.
#[derive(Debug)]
pub struct GatewayListener {
    /// The Gateway and the listener's name, `namespace/gateway/listener`; several listeners that share a port are one
    /// entry under the first one's name.
    pub name: Arc<str>,
    /// The names of all that share it, with their hostnames, in the order of the documents.
    pub listeners: Vec<(Arc<str>, HostPattern)>,
    /// Addresses to bind; empty: all.
    pub addresses: Vec<IpAddr>,
    /// The port to bind.
    pub port: u16,
    /// What is spoken.
    pub protocol: ListenerProtocol,
    /// How TLS ends there, where it does.
    pub tls: Option<Arc<TlsPort>>,
    /// As whom endpoints are dialled; nobody where several Gateways share the port.
    pub speaker: Option<Arc<Speaker>>,
    /// Virtual hosts by the request's host: exact name first, then the longest wildcard, then any.
    pub hosts: HostTable<Arc<VirtualHost>>,
}

impl GatewayListener {
    /// Whether no requests are looked at there, whatever server name is asked for.
    pub fn is_opaque(&self) -> bool {
        self.tls.as_ref().is_some_and(|port| port.servers.iter().all(|(_, server)| server.is_opaque))
    }

    /// Whether TLS that comes there is passed on as it is, whatever server name is asked for.
    pub fn passes_on(&self) -> bool {
        self.tls.as_ref().is_none_or(|port| port.servers.iter().all(|(_, server)| server.terms.is_none()))
    }
}

/// A host with its rules.
#[derive(Debug)]
pub struct VirtualHost {
    /// What dumps and logs call it, e.g. `order-service.default.svc.cluster.local:80` or `*.example.com`.
    pub name: Arc<str>,
    /// The rules, compiled. The first layer that concerns a caller is the only one for it: a route that consumers have
    /// in their own namespace takes the place of the service's own rules, and is not merged with them.
    pub layers: Vec<RuleSet>,
    /// For callers that no layer concerns; a service's own, as a request that fits no rule is for a Gateway to refuse.
    pub default: Option<Arc<Route>>,
}

impl VirtualHost {
    /// The route of a request; see [`RuleSet::find`].
    pub fn find(&self, request: &impl RequestView, origin: &RequestOrigin<'_>) -> Option<RouteMatch<'_>> {
        match self.layers.iter().find(|layer| layer.concerns(origin)) {
            Some(layer) => layer.find(request, origin),
            None => self.default.as_ref().map(RouteMatch::unconditional),
        }
    }

    /// All rules with their alternatives, in order of precedence, the default last; for dumps.
    pub fn rules(&self) -> impl Iterator<Item = (&[RequestMatch], &Arc<Route>)> {
        let layers = self.layers.iter().flat_map(RuleSet::rules);
        let default = self.default.iter().map(|route| (&[][..], route));
        layers.map(|(matches, route)| (&matches[..], route)).chain(default)
    }
}

/// Where a route came from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RouteName {
    /// The document's kind, `VirtualService` or `HTTPRoute`; `Service` for the route that a service has by itself.
    pub kind: &'static str,
    /// The document.
    pub source: ObjectName,
    /// The rule within it.
    pub rule: Arc<str>,
}

/// One compiled rule's outcome.
#[derive(Debug)]
pub struct Route {
    /// Where it came from.
    pub name: RouteName,
    /// What is done.
    pub action: Action,
    /// The whole request's time, body included; `None`: unlimited.
    /// Zero: the document says that there is none.
    pub timeout: Option<Duration>,
    /// One try's time; `None`: only `timeout` binds.
    /// Zero as above.
    pub try_timeout: Option<Duration>,
    /// Changes to the request's header fields.
    pub request_headers: HeaderOps,
    /// Changes to the response's header fields.
    pub response_headers: HeaderOps,
    /// Where its limits are.
    pub(crate) limits: LimitMemo,
}

/// Header changes, in order.
pub type HeaderOps = Arc<[HeaderOp]>;

/// What a route does.
#[derive(Debug)]
pub enum Action {
    /// Sends the request on.
    Forward(Forward),
    /// Answers with a redirect.
    Redirect(Redirect),
    /// Answers by itself.
    Respond(DirectResponse),
    /// Sends the request to the address that the client dialled (headless service without rules).
    Original,
}

/// Weighted destinations.
#[derive(Debug)]
pub struct Forward {
    /// The destinations, in the document's order.
    pub backends: Vec<WeightedBackend>,
    /// Draws an index into `backends`.
    pub weights: Weights,
    /// What the upstream sees as path and host.
    pub rewrite: PathRewrite,
}

impl Forward {
    /// The destination of the next request; `None` where no destination has any weight.
    pub fn draw(&self) -> Option<&WeightedBackend> {
        self.weights.draw().and_then(|index| self.backends.get(index))
    }
}

/// A destination with its share's own header changes.
#[derive(Debug)]
pub struct WeightedBackend {
    /// Where to.
    pub backend: Backend,
    /// Its weight, for dumps.
    pub weight: u32,
    /// Changes on this share alone, after the route's.
    pub request_headers: HeaderOps,
    /// Changes on this share alone, after the route's.
    pub response_headers: HeaderOps,
}

/// A destination, resolved or not.
#[derive(Debug)]
pub enum Backend {
    /// A cluster of the same table.
    Cluster(Arc<Cluster>),
    /// The endpoint that the client dialled by its own address: a headless service's rule that sends to that service.
    Original,
    /// An unresolved reference: answered with this status.
    Invalid {
        /// The status.
        status: u16,
    },
}

/// What a cluster is, across tables.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterKey {
    /// The service.
    pub service: ObjectName,
    /// Its port.
    pub port: u16,
    /// The subset; `None`: the whole service.
    pub subset: Option<Arc<str>>,
}

/// The endpoints of a service's port, or of one subset of it, with the way to choose among them.
#[derive(Debug)]
pub struct Cluster {
    /// What it is.
    pub key: ClusterKey,
    /// What is spoken with it.
    pub protocol: AppProtocol,
    /// How one is chosen.
    pub policy: LbPolicy,
    /// What connections of those who come by a Gateway are kept within.
    pub from_gateways: Security,
    /// What those of this node's pods are.
    pub from_pods: Security,
    /// The DestinationRule that says so; `None`: none speaks of it.
    pub secured_by: Option<SecuredBy>,
    /// The ready endpoints, sorted by address; may be empty.
    pub endpoints: Vec<Arc<Upstream>>,
    /// The endpoints that may not be given new work, sorted by address; for dumps alone.
    pub unready: Vec<Arc<Upstream>>,
    /// The round-robin position; shared by all workers.
    pub(crate) turn: AtomicU64,
    /// Where its service's limits are.
    pub(crate) limits: LimitMemo,
}

impl Cluster {
    /// A cluster at the start of its turns; `endpoints` are ready and sorted by address.
    pub fn new(
        key: ClusterKey,
        protocol: AppProtocol,
        policy: LbPolicy,
        endpoints: Vec<Arc<Upstream>>,
    ) -> Self {
        Self {
            key,
            protocol,
            policy,
            from_gateways: Security::default(),
            from_pods: Security::default(),
            secured_by: None,
            endpoints,
            unready: Vec::new(),
            turn: AtomicU64::new(0),
            limits: LimitMemo::default(),
        }
    }
}

/// An endpoint that can be connected to, with its live load.
#[derive(Debug)]
pub struct Upstream {
    /// Where to connect.
    pub address: SocketAddr,
    /// What it is, across address reuse; part of every pool key.
    pub uid: Arc<str>,
    /// The pod behind it, where known.
    pub workload: Option<Arc<Workload>>,
    /// Requests and connections in flight, over all workers.
    pub(crate) active: AtomicU32,
}

impl Upstream {
    /// An endpoint without load.
    pub fn new(address: SocketAddr, uid: Arc<str>, workload: Option<Arc<Workload>>) -> Self {
        Self { address, uid, workload, active: AtomicU32::new(0) }
    }

    /// Whether other nodes' pods reach it through tunnels.
    pub fn is_tunnelled(&self) -> bool {
        self.workload.as_ref().is_some_and(|pod| pod.is_tunnelled())
    }

    /// Requests and connections in flight, over all workers.
    pub fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }
}
