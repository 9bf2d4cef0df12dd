//! The memory of bridges, which the programs have as a map and the agent as its own.
#![expect(unsafe_code, reason = "memory that is shared with the kernel's programs has no safe wrapper")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use agent_common::acceleration::EndKey;
use agent_common::bridge::{BridgeValue, CUT, RELAYED};
use aya::Ebpf;
use aya::maps::{Map, MapData, MapError};

use crate::capture::CaptureError;

/// The entries of the map, for as long as this lives.
pub struct Memory {
    entries: NonNull<BridgeValue>,
    len: u32,
    bytes: usize,
    /// Held for the sake of who looks for the map's holder.
    _map: MapData,
}

// SAFETY: the memory belongs to no thread, and all that is shared in it is read and written by atomic operations, or by the
// one who has been given the entry.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps the entries of a map of that name into memory.
    pub fn map(ebpf: &mut Ebpf, name: &'static str) -> Result<Self, CaptureError> {
        let error = |source| CaptureError::Map { map: name, source };
        let Some(Map::Array(map)) = ebpf.take_map(name) else {
            return Err(error(MapError::InvalidMapType { map_type: 0 }));
        };
        let len = map.info().map_err(error)?.max_entries();
        // The kernel maps whole pages.
        let bytes = (len as usize * size_of::<BridgeValue>()).next_multiple_of(page_bytes());
        let (fd, access) = (map.fd().as_fd().as_raw_fd(), libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: a mapping at a place that the kernel chooses, of a map that the kernel lets be mapped.
        let memory = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, libc::MAP_SHARED, fd, 0) };
        let entries = NonNull::new(memory.cast()).filter(|_| memory != libc::MAP_FAILED);
        let entries = entries.ok_or_else(|| error(MapError::IoError(io::Error::last_os_error())))?;
        Ok(Self { entries, len, bytes, _map: map })
    }

    /// How many entries there are.
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// Fills an entry that is not in force, for a sender of that birth.
    pub fn prepare(&self, number: u32, born: u64, (far, far_born): (EndKey, u64)) {
        let value = BridgeValue { far, born, far_born, forwarded: CUT, state: RELAYED, moved: 0 };
        // SAFETY: the entry is there, and the program leaves one that is not in force alone.
        unsafe { self.entry(number).write_volatile(value) };
    }

    /// Puts an entry in force, or tells of more that was forwarded.
    pub fn publish(&self, number: u32, forwarded: u64) {
        // SAFETY: the entry is there.
        self.field(number, |entry| unsafe { &raw mut (*entry).forwarded })
            .store(forwarded, Ordering::Release);
    }

    /// Puts an entry out of force.
    pub fn cut(&self, number: u32) {
        self.publish(number, CUT);
    }

    /// Where its messages go.
    pub fn state(&self, number: u32) -> u64 {
        // SAFETY: the entry is there.
        self.field(number, |entry| unsafe { &raw mut (*entry).state }).load(Ordering::Acquire)
    }

    /// Bytes that went past the agent.
    pub fn moved(&self, number: u32) -> u64 {
        // SAFETY: the entry is there.
        self.field(number, |entry| unsafe { &raw mut (*entry).moved }).load(Ordering::Acquire)
    }

    fn entry(&self, number: u32) -> *mut BridgeValue {
        assert!(number < self.len, "places are given out below the length");
        // SAFETY: within the mapping.
        unsafe { self.entries.as_ptr().add(number as usize) }
    }

    /// A counter in an entry.
    fn field(&self, number: u32, place: impl FnOnce(*mut BridgeValue) -> *mut u64) -> &AtomicU64 {
        // SAFETY: aligned, and mapped as long as this lives; the programs read and write it as one word.
        unsafe { AtomicU64::from_ptr(place(self.entry(number))) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's alone, and nothing refers to it any more.
        let _ = unsafe { libc::munmap(self.entries.as_ptr().cast(), self.bytes) };
    }
}

fn page_bytes() -> usize {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|bytes| usize::try_from(bytes).ok())
        .unwrap_or(4096)
}
