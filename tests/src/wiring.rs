//! The `ip -batch` scripts that make up the lab's networks.
//!
//! Owns which links, addresses and routes there are; `lab.rs` runs the scripts in their namespaces. Links are made
//! straight between two namespaces, so that no interface of the machine itself is ever touched. Addresses are set
//! `nodad`: nobody else can hold them, and duplicate detection would cost a second per interface.

use std::fmt::Write;

use crate::address::{self, GATEWAY, Place, WORLD};
use crate::topology::Topology;

/// Settings of every namespace, as paths below `/proc/sys/net` with their values.
pub const SYSCTLS_ALL: &[(&str, &str)] = &[
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/all/accept_ra", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    // The machine may default to bbr, whose pacing stalls short transfers between namespaces.
    ("ipv4/tcp_congestion_control", "cubic"),
];

/// Settings of nodes and of the underlay, which forward.
pub const SYSCTLS_FORWARDING: &[(&str, &str)] = &[
    ("ipv4/ip_forward", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv4/conf/all/rp_filter", "1"),
    ("ipv4/conf/default/rp_filter", "1"),
];

/// Run in the underlay: the bridge, which is also the world's address.
pub fn underlay(topology: &Topology) -> String {
    let mut batch = format!(
        "link set lo up\nlink add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set br0 up\n\
         addr add {}/24 dev br0\naddr add {}/64 dev br0 nodad\n",
        WORLD.v4, WORLD.v6
    );
    for index in 0..topology.nodes.len() {
        add_pod_routes(&mut batch, index, "br0");
    }
    batch
}

/// Run in the underlay: the link to the node at `index`, whose namespace is `netns`.
pub fn uplink(index: usize, netns: &str) -> String {
    let port = format!("node-{}", index + 1);
    format!(
        "link add {port} type veth peer name eth0 netns {netns}\nlink set {port} master br0\nlink set {port} up\n"
    )
}

/// Run in the node at `index`, once its uplink is there.
pub fn node(topology: &Topology, index: usize) -> String {
    let own = address::node(index);
    let mut batch = format!(
        "link set lo up\nlink set eth0 up\naddr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\n\
         route add default via {}\nroute add default via {}\n",
        own.v4, own.v6, WORLD.v4, WORLD.v6
    );
    for other in (0..topology.nodes.len()).filter(|other| *other != index) {
        add_pod_routes(&mut batch, other, "eth0");
    }
    batch
}

/// Run in a pod's node: its veth and the routes to it. A node reaches its pods from its own address, as a
/// kubelet's probes do.
pub fn pod_link(place: Place, netns: &str) -> String {
    let (interface, ip, own) = (place.interface(), place.address(), address::node(place.node));
    format!(
        "link add {interface} type veth peer name eth0 netns {netns}\nlink set {interface} up\n\
         addr add {gw4}/32 dev {interface} scope link\naddr add {gw6}/128 dev {interface} nodad\n\
         route add {ip4}/32 dev {interface} src {own4}\nroute add {ip6}/128 dev {interface} src {own6}\n",
        gw4 = GATEWAY.v4,
        gw6 = GATEWAY.v6,
        ip4 = ip.v4,
        ip6 = ip.v6,
        own4 = own.v4,
        own6 = own.v6,
    )
}

/// Run in a pod, once its veth is there.
pub fn pod(place: Place) -> String {
    let ip = place.address();
    format!(
        "link set lo up\nlink set eth0 up\naddr add {}/32 dev eth0\naddr add {}/128 dev eth0 nodad\n\
         route add {gw4}/32 dev eth0 scope link\nroute add default via {gw4} dev eth0\n\
         route add default via {gw6} dev eth0\n",
        ip.v4,
        ip.v6,
        gw4 = GATEWAY.v4,
        gw6 = GATEWAY.v6,
    )
}

fn add_pod_routes(batch: &mut String, index: usize, device: &str) {
    let (via, (v4, v6)) = (address::node(index), address::pod_cidrs(index));
    // Writing to a String cannot fail.
    let _ = writeln!(
        batch,
        "route add {v4} via {} dev {device}\nroute add {v6} via {} dev {device}",
        via.v4, via.v6
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_routes_to_the_others_pods_and_not_to_its_own() {
        let batch = node(&Topology::with_nodes(3), 1);
        assert!(batch.contains("route add 10.10.1.0/24 via 10.88.0.1 dev eth0\n"), "{batch}");
        assert!(batch.contains("route add fd00:10:3::/64 via fd00:88::3 dev eth0\n"), "{batch}");
        assert!(!batch.contains("10.10.2.0/24"), "{batch}");
    }

    #[test]
    fn a_pod_hangs_on_its_gateway() {
        let batch = pod(Place { node: 0, ordinal: 4 });
        assert!(batch.contains("addr add 10.10.1.5/32 dev eth0\n"), "{batch}");
        assert!(batch.contains("route add default via 169.254.1.1 dev eth0\n"), "{batch}");
    }
}
