//! TC ingress of a pod's host-side interface: what the pod sends. New connections to destinations that the routing table
//! gives to the agent are assigned to a worker's listener, and so are those to pods whose policy asks of requests.

use agent_common::capture::{Action, CaptureConfig, Reason};
use agent_common::packet::Segment;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

use crate::ctx::Packet;
use crate::deliver::{self, Begins};
use crate::events;
use crate::inbound::{self, FromPod};

/// Entry point.
#[classifier]
pub fn from_pod(context: TcContext) -> i32 {
    deliver::run(&context, Begins::Ethernet, open)
}

#[inline(always)]
fn open(packet: &Packet<'_>, segment: &Segment, config: &CaptureConfig) -> Reason {
    // What the agent takes on its way out it judges on the way in as well: it is taken once.
    let taken = inbound::is(segment, Action::Agent);
    let first = if taken { Some(0) } else { inbound::listeners(segment, FromPod(true)) };
    let reason = match first {
        Some(first) => inbound::hand_over(packet, segment, config, first),
        None => Reason::NoRoute,
    };
    // Of what a limit refuses it has told itself.
    if reason != Reason::RateLimited {
        events::tell_verdict(packet, segment, reason);
    }
    reason
}
