//! The sockets of capture: listeners that take connections meant for others, and a connector that speaks as the pod.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;

use super::plumbing::{LISTEN_ADDRESSES, has_ipv6};
use super::{CaptureError, LocalAddresses};
use crate::net::{ConnectSource, ConnectTarget, Connector, keepalive};

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 4096;
/// Source ports of spoofed connections: above the kernel's own ephemeral range (32768-60999), so that a pod's address and
/// port never meet a live port of the pod itself.
const SPOOFED_PORTS: std::ops::RangeInclusive<u16> = 61000..=65535;
/// How many ports are tried where the kernel can't choose within the range by itself (before 6.3).
const PORT_TRIES: u32 = 64;
/// How often a pod's address is tried with another port, before the node's own speaks in its place: a destination that is
/// dialled often holds many ports by what is remembered of its last connections.
const SPOOFED_TRIES: u32 = 16;

/// One worker's listeners, one per family that the node has. On loopback: the kernel programs assign packets to them whatever address they
/// are bound to, and nothing else shall reach them.
#[derive(Debug)]
pub struct CaptureListeners {
    /// For what pods dial: the IPv4 one and, where the node has IPv6, that one.
    pub sockets: Vec<Socket>,
    /// For what is sent to pods, likewise.
    pub inbound: Vec<Socket>,
    /// For tunnels to pods, likewise; none where there are no certificates.
    pub tunnels: Vec<Socket>,
}

impl CaptureListeners {
    /// Binds those for one direction on the same port; 0 takes a free one.
    pub fn bind(
        [outbound_port, inbound_port]: [u16; 2],
        tunnel_port: Option<u16>,
        own_mark: u32,
    ) -> Result<Self, CaptureError> {
        let families = &LISTEN_ADDRESSES[..if has_ipv6() { 2 } else { 1 }];
        let bind = |port, flag| {
            let bind = |address: &IpAddr| listener(SocketAddr::new(*address, port), own_mark, flag);
            families.iter().map(bind).collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            sockets: bind(outbound_port, "--outbound-port")?,
            inbound: bind(inbound_port, "--inbound-port")?,
            tunnels: tunnel_port.map(|port| bind(port, "--tunnel-port")).transpose()?.unwrap_or_default(),
        })
    }

    /// Whether both families are listened for.
    pub fn has_ipv6(&self) -> bool {
        self.sockets.len() == LISTEN_ADDRESSES.len()
    }

    /// Where they listen.
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.sockets
            .iter()
            .map(|s| s.local_addr()?.as_socket().ok_or(io::ErrorKind::Unsupported.into()))
            .collect()
    }
}

/// `flag`: what sets the port.
fn listener(address: SocketAddr, own_mark: u32, flag: &'static str) -> Result<Socket, CaptureError> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))
        .map_err(CaptureError::listener("opening a socket"))?;
    socket.set_reuse_address(true).map_err(CaptureError::listener("setting SO_REUSEADDR"))?;
    if address.is_ipv6() {
        socket.set_only_v6(true).map_err(CaptureError::listener("setting IPV6_V6ONLY"))?;
    }
    // No SO_REUSEPORT: 6.1 refuses to assign such a listener, later kernels pick another one of the group.
    set_transparent(&socket, address).map_err(CaptureError::listener("setting IP_TRANSPARENT"))?;
    socket.set_mark(own_mark).map_err(CaptureError::listener("setting SO_MARK"))?;
    socket.bind(&address.into()).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => CaptureError::PortTaken { address, flag },
        _ => CaptureError::Listener { doing: "binding", source },
    })?;
    socket.listen(BACKLOG).map_err(CaptureError::listener("listening"))?;
    Ok(socket)
}

/// Connects with the pod's own address as the source, wherever that can work.
#[derive(Debug)]
pub struct SpoofingConnector {
    own_mark: u32,
    local: LocalAddresses,
    next_port: AtomicU32,
    kernel_chooses: bool,
}

impl SpoofingConnector {
    /// `seed` spreads the source ports of several workers.
    pub fn new(own_mark: u32, local: LocalAddresses, seed: u32) -> Self {
        let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
        Self { own_mark, local, next_port: AtomicU32::new(seed), kernel_chooses: has_spoofed_ports(&range) }
    }

    /// The source to bind. None towards the node itself and towards the pod itself: the reply to a pod's address would
    /// be sent to the pod there, past the agent.
    fn source(&self, target: ConnectTarget) -> Option<IpAddr> {
        let ConnectSource::Pod(source) = target.source else { return None };
        let destination = target.address.ip();
        let returns = source.is_ipv4() == destination.is_ipv4()
            && source != destination
            && !self.local.load().contains(&destination);
        returns.then_some(source)
    }

    async fn connect_as(&self, target: ConnectTarget, source: Option<IpAddr>) -> io::Result<TcpStream> {
        let socket = self.open(target, source)?;
        crate::net::finish_connect(socket, target.address).await
    }

    fn open(&self, target: ConnectTarget, source: Option<IpAddr>) -> io::Result<Socket> {
        let domain = Domain::for_address(target.address);
        let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        if target.source != ConnectSource::Translated {
            socket.set_mark(self.own_mark)?;
        }
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_keepalive(&keepalive())?;
        if let Some(source) = source {
            set_transparent(&socket, target.address)?;
            self.bind_spoofed(&socket, source)?;
        }
        Ok(socket)
    }

    fn bind_spoofed(&self, socket: &Socket, source: IpAddr) -> io::Result<()> {
        if self.kernel_chooses && set_port_range(socket.as_raw_fd()).is_ok() {
            // The port is chosen at connect, unique by both ends and not by the source alone.
            set_option(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
            return socket.bind(&SocketAddr::new(source, 0).into());
        }
        socket.set_reuse_address(true)?;
        let range = u32::from(SPOOFED_PORTS.end() - SPOOFED_PORTS.start()) + 1;
        let mut last = io::ErrorKind::AddrInUse.into();
        for _ in 0..PORT_TRIES {
            let offset = self.next_port.fetch_add(1, Ordering::Relaxed) % range;
            let port = SPOOFED_PORTS.start() + u16::try_from(offset).expect("the offset is below the range");
            match socket.bind(&SocketAddr::new(source, port).into()) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = error,
                result => return result,
            }
        }
        Err(last)
    }
}

impl Connector for SpoofingConnector {
    fn connect(&self, target: ConnectTarget) -> Pin<Box<dyn Future<Output = io::Result<TcpStream>> + '_>> {
        Box::pin(async move {
            if let Some(source) = self.source(target) {
                for _ in 0..SPOOFED_TRIES {
                    match self.connect_as(target, Some(source)).await {
                        Err(error) if no_port(&error) => {}
                        result => return result,
                    }
                }
                tracing::debug!(%source, address = %target.address, "no source port left; connecting as the node");
            }
            self.connect_as(target, None).await
        })
    }
}

/// Whether the ends of a connection are all taken. Where the port is chosen before the connect, another one may do.
fn no_port(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse)
}

#[expect(unsafe_code, reason = "IPV6_TRANSPARENT has no safe wrapper")]
fn set_option(fd: RawFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<i32>()).expect("four bytes fit");
    // SAFETY: the option's value is an int that outlives the call.
    let result = unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn set_transparent(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    match address {
        SocketAddr::V4(_) => set_option(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_TRANSPARENT, 1),
        SocketAddr::V6(_) => set_option(socket.as_raw_fd(), libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT, 1),
    }
}

/// Whether a socket's own range counts: the kernel takes it for a part of the namespace's (`ip_local_port_range`), and passes
/// over what is outside of that.
fn has_spoofed_ports(namespace: &str) -> bool {
    let mut ends = namespace.split_whitespace().map_while(|word| word.parse::<u16>().ok());
    let (Some(low), Some(high)) = (ends.next(), ends.next()) else { return false };
    low <= *SPOOFED_PORTS.start() && *SPOOFED_PORTS.end() <= high
}

/// `IP_LOCAL_PORT_RANGE` (6.3): low port in the lower half, high port in the upper; IPv6 sockets have it too.
pub(super) fn set_port_range(fd: RawFd) -> io::Result<()> {
    const IP_LOCAL_PORT_RANGE: i32 = 51;
    let range = u32::from(*SPOOFED_PORTS.end()) << 16 | u32::from(*SPOOFED_PORTS.start());
    set_option(fd, libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE, range.cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_outside_the_namespaces_own_is_not_left_to_the_kernel() {
        for (namespace, expected) in [
            ("32768\t60999\n", false),
            ("1024\t65535\n", true),
            ("61001 65535", false),
            ("", false),
            ("a b", false),
        ] {
            assert_eq!(has_spoofed_ports(namespace), expected, "{namespace:?}");
        }
    }

    #[test]
    fn only_a_lack_of_ports_is_answered_with_another() {
        for (errno, expected) in [
            (libc::EADDRNOTAVAIL, true),
            (libc::EADDRINUSE, true),
            (libc::ECONNREFUSED, false),
            (libc::EHOSTUNREACH, false),
            (libc::EPERM, false),
        ] {
            assert_eq!(no_port(&io::Error::from_raw_os_error(errno)), expected, "{errno}");
        }
    }

    #[test]
    fn pods_are_spoken_for_only_where_the_reply_comes_back() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let local = LocalAddresses::default();
        local.store(std::sync::Arc::new(vec![ip("10.88.0.1")]));
        let connector = SpoofingConnector::new(1, local, 0);
        let pod = ConnectSource::Pod(ip("10.10.1.1"));
        let cases = [
            (pod, "10.10.1.2:80", true),
            (pod, "10.10.1.1:80", false),
            (pod, "10.88.0.1:80", false),
            (pod, "[fd00::1]:80", false),
            (ConnectSource::Node, "10.10.1.2:80", false),
            (ConnectSource::Translated, "10.10.1.2:80", false),
        ];
        for (source, address, expected) in cases {
            let target = ConnectTarget { address: address.parse().unwrap(), source };
            assert_eq!(connector.source(target).is_some(), expected, "{target:?}");
        }
    }
}
