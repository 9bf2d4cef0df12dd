//! The two hooks of policy on a pod's host-side interface: egress, by which everything enters the pod, and ingress, where
//! the conversations are noted that the pod itself begins.
//!
//! Fail-closed: what is sent to a pod under policy and has no ports is judged as such, and what hides them is dropped. Only
//! what the node itself sends passes unasked: probes of the kubelet, and the agent, which asks the same policy before it connects
//! and alone can ask it of requests.

use agent_common::policy::{
    BEGUN_BY_PEER, BEGUN_BY_POD, PacketKind, PolicyAddress, PolicyFlow, PolicyMaps, PolicyPod, PolicyRuleKey,
    PolicyRuleValue, PolicySourceKey, SOURCE_BITS, TENTHS, noted,
    noted_refused, read, refuses,
};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::classifier;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::TcContext;

use crate::ctx::Packet;
use crate::events;
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
    if let Some(slot) = refuses(&read, packet.interface(), &KernelMaps(&packet)) {
        keep(&read.destination, &read.flow_of_receiver(packet.interface()), |before, pod| {
            noted_refused(before, &read, pod, now)
        });
        count_refused(slot);
        events::tell_refused(&packet, &read, slot);
        return DROP;
    }
    // The pod's answers to what was let in shall not look like something that it has begun.
    if read.kind == PacketKind::Datagram {
        note(&read.destination, &read.flow_of_receiver(packet.interface()));
    }
    NEXT
}

/// Entry point at ingress: what the pod sends.
#[classifier]
pub fn watch_pod(context: TcContext) -> i32 {
    let packet = Packet(&context);
    if packet.tagged() {
        return NEXT;
    }
    let Some(read) = read(&packet) else { return NEXT };
    let Some(flow) = read.flow_of_sender(packet.interface()) else { return NEXT };
    keep(&read.source, &flow, |before, pod| noted(before, &read, pod, now));
    NEXT
}

/// Keeps what a packet says of who began a conversation of a pod under policy.
#[inline(always)]
fn keep(pod: &PolicyAddress, flow: &PolicyFlow, says: impl FnOnce(Option<u32>, &PolicyPod) -> Option<u32>) {
    // SAFETY: the kernel keeps a map value's memory valid for the run of the program.
    let Some(pod) = POLICY_PODS.get_ptr(pod).map(|pod| unsafe { *pod }) else { return };
    // SAFETY: as above.
    let before = POLICY_FLOWS.get_ptr(flow).map(|who| unsafe { *who });
    if let Some(who) = says(before, &pod) {
        // As below.
        let _ = POLICY_FLOWS.insert(flow, &who, 0);
    }
}

/// The time, in [`TENTHS`].
#[inline(always)]
fn now() -> u32 {
    // SAFETY: the helper takes nothing and touches nothing.
    unsafe { (bpf_ktime_get_ns() / TENTHS) as u32 }
}

/// Notes that its peer has begun a conversation of a pod under policy, where that is not known yet.
#[inline(always)]
fn note(pod: &PolicyAddress, flow: &PolicyFlow) {
    if POLICY_PODS.get_ptr(pod).is_some() && POLICY_FLOWS.get_ptr(flow).is_none() {
        // Without room an old conversation makes way; should even that fail, answers to this one are judged.
        let _ = POLICY_FLOWS.insert(flow, &BEGUN_BY_PEER, 0);
    }
}

/// Says whether a packet is its source's.
pub trait Proof {
    /// Whether it could ever be.
    fn is_possible(&self) -> bool;
    /// Whether it is, of one with these ends.
    fn holds(&self, source: &PolicyAddress, destination: &PolicyAddress) -> bool;
}

impl Proof for &Packet<'_> {
    #[inline(always)]
    fn is_possible(&self) -> bool {
        true
    }

    #[inline(always)]
    fn holds(&self, source: &PolicyAddress, destination: &PolicyAddress) -> bool {
        self.came_from(source, destination)
    }
}

/// The maps of the running programs, and what is known of the packet that they are asked about.
pub struct KernelMaps<P>(pub P);

impl<P: Proof> PolicyMaps for KernelMaps<P> {
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
        // SAFETY: as above.
        POLICY_FLOWS.get_ptr(flow).is_some_and(|who| unsafe { *who } == BEGUN_BY_POD)
    }

    #[inline(always)]
    fn may_prove(&self) -> bool {
        self.0.is_possible()
    }

    #[inline(always)]
    fn proves(&self, source: &PolicyAddress, destination: &PolicyAddress) -> bool {
        self.0.holds(source, destination)
    }
}
