//! The lowest tier that satisfies what the documents ask of a frontend, and why it is no lower.

use agent_common::balance::{Tier, TierReason};

use super::{DatagramFrontend, Frontend, Security};
use crate::model::AppProtocol;

impl Frontend {
    /// Where connections from sockets of one address family are decided. A socket cannot be led to an endpoint of the other
    /// family; the agent can relay to one.
    pub fn tier(&self, ipv4: bool) -> (Tier, TierReason) {
        match self.protocol {
            AppProtocol::Http | AppProtocol::Http2 | AppProtocol::Grpc => {
                (Tier::AgentL7, TierReason::DeclaredHttp)
            }
            AppProtocol::Undeclared => (Tier::AgentL7, TierReason::DetectsProtocol),
            AppProtocol::Tcp if self.headless => (Tier::AgentL4, TierReason::Headless),
            AppProtocol::Tcp if !self.tcp.endpoints.iter().any(|one| one.address.is_ipv4() == ipv4) => {
                (Tier::AgentL4, TierReason::NoEndpoint)
            }
            AppProtocol::Tcp if self.tcp.from_pods != Security::Way => (Tier::AgentL4, TierReason::Secured),
            // What the kernel would send in plaintext a pod may well refuse that takes tunnels.
            AppProtocol::Tcp if self.tcp.endpoints.iter().any(|one| one.is_tunnelled()) => {
                (Tier::AgentL4, TierReason::Tunnelled)
            }
            AppProtocol::Tcp => (Tier::Balance, TierReason::Opaque),
        }
    }
}

impl DatagramFrontend {
    /// As [`Frontend::tier`].
    pub fn tier(&self, ipv4: bool) -> (Tier, TierReason) {
        if self.ready.iter().any(|address| address.is_ipv4() == ipv4) {
            (Tier::Balance, TierReason::Datagrams)
        } else {
            (Tier::Direct, TierReason::NoEndpoint)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::compile::{Cluster, ClusterKey, Upstream, VirtualHost};
    use crate::model::{LbPolicy, ObjectName, Workload};

    fn frontend(protocol: AppProtocol, headless: bool, endpoints: &[&str]) -> Frontend {
        let service = ObjectName::new("default", "db");
        let key = ClusterKey { service: service.clone(), port: 1, subset: None };
        let upstream =
            |text: &&str| Arc::new(Upstream::new(text.parse().expect("is an address"), (*text).into(), None));
        let endpoints = endpoints.iter().map(upstream).collect();
        Frontend {
            service,
            port: 1,
            protocol,
            headless,
            http: Arc::new(VirtualHost { name: "db".into(), layers: Vec::new(), default: None }),
            tcp: Arc::new(Cluster::new(key, protocol, LbPolicy::default(), endpoints)),
            affinity: None,
        }
    }

    #[test]
    fn the_lowest_tier_that_will_do() {
        const V4: &str = "10.0.0.1:1";
        const V6: &str = "[fd00::1]:1";
        // (protocol, headless, endpoints, IPv4 client) -> tier and why
        let cases = [
            ((AppProtocol::Tcp, false, &[V4][..], true), (Tier::Balance, TierReason::Opaque)),
            ((AppProtocol::Tcp, false, &[V4, V6], false), (Tier::Balance, TierReason::Opaque)),
            ((AppProtocol::Tcp, false, &[V4], false), (Tier::AgentL4, TierReason::NoEndpoint)),
            ((AppProtocol::Tcp, false, &[V6], true), (Tier::AgentL4, TierReason::NoEndpoint)),
            ((AppProtocol::Tcp, false, &[], true), (Tier::AgentL4, TierReason::NoEndpoint)),
            ((AppProtocol::Tcp, true, &[V4], true), (Tier::AgentL4, TierReason::Headless)),
            ((AppProtocol::Undeclared, false, &[V4], true), (Tier::AgentL7, TierReason::DetectsProtocol)),
            ((AppProtocol::Http, false, &[V4], true), (Tier::AgentL7, TierReason::DeclaredHttp)),
            ((AppProtocol::Http2, false, &[V4], true), (Tier::AgentL7, TierReason::DeclaredHttp)),
            ((AppProtocol::Grpc, true, &[], true), (Tier::AgentL7, TierReason::DeclaredHttp)),
        ];
        for ((protocol, headless, endpoints, ipv4), expected) in cases {
            let found = frontend(protocol, headless, endpoints).tier(ipv4);
            assert_eq!(found, expected, "{protocol:?} {headless} {endpoints:?} {ipv4}");
        }
    }

    #[test]
    fn what_goes_through_tunnels_is_the_agents() {
        let pod = |label: &str| Workload {
            name: ObjectName::new("default", "db-0"),
            uid: "1".into(),
            workload: "db".into(),
            node: Some("there".into()),
            service_account: "default".into(),
            addresses: vec!["10.0.0.2".parse().expect("is an address")],
            labels: Arc::new([(label.into(), "http".into())].into()),
            ready: true,
            probes: Vec::new(),
            accelerated: true,
        };
        for (label, expected) in [
            ("networking.istio.io/tunnel", (Tier::AgentL4, TierReason::Tunnelled)),
            ("app", (Tier::Balance, TierReason::Opaque)),
        ] {
            let mut frontend = frontend(AppProtocol::Tcp, false, &["10.0.0.1:1"]);
            let address = "10.0.0.2:1".parse().expect("is an address");
            let second = Upstream::new(address, "1".into(), Some(Arc::new(pod(label))));
            let (key, mut endpoints) = (frontend.tcp.key.clone(), frontend.tcp.endpoints.clone());
            endpoints.push(Arc::new(second));
            frontend.tcp = Arc::new(Cluster::new(key, AppProtocol::Tcp, LbPolicy::default(), endpoints));
            assert_eq!(frontend.tier(true), expected, "{label}");
        }
    }

    #[test]
    fn what_a_rule_wants_kept_secret_is_the_agents() {
        let mut frontend = frontend(AppProtocol::Tcp, false, &["10.0.0.1:1"]);
        let (key, endpoints) = (frontend.tcp.key.clone(), frontend.tcp.endpoints.clone());
        let cluster = Cluster::new(key, AppProtocol::Tcp, LbPolicy::default(), endpoints);
        frontend.tcp = Arc::new(Cluster { from_pods: Security::Mesh, ..cluster });
        assert_eq!(frontend.tier(true), (Tier::AgentL4, TierReason::Secured));
    }

    #[test]
    fn datagrams_without_an_endpoint_go_directly() {
        let frontend = DatagramFrontend {
            service: ObjectName::new("kube-system", "dns"),
            port: 53,
            affinity: None,
            ready: vec!["10.0.0.1:53".parse().expect("is an address")],
            unready: vec!["[fd00::1]:53".parse().expect("is an address")],
        };
        assert_eq!(frontend.tier(true), (Tier::Balance, TierReason::Datagrams));
        assert_eq!(frontend.tier(false), (Tier::Direct, TierReason::NoEndpoint));
    }
}
