//! XDP at the interfaces that the user named: drops frames before the stack spends anything on them.
//!
//! Fail-open: what is not understood, and a source that finds no room among the remembered ones, passes. Fail-closed: a source
//! whose bucket too many processors fight over. Without the agent the program is gone and everything passes.

use agent_common::guard::{Inspected, Listed, Reason, SourceKey, inspect, listed, pushed_down};
use agent_common::limit::Taken;
use agent_common::packet::Family;
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::xdp;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::XdpContext;

use crate::ctx::xdp::{Buckets, XdpFrame};
use crate::maps::{GUARD_PUSHED, GUARD_SETTINGS, GUARD_V4, GUARD_V6, count_guarded, count_hit};
use crate::{events, limit};

/// Entry point; frames of several buffers are read too.
#[xdp(frags)]
pub fn xdp_guard(context: XdpContext) -> u32 {
    let mut rule = 0;
    let reason = match judge(&context, &mut rule) {
        Ok(reason) | Err(reason) => reason,
    };
    count_guarded(reason);
    if !reason.drops() {
        return XDP_PASS;
    }
    if reason != Reason::RateLimited {
        events::tell_guarded(&context, reason, rule);
    }
    XDP_DROP
}

#[inline(always)]
fn judge(context: &XdpContext, denied_by: &mut u32) -> Result<Reason, Reason> {
    let seen = inspect(&XdpFrame(context))?;
    match listed(rule_of(&seen)) {
        Listed::Allow => Ok(Reason::Allowed),
        Listed::Deny(rule) => {
            count_hit(rule);
            *denied_by = rule;
            Ok(Reason::Denied)
        }
        Listed::No => {
            let (Ok(reason) | Err(reason)) = hold_to_limits(&seen);
            match limited_at_gateway(&seen, reason) {
                Some(slot) => {
                    events::tell_limited_frame(context, &seen, slot);
                    Err(Reason::RateLimited)
                }
                None => Ok(reason),
            }
        }
    }
}

/// Whether a limit of the Gateway refuses what nothing else does: the slot of that limit.
#[inline(always)]
fn limited_at_gateway(seen: &Inspected, reason: Reason) -> Option<u32> {
    // SAFETY: as below.
    if reason.drops() || unsafe { (*GUARD_SETTINGS.get_ptr(0)?).limited } == 0 {
        return None;
    }
    limit::refuses_at_gateway(seen)
}

/// The value of the longest prefix that holds the source.
#[inline(always)]
fn rule_of(seen: &Inspected) -> Option<u32> {
    match seen.family {
        Family::V4 => {
            let [a, b, c, d, ..] = seen.source;
            GUARD_V4.get(Key::new(32, [a, b, c, d])).copied()
        }
        Family::V6 => GUARD_V6.get(Key::new(128, seen.source)).copied(),
    }
}

#[inline(always)]
fn hold_to_limits(seen: &Inspected) -> Result<Reason, Reason> {
    let Some(settings) = GUARD_SETTINGS.get_ptr(0) else { return Ok(Reason::Passed) };
    // SAFETY: the kernel keeps a map value's memory valid for the run of the program; the agent changes it word by word, so
    // that at worst one frame meets a new limit beside an old one.
    let (packets, syns, pushed) = unsafe { ((*settings).packets, (*settings).syns, (*settings).pushed) };
    let counts_syn = seen.sent.opens && syns.is_set();
    if pushed == 0 && !packets.is_set() && !counts_syn {
        return Ok(Reason::Passed);
    }
    let source = SourceKey::of(seen.family, &seen.source);
    // SAFETY: the helper takes nothing.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    if pushed != 0
        && let Some(until) = GUARD_PUSHED.get_ptr(&source)
    {
        // SAFETY: as above.
        if pushed_down(unsafe { *until }, now_ns) {
            return Err(Reason::PushedDown);
        }
    }
    if !packets.is_set() && !counts_syn {
        return Ok(Reason::Passed);
    }
    let buckets = Buckets::of(&source).ok_or(Reason::Untracked)?;
    // Requests for connections come first: one that is refused takes no packet's token from the source's connections.
    if counts_syn {
        check(buckets.take_syn(now_ns, syns), Reason::SynRate)?;
    }
    if packets.is_set() {
        check(buckets.take_packet(now_ns, packets), Reason::PacketRate)?;
    }
    Ok(Reason::Passed)
}

#[inline(always)]
fn check(taken: Taken, refused: Reason) -> Result<(), Reason> {
    match taken {
        Taken::Yes => Ok(()),
        Taken::No => Err(refused),
        Taken::Contended => Err(Reason::Contended),
        // Its source has its buckets already.
        Taken::NoRoom => Err(Reason::Untracked),
    }
}
