//! The two hooks of policy on a pod's host-side interface: egress, by which everything enters the pod, and ingress, where
//! the conversations are noted that the pod itself begins.
//!
//! Fail-closed: what is sent to a pod under policy and cannot be read is judged like a packet without ports. Only what the
//! node itself sends passes unasked: probes of the kubelet, and the agent, which asks the same policy before it connects.

use agent_common::policy::{
    PolicyAddress, PolicyFlow, PolicyMaps, PolicyPod, PolicyRuleKey, PolicyRuleValue, PolicySourceKey,
    SOURCE_BITS, read, refuses,
};
use aya_ebpf::macros::classifier;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::TcContext;

use crate::ctx::Packet;
use crate::maps::{POLICY_FLOWS, POLICY_PODS, POLICY_RULES, POLICY_SOURCES, config, count_refused};

/// Ends a classifier without a decision (on tcx, 0 would end the chain).
const NEXT: i32 = -1;
/// Drops the packet.
const DROP: i32 = 2;

/// Entry point at egress: what enters the pod.
#[classifier]
pub fn guard_pod(context: TcContext) -> i32 {
    let packet = Packet(&context);
    if packet.sent_here() || packet.mark() == config().own_mark || packet.tagged() {
        return NEXT;
    }
    let Some(read) = read(&packet) else { return NEXT };
    match refuses(&read, &KernelMaps) {
        Some(slot) => {
            count_refused(slot);
            DROP
        }
        None => NEXT,
    }
}

/// Entry point at ingress: what the pod sends.
#[classifier]
pub fn watch_pod(context: TcContext) -> i32 {
    let packet = Packet(&context);
    if packet.tagged() {
        return NEXT;
    }
    let Some(read) = read(&packet) else { return NEXT };
    if let Some(flow) = read.flow_of_sender()
        && POLICY_PODS.get_ptr(&read.source).is_some()
        && POLICY_FLOWS.get_ptr(&flow).is_none()
    {
        // Without room an old conversation makes way; should even that fail, answers to this one are judged.
        let _ = POLICY_FLOWS.insert(&flow, &0, 0);
    }
    NEXT
}

/// The maps of the running programs.
struct KernelMaps;

impl PolicyMaps for KernelMaps {
    #[inline(always)]
    fn pod(&self, address: &PolicyAddress) -> Option<PolicyPod> {
        // SAFETY: the kernel keeps a map value's memory valid for the run of the program.
        POLICY_PODS.get_ptr(address).map(|pod| unsafe { *pod })
    }

    #[inline(always)]
    fn class(&self, key: &PolicySourceKey) -> u32 {
        POLICY_SOURCES.get(Key::new(SOURCE_BITS, *key)).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn rule(&self, key: &PolicyRuleKey) -> Option<PolicyRuleValue> {
        // SAFETY: as above; the agent never changes a value that is there.
        POLICY_RULES.get_ptr(key).map(|value| unsafe { *value })
    }

    #[inline(always)]
    fn began(&self, flow: &PolicyFlow) -> bool {
        POLICY_FLOWS.get_ptr(flow).is_some()
    }
}
