//! Routing table -> what the kernel is told of services: for each frontend its tier, for each balanced one its backends.
//! Pure.

mod follow;

pub use follow::{Changes, Follower};

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use agent_common::balance::{Choice, End, SlotValue, TCP, Tier, TierReason, UDP};

use crate::balance::slots::{maglev, weighted};
use crate::compile::{DatagramFrontend, Frontend, RoutingTable};
use crate::model::{LbPolicy, ObjectName};

/// A service's port, as sockets of one protocol and address family meet it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolName {
    /// The service.
    pub service: ObjectName,
    /// Its port.
    pub port: u16,
    /// TCP or UDP, as in [`End`].
    pub protocol: u8,
    /// The address family.
    pub ipv4: bool,
}

/// Backends, and how one is chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// How.
    pub choice: Choice,
    /// How long after its last connection a client is led to the same backend; 0: it is not.
    pub affinity_seconds: u32,
    /// The backends, sorted.
    pub backends: Vec<End>,
}

impl Pool {
    /// The table that the kernel looks backends up in.
    pub fn slots(&self) -> Vec<SlotValue> {
        match self.choice {
            // The documents know no weights of endpoints.
            Choice::Random => weighted(&self.backends.iter().map(|end| (*end, 1)).collect::<Vec<_>>()),
            Choice::Socket | Choice::Client => maglev(&self.backends),
        }
    }
}

/// What is done with sockets that dial one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The tier.
    pub tier: Tier,
    /// Why.
    pub why: TierReason,
    /// The backends, for [`Tier::Balance`].
    pub pool: Option<PoolName>,
}

/// Everything that the kernel is told.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Lowered {
    /// By the address that clients dial.
    pub frontends: BTreeMap<End, Decision>,
    /// What balanced frontends lead to.
    pub pools: BTreeMap<PoolName, Pool>,
    /// Backends that are there, whether they may be given new work or not.
    pub known: BTreeSet<End>,
}

/// What follows from one frontend at one address.
struct Told {
    at: End,
    decision: Decision,
    /// What [`Decision::pool`] names.
    pool: Option<Pool>,
    /// Its backends, whether they may be given new work or not.
    backends: Vec<End>,
}

/// Lowers a table.
pub fn lower(table: &RoutingTable) -> Lowered {
    let mut lowered = Lowered::default();
    for Told { at, decision, pool, backends } in everything(table) {
        lowered.known.extend(backends);
        if let Some((name, pool)) = decision.pool.as_ref().zip(pool) {
            lowered.pools.entry(name.clone()).or_insert(pool);
        }
        lowered.frontends.insert(at, decision);
    }
    lowered
}

fn everything(table: &RoutingTable) -> impl Iterator<Item = Told> {
    let streams = table.frontends.iter().map(|(address, frontend)| of_stream(*address, frontend));
    streams.chain(table.datagrams.iter().map(|(address, frontend)| of_datagrams(*address, frontend)))
}

fn of_stream(address: SocketAddr, frontend: &Frontend) -> Told {
    let cluster = &frontend.tcp;
    let choice = match cluster.policy {
        LbPolicy::SourceIp => Choice::Client,
        // Who has fewer connections is not known here. Over many, chance is as even as turns are.
        LbPolicy::RoundRobin | LbPolicy::Random | LbPolicy::LeastRequest => Choice::Random,
    };
    let ready = cluster.endpoints.iter().map(|upstream| upstream.address);
    let unready = cluster.unready.iter().map(|upstream| upstream.address);
    let name = PoolName {
        service: frontend.service.clone(),
        port: frontend.port,
        protocol: TCP,
        ipv4: address.is_ipv4(),
    };
    let decided = frontend.tier(address.is_ipv4());
    told(address, decided, name, ((choice, frontend.affinity), ready, unready))
}

fn of_datagrams(address: SocketAddr, frontend: &DatagramFrontend) -> Told {
    let name = PoolName {
        service: frontend.service.clone(),
        port: frontend.port,
        protocol: UDP,
        ipv4: address.is_ipv4(),
    };
    let (ready, unready) = (frontend.ready.iter().copied(), frontend.unready.iter().copied());
    // One socket's datagrams may belong together.
    let how = (Choice::Socket, frontend.affinity);
    told(address, frontend.tier(address.is_ipv4()), name, (how, ready, unready))
}

fn told(
    address: SocketAddr,
    (tier, why): (Tier, TierReason),
    name: PoolName,
    (how, ready, unready): (
        (Choice, Option<Duration>),
        impl Iterator<Item = SocketAddr> + Clone,
        impl Iterator<Item = SocketAddr>,
    ),
) -> Told {
    let protocol = name.protocol;
    let pool = (tier == Tier::Balance).then(|| pool(how, &name, ready.clone()));
    Told {
        at: end(address, protocol),
        backends: ready.chain(unready).map(|one| end(one, protocol)).collect(),
        decision: Decision { tier, why, pool: pool.is_some().then_some(name) },
        pool,
    }
}

fn pool(
    (choice, affinity): (Choice, Option<Duration>),
    name: &PoolName,
    ready: impl Iterator<Item = SocketAddr>,
) -> Pool {
    let family = ready.filter(|address| address.is_ipv4() == name.ipv4);
    let mut backends: Vec<End> = family.map(|address| end(address, name.protocol)).collect();
    backends.sort_unstable();
    let seconds = affinity.map_or(0, |time| time.as_secs().max(1));
    Pool { choice, affinity_seconds: u32::try_from(seconds).unwrap_or(u32::MAX), backends }
}

/// An address as the kernel programs have it.
pub fn end(address: SocketAddr, protocol: u8) -> End {
    let port_be = address.port().to_be();
    match address.ip() {
        IpAddr::V4(v4) => End::v4(u32::from_ne_bytes(v4.octets()), port_be, protocol),
        IpAddr::V6(v6) => {
            let octets = v6.octets();
            let word =
                |at: usize| u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]]);
            End::v6([word(0), word(4), word(8), word(12)], port_be, protocol)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::{TableVersion, compile};
    use crate::model::{AppProtocol, Endpoint, Model, Service, ServicePort};

    fn socket(text: &str) -> SocketAddr {
        text.parse().expect("is an address")
    }

    /// A service with an opaque port, an HTTP port and a UDP port; endpoints of both families behind each.
    fn model() -> Model {
        let name = ObjectName::new("default", "mix");
        let port =
            |port, protocol| ServicePort { name: format!("p{port}").into(), port, protocol, tls: None };
        let endpoint = |service_port, address: &str, ready| Endpoint {
            service: name.clone(),
            service_port,
            address: socket(address),
            ready,
            pod: None,
            uid: address.into(),
            node: None,
            labels: std::sync::Arc::default(),
        };
        Model {
            services: vec![Service {
                name: name.clone(),
                cluster_ips: vec![socket("10.96.0.1:1").ip(), socket("[fd00:96::1]:1").ip()],
                headless: false,
                ports: vec![port(81, AppProtocol::Tcp), port(80, AppProtocol::Http)],
                datagram_ports: vec![port(53, AppProtocol::Tcp)],
                affinity: Some(Duration::from_secs(30)),
            }]
            .into(),
            endpoints: vec![
                endpoint(80, "10.0.0.1:8080", true),
                endpoint(81, "10.0.0.2:8081", true),
                endpoint(81, "10.0.0.1:8081", true),
                endpoint(81, "10.0.0.3:8081", false),
                endpoint(81, "[fd00::1]:8081", true),
            ]
            .into(),
            datagram_endpoints: vec![
                endpoint(53, "10.0.0.1:5353", true),
                endpoint(53, "[fd00::1]:5353", false),
            ]
            .into(),
            ..Model::default()
        }
    }

    fn lowered(model: &Model) -> Lowered {
        lower(&compile(model, &RoutingTable::default(), TableVersion::default()))
    }

    #[test]
    fn each_frontend_has_its_tier_and_its_familys_backends() {
        let lowered = lowered(&model());
        let tier = |address: &str, protocol| {
            let decision = &lowered.frontends[&end(socket(address), protocol)];
            (decision.tier, decision.why, decision.pool.is_some())
        };
        assert_eq!(tier("10.96.0.1:81", TCP), (Tier::Balance, TierReason::Opaque, true));
        assert_eq!(tier("[fd00:96::1]:81", TCP), (Tier::Balance, TierReason::Opaque, true));
        assert_eq!(tier("10.96.0.1:80", TCP), (Tier::AgentL7, TierReason::DeclaredHttp, false));
        assert_eq!(tier("10.96.0.1:53", UDP), (Tier::Balance, TierReason::Datagrams, true));
        assert_eq!(tier("[fd00:96::1]:53", UDP), (Tier::Direct, TierReason::NoEndpoint, false));
        assert_eq!(lowered.frontends.len(), 6);

        let pool = |port, protocol, ipv4| {
            let service = ObjectName::new("default", "mix");
            &lowered.pools[&PoolName { service, port, protocol, ipv4 }]
        };
        let ends = |addresses: &[&str], protocol| -> Vec<End> {
            addresses.iter().map(|address| end(socket(address), protocol)).collect()
        };
        assert_eq!(pool(81, TCP, true).backends, ends(&["10.0.0.1:8081", "10.0.0.2:8081"], TCP));
        assert_eq!(pool(81, TCP, false).backends, ends(&["[fd00::1]:8081"], TCP));
        assert_eq!(pool(53, UDP, true).backends, ends(&["10.0.0.1:5353"], UDP));
        assert_eq!(pool(53, UDP, true).choice, Choice::Socket);
        assert_eq!(pool(81, TCP, true).affinity_seconds, 30);
        assert_eq!(lowered.pools.len(), 3);
        // One that is not ready is still there: its sockets live on.
        assert!(lowered.known.contains(&end(socket("10.0.0.3:8081"), TCP)));
    }

    #[test]
    fn a_hash_by_source_makes_a_table_by_client() {
        let mut model = model();
        model.policies.push(crate::model::TrafficPolicy {
            source: ObjectName::new("default", "hash"),
            service: ObjectName::new("default", "mix"),
            lb: LbPolicy::SourceIp,
            port_lb: Vec::new(),
            tls: crate::model::TlsRules::default(),
            subsets: Vec::new(),
        });
        let lowered = lowered(&model);
        let tcp: Vec<&Pool> =
            lowered.pools.iter().filter(|(name, _)| name.protocol == TCP).map(|(_, pool)| pool).collect();
        assert_eq!(tcp.len(), 2);
        for pool in tcp {
            assert_eq!(pool.choice, Choice::Client);
            assert_eq!(pool.slots().len(), 1021);
        }
    }

    #[test]
    fn ends_of_both_families() {
        assert_eq!(end(socket("10.0.0.1:80"), TCP), end(socket("[::ffff:10.0.0.1]:80"), TCP));
        let v6 = end(socket("[fd00::1]:80"), UDP);
        assert_eq!((v6.family, v6.protocol, v6.port_be), (6, UDP, 80_u16.to_be()));
        assert_eq!(v6.address_be[3], u32::from_ne_bytes([0, 0, 0, 1]));
    }
}
