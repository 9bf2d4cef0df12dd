//! Tells the agent of connections: of first packets, never of others, of what is dropped, within a budget, and of sockets.

use agent_common::balance::{End, SocketValue};
use agent_common::capture::Reason;
use agent_common::event::{EventKind, FlowEvent, spend, told};
use agent_common::guard::{self, Inspected};
use agent_common::packet::{Family, Segment};
use agent_common::policy::{PolicyPacket, read};
use aya_ebpf::bindings::BPF_RB_AVAIL_DATA;
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns};
use aya_ebpf::programs::XdpContext;

use crate::ctx::Packet;
use crate::ctx::xdp::XdpFrame;
use crate::maps::{DROP_BUDGET, EVENTS, count_lost};

/// What an event says before anything is put in.
const NOTHING: FlowEvent = FlowEvent {
    source: [0; 16],
    destination: [0; 16],
    endpoint: [0; 16],
    source_port: [0; 2],
    destination_port: [0; 2],
    endpoint_port: [0; 2],
    family: 4,
    kind: 0,
    sent_bytes: 0,
    received_bytes: 0,
    lasted_ns: 0,
    interface: 0,
    reason: 0,
    rule: 0,
    rtt_us: 0,
    process: 0,
    protocol: 6,
    flags: 0,
    padding: [0; 2],
};

/// Tells of something, written where the agent will read it, as a program's stack is short. What finds no room, or is left
/// out under pressure, is counted.
#[inline(always)]
pub fn tell(kind: EventKind, write: impl FnOnce(&mut FlowEvent)) {
    // SAFETY: the helper takes nothing and touches nothing.
    let number = u64::from(unsafe { bpf_get_prandom_u32() });
    if !told(EVENTS.query(u64::from(BPF_RB_AVAIL_DATA)), number) {
        return count_lost();
    }
    let Some(mut entry) = EVENTS.reserve::<FlowEvent>(0) else {
        return count_lost();
    };
    let event = entry.write(NOTHING);
    event.kind = kind as u8;
    write(event);
    entry.submit(0);
}

/// Tells of a verdict on a pod's first packet.
#[inline(always)]
pub fn tell_verdict(packet: &Packet<'_>, segment: &Segment, reason: Reason) {
    tell(EventKind::Verdict, |event| {
        write_segment(event, packet, segment);
        event.reason = reason as u32;
    });
}

/// Tells of a connection that the agent would take and a limit refuses.
#[inline(always)]
pub fn tell_limited_connection(packet: &Packet<'_>, segment: &Segment, slot: u32) {
    if affordable() {
        tell(EventKind::Limited, |event| {
            write_segment(event, packet, segment);
            event.rule = slot;
        });
    }
}

#[inline(always)]
fn write_segment(event: &mut FlowEvent, packet: &Packet<'_>, segment: &Segment) {
    event.source = segment.source;
    event.destination = segment.destination;
    event.source_port = segment.source_port;
    event.destination_port = segment.destination_port;
    event.interface = packet.interface();
    event.family = match segment.family {
        Family::V4 => 4,
        Family::V6 => 6,
    };
}

/// Tells of a packet that policy keeps out of a pod.
#[inline(always)]
pub fn tell_refused(packet: &Packet<'_>, read: &PolicyPacket, slot: u32) {
    if affordable() {
        tell(EventKind::Refused, |event| {
            write_ends(event, read);
            event.interface = packet.interface();
            event.rule = slot;
        });
    }
}

/// Tells of a packet that a limit refuses.
#[inline(always)]
pub fn tell_limited(packet: &Packet<'_>, read: &PolicyPacket, slot: u32) {
    if affordable() {
        tell(EventKind::Limited, |event| {
            write_ends(event, read);
            event.interface = packet.interface();
            event.rule = slot;
        });
    }
}

/// Tells of a frame that a Gateway's limit refuses.
#[inline(always)]
pub fn tell_limited_frame(context: &XdpContext, seen: &Inspected, slot: u32) {
    if affordable() {
        tell(EventKind::Limited, |event| {
            event.source = seen.source;
            event.destination = seen.destination;
            event.source_port = seen.sent.from_be;
            event.destination_port = seen.sent.port_be;
            event.family = seen.sender().family;
            event.protocol = seen.sent.protocol;
            event.interface = came_by(context);
            event.rule = slot;
        });
    }
}

/// The index of the interface.
#[inline(always)]
fn came_by(context: &XdpContext) -> u32 {
    // SAFETY: a field of the context that the verifier checks.
    unsafe { core::ptr::read_volatile(&raw const (*context.ctx).ingress_ifindex) }
}

/// Tells of a frame that the guard drops; of one that hides its addresses, nothing but the reason.
#[inline(always)]
pub fn tell_guarded(context: &XdpContext, reason: guard::Reason, rule: u32) {
    if affordable() {
        let read = read(&XdpFrame(context));
        tell(EventKind::Guarded, |event| {
            event.protocol = 0;
            if let Some(read) = &read {
                write_ends(event, read);
            }
            event.interface = came_by(context);
            event.reason = reason as u32;
            event.rule = rule;
        });
    }
}

/// Tells of a socket that is led to an endpoint and has no address of its own yet.
#[inline(always)]
pub fn tell_balanced(backend: &End, value: &SocketValue) {
    tell(EventKind::Balanced, |event| {
        event.destination = value.dialled.octets();
        event.destination_port = value.dialled.port_be.to_ne_bytes();
        event.endpoint = backend.octets();
        event.endpoint_port = backend.port_be.to_ne_bytes();
        event.family = backend.family;
        event.protocol = backend.protocol;
        event.reason = value.reason;
        event.process = value.process;
    });
}

#[inline(always)]
fn write_ends(event: &mut FlowEvent, read: &PolicyPacket) {
    event.source = read.source.address;
    event.destination = read.destination.address;
    event.source_port = read.source_port;
    event.destination_port = read.destination_port;
    event.family = read.source.family;
    event.protocol = read.protocol;
}

/// Whether one more drop may be told of; one that is not is counted.
#[inline(always)]
fn affordable() -> bool {
    let Some(budget) = DROP_BUDGET.get_ptr_mut(0) else { return false };
    // SAFETY: this CPU's own entry; a program that is interrupted right here by another may tell of one drop more. The
    // helper takes nothing.
    let may = unsafe {
        let (left, may) = spend(*budget, bpf_ktime_get_coarse_ns());
        *budget = left;
        may
    };
    if !may {
        count_lost();
    }
    may
}
