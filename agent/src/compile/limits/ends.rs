//! What limits of the kernel are about: the addresses and ports of services, where the agent takes connections to them, of
//! their endpoints, and of the listeners of Gateways.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::LimitPolicy;
use crate::compile::{ClusterKey, GatewayListener, RoutingTable};
use crate::model::{KernelCount, KernelLimit, LimitTarget};

/// IP protocols, by their numbers.
const TCP: u8 = 6;
const UDP: u8 = 17;

impl LimitPolicy {
    /// Whether it is about a port of Gateways, or some listener there: the kernel can't tell those apart that share it.
    pub fn is_about(&self, port: &GatewayListener) -> bool {
        let about = |name: &str| {
            self.targets.iter().any(|target| match target {
                LimitTarget::Gateway(gateway, section) => {
                    let listener = name.strip_prefix(&format!("{gateway}/"));
                    listener.is_some_and(|listener| section.as_deref().is_none_or(|one| one == listener))
                }
                _ => false,
            })
        };
        port.listeners.iter().any(|(name, _)| about(name))
    }

    /// Whether it is about any Gateway.
    pub fn is_about_gateways(&self) -> bool {
        self.targets.iter().any(|target| matches!(target, LimitTarget::Gateway(..)))
    }
}

impl GatewayListener {
    /// Where it listens; of a listener without addresses of its own, an address of zeros of each family.
    pub fn ends(&self) -> impl Iterator<Item = SocketAddr> {
        let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        let any = any.into_iter().filter(|_| self.addresses.is_empty());
        let own = self.addresses.iter().map(IpAddr::to_canonical);
        own.chain(any).map(|address| SocketAddr::new(address, self.port))
    }
}

impl RoutingTable {
    /// The IP protocols, addresses and ports that a limit of the kernel is about, whatever nodes they are on.
    pub fn limited_ends(&self, policy: &LimitPolicy, limit: &KernelLimit) -> BTreeSet<(u8, SocketAddr)> {
        let services = policy.targets.iter().filter_map(|target| match target {
            LimitTarget::Service(service) => Some(service),
            _ => None,
        });
        let mut ends = BTreeSet::new();
        for service in services {
            let first = ClusterKey { service: service.clone(), port: 0, subset: None };
            let clusters = self.clusters.starting_at(&first).map(|(_, cluster)| cluster);
            for cluster in clusters.take_while(|cluster| cluster.key.service == *service) {
                let all = cluster.endpoints.iter().chain(&cluster.unready);
                ends.extend(all.map(|endpoint| (TCP, endpoint.address)));
            }
            let taken = self.frontends.iter().filter(|(_, frontend)| frontend.service == *service);
            ends.extend(taken.map(|(address, _)| (TCP, *address)));
            if limit.count == KernelCount::Packets {
                let datagrams = self.datagrams.values().filter(|frontend| frontend.service == *service);
                let all = datagrams.flat_map(|frontend| frontend.ready.iter().chain(&frontend.unready));
                ends.extend(all.map(|address| (UDP, *address)));
            }
        }
        ends
    }
}
