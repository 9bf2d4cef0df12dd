//! What datagrams meet: one frontend for each ClusterIP and UDP port.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::{DatagramFrontend, RoutingTable};
use crate::model::{Endpoint, Model, ObjectName, Service, ServicePort};

/// Frontends of all UDP ports. Of two services with one address the first by name is kept.
pub(super) fn compile(model: &Model, previous: &RoutingTable) -> HashMap<SocketAddr, Arc<DatagramFrontend>> {
    let known: HashMap<(&ObjectName, u16), &Arc<DatagramFrontend>> =
        previous.datagrams.values().map(|frontend| ((&frontend.service, frontend.port), frontend)).collect();
    let mut behind: HashMap<(&ObjectName, u16), Vec<&Endpoint>> = HashMap::new();
    for endpoint in &model.datagram_endpoints {
        behind.entry((&endpoint.service, endpoint.service_port)).or_default().push(endpoint);
    }
    let mut frontends = HashMap::new();
    for service in &model.services {
        for port in &service.datagram_ports {
            let key = (&service.name, port.port);
            let made = frontend(service, port, behind.get(&key).map_or(&[], Vec::as_slice));
            let frontend = match known.get(&key) {
                Some(before) if ***before == made => Arc::clone(before),
                _ => Arc::new(made),
            };
            for ip in &service.cluster_ips {
                let address = SocketAddr::new(*ip, port.port);
                frontends.entry(address).or_insert_with(|| Arc::clone(&frontend));
            }
        }
    }
    frontends
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
