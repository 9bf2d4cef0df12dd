//! Inbound capture at TC ingress, by whatever interface a connection comes: tunnels to this node's pods, and new connections to
//! pods whose policy asks of requests, are assigned to a worker's listener for them.
//!
//! Fail-closed all the same: what is not taken here goes on to the pod's own interface, whose guard drops what the request
//! decides; and what is meant for the end of a tunnel is TLS, of which a pod understands nothing.

use agent_common::capture::{
    Action, CaptureConfig, DestinationKey, HBONE_PORT, INBOUND_LISTENERS, Reason, TUNNEL_LISTENERS,
};
use agent_common::inbound::takes;
use agent_common::packet::{Family, Segment};
use agent_common::policy::PolicyAddress;

use crate::ctx::{Assigned, Packet};
use crate::limit;
use crate::maps::DESTINATIONS;
use crate::tc_policy::{KernelMaps, Proof};

/// Whether the hook is that of a pod's interface: what comes by it is the pod's, as far as it matters whether the agent takes it.
/// Whoever only says so is found out by the agent's answer, which goes to the pod that has the address.
#[derive(Clone, Copy)]
pub struct FromPod(pub bool);

impl Proof for FromPod {
    #[inline(always)]
    fn is_possible(&self) -> bool {
        self.0
    }

    #[inline(always)]
    fn holds(&self, _: &PolicyAddress, _: &PolicyAddress) -> bool {
        self.0
    }
}

/// The listeners for a segment that asks for a new connection; `None`: it is nothing for the agent.
#[inline(always)]
pub fn listeners(segment: &Segment, from_pod: FromPod) -> Option<u32> {
    if segment.destination_port == HBONE_PORT.to_be_bytes() && is(segment, Action::Tunnel) {
        Some(TUNNEL_LISTENERS)
    } else if takes(segment, &KernelMaps(from_pod)) {
        Some(INBOUND_LISTENERS)
    } else {
        None
    }
}

/// What becomes of a segment that asks for a new connection and is for these listeners; 0: those of what pods dial.
#[inline(always)]
pub fn hand_over(packet: &Packet<'_>, segment: &Segment, config: &CaptureConfig, first: u32) -> Reason {
    match packet.assign(segment, config.workers, first) {
        // Counted only where somebody takes it: what goes direct is counted at the pod. Connections in a tunnel were counted
        // where it begins.
        Assigned::Yes if first != TUNNEL_LISTENERS && limit::refuses_taken(packet, segment) => {
            Reason::RateLimited
        }
        Assigned::Yes if first == 0 => Reason::Captured,
        Assigned::Yes => Reason::CapturedInbound,
        Assigned::NoListener => Reason::NoListener,
        Assigned::Refused => Reason::AssignFailed,
    }
}

/// Whether the routing table says so of new connections to this destination.
#[inline(always)]
pub fn is(segment: &Segment, action: Action) -> bool {
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
        Some(value) => unsafe { (*value).action == action as u32 },
        None => false,
    }
}
