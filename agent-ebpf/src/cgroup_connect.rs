//! `connect()` and `getpeername()` of sockets below the cgroup: a service's address becomes a backend's before the first
//! packet, and the socket is told of the service when it asks for its peer.
//!
//! Fail-open: a socket that is not balanced, for whatever reason, goes where it was told to. The packet programs see the
//! service's address then, as they do of pods outside the cgroup.

use agent_common::balance::{
    AffinityKey, AffinityValue, ConnectReason, End, FrontendValue, MemberKey, SlotKey, SocketKey,
    SocketValue, TCP, draw, holds, left_to, number,
};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::events::tell_balanced;
use crate::maps::{AFFINITY, FRONTENDS, MEMBERS, SLOTS, SOCKETS, count_connect, socket_events};
use crate::sock_addr::{Call, now_seconds, process, random};

/// The call goes on; the other answer would fail it.
pub const GO_ON: i32 = 1;

/// `connect()` of an IPv4 socket.
#[cgroup_sock_addr(connect4)]
pub fn balance_connect4(context: SockAddrContext) -> i32 {
    lead(&Call::v4(&context))
}

/// `connect()` of an IPv6 socket.
#[cgroup_sock_addr(connect6)]
pub fn balance_connect6(context: SockAddrContext) -> i32 {
    lead(&Call::v6(&context))
}

/// `getpeername()` of an IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
pub fn balance_peername4(context: SockAddrContext) -> i32 {
    tell(&Call::v4(&context))
}

/// `getpeername()` of an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub fn balance_peername6(context: SockAddrContext) -> i32 {
    tell(&Call::v6(&context))
}

/// Leads the call to a backend, where its address is a balanced service's.
#[inline(always)]
pub fn lead(call: &Call<'_>) -> i32 {
    let reason = match try_lead(call) {
        Ok(reason) | Err(reason) => reason,
    };
    count_connect(reason);
    GO_ON
}

/// Puts the service's address in the place of the backend that it was led to.
#[inline(always)]
pub fn tell(call: &Call<'_>) -> i32 {
    if let Some(backend) = call.end()
        && let Some(known) = SOCKETS.get_ptr(&SocketKey { cookie: call.socket(), backend, padding: 0 })
    {
        // SAFETY: the kernel keeps a map value's memory valid for the run of the program.
        call.set(&unsafe { (*known).dialled });
    }
    GO_ON
}

#[inline(always)]
fn try_lead(call: &Call<'_>) -> Result<ConnectReason, ConnectReason> {
    let dialled = call.end().ok_or(ConnectReason::OtherProtocol)?;
    let frontend = FRONTENDS.get_ptr(&dialled).ok_or(ConnectReason::NotAService)?;
    // SAFETY: the kernel keeps a map value's memory valid for the run of the program, and the agent replaces values whole.
    let frontend = unsafe { &*frontend };
    if let Some(reason) = left_to(frontend.tier) {
        return Err(reason);
    }
    let socket = call.socket();
    // Not part of the answer: the compiler would copy it before it knows that there is one, which the verifier refuses.
    let mut reason = ConnectReason::Balanced;
    let backend = choose(frontend, socket, call.client(), &mut reason)?;
    let key = SocketKey { cookie: socket, backend, padding: 0 };
    let value = SocketValue { dialled, process: process(), reason: reason as u32 };
    let is_known = match SOCKETS.get_ptr(&key) {
        // SAFETY: as above.
        Some(known) => unsafe { (*known).dialled == dialled },
        None => false,
    };
    SOCKETS.insert(&key, &value, 0).map_err(|_| ConnectReason::NotRemembered)?;
    // Connections are told of once their own address is chosen, where sockets are told of.
    if !is_known && (dialled.protocol != TCP || socket_events().on == 0) {
        tell_balanced(&backend, &value);
    }
    call.set(&backend);
    Ok(reason)
}

#[inline(always)]
fn choose(
    frontend: &FrontendValue,
    socket: u64,
    client: u64,
    reason: &mut ConnectReason,
) -> Result<End, ConnectReason> {
    if frontend.affinity_seconds == 0 {
        return drawn(frontend, socket, client);
    }
    let key = AffinityKey { client, pool: frontend.pool, padding: 0 };
    let now = now_seconds();
    if let Some(known) = AFFINITY.get_ptr_mut(&key) {
        // SAFETY: as above. Two CPUs may write the time at once; either is right.
        let known = unsafe { &mut *known };
        let backend = known.backend;
        if holds(known.used_seconds, now, frontend.affinity_seconds)
            && MEMBERS.get_ptr(&MemberKey { pool: frontend.pool, backend }).is_some()
        {
            known.used_seconds = now;
            *reason = ConnectReason::Affinity;
            return Ok(backend);
        }
    }
    let backend = drawn(frontend, socket, client)?;
    let value = AffinityValue { backend, padding: 0, used_seconds: now };
    AFFINITY.insert(&key, &value, 0).map_err(|_| ConnectReason::NotRemembered)?;
    Ok(backend)
}

#[inline(always)]
fn drawn(frontend: &FrontendValue, socket: u64, client: u64) -> Result<End, ConnectReason> {
    let (slot, coin) = draw(number(frontend, random(), socket, client), frontend.slots);
    let key = SlotKey { table: frontend.table, slot };
    let slot = SLOTS.get_ptr(&key).ok_or(ConnectReason::TableChanged)?;
    // SAFETY: as above.
    Ok(unsafe { (*slot).pick(coin) })
}
