//! The connections that are open, gathered from the workers and from the kernel.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use agent_common::balance::UDP;
use agent_common::capture::Reason;

use super::flows::microseconds;
use crate::admin::{ConnectionDump, ConnectionsDump, protocol_name};
use crate::capture::{Balanced, Joined, Live, counted};
use crate::compile::RoutingTable;
use crate::net::TcpInfo;
use crate::proxy::{OpenConnection, OpenConnections, Protocol};
use crate::telemetry::{Origin, rfc3339};

/// What is known at the time of the question.
#[derive(Default)]
struct Seen {
    agent: Vec<OpenConnection>,
    balanced: Vec<Balanced>,
    joined: Vec<Joined>,
    /// What TCP has counted of the agent's own sockets, by their own address and their peer's.
    counted: HashMap<(SocketAddr, SocketAddr), TcpInfo>,
}

/// Asks the workers and the kernel.
pub(super) fn dump<'a>(
    workers: impl Iterator<Item = &'a OpenConnections>,
    live: Option<&Live>,
    table: &RoutingTable,
) -> ConnectionsDump {
    let seen = Seen {
        agent: workers.flat_map(OpenConnections::copy).collect(),
        balanced: live.map(Live::balanced).unwrap_or_default(),
        joined: live.map(Live::joined).unwrap_or_default(),
        counted: counted().unwrap_or_else(|error| {
            tracing::debug!(%error, "the kernel does not say what it has counted of connections");
            HashMap::new()
        }),
    };
    shown(seen, table)
}

fn shown(seen: Seen, table: &RoutingTable) -> ConnectionsDump {
    let Seen { mut agent, balanced, joined, counted } = seen;
    agent.sort_by_key(|one| one.since);
    // By what the dialling end's own socket says; each pair is shown once.
    let mut joined: BTreeSet<_> =
        joined.into_iter().filter(|one| !one.by_agent).map(|one| (one.source, one.destination)).collect();
    let mut connections = Vec::new();
    for one in agent {
        let (peer, dialled) = (one.peer, one.original_destination);
        let accelerated = joined.remove(&(canonical(peer), canonical(dialled)));
        let info = counted.get(&(canonical(dialled), canonical(peer)));
        connections.push(of_agent(&one, table, info.filter(|_| !accelerated), accelerated));
    }
    for one in balanced {
        let accelerated = joined.remove(&(one.source, one.endpoint));
        connections.push(of_socket(&one, table, accelerated));
    }
    for (source, destination) in joined {
        connections.push(ConnectionDump {
            tier: "kernel".to_owned(),
            verdict: "direct".to_owned(),
            reason: "joined".to_owned(),
            protocol: "tcp".to_owned(),
            accelerated: true,
            ..between((source, destination), None, table)
        });
    }
    ConnectionsDump { connections }
}

/// Dual-stack listeners see IPv4 clients as IPv6 ones in disguise.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn of_agent(
    one: &OpenConnection,
    table: &RoutingTable,
    counted: Option<&TcpInfo>,
    accelerated: bool,
) -> ConnectionDump {
    let dialled = one.original_destination;
    let reason = match (&one.origin, table.frontends.get(&dialled)) {
        (Origin::Gateway(_), _) => "gateway",
        (Origin::Inbound | Origin::Tunnel(_), _) => Reason::CapturedInbound.as_str(),
        (Origin::Outbound, Some(frontend)) => frontend.tier(dialled.is_ipv4()).1.as_str(),
        (Origin::Outbound, None) => Reason::NoRoute.as_str(),
    };
    let gateway = if let Origin::Gateway(name) = &one.origin { Some(name.to_string()) } else { None };
    ConnectionDump {
        tier: match one.protocol {
            Protocol::Undecided => "agent",
            Protocol::Http1 | Protocol::Http2 | Protocol::Tunnel => "agent L7",
            Protocol::Opaque => "agent L4",
        }
        .to_owned(),
        verdict: "agent".to_owned(),
        reason: reason.to_owned(),
        protocol: one.protocol.as_str().to_owned(),
        accelerated,
        gateway,
        since: Some(rfc3339(one.since).to_string()),
        sent_bytes: counted.map(|info| info.received),
        received_bytes: counted.map(|info| info.sent),
        rtt_us: counted.and_then(|info| info.rtt).map(microseconds),
        ..between((one.peer, dialled), one.endpoint, table)
    }
}

fn of_socket(one: &Balanced, table: &RoutingTable, accelerated: bool) -> ConnectionDump {
    let counted = one.counted.as_ref().filter(|_| !accelerated && one.protocol != UDP);
    ConnectionDump {
        tier: "kernel".to_owned(),
        verdict: "balanced".to_owned(),
        reason: one.reason.to_owned(),
        protocol: protocol_name(one.protocol),
        accelerated,
        sent_bytes: counted.map(|info| info.sent),
        received_bytes: counted.map(|info| info.received),
        rtt_us: counted.and_then(|info| info.rtt).map(microseconds),
        ..between((one.source, one.dialled), Some(one.endpoint), table)
    }
}

/// The ends with their names.
fn between(
    (source, destination): (SocketAddr, SocketAddr),
    endpoint: Option<SocketAddr>,
    table: &RoutingTable,
) -> ConnectionDump {
    let (source, destination) = (canonical(source), canonical(destination));
    let pod = |ip: IpAddr| table.workloads.get(&ip.to_canonical()).map(|pod| pod.name.to_string());
    let stream = table.frontends.get(&destination).map(|frontend| frontend.service.to_string());
    let service =
        stream.or_else(|| table.datagrams.get(&destination).map(|frontend| frontend.service.to_string()));
    ConnectionDump {
        source: source.to_string(),
        source_pod: pod(source.ip()),
        destination: destination.to_string(),
        destination_name: service.or_else(|| pod(destination.ip())),
        endpoint: endpoint.map(|endpoint| endpoint.to_string()),
        endpoint_pod: endpoint.and_then(|endpoint| pod(endpoint.ip())),
        ..ConnectionDump::default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect(text)
    }

    fn info(sent: u64, received: u64) -> TcpInfo {
        TcpInfo { sent, received, rtt: Some(Duration::from_micros(90)) }
    }

    fn open(peer: &str, seconds: u64, protocol: Protocol) -> OpenConnection {
        OpenConnection {
            peer: address(peer),
            original_destination: address("10.96.0.1:80"),
            endpoint: None,
            origin: Origin::Outbound,
            protocol,
            since: UNIX_EPOCH + Duration::from_secs(seconds),
        }
    }

    fn joined(source: &str, destination: &str, by_agent: bool) -> Joined {
        Joined { source: address(source), destination: address(destination), by_agent }
    }

    #[test]
    fn connections_into_a_pod_are_told_from_others() {
        let inbound = OpenConnection {
            origin: Origin::Inbound,
            original_destination: address("10.0.0.2:8080"),
            ..open("[::ffff:10.0.0.1]:1", 10, Protocol::Http1)
        };
        let seen = Seen { agent: vec![inbound], ..Seen::default() };
        let said = shown(seen, &RoutingTable::default()).connections;
        let one = &said[0];
        assert_eq!((one.tier.as_str(), one.reason.as_str()), ("agent L7", "captured_inbound"));
        assert_eq!(one.source, "10.0.0.1:1");
    }

    #[test]
    fn each_connection_is_shown_once_with_what_is_known_of_it() {
        let balanced = Balanced {
            source: address("10.0.0.1:3"),
            dialled: address("10.96.0.2:6379"),
            endpoint: address("10.0.0.9:6379"),
            protocol: 6,
            reason: "affinity",
            counted: Some(info(5, 6)),
        };
        let seen = Seen {
            agent: vec![open("10.0.0.1:2", 20, Protocol::Opaque), open("10.0.0.1:1", 10, Protocol::Http2)],
            balanced: vec![balanced.clone(), Balanced { source: address("10.0.0.1:4"), ..balanced }],
            joined: vec![
                joined("10.0.0.1:2", "10.96.0.1:80", false),
                joined("10.0.0.1:4", "10.0.0.9:6379", false),
                joined("10.0.0.1:5", "10.0.0.8:80", false),
                joined("10.0.0.1:61000", "10.0.0.9:80", true),
            ],
            counted: [
                ((address("10.96.0.1:80"), address("10.0.0.1:1")), info(7, 8)),
                ((address("10.96.0.1:80"), address("10.0.0.1:2")), info(0, 0)),
            ]
            .into(),
        };
        let table = RoutingTable::default();
        let said: Vec<_> = shown(seen, &table)
            .connections
            .iter()
            .map(|one| {
                let bytes = one.sent_bytes.zip(one.received_bytes);
                let text = [&one.source, &one.tier, &one.verdict, &one.reason, &one.protocol]
                    .map(String::as_str)
                    .join(" ");
                (text, one.accelerated, bytes)
            })
            .collect();
        let expected = [
            ("10.0.0.1:1 agent L7 agent no_route http/2", false, Some((8, 7))),
            // Its bytes go past TCP, whose count of them would be a lie.
            ("10.0.0.1:2 agent L4 agent no_route opaque", true, None),
            ("10.0.0.1:3 kernel balanced affinity tcp", false, Some((5, 6))),
            ("10.0.0.1:4 kernel balanced affinity tcp", true, None),
            ("10.0.0.1:5 kernel direct joined tcp", true, None),
        ];
        assert_eq!(said, expected.map(|(text, accelerated, bytes)| (text.to_owned(), accelerated, bytes)));
    }
}
