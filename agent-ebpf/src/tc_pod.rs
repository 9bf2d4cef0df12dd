//! TC ingress of a pod's host-side interface: what the pod sends. New connections to destinations that the routing table
//! gives to the agent are assigned to a worker's listener, and so are those to pods whose policy asks of requests.

use agent_common::capture::{Action, CaptureConfig, Reason};
use agent_common::packet::Segment;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

use crate::ctx::{Assigned, Packet};
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
    let reason = judge(packet, segment, config);
    events::tell_verdict(packet, segment, reason);
    reason
}

#[inline(always)]
fn judge(packet: &Packet<'_>, segment: &Segment, config: &CaptureConfig) -> Reason {
    // What the agent takes on its way out it judges on the way in as well: it is taken once.
    if !inbound::is(segment, Action::Agent) {
        return inbound::open(packet, segment, config, FromPod(true)).unwrap_or(Reason::NoRoute);
    }
    match packet.assign(segment, config.workers, 0) {
        Assigned::Yes => Reason::Captured,
        Assigned::NoListener => Reason::NoListener,
        Assigned::Refused => Reason::AssignFailed,
    }
}
