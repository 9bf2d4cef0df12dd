//! What an XDP program reads: a frame's bytes, wherever the driver keeps them, and the buckets of its source.

use core::ffi::c_void;

use agent_common::guard::{Limit, SizedFrame, SourceBuckets, SourceKey, step};
use agent_common::limit::Taken;
use agent_common::packet::Frame;
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::{bpf_xdp_get_buff_len, bpf_xdp_load_bytes};
use aya_ebpf::programs::XdpContext;

use super::bucket::take;
use crate::maps::GUARD_SOURCES;

/// How often a source's bucket is tried.
const TRIES: u32 = 8;

/// A frame at an XDP hook; may lie in several buffers.
pub struct XdpFrame<'a>(pub &'a XdpContext);

impl Frame for XdpFrame<'_> {
    #[inline(always)]
    fn bytes<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = [0u8; N];
        // SAFETY: the helper writes N bytes to `bytes`, or none, and refuses offsets outside the frame.
        let result =
            unsafe { bpf_xdp_load_bytes(self.0.ctx, offset, bytes.as_mut_ptr().cast::<c_void>(), N as u32) };
        if result == 0 { Some(bytes) } else { None }
    }
}

impl SizedFrame for XdpFrame<'_> {
    #[inline(always)]
    fn frame_len(&self) -> u32 {
        // SAFETY: the helper only reads the context.
        unsafe { bpf_xdp_get_buff_len(self.0.as_ptr().cast()) as u32 }
    }
}

/// The buckets of one source, in the kernel's map.
pub struct Buckets(*mut SourceBuckets);

impl Buckets {
    /// Those of a source, full ones if it is new; `None` where there is no room for it.
    #[inline(always)]
    pub fn of(source: &SourceKey) -> Option<Self> {
        if let Some(known) = GUARD_SOURCES.get_ptr_mut(source) {
            return Some(Self(known));
        }
        // Another processor may be first; then its entry is the one that counts.
        let _ = GUARD_SOURCES.insert(source, &SourceBuckets::default(), BPF_NOEXIST as u64);
        GUARD_SOURCES.get_ptr_mut(source).map(Self)
    }

    /// Takes a token for a packet.
    #[inline(always)]
    pub fn take_packet(&self, now_ns: u64, limit: Limit) -> Taken {
        // SAFETY: the kernel keeps a map value's memory valid for the run of the program.
        take::<TRIES>(unsafe { &raw mut (*self.0).packets }, |seen| step(seen, now_ns, limit))
    }

    /// Takes a token for a request for a connection.
    #[inline(always)]
    pub fn take_syn(&self, now_ns: u64, limit: Limit) -> Taken {
        // SAFETY: as above.
        take::<TRIES>(unsafe { &raw mut (*self.0).syns }, |seen| step(seen, now_ns, limit))
    }
}
