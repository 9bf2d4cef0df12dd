//! TC ingress of every other interface: replies to connections that the agent made in a pod's name, whatever way they come
//! back. Without it they would be forwarded past the agent to the pod, which knows nothing of them.

use agent_common::capture::Reason;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

use crate::deliver::{self, Begins};

/// Entry point for interfaces with Ethernet headers.
#[classifier]
pub fn from_uplink(context: TcContext) -> i32 {
    deliver::run(&context, Begins::Ethernet, |_, _, _| Reason::NotOurs)
}

/// Entry point for interfaces whose packets begin with the IP header.
#[classifier]
pub fn from_uplink_l3(context: TcContext) -> i32 {
    deliver::run(&context, Begins::Network, |_, _, _| Reason::NotOurs)
}
