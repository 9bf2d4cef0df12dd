//! Same-node acceleration, the bytes: what a socket in the map sends goes straight to the other end's socket.
//!
//! Fail-open: what cannot be handed over goes by TCP. Only a closed other end leads there, so that nothing is overtaken.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use agent_common::acceleration::{AccelerationReason, EndValue};
use aya_ebpf::bindings::{
    BPF_F_INGRESS, BPF_NOEXIST,
    sk_action::{SK_DROP, SK_PASS},
};
use aya_ebpf::macros::sk_msg;
use aya_ebpf::programs::SkMsgContext;

use crate::bridge::{Past, past_the_agent};
use crate::maps::{ENDS, JOINED_SOCKETS, count_acceleration};
use crate::socket::{family_of, key_of_socket};

/// Entry point.
#[sk_msg]
pub fn hand_over(context: SkMsgContext) -> u32 {
    match verdict(&context) {
        Ok(reason) => {
            if let Some(reason) = reason {
                count_acceleration(reason);
            }
            // The redirect is part of the message by now; its verdict and this one are the same number.
            SK_PASS
        }
        Err(Misled) => SK_DROP,
    }
}

/// The message would go to a socket that is not meant, as both ends of the sender's connection are gone.
struct Misled;

#[inline(always)]
fn verdict(context: &SkMsgContext) -> Result<Option<AccelerationReason>, Misled> {
    let Some(family) = family_of(context) else { return Ok(None) };
    let key = key_of_socket(context, family);
    let end = match ENDS.get_ptr_mut(key) {
        Some(end) => end,
        // Nobody has decided. From this message on TCP carries everything, unless the other end came in this moment.
        None => {
            if ENDS.insert(key, EndValue::PLAIN, u64::from(BPF_NOEXIST)).is_ok() {
                return Ok(Some(AccelerationReason::EarlyWrite));
            }
            let Some(end) = ENDS.get_ptr_mut(key) else { return Ok(None) };
            end
        }
    };
    // SAFETY: the kernel keeps a map value's memory valid for the run of the program, and runs it under the socket's lock.
    let before = unsafe { *end };
    if !before.is_joined() {
        return Ok(None);
    }
    // SAFETY: as above. Atomic, because the entry may be another connection's once the agent has led this one back; that
    // one's count may become too high, which only keeps it from a bridge, but not too low.
    unsafe {
        atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(
            &raw mut (*end).handed,
            u64::from(context.size()),
        );
    }
    let past = past_the_agent(context, &key, &before);
    if past == Past::Bridged {
        return Ok(Some(AccelerationReason::Bridged));
    }
    let peer = key.peer(before.peer_cookie);
    if JOINED_SOCKETS.redirect_msg(context, peer, u64::from(BPF_F_INGRESS)) == SK_PASS.into() {
        return Ok(Some(AccelerationReason::Redirected));
    }
    if past == Past::Misled { Err(Misled) } else { Ok(Some(AccelerationReason::PeerClosed)) }
}
