//! Tells the agent of connections that are asked for: one event for each first packet, never for others.

use agent_common::capture::Reason;
use agent_common::event::{FlowEvent, told};
use agent_common::packet::{Family, Segment};
use aya_ebpf::bindings::BPF_RB_AVAIL_DATA;
use aya_ebpf::helpers::generated::bpf_get_prandom_u32;

use crate::ctx::Packet;
use crate::maps::{EVENTS, count_lost};

/// Tells of a verdict. What finds no room, or is left out under pressure, is counted.
#[inline(always)]
pub fn tell(packet: &Packet<'_>, segment: &Segment, reason: Reason) {
    // SAFETY: the helper takes nothing and touches nothing.
    let number = u64::from(unsafe { bpf_get_prandom_u32() });
    if !told(EVENTS.query(u64::from(BPF_RB_AVAIL_DATA)), number) {
        return count_lost();
    }
    let Some(mut entry) = EVENTS.reserve::<FlowEvent>(0) else {
        return count_lost();
    };
    entry.write(FlowEvent {
        source: segment.source,
        destination: segment.destination,
        source_port: segment.source_port,
        destination_port: segment.destination_port,
        interface: packet.interface(),
        reason: reason as u32,
        family: match segment.family {
            Family::V4 => 4,
            Family::V6 => 6,
        },
        padding: [0; 3],
    });
    entry.submit(0);
}
