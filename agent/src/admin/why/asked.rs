//! The question: the two ends of a connection, read from addresses or from names that the table knows.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::compile::RoutingTable;
use crate::model::{ObjectName, Workload};

/// A question that cannot be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Neither an address nor a pod.
    #[error("source `{0}`: neither an address nor a pod of the table; say IP, POD or NAMESPACE/POD")]
    Source(String),
    /// No port.
    #[error("destination `{0}`: no port; say IP:PORT, SERVICE:PORT or NAMESPACE/SERVICE:PORT")]
    Port(String),
    /// Neither an address nor a service or pod.
    #[error(
        "destination `{0}`: neither an address nor a service or pod of the table; say IP:PORT, SERVICE:PORT or \
         NAMESPACE/SERVICE:PORT"
    )]
    Destination(String),
    /// A service that lacks the port.
    #[error("destination `{text}`: the service has no {protocol} port {port}; it has {ports}")]
    ServicePort {
        /// As it was asked for.
        text: String,
        /// The port.
        port: u16,
        /// Of what: `TCP` or `UDP`.
        protocol: &'static str,
        /// Those that there are.
        ports: String,
    },
    /// A service that nobody can dial.
    #[error(
        "destination `{text}`: the agent does nothing for this port: the service has no clusterIP, or none of its \
         endpoints is in the documents, so that it is left to whoever else serves it; its ports are {ports}"
    )]
    NoAddress {
        /// As it was asked for.
        text: String,
        /// Its ports.
        ports: String,
    },
    /// Something else than TCP or UDP.
    #[error("protocol `{0}`: say tcp or udp")]
    Transport(String),
    /// A service or pod of the other address family.
    #[error("destination `{0}`: it has no address of the source's family")]
    Family(String),
}

/// What carries the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

impl Transport {
    /// As events and connections have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// Reads it.
    pub fn read(text: &str) -> Result<Self, Unreadable> {
        let found = [Self::Tcp, Self::Udp].into_iter().find(|one| one.as_str() == text);
        found.ok_or_else(|| Unreadable::Transport(text.to_owned()))
    }
}

/// A connection that somebody might make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Who dials.
    pub source: IpAddr,
    /// From which port; `None`: from any, so that no one connection is meant.
    pub port: Option<u16>,
    /// What is dialled.
    pub destination: SocketAddr,
    /// By what.
    pub protocol: Transport,
}

impl Asked {
    /// Reads the two ends: addresses, or names that the table knows. Where nobody says by what, it is UDP if the table has
    /// the destination for that alone.
    pub fn read(
        source: &str,
        destination: &str,
        protocol: Option<Transport>,
        table: &RoutingTable,
    ) -> Result<Self, Unreadable> {
        let (name, port) = split_port(source);
        let mut sources = match name.parse() {
            Ok(address) => vec![address],
            Err(_) => pod(name, table).map(|pod| pod.addresses.clone()).unwrap_or_default(),
        };
        // IPv4 first.
        sources.sort();
        let first = *sources.first().ok_or_else(|| Unreadable::Source(source.to_owned()))?;
        if let Ok(to) = destination.parse::<SocketAddr>() {
            let of_family = sources.into_iter().find(|from| from.is_ipv4() == to.is_ipv4());
            let source = of_family.ok_or_else(|| Unreadable::Family(destination.to_owned()))?;
            let known = (table.frontends.contains_key(&to), table.datagrams.contains_key(&to));
            return Ok(Self { source, port, destination: to, protocol: inferred(protocol, known) });
        }
        let (name, to_port) =
            destination.rsplit_once(':').ok_or_else(|| Unreadable::Port(destination.to_owned()))?;
        let to_port: u16 = to_port.parse().map_err(|_| Unreadable::Port(destination.to_owned()))?;
        let has = |protocol| !frontends((name, to_port), protocol, table).is_empty();
        let protocol = inferred(protocol, (has(Transport::Tcp), has(Transport::Udp)));
        let service = frontends((name, to_port), protocol, table);
        let pods = pod(name, table).map(|pod| pod.addresses.clone()).unwrap_or_default();
        let dialled = service.into_iter().chain(pods).filter(|to| to.is_ipv4() == first.is_ipv4()).min();
        let to = dialled.ok_or_else(|| undiallable(destination, (name, to_port), protocol, table))?;
        Ok(Self { source: first, port, destination: SocketAddr::new(to, to_port), protocol })
    }
}

/// `known`: whether the table has the destination for TCP, and for UDP.
fn inferred(said: Option<Transport>, known: (bool, bool)) -> Transport {
    let only_datagrams = known == (false, true);
    said.unwrap_or(if only_datagrams { Transport::Udp } else { Transport::Tcp })
}

/// Why a name and port are no destination.
fn undiallable(
    text: &str,
    (name, port): (&str, u16),
    protocol: Transport,
    table: &RoutingTable,
) -> Unreadable {
    let text = text.to_owned();
    if pod(name, table).is_some() || !frontends((name, port), protocol, table).is_empty() {
        return Unreadable::Family(text);
    }
    let (namespace, name) = qualified(name);
    let is = |service: &ObjectName| *service.namespace == *namespace && *service.name == *name;
    let streams = table.clusters.keys().filter(|key| is(&key.service)).map(|key| key.port);
    let datagrams = table.datagrams.values().filter(|one| is(&one.service)).map(|one| one.port);
    let (streams, datagrams): (BTreeSet<u16>, BTreeSet<u16>) = (streams.collect(), datagrams.collect());
    let of_protocol = if protocol == Transport::Udp { &datagrams } else { &streams };
    if streams.is_empty() && datagrams.is_empty() {
        return Unreadable::Destination(text);
    }
    let has = of_protocol.contains(&port);
    let numbers = streams.iter().map(ToString::to_string);
    let ports = numbers.chain(datagrams.iter().map(|port| format!("{port}/udp")));
    let ports = ports.collect::<Vec<_>>().join(", ");
    let protocol = if protocol == Transport::Udp { "UDP" } else { "TCP" };
    if has {
        Unreadable::NoAddress { text, ports }
    } else {
        Unreadable::ServicePort { text, port, protocol, ports }
    }
}

/// A source without its port, where it has one.
fn split_port(source: &str) -> (&str, Option<u16>) {
    if source.parse::<IpAddr>().is_ok() {
        return (source, None);
    }
    match source.rsplit_once(':').map(|(name, port)| (name, port.parse())) {
        Some((name, Ok(port))) => (name.trim_start_matches('[').trim_end_matches(']'), Some(port)),
        _ => (source, None),
    }
}

/// `namespace/name`, `name.namespace` with whatever follows, or a name in the namespace `default`.
fn qualified(name: &str) -> (&str, &str) {
    if let Some((namespace, name)) = name.split_once('/') {
        return (namespace, name);
    }
    let mut labels = name.split('.');
    let first = labels.next().unwrap_or(name);
    (labels.next().unwrap_or("default"), first)
}

fn pod<'a>(name: &str, table: &'a RoutingTable) -> Option<&'a Arc<Workload>> {
    let (namespace, name) = qualified(name);
    table.workloads.values().find(|pod| *pod.name.namespace == *namespace && *pod.name.name == *name)
}

fn frontends((name, port): (&str, u16), protocol: Transport, table: &RoutingTable) -> Vec<IpAddr> {
    let (namespace, name) = qualified(name);
    let is = |service: &ObjectName, of: u16| {
        *service.namespace == *namespace && *service.name == *name && of == port
    };
    match protocol {
        Transport::Tcp => {
            let all = table.frontends.iter();
            all.filter(|(_, one)| is(&one.service, one.port)).map(|(address, _)| address.ip()).collect()
        }
        Transport::Udp => {
            let all = table.datagrams.iter();
            all.filter(|(_, one)| is(&one.service, one.port)).map(|(address, _)| address.ip()).collect()
        }
    }
}
