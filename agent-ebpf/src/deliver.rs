//! What all TC hooks do: a packet of the agent's own connections is marked for delivery to it, everything else goes on.
//!
//! Fail-open: whatever is not understood, not routed or not wanted by a live agent goes on as if we were not there.

use agent_common::capture::{AddressKey, CaptureConfig, Reason, Verdict, decide};
use agent_common::packet::{Segment, parse, parse_network};
use aya_ebpf::programs::TcContext;

use crate::ctx::Packet;
use crate::maps::{BRIDGES, LOCAL_ADDRESSES, config, count};

/// Ends a classifier without a decision, so that programs after ours still see the packet (on tcx, 0 would end the chain).
const NEXT: i32 = -1;
/// Lets the packet go on into the stack, with no further classifier.
const ACCEPT: i32 = 0;

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
        Reason::Captured | Reason::Established => {
            context.skb.set_mark(config.deliver_mark);
            if begins == Begins::Ethernet {
                lead_to_bridge(&packet);
            }
            ACCEPT
        }
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
    Ok(match decide(segment.opens(), packet.owner(&segment), is_local(&segment), config.own_mark) {
        Verdict::Deliver => Reason::Established,
        Verdict::Pass => Reason::NotOurs,
        Verdict::Open => open(packet, &segment, config),
    })
}

/// A bridge would switch the frame to the port of whoever has its destination address; the mark only counts in the stack,
/// and only frames for the bridge's own address get there.
#[inline(always)]
fn lead_to_bridge(packet: &Packet<'_>) {
    if let Some(bridge) = BRIDGES.get_ptr(&packet.interface()) {
        // SAFETY: the kernel keeps a map value's memory valid for the run of the program.
        packet.set_destination_mac(unsafe { (*bridge).mac });
    }
}

/// Whether the node itself is the receiver.
#[inline(always)]
fn is_local(segment: &Segment) -> bool {
    LOCAL_ADDRESSES.get_ptr(&AddressKey { address: segment.destination }).is_some()
}
