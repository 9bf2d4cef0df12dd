//! Gateway listeners: opened and closed on every worker as tables come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::sync::watch;

use crate::compile::RoutingTable;
use crate::net::gateway_listener;
use crate::proxy::{Command, WorkerHandle};

/// What a socket is for: the listener's name, its address (`None`: all) and its port.
type Key = (Arc<str>, Option<IpAddr>, u16);

/// The open listeners.
#[derive(Default)]
pub(super) struct Gateways {
    open: BTreeMap<Key, Open>,
}

struct Open {
    address: SocketAddr,
    /// Dropping it closes the workers' sockets.
    _until: watch::Sender<()>,
}

/// A listener that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("gateway listener {name}: {}:{port}: {source}{}", address.map_or("*".to_owned(), |ip| ip.to_string()), hint(source))]
pub struct ListenerError {
    name: Arc<str>,
    address: Option<IpAddr>,
    port: u16,
    source: io::Error,
}

impl ListenerError {
    /// The listener's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; another process has the port",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need CAP_NET_BIND_SERVICE",
        io::ErrorKind::AddrNotAvailable => "; the address is not one of this node's",
        _ => "",
    }
}

impl Gateways {
    /// Opens what the table adds and closes what it no longer has. Errors leave the other listeners as they should be.
    pub(super) fn reconcile(&mut self, table: &RoutingTable, workers: &[WorkerHandle]) -> Vec<ListenerError> {
        let wanted: BTreeSet<Key> = table
            .gateways
            .iter()
            .flat_map(|gateway| {
                let one = |address| (Arc::clone(&gateway.name), address, gateway.port);
                if gateway.addresses.is_empty() {
                    vec![one(None)]
                } else {
                    gateway.addresses.iter().map(|address| one(Some(*address))).collect()
                }
            })
            .collect();
        self.open.retain(|key, _| wanted.contains(key));
        let missing: Vec<Key> = wanted.into_iter().filter(|key| !self.open.contains_key(key)).collect();
        let mut errors = Vec::new();
        for (name, address, port) in missing {
            match open(&name, address, port, workers) {
                Ok(open) => {
                    tracing::info!(gateway = &*name, address = %open.address, "listening");
                    self.open.insert((name, address, port), open);
                }
                Err(source) => errors.push(ListenerError { name, address, port, source }),
            }
        }
        errors
    }

    /// The open listeners by name.
    pub(super) fn addresses(&self) -> Vec<(String, SocketAddr)> {
        self.open.iter().map(|((name, ..), open)| (name.to_string(), open.address)).collect()
    }
}

fn open(name: &Arc<str>, address: Option<IpAddr>, port: u16, workers: &[WorkerHandle]) -> io::Result<Open> {
    let (until, closed) = watch::channel(());
    let mut bound: Option<SocketAddr> = None;
    // All sockets are bound before any is served: either every worker has one or none.
    let sockets: Vec<_> = workers
        .iter()
        .map(|_| {
            let socket = gateway_listener(address, bound.map_or(port, |address| address.port()))?;
            bound = Some(socket.local_addr()?);
            Ok(socket)
        })
        .collect::<io::Result<_>>()?;
    for (worker, socket) in workers.iter().zip(sockets) {
        let command = Command::Gateway(Arc::clone(name), socket, closed.clone());
        worker.commands.send(command).map_err(|_| io::Error::other("a worker has ended"))?;
    }
    let address = bound.ok_or_else(|| io::Error::other("there is no worker"))?;
    Ok(Open { address, _until: until })
}
