//! Every map, with the one who writes it.

use agent_common::acceleration::{
    AccelerationConfig, AccelerationReason, EndKey, EndValue, HELD_BACK_MAX, PodValue,
};
use agent_common::balance::{
    AffinityKey, AffinityValue, ConnectReason, End, FrontendValue, MemberKey, SlotKey, SlotValue, SocketKey,
    SocketValue,
};
use agent_common::bridge::{BRIDGES_MAX, BridgeValue};
use agent_common::capture::{
    AddressKey, CaptureConfig, DestinationKey, DestinationValue, LISTENERS as LISTENERS_MAX, Reason,
};
use agent_common::event::{DropBudget, OPEN_SOCKETS_MAX, OpenSocket, RING_BYTES, SocketEvents};
use agent_common::guard::{self, GuardSettings, MAX_PUSHED, MAX_RULES, SourceBuckets, SourceKey};
use agent_common::limit::{
    ExemptKey, LIMIT_ENDS_MAX, LIMIT_EXEMPT_MAX, LIMIT_GATEWAYS_MAX, LIMIT_NAMED_MAX, LIMIT_SLOTS,
    LimitCounts, LimitEnd, LimitKey, LimitSet, Outcome,
};
use agent_common::policy::{
    POLICY_FLOWS_MAX, POLICY_PODS_MAX, POLICY_RULES_MAX, POLICY_SLOTS, POLICY_SOURCES_MAX, PolicyAddress,
    PolicyFlow, PolicyPod, PolicyRuleKey, PolicyRuleValue, PolicySourceKey,
};
use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SockHash, SockMap};

/// Written by the agent before the programs are loaded.
#[unsafe(no_mangle)]
static CONFIG: CaptureConfig = CaptureConfig { deliver_mark: 0, own_mark: 0, workers: 0, padding: 0 };

/// The settings that the agent loaded these programs with.
#[inline(always)]
pub fn config() -> CaptureConfig {
    // SAFETY: a static of plain integers; volatile because the loader replaces its bytes after compilation.
    unsafe { core::ptr::read_volatile(&raw const CONFIG) }
}

/// What pods may dial and what is done with it. Written by the agent when its routing table changes.
#[map]
pub static DESTINATIONS: HashMap<DestinationKey, DestinationValue> = HashMap::with_max_entries(65_536, 0);

/// The node's own addresses. Written by the agent when netlink says so.
#[map]
pub static LOCAL_ADDRESSES: HashMap<AddressKey, u32> = HashMap::with_max_entries(16_384, 0);

/// Capture listeners: worker `n` has `2n` (IPv4) and `2n + 1` (IPv6), the inbound ones the same from `INBOUND_LISTENERS` on,
/// those of tunnels from `TUNNEL_LISTENERS` on.
/// Written by the agent; a closed socket leaves by itself.
#[map]
pub static LISTENERS: SockMap = SockMap::with_max_entries(LISTENERS_MAX, 0);

/// Packets by [`Reason`]. Written by the programs.
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Reason::ALL.len() as u32, 0);

/// A flow event for each connection that is asked for. Written by the programs, read by the agent.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

/// What each CPU may still tell of drops. Written by the programs.
#[map]
pub static DROP_BUDGET: PerCpuArray<DropBudget> = PerCpuArray::with_max_entries(1, 0);

/// Sockets whose end will be told, by cookie. Written by the sockops program.
#[map]
pub static OPEN_SOCKETS: HashMap<u64, OpenSocket> =
    HashMap::with_max_entries(OPEN_SOCKETS_MAX, BPF_F_NO_PREALLOC);

/// Written by the agent before the programs are loaded; off in the self-test's.
#[unsafe(no_mangle)]
static SOCKET_EVENTS: SocketEvents = SocketEvents { node_cookie: 0, on: 0, padding: 0 };

/// Whether sockets are told of, and whose are not.
#[inline(always)]
pub fn socket_events() -> SocketEvents {
    // SAFETY: as with the settings above.
    unsafe { core::ptr::read_volatile(&raw const SOCKET_EVENTS) }
}

/// Flow events that were not told. Written by the programs.
#[map]
static EVENTS_LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Counts a flow event that was not told.
#[inline(always)]
pub fn count_lost() {
    if let Some(counter) = EVENTS_LOST.get_ptr_mut(0) {
        // SAFETY: this CPU's own slot, and a program is not interrupted by itself.
        unsafe { *counter += 1 };
    }
}

/// Counts a packet.
#[inline(always)]
pub fn count(reason: Reason) {
    if let Some(counter) = COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's own slot, and a program is not interrupted by itself.
        unsafe { *counter += 1 };
    }
}

/// What is done with sockets that dial an address of a service. Written by the agent when its routing table changes. These
/// three take memory as they fill. What is replaced or removed is free for another entry at once (since 6.1 the kernel does not
/// wait for readers), so programs copy a value right after they have found it.
#[map]
pub static FRONTENDS: HashMap<End, FrontendValue> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

/// The tables of backends. Written by the agent: a new table first, then the frontends that point to it.
#[map]
pub static SLOTS: HashMap<SlotKey, SlotValue> = HashMap::with_max_entries(262_144, BPF_F_NO_PREALLOC);

/// Backends of pools whose clients come back. Written by the agent.
#[map]
pub static MEMBERS: HashMap<MemberKey, u32> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

/// Where clients were led last. Written by the programs; the longest unused leave first.
#[map]
pub static AFFINITY: LruHashMap<AffinityKey, AffinityValue> = LruHashMap::with_max_entries(65_536, 0);

/// Balanced sockets. Written by the programs, read by the agent when a backend vanishes; the longest unused leave first.
#[map]
pub static SOCKETS: LruHashMap<SocketKey, SocketValue> = LruHashMap::with_max_entries(65_536, 0);

/// Sockets by [`ConnectReason`]. Written by the programs.
#[map]
static CONNECT_COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(ConnectReason::ALL.len() as u32, 0);

/// Counts a socket's wish.
#[inline(always)]
pub fn count_connect(reason: ConnectReason) {
    if let Some(counter) = CONNECT_COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's own slot. A program that is interrupted right here by another process's may lose that one's
        // count, which is all that depends on it.
        unsafe { *counter += 1 };
    }
}

/// Pods under policy. Written by the agent when its routing table changes, after what it leads to.
#[map]
pub static POLICY_PODS: HashMap<PolicyAddress, PolicyPod> =
    HashMap::with_max_entries(POLICY_PODS_MAX, BPF_F_NO_PREALLOC);

/// Classes of sources. Written by the agent; one generation is read while it writes another.
#[map]
pub static POLICY_SOURCES: LpmTrie<PolicySourceKey, u32> = LpmTrie::with_max_entries(POLICY_SOURCES_MAX, 0);

/// What each class may do with each port. Written by the agent; a set is never changed once pods lead to it.
#[map]
pub static POLICY_RULES: HashMap<PolicyRuleKey, PolicyRuleValue> =
    HashMap::with_max_entries(POLICY_RULES_MAX, BPF_F_NO_PREALLOC);

/// Conversations that pods under policy have begun. Written by the programs.
#[map]
pub static POLICY_FLOWS: LruHashMap<PolicyFlow, u32> = LruHashMap::with_max_entries(POLICY_FLOWS_MAX, 0);

/// Packets refused, by the slot of the rule. Written by the programs.
#[map]
static POLICY_DROPS: PerCpuArray<u64> = PerCpuArray::with_max_entries(POLICY_SLOTS, 0);

/// A question about a route, kept here as a program's stack is short. Written by the programs.
#[map]
pub static ROUTE_QUESTION: PerCpuArray<[u64; 8]> = PerCpuArray::with_max_entries(1, 0);

/// Counts a packet that a rule refused.
#[inline(always)]
pub fn count_refused(slot: u32) {
    if let Some(counter) = POLICY_DROPS.get_ptr_mut(slot) {
        // SAFETY: as with the counter above.
        unsafe { *counter += 1 };
    }
}

/// The limits of addresses and ports. Written by the agent when its routing table changes.
#[map]
pub static LIMIT_ENDS: HashMap<LimitEnd, LimitSet> =
    HashMap::with_max_entries(LIMIT_ENDS_MAX, BPF_F_NO_PREALLOC);

/// The limits of Gateways' listeners, which the guard holds to: an address of zeros is any of the node's. Written by the agent.
#[map]
pub static LIMIT_GATEWAYS: HashMap<LimitEnd, LimitSet> =
    HashMap::with_max_entries(LIMIT_GATEWAYS_MAX, BPF_F_NO_PREALLOC);

/// Networks that limits do not hold for. Written by the agent.
#[map]
pub static LIMIT_EXEMPT: LpmTrie<ExemptKey, u32> = LpmTrie::with_max_entries(LIMIT_EXEMPT_MAX, 0);

/// Identities of pods, where a limit counts by them. Written by the agent.
#[map]
pub static LIMIT_NAMED: HashMap<PolicyAddress, u64> =
    HashMap::with_max_entries(LIMIT_NAMED_MAX, BPF_F_NO_PREALLOC);

/// Buckets of all limits; a full map forgets who was silent longest. Written by the programs. As large as the agent makes it.
#[map]
pub static LIMIT_BUCKETS: LruHashMap<LimitKey, u64> = LruHashMap::with_max_entries(1, 0);

/// What limits have done, by their slots. Written by the programs; zeroed by the agent before a slot is used again.
#[map]
static LIMIT_COUNTS: PerCpuArray<LimitCounts> = PerCpuArray::with_max_entries(LIMIT_SLOTS, 0);

/// Counts what a limit has done with a packet.
#[inline(always)]
pub fn count_limited(slot: u32, outcome: Outcome) {
    if let Some(counts) = LIMIT_COUNTS.get_ptr_mut(slot) {
        // SAFETY: as with the counters above.
        unsafe { (*counts).by_outcome[outcome as usize] += 1 };
    }
}

/// Counts a bucket that a limit has made.
#[inline(always)]
pub fn count_bucket(slot: u32) {
    if let Some(counts) = LIMIT_COUNTS.get_ptr_mut(slot) {
        // SAFETY: as above.
        unsafe { (*counts).made += 1 };
    }
}

/// Settings of acceleration. Written by the agent before its programs are attached.
#[map]
pub static ACCELERATION: Array<AccelerationConfig> = Array::with_max_entries(1, 0);

/// Pods of this node by address: their namespace, and whether they take part. Written by the agent when pods come and go.
#[map]
pub static ACCELERATION_PODS: HashMap<AddressKey, PodValue> =
    HashMap::with_max_entries(16_384, BPF_F_NO_PREALLOC);

/// Sockets of same-node connections. Written by the sockops program; closed sockets leave by themselves.
#[map]
pub static JOINED_SOCKETS: SockHash<EndKey> = SockHash::with_max_entries(131_072, 0);

/// Dialling ends that are in [`JOINED_SOCKETS`]. Written by the sockops program.
#[map]
pub static WAITING: HashMap<EndKey, u8> = HashMap::with_max_entries(131_072, BPF_F_NO_PREALLOC);

/// What was decided of an end's connection, once. Written by the sockops and the sk_msg program, and by the agent where it
/// leads a joined end back to TCP.
#[map]
pub static ENDS: HashMap<EndKey, EndValue> = HashMap::with_max_entries(131_072, BPF_F_NO_PREALLOC);

/// Senders that are held back, by their ends without a namespace, and until when, in the kernel's monotonic nanoseconds.
/// Written by the agent.
#[map]
pub static HELD_BACK: HashMap<EndKey, u64> = HashMap::with_max_entries(HELD_BACK_MAX, BPF_F_NO_PREALLOC);

/// The latest end in [`HELD_BACK`]: later, nobody is looked for there. Written by the agent.
#[map]
pub static HELD_BACK_UNTIL: Array<u64> = Array::with_max_entries(1, 0);

/// The bridge of a sender, by its number in [`BRIDGES`]. Written by the agent.
#[map]
pub static BRIDGE_OF: HashMap<EndKey, u32> = HashMap::with_max_entries(BRIDGES_MAX, BPF_F_NO_PREALLOC);

/// Directions past the agent. Written by the agent, which has this memory mapped, and by the sk_msg program; each field by one of
/// them. As large as the agent makes it.
#[map]
pub static BRIDGES: Array<BridgeValue> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Connections and messages by [`AccelerationReason`]. Written by the programs.
#[map]
static ACCELERATION_COUNTERS: PerCpuArray<u64> =
    PerCpuArray::with_max_entries(AccelerationReason::ALL.len() as u32, 0);

/// Counts a connection or a message.
#[inline(always)]
pub fn count_acceleration(reason: AccelerationReason) {
    if let Some(counter) = ACCELERATION_COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's own slot; a count that an interrupt's program takes meanwhile may be lost, no other harm.
        unsafe { *counter += 1 };
    }
}

/// Sources by IPv4 prefix: the number of the object that denies them, or [`guard::ALLOW`]. Written by the agent.
#[map]
pub static GUARD_V4: LpmTrie<[u8; 4], u32> = LpmTrie::with_max_entries(1, 0);

/// As [`GUARD_V4`], by IPv6 prefix.
#[map]
pub static GUARD_V6: LpmTrie<[u8; 16], u32> = LpmTrie::with_max_entries(1, 0);

/// Sources that the agent pushed down, with the end of that in the kernel's monotonic nanoseconds. Written by the agent.
#[map]
pub static GUARD_PUSHED: HashMap<SourceKey, u64> = HashMap::with_max_entries(MAX_PUSHED, 0);

/// What every source may send. Written by the agent.
#[map]
pub static GUARD_SETTINGS: Array<GuardSettings> = Array::with_max_entries(1, 0);

/// Buckets by source; a full map forgets who was silent longest. Written by the guard.
#[map]
pub static GUARD_SOURCES: LruHashMap<SourceKey, SourceBuckets> = LruHashMap::with_max_entries(1, 0);

/// Frames by [`guard::Reason`]. Written by the guard.
#[map]
static GUARD_COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(guard::Reason::ALL.len() as u32, 0);

/// Frames that were denied, by the number of the object. Written by the guard; zeroed by the agent before a number is used
/// again.
#[map]
static GUARD_HITS: PerCpuArray<u64> = PerCpuArray::with_max_entries(MAX_RULES, 0);

/// Counts a frame at the guard.
#[inline(always)]
pub fn count_guarded(reason: guard::Reason) {
    if let Some(counter) = GUARD_COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: as in `count`.
        unsafe { *counter += 1 };
    }
}

/// Counts a frame that an object denied.
#[inline(always)]
pub fn count_hit(rule: u32) {
    if let Some(counter) = GUARD_HITS.get_ptr_mut(rule) {
        // SAFETY: as in `count`.
        unsafe { *counter += 1 };
    }
}
