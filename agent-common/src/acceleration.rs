//! Same-node acceleration: which sockets take part, which connections are joined, and why the others are not.
//!
//! A connection has a dialling and an answering end, each a socket on this node. The dialling end enters the map of
//! sockets when its connection stands, and *waits*. One decision is then made, once and for ever:
//!
//! ```text
//!            the answering end enters, nothing sent yet
//! waiting ────────────────────────────────────────────▶ joined: every message goes from socket to socket
//!    │
//!    │       the dialling end sends or receives anything by TCP first
//!    └──────────────────────────────────────────────────▶ plain: the socket leaves the map, TCP carries everything
//! ```
//!
//! So no connection ever has bytes on both ways at once, which the receiver could read in the wrong order, and no socket
//! stays in the map that receives by TCP, for which kernels report `FIONREAD` 0 with bytes waiting. One exception: the agent
//! makes the sending end of a joined connection plain when its receiver is flooded. A receiver that reads what was handed over
//! does so before it reads what TCP has, so the order holds. Until a pod's receiver has shown that it is one, the sender's
//! packets are dropped where they leave its pod, as if they were lost: TCP stops the sender, and sends them again later.

/// The most senders that can be held back at once.
pub const HELD_BACK_MAX: u32 = 4096;

/// One end of a connection: a socket's own view of it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EndKey {
    /// The network namespace, by its cookie.
    pub cookie: u64,
    /// The socket's own address in network byte order; IPv4 in the first four bytes, the rest zero.
    pub local: [u8; 16],
    /// The other end's address.
    pub remote: [u8; 16],
    /// The socket's own port in network byte order.
    pub local_port_be: [u8; 2],
    /// The other end's port.
    pub remote_port_be: [u8; 2],
    /// 4 or 6. IPv4 in an IPv6 socket is 4, as its other end may be an IPv4 socket.
    pub family: u8,
    /// Spelled out.
    pub padding: [u8; 3],
}

const _: () = assert!(size_of::<EndKey>() == 48 && align_of::<EndKey>() == 8);

impl EndKey {
    /// The other end, in the namespace of that cookie.
    #[inline(always)]
    #[must_use]
    pub const fn peer(&self, cookie: u64) -> Self {
        Self {
            cookie,
            local: self.remote,
            remote: self.local,
            local_port_be: self.remote_port_be,
            remote_port_be: self.local_port_be,
            family: self.family,
            padding: self.padding,
        }
    }
}

/// The start of an IPv6 address that stands for an IPv4 one (RFC 4291, 2.5.5.2), as three words in network byte order.
const MAPPED: [u32; 3] = [0, 0, 0xffff_u32.to_be()];

/// Whether an address, as four words in network byte order, stands for an IPv4 one.
#[inline(always)]
pub const fn is_mapped(words: &[u32; 4]) -> bool {
    words[0] == MAPPED[0] && words[1] == MAPPED[1] && words[2] == MAPPED[2]
}

/// An IPv4 address in network byte order as keys have it.
#[inline(always)]
pub const fn wide(v4: u32) -> [u8; 16] {
    let b = v4.to_ne_bytes();
    [b[0], b[1], b[2], b[3], 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
}

/// An IPv6 address, four words in network byte order, as keys have it.
#[inline(always)]
pub const fn joined(words: &[u32; 4]) -> [u8; 16] {
    let mut bytes = [0; 16];
    let mut at = 0;
    while at < 16 {
        bytes[at] = words[at / 4].to_ne_bytes()[at % 4];
        at += 1;
    }
    bytes
}

/// What a decision was.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndValue {
    /// The namespace of the other end; 0 where the connection is plain.
    pub peer_cookie: u64,
    /// Bytes that this end has handed over.
    pub handed: u64,
    /// The birth of the connection (see [`crate::bridge::birth`]), which both ends share; 0 where it is plain.
    pub born: u64,
}

impl EndValue {
    /// The connection is TCP's for ever.
    pub const PLAIN: Self = Self { peer_cookie: 0, handed: 0, born: 0 };

    /// Both ends are in the map, and this is the other one's namespace. The kernel counts cookies from 1.
    pub const fn joined(peer_cookie: u64, born: u64) -> Self {
        Self { peer_cookie, handed: 0, born }
    }

    /// The end hands nothing over any more, which it has done before.
    #[must_use]
    pub const fn led_back(self) -> Self {
        // A message may be counted by a program that holds the old decision still.
        Self { peer_cookie: 0, handed: if self.handed == 0 { 1 } else { self.handed }, ..self }
    }

    /// Whether both ends are in the map.
    pub const fn is_joined(self) -> bool {
        self.peer_cookie != 0
    }

    /// Whether bytes may have gone past TCP, so that TCP's counters lack them.
    pub const fn was_joined(self) -> bool {
        self.is_joined() || self.handed != 0
    }
}

/// What the agent knows of a pod on this node.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodValue {
    /// The pod's network namespace; 0 where the agent does not know it.
    pub cookie: u64,
    /// 1: the pod wants no part in this.
    pub opted_out: u32,
    /// Spelled out.
    pub padding: u32,
}

/// Settings of the programs, in a map of one entry.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccelerationConfig {
    /// The network namespace of the node, where the agent's sockets are.
    pub node_cookie: u64,
    /// The mark of the agent's sockets.
    pub own_mark: u32,
    /// 1: every socket takes part, and its peer is in its own namespace. For the self-test alone.
    pub everyone: u32,
}

const _: () = assert!(size_of::<EndValue>() == 24);
const _: () = assert!(size_of::<PodValue>() == 16);
const _: () = assert!(size_of::<AccelerationConfig>() == 16);

/// Whose socket it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// The agent's, whatever address it speaks from.
    Agent,
    /// That of a pod on this node, in the pod's own namespace.
    Pod,
}

/// Whose socket it is, or why it has no part.
///
/// An address proves nothing: any process may make a namespace and give itself every address in it. So a pod's socket is
/// in the namespace that the agent found behind the pod's interface, and the agent's has its mark in the node's namespace,
/// which takes privileges on the node.
#[inline(always)]
pub fn holder(
    config: &AccelerationConfig,
    cookie: u64,
    mark: u32,
    local: Option<PodValue>,
) -> Result<Holder, AccelerationReason> {
    if config.everyone != 0 {
        return Ok(Holder::Pod);
    }
    match local {
        Some(pod) if pod.opted_out != 0 => Err(AccelerationReason::OptedOut),
        _ if cookie == config.node_cookie && mark == config.own_mark => Ok(Holder::Agent),
        Some(pod) if pod.cookie == cookie && cookie != 0 => Ok(Holder::Pod),
        _ => Err(AccelerationReason::NotOurs),
    }
}

/// Whether the other end of a connection that `holder` has dialled may be on this node and take part. `captured`: the
/// agent takes connections to this destination.
#[inline(always)]
pub fn may_meet(
    config: &AccelerationConfig,
    holder: Holder,
    remote: Option<PodValue>,
    captured: bool,
) -> Result<(), AccelerationReason> {
    if config.everyone != 0 {
        return Ok(());
    }
    match remote {
        Some(pod) if pod.opted_out != 0 => Err(AccelerationReason::OptedOut),
        Some(_) => Ok(()),
        None if captured && holder == Holder::Pod => Ok(()),
        None => Err(AccelerationReason::Elsewhere),
    }
}

/// The namespaces in which the dialling end of an answered connection may be, the likeliest first; 0 is none.
#[inline(always)]
pub fn diallers(
    config: &AccelerationConfig,
    holder: Holder,
    own_cookie: u64,
    remote: Option<PodValue>,
) -> Result<[u64; 2], AccelerationReason> {
    if config.everyone != 0 {
        return Ok([own_cookie, 0]);
    }
    let pod = match remote {
        Some(pod) if pod.opted_out != 0 => return Err(AccelerationReason::OptedOut),
        Some(pod) => pod.cookie,
        None => 0,
    };
    match holder {
        // The agent never dials itself.
        Holder::Agent => Ok([pod, 0]),
        Holder::Pod => Ok([config.node_cookie, pod]),
    }
}

/// What became of connections, sockets and messages; the index into the programs' per-CPU counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum AccelerationReason {
    /// A connection has both ends in the map.
    Joined = 0,
    /// One end of a joined connection has closed.
    Closed = 1,
    /// A message went from socket to socket.
    Redirected = 2,
    /// A message of a joined connection went by TCP because the other end has closed.
    PeerClosed = 3,
    /// A connection is plain because its dialling end sent before the other end was in.
    EarlyWrite = 4,
    /// A connection is plain because the other end did not come, and answered by TCP.
    PeerAbsent = 5,
    /// A connection is plain because a pod's annotation says so.
    OptedOut = 6,
    /// A connection is plain because the map had no room for an end.
    Full = 7,
    /// An end that is neither a known pod's nor the agent's.
    NotOurs = 8,
    /// A connection whose other end is not on this node.
    Elsewhere = 9,
    /// A message went past the agent, over a bridge.
    Bridged = 10,
}

impl AccelerationReason {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::Joined,
        Self::Closed,
        Self::Redirected,
        Self::PeerClosed,
        Self::EarlyWrite,
        Self::PeerAbsent,
        Self::OptedOut,
        Self::Full,
        Self::NotOurs,
        Self::Elsewhere,
        Self::Bridged,
    ];

    /// The name that metrics show.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Joined => "joined",
            Self::Closed => "closed",
            Self::Redirected => "redirected",
            Self::PeerClosed => "peer_closed",
            Self::EarlyWrite => "early_write",
            Self::PeerAbsent => "peer_absent",
            Self::OptedOut => "opted_out",
            Self::Full => "full",
            Self::NotOurs => "not_ours",
            Self::Elsewhere => "elsewhere",
            Self::Bridged => "bridged",
        }
    }
}

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya's marker for types that are plain bytes")]
mod pod {
    use super::{AccelerationConfig, EndKey, EndValue, PodValue};

    // SAFETY: repr(C), integers only, padding spelled out, every bit pattern valid.
    unsafe impl aya::Pod for EndKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for EndValue {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PodValue {}
    // SAFETY: as above.
    unsafe impl aya::Pod for AccelerationConfig {}
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: u64 = 1;
    const POD: u64 = 7;
    const MARK: u32 = 0x1520;
    const CONFIG: AccelerationConfig = AccelerationConfig { node_cookie: NODE, own_mark: MARK, everyone: 0 };
    const KNOWN: PodValue = PodValue { cookie: POD, opted_out: 0, padding: 0 };
    const UNKNOWN: PodValue = PodValue { cookie: 0, ..KNOWN };
    const OUT: PodValue = PodValue { opted_out: 1, ..KNOWN };

    #[test]
    fn only_the_rightful_holder_of_an_address_takes_part() {
        use AccelerationReason::{NotOurs, OptedOut};
        // (cookie, mark, what is known of the local address) -> holder
        let cases = [
            ((POD, 0, Some(KNOWN)), Ok(Holder::Pod)),
            ((POD, MARK, Some(KNOWN)), Ok(Holder::Pod)),
            ((POD, 0, None), Err(NotOurs)),
            // Somebody else's namespace with the pod's address.
            ((8, 0, Some(KNOWN)), Err(NotOurs)),
            ((8, MARK, Some(KNOWN)), Err(NotOurs)),
            ((NODE, 0, Some(KNOWN)), Err(NotOurs)),
            ((0, 0, Some(UNKNOWN)), Err(NotOurs)),
            ((POD, 0, Some(UNKNOWN)), Err(NotOurs)),
            ((NODE, MARK, None), Ok(Holder::Agent)),
            ((NODE, MARK, Some(KNOWN)), Ok(Holder::Agent)),
            ((NODE, MARK, Some(UNKNOWN)), Ok(Holder::Agent)),
            // The agent speaks in the name of a pod that wants no part.
            ((NODE, MARK, Some(OUT)), Err(OptedOut)),
            ((POD, 0, Some(OUT)), Err(OptedOut)),
            ((NODE, 0, None), Err(NotOurs)),
        ];
        for ((cookie, mark, local), expected) in cases {
            assert_eq!(holder(&CONFIG, cookie, mark, local), expected, "{cookie} {mark:#x} {local:?}");
        }
    }

    #[test]
    fn who_may_be_met() {
        use AccelerationReason::{Elsewhere, OptedOut};
        let cases = [
            ((Holder::Pod, Some(KNOWN), false), Ok(())),
            ((Holder::Pod, Some(OUT), false), Err(OptedOut)),
            ((Holder::Pod, Some(OUT), true), Err(OptedOut)),
            ((Holder::Pod, None, false), Err(Elsewhere)),
            ((Holder::Pod, None, true), Ok(())),
            ((Holder::Agent, Some(KNOWN), false), Ok(())),
            // The agent never dials itself.
            ((Holder::Agent, None, true), Err(Elsewhere)),
        ];
        for ((holder, remote, captured), expected) in cases {
            assert_eq!(may_meet(&CONFIG, holder, remote, captured), expected, "{holder:?} {remote:?}");
        }
    }

    #[test]
    fn diallers_are_looked_for_where_they_can_be() {
        let cases = [
            ((Holder::Pod, Some(KNOWN)), Ok([NODE, POD])),
            ((Holder::Pod, None), Ok([NODE, 0])),
            ((Holder::Agent, Some(KNOWN)), Ok([POD, 0])),
            ((Holder::Agent, None), Ok([0, 0])),
            ((Holder::Agent, Some(OUT)), Err(AccelerationReason::OptedOut)),
        ];
        for ((holder, remote), expected) in cases {
            assert_eq!(diallers(&CONFIG, holder, 3, remote), expected, "{holder:?} {remote:?}");
        }
    }

    #[test]
    fn the_self_test_joins_everyone_in_one_namespace() {
        let config = AccelerationConfig { everyone: 1, ..CONFIG };
        assert_eq!(holder(&config, 9, 0, None), Ok(Holder::Pod));
        assert_eq!(may_meet(&config, Holder::Pod, None, false), Ok(()));
        assert_eq!(diallers(&config, Holder::Pod, 9, None), Ok([9, 0]));
    }

    #[test]
    fn mapped_addresses_are_told_from_others() {
        let words = |text: &str| {
            let octets = text.parse::<std::net::Ipv6Addr>().expect(text).octets();
            let word = |at: usize| u32::from_ne_bytes(octets[at..at + 4].try_into().expect("four bytes"));
            [word(0), word(4), word(8), word(12)]
        };
        for (text, mapped) in
            [("::ffff:10.0.0.1", true), ("::10.0.0.1", false), ("::1", false), ("fd00::ffff:a00:1", false)]
        {
            assert_eq!(is_mapped(&words(text)), mapped, "{text}");
            assert_eq!(joined(&words(text)), text.parse::<std::net::Ipv6Addr>().expect(text).octets());
        }
        let v4 = std::net::Ipv4Addr::new(10, 1, 2, 3);
        assert_eq!(wide(u32::from_ne_bytes(v4.octets()))[..5], [10, 1, 2, 3, 0]);
    }

    #[test]
    fn an_end_that_is_led_back_was_joined() {
        let joined = EndValue::joined(POD, 5);
        let handed = EndValue { handed: 9, ..joined };
        // (a decision) -> (whether it is joined, whether it was)
        let cases = [
            (EndValue::PLAIN, (false, false)),
            (joined, (true, true)),
            (handed, (true, true)),
            (joined.led_back(), (false, true)),
            (handed.led_back(), (false, true)),
        ];
        for (end, expected) in cases {
            assert_eq!((end.is_joined(), end.was_joined()), expected, "{end:?}");
        }
    }

    #[test]
    fn reasons_are_numbered_in_order() {
        for (index, reason) in AccelerationReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
    }
}
