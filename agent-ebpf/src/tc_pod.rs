//! TC ingress of a pod's host-side interface: what the pod sends. New connections to destinations that the routing table
//! gives to the agent are assigned to a worker's listener, and so are those to pods whose policy asks of requests.

use agent_common::capture::{Action, CaptureConfig, DestinationKey, Reason};
use agent_common::packet::{Family, Segment};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

use crate::ctx::{Assigned, Packet};
use crate::deliver::{self, Begins};
use crate::events;
use crate::inbound;
use crate::maps::DESTINATIONS;

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
    if !wanted(segment) {
        return inbound::open(packet, segment, config).unwrap_or(Reason::NoRoute);
    }
    match packet.assign(segment, config.workers, 0) {
        Assigned::Yes => Reason::Captured,
        Assigned::NoListener => Reason::NoListener,
        Assigned::Refused => Reason::AssignFailed,
    }
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
