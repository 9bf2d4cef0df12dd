//! TC ingress of every other interface: replies to connections that the agent made in a pod's name, whatever way they come
//! back, and new connections to pods whose policy asks of requests. Without it the replies would be forwarded past the agent
//! to the pod, which knows nothing of them.

use agent_common::capture::{CaptureConfig, Reason};
use agent_common::packet::Segment;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

use crate::ctx::Packet;
use crate::deliver::{self, Begins};
use crate::events;
use crate::inbound::{self, FromPod};

// Both pass a closure: the function itself would be shared and so be called, and two frames exceed the stack that the kernel gives.

/// Entry point for interfaces with Ethernet headers.
#[classifier]
pub fn from_uplink(context: TcContext) -> i32 {
    deliver::run(&context, Begins::Ethernet, |packet, segment, config| open(packet, segment, config))
}

/// Entry point for interfaces whose packets begin with the IP header.
#[classifier]
pub fn from_uplink_l3(context: TcContext) -> i32 {
    deliver::run(&context, Begins::Network, |packet, segment, config| open(packet, segment, config))
}

/// What passes through the node without concerning its pods is nobody's flow, and not told of.
#[inline(always)]
fn open(packet: &Packet<'_>, segment: &Segment, config: &CaptureConfig) -> Reason {
    let Some(first) = inbound::listeners(segment, FromPod(false)) else { return Reason::NotOurs };
    let reason = inbound::hand_over(packet, segment, config, first);
    // Of what a limit refuses it has told itself.
    if reason != Reason::RateLimited {
        events::tell_verdict(packet, segment, reason);
    }
    reason
}
