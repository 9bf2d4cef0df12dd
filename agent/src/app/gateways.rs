//! Gateway listeners: opened and closed on every worker as tables come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::sync::watch;

use crate::compile::{GatewayListener, RoutingTable};
use crate::model::HostPattern;
use crate::net::{ensure_free, gateway_listener};
use crate::proxy::{Command, WorkerHandle};

/// What a socket is bound to: its address (`None`: all) and its port. Not its name, which is that of the first of the
/// Gateway's listeners there: a socket stays open when that one goes and another stays.
type Key = (Option<IpAddr>, u16);

/// The open listeners.
#[derive(Default)]
pub(super) struct Gateways {
    open: BTreeMap<Key, Open>,
}

struct Open {
    address: SocketAddr,
    /// The name that new connections get; dropping it closes the workers' sockets.
    name: watch::Sender<Arc<str>>,
    /// The Gateways' listeners that share the socket.
    listeners: Vec<(Arc<str>, HostPattern)>,
}

/// A listener that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("gateway listener {name}: {}:{port}: {reason}{}", address.map_or("*".to_owned(), |ip| ip.to_string()), hint(reason))]
pub struct ListenerError {
    name: Arc<str>,
    address: Option<IpAddr>,
    port: u16,
    reason: io::Error,
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
        let mut wanted: BTreeMap<Key, &GatewayListener> = BTreeMap::new();
        for gateway in &table.gateways {
            let any = gateway.addresses.is_empty().then_some(None);
            for address in gateway.addresses.iter().copied().map(Some).chain(any) {
                wanted.entry((address, gateway.port)).or_insert(gateway);
            }
        }
        // Workers close their sockets a moment after this: such a port is not somebody else's.
        let ours: BTreeSet<u16> = self.open.keys().map(|(_, port)| *port).collect();
        self.open.retain(|key, open| {
            let stays = wanted.contains_key(key);
            if !stays {
                tracing::info!(gateway = &**open.name.borrow(), address = %open.address, "no longer listening");
            }
            stays
        });
        let mut errors = Vec::new();
        for ((address, port), gateway) in wanted {
            if let Some(open) = self.open.get_mut(&(address, port)) {
                open.rename(gateway);
                continue;
            }
            let free = if ours.contains(&port) { Ok(()) } else { ensure_free(address, port) };
            match free.and_then(|()| open(gateway, address, workers)) {
                Ok(open) => {
                    tracing::info!(gateway = &*gateway.name, address = %open.address, "listening");
                    self.open.insert((address, port), open);
                }
                Err(reason) => {
                    errors.push(ListenerError { name: Arc::clone(&gateway.name), address, port, reason });
                }
            }
        }
        errors
    }

    /// The listeners that are open, by name.
    pub(super) fn addresses(&self) -> Vec<(String, SocketAddr)> {
        let open = self.open.values();
        let mut addresses: Vec<_> = open
            .flat_map(|open| open.listeners.iter().map(|(name, _)| (name.to_string(), open.address)))
            .collect();
        addresses.sort_unstable();
        addresses
    }
}

impl Open {
    fn rename(&mut self, gateway: &GatewayListener) {
        self.listeners.clone_from(&gateway.listeners);
        self.name.send_if_modified(|name| {
            let renamed = *name != gateway.name;
            name.clone_from(&gateway.name);
            renamed
        });
    }
}

fn open(gateway: &GatewayListener, address: Option<IpAddr>, workers: &[WorkerHandle]) -> io::Result<Open> {
    let (name, named) = watch::channel(Arc::clone(&gateway.name));
    let mut bound: Option<SocketAddr> = None;
    // All sockets are bound before any is served: either every worker has one or none.
    let sockets: Vec<_> = workers
        .iter()
        .map(|_| {
            let socket = gateway_listener(address, bound.map_or(gateway.port, |address| address.port()))?;
            bound = Some(socket.local_addr()?);
            Ok(socket)
        })
        .collect::<io::Result<_>>()?;
    for (worker, socket) in workers.iter().zip(sockets) {
        let command = Command::Gateway(socket, named.clone());
        worker.commands.send(command).map_err(|_| io::Error::other("a worker has ended"))?;
    }
    let address = bound.ok_or_else(|| io::Error::other("there is no worker"))?;
    Ok(Open { address, name, listeners: gateway.listeners.clone() })
}
