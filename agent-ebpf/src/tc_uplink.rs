//! TC ingress of an interface that leads off the node: replies to connections that the agent made in a pod's name.
//!
//! Without it they would be forwarded past the agent to the pod, which knows nothing of them. Fail-open.

use agent_common::capture::{Reason, Verdict, decide};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

use crate::ctx::{ACCEPT, NEXT, Packet};
use crate::maps::{config, count};
use crate::tc_pod::{is_local, read};

/// Entry point.
#[classifier]
pub fn from_uplink(context: TcContext) -> i32 {
    let reason = match try_from_uplink(&context) {
        Ok(reason) | Err(reason) => reason,
    };
    count(reason);
    if matches!(reason, Reason::Established) { ACCEPT } else { NEXT }
}

#[inline(always)]
fn try_from_uplink(context: &TcContext) -> Result<Reason, Reason> {
    let packet = Packet(context);
    let segment = read(&packet)?;
    let config = config();
    match decide(segment.opens(), packet.owner(&segment), is_local(&segment), config.own_mark) {
        Verdict::Deliver => {
            context.skb.set_mark(config.deliver_mark);
            Ok(Reason::Established)
        }
        Verdict::Open | Verdict::Pass => Ok(Reason::NotOurs),
    }
}
