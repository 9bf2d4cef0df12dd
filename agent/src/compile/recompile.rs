//! Parts -> [`RoutingTable`], where only what a change touched is compiled.
//!
//! What comes out is what [`compile`] makes of the whole model; the cost is that of what was touched and, for each map of the
//! table, of a copy of its pointers. What depends on what is known by [`Parts`]:
//!
//! - a service's clusters depend on the service, its endpoints, its traffic policy and the pods behind the endpoints;
//! - its frontends on those, on its routes, and on the clusters that these lead to; where services claim one address, the
//!   first by name of those that have a frontend gets it;
//! - a Gateway's hosts on their routes and the clusters that these lead to;
//! - a pod's policies on the policies and the pod.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::clusters::{self, Clusters};
use super::routes::Scope;
use super::source::{Pods, Source};
use super::wire::{Parts, Touched, Whole};
use super::{
    ClusterKey, DatagramFrontend, Frontend, GatewayListener, PolicyTable, RoutingTable, TableVersion,
    compile, datagrams, frontends, gateways, guard, limits, policies,
};
use crate::model::{ObjectName, SharedIndex, Workload};

/// Compiles what changes touched. `previous` was compiled of the parts as they were before these changes.
pub fn recompile(
    parts: &Parts,
    touched: &Touched,
    previous: &RoutingTable,
    version: TableVersion,
) -> RoutingTable {
    if touched.wholes.contains(&Whole::Everything) {
        return compile(&parts.model(), previous, version);
    }
    Work { parts, touched, base: previous, previous }.compile(version)
}

/// Compiles parts, whatever `previous` was compiled of. As [`compile`] of their model, without making one: pods are the same
/// values in the parts and in the table.
pub fn compile_parts(parts: &Parts, previous: &RoutingTable, version: TableVersion) -> RoutingTable {
    if parts.is_doubled() {
        return compile(&parts.model(), previous, version);
    }
    let nothing = RoutingTable::default();
    Work { parts, touched: &parts.everything(), base: &nothing, previous }.compile(version)
}

/// One compilation.
struct Work<'a> {
    parts: &'a Parts,
    /// What is compiled; all else is taken from `base`.
    touched: &'a Touched,
    base: &'a RoutingTable,
    /// Whose entries are kept where they would come out equal.
    previous: &'a RoutingTable,
}

impl Work<'_> {
    fn compile(&self, version: TableVersion) -> RoutingTable {
        let workloads = self.workloads();
        let clusters = self.clusters(Pods { source: self.parts, by_address: &workloads });
        let scope = Scope { source: self.parts, clusters: &clusters };
        RoutingTable {
            version,
            frontends: self.frontends(&scope),
            datagrams: self.datagrams(),
            policies: self.policies(),
            realm: Arc::clone(&self.previous.realm),
            gateways: self.gateways(&scope),
            guard: if self.touched.wholes.contains(&Whole::Guards) {
                guard::compile(&self.parts.guards(), &self.previous.guard)
            } else {
                Arc::clone(&self.base.guard)
            },
            limits: if self.touched.wholes.contains(&Whole::Limits) {
                limits::compile(self.parts.limits(), &self.previous.limits)
            } else {
                Arc::clone(&self.base.limits)
            },
            workloads,
            clusters,
        }
    }

    fn workloads(&self) -> Arc<HashMap<IpAddr, Arc<Workload>>> {
        if self.touched.pods.is_empty() {
            return Arc::clone(&self.base.workloads);
        }
        let mut workloads = HashMap::clone(&self.base.workloads);
        workloads.reserve(self.touched.pods.len());
        for address in &self.touched.pods {
            let Some(pod) = self.parts.pods_at(*address).next() else {
                workloads.remove(address);
                continue;
            };
            let known = pod.addresses.iter().filter_map(|address| self.previous.workloads.get(address));
            let shared = known.into_iter().find(|before| **before == *pod).unwrap_or(pod);
            workloads.insert(*address, Arc::clone(shared));
        }
        Arc::new(workloads)
    }

    fn clusters(&self, pods: Pods<'_>) -> Clusters {
        let mut clusters = self.base.clusters.clone();
        for name in &self.touched.services {
            let first = ClusterKey { service: name.clone(), port: 0, subset: None };
            let of_service = clusters.starting_at(&first).take_while(|(key, _)| key.service == *name);
            for key in of_service.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
                clusters.remove(&key);
            }
            if let Some(service) = self.parts.service(name) {
                clusters::add(&mut clusters, service, pods, self.previous);
            }
        }
        clusters
    }

    fn frontends(&self, scope: &Scope<'_>) -> SharedIndex<SocketAddr, Arc<Frontend>> {
        let touched = &self.touched.services;
        let mut names: HashSet<&ObjectName> = touched.iter().chain(&self.touched.routed).collect();
        names.extend(touched.iter().flat_map(|name| self.parts.callers(name)));
        let mut addresses: HashSet<SocketAddr> = self.touched.streams.iter().copied().collect();
        addresses.extend(names.iter().flat_map(|name| self.streams_of(name)));
        // Whoever has a claim to an address may get it now.
        names.extend(addresses.iter().flat_map(|address| self.parts.dialled(*address)));
        let known = if self.is_whole() {
            frontends::known(self.previous.frontends.values())
        } else {
            let all = names.iter().flat_map(|name| self.streams_of(name));
            let all: HashSet<SocketAddr> = all.chain(addresses.iter().copied()).collect();
            frontends::known(all.into_iter().filter_map(|address| self.previous.frontends.get(&address)))
        };
        let made: HashMap<&ObjectName, Vec<Arc<Frontend>>> = names
            .into_iter()
            .filter_map(|name| Some((name, frontends::of_service(self.parts.service(name)?, scope, &known))))
            .collect();
        let mut frontends = self.base.frontends.clone();
        for address in addresses {
            let of = |name| made.get(name)?.iter().find(|frontend| self.is_dialled(frontend, address));
            match self.parts.dialled(address).find_map(of) {
                Some(frontend) => frontends.insert(address, Arc::clone(frontend)),
                None => frontends.remove(&address),
            };
        }
        frontends
    }

    /// The addresses that clients of a service's TCP ports dial.
    fn streams_of(&self, name: &ObjectName) -> Vec<SocketAddr> {
        let Some(service) = self.parts.service(name) else { return Vec::new() };
        let of_port = |port: u16| frontends::addresses(service, port, self.parts);
        service.ports.iter().flat_map(|port| of_port(port.port)).collect()
    }

    /// Whether clients of a port dial an address.
    fn is_dialled(&self, frontend: &Frontend, address: SocketAddr) -> bool {
        if frontend.headless {
            return self.parts.has_endpoint(&frontend.service, frontend.port, address);
        }
        frontend.port == address.port() && self.has_address(&frontend.service, address.ip())
    }

    fn has_address(&self, service: &ObjectName, address: IpAddr) -> bool {
        self.parts.service(service).is_some_and(|service| service.cluster_ips.contains(&address))
    }

    fn datagrams(&self) -> SharedIndex<SocketAddr, Arc<DatagramFrontend>> {
        let mut addresses: BTreeSet<SocketAddr> = self.touched.datagrams.clone();
        let mut names: BTreeSet<&ObjectName> = self.touched.services.iter().collect();
        addresses.extend(names.iter().flat_map(|name| self.datagrams_of(name)));
        names.retain(|name| {
            self.parts.service(name).is_some_and(|service| !service.datagram_ports.is_empty())
        });
        names.extend(addresses.iter().flat_map(|address| self.parts.dialled_by_datagrams(*address)));
        let known = if self.is_whole() {
            datagrams::known(self.previous.datagrams.values())
        } else {
            let all = names.iter().flat_map(|name| self.datagrams_of(name));
            let all: BTreeSet<SocketAddr> = all.chain(addresses.iter().copied()).collect();
            datagrams::known(all.into_iter().filter_map(|address| self.previous.datagrams.get(&address)))
        };
        let made: HashMap<&ObjectName, Vec<Arc<DatagramFrontend>>> = names
            .into_iter()
            .filter_map(|name| {
                Some((name, datagrams::of_service(self.parts.service(name)?, self.parts, &known)))
            })
            .collect();
        let mut frontends = self.base.datagrams.clone();
        for address in addresses {
            let dialled = |frontend: &&Arc<DatagramFrontend>| {
                frontend.port == address.port() && self.has_address(&frontend.service, address.ip())
            };
            let of = |name| made.get(name)?.iter().find(dialled);
            match self.parts.dialled_by_datagrams(address).find_map(of) {
                Some(frontend) => frontends.insert(address, Arc::clone(frontend)),
                None => frontends.remove(&address),
            };
        }
        frontends
    }

    /// The addresses that clients of a service's UDP ports dial.
    fn datagrams_of(&self, name: &ObjectName) -> Vec<SocketAddr> {
        let Some(service) = self.parts.service(name) else { return Vec::new() };
        let of_port = |port: u16| service.cluster_ips.iter().map(move |ip| SocketAddr::new(*ip, port));
        service.datagram_ports.iter().flat_map(|port| of_port(port.port)).collect()
    }

    fn gateways(&self, scope: &Scope<'_>) -> Vec<Arc<GatewayListener>> {
        if self.touched.wholes.contains(&Whole::Listeners) {
            let plans = self.parts.gateways().iter().map(|gateway| &gateway.plan);
            return gateways::compile(plans, self.previous, scope);
        }
        // The plans are those that the table before was compiled of, one by one.
        let compiled = self.parts.gateways().iter().zip(&self.base.gateways).map(|(gateway, before)| {
            let leads = self.touched.services.iter().filter_map(|name| gateway.towards.get(name));
            let changed: BTreeSet<usize> = leads.flatten().copied().collect();
            if changed.is_empty() {
                return Arc::clone(before);
            }
            gateway.plan.compile(Some(before), scope, |position| changed.contains(&position))
        });
        compiled.collect()
    }

    fn policies(&self) -> PolicyTable {
        let wholes = &self.touched.wholes;
        let limited = || policies::concerns(self.parts.limits(), &self.previous.policies);
        if wholes.contains(&Whole::Authorization) || (wholes.contains(&Whole::Limits) && limited()) {
            let (policies, peers) = (self.parts.authorization(), self.parts.peers());
            let (limits, workloads) = (self.parts.limits(), self.parts.workloads());
            return policies::compile(policies, peers, limits, workloads, self.previous);
        }
        let claimants = |address| self.parts.pods_at(address);
        policies::recompile(&self.touched.pods, claimants, self.previous)
    }

    /// Whether everything is compiled.
    fn is_whole(&self) -> bool {
        !std::ptr::eq(self.base, self.previous)
    }
}
