//! The hosts file of the lab's pods: what cluster DNS would answer.

use std::fmt::Write;

use crate::address::{self, Dual};
use crate::topology::Topology;

/// The hosts file of a lab: services under their short name, `name.namespace`, `name.namespace.svc` and the full
/// form; pods and nodes under their names; each in both families.
pub fn hosts_file(topology: &Topology) -> String {
    let mut text = String::from("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n");
    let mut entry = |address: Dual, names: &str| {
        for ip in address.both() {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{ip} {names}");
        }
    };
    for (index, service) in topology.services.iter().enumerate() {
        let (name, namespace) = (&service.name, &service.namespace);
        let qualified = format!("{name}.{namespace}");
        let names = format!("{name} {qualified} {qualified}.svc {qualified}.svc.cluster.local");
        entry(address::cluster_ip(index), &names);
    }
    for pod in &topology.pods {
        if let Some(place) = address::place(topology, &pod.name) {
            entry(place.address(), &pod.name);
        }
    }
    for (index, node) in topology.nodes.iter().enumerate() {
        entry(address::node(index), node);
    }
    entry(address::WORLD, "world");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{Pod, Service};

    #[test]
    fn services_resolve_in_every_form_and_family() {
        let topology = Topology::with_nodes(1)
            .pod(Pod::new("client", "node1"))
            .service(Service::new("order-service").port("http", 80, 8080));
        let text = hosts_file(&topology);
        let names = "order-service order-service.default order-service.default.svc \
                     order-service.default.svc.cluster.local";
        for line in [
            format!("10.96.0.1 {names}"),
            format!("fd00:96::1 {names}"),
            "10.10.1.1 client".to_owned(),
            "fd00:88::1 node1".to_owned(),
        ] {
            assert!(text.lines().any(|l| l == line), "no line {line:?} in\n{text}");
        }
    }
}
