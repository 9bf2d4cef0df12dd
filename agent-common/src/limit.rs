//! Limits of the kernel: how many connections or packets each source may send to an address and port, and how that is judged.
//!
//! A bucket is one number (see [`crate::guard::advance`]), so that it gives at most its burst plus its rate times time however
//! processors race. A packet that several limits are about is let through by all of them or takes nothing from any; only where
//! another processor takes a last token between the two looks is one lost that another limit gave. Nothing is ever let through
//! beyond a limit for it.
//!
//! Fail-open: a source that finds no room is let through and counted. Fail-closed: a source whose bucket too many processors
//! fight over.

use crate::policy::PolicyAddress;

/// Limits of one address and port.
pub const LIMITS_PER_END: usize = 4;
/// Addresses and ports with limits.
pub const LIMIT_ENDS_MAX: u32 = 65_536;
/// Addresses and ports of Gateways with limits.
pub const LIMIT_GATEWAYS_MAX: u32 = 4096;
/// Limits that are counted apart; those beyond it share the last number.
pub const LIMIT_SLOTS: u32 = 1024;
/// Networks that limits do not hold for.
pub const LIMIT_EXEMPT_MAX: u32 = 16_384;
/// Pods whose identity limits can count by.
pub const LIMIT_NAMED_MAX: u32 = 65_536;

/// What is sent to: an address and port.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LimitEnd {
    /// Network byte order; IPv4 in the first four bytes, the rest zero.
    pub address: [u8; 16],
    /// The port in network byte order.
    pub port_be: [u8; 2],
    /// 4 or 6.
    pub family: u8,
    /// TCP or UDP, by its IP protocol number.
    pub protocol: u8,
}

const _: () = assert!(size_of::<LimitEnd>() == 20 && align_of::<LimitEnd>() == 1);

/// [`KernelLimit::flags`]: it counts all packets, not requests for TCP connections alone.
pub const COUNTS_PACKETS: u32 = 1;
/// [`KernelLimit::flags`]: it only counts what it would refuse.
pub const SHADOW: u32 = 2;
/// [`KernelLimit::flags`]: sources are told apart by the identity of their pods, where that is known.
pub const BY_IDENTITY: u32 = 4;
/// [`KernelLimit::flags`]: with [`BY_IDENTITY`], it does not hold for sources whose identity is not known.
pub const UNNAMED_EXEMPT: u32 = 8;
/// [`KernelLimit::flags`]: with [`BY_IDENTITY`], it refuses sources whose identity is not known.
pub const UNNAMED_REFUSED: u32 = 16;
/// [`KernelLimit::flags`]: it does not hold for some networks.
pub const HAS_EXEMPT: u32 = 32;

/// One limit.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KernelLimit {
    /// What tells its buckets from those of all other limits, also of other agents before and after.
    pub id: u64,
    /// Nanoseconds in which one token comes; zero: there is no limit, and none after it.
    pub interval_ns: u64,
    /// Nanoseconds in which a whole bucket comes.
    pub whole_ns: u64,
    /// Which sources are one; the program has no branch for any way of telling them apart.
    pub apart: Apart,
    /// Where what it does is counted.
    pub slot: u32,
    /// [`COUNTS_PACKETS`] and the like.
    pub flags: u32,
}

const _: () = assert!(size_of::<KernelLimit>() == 64 && align_of::<KernelLimit>() == 8);

/// Which bits of a source's address, in the machine's order of bytes, tell it from others.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Apart {
    /// Of the first half of an IPv4 address, which has its own half of that.
    v4: u64,
    /// Of the first half of an IPv6 address.
    high: u64,
    /// Of the second.
    low: u64,
    /// Of the family.
    family: u32,
    /// Spelled out.
    padding: u32,
}

impl Apart {
    /// By prefixes of so many bits.
    pub const fn by_prefix(v4_bits: u8, v6_bits: u8) -> Self {
        let v4_bits = if v4_bits < 32 { v4_bits } else { 32 };
        let (v4, high, low) = (mask(v4_bits), mask(v6_bits), mask(v6_bits.saturating_sub(64)));
        Self { v4, high, low, family: u32::MAX, padding: 0 }
    }

    /// All sources are one.
    pub const fn together() -> Self {
        Self { v4: 0, high: 0, low: 0, family: 0, padding: 0 }
    }
}

/// The first so many of 64 bits; all where there are more.
const fn mask(bits: u8) -> u64 {
    match bits {
        0 => 0,
        1..64 => u64::MAX << (64 - bits),
        _ => u64::MAX,
    }
}

impl KernelLimit {
    /// Whether there is one.
    #[inline(always)]
    pub const fn is_set(&self) -> bool {
        self.interval_ns != 0
    }

    #[inline(always)]
    const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

/// The limits of one address and port; those that are not set come last.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LimitSet {
    /// The limits.
    pub limits: [KernelLimit; LIMITS_PER_END],
}

/// Whose bucket of which limit.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LimitKey {
    /// As in [`KernelLimit`].
    pub id: u64,
    /// The first half of the source's address as far as it counts, or its identity.
    pub high: u64,
    /// The second half.
    pub low: u64,
    /// 4 or 6: an address; 1: an identity; 0: everybody.
    pub kind: u32,
    /// Spelled out.
    pub padding: u32,
}

const _: () = assert!(size_of::<LimitKey>() == 32 && align_of::<LimitKey>() == 8);

/// [`LimitKey::kind`] of identities.
const IDENTITY: u32 = 1;

/// What a network that a limit does not hold for is looked up by, with the longest prefix: the bits that all have in common
/// come first.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExemptKey {
    /// As in [`KernelLimit`], in the machine's byte order.
    pub id: [u8; 8],
    /// The source.
    pub source: PolicyAddress,
}

/// Bits of an [`ExemptKey`] before its address.
pub const EXEMPT_HEAD_BITS: u32 = 72;
/// All bits of an [`ExemptKey`].
pub const EXEMPT_BITS: u32 = 200;

const _: () = assert!(size_of::<ExemptKey>() == EXEMPT_BITS as usize / 8);

/// What a limit has counted, on one processor.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LimitCounts {
    /// By [`Outcome`].
    pub by_outcome: [u64; Outcome::ALL.len()],
    /// Buckets that were made.
    pub made: u64,
}

/// What became of a packet that a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub enum Outcome {
    /// It took a token.
    Admitted = 0,
    /// There was none: it is dropped.
    Refused = 1,
    /// There was none, but the limit only counts.
    ShadowRefused = 2,
    /// Let through, as its source found no room.
    Uncounted = 3,
}

impl Outcome {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Admitted, Self::Refused, Self::ShadowRefused, Self::Uncounted];

    /// The name that metrics show.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Admitted => "admitted",
            Self::Refused => "refused",
            Self::ShadowRefused => "shadow_refused",
            Self::Uncounted => "uncounted",
        }
    }
}

/// What became of the wish for a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// There was one.
    Yes,
    /// There was none.
    No,
    /// Other processors were faster too often.
    Contended,
    /// There is no room for the bucket.
    NoRoom,
}

/// The maps, as the verdict asks them.
pub trait LimitMaps {
    /// Whether a limit does not hold for a source.
    fn is_exempt(&self, key: &ExemptKey) -> bool;
    /// The identity of the pod that has an address; `None`: nobody knows one.
    fn identity(&self, source: &PolicyAddress) -> Option<u64>;
    /// Whether a bucket has a token; one that there is not yet has.
    fn has_token(&self, key: &LimitKey, limit: &KernelLimit) -> bool;
    /// Takes one.
    fn take(&self, key: &LimitKey, limit: &KernelLimit) -> Taken;
    /// Counts what became of the packet.
    fn count(&self, limit: &KernelLimit, outcome: Outcome);
}

/// How a limit counts a packet.
enum Counted {
    /// Not at all.
    No,
    /// By this.
    By(LimitKey),
    /// It refuses it whatever there is.
    Refused,
}

/// Judges a packet of a source: `Some` where one of the limits refuses it, with the slot of that one. `opens`: it asks for a TCP
/// connection.
#[inline(always)]
pub fn judge(set: &LimitSet, source: &PolicyAddress, opens: bool, maps: &impl LimitMaps) -> Option<u32> {
    let asking = Asking { source, opens, maps };
    // One after another and in no loop, whose end the kernel's verifier would have to find.
    let [a, b, c, d] = &set.limits;
    // Where there is but one, nothing of another could be lost.
    if b.is_set() {
        let refused = asking.looks(a).or_else(|| asking.looks(b));
        let refused = refused.or_else(|| asking.looks(c)).or_else(|| asking.looks(d));
        if refused.is_some() {
            return refused;
        }
    }
    asking.takes(a).or_else(|| asking.takes(b)).or_else(|| asking.takes(c)).or_else(|| asking.takes(d))
}

/// A packet that is judged.
struct Asking<'a, M> {
    source: &'a PolicyAddress,
    opens: bool,
    maps: &'a M,
}

impl<M: LimitMaps> Asking<'_, M> {
    /// Looks whether a limit would refuse it, and counts it only then.
    #[inline(always)]
    fn looks(&self, limit: &KernelLimit) -> Option<u32> {
        let empty = match self.counted(limit) {
            Counted::No => false,
            Counted::By(key) => !self.maps.has_token(&key, limit),
            Counted::Refused => true,
        };
        if !empty || limit.has(SHADOW) {
            return None;
        }
        self.maps.count(limit, Outcome::Refused);
        Some(limit.slot)
    }

    /// Takes a token, unless the limit refuses it.
    #[inline(always)]
    fn takes(&self, limit: &KernelLimit) -> Option<u32> {
        let taken = match self.counted(limit) {
            Counted::No => return None,
            Counted::By(key) => self.maps.take(&key, limit),
            Counted::Refused => Taken::No,
        };
        let outcome = match taken {
            Taken::Yes => Outcome::Admitted,
            Taken::NoRoom => Outcome::Uncounted,
            Taken::No | Taken::Contended if limit.has(SHADOW) => Outcome::ShadowRefused,
            Taken::No | Taken::Contended => Outcome::Refused,
        };
        self.maps.count(limit, outcome);
        if matches!(outcome, Outcome::Refused) { Some(limit.slot) } else { None }
    }

    #[inline(always)]
    fn counted(&self, limit: &KernelLimit) -> Counted {
        let source = self.source;
        if !limit.is_set() || !(self.opens || limit.has(COUNTS_PACKETS)) {
            return Counted::No;
        }
        if limit.has(HAS_EXEMPT)
            && self.maps.is_exempt(&ExemptKey { id: limit.id.to_ne_bytes(), source: *source })
        {
            return Counted::No;
        }
        if limit.has(BY_IDENTITY) {
            if let Some(identity) = self.maps.identity(source) {
                return Counted::By(LimitKey {
                    id: limit.id,
                    high: identity,
                    low: 0,
                    kind: IDENTITY,
                    padding: 0,
                });
            }
            if limit.has(UNNAMED_EXEMPT) {
                return Counted::No;
            }
            if limit.has(UNNAMED_REFUSED) {
                return Counted::Refused;
            }
        }
        let a = &source.address;
        let high = u64::from_be_bytes([a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]]);
        let low = u64::from_be_bytes([a[8], a[9], a[10], a[11], a[12], a[13], a[14], a[15]]);
        let apart = &limit.apart;
        Counted::By(LimitKey {
            id: limit.id,
            high: high & if source.family == 4 { apart.v4 } else { apart.high },
            low: low & apart.low,
            kind: u32::from(source.family) & apart.family,
            padding: 0,
        })
    }
}

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya's marker for types that are plain bytes")]
mod pod {
    use super::{ExemptKey, LimitCounts, LimitEnd, LimitKey, LimitSet};

    // SAFETY: repr(C), integers only, no padding, every bit pattern valid.
    unsafe impl aya::Pod for LimitEnd {}
    // SAFETY: as above.
    unsafe impl aya::Pod for LimitSet {}
    // SAFETY: as above.
    unsafe impl aya::Pod for LimitKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ExemptKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for LimitCounts {}
}

#[cfg(test)]
mod tests;
