//! TC ingress of an interface that leads off the node: replies to connections that the agent made in a pod's name.
//! Without it they would be forwarded past the agent to the pod, which knows nothing of them.

use agent_common::capture::Reason;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

use crate::deliver;

/// Entry point.
#[classifier]
pub fn from_uplink(context: TcContext) -> i32 {
    deliver::run(&context, |_, _, _| Reason::NotOurs)
}
