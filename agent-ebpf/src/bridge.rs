//! Bridges, the messages: past the agent to the far end of its other connection. `agent_common::bridge` says when, and why no
//! byte is ever overtaken.
//!
//! Fail-open: without a bridge that holds, a message goes to the agent. The one exception is in [`Past::Misled`].

use agent_common::acceleration::{EndKey, EndValue};
use agent_common::bridge::{BRIDGED, OVER, Route, route};
use aya_ebpf::bindings::{BPF_F_INGRESS, sk_action::SK_PASS};
use aya_ebpf::programs::SkMsgContext;

use crate::maps::{ACCELERATION, BRIDGE_OF, BRIDGES, ENDS, JOINED_SOCKETS};

/// What became of a message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Past {
    /// It goes to the far end.
    Bridged,
    /// It is for the agent.
    ForAgent,
    /// It is for the agent, but would go to somebody else's socket: it must be sent elsewhere, or dropped.
    Misled,
}

/// Sends a message past the agent where there is a bridge. `end`: the sender's decision as it was before the message, which is
/// joined.
#[inline(always)]
pub fn past_the_agent(context: &SkMsgContext, key: &EndKey, end: &EndValue) -> Past {
    // Only what is for the agent can go past it.
    if ACCELERATION.get(0).is_none_or(|config| config.node_cookie != end.peer_cookie) {
        return Past::ForAgent;
    }
    let Some(number) = BRIDGE_OF.get_ptr(key) else { return Past::ForAgent };
    // SAFETY: the kernel keeps a map value's memory valid for the run of the program. A number that is another bridge's by now is
    // found out by the birth.
    let Some(bridge) = BRIDGES.get_ptr_mut(unsafe { *number }) else { return Past::ForAgent };
    // SAFETY: as above. The agent gives the place to another connection only long after this run.
    let (born, forwarded, state) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*bridge).born),
            core::ptr::read_volatile(&raw const (*bridge).forwarded),
            core::ptr::read_volatile(&raw const (*bridge).state),
        )
    };
    if born != end.born {
        return Past::ForAgent;
    }
    let route = route(state, forwarded, end.handed);
    let mut past = Past::ForAgent;
    if route == Route::Straight || route == Route::Switch {
        // SAFETY: as above.
        let (far, far_born) = unsafe { ((*bridge).far, (*bridge).far_born) };
        // The agent's sending end is in the namespace of its receiving one.
        if route == Route::Straight || is_joined(&far.peer(end.peer_cookie)) {
            past = redirect(context, &far, far_born);
        }
    }
    // SAFETY: as above; these fields are this program's, under the sender's lock.
    unsafe {
        if past == Past::Bridged {
            core::ptr::write_volatile(&raw mut (*bridge).state, BRIDGED);
            (*bridge).moved += u64::from(context.size());
        } else if route == Route::Straight || route == Route::End {
            core::ptr::write_volatile(&raw mut (*bridge).state, OVER);
        }
    }
    past
}

/// Sends a message to the far end, if that is still the one that was born then.
#[inline(always)]
fn redirect(context: &SkMsgContext, far: &EndKey, far_born: u64) -> Past {
    if JOINED_SOCKETS.redirect_msg(context, *far, u64::from(BPF_F_INGRESS)) != SK_PASS.into() {
        return Past::ForAgent;
    }
    // Another connection's socket enters after its birth is written, so that the look comes last.
    // SAFETY: as above.
    let same = unsafe { ENDS.get(far) }.is_some_and(|end| end.born == far_born);
    if same { Past::Bridged } else { Past::Misled }
}

#[inline(always)]
fn is_joined(key: &EndKey) -> bool {
    // SAFETY: as above.
    unsafe { ENDS.get(key) }.is_some_and(|end| end.is_joined())
}
