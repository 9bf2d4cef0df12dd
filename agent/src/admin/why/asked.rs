//! The question: the two ends of a connection, read from addresses or from names that the table knows.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::compile::RoutingTable;
use crate::model::{ObjectName, Workload};

/// A question that cannot be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Neither an address nor a pod.
    #[error("source `{0}`: neither an address nor a pod of the table; say IP, POD or NAMESPACE/POD")]
    Source(String),
    /// A port that is none.
    #[error("{end} `{text}`: the port is not a number from 1 to 65535")]
    BadPort {
        /// `source` or `destination`.
        end: &'static str,
        /// As it was asked for.
        text: String,
    },
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
    /// Whether the table has the service and port that are dialled, but no address of them: the destination stands for
    /// whatever address they have.
    pub unserved: bool,
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
        let (name, port) = split_port(source)?;
        // An IPv4 address in disguise is that address to the programs as well.
        let mut sources = match name.parse::<IpAddr>() {
            Ok(address) => vec![address.to_canonical()],
            Err(_) => pod(name, table).map(|pod| pod.addresses.clone()).unwrap_or_default(),
        };
        // IPv4 first.
        sources.sort();
        let first = *sources.first().ok_or_else(|| Unreadable::Source(source.to_owned()))?;
        if let Ok(to) = destination.parse::<SocketAddr>() {
            let to = SocketAddr::new(to.ip().to_canonical(), proper("destination", destination, to.port())?);
            let of_family = sources.into_iter().find(|from| from.is_ipv4() == to.is_ipv4());
            let source = of_family.ok_or_else(|| Unreadable::Family(destination.to_owned()))?;
            let known = (table.frontends.contains_key(&to), table.datagrams.contains_key(&to));
            let protocol = inferred(protocol, known);
            return Ok(Self { source, port, destination: to, unserved: false, protocol });
        }
        let bare = address_in(destination).is_some();
        let split = destination.rsplit_once(':').filter(|_| !bare);
        let (name, to_port) = split.ok_or_else(|| Unreadable::Port(destination.to_owned()))?;
        let to_port = read_port("destination", destination, to_port)?;
        let has = |protocol| !frontends((name, to_port), protocol, table).is_empty();
        let protocol = inferred(protocol, (has(Transport::Tcp), has(Transport::Udp)));
        let service = frontends((name, to_port), protocol, table);
        let pods = pod(name, table).map(|pod| pod.addresses.clone()).unwrap_or_default();
        let of_family = |to: &IpAddr| to.is_ipv4() == first.is_ipv4();
        let service = service.into_iter().filter(of_family).min();
        // A pod of the service's name is meant only where the service has no such port.
        let dialled = service.or_else(|| pods.into_iter().filter(of_family).min());
        let to = match dialled {
            Some(to) => to,
            None => undialled((destination, first), (name, to_port), protocol, table)?,
        };
        let (destination, unserved) = (SocketAddr::new(to, to_port), dialled.is_none());
        Ok(Self { source: first, port, destination, unserved, protocol })
    }
}

/// `known`: whether the table has the destination for TCP, and for UDP.
fn inferred(said: Option<Transport>, known: (bool, bool)) -> Transport {
    let only_datagrams = known == (false, true);
    said.unwrap_or(if only_datagrams { Transport::Udp } else { Transport::Tcp })
}

/// What stands for the address of a name and port that the table knows without one; else why they are no destination.
fn undialled(
    (text, source): (&str, IpAddr),
    (name, port): (&str, u16),
    protocol: Transport,
    table: &RoutingTable,
) -> Result<IpAddr, Unreadable> {
    let text = text.to_owned();
    if pod(name, table).is_some() || !frontends((name, port), protocol, table).is_empty() {
        return Err(Unreadable::Family(text));
    }
    let (namespace, name) = qualified(name);
    let is = |service: &ObjectName| *service.namespace == *namespace && *service.name == *name;
    let streams = table.clusters.keys().filter(|key| is(&key.service)).map(|key| key.port);
    let datagrams = table.datagrams.values().filter(|one| is(&one.service)).map(|one| one.port);
    let (streams, datagrams): (BTreeSet<u16>, BTreeSet<u16>) = (streams.collect(), datagrams.collect());
    let of_protocol = if protocol == Transport::Udp { &datagrams } else { &streams };
    if streams.is_empty() && datagrams.is_empty() {
        return Err(Unreadable::Destination(text));
    }
    if of_protocol.contains(&port) {
        let v4 = source.is_ipv4();
        return Ok(if v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() });
    }
    let numbers = streams.iter().map(ToString::to_string);
    let ports = numbers.chain(datagrams.iter().map(|port| format!("{port}/udp")));
    let ports = ports.collect::<Vec<_>>().join(", ");
    let protocol = if protocol == Transport::Udp { "UDP" } else { "TCP" };
    Err(Unreadable::ServicePort { text, port, protocol, ports })
}

/// A source without its port, where it has one.
fn split_port(source: &str) -> Result<(&str, Option<u16>), Unreadable> {
    if let Some(address) = address_in(source) {
        return Ok((address, None));
    }
    let Some((name, port)) = source.rsplit_once(':') else { return Ok((source, None)) };
    let port = read_port("source", source, port)?;
    Ok((address_in(name).unwrap_or(name), Some(port)))
}

/// An address alone, in brackets or not.
fn address_in(text: &str) -> Option<&str> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse::<IpAddr>().is_ok().then_some(bare)
}

/// Reads the port of one of the ends.
fn read_port(end: &'static str, text: &str, port: &str) -> Result<u16, Unreadable> {
    proper(end, text, port.parse().unwrap_or(0))
}

/// No connection has port 0.
fn proper(end: &'static str, text: &str, port: u16) -> Result<u16, Unreadable> {
    if port == 0 { Err(Unreadable::BadPort { end, text: text.to_owned() }) } else { Ok(port) }
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
