//! Dialling.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::TcpStream;

use super::Relayed;
use crate::model::GatewayKey;

/// Where to connect and as whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectTarget {
    /// The endpoint.
    pub address: SocketAddr,
    /// As whom.
    pub source: ConnectSource,
}

/// Whom an endpoint shall see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConnectSource {
    /// A captured pod, by its own address.
    Pod(IpAddr),
    /// The node.
    Node,
    /// A Gateway: the node where it is told by addresses alone, the Gateway's own identity in a tunnel.
    Gateway(GatewayKey),
    /// The node, as any of its processes: the address may be one that only the node's NAT understands, which never sees
    /// the packets of the agent's other connections.
    Translated,
}

/// Opens upstream connections. One implementation binds pods' addresses, one does not; tests have their own.
pub trait Connector: std::fmt::Debug {
    /// Connects, without a deadline of its own. `TCP_NODELAY` is set.
    fn connect(&self, target: ConnectTarget) -> Pin<Box<dyn Future<Output = io::Result<TcpStream>> + '_>>;

    /// The same for who only relays, and need not have a socket.
    fn open(&self, target: ConnectTarget) -> Pin<Box<dyn Future<Output = io::Result<Line>> + '_>> {
        Box::pin(async move { self.connect(target).await.map(Line::Socket) })
    }
}

/// The way to an endpoint.
#[derive(Debug)]
pub enum Line {
    /// A connection.
    Socket(TcpStream),
    /// A stream of a connection that others share.
    Stream(Box<dyn SharedStream>),
}

/// A stream of a connection that others share.
pub trait SharedStream: std::fmt::Debug {
    /// Sends what has been read of the client already, then copies as [`super::relay`] does.
    fn relay<'a>(
        self: Box<Self>,
        downstream: &'a mut TcpStream,
        read: Bytes,
        stop: Pin<Box<dyn Future<Output = ()> + 'a>>,
    ) -> Pin<Box<dyn Future<Output = Relayed> + 'a>>;
}

/// Idle connections are probed after three minutes, then every 15 seconds, and given up after nine probes: dead peers go,
/// silent ones stay.
pub fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(Duration::from_mins(3))
        .with_interval(Duration::from_secs(15))
        .with_retries(9)
}

/// Connects from the node's own address; whoever a target's source is.
#[derive(Debug, Default)]
pub struct PlainConnector;

impl Connector for PlainConnector {
    fn connect(&self, target: ConnectTarget) -> Pin<Box<dyn Future<Output = io::Result<TcpStream>> + '_>> {
        Box::pin(async move {
            let domain = Domain::for_address(target.address);
            let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
            socket.set_tcp_nodelay(true)?;
            socket.set_tcp_keepalive(&keepalive())?;
            finish_connect(socket, target.address).await
        })
    }
}

/// Connects a prepared non-blocking socket and waits until that has succeeded or failed.
pub async fn finish_connect(socket: Socket, address: SocketAddr) -> io::Result<TcpStream> {
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
        _ => {}
    }
    let stream = TcpStream::from_std(socket.into())?;
    stream.writable().await?;
    match stream.take_error()? {
        Some(error) => Err(error),
        None => Ok(stream),
    }
}
