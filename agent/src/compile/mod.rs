//! Model -> [`RoutingTable`]: compiled, immutable, swapped whole.
//!
//! [`compile`] takes the previous table as well and keeps every entry of it that would come out equal, `Arc` and all.
//! What hangs off an entry (load, turns, draws) then goes on through a change elsewhere, and a table that differs in
//! one endpoint costs the memory of that one.

mod clusters;
mod datagrams;
mod frontends;
mod gateways;
mod guard;
mod hosts;
mod policies;
mod routes;
mod table;
mod tier;
mod version;
mod weights;
pub mod wire;
mod workloads;

use std::collections::HashMap;

use crate::model::{Model, ObjectName, RouteTable, Service};

pub use guard::{GuardPolicy, GuardRule};
pub use policies::{Denied, Foreseen, PodPolicy, PolicyTable};
pub use table::{
    Action, Backend, Cluster, ClusterKey, DatagramFrontend, Forward, Frontend, GatewayListener, HeaderOps,
    Route, RouteName, RoutingTable, Upstream, VirtualHost, WeightedBackend,
};
pub use version::{TableVersion, Token};
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
    let services: HashMap<&ObjectName, &Service> =
        model.services.iter().map(|service| (&service.name, service)).collect();
    let workloads = workloads::compile(model, previous);
    let clusters = clusters::compile(model, previous, &workloads);
    let scope = routes::Scope { services: &services, clusters: &clusters };
    let frontends = frontends::compile(model, previous, &scope);
    let datagrams = datagrams::compile(model, previous);
    let gateways = gateways::compile(&model.listeners, previous, &scope);
    let policies = policies::compile(model, previous);
    let guard = guard::compile(&model.guards, &previous.guard);
    RoutingTable {
        version,
        frontends,
        datagrams,
        workloads: workloads.by_address,
        policies,
        gateways,
        clusters,
        guard,
    }
}

/// The mesh route tables that name a service, by service; in the model's order.
fn mesh_routes(model: &Model) -> HashMap<&ObjectName, Vec<(&RouteTable, Option<u16>)>> {
    let mut by_service: HashMap<_, Vec<_>> = HashMap::new();
    for table in &model.mesh_routes {
        for (service, port) in &table.services {
            by_service.entry(service).or_default().push((table, *port));
        }
    }
    by_service
}

#[cfg(test)]
mod tests;
