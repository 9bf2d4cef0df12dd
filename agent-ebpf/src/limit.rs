//! Limits, as the hooks ask for them: the maps of the running programs.

use agent_common::capture::AddressKey;
use agent_common::guard::{GatewayMaps, Inspected, advance};
use agent_common::limit::{
    EXEMPT_BITS, ExemptKey, KernelLimit, LimitEnd, LimitKey, LimitMaps, LimitSet, Outcome, Taken, judge,
};
use agent_common::packet::{Family, PROTOCOL_TCP, Segment};
use agent_common::policy::PolicyAddress;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::maps::lpm_trie::Key;

use crate::ctx::{Packet, bucket};
use crate::events;
use crate::maps::{
    LIMIT_BUCKETS, LIMIT_ENDS, LIMIT_EXEMPT, LIMIT_GATEWAYS, LIMIT_NAMED, LOCAL_ADDRESSES, count_bucket,
    count_limited,
};

/// How often a bucket is tried. Four limits may be asked of one packet, and the verifier follows every try of each.
const TRIES: u32 = 4;

/// Whether a limit refuses what a source sends to an address and port: the slot of that limit.
#[inline(always)]
pub fn refuses(end: &LimitEnd, source: &PolicyAddress, opens: bool) -> Option<u32> {
    let set = LIMIT_ENDS.get_ptr(end)?;
    // SAFETY: the kernel keeps a map value's memory valid for the run of the program. The agent replaces values whole; one that
    // is replaced meanwhile may give its place to another's, and then one packet is counted by that one's limits.
    judge(unsafe { &*set }, source, opens, &Maps::<true> { now_ns: unsafe { bpf_ktime_get_ns() } })
}

/// Whether a limit refuses what comes to a Gateway: the slot of that limit.
#[inline(always)]
pub fn refuses_at_gateway(seen: &Inspected) -> Option<u32> {
    let set = seen.gateway_limits(&Gateways)?;
    // SAFETY: as above.
    judge(
        unsafe { &*set },
        &seen.sender(),
        seen.sent.opens,
        &Maps::<false> { now_ns: unsafe { bpf_ktime_get_ns() } },
    )
}

/// The listeners of Gateways.
struct Gateways;

impl GatewayMaps for Gateways {
    type Limits = *const LimitSet;

    #[inline(always)]
    fn limits(&self, end: &LimitEnd) -> Option<*const LimitSet> {
        LIMIT_GATEWAYS.get_ptr(end)
    }

    #[inline(always)]
    fn is_own(&self, address: &[u8; 16]) -> bool {
        LOCAL_ADDRESSES.get_ptr(&AddressKey { address: *address }).is_some()
    }
}

/// Whether a limit refuses a new connection that the agent would take; told where it does. Behind the agent nobody is asked again.
#[inline(always)]
pub fn refuses_taken(packet: &Packet<'_>, segment: &Segment) -> bool {
    let family = match segment.family {
        Family::V4 => 4,
        Family::V6 => 6,
    };
    let end = LimitEnd {
        address: segment.destination,
        port_be: segment.destination_port,
        family,
        protocol: PROTOCOL_TCP,
    };
    match refuses(&end, &PolicyAddress { family, address: segment.source }, true) {
        Some(slot) => {
            events::tell_limited_connection(packet, segment, slot);
            true
        }
        None => false,
    }
}

/// The maps at the time of a packet. `NAMED`: whether pods' identities are asked for.
struct Maps<const NAMED: bool> {
    now_ns: u64,
}

impl<const NAMED: bool> LimitMaps for Maps<NAMED> {
    #[inline(always)]
    fn is_exempt(&self, key: &ExemptKey) -> bool {
        LIMIT_EXEMPT.get(Key::new(EXEMPT_BITS, *key)).is_some()
    }

    #[inline(always)]
    fn identity(&self, source: &PolicyAddress) -> Option<u64> {
        if !NAMED {
            return None;
        }
        // SAFETY: as above.
        LIMIT_NAMED.get_ptr(source).map(|identity| unsafe { *identity })
    }

    #[inline(always)]
    fn has_token(&self, key: &LimitKey, limit: &KernelLimit) -> bool {
        match LIMIT_BUCKETS.get_ptr(key) {
            Some(known) => advance(bucket::read(known), self.now_ns, limit.interval_ns, limit.whole_ns).1,
            None => true,
        }
    }

    #[inline(always)]
    fn take(&self, key: &LimitKey, limit: &KernelLimit) -> Taken {
        let Some(bucket) = bucket_of(key, limit.slot) else { return Taken::NoRoom };
        bucket::take::<TRIES>(bucket, |seen| advance(seen, self.now_ns, limit.interval_ns, limit.whole_ns))
    }

    #[inline(always)]
    fn count(&self, limit: &KernelLimit, outcome: Outcome) {
        count_limited(limit.slot, outcome);
    }
}

/// A source's bucket, a full one if it is new; `None` where there is no room for it.
#[inline(always)]
fn bucket_of(key: &LimitKey, slot: u32) -> Option<*mut u64> {
    if let Some(known) = LIMIT_BUCKETS.get_ptr_mut(key) {
        return Some(known);
    }
    // Another processor may be first; then its entry is the one that counts.
    if LIMIT_BUCKETS.insert(key, &0_u64, BPF_NOEXIST as u64).is_ok() {
        count_bucket(slot);
    }
    LIMIT_BUCKETS.get_ptr_mut(key)
}
