//! Checked, version-neutral values: what the documents mean once their spelling no longer matters. No I/O.

mod authorization;
mod client_tls;
mod endpoints;
pub(crate) mod expression;
mod guard;
mod limit;
mod name;
mod peer_authentication;
mod probe;
mod route;
pub(crate) mod serial;
mod service;
mod shared_index;
mod shared_list;
mod shared_map;
mod speaker;
mod tls;
mod workload;

#[cfg(test)]
pub(crate) use authorization::tests as authorization_tests;
pub use authorization::{
    Account, Asked, AuthorizationPolicy, Cidr, Doubt, FieldTerm, Identity, NamespacePattern, PathPart,
    PathPattern, PolicyAction, PolicyMatch, PolicyRequest, PolicyRule, PolicyScope, PolicySource,
    RequestTerms, TextPattern,
};
pub use client_tls::{ClientTls, TlsRules};
pub use endpoints::Endpoints;
pub use guard::{EdgeGuard, SourceRate};
pub use limit::{
    AnswerHeader, ClusterCount, ClusterMode, Cost, CostSource, FailMode, KernelCount, KernelKey, KernelLimit,
    KeyPart, Limit, LimitTarget, LimitedPods, LimitedRoute, Missing, Override, OverrideValue, PathTemplate,
    PathTemplates, PushDown, Quota, RateLimit, SaidCost,
};
pub use name::ObjectName;
pub use peer_authentication::{MtlsMode, PeerAuthentication, PeerLevel};
pub use probe::{Probe, ProbeCheck};
pub use route::{
    Destination, DirectResponse, HeaderChange, HeaderOp, HostPattern, HttpRule, Listener, ListenerProtocol,
    MatchPath, MatchValue, PathRewrite, Redirect, RedirectPath, RedirectPort, RequestMatch, RewriteRegex,
    RouteAction, RouteKind, RouteTable, Specificity, WeightedDestination,
};
pub use service::{AppProtocol, Endpoint, LbPolicy, Service, ServicePort, Subset, TrafficPolicy};
pub use shared_index::SharedIndex;
pub use shared_list::SharedList;
pub use shared_map::SharedMap;
pub use speaker::{GatewayKey, Speaker};
pub use tls::{
    BackendName, BackendRoots, BackendTls, ClientMode, ClientValidation, ListenerTls, PrivateKey,
    ServerCertificate, TlsVersion,
};
pub use workload::{Labels, Workload};

/// Everything the documents say, checked; the input of [`crate::compile`].
///
/// Collections are sorted by name, so that the same documents always give the same model. Copies share them: a model in which the
/// endpoints of a service change costs about as much as these.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Model {
    /// Services with their ports, sorted by name.
    pub services: SharedList<Service>,
    /// Endpoints of the services, each naming its service and port; sorted by (service, port, address).
    pub endpoints: Endpoints,
    /// Endpoints of the services' UDP ports, sorted likewise.
    pub datagram_endpoints: Endpoints,
    /// Pods known by address, sorted by name.
    pub workloads: SharedList<Workload>,
    /// Subsets and load balancing by service host, from DestinationRules.
    pub policies: SharedList<TrafficPolicy>,
    /// Who may reach which pods, sorted by name.
    pub authorization: SharedList<AuthorizationPolicy>,
    /// Which pods take plaintext, sorted by name.
    pub peers: SharedList<PeerAuthentication>,
    /// Mesh routes (VirtualService, HTTPRoute with a Service parent) in order of precedence within one host.
    pub mesh_routes: SharedList<RouteTable>,
    /// Gateway listeners with their own routes (HTTPRoute with a Gateway parent).
    pub listeners: SharedList<Listener>,
    /// What the guard at the edge shall keep out, sorted by name.
    pub guards: SharedList<EdgeGuard>,
    /// How many requests are let through, sorted by name.
    pub limits: SharedList<RateLimit>,
}
