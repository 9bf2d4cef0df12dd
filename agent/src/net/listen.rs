//! Listeners of Gateways and of the agent itself.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 4096;

/// Listens on a port of a Gateway. Each worker has its own socket on it (`SO_REUSEPORT`). Without an address it takes both
/// families on all of the node's.
pub fn gateway_listener(address: Option<IpAddr>, port: u16) -> io::Result<TcpListener> {
    let socket = bind_gateway(address, port, true)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn bind_gateway(address: Option<IpAddr>, port: u16, shared: bool) -> io::Result<Socket> {
    let bind = |ip: IpAddr| {
        let address = SocketAddr::new(ip, port);
        let socket =
            Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(shared)?;
        if address.is_ipv6() {
            socket.set_only_v6(ip != IpAddr::V6(Ipv6Addr::UNSPECIFIED))?;
        }
        socket.bind(&address.into())?;
        Ok(socket)
    };
    match address {
        Some(ip) => bind(ip),
        // A node without IPv6 has no `::` to bind.
        None => bind(Ipv6Addr::UNSPECIFIED.into()).or_else(|error: io::Error| {
            if lacks_ipv6(&error) { bind(Ipv4Addr::UNSPECIFIED.into()) } else { Err(error) }
        }),
    }
}

/// Fails where somebody listens on a port already. `SO_REUSEPORT` would share it with any process of the same user, and each
/// would get a part of the connections.
pub fn ensure_free(address: Option<IpAddr>, port: u16) -> io::Result<()> {
    bind_gateway(address, port, false).map(drop)
}

/// Binds an address of the agent's own; on a node without IPv6, `[::]` means all of IPv4.
pub fn server_listener(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address).or_else(|error| match ipv4_instead(address, &error) {
        Some(address) => TcpListener::bind(address),
        None => Err(error),
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn ipv4_instead(address: SocketAddr, error: &io::Error) -> Option<SocketAddr> {
    let all = address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    (all && lacks_ipv6(error)).then(|| SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()))
}

/// Whether a socket failed because the node has no IPv6: the family is not there, or has no address.
pub fn lacks_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_ipv6_all_addresses_are_those_of_ipv4() {
        let cases = [
            ("[::]:15020", libc::EAFNOSUPPORT, Some("0.0.0.0:15020")),
            ("[::]:15020", libc::EADDRNOTAVAIL, Some("0.0.0.0:15020")),
            ("[::]:15020", libc::EADDRINUSE, None),
            ("[::1]:15020", libc::EAFNOSUPPORT, None),
            ("0.0.0.0:15020", libc::EADDRNOTAVAIL, None),
        ];
        for (address, errno, expected) in cases {
            let instead = ipv4_instead(address.parse().unwrap(), &io::Error::from_raw_os_error(errno));
            assert_eq!(instead, expected.map(|text| text.parse().unwrap()), "{address} {errno}");
        }
    }
}
