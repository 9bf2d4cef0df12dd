//! Endpoints of services and of their subsets.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::workloads::Workloads;
use super::{Cluster, ClusterKey, RoutingTable, Upstream};
use crate::model::{Endpoint, LbPolicy, Model, ObjectName, ServicePort, Subset, TrafficPolicy};

/// One cluster for each port of each service, and one for each subset of it.
pub(super) fn compile(
    model: &Model,
    previous: &RoutingTable,
    workloads: &Workloads<'_>,
) -> BTreeMap<ClusterKey, Arc<Cluster>> {
    let endpoints = ready_endpoints(model);
    // Of two policies for one service the first is kept, as it comes first in Istio too.
    let policies: HashMap<&ObjectName, &TrafficPolicy> =
        model.policies.iter().rev().map(|policy| (&policy.service, policy)).collect();
    let mut clusters = BTreeMap::new();
    for service in &model.services {
        let policy = policies.get(&service.name).copied();
        for port in &service.ports {
            let key = ClusterKey { service: service.name.clone(), port: port.port, subset: None };
            let ready = endpoints.get(&(&service.name, port.port)).map_or(&[][..], Vec::as_slice);
            let members = upstreams(ready, previous.clusters.get(&key), workloads);
            for subset in policy.map_or(&[][..], |policy| &policy.subsets) {
                let key = ClusterKey { subset: Some(Arc::clone(&subset.name)), ..key.clone() };
                let chosen = members
                    .iter()
                    .filter(|(endpoint, _)| belongs(endpoint, subset))
                    .map(|(_, u)| Arc::clone(u));
                let cluster = build(key, port, balancing(policy, port, Some(subset)), chosen.collect());
                insert(&mut clusters, cluster, previous);
            }
            let all = members.into_iter().map(|(_, upstream)| upstream).collect();
            insert(&mut clusters, build(key, port, balancing(policy, port, None), all), previous);
        }
    }
    clusters
}

/// Ready endpoints by service and port, each list sorted by address and without repetition.
fn ready_endpoints(model: &Model) -> HashMap<(&ObjectName, u16), Vec<&Endpoint>> {
    let mut by_port: HashMap<_, Vec<_>> = HashMap::new();
    for endpoint in model.endpoints.iter().filter(|endpoint| endpoint.ready) {
        by_port.entry((&endpoint.service, endpoint.service_port)).or_default().push(endpoint);
    }
    for endpoints in by_port.values_mut() {
        endpoints.sort_by_key(|endpoint| endpoint.address);
        endpoints.dedup_by_key(|endpoint| endpoint.address);
    }
    by_port
}

/// The endpoints with what they were in the previous table, where that is still the same.
fn upstreams<'a>(
    endpoints: &[&'a Endpoint],
    previous: Option<&Arc<Cluster>>,
    workloads: &Workloads<'_>,
) -> Vec<(&'a Endpoint, Arc<Upstream>)> {
    let known = previous.map_or(&[][..], |cluster| &cluster.endpoints);
    let shared = |endpoint: &Endpoint| {
        let workload = workloads.of(endpoint);
        known
            .binary_search_by_key(&endpoint.address, |upstream| upstream.address)
            .ok()
            .map(|index| &known[index])
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

fn build(key: ClusterKey, port: &ServicePort, policy: LbPolicy, endpoints: Vec<Arc<Upstream>>) -> Cluster {
    Cluster::new(key, port.protocol, policy, endpoints)
}

fn insert(clusters: &mut BTreeMap<ClusterKey, Arc<Cluster>>, cluster: Cluster, previous: &RoutingTable) {
    let before = previous.clusters.get(&cluster.key);
    let shared = match before {
        Some(before) if same(before, &cluster) => Arc::clone(before),
        Some(before) => {
            cluster.turn.store(before.turn.load(Ordering::Relaxed), Ordering::Relaxed);
            Arc::new(cluster)
        }
        None => Arc::new(cluster),
    };
    clusters.entry(shared.key.clone()).or_insert(shared);
}

fn same(before: &Cluster, after: &Cluster) -> bool {
    before.protocol == after.protocol
        && before.policy == after.policy
        && before.endpoints.len() == after.endpoints.len()
        && before.endpoints.iter().zip(&after.endpoints).all(|(a, b)| Arc::ptr_eq(a, b))
}
