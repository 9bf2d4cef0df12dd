//! TC ingress of a pod's host-side interface: what the pod sends.
//!
//! Fail-open: whatever is not understood, not routed or not wanted by a live agent goes on as if we were not there.

use agent_common::capture::{Action, AddressKey, DestinationKey, Reason, Verdict, decide};
use agent_common::packet::{Family, Segment, parse};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

use crate::ctx::{ACCEPT, Assigned, NEXT, Packet};
use crate::maps::{DESTINATIONS, LOCAL_ADDRESSES, config, count};

/// Entry point.
#[classifier]
pub fn from_pod(context: TcContext) -> i32 {
    let reason = match try_from_pod(&context) {
        Ok(reason) | Err(reason) => reason,
    };
    count(reason);
    match reason {
        Reason::Captured | Reason::Established => ACCEPT,
        _ => NEXT,
    }
}

#[inline(always)]
fn try_from_pod(context: &TcContext) -> Result<Reason, Reason> {
    let packet = Packet(context);
    let segment = read(&packet)?;
    let config = config();
    match decide(segment.opens(), packet.owner(&segment), is_local(&segment), config.own_mark) {
        Verdict::Deliver => {
            context.skb.set_mark(config.deliver_mark);
            Ok(Reason::Established)
        }
        Verdict::Pass => Ok(Reason::NotOurs),
        Verdict::Open if !wanted(&segment) => Ok(Reason::NoRoute),
        Verdict::Open => match packet.assign(&segment, config.workers) {
            Assigned::Yes => {
                context.skb.set_mark(config.deliver_mark);
                Ok(Reason::Captured)
            }
            Assigned::NoListener => Ok(Reason::NoListener),
            Assigned::Refused => Ok(Reason::AssignFailed),
        },
    }
}

/// The segment, if the frame is one.
#[inline(always)]
pub fn read(packet: &Packet<'_>) -> Result<Segment, Reason> {
    if packet.tagged() { Err(Reason::NotIp) } else { parse(packet) }
}

/// Whether the node itself is the receiver.
#[inline(always)]
pub fn is_local(segment: &Segment) -> bool {
    LOCAL_ADDRESSES.get_ptr(&AddressKey { address: segment.destination }).is_some()
}

/// Whether the routing table sends new connections to this destination to the agent.
#[inline(always)]
fn wanted(segment: &Segment) -> bool {
    let key = DestinationKey {
        address: segment.destination,
        port_be: segment.destination_port,
        family: match segment.family {
            Family::V4 => 4,
            Family::V6 => 6,
        },
        padding: 0,
    };
    match DESTINATIONS.get_ptr(&key) {
        // SAFETY: the kernel keeps a map value's memory valid for the run of the program.
        Some(value) => unsafe { (*value).action == Action::Agent as u32 },
        None => false,
    }
}
