//! Inbound capture at TC ingress, by whatever interface a connection comes: new connections to pods whose policy asks of
//! requests are assigned to a worker's inbound listener.
//!
//! Fail-closed all the same: what is not taken here goes on to the pod's own interface, whose guard drops it.

use agent_common::capture::{CaptureConfig, INBOUND_LISTENERS, Reason};
use agent_common::inbound::takes;
use agent_common::packet::Segment;

use crate::ctx::{Assigned, Packet};
use crate::tc_policy::KernelMaps;

/// What becomes of a segment that asks for a new connection; `None`: it is nothing for the agent.
#[inline(always)]
pub fn open(packet: &Packet<'_>, segment: &Segment, config: &CaptureConfig) -> Option<Reason> {
    if !takes(segment, &KernelMaps) {
        return None;
    }
    Some(match packet.assign(segment, config.workers, INBOUND_LISTENERS) {
        Assigned::Yes => Reason::CapturedInbound,
        Assigned::NoListener => Reason::NoListener,
        Assigned::Refused => Reason::AssignFailed,
    })
}
