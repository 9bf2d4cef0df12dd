//! Same-node acceleration, the bytes: what a socket in the map sends goes straight to the other end's socket.
//!
//! Fail-open: what cannot be handed over goes by TCP. Only a closed other end leads there, so that nothing is overtaken.

use agent_common::acceleration::{AccelerationReason, EndValue};
use aya_ebpf::bindings::{BPF_F_INGRESS, BPF_NOEXIST, sk_action::SK_PASS};
use aya_ebpf::macros::sk_msg;
use aya_ebpf::programs::SkMsgContext;

use crate::maps::{ENDS, JOINED_SOCKETS, count_acceleration};
use crate::socket::{family_of, key_of_socket};

/// Entry point.
#[sk_msg]
pub fn hand_over(context: SkMsgContext) -> u32 {
    let reason = verdict(&context);
    if let Some(reason) = reason {
        count_acceleration(reason);
    }
    // The redirect is part of the message by now; its verdict and this one are the same number.
    SK_PASS
}

#[inline(always)]
fn verdict(context: &SkMsgContext) -> Option<AccelerationReason> {
    let key = key_of_socket(context, family_of(context)?);
    let mut reason = None;
    let end = match ENDS.get_ptr_mut(key) {
        Some(end) => end,
        // Nobody has decided. From this message on TCP carries everything, unless the other end came in this moment.
        None => {
            if ENDS.insert(key, EndValue::PLAIN, u64::from(BPF_NOEXIST)).is_ok() {
                return Some(AccelerationReason::EarlyWrite);
            }
            ENDS.get_ptr_mut(key)?
        }
    };
    // SAFETY: the kernel keeps a map value's memory valid for the run of the program, and runs it under the socket's lock.
    let end = unsafe { &mut *end };
    if end.is_joined() {
        end.handed += u64::from(context.size());
        let handed =
            JOINED_SOCKETS.redirect_msg(context, key.peer(end.peer_cookie), u64::from(BPF_F_INGRESS))
                == SK_PASS.into();
        reason = Some(if handed { AccelerationReason::Redirected } else { AccelerationReason::PeerClosed });
    }
    reason
}
