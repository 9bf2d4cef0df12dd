//! The guard at the edge: what the agent tells the XDP program, how it judges a frame, and why.
//!
//! The order of judgement: frames that contradict themselves are dropped, whoever sends them; sources on the allow list pass;
//! sources on a deny list and sources that the agent pushed down are dropped; all others are held to their limits, and then to
//! those of the Gateway that they send to. What is not understood and does not contradict itself passes: the guard never cuts off
//! a protocol that it does not know.

mod bucket;
mod gateway;
mod inspect;

pub use bucket::{Limit, advance, step};
pub use gateway::GatewayMaps;
pub use inspect::{Inspected, Sent, SizedFrame, inspect};

use crate::packet::Family;

/// The most objects whose hits are counted apart; those beyond it share the last number.
pub const MAX_RULES: u32 = 1024;
/// The most sources that can be pushed down at once.
pub const MAX_PUSHED: u32 = 16_384;
/// The value of a source that passes whatever the deny lists and limits say.
pub const ALLOW: u32 = u32::MAX;

/// What holds for every source; changed while the program runs.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GuardSettings {
    /// Each source's packets.
    pub packets: Limit,
    /// Each source's requests for new TCP connections.
    pub syns: Limit,
    /// Whether any source is pushed down.
    pub pushed: u32,
    /// Whether limits are about any Gateway.
    pub limited: u32,
}

const _: () = assert!(size_of::<GuardSettings>() == 24);

/// Who counts as one source: an IPv4 address, or the /64 that an IPv6 host usually has to itself.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SourceKey {
    /// The address in network byte order; IPv4 in the first four bytes, the rest zero.
    pub prefix: [u8; 8],
    /// 4 or 6.
    pub family: u32,
}

const _: () = assert!(size_of::<SourceKey>() == 12 && align_of::<SourceKey>() == 4);

impl SourceKey {
    /// The source that an address belongs to; addresses of IPv4 sit in the first four bytes.
    #[inline(always)]
    pub fn of(family: Family, address: &[u8; 16]) -> Self {
        let a = address;
        match family {
            Family::V4 => Self { prefix: [a[0], a[1], a[2], a[3], 0, 0, 0, 0], family: 4 },
            Family::V6 => Self { prefix: [a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]], family: 6 },
        }
    }
}

/// A source's buckets, as [`step`] keeps them; both are full at zero.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SourceBuckets {
    /// Its packets.
    pub packets: u64,
    /// Its requests for new connections.
    pub syns: u64,
}

const _: () = assert!(size_of::<SourceBuckets>() == 16);

/// Why the guard did what it did with a frame; the index into its per-CPU counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Reason {
    /// Nothing speaks against it.
    Passed = 0,
    /// Its source is on the allow list.
    Allowed = 1,
    /// Neither IPv4 nor IPv6: ARP and the like, or more VLAN tags than are read.
    NotIp = 2,
    /// Its source could not be remembered, so its limits could not be held.
    Untracked = 3,
    /// Its source is on a deny list.
    Denied = 4,
    /// The agent pushed its source down.
    PushedDown = 5,
    /// Its source sends more packets than it may.
    PacketRate = 6,
    /// Its source asks for more connections than it may.
    SynRate = 7,
    /// So many processors change its source's bucket at once that none could say whether it may pass.
    Contended = 8,
    /// Shorter than its headers say.
    Truncated = 9,
    /// An IP header of the wrong version or length.
    BadHeader = 10,
    /// A datagram shorter than its own headers.
    BadLength = 11,
    /// A sender that can be nobody's address, or is the receiver's own.
    BadSource = 12,
    /// A fragment that overlaps the header of its datagram, or reaches beyond the largest one.
    BadFragment = 13,
    /// IPv6 extension headers that the standard forbids.
    BadExtension = 14,
    /// A TCP or UDP header that does not fit its datagram.
    BadTransport = 15,
    /// TCP flags that no connection has.
    BadFlags = 16,
    /// TCP or UDP port zero.
    PortZero = 17,
    /// A limit about the Gateway that it is sent to refuses it.
    RateLimited = 18,
}

impl Reason {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; 19] = [
        Self::Passed,
        Self::Allowed,
        Self::NotIp,
        Self::Untracked,
        Self::Denied,
        Self::PushedDown,
        Self::PacketRate,
        Self::SynRate,
        Self::Contended,
        Self::Truncated,
        Self::BadHeader,
        Self::BadLength,
        Self::BadSource,
        Self::BadFragment,
        Self::BadExtension,
        Self::BadTransport,
        Self::BadFlags,
        Self::PortZero,
        Self::RateLimited,
    ];

    /// Whether frames are dropped for it.
    #[inline(always)]
    pub const fn drops(self) -> bool {
        self as u32 >= Self::Denied as u32
    }

    /// The name that metrics and dumps show.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Allowed => "allowed",
            Self::NotIp => "not_ip",
            Self::Untracked => "untracked",
            Self::Denied => "denied",
            Self::PushedDown => "pushed_down",
            Self::PacketRate => "packet_rate",
            Self::SynRate => "syn_rate",
            Self::Contended => "contended",
            Self::Truncated => "truncated",
            Self::BadHeader => "bad_header",
            Self::BadLength => "bad_length",
            Self::BadSource => "bad_source",
            Self::BadFragment => "bad_fragment",
            Self::BadExtension => "bad_extension",
            Self::BadTransport => "bad_transport",
            Self::BadFlags => "bad_flags",
            Self::PortZero => "port_zero",
            Self::RateLimited => "rate_limited",
        }
    }
}

/// What the lists say of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listed {
    /// It passes.
    Allow,
    /// It is dropped; the number of the object that says so, below [`MAX_RULES`].
    Deny(u32),
    /// Nothing.
    No,
}

/// Reads the value of the longest prefix that holds a source.
#[inline(always)]
pub fn listed(value: Option<u32>) -> Listed {
    match value {
        Some(ALLOW) => Listed::Allow,
        Some(rule) if rule < MAX_RULES => Listed::Deny(rule),
        Some(_) => Listed::Deny(MAX_RULES - 1),
        None => Listed::No,
    }
}

/// Whether a source that was pushed down until a time still is.
#[inline(always)]
pub fn pushed_down(until_ns: u64, now_ns: u64) -> bool {
    now_ns < until_ns
}

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya's marker for types that are plain bytes")]
mod pod {
    use super::{GuardSettings, SourceBuckets, SourceKey};

    // SAFETY: repr(C), integers only, padding spelled out, every bit pattern valid.
    unsafe impl aya::Pod for GuardSettings {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SourceKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SourceBuckets {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_numbered_in_order_and_drops_come_last() {
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
        let passes: Vec<_> = Reason::ALL.into_iter().filter(|reason| !reason.drops()).collect();
        assert_eq!(passes, [Reason::Passed, Reason::Allowed, Reason::NotIp, Reason::Untracked]);
    }

    #[test]
    fn lists() {
        assert_eq!(listed(None), Listed::No);
        assert_eq!(listed(Some(ALLOW)), Listed::Allow);
        assert_eq!(listed(Some(0)), Listed::Deny(0));
        assert_eq!(listed(Some(MAX_RULES)), Listed::Deny(MAX_RULES - 1));
    }

    #[test]
    fn a_push_ends_at_its_time() {
        for (until, now, expected) in [(5, 4, true), (5, 5, false), (0, 0, false), (u64::MAX, 5, true)] {
            assert_eq!(pushed_down(until, now), expected, "{until} {now}");
        }
    }

    #[test]
    fn families_never_share_a_source() {
        let mut address = [0; 16];
        address[..4].copy_from_slice(&[10, 0, 0, 1]);
        let v4 = SourceKey::of(Family::V4, &address);
        let v6 = SourceKey::of(Family::V6, &address);
        assert_ne!(v4, v6);
        address[8] = 1;
        assert_eq!(SourceKey::of(Family::V6, &address), v6, "one /64 is one source");
    }
}
