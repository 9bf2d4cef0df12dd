//! What a compilation asks of parts.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::index::PlannedGateway;
use super::key::{NameKey, Place};
use super::parts::{Endpoints, Parts};
use crate::compile::source::{ServiceRoutes, Source};
use crate::model::{
    AuthorizationPolicy, EdgeGuard, Endpoint, ObjectName, PeerAuthentication, RateLimit, Service,
    TrafficPolicy, Workload,
};

impl Source for Parts {
    fn service(&self, name: &ObjectName) -> Option<&Service> {
        self.services.get(&first(name))
    }

    fn policy(&self, service: &ObjectName) -> Option<&TrafficPolicy> {
        self.policies.get(&first(service))
    }

    fn endpoints(&self, service: &ObjectName, port: u16) -> Vec<&Endpoint> {
        of_port(&self.endpoints, service, port)
    }

    fn datagram_endpoints(&self, service: &ObjectName, port: u16) -> Vec<&Endpoint> {
        of_port(&self.datagrams, service, port)
    }

    fn routes(&self, service: &ObjectName) -> ServiceRoutes<'_> {
        let routes = self.index.routes.by_service.get(service).into_iter().flatten();
        routes.map(|(table, port)| (&**table, *port)).collect()
    }

    fn workload(&self, name: &ObjectName) -> Option<&Arc<Workload>> {
        self.workloads.get(&first(name))
    }
}

impl Parts {
    /// Whether two services or two pods have one name, so that names do not tell them apart.
    pub(in crate::compile) fn is_doubled(&self) -> bool {
        self.doubled
    }

    /// The services that have an address for TCP, sorted by name.
    pub(in crate::compile) fn dialled(&self, address: SocketAddr) -> impl Iterator<Item = &ObjectName> {
        self.index.streams.of(address)
    }

    /// The services that have an address for UDP, sorted by name.
    pub(in crate::compile) fn dialled_by_datagrams(
        &self,
        address: SocketAddr,
    ) -> impl Iterator<Item = &ObjectName> {
        self.index.datagrams.of(address)
    }

    /// The pods that have an address, sorted by name.
    pub(in crate::compile) fn pods_at(&self, address: IpAddr) -> impl Iterator<Item = &Arc<Workload>> {
        self.index.pods.of(address).filter_map(|name| self.workload(name))
    }

    /// Whether a service's TCP port has an endpoint at an address.
    pub(in crate::compile) fn has_endpoint(
        &self,
        service: &ObjectName,
        port: u16,
        address: SocketAddr,
    ) -> bool {
        let place = Place { port, address, nth: 0 };
        self.endpoints.get(service).is_some_and(|places| places.contains_key(&place))
    }

    /// The services with mesh routes that lead to a service.
    pub(in crate::compile) fn callers(&self, service: &ObjectName) -> impl Iterator<Item = &ObjectName> {
        self.index.routes.towards.get(service).into_iter().flatten()
    }

    /// Listeners as they are bound.
    pub(in crate::compile) fn gateways(&self) -> &[PlannedGateway] {
        &self.index.gateways
    }

    /// All authorization policies, sorted by name.
    pub(in crate::compile) fn authorization(&self) -> impl Iterator<Item = &AuthorizationPolicy> {
        self.authorization.values()
    }

    /// All peer authentications, sorted by name.
    pub(in crate::compile) fn peers(&self) -> impl Iterator<Item = &PeerAuthentication> {
        self.peers.values()
    }

    /// All pods, sorted by name.
    pub(in crate::compile) fn workloads(&self) -> impl Iterator<Item = &Workload> {
        self.workloads.values().map(|workload| &**workload)
    }

    /// All guards, sorted by name.
    pub(in crate::compile) fn guards(&self) -> impl Iterator<Item = &EdgeGuard> + Clone {
        self.guards.values()
    }

    /// All rate limits, sorted by name.
    pub(in crate::compile) fn limits(&self) -> impl Iterator<Item = &RateLimit> {
        self.limits.values()
    }
}

fn first(name: &ObjectName) -> NameKey {
    NameKey { name: name.clone(), nth: 0 }
}

fn of_port<'a>(endpoints: &'a Endpoints, service: &ObjectName, port: u16) -> Vec<&'a Endpoint> {
    let Some(places) = endpoints.get(service) else { return Vec::new() };
    let from = Place { port, address: LOWEST, nth: 0 };
    places.range(from..).take_while(|(place, _)| place.port == port).map(|(_, endpoint)| endpoint).collect()
}

/// No address sorts before it.
const LOWEST: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);
