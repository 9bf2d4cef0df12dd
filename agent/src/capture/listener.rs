//! The sockets of capture: listeners that take connections meant for others, and a connector that speaks as the pod.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
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
/// Source ports of spoofed connections, and how many are tried of each range before the next. All are outside the kernel's own
/// ephemeral range (32768-60999), so that a pod's address and port never meet a live port of the pod itself. Servers of the node
/// have ports of the second range, so it is for what finds none in the first: a port is taken for a destination by each connection
/// that is open, and for a minute after the agent closed one first.
const SPOOFED_PORTS: [PortRange; 2] =
    [PortRange { first: 61000, last: 65535, tries: 8 }, PortRange { first: 10000, last: 29999, tries: 64 }];

/// Ports, and how many of them are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PortRange {
    first: u16,
    last: u16,
    tries: u32,
}

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
    /// Ports are taken in order, so that those of the last connections rest; from one that is taken the way goes on anywhere, as
    /// its neighbours are taken as well: workers would follow each other.
    next_port: AtomicU32,
    scatter: RandomState,
    /// The kernel's ephemeral ports; `None`: they can't be read.
    namespace: Option<RangeInclusive<u16>>,
}

impl SpoofingConnector {
    /// `seed` spreads the source ports of several workers.
    pub fn new(own_mark: u32, local: LocalAddresses, seed: u32) -> Self {
        let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
        let (next_port, scatter) = (AtomicU32::new(seed), RandomState::new());
        Self { own_mark, local, next_port, scatter, namespace: ephemeral_ports(&range) }
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

    async fn connect_as(
        &self,
        target: ConnectTarget,
        source: Option<(IpAddr, PortRange)>,
    ) -> io::Result<TcpStream> {
        let socket = self.open(target, source)?;
        crate::net::finish_connect(socket, target.address).await
    }

    fn open(&self, target: ConnectTarget, source: Option<(IpAddr, PortRange)>) -> io::Result<Socket> {
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

    fn bind_spoofed(&self, socket: &Socket, (source, range): (IpAddr, PortRange)) -> io::Result<()> {
        if self.kernel_chooses(range) && set_port_range(socket.as_raw_fd(), range).is_ok() {
            // The port is chosen at connect, unique by both ends and not by the source alone.
            set_option(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
            return socket.bind(&SocketAddr::new(source, 0).into());
        }
        socket.set_reuse_address(true)?;
        let port = range.port(self.next_port.fetch_add(1, Ordering::Relaxed));
        socket.bind(&SocketAddr::new(source, port).into())
    }

    /// Whether a socket's own range counts: the kernel takes it for a part of the namespace's (`ip_local_port_range`), and passes
    /// over what is outside of that.
    fn kernel_chooses(&self, range: PortRange) -> bool {
        let has = |own: &RangeInclusive<u16>| own.contains(&range.first) && own.contains(&range.last);
        self.namespace.as_ref().is_some_and(has)
    }

    /// Connects from any port of a range that is free for the destination; the error of the last one where none was found.
    async fn connect_from(
        &self,
        target: ConnectTarget,
        source: (IpAddr, PortRange),
    ) -> io::Result<TcpStream> {
        let tries = if self.kernel_chooses(source.1) { 1 } else { source.1.tries };
        let mut last = io::ErrorKind::AddrNotAvailable.into();
        for _ in 0..tries {
            match self.connect_as(target, Some(source)).await {
                Err(error) if no_port(&error) => last = error,
                result => return result,
            }
            let elsewhere = self.scatter.hash_one(self.next_port.load(Ordering::Relaxed)) >> u32::BITS;
            self.next_port.store(u32::try_from(elsewhere).unwrap_or_default(), Ordering::Relaxed);
        }
        Err(last)
    }
}

impl Connector for SpoofingConnector {
    /// Fails where a pod has no port left for the destination: to speak as the node in its place would be held to the rules of
    /// another.
    fn connect(&self, target: ConnectTarget) -> Pin<Box<dyn Future<Output = io::Result<TcpStream>> + '_>> {
        Box::pin(async move {
            let Some(source) = self.source(target) else { return self.connect_as(target, None).await };
            let [first, second] = SPOOFED_PORTS;
            match self.connect_from(target, (source, first)).await {
                Err(error) if no_port(&error) => self.connect_from(target, (source, second)).await,
                result => result,
            }
        })
    }
}

impl PortRange {
    /// The port at a place, counted around.
    fn port(self, place: u32) -> u16 {
        let ports = u32::from(self.last - self.first) + 1;
        self.first + u16::try_from(place % ports).expect("less than the range has")
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

/// The ports of `ip_local_port_range`.
fn ephemeral_ports(range: &str) -> Option<RangeInclusive<u16>> {
    let mut ends = range.split_whitespace().map_while(|word| word.parse::<u16>().ok());
    Some(ends.next()?..=ends.next()?)
}

/// Whether the kernel knows `IP_LOCAL_PORT_RANGE`.
pub(super) fn has_port_range(fd: RawFd) -> bool {
    set_port_range(fd, SPOOFED_PORTS[0]).is_ok()
}

/// `IP_LOCAL_PORT_RANGE` (6.3): low port in the lower half, high port in the upper; IPv6 sockets have it too.
fn set_port_range(fd: RawFd, range: PortRange) -> io::Result<()> {
    const IP_LOCAL_PORT_RANGE: i32 = 51;
    let range = u32::from(range.last) << 16 | u32::from(range.first);
    set_option(fd, libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE, range.cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_outside_the_namespaces_own_is_not_left_to_the_kernel() {
        for (namespace, expected) in [
            ("32768\t60999\n", [false, false]),
            ("1024\t65535\n", [true, true]),
            ("61001 65535", [false, false]),
            ("61000 65535", [true, false]),
            ("", [false, false]),
            ("a b", [false, false]),
        ] {
            let mut connector = SpoofingConnector::new(1, LocalAddresses::default(), 0);
            connector.namespace = ephemeral_ports(namespace);
            let chooses = SPOOFED_PORTS.map(|range| connector.kernel_chooses(range));
            assert_eq!(chooses, expected, "{namespace:?}");
        }
    }

    #[test]
    fn ports_go_around_their_range() {
        let [first, second] = SPOOFED_PORTS;
        for (place, expected) in [(0, 61000), (4535, 65535), (4536, 61000), (u32::MAX, 62263)] {
            assert_eq!(first.port(place), expected, "{place}");
        }
        assert_eq!((second.port(19_999), second.port(20_000)), (29_999, 10_000));
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
