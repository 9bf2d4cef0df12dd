//! Model -> [`RoutingTable`]: compiled, immutable, swapped whole.
//!
//! [`compile`] takes the previous table as well and keeps every entry of it that would come out equal, `Arc` and all.
//! What hangs off an entry (load, turns, draws) then goes on through a change elsewhere, and a table that differs in
//! one endpoint costs the memory of that one.

mod clusters;
mod datagrams;
mod edge_tls;
mod frontends;
mod gateways;
mod gone;
mod guard;
mod hosts;
mod limits;
mod peers;
mod policies;
mod realm;
mod recompile;
mod routes;
mod source;
mod table;
mod tier;
mod upstream_tls;
mod version;
mod watched;
mod weights;
pub mod wire;
mod workloads;

use std::sync::Arc;

use crate::model::{Listener, Model, RouteTable};

pub use edge_tls::{MadeTls, TlsPort, TlsServer};
pub use gone::gone;
pub use guard::{GuardPolicy, GuardRule};
pub use limits::{
    InFlight, LimitCounter, LimitMemo, LimitPolicy, LimitTable, LimitUse, Numbers, limit_time, write_text,
};
pub use peers::{PeerMode, PodMtls};
pub use policies::{ACCESS_DENIED, Denied, DeniedBy, Foreseen, MTLS_REQUIRED, PodPolicy, PolicyTable};
pub use realm::{DEFAULT_TRUST_DOMAIN, PolicyClient, Realm, Way};
pub use recompile::{compile_parts, recompile};
pub use table::{
    Action, Backend, Cluster, ClusterKey, DatagramFrontend, Forward, Frontend, GatewayListener, HeaderOps,
    Route, RouteName, RoutingTable, Upstream, VirtualHost, WeightedBackend,
};
pub use upstream_tls::{NO_CA, OUTSIDE_MESH, SecuredBy, Security, UpstreamTls, Within};
pub use version::{TableVersion, Token};
pub use watched::{Observed, Outcome};
pub use weights::Weights;

/// Compiles what the documents say. Pure: the same model after the same table gives the same table.
///
/// - A service's rules are those of its HTTPRoutes where it has any, merged by the Gateway API's precedence; else those
///   of its first VirtualService (Istio does not merge them in the mesh either, and lets the Gateway API win). Routes
///   of other namespaces take their place for the callers of those namespaces. A request that fits none of the rules is
///   answered with 404, but for callers that no rule can concern: then, and without any rules, everything goes to the
///   service itself.
/// - A destination that can't be resolved becomes [`Backend::Invalid`]; its share of requests is answered with an error
///   and the rest is served.
pub fn compile(model: &Model, previous: &RoutingTable, version: TableVersion) -> RoutingTable {
    let workloads::Workloads { by_address, by_name } = workloads::compile(model, previous);
    let source = source::ModelIndex::new(model, by_name);
    let pods = source::Pods { source: &source, by_address: &by_address };
    let mut clusters = clusters::Clusters::default();
    for service in &model.services {
        clusters::add(&mut clusters, service, pods, previous);
    }
    let scope = routes::Scope { source: &source, clusters: &clusters };
    let listeners: Vec<(&Listener, Vec<&RouteTable>)> =
        model.listeners.iter().map(|listener| (listener, listener.routes.iter().collect())).collect();
    RoutingTable {
        version,
        frontends: frontends::compile(&model.services, previous, &scope),
        datagrams: datagrams::compile(&model.services, &source, previous),
        policies: policies::compile(
            model.authorization.iter(),
            model.peers.iter(),
            model.limits.iter(),
            model.workloads.iter(),
            previous,
        ),
        realm: Arc::clone(&previous.realm),
        gateways: gateways::compile(gateways::plan(&listeners).iter(), previous, &scope),
        guard: guard::compile(&model.guards.iter(), &previous.guard),
        limits: limits::compile(model.limits.iter(), &previous.limits),
        workloads: Arc::new(by_address),
        clusters,
    }
}

#[cfg(test)]
mod tests;
