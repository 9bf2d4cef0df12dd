//! What datagrams meet: one frontend for each ClusterIP and UDP port.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::source::Source;
use super::{DatagramFrontend, RoutingTable};
use crate::model::{Endpoint, ObjectName, Service, ServicePort, SharedIndex};

/// Frontends that a table had, by service and port.
pub(super) type Known<'a> = HashMap<(&'a ObjectName, u16), &'a Arc<DatagramFrontend>>;

/// Frontends of all UDP ports. Of two services with one address the first by name is kept.
pub(super) fn compile(
    services: &[Service],
    source: &dyn Source,
    previous: &RoutingTable,
) -> SharedIndex<SocketAddr, Arc<DatagramFrontend>> {
    let known = known(previous.datagrams.values());
    let mut frontends = HashMap::new();
    for service in services {
        for frontend in of_service(service, source, &known) {
            for ip in &service.cluster_ips {
                let address = SocketAddr::new(*ip, frontend.port);
                frontends.entry(address).or_insert_with(|| Arc::clone(&frontend));
            }
        }
    }
    frontends.into_iter().collect()
}

/// Frontends by what they are the frontends of.
pub(super) fn known<'a>(frontends: impl Iterator<Item = &'a Arc<DatagramFrontend>>) -> Known<'a> {
    frontends.map(|frontend| ((&frontend.service, frontend.port), frontend)).collect()
}

/// The frontends of a service's UDP ports, in their order; an equal one that is known is kept.
pub(super) fn of_service(
    service: &Service,
    source: &dyn Source,
    known: &Known<'_>,
) -> Vec<Arc<DatagramFrontend>> {
    let of_port = |port: &ServicePort| {
        let made = frontend(service, port, &source.datagram_endpoints(&service.name, port.port));
        match known.get(&(&service.name, port.port)) {
            Some(before) if ***before == made => Arc::clone(before),
            _ => Arc::new(made),
        }
    };
    service.datagram_ports.iter().map(of_port).collect()
}

fn frontend(service: &Service, port: &ServicePort, endpoints: &[&Endpoint]) -> DatagramFrontend {
    let addresses = |ready: bool| {
        endpoints.iter().filter(|endpoint| endpoint.ready == ready).map(|endpoint| endpoint.address).collect()
    };
    DatagramFrontend {
        service: service.name.clone(),
        port: port.port,
        affinity: service.affinity,
        ready: addresses(true),
        unready: addresses(false),
    }
}
