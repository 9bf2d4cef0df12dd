//! TC egress of a pod's host-side interface, by which everything enters the pod: what limits say of its addresses and ports.
//!
//! Policy is asked before, at the same hook. What the node itself sends passes unasked and uncounted: probes of the kubelet, and the
//! agent, whose connections are counted where it took them. Fail-open: what is not understood passes.

use agent_common::limit::LimitEnd;
use agent_common::policy::{PacketKind, read};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

use crate::ctx::Packet;
use crate::maps::config;
use crate::{events, limit};

/// Ends a classifier without a decision (on tcx, 0 would end the chain).
const NEXT: i32 = -1;
/// Drops the packet.
const DROP: i32 = 2;

/// Entry point.
#[classifier]
pub fn limit_pod(context: TcContext) -> i32 {
    let packet = Packet(&context);
    if packet.sent_here() || packet.mark() == config().own_mark || packet.tagged() {
        return NEXT;
    }
    let Some(read) = read(&packet) else { return NEXT };
    let end = LimitEnd {
        address: read.destination.address,
        port_be: read.destination_port,
        family: read.destination.family,
        protocol: read.protocol,
    };
    match limit::refuses(&end, &read.source, read.kind == PacketKind::Opening) {
        Some(slot) => {
            events::tell_limited(&packet, &read, slot);
            DROP
        }
        None => NEXT,
    }
}
