//! The question: the two ends of a connection, read from addresses or from names that the table knows.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::compile::{Frontend, RoutingTable};
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
    #[error("destination `{text}`: the service has no port {port}; it has {ports}")]
    ServicePort {
        /// As it was asked for.
        text: String,
        /// The port.
        port: u16,
        /// Those that there are.
        ports: String,
    },
    /// A service that nobody can dial.
    #[error(
        "destination `{text}`: the service has neither a clusterIP nor endpoints to be dialled by their own addresses; \
         its ports are {ports}"
    )]
    NoAddress {
        /// As it was asked for.
        text: String,
        /// Its ports.
        ports: String,
    },
    /// A service or pod of the other address family.
    #[error("destination `{0}`: it has no address of the source's family")]
    Family(String),
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
}

impl Asked {
    /// Reads the two ends: addresses, or names that the table knows.
    pub fn read(source: &str, destination: &str, table: &RoutingTable) -> Result<Self, Unreadable> {
        let v4_first = |mut addresses: Vec<IpAddr>| {
            addresses.sort();
            addresses.first().copied()
        };
        let (name, own_port) = split_port(source);
        let from = match name.parse() {
            Ok(address) => address,
            Err(_) => pod(name, table)
                .and_then(|pod| v4_first(pod.addresses.clone()))
                .ok_or_else(|| Unreadable::Source(source.to_owned()))?,
        };
        if let Ok(destination) = destination.parse() {
            return Ok(Self { source: from, port: own_port, destination });
        }
        let (name, port) =
            destination.rsplit_once(':').ok_or_else(|| Unreadable::Port(destination.to_owned()))?;
        let port: u16 = port.parse().map_err(|_| Unreadable::Port(destination.to_owned()))?;
        let service = frontends(name, port, table);
        let pods = pod(name, table).map(|pod| pod.addresses.clone()).unwrap_or_default();
        let dialled = service.into_iter().chain(pods).filter(|to| to.is_ipv4() == from.is_ipv4()).min();
        let to = dialled.ok_or_else(|| undiallable(destination, (name, port), table))?;
        Ok(Self { source: from, port: own_port, destination: SocketAddr::new(to, port) })
    }
}

/// Why a name and port are no destination.
fn undiallable(text: &str, (name, port): (&str, u16), table: &RoutingTable) -> Unreadable {
    let text = text.to_owned();
    if pod(name, table).is_some() || !frontends(name, port, table).is_empty() {
        return Unreadable::Family(text);
    }
    let (namespace, name) = qualified(name);
    let is = |service: &ObjectName| *service.namespace == *namespace && *service.name == *name;
    let ports: BTreeSet<u16> =
        table.clusters.keys().filter(|key| is(&key.service)).map(|key| key.port).collect();
    if ports.is_empty() {
        return Unreadable::Destination(text);
    }
    let has = ports.contains(&port);
    let ports = ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if has { Unreadable::NoAddress { text, ports } } else { Unreadable::ServicePort { text, port, ports } }
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

fn frontends(name: &str, port: u16, table: &RoutingTable) -> Vec<IpAddr> {
    let (namespace, name) = qualified(name);
    let is = |frontend: &Frontend| {
        *frontend.service.namespace == *namespace && *frontend.service.name == *name && frontend.port == port
    };
    table.frontends.iter().filter(|(_, frontend)| is(frontend)).map(|(address, _)| address.ip()).collect()
}
