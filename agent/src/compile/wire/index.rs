//! What of a model's parts refers to which others, so that a change finds what depends on it.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::chain::Chain;
use super::key::RouteKey;
use crate::compile::frontends;
use crate::compile::gateways::{Plan, destinations};
use crate::compile::source::Source;
use crate::model::{Endpoint, ObjectName, RouteTable, Service};

/// Who claims a key: services an address that clients dial, pods their own.
#[derive(Debug, Clone)]
pub(in crate::compile) struct Claims<K> {
    /// Keys that one alone claims, which are nearly all.
    sole: HashMap<K, ObjectName>,
    /// Keys that two or more claim.
    several: HashMap<K, BTreeSet<ObjectName>>,
}

impl<K> Default for Claims<K> {
    fn default() -> Self {
        Self { sole: HashMap::new(), several: HashMap::new() }
    }
}

impl<K: Copy + Eq + Hash> Claims<K> {
    /// Those who claim a key, sorted.
    pub(in crate::compile) fn of(&self, key: K) -> impl Iterator<Item = &ObjectName> {
        self.sole.get(&key).into_iter().chain(self.several.get(&key).into_iter().flatten())
    }

    /// All keys.
    pub(super) fn keys(&self) -> impl Iterator<Item = K> {
        self.sole.keys().chain(self.several.keys()).copied()
    }

    fn add(&mut self, key: K, name: &ObjectName) {
        if let Some(several) = self.several.get_mut(&key) {
            several.insert(name.clone());
        } else if let Some(other) = self.sole.insert(key, name.clone())
            && other != *name
        {
            self.sole.remove(&key);
            self.several.insert(key, [other, name.clone()].into());
        }
    }

    fn remove(&mut self, key: K, name: &ObjectName) {
        if self.sole.get(&key) == Some(name) {
            self.sole.remove(&key);
        } else if let Some(several) = self.several.get_mut(&key) {
            several.remove(name);
            if several.len() == 1 {
                self.sole.extend(several.pop_first().map(|last| (key, last)));
                self.several.remove(&key);
            }
        }
    }

    /// Replaces the claims of one, each list without repetition.
    pub(super) fn replace(&mut self, name: &ObjectName, before: &[K], after: &[K]) {
        if before == after {
            return;
        }
        for key in before {
            self.remove(*key, name);
        }
        for key in after {
            self.add(*key, name);
        }
    }
}

/// What a service claims, and what it depends on.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Footprint {
    /// Addresses that clients of its TCP ports dial.
    pub(super) streams: Vec<SocketAddr>,
    /// Those of its UDP ports.
    pub(super) datagrams: Vec<SocketAddr>,
    /// Pods behind its endpoints, by name and by address, as [`pod_named`] and [`pod_at`] have them.
    pub(super) pods: Vec<u64>,
}

impl Footprint {
    pub(super) fn new<'a>(
        service: &Service,
        endpoints: impl Iterator<Item = &'a Endpoint>,
        source: &dyn Source,
    ) -> Self {
        let of_port = |port: u16| frontends::addresses(service, port, source);
        let cluster = |port: u16| service.cluster_ips.iter().map(move |ip| SocketAddr::new(*ip, port));
        let pods = endpoints.flat_map(|endpoint| {
            endpoint.pod.as_ref().map(pod_named).into_iter().chain([pod_at(endpoint.address.ip())])
        });
        Self {
            streams: distinct(service.ports.iter().flat_map(|port| of_port(port.port)).collect()),
            datagrams: distinct(service.datagram_ports.iter().flat_map(|port| cluster(port.port)).collect()),
            pods: distinct(pods.collect()),
        }
    }
}

pub(super) fn distinct<T: Ord>(mut values: Vec<T>) -> Vec<T> {
    values.sort_unstable();
    values.dedup();
    values
}

/// A pod by its name. Of two with one hash, the endpoints of both are compiled for either.
pub(super) fn pod_named(name: &ObjectName) -> u64 {
    hash(name)
}

/// A pod by its address.
pub(super) fn pod_at(address: IpAddr) -> u64 {
    hash(&address)
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Route tables with the port that they are for.
pub(super) type OwnedRoutes = Vec<(Arc<RouteTable>, Option<u16>)>;

/// Mesh routes by service.
#[derive(Debug, Clone, Default)]
pub(super) struct RouteIndex {
    /// Those that name a service, in order of precedence.
    pub(super) by_service: HashMap<ObjectName, OwnedRoutes>,
    /// The services with routes that lead to a service.
    pub(super) towards: HashMap<ObjectName, BTreeSet<ObjectName>>,
}

impl RouteIndex {
    pub(super) fn new(routes: &Chain<RouteKey, Arc<RouteTable>>) -> Self {
        let mut index = Self::default();
        for (_, table) in routes.iter() {
            for (service, port) in &table.services {
                index.by_service.entry(service.clone()).or_default().push((Arc::clone(table), *port));
            }
            for destination in destinations(table) {
                let towards = index.towards.entry(destination.clone()).or_default();
                towards.extend(table.services.iter().map(|(service, _)| service.clone()));
            }
        }
        index
    }

    /// The services with other routes than in an index before.
    pub(super) fn changed<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = &'a ObjectName> {
        let same = |a: &OwnedRoutes, b: &OwnedRoutes| {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(&a.0, &b.0) && a.1 == b.1)
        };
        let other = move |(service, routes): &(&ObjectName, &OwnedRoutes)| {
            !before.by_service.get(*service).is_some_and(|before| same(before, routes))
        };
        let gone = before.by_service.keys().filter(|service| !self.by_service.contains_key(*service));
        self.by_service.iter().filter(other).map(|(service, _)| service).chain(gone)
    }
}

/// Listeners as they are bound, with the hosts that lead to a service.
#[derive(Debug, Clone)]
pub(in crate::compile) struct PlannedGateway {
    pub(in crate::compile) plan: Plan<Arc<RouteTable>>,
    pub(in crate::compile) towards: HashMap<ObjectName, BTreeSet<usize>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_claims_what_others_claim_too() {
        let [a, b, c] = ["a", "b", "c"].map(|name| ObjectName::new("x", name));
        let mut claims = Claims::default();
        let check = |claims: &Claims<u8>, key, expected: &[&ObjectName]| {
            assert_eq!(claims.of(key).collect::<Vec<_>>(), expected);
        };
        claims.replace(&b, &[], &[1, 2]);
        claims.replace(&b, &[], &[1]);
        check(&claims, 1, &[&b]);
        claims.replace(&c, &[], &[1]);
        claims.replace(&a, &[], &[1, 3]);
        check(&claims, 1, &[&a, &b, &c]);
        claims.replace(&b, &[1, 2], &[2]);
        check(&claims, 1, &[&a, &c]);
        check(&claims, 2, &[&b]);
        claims.replace(&a, &[1, 3], &[]);
        claims.replace(&a, &[1, 3], &[]);
        check(&claims, 1, &[&c]);
        check(&claims, 3, &[]);
        claims.replace(&c, &[1], &[]);
        check(&claims, 1, &[]);
        assert!(claims.several.is_empty());
    }
}
