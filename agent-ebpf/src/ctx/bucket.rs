//! Buckets in maps of the kernel: one number each, changed by compare-and-swap.

use core::intrinsics::{AtomicOrdering, atomic_cxchg};

use agent_common::limit::Taken;

/// Takes a token: `step` says what a bucket becomes, and whether there was one. A swap is tried `TRIES` times before a packet's fate is
/// given up. Each failure means that another processor has changed the same bucket in the few nanoseconds between.
#[inline(always)]
pub fn take<const TRIES: u32>(bucket: *mut u64, step: impl Fn(u64) -> (u64, bool)) -> Taken {
    let mut seen = read(bucket);
    for _ in 0..TRIES {
        let (next, granted) = step(seen);
        let taken = if granted { Taken::Yes } else { Taken::No };
        if next == seen {
            return taken;
        }
        // SAFETY: a bucket of a map value, 8 bytes at an aligned place; other processors change it whole.
        let (found, swapped) = unsafe {
            atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(bucket, seen, next)
        };
        if swapped {
            return taken;
        }
        seen = found;
    }
    Taken::Contended
}

/// What a bucket is now.
#[inline(always)]
pub fn read(bucket: *const u64) -> u64 {
    // SAFETY: a bucket of a map value; other processors change it whole.
    unsafe { core::ptr::read_volatile(bucket) }
}
