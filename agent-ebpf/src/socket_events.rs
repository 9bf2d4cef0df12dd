//! Flow events of sockets below the cgroup: led to an endpoint, connected, closed with bytes and round-trip time.
//!
//! Nothing here runs for each packet: the kernel calls when a connection is made and when its state changes. It is attached
//! before acceleration's program, which forgets a connection when it closes.
//!
//! Fail-open: whatever goes wrong leaves a socket untold of.

use agent_common::acceleration::EndKey;
use agent_common::balance::{End, SocketKey, SocketValue, TCP};
use agent_common::event::{
    ACCELERATED, BY_SERVER, CLOSE, EventKind, FIN_WAIT2, FlowEvent, OpenSocket, closed,
};
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
    BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB,
};
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_ktime_get_ns};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;

use crate::events::tell;
use crate::maps::{ENDS, OPEN_SOCKETS, SOCKETS, count_lost, socket_events};
use crate::socket::{family_of, key_of_socket};

/// IPv4's loopback network, the first byte of its addresses.
const LOOPBACK_V4: u8 = 127;
/// What the kernel expects of a program that only looks.
const DONE: u32 = 1;

/// Entry point.
#[sock_ops]
pub fn tell_sockets(context: SockOpsContext) -> u32 {
    match context.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => asks(&context),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => stands(&context, true),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => stands(&context, false),
        BPF_SOCK_OPS_STATE_CB => match context.arg(1) {
            FIN_WAIT2 => half_closes(&context),
            CLOSE => ends(&context),
            _ => {}
        },
        _ => {}
    }
    DONE
}

/// A socket is about to ask for a connection: its own address is chosen by now.
#[inline(always)]
fn asks(context: &SockOpsContext) {
    let Some(key) = of_pod(context) else { return };
    let Some(led) = led_to(cookie(context), &key) else { return };
    tell(EventKind::Balanced, |event| {
        write_dialling(event, &key);
        write_service(event, &key, led);
        // SAFETY: the kernel keeps a map value's memory valid for the run of the program.
        event.reason = unsafe { (*led).reason };
    });
}

/// A connection stands.
#[inline(always)]
fn stands(context: &SockOpsContext, dialled: bool) {
    let Some(key) = of_pod(context) else { return };
    if is_loopback(&key) {
        return;
    }
    let cookie = cookie(context);
    if dialled {
        let led = led_to(cookie, &key);
        tell(EventKind::Opened, |event| {
            write_dialling(event, &key);
            if let Some(led) = led {
                write_service(event, &key, led);
            }
            event.rtt_us = rtt_us(context);
        });
    }
    // SAFETY: the helper takes nothing.
    let since_ns = unsafe { bpf_ktime_get_ns() };
    let socket = OpenSocket { since_ns, received_at_fin: 0, dialled: dialled as u32, padding: 0 };
    if OPEN_SOCKETS.insert(cookie, socket, 0).is_err() {
        return count_lost();
    }
    let flags = context.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG;
    if context.set_cb_flags(flags as i32).is_err() {
        let _ = OPEN_SOCKETS.remove(cookie);
        count_lost();
    }
}

/// The other end has acknowledged that this one closes.
#[inline(always)]
fn half_closes(context: &SockOpsContext) {
    if let Some(socket) = OPEN_SOCKETS.get_ptr_mut(cookie(context)) {
        // SAFETY: as above; the kernel holds the socket's lock, and nobody else writes its entry.
        unsafe { (*socket).received_at_fin = received(context) };
    }
}

/// A connection is over.
#[inline(always)]
fn ends(context: &SockOpsContext) {
    let cookie = cookie(context);
    // Sockets that are not told of may come here for another program.
    // SAFETY: as above.
    let Some(socket) = OPEN_SOCKETS.get_ptr(cookie).map(|socket| unsafe { *socket }) else { return };
    let _ = OPEN_SOCKETS.remove(cookie);
    let Some(key) = of_pod(context) else { return };
    let over = closed(&socket, context.arg(0), acked(context), received(context));
    // SAFETY: as above.
    let accelerated = unsafe { ENDS.get(key) }.is_some_and(|end| end.was_joined());
    let dialled = socket.dialled != 0;
    let led = if dialled { led_to(cookie, &key) } else { None };
    // SAFETY: the helper takes nothing.
    let lasted_ns = unsafe { bpf_ktime_get_ns() }.saturating_sub(socket.since_ns);
    tell(EventKind::Closed, |event| {
        if dialled {
            write_dialling(event, &key);
            (event.sent_bytes, event.received_bytes) = (over.sent, over.received);
        } else {
            write_dialled(event, &key);
            (event.sent_bytes, event.received_bytes) = (over.received, over.sent);
            event.flags = BY_SERVER;
        }
        if let Some(led) = led {
            write_service(event, &key, led);
        }
        if accelerated {
            event.flags |= ACCELERATED;
        }
        event.reason = over.end as u32;
        event.rtt_us = rtt_us(context);
        event.lasted_ns = lasted_ns;
    });
}

/// The socket's ends, where it is not one of the node's own, as the agent's are.
#[inline(always)]
fn of_pod(context: &SockOpsContext) -> Option<EndKey> {
    let key = key_of_socket(context, family_of(context)?);
    if key.cookie == socket_events().node_cookie { None } else { Some(key) }
}

/// What a pod says to itself leaves it nowhere.
#[inline(always)]
fn is_loopback(key: &EndKey) -> bool {
    (key.family == 4 && key.remote[0] == LOOPBACK_V4) || key.remote == key.local
}

/// What the socket asked for before it was led to its peer.
#[inline(always)]
fn led_to(cookie: u64, key: &EndKey) -> Option<*const SocketValue> {
    let r = &key.remote;
    let word = |at: usize| u32::from_ne_bytes([r[at], r[at + 1], r[at + 2], r[at + 3]]);
    let backend = End {
        address_be: [word(0), word(4), word(8), word(12)],
        port_be: u16::from_ne_bytes(key.remote_port_be),
        family: key.family,
        protocol: TCP,
    };
    SOCKETS.get_ptr(&SocketKey { cookie, backend, padding: 0 })
}

#[inline(always)]
fn write_dialling(event: &mut FlowEvent, key: &EndKey) {
    event.source = key.local;
    event.destination = key.remote;
    event.source_port = key.local_port_be;
    event.destination_port = key.remote_port_be;
    event.family = key.family;
}

#[inline(always)]
fn write_dialled(event: &mut FlowEvent, key: &EndKey) {
    event.source = key.remote;
    event.destination = key.local;
    event.source_port = key.remote_port_be;
    event.destination_port = key.local_port_be;
    event.family = key.family;
}

/// The service in the place of the endpoint, which gets a place of its own.
#[inline(always)]
fn write_service(event: &mut FlowEvent, key: &EndKey, led: *const SocketValue) {
    // SAFETY: as above.
    let dialled = unsafe { &(*led).dialled };
    event.destination = dialled.octets();
    event.destination_port = dialled.port_be.to_ne_bytes();
    event.endpoint = key.remote;
    event.endpoint_port = key.remote_port_be;
}

#[inline(always)]
fn cookie(context: &SockOpsContext) -> u64 {
    // SAFETY: the helper only reads the context.
    unsafe { bpf_get_socket_cookie(context.as_ptr()) }
}

/// The kernel keeps eighths of microseconds.
#[inline(always)]
fn rtt_us(context: &SockOpsContext) -> u32 {
    // SAFETY: a field of the context that the verifier checks.
    unsafe { core::ptr::read_volatile(&raw const (*context.ops).srtt_us) >> 3 }
}

#[inline(always)]
fn acked(context: &SockOpsContext) -> u64 {
    // SAFETY: as above.
    unsafe { core::ptr::read_volatile(&raw const (*context.ops).bytes_acked) }
}

#[inline(always)]
fn received(context: &SockOpsContext) -> u64 {
    // SAFETY: as above.
    unsafe { core::ptr::read_volatile(&raw const (*context.ops).bytes_received) }
}
