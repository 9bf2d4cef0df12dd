//! What is compiled, by name: what the rules for one service ask of all the others.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{Endpoint, Endpoints, Model, ObjectName, RouteTable, Service, TrafficPolicy, Workload};

/// Routes that name a service, each with the port that it is for; `None`: all.
pub(super) type ServiceRoutes<'a> = Vec<(&'a RouteTable, Option<u16>)>;

/// A model that is asked by name.
pub(super) trait Source {
    /// A service.
    fn service(&self, name: &ObjectName) -> Option<&Service>;
    /// The traffic policy of a service. Of two for one service the first is kept, as it comes first in Istio too.
    fn policy(&self, service: &ObjectName) -> Option<&TrafficPolicy>;
    /// The endpoints of a service's TCP port, in the model's order.
    fn endpoints(&self, service: &ObjectName, port: u16) -> Vec<&Endpoint>;
    /// The endpoints of a service's UDP port, in the model's order.
    fn datagram_endpoints(&self, service: &ObjectName, port: u16) -> Vec<&Endpoint>;
    /// The mesh route tables that name a service, in order of precedence.
    fn routes(&self, service: &ObjectName) -> ServiceRoutes<'_>;
    /// A pod.
    fn workload(&self, name: &ObjectName) -> Option<&Arc<Workload>>;
}

/// The pods behind endpoints.
#[derive(Clone, Copy)]
pub(super) struct Pods<'a> {
    pub(super) source: &'a dyn Source,
    pub(super) by_address: &'a HashMap<IpAddr, Arc<Workload>>,
}

impl<'a> Pods<'a> {
    /// The pod behind an endpoint: the one that it names, else the one that has its address.
    pub(super) fn of(self, endpoint: &Endpoint) -> Option<&'a Arc<Workload>> {
        let named = endpoint.pod.as_ref().and_then(|pod| self.source.workload(pod));
        named.or_else(|| self.by_address.get(&endpoint.address.ip()))
    }
}

/// Endpoints by service and port.
type ByPort<'m> = HashMap<(&'m ObjectName, u16), Vec<&'m Endpoint>>;

/// A whole model, by name.
pub(super) struct ModelIndex<'m> {
    services: HashMap<&'m ObjectName, &'m Service>,
    policies: HashMap<&'m ObjectName, &'m TrafficPolicy>,
    endpoints: ByPort<'m>,
    datagrams: ByPort<'m>,
    routes: HashMap<&'m ObjectName, ServiceRoutes<'m>>,
    workloads: HashMap<&'m ObjectName, Arc<Workload>>,
}

impl<'m> ModelIndex<'m> {
    /// `workloads`: the model's, as they are in the table.
    pub(super) fn new(model: &'m Model, workloads: HashMap<&'m ObjectName, Arc<Workload>>) -> Self {
        let mut routes: HashMap<_, ServiceRoutes<'_>> = HashMap::new();
        for table in &model.mesh_routes {
            for (service, port) in &table.services {
                routes.entry(service).or_default().push((table, *port));
            }
        }
        Self {
            services: model.services.iter().map(|service| (&service.name, service)).collect(),
            policies: model.policies.iter().rev().map(|policy| (&policy.service, policy)).collect(),
            endpoints: by_port(&model.endpoints),
            datagrams: by_port(&model.datagram_endpoints),
            routes,
            workloads,
        }
    }
}

fn by_port(endpoints: &Endpoints) -> ByPort<'_> {
    let mut by_port: ByPort<'_> = HashMap::new();
    for endpoint in endpoints.iter() {
        by_port.entry((&endpoint.service, endpoint.service_port)).or_default().push(endpoint);
    }
    by_port
}

impl Source for ModelIndex<'_> {
    fn service(&self, name: &ObjectName) -> Option<&Service> {
        self.services.get(name).copied()
    }

    fn policy(&self, service: &ObjectName) -> Option<&TrafficPolicy> {
        self.policies.get(service).copied()
    }

    fn endpoints(&self, service: &ObjectName, port: u16) -> Vec<&Endpoint> {
        self.endpoints.get(&(service, port)).cloned().unwrap_or_default()
    }

    fn datagram_endpoints(&self, service: &ObjectName, port: u16) -> Vec<&Endpoint> {
        self.datagrams.get(&(service, port)).cloned().unwrap_or_default()
    }

    fn routes(&self, service: &ObjectName) -> ServiceRoutes<'_> {
        self.routes.get(service).cloned().unwrap_or_default()
    }

    fn workload(&self, name: &ObjectName) -> Option<&Arc<Workload>> {
        self.workloads.get(name)
    }
}
