//! The client connections of one worker that are open: who dialled what, what is spoken, and where it leads.
//!
//! The worker writes when a connection comes, when it is known what it is, and when it goes; never for a request. Whoever
//! wants to see them copies a piece at a time, so that the worker waits for no more than that.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::net::has_waiting;
use crate::telemetry::Origin;

/// How many connections are copied before the worker may write again.
const PIECE: usize = 256;

/// What is spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Nothing has told it yet.
    Undecided,
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2, gRPC among it.
    Http2,
    /// Bytes.
    Opaque,
    /// What HTTP/1.1 was switched to, WebSocket for instance.
    Tunnel,
}

impl Protocol {
    /// The name that is shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Undecided => "undecided",
            Self::Http1 => "http/1",
            Self::Http2 => "http/2",
            Self::Opaque => "opaque",
            Self::Tunnel => "tunnel",
        }
    }
}

/// A connection, as it was when it was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenConnection {
    /// The client.
    pub peer: SocketAddr,
    /// What the client dialled.
    pub original_destination: SocketAddr,
    /// Where its bytes go, where all of them go to one place.
    pub endpoint: Option<SocketAddr>,
    /// Where it entered.
    pub origin: Origin,
    /// What is spoken.
    pub protocol: Protocol,
    /// When it came, to the millisecond.
    pub since: SystemTime,
}

/// The connections of one worker.
#[derive(Debug, Default)]
pub struct OpenConnections {
    /// Those that are counted against limits; a drain waits for them.
    count: AtomicUsize,
    slots: Mutex<Slots>,
    /// The listeners of what is captured, while somebody accepts on them.
    listeners: Mutex<Vec<RawFd>>,
}

/// A listener that is looked at, until this is dropped.
#[derive(Debug)]
pub(super) struct Watched {
    open: Arc<OpenConnections>,
    listener: RawFd,
}

impl Drop for Watched {
    fn drop(&mut self) {
        lock(&self.open.listeners).retain(|listener| *listener != self.listener);
    }
}

impl OpenConnections {
    /// Looks at a listener's queue from now on. It is dropped before the listener is.
    pub(super) fn watch(self: &Arc<Self>, listener: &impl AsRawFd) -> Watched {
        let listener = listener.as_raw_fd();
        lock(&self.listeners).push(listener);
        Watched { open: Arc::clone(self), listener }
    }

    /// Whether captured connections wait to be accepted.
    pub fn have_waiting(&self) -> bool {
        lock(&self.listeners).iter().any(|listener| has_waiting(*listener))
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Default)]
struct Slots {
    slots: Vec<Slot>,
    /// The first free one; as many as there are where none is.
    free: u32,
}

#[derive(Debug)]
enum Slot {
    /// The next free one.
    Free(u32),
    Taken(Entry),
}

/// As little as will do: there are as many as connections.
#[derive(Debug)]
struct Entry {
    peer: Address,
    destination: Address,
    /// Port 0: none.
    endpoint: Address,
    protocol: Protocol,
    /// Where it was captured, unless a Gateway accepted it.
    captured: Direction,
    since_ms: u64,
    gateway: Option<Arc<str>>,
}

const _: () = assert!(size_of::<Slot>() <= 88);

/// An [`Origin`] without a name.
#[derive(Debug, Clone, Copy)]
enum Direction {
    Outbound,
    Inbound,
    Tunnel,
}

/// An address without what only IPv6 sockets have beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Address {
    ip: [u8; 16],
    port: u16,
}

impl Address {
    const NONE: Self = Self { ip: [0; 16], port: 0 };

    fn read(self) -> SocketAddr {
        SocketAddr::new(IpAddr::V6(Ipv6Addr::from(self.ip)).to_canonical(), self.port)
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        let ip = match address.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        Self { ip: ip.octets(), port: address.port() }
    }
}

impl OpenConnections {
    /// Counts one more.
    pub fn enter(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one less.
    pub fn leave(&self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Shows a connection for as long as the answer lives.
    pub fn show(
        self: &Arc<Self>,
        peer: SocketAddr,
        destination: SocketAddr,
        (origin, since): (&Origin, SystemTime),
    ) -> Shown {
        let since = since.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let entry = Entry {
            peer: peer.into(),
            destination: destination.into(),
            endpoint: Address::NONE,
            protocol: Protocol::Undecided,
            captured: match origin {
                Origin::Outbound | Origin::Gateway(_) => Direction::Outbound,
                Origin::Inbound => Direction::Inbound,
                Origin::Tunnel(_) => Direction::Tunnel,
            },
            since_ms: u64::try_from(since).unwrap_or(u64::MAX),
            gateway: match origin {
                Origin::Outbound | Origin::Inbound | Origin::Tunnel(_) => None,
                Origin::Gateway(name) => Some(Arc::clone(name)),
            },
        };
        Shown { slot: self.slots().take(entry), open: Arc::clone(self) }
    }

    /// Copies all, a piece at a time: each was open at some moment of the copying.
    pub fn copy(&self) -> Vec<OpenConnection> {
        let mut copied = Vec::new();
        let mut next = 0;
        loop {
            let slots = self.slots();
            let Some(rest) = slots.slots.get(next..).filter(|rest| !rest.is_empty()) else { return copied };
            let piece = &rest[..rest.len().min(PIECE)];
            copied.extend(piece.iter().filter_map(|slot| match slot {
                Slot::Taken(entry) => Some(entry.read()),
                Slot::Free(_) => None,
            }));
            next += piece.len();
        }
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        lock(&self.slots)
    }
}

impl Slots {
    fn take(&mut self, entry: Entry) -> u32 {
        let slot = self.free;
        if let Some(free) = self.slots.get_mut(slot as usize) {
            if let Slot::Free(next) = free {
                self.free = *next;
            }
            *free = Slot::Taken(entry);
        } else {
            self.slots.push(Slot::Taken(entry));
            self.free = slot + 1;
        }
        slot
    }

    fn entry(&mut self, slot: u32) -> Option<&mut Entry> {
        match self.slots.get_mut(slot as usize) {
            Some(Slot::Taken(entry)) => Some(entry),
            _ => None,
        }
    }

    fn give_back(&mut self, slot: u32) {
        if let Some(taken) = self.slots.get_mut(slot as usize) {
            *taken = Slot::Free(self.free);
            self.free = slot;
        }
    }
}

impl Entry {
    fn read(&self) -> OpenConnection {
        OpenConnection {
            peer: self.peer.read(),
            original_destination: self.destination.read(),
            endpoint: (self.endpoint.port != 0).then(|| self.endpoint.read()),
            origin: match (&self.gateway, self.captured) {
                (Some(name), _) => Origin::Gateway(Arc::clone(name)),
                (None, Direction::Outbound) => Origin::Outbound,
                (None, Direction::Inbound) => Origin::Inbound,
                // What dials is not kept beside its address.
                (None, Direction::Tunnel) => Origin::Tunnel(None),
            },
            protocol: self.protocol,
            since: UNIX_EPOCH + Duration::from_millis(self.since_ms),
        }
    }
}

/// A connection that is shown.
#[derive(Debug)]
pub struct Shown {
    open: Arc<OpenConnections>,
    slot: u32,
}

impl Shown {
    /// It is known what is spoken, and where all of it goes if it is to one place.
    pub fn is(&self, protocol: Protocol, endpoint: Option<SocketAddr>) {
        if let Some(entry) = self.open.slots().entry(self.slot) {
            entry.protocol = protocol;
            entry.endpoint = endpoint.map_or(Address::NONE, Address::from);
        }
    }

    /// When it came.
    pub fn since(&self) -> SystemTime {
        let since = self.open.slots().entry(self.slot).map_or(0, |entry| entry.since_ms);
        UNIX_EPOCH + Duration::from_millis(since)
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.open.slots().give_back(self.slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect(text)
    }

    fn show(open: &Arc<OpenConnections>, port: u16) -> Shown {
        let peer = SocketAddr::new([10, 0, 0, 1].into(), port);
        open.show(peer, address("[fd00::1]:80"), (&Origin::Outbound, UNIX_EPOCH + Duration::from_secs(5)))
    }

    fn ports(open: &OpenConnections) -> Vec<u16> {
        let mut ports: Vec<_> = open.copy().iter().map(|one| one.peer.port()).collect();
        ports.sort_unstable();
        ports
    }

    #[test]
    fn a_connection_is_shown_as_long_as_it_lives() {
        let open = Arc::new(OpenConnections::default());
        let first = show(&open, 1);
        first.is(Protocol::Opaque, Some(address("10.0.0.2:8080")));
        let second = show(&open, 2);
        let seen = open.copy();
        let expected = OpenConnection {
            peer: address("10.0.0.1:1"),
            original_destination: address("[fd00::1]:80"),
            endpoint: Some(address("10.0.0.2:8080")),
            origin: Origin::Outbound,
            protocol: Protocol::Opaque,
            since: UNIX_EPOCH + Duration::from_secs(5),
        };
        assert_eq!(seen[0], expected);
        assert_eq!((seen[1].protocol, seen[1].endpoint), (Protocol::Undecided, None));
        drop(first);
        assert_eq!(ports(&open), [2]);
        assert_eq!(second.since(), UNIX_EPOCH + Duration::from_secs(5));
        drop(second);
        assert!(ports(&open).is_empty());
    }

    #[test]
    fn it_is_known_where_each_entered() {
        let open = Arc::new(OpenConnections::default());
        let gateway = Origin::Gateway("default/edge/http".into());
        for origin in [Origin::Outbound, Origin::Inbound, Origin::Tunnel(None), gateway] {
            let ends = (address("10.0.0.1:1"), address("10.0.0.2:80"));
            let _shown = open.show(ends.0, ends.1, (&origin, UNIX_EPOCH));
            assert_eq!(open.copy()[0].origin, origin);
        }
    }

    #[test]
    fn places_are_used_again() {
        let open = Arc::new(OpenConnections::default());
        let mut shown: Vec<_> = (0..1000).map(|port| show(&open, port)).collect();
        assert_eq!(ports(&open).len(), 1000);
        shown.retain(|one| one.slot % 3 == 0);
        let kept = shown.len();
        shown.extend((2000..2100).map(|port| show(&open, port)));
        assert_eq!(ports(&open).len(), kept + 100);
        assert_eq!(open.slots().slots.len(), 1000, "no place is added while one is free");
    }

    proptest::proptest! {
        /// Whatever comes and goes, what is shown is what is open.
        #[test]
        fn what_is_shown_is_what_is_open(steps in proptest::collection::vec((proptest::bool::ANY, 0usize..32), 1..200)) {
            let open = Arc::new(OpenConnections::default());
            let mut shown: Vec<(u16, Shown)> = Vec::new();
            for (number, (comes, which)) in (0u16..).zip(steps) {
                if comes || shown.is_empty() {
                    shown.push((number, show(&open, number)));
                } else {
                    let which = which % shown.len();
                    drop(shown.swap_remove(which));
                }
                let mut expected: Vec<_> = shown.iter().map(|(port, _)| *port).collect();
                expected.sort_unstable();
                proptest::prop_assert_eq!(ports(&open), expected);
            }
        }
    }
}
