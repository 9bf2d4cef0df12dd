//! Gateway listeners.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 4096;

/// Binds a port of a Gateway. Each worker has its own socket on it (`SO_REUSEPORT`). Without an address it takes both
/// families on all of the node's.
pub fn gateway_listener(address: Option<IpAddr>, port: u16) -> io::Result<TcpListener> {
    let bind = |ip: IpAddr| {
        let address = SocketAddr::new(ip, port);
        let socket =
            Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(ip != IpAddr::V6(Ipv6Addr::UNSPECIFIED))?;
        }
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    match address {
        Some(ip) => bind(ip),
        // A node without IPv6 has no `::` to bind.
        None => bind(Ipv6Addr::UNSPECIFIED.into()).or_else(|error: io::Error| match error.raw_os_error() {
            Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL) => bind(std::net::Ipv4Addr::UNSPECIFIED.into()),
            _ => Err(error),
        }),
    }
}
