//! What all TC hooks do: a packet of the agent's own connections is marked for delivery to it, one of a sender that is held back
//! or beyond a limit is dropped, everything else goes on.
//!
//! Fail-open: whatever is not understood, not routed or not wanted by a live agent goes on as if we were not there.

use agent_common::capture::{AddressKey, CaptureConfig, Reason, Verdict, decide};
use agent_common::packet::{Segment, parse, parse_network};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::programs::TcContext;

use crate::ctx::Packet;
use crate::maps::{HELD_BACK, HELD_BACK_UNTIL, LOCAL_ADDRESSES, config, count};

/// Ends a classifier without a decision, so that programs after ours still see the packet (on tcx, 0 would end the chain).
const NEXT: i32 = -1;
/// Lets the packet go on into the stack, with no further classifier.
const ACCEPT: i32 = 0;
/// Drops the packet.
const DROP: i32 = 2;

/// What a packet begins with at a hook.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Begins {
    /// An Ethernet header.
    Ethernet,
    /// The IP header: tunnels and the like.
    Network,
}

/// Runs a hook. `open` says what becomes of a segment that asks for a new connection.
#[inline(always)]
pub fn run(
    context: &TcContext,
    begins: Begins,
    open: impl FnOnce(&Packet<'_>, &Segment, &CaptureConfig) -> Reason,
) -> i32 {
    let config = config();
    let packet = Packet(context);
    let reason = match verdict(&packet, begins, &config, open) {
        Ok(reason) | Err(reason) => reason,
    };
    count(reason);
    match reason {
        Reason::Captured | Reason::CapturedInbound | Reason::Established => {
            context.skb.set_mark(config.deliver_mark);
            ACCEPT
        }
        Reason::HeldBack | Reason::RateLimited => DROP,
        _ => NEXT,
    }
}

#[inline(always)]
fn verdict(
    packet: &Packet<'_>,
    begins: Begins,
    config: &CaptureConfig,
    open: impl FnOnce(&Packet<'_>, &Segment, &CaptureConfig) -> Reason,
) -> Result<Reason, Reason> {
    if packet.tagged() {
        return Err(Reason::NotIp);
    }
    let segment = match begins {
        Begins::Ethernet => parse(packet)?,
        Begins::Network => parse_network(packet, packet.ethertype(), 0)?,
    };
    if held_back(&segment) {
        return Ok(Reason::HeldBack);
    }
    Ok(match decide(segment.opens(), packet.owner(&segment), is_local(&segment), config.own_mark) {
        Verdict::Deliver => Reason::Established,
        Verdict::Pass => Reason::NotOurs,
        Verdict::Open => open(packet, &segment, config),
    })
}

/// Whether its sender waits until its receiver has read what was handed over to it past TCP.
#[inline(always)]
fn held_back(segment: &Segment) -> bool {
    let latest = HELD_BACK_UNTIL.get(0).copied().unwrap_or(0);
    if latest == 0 || segment.resets() {
        return false;
    }
    // SAFETY: the helper takes nothing and touches nothing.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: the kernel keeps a map value's memory valid for the run of the program; the agent writes it as one word.
    now < latest && unsafe { HELD_BACK.get(segment.sender()) }.is_some_and(|until| now < *until)
}

/// Whether the node itself is the receiver.
#[inline(always)]
fn is_local(segment: &Segment) -> bool {
    LOCAL_ADDRESSES.get_ptr(&AddressKey { address: segment.destination }).is_some()
}
