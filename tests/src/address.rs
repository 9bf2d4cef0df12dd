//! The address plan. Addresses are the same in every lab: namespaces keep labs apart.
//!
//! | what | IPv4 | IPv6 |
//! | --- | --- | --- |
//! | node N on the underlay | 10.88.0.N | fd00:88::N |
//! | the underlay's own end | 10.88.0.254 | fd00:88::fe |
//! | pod M of node N | 10.10.N.M | fd00:10:N::M |
//! | service S | 10.96.0.S | fd00:96::S |

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::topology::Topology;

/// An address of either family: everything in the lab has both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dual {
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
    pub v6: Ipv6Addr,
}

impl Dual {
    /// Both addresses, IPv4 first.
    pub fn both(self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

/// The underlay's own end, which stands for the world outside the cluster.
pub const WORLD: Dual =
    Dual { v4: Ipv4Addr::new(10, 88, 0, 254), v6: Ipv6Addr::new(0xfd00, 0x88, 0, 0, 0, 0, 0, 0xfe) };
/// The gateway that every pod sees at its end of the veth, as Calico has it.
pub const GATEWAY: Dual =
    Dual { v4: Ipv4Addr::new(169, 254, 1, 1), v6: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1) };

/// The underlay address of the node at `index` (from 0).
pub fn node(index: usize) -> Dual {
    let n = octet(index);
    Dual { v4: Ipv4Addr::new(10, 88, 0, n), v6: Ipv6Addr::new(0xfd00, 0x88, 0, 0, 0, 0, 0, n.into()) }
}

/// The pod networks of the node at `index`, in CIDR form.
pub fn pod_cidrs(index: usize) -> (String, String) {
    let n = octet(index);
    (format!("10.10.{n}.0/24"), format!("fd00:10:{n:x}::/64"))
}

/// The address of the pod at `ordinal` (from 0) among those of the node at `node_index`.
pub fn pod(node_index: usize, ordinal: usize) -> Dual {
    let (n, m) = (octet(node_index), octet(ordinal));
    Dual { v4: Ipv4Addr::new(10, 10, n, m), v6: Ipv6Addr::new(0xfd00, 0x10, n.into(), 0, 0, 0, 0, m.into()) }
}

/// The ClusterIPs of the service at `index` (from 0).
pub fn cluster_ip(index: usize) -> Dual {
    let s = octet(index);
    Dual { v4: Ipv4Addr::new(10, 96, 0, s), v6: Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, s.into()) }
}

/// Where a pod is in the address plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The index of its node, from 0.
    pub node: usize,
    /// Its position among the pods of that node, from 0.
    pub ordinal: usize,
}

impl Place {
    /// The pod's addresses.
    pub fn address(self) -> Dual {
        pod(self.node, self.ordinal)
    }

    /// The name of the pod's interface in its node.
    pub fn interface(self) -> String {
        format!("pod-{}", self.ordinal + 1)
    }
}

/// Finds a pod's place by its name.
pub fn place(topology: &Topology, pod_name: &str) -> Option<Place> {
    let pod = topology.pods.iter().find(|pod| pod.name == pod_name)?;
    let node = topology.nodes.iter().position(|node| *node == pod.node)?;
    let ordinal = topology
        .pods
        .iter()
        .filter(|other| other.node == pod.node)
        .position(|other| other.name == pod_name)?;
    Some(Place { node, ordinal })
}

fn octet(index: usize) -> u8 {
    u8::try_from(index + 1).expect("Topology::check bounds every count below 254")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Pod;

    #[test]
    fn the_plan_of_the_table_above() {
        assert_eq!(node(0).both().map(|ip| ip.to_string()), ["10.88.0.1", "fd00:88::1"]);
        assert_eq!(pod(1, 2).both().map(|ip| ip.to_string()), ["10.10.2.3", "fd00:10:2::3"]);
        assert_eq!(cluster_ip(9).both().map(|ip| ip.to_string()), ["10.96.0.10", "fd00:96::a"]);
        assert_eq!(pod_cidrs(11), ("10.10.12.0/24".to_owned(), "fd00:10:c::/64".to_owned()));
    }

    #[test]
    fn pods_are_numbered_within_their_node() {
        let topology = Topology::with_nodes(2)
            .pod(Pod::new("a", "node2"))
            .pod(Pod::new("b", "node1"))
            .pod(Pod::new("c", "node2"));
        assert_eq!(place(&topology, "c"), Some(Place { node: 1, ordinal: 1 }));
        assert_eq!(place(&topology, "c").map(Place::interface), Some("pod-2".to_owned()));
        assert_eq!(place(&topology, "d"), None);
    }
}
