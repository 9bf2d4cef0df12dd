//! Same-node acceleration, the connections: sockets of a cgroup enter the map when their connection stands, and leave it
//! when it closes or turns out to be TCP's. `agent_common::acceleration` says which, and why no byte is ever overtaken.
//!
//! Fail-open: whatever goes wrong leaves the socket to TCP.

use agent_common::acceleration::{
    AccelerationReason, EndKey, EndValue, PodValue, diallers, holder, may_meet,
};
use agent_common::bridge::birth;
use agent_common::capture::{Action, AddressKey, DestinationKey};
use aya_ebpf::bindings::{
    BPF_NOEXIST, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PARSE_ALL_HDR_OPT_CB_FLAG,
    BPF_SOCK_OPS_PARSE_HDR_OPT_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
    BPF_SOCK_OPS_STATE_CB_FLAG,
};
use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_ktime_get_ns};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;

use crate::maps::{
    ACCELERATION, ACCELERATION_PODS, DESTINATIONS, ENDS, JOINED_SOCKETS, WAITING, count_acceleration,
};
use crate::socket::{family_of, key_of_socket, mark_of_socket, remove_socket};

/// The state of a socket that is closed for good.
const TCP_CLOSE: u32 = 7;
const WATCH_CLOSE: u32 = BPF_SOCK_OPS_STATE_CB_FLAG;
const WATCH_PACKETS: u32 = BPF_SOCK_OPS_PARSE_ALL_HDR_OPT_CB_FLAG;
/// What the kernel expects of a program that only looks.
const DONE: u32 = 1;

/// Entry point.
#[sock_ops]
pub fn accelerate(context: SockOpsContext) -> u32 {
    match context.op() {
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => {
            if let Err(reason) = wait(&context) {
                count_acceleration(reason);
            }
        }
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => {
            if let Some(reason) = join(&context) {
                count_acceleration(reason);
            }
        }
        BPF_SOCK_OPS_PARSE_HDR_OPT_CB => first_packet(&context),
        BPF_SOCK_OPS_STATE_CB if context.arg(1) == TCP_CLOSE => forget(&context),
        _ => {}
    }
    DONE
}

/// The dialling end: enters, and waits for the other one.
#[inline(always)]
fn wait(context: &SockOpsContext) -> Result<(), AccelerationReason> {
    let Some(family) = family_of(context) else { return Err(AccelerationReason::NotOurs) };
    let key = key_of_socket(context, family);
    let Some(config) = ACCELERATION.get(0) else { return Err(AccelerationReason::NotOurs) };
    let remote = pod(&key.remote);
    let whose = holder(config, key.cookie, mark_of_socket(context), pod(&key.local))?;
    may_meet(config, whose, remote, remote.is_none() && captured(&key))?;
    // Data in the SYN (TCP Fast Open) has gone by TCP already.
    // SAFETY: a field of the context that the verifier checks.
    if unsafe { (*context.ops).data_segs_out } != 0 {
        return Err(AccelerationReason::EarlyWrite);
    }
    // An older connection of the same ends may have left its decision.
    let _ = ENDS.remove(key);
    watch(context, WATCH_CLOSE | WATCH_PACKETS, 0)?;
    // Others may want to see it close: that call stays, and finds nothing to forget.
    if JOINED_SOCKETS.update(key, unsafe { &mut *context.ops }, 0).is_err() {
        watch(context, 0, WATCH_PACKETS)?;
        return Err(AccelerationReason::Full);
    }
    if WAITING.insert(key, 1u8, 0).is_err() {
        remove_socket(&key);
        watch(context, 0, WATCH_PACKETS)?;
        return Err(AccelerationReason::Full);
    }
    Ok(())
}

/// The answering end: enters where the other one waits, and decides that they are joined.
#[inline(always)]
fn join(context: &SockOpsContext) -> Option<AccelerationReason> {
    let key = key_of_socket(context, family_of(context)?);
    let config = ACCELERATION.get(0)?;
    let whose = holder(config, key.cookie, mark_of_socket(context), pod(&key.local)).ok()?;
    let [first, second] = diallers(config, whose, key.cookie, pod(&key.remote)).ok()?;
    let mut peer = key.peer(first);
    if !waits(&peer) {
        peer.cookie = second;
        if !waits(&peer) {
            return None;
        }
    }
    // SAFETY: the helpers take nothing and touch nothing.
    let born = unsafe { birth(bpf_ktime_get_ns(), bpf_get_smp_processor_id()) };
    // In before the decision falls, so that whoever learns of it finds this end.
    let joined = ENDS.insert(key, EndValue::joined(peer.cookie, born), 0).is_ok()
        && JOINED_SOCKETS.update(key, unsafe { &mut *context.ops }, 0).is_ok();
    if !joined {
        let _ = ENDS.remove(key);
        return Some(AccelerationReason::Full);
    }
    // The first to write here decides; the dialling end writes `PLAIN` when it sends or receives by TCP.
    if ENDS.insert(peer, EndValue::joined(key.cookie, born), u64::from(BPF_NOEXIST)).is_err() {
        remove_socket(&key);
        let _ = ENDS.remove(key);
        return None;
    }
    // Without the callback the entries stay until the same ends meet again, which overwrites them.
    let _ = watch(context, WATCH_CLOSE, 0);
    Some(AccelerationReason::Joined)
}

/// The first packet that a waiting end receives: an acknowledgement to one that is joined, else the other end's data or the
/// answer to its own, before anything of it can be read.
#[inline(always)]
fn first_packet(context: &SockOpsContext) {
    let Some(family) = family_of(context) else { return };
    let key = key_of_socket(context, family);
    if !waits(&key) {
        // Another program asked for this call.
        return;
    }
    let decided = ENDS.insert(key, EndValue::PLAIN, u64::from(BPF_NOEXIST)).is_ok();
    // The first packet may come after the agent has led this end back: what it was handed by then waits in the map's queue, which
    // the kernel would throw away with the entry.
    // SAFETY: the kernel keeps a map value's memory valid for the run of the program.
    let was_joined = unsafe { ENDS.get(key) }.is_some_and(|end| end.was_joined());
    let _ = watch(context, 0, WATCH_PACKETS);
    if !was_joined {
        if decided {
            count_acceleration(AccelerationReason::PeerAbsent);
        }
        remove_socket(&key);
    }
}

/// The socket is closed: the kernel takes it out of the map of sockets by itself.
#[inline(always)]
fn forget(context: &SockOpsContext) {
    let Some(family) = family_of(context) else { return };
    let key = key_of_socket(context, family);
    // SAFETY: as above.
    let was_joined = unsafe { ENDS.get(key) }.is_some_and(|end| end.is_joined());
    let _ = WAITING.remove(key);
    if ENDS.remove(key).is_ok() && was_joined {
        count_acceleration(AccelerationReason::Closed);
    }
}

#[inline(always)]
fn waits(key: &EndKey) -> bool {
    key.cookie != 0 && WAITING.get_ptr(key).is_some()
}

#[inline(always)]
fn pod(address: &[u8; 16]) -> Option<PodValue> {
    // SAFETY: as above.
    unsafe { ACCELERATION_PODS.get(AddressKey { address: *address }) }.copied()
}

/// Whether the agent takes connections to the other end's address, so that it is the other end.
#[inline(always)]
fn captured(key: &EndKey) -> bool {
    let to =
        DestinationKey { address: key.remote, port_be: key.remote_port_be, family: key.family, padding: 0 };
    // SAFETY: as above.
    unsafe { DESTINATIONS.get(to) }.is_some_and(|to| to.action == Action::Agent as u32)
}

/// Changes what the kernel calls this program for. Flags of other programs on the socket stay.
#[inline(always)]
fn watch(context: &SockOpsContext, also: u32, no_more: u32) -> Result<(), AccelerationReason> {
    let flags = (context.cb_flags() | also) & !no_more;
    context.set_cb_flags(flags as i32).map_err(|_| AccelerationReason::NotOurs)
}
