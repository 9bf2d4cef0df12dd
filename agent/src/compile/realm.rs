//! Where a table is in force: which pods this node knows by itself, and whom it takes to be proven.
//!
//! A pod is proven where mutual TLS has proven it. So it is, as in Istio's ztunnel, where both ends of a connection are pods of
//! this node: who sends is known by the interface that leads to it, and the bytes never leave the node.

use std::net::IpAddr;
use std::sync::Arc;

use super::RoutingTable;
use crate::model::{Cidr, GatewayKey, Identity, PolicySource, Speaker, Workload};

/// Where a table is in force. It is the same for all tables of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Realm {
    /// This node, as Pod documents call it.
    pub node: Arc<str>,
    /// The trust domain of all workloads.
    pub trust_domain: Arc<str>,
    /// Whether this node's pods reach others' through tunnels.
    pub tunnels: bool,
}

impl Default for Realm {
    fn default() -> Self {
        Self { node: Arc::default(), trust_domain: DEFAULT_TRUST_DOMAIN.into(), tunnels: false }
    }
}

/// The trust domain where no certificate says another, as Istio has it; in policies it stands for the mesh's own.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

impl Realm {
    /// Whether this node runs a pod.
    pub fn runs(&self, pod: &Workload) -> bool {
        pod.node.as_deref() == Some(&*self.node)
    }

    /// Whether a tunnel is made of what one of this node's pods sends to another node's.
    pub fn is_tunnelled(&self, from: &Workload, to: &Workload) -> bool {
        self.tunnels && self.runs(from) && !self.runs(to) && to.node.is_some() && to.is_tunnelled()
    }

    /// As whom a pod is proven, once it is.
    pub fn identity<'a>(&'a self, pod: &'a Workload) -> Identity<'a> {
        Identity {
            trust_domain: &self.trust_domain,
            namespace: &pod.name.namespace,
            service_account: &pod.service_account,
        }
    }
}

/// A client as policies see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyClient {
    /// Its address, as the pod would see it.
    pub address: IpAddr,
    /// By which way it comes.
    pub way: Way,
}

/// By which way a client comes to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From its own interface: as what it is, where both ends are pods of this node, or where this node makes a tunnel of it.
    Direct,
    /// Out of a tunnel that has ended here, whose ends were proven by certificates.
    Tunnel,
    /// Through a Gateway of this node: as that, where a tunnel is made of it or the pod is of this node.
    Gateway(GatewayKey),
    /// Through a Gateway of another node, out of a tunnel that has ended here.
    GatewayTunnel(GatewayKey),
    /// In plaintext through somebody who speaks as no workload: a port that several Gateways share.
    Relayed,
}

impl PolicyClient {
    /// One that comes from its own interface.
    pub fn direct(address: IpAddr) -> Self {
        Self { address: address.to_canonical(), way: Way::Direct }
    }
}

impl RoutingTable {
    /// Whom policies of the pod at `endpoint` take a client for.
    pub(super) fn policy_source(&self, client: PolicyClient, endpoint: IpAddr) -> PolicySource<'_> {
        let pod = self.workloads.get(&client.address).map(|pod| &**pod);
        let proven = match client.way {
            Way::Direct => pod.filter(|pod| self.realm.runs(pod) && self.is_proven_at(endpoint)),
            Way::Tunnel => pod,
            Way::Gateway(key) if self.is_proven_at(endpoint) => self.speaker(key).map(|own| &**own),
            Way::GatewayTunnel(key) => self.speaker(key).map(|own| &**own),
            Way::Gateway(_) | Way::Relayed => None,
        };
        PolicySource {
            addresses: Cidr::host(client.address),
            namespace: proven.or(pod).map(|pod| &*pod.name.namespace),
            identity: proven.map(|pod| self.realm.identity(pod)),
        }
    }

    /// As whom a client is proven to this node, wherever it goes: one of its own pods, or what a tunnel's certificate names. What is
    /// asked of a Gateway nobody has proven.
    pub fn proven(&self, client: PolicyClient) -> Option<Identity<'_>> {
        let pod = || self.workloads.get(&client.address).map(|pod| &**pod);
        let proven = match client.way {
            Way::Direct => pod().filter(|pod| self.realm.runs(pod)),
            Way::Tunnel => pod(),
            Way::GatewayTunnel(key) => self.speaker(key).map(|own| &**own),
            Way::Gateway(_) | Way::Relayed => None,
        };
        proven.map(|pod| self.realm.identity(pod))
    }

    /// The pod of this node that has an address: what enters it is for this agent to count.
    pub fn receiver(&self, endpoint: IpAddr) -> Option<&Workload> {
        let pod = self.workloads.get(&endpoint.to_canonical())?;
        self.realm.runs(pod).then_some(&**pod)
    }

    /// Whether the mesh proves both ends of what this node's pods, or Gateways, send to an endpoint: by a tunnel, or as both are on
    /// this node.
    pub fn reaches_in_mesh(&self, endpoint: IpAddr) -> bool {
        let reached = |pod: &Workload| {
            self.realm.runs(pod) || (self.realm.tunnels && pod.node.is_some() && pod.is_tunnelled())
        };
        self.workloads.get(&endpoint.to_canonical()).is_some_and(|pod| reached(pod))
    }

    /// Whether a tunnel is made of what this node's pods, or Gateways, send to an endpoint.
    pub fn reaches_by_tunnel(&self, endpoint: IpAddr) -> bool {
        let here = self.workloads.get(&endpoint.to_canonical()).is_some_and(|pod| self.realm.runs(pod));
        !here && self.reaches_in_mesh(endpoint)
    }

    /// As what workloads Gateways speak.
    pub fn speakers(&self) -> impl Iterator<Item = &Speaker> {
        self.gateways.iter().filter_map(|gateway| gateway.speaker.as_deref())
    }

    /// As what workload a Gateway speaks.
    pub fn speaker(&self, key: GatewayKey) -> Option<&Arc<Workload>> {
        self.speakers().find(|speaker| speaker.key == key).map(|speaker| &speaker.workload)
    }

    /// Whether this node's pods come to an endpoint as whom they are. A pod whose node is not known may be this node's: where it
    /// is another's, that one refuses.
    fn is_proven_at(&self, endpoint: IpAddr) -> bool {
        self.workloads.get(&endpoint).is_some_and(|pod| {
            let may_be_here = pod.node.as_deref().is_none_or(|node| *node == *self.realm.node);
            may_be_here || (self.realm.tunnels && pod.is_tunnelled())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::{TableVersion, compile};
    use crate::model::{Model, ObjectName};

    #[test]
    fn this_nodes_pods_and_those_out_of_tunnels_are_proven() {
        let pod = |name: &str, node: Option<&str>, address: &str| Workload {
            name: ObjectName::new("shop", name),
            uid: name.into(),
            workload: name.into(),
            node: node.map(Into::into),
            service_account: name.into(),
            addresses: vec![address.parse().expect("an address")],
            labels: Arc::default(),
            ready: true,
            probes: Vec::new(),
            accelerated: true,
        };
        let workloads = vec![
            pod("a", Some("n1"), "10.0.0.1"),
            pod("b", Some("n2"), "10.0.0.2"),
            pod("c", None, "10.0.0.3"),
        ];
        let realm = Realm { node: "n1".into(), ..Realm::default() };
        let previous = RoutingTable { realm: Arc::new(realm), ..RoutingTable::default() };
        let model = Model { workloads: workloads.into(), ..Model::default() };
        let table = compile(&model, &previous, TableVersion::default());
        for (address, way, expected) in [
            ("10.0.0.1", Way::Direct, Some("a")),
            ("::ffff:10.0.0.1", Way::Direct, Some("a")),
            ("10.0.0.2", Way::Direct, None),
            ("10.0.0.3", Way::Direct, None),
            ("192.0.2.1", Way::Direct, None),
            ("10.0.0.1", Way::Relayed, None),
            ("10.0.0.2", Way::Tunnel, Some("b")),
            ("192.0.2.1", Way::Tunnel, None),
        ] {
            let client = PolicyClient { way, ..PolicyClient::direct(address.parse().expect("an address")) };
            let proven = table.proven(client).map(|identity| identity.service_account);
            assert_eq!(proven, expected, "{address} {way:?}");
        }
    }
}
