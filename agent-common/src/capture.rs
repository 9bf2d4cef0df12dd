//! Capture: what the agent tells the kernel programs, what they decide, and why.

/// The most workers that can have a capture listener.
pub const MAX_WORKERS: u32 = 64;
/// Where the inbound listeners' entries of the socket map begin; before it are the outbound ones.
pub const INBOUND_LISTENERS: u32 = MAX_WORKERS * 2;
/// Where the listeners of tunnels begin.
pub const TUNNEL_LISTENERS: u32 = MAX_WORKERS * 4;
/// All entries of the socket map.
pub const LISTENERS: u32 = MAX_WORKERS * 6;
/// The port that tunnels (HBONE) are dialled at.
pub const HBONE_PORT: u16 = 15008;
/// How many workers are tried for a new connection before it is passed by.
pub const WORKER_TRIES: u32 = 8;

/// Settings that are fixed while the programs are loaded; written into their read-only data.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptureConfig {
    /// The mark that an `ip rule` delivers to the agent; never set on a socket.
    pub deliver_mark: u32,
    /// The mark that the agent's own sockets carry.
    pub own_mark: u32,
    /// Capture listeners in the socket map: worker `n` has entries `2n` (IPv4) and `2n + 1` (IPv6), and the same again from
    /// [`INBOUND_LISTENERS`] and from [`TUNNEL_LISTENERS`] on.
    pub workers: u32,
    /// Spelled out so that the size is a multiple of 8.
    pub padding: u32,
}

const _: () = assert!(size_of::<CaptureConfig>() == 16);

/// A destination that pods dial: an address and a port.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DestinationKey {
    /// The address in network byte order; IPv4 in the first four bytes, the rest zero.
    pub address: [u8; 16],
    /// The port in network byte order.
    pub port_be: [u8; 2],
    /// 4 or 6.
    pub family: u8,
    /// Spelled out.
    pub padding: u8,
}

const _: () = assert!(size_of::<DestinationKey>() == 20 && align_of::<DestinationKey>() == 1);

/// What is done with new connections to a destination.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DestinationValue {
    /// One of [`Action`].
    pub action: u32,
}

/// The values of [`DestinationValue::action`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Action {
    /// The kernel forwards it as if the agent were not there.
    Direct = 0,
    /// The agent takes it; without a live agent it goes direct.
    Agent = 1,
    /// A pod of this node at the port of tunnels: the agent ends them; without a live agent the pod sees the packets.
    Tunnel = 2,
}

/// An address that is the node's own.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AddressKey {
    /// As in [`DestinationKey`].
    pub address: [u8; 16],
}

/// Why a program did what it did with a packet; the index into its per-CPU counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Reason {
    /// Given to a worker's listener: a new connection.
    Captured = 0,
    /// Belongs to a connection of the agent.
    Established = 1,
    /// A new connection to a destination that no route names.
    NoRoute = 2,
    /// A new connection that the agent should take, but no listener is live: passed.
    NoListener = 3,
    /// A packet of a connection that is not the agent's.
    NotOurs = 4,
    /// Neither IPv4 nor IPv6, or tagged.
    NotIp = 5,
    /// Not TCP.
    NotTcp = 6,
    /// IPv4 options or IPv6 extension headers.
    IpOptions = 7,
    /// A fragment.
    Fragment = 8,
    /// Shorter than its headers say.
    Truncated = 9,
    /// Headers that contradict themselves.
    Malformed = 10,
    /// The kernel refused to assign the packet to the listener: passed.
    AssignFailed = 11,
    /// Given to a worker's inbound listener: a new connection to a pod whose policy asks of requests.
    CapturedInbound = 12,
    /// Dropped: its sender is held back until its receiver has read what was handed over (see [`crate::acceleration`]).
    HeldBack = 13,
    /// Dropped: a limit of the kernel refuses a connection that the agent would take (see [`crate::limit`]).
    RateLimited = 14,
}

impl Reason {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; 15] = [
        Self::Captured,
        Self::Established,
        Self::NoRoute,
        Self::NoListener,
        Self::NotOurs,
        Self::NotIp,
        Self::NotTcp,
        Self::IpOptions,
        Self::Fragment,
        Self::Truncated,
        Self::Malformed,
        Self::AssignFailed,
        Self::CapturedInbound,
        Self::HeldBack,
        Self::RateLimited,
    ];

    /// The name that metrics and dumps show.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Captured => "captured",
            Self::Established => "established",
            Self::NoRoute => "no_route",
            Self::NoListener => "no_listener",
            Self::NotOurs => "not_ours",
            Self::NotIp => "not_ip",
            Self::NotTcp => "not_tcp",
            Self::IpOptions => "ip_options",
            Self::Fragment => "fragment",
            Self::Truncated => "truncated",
            Self::Malformed => "malformed",
            Self::AssignFailed => "assign_failed",
            Self::CapturedInbound => "captured_inbound",
            Self::HeldBack => "held_back",
            Self::RateLimited => "rate_limited",
        }
    }
}

/// What the socket that a packet's ends lead to says about whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// No such socket.
    None,
    /// A full socket with this mark.
    Full {
        /// Its `SO_MARK`.
        mark: u32,
    },
    /// A half-open connection; it has no mark yet.
    Request,
    /// The remains of a closed connection; they have no mark any more.
    TimeWait,
}

/// What to do with a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Mark it for delivery to the socket that it belongs to.
    Deliver,
    /// Look the destination up and, if the agent shall have it, assign it to a listener.
    Open,
    /// Leave it alone.
    Pass,
}

/// Decides on a segment that arrived from a pod or the uplink. `local`: its destination is an address of the node.
///
/// Marks tell the agent's full sockets from the host's. Half-open and closing ones carry none: they are the agent's
/// where the destination is not the node's own address, because only a transparent socket can have such an end.
#[inline(always)]
pub fn decide(opens: bool, owner: Owner, local: bool, own_mark: u32) -> Verdict {
    match owner {
        Owner::Full { mark } if mark == own_mark => Verdict::Deliver,
        // A client may reuse a port whose last connection the agent's kernel still remembers. Only that memory can make way:
        // it answers, the client resets it, and its next SYN opens (a listener that is assigned instead would find the
        // place taken, and since 6.10 the kernel drops such a SYN for as long as the memory lasts).
        Owner::Request | Owner::TimeWait if !local => Verdict::Deliver,
        Owner::None if opens && !local => Verdict::Open,
        Owner::Full { .. } | Owner::Request | Owner::TimeWait | Owner::None => Verdict::Pass,
    }
}

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya's marker for types that are plain bytes")]
mod pod {
    use super::{AddressKey, CaptureConfig, DestinationKey, DestinationValue};

    // SAFETY: repr(C), integers only, padding spelled out, every bit pattern valid.
    unsafe impl aya::Pod for CaptureConfig {}
    // SAFETY: as above.
    unsafe impl aya::Pod for DestinationKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for DestinationValue {}
    // SAFETY: as above.
    unsafe impl aya::Pod for AddressKey {}
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: u32 = 0x1520;

    #[test]
    fn decisions() {
        let ours = Owner::Full { mark: OWN };
        let theirs = Owner::Full { mark: 0 };
        // (opens, owner, local) -> verdict
        let cases = [
            ((true, Owner::None, false), Verdict::Open),
            ((true, Owner::None, true), Verdict::Pass),
            ((false, Owner::None, false), Verdict::Pass),
            ((false, ours, false), Verdict::Deliver),
            ((true, ours, false), Verdict::Deliver),
            ((false, ours, true), Verdict::Deliver),
            ((false, theirs, false), Verdict::Pass),
            ((true, theirs, true), Verdict::Pass),
            ((false, Owner::Request, false), Verdict::Deliver),
            ((true, Owner::Request, false), Verdict::Deliver),
            ((false, Owner::Request, true), Verdict::Pass),
            ((false, Owner::TimeWait, false), Verdict::Deliver),
            ((true, Owner::TimeWait, false), Verdict::Deliver),
            ((false, Owner::TimeWait, true), Verdict::Pass),
            ((true, Owner::TimeWait, true), Verdict::Pass),
        ];
        for ((opens, owner, local), verdict) in cases {
            assert_eq!(decide(opens, owner, local, OWN), verdict, "{opens} {owner:?} {local}");
        }
    }

    #[test]
    fn reasons_are_numbered_in_order() {
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
    }
}
