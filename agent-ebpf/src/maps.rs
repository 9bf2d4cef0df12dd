//! Every map, with the one who writes it.

use agent_common::capture::{
    AddressKey, CaptureConfig, DestinationKey, DestinationValue, MAX_WORKERS, Reason,
};
use agent_common::guard::{self, GuardSettings, MAX_PUSHED, MAX_RULES, SourceBuckets, SourceKey};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::LpmTrie;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, SockMap};

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

/// Capture listeners: worker `n` has `2n` (IPv4) and `2n + 1` (IPv6). Written by the agent; a closed socket leaves by itself.
#[map]
pub static LISTENERS: SockMap = SockMap::with_max_entries(MAX_WORKERS * 2, 0);

/// Packets by [`Reason`]. Written by the programs.
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Reason::ALL.len() as u32, 0);

/// Counts a packet.
#[inline(always)]
pub fn count(reason: Reason) {
    if let Some(counter) = COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's own slot, and a program is not interrupted by itself.
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
