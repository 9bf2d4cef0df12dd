//! Two connected sockets within the agent: one end is a stream of a tunnel, the other what proxies take for a connection.
//!
//! TCP on loopback, because both halves of a close and a reset go through it as through any other connection.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use crate::net::finish_connect;

/// Strangers that may get in between; each has to guess the port while it listens.
const STRANGERS_MAX: usize = 8;

/// Makes a pair. Within a tokio runtime.
pub async fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = open()?;
    // A port is no scarce thing here: what the last pair's end left behind does not hold it.
    listener.set_reuse_address(true)?;
    listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    listener.listen(1)?;
    let listener = TcpListener::from_std(listener.into())?;
    let address = listener.local_addr()?;
    let near = open()?;
    near.set_tcp_nodelay(true)?;
    let near = finish_connect(near, address).await?;
    let own = near.local_addr()?;
    for _ in 0..STRANGERS_MAX {
        let (far, from) = listener.accept().await?;
        if from == own {
            far.set_nodelay(true)?;
            return Ok((near, far));
        }
    }
    Err(io::ErrorKind::ConnectionRefused.into())
}

fn open() -> io::Result<Socket> {
    Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), Some(Protocol::TCP))
}
