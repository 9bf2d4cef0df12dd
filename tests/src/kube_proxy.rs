//! A stand-in for kube-proxy: nft rules that translate ClusterIPs to endpoints, so that a node without the agent
//! behaves like a real one.
//!
//! Owns the text of the rules; `lab.rs` loads it into each node.

use std::fmt::Write;
use std::net::IpAddr;

use crate::address::{self, Dual};
use crate::topology::{Service, Topology};

/// The nft script for one node. It replaces whatever an earlier one left, in one transaction.
pub fn ruleset(topology: &Topology) -> String {
    let mut text = String::new();
    for family in [Family::V4, Family::V6] {
        text.push_str(&table(topology, family));
    }
    text
}

#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn nft(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    fn of(self, address: Dual) -> IpAddr {
        match self {
            Self::V4 => address.v4.into(),
            Self::V6 => address.v6.into(),
        }
    }
}

fn table(topology: &Topology, family: Family) -> String {
    let nft = family.nft();
    let name = format!("{nft} lab_kube_proxy");
    let mut translate = String::new();
    let mut refuse = String::new();
    let mut hairpin = Vec::new();
    for (index, service) in topology.services.iter().enumerate() {
        let vip = family.of(address::cluster_ip(index));
        let endpoints = endpoints(topology, service, family);
        for port in &service.ports {
            let matched = format!("{nft} daddr {vip} tcp dport {}", port.port);
            // Writing to a String cannot fail.
            let _ = match endpoints.len() {
                0 => writeln!(refuse, "    {matched} reject with tcp reset"),
                count => {
                    let map = vmap(&endpoints, port.target_port);
                    writeln!(
                        translate,
                        "    {matched} dnat {nft} to numgen random mod {count} map {{ {map} }}"
                    )
                }
            };
        }
    }
    for pod in &topology.pods {
        if let Some(place) = address::place(topology, &pod.name) {
            let ip = family.of(place.address());
            hairpin.push(format!("{ip} . {ip}"));
        }
    }
    // A pod that reaches itself through its service would otherwise see its own address as the peer's and answer
    // itself past the translation.
    let masquerade = if hairpin.is_empty() {
        String::new()
    } else {
        format!("    {nft} saddr . {nft} daddr {{ {} }} masquerade\n", hairpin.join(", "))
    };
    format!(
        "table {name}\ndelete table {name}\ntable {name} {{\n  chain services {{\n{translate}  }}\n  \
         chain from_pods {{\n    type nat hook prerouting priority dstnat;\n    jump services\n  }}\n  \
         chain from_node {{\n    type nat hook output priority -100;\n    jump services\n  }}\n  \
         chain hairpin {{\n    type nat hook postrouting priority srcnat;\n{masquerade}  }}\n  \
         chain without_endpoints {{\n{refuse}  }}\n  \
         chain refuse_pods {{\n    type filter hook forward priority filter;\n    jump without_endpoints\n  }}\n  \
         chain refuse_node {{\n    type filter hook output priority filter;\n    jump without_endpoints\n  }}\n}}\n"
    )
}

fn endpoints(topology: &Topology, service: &Service, family: Family) -> Vec<IpAddr> {
    topology
        .endpoints(service)
        .filter_map(|pod| address::place(topology, &pod.name))
        .map(|place| family.of(place.address()))
        .collect()
}

fn vmap(endpoints: &[IpAddr], port: u16) -> String {
    let entries: Vec<String> =
        endpoints.iter().enumerate().map(|(index, ip)| format!("{index} : {ip} . {port}")).collect();
    entries.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Pod;

    fn topology() -> Topology {
        Topology::with_nodes(2)
            .pod(Pod::new("a", "node1").label("app", "web"))
            .pod(Pod::new("b", "node2").label("app", "web"))
            .service(Service::new("web").port("http", 80, 8080))
            .service(Service::new("empty").port("http", 80, 8080))
    }

    #[test]
    fn every_ready_endpoint_takes_an_equal_share() {
        let text = ruleset(&topology());
        for line in [
            "ip daddr 10.96.0.1 tcp dport 80 dnat ip to numgen random mod 2 map { 0 : 10.10.1.1 . 8080, 1 : 10.10.2.1 . 8080 }",
            "ip6 daddr fd00:96::1 tcp dport 80 dnat ip6 to numgen random mod 2 map { 0 : fd00:10:1::1 . 8080, 1 : fd00:10:2::1 . 8080 }",
            "ip daddr 10.96.0.2 tcp dport 80 reject with tcp reset",
            "ip saddr . ip daddr { 10.10.1.1 . 10.10.1.1, 10.10.2.1 . 10.10.2.1 } masquerade",
        ] {
            assert!(text.contains(line), "no {line:?} in\n{text}");
        }
    }

    #[test]
    fn a_pod_that_is_not_ready_is_left_out() {
        let mut topology = topology();
        topology.pods[0].ready = false;
        assert!(ruleset(&topology).contains("numgen random mod 1 map { 0 : 10.10.2.1 . 8080 }"));
    }

    #[test]
    fn a_lab_without_pods_or_services_has_no_empty_set() {
        let text = ruleset(&Topology::with_nodes(1));
        assert!(!text.contains("{  }"), "nft refuses an empty anonymous set:\n{text}");
    }
}
