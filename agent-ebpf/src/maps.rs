//! Every map, with the one who writes it.

use agent_common::capture::{
    AddressKey, CaptureConfig, DestinationKey, DestinationValue, MAX_WORKERS, Reason,
};
use aya_ebpf::macros::map;
use agent_common::event::RING_BYTES;
use aya_ebpf::maps::{HashMap, PerCpuArray, RingBuf, SockMap};

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

/// A flow event for each connection that is asked for. Written by the programs, read by the agent.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

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
