//! Endpoints of services and of their subsets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::source::Pods;
use super::{Cluster, ClusterKey, RoutingTable, SecuredBy, Security, Upstream, UpstreamTls};
use crate::model::{AppProtocol, Endpoint, LbPolicy, Service, ServicePort, SharedMap, Subset, TrafficPolicy};

/// Clusters by what they are.
pub(super) type Clusters = SharedMap<ClusterKey, Arc<Cluster>>;

/// Adds the clusters of a service: one for each port, and one for each subset of it.
pub(super) fn add(clusters: &mut Clusters, service: &Service, pods: Pods<'_>, previous: &RoutingTable) {
    let policy = pods.source.policy(&service.name);
    for port in &service.ports {
        let key = ClusterKey { service: service.name.clone(), port: port.port, subset: None };
        let endpoints = in_order(pods.source.endpoints(&service.name, port.port));
        let members = upstreams(&endpoints, previous.clusters.get(&key), pods);
        for subset in policy.map_or(&[][..], |policy| &policy.subsets) {
            let key = ClusterKey { subset: Some(Arc::clone(&subset.name)), ..key.clone() };
            let chosen = members.iter().filter(|(endpoint, _)| belongs(endpoint, subset));
            let cluster = build(key, port.protocol, balancing(policy, port, Some(subset)), chosen);
            insert(clusters, secured(cluster, (policy, port, Some(subset)), previous), previous);
        }
        let cluster = build(key, port.protocol, balancing(policy, port, None), members.iter());
        insert(clusters, secured(cluster, (policy, port, None), previous), previous);
    }
}

/// Endpoints of a port sorted by address and without repetition. Of two with one address a ready one is kept: slices
/// overlap while a pod moves from one to another.
fn in_order(mut endpoints: Vec<&Endpoint>) -> Vec<&Endpoint> {
    endpoints.sort_by_key(|endpoint| (endpoint.address, !endpoint.ready));
    endpoints.dedup_by_key(|endpoint| endpoint.address);
    endpoints
}

/// The endpoints with what they were in the previous table, where that is still the same.
fn upstreams<'a>(
    endpoints: &[&'a Endpoint],
    previous: Option<&Arc<Cluster>>,
    pods: Pods<'_>,
) -> Vec<(&'a Endpoint, Arc<Upstream>)> {
    let known = |address: SocketAddr| {
        let lists = previous.map_or([&[][..], &[]], |cluster| [&cluster.endpoints, &cluster.unready]);
        lists.into_iter().find_map(|list| {
            list.binary_search_by_key(&address, |upstream| upstream.address).ok().map(|index| &list[index])
        })
    };
    let shared = |endpoint: &Endpoint| {
        let workload = pods.of(endpoint);
        known(endpoint.address)
            .filter(|upstream| upstream.uid == endpoint.uid && upstream.workload.as_ref() == workload)
            .map_or_else(
                || Arc::new(Upstream::new(endpoint.address, Arc::clone(&endpoint.uid), workload.cloned())),
                Arc::clone,
            )
    };
    endpoints.iter().map(|endpoint| (*endpoint, shared(endpoint))).collect()
}

fn belongs(endpoint: &Endpoint, subset: &Subset) -> bool {
    subset.labels.iter().all(|(name, value)| endpoint.labels.get(name) == Some(value))
}

/// The subset's own balancing, else the port's, else the service's.
fn balancing(policy: Option<&TrafficPolicy>, port: &ServicePort, subset: Option<&Subset>) -> LbPolicy {
    let Some(policy) = policy else { return LbPolicy::default() };
    let of_port = || policy.port_lb.iter().find(|(number, _)| *number == port.port).map(|(_, lb)| *lb);
    subset.and_then(|subset| subset.lb).or_else(of_port).unwrap_or(policy.lb)
}

/// With what connections to it are kept within: what the subset says, else the port, else the service (Istio's order). For Gateways
/// a BackendTLSPolicy says it before any of them.
fn secured(
    cluster: Cluster,
    (policy, port, subset): (Option<&TrafficPolicy>, &ServicePort, Option<&Subset>),
    previous: &RoutingTable,
) -> Cluster {
    let before = previous.clusters.get(&cluster.key);
    let said = subset.and_then(|subset| subset.tls.on(port.port));
    let said = said.or_else(|| policy?.tls.on(port.port));
    let secured_by = policy.zip(said).map(|(policy, said)| SecuredBy::new(&policy.source, said));
    let from_pods = Security::keep(said.flatten(), before.map(|before| &before.from_pods));
    let from_gateways = match &port.tls {
        Some(terms) => {
            let before = before.map(|before| &before.from_gateways);
            Security::Tls(UpstreamTls::keep(terms, before))
        }
        None => from_pods.clone(),
    };
    Cluster { from_gateways, from_pods, secured_by, ..cluster }
}

fn build<'a>(
    key: ClusterKey,
    protocol: AppProtocol,
    policy: LbPolicy,
    members: impl Iterator<Item = &'a (&'a Endpoint, Arc<Upstream>)>,
) -> Cluster {
    let (ready, unready): (Vec<_>, Vec<_>) = members.partition(|(endpoint, _)| endpoint.ready);
    let upstreams =
        |list: Vec<&(_, Arc<Upstream>)>| list.into_iter().map(|(_, upstream)| Arc::clone(upstream)).collect();
    let cluster = Cluster::new(key, protocol, policy, upstreams(ready));
    Cluster { unready: upstreams(unready), ..cluster }
}

fn insert(clusters: &mut Clusters, cluster: Cluster, previous: &RoutingTable) {
    let before = previous.clusters.get(&cluster.key);
    let shared = match before {
        Some(before) if same(before, &cluster) => Arc::clone(before),
        Some(before) => {
            cluster.turn.store(before.turn.load(Ordering::Relaxed), Ordering::Relaxed);
            Arc::new(cluster)
        }
        None => Arc::new(cluster),
    };
    if !clusters.contains_key(&shared.key) {
        clusters.insert(shared.key.clone(), shared);
    }
}

fn same(before: &Cluster, after: &Cluster) -> bool {
    before.protocol == after.protocol
        && before.policy == after.policy
        && before.from_gateways == after.from_gateways
        && before.from_pods == after.from_pods
        && before.secured_by == after.secured_by
        && same_upstreams(&before.endpoints, &after.endpoints)
        && same_upstreams(&before.unready, &after.unready)
}

fn same_upstreams(before: &[Arc<Upstream>], after: &[Arc<Upstream>]) -> bool {
    before.len() == after.len() && before.iter().zip(after).all(|(a, b)| Arc::ptr_eq(a, b))
}
