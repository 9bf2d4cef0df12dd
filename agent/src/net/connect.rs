//! Dialling.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;

use tokio::net::TcpStream;

/// Where to connect and as whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectTarget {
    /// The endpoint.
    pub address: SocketAddr,
    /// The address that the endpoint shall see: the captured pod's own. `None`: the node's.
    pub source: Option<IpAddr>,
}

/// Opens upstream connections. One implementation binds pods' addresses, one does not; tests have their own.
pub trait Connector: std::fmt::Debug {
    /// Connects, without a deadline of its own. `TCP_NODELAY` is set.
    fn connect(&self, target: ConnectTarget) -> Pin<Box<dyn Future<Output = io::Result<TcpStream>> + '_>>;
}
