//! TC ingress of every other interface: replies to connections that the agent made in a pod's name, whatever way they come
//! back. Without it they would be forwarded past the agent to the pod, which knows nothing of them.

use agent_common::capture::{CaptureConfig, Reason};
use agent_common::packet::Segment;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

use crate::ctx::{Assigned, Packet};
use crate::deliver::{self, Begins};

/// Entry point for interfaces with Ethernet headers.
#[classifier]
pub fn from_uplink(context: TcContext) -> i32 {
    deliver::run(&context, Begins::Ethernet, open)
}

/// Entry point for interfaces whose packets begin with the IP header.
#[classifier]
pub fn from_uplink_l3(context: TcContext) -> i32 {
    deliver::run(&context, Begins::Network, |_, _, _| Reason::NotOurs)
}

/// A new connection is nobody's here, but for one that was captured at a port of this bridge: a bridge does not carry the
/// listener along with the packet. It was counted there.
#[inline(always)]
fn open(packet: &Packet<'_>, segment: &Segment, config: &CaptureConfig) -> Reason {
    if packet.mark() != config.deliver_mark {
        return Reason::NotOurs;
    }
    match packet.assign(segment, config.workers) {
        Assigned::Yes => return Reason::Established,
        Assigned::NoListener | Assigned::Refused => {}
    }
    // The listener went in between. Without the mark the packet goes direct.
    packet.clear_mark();
    Reason::NoListener
}
