//! The unsafe reads of socket programs: whose socket it is, and between which ends.

use core::ffi::c_void;

use agent_common::acceleration::{EndKey, is_mapped, joined, wide};
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{bpf_sock_ops, sk_msg_md};
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_map_delete_elem};
use aya_ebpf::programs::{SkMsgContext, SockOpsContext};

use crate::maps::JOINED_SOCKETS;

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// The family that a connection's packets have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4, in whatever kind of socket.
    V4,
    /// IPv6.
    V6,
}

/// A context that belongs to a socket.
pub trait SocketContext: EbpfContext {
    /// The socket's family.
    fn family(&self) -> u32;
    /// Own and remote address, IPv4 in network byte order.
    fn v4(&self) -> (u32, u32);
    /// Own address in words of network byte order.
    fn local_v6(&self) -> [u32; 4];
    /// The remote one.
    fn remote_v6(&self) -> [u32; 4];
    /// Own port in the machine's byte order, remote one in the upper half of the word in network byte order.
    fn ports(&self) -> (u32, u32);
}

/// Reads a field of a context; volatile, because the verifier takes no read of two fields at once.
macro_rules! field {
    ($place:expr) => {
        // SAFETY: a field of the context that the verifier checks.
        unsafe { core::ptr::read_volatile(&raw const $place) }
    };
}

macro_rules! socket_context {
    ($context:ty, $pointer:ident, $raw:ty) => {
        impl SocketContext for $context {
            #[inline(always)]
            fn family(&self) -> u32 {
                field!((*self.$pointer).family)
            }
            #[inline(always)]
            fn v4(&self) -> (u32, u32) {
                (field!((*self.$pointer).local_ip4), field!((*self.$pointer).remote_ip4))
            }
            #[inline(always)]
            fn local_v6(&self) -> [u32; 4] {
                let context: *const $raw = self.$pointer;
                [
                    field!((*context).local_ip6[0]),
                    field!((*context).local_ip6[1]),
                    field!((*context).local_ip6[2]),
                    field!((*context).local_ip6[3]),
                ]
            }
            #[inline(always)]
            fn remote_v6(&self) -> [u32; 4] {
                let context: *const $raw = self.$pointer;
                [
                    field!((*context).remote_ip6[0]),
                    field!((*context).remote_ip6[1]),
                    field!((*context).remote_ip6[2]),
                    field!((*context).remote_ip6[3]),
                ]
            }
            #[inline(always)]
            fn ports(&self) -> (u32, u32) {
                (field!((*self.$pointer).local_port), field!((*self.$pointer).remote_port))
            }
        }
    };
}

socket_context!(SockOpsContext, ops, bpf_sock_ops);
socket_context!(SkMsgContext, msg, sk_msg_md);

/// The family of the connection's packets; `None`: not IP.
#[inline(always)]
pub fn family_of(context: &impl SocketContext) -> Option<Family> {
    match context.family() {
        AF_INET => Some(Family::V4),
        AF_INET6 if is_mapped(&context.remote_v6()) => Some(Family::V4),
        AF_INET6 => Some(Family::V6),
        _ => None,
    }
}

/// The socket as the maps know it.
#[inline(always)]
pub fn key_of_socket(context: &impl SocketContext, family: Family) -> EndKey {
    let (local, remote, number) = match family {
        Family::V4 => {
            let (local, remote) = context.v4();
            (wide(local), wide(remote), 4)
        }
        Family::V6 => (joined(&context.local_v6()), joined(&context.remote_v6()), 6),
    };
    let (local_port, remote_port) = context.ports();
    EndKey {
        // SAFETY: the helper only reads the context.
        cookie: unsafe { bpf_get_netns_cookie(context.as_ptr()) },
        local,
        remote,
        local_port_be: (local_port as u16).to_be_bytes(),
        remote_port_be: (u32::from_be(remote_port) as u16).to_be_bytes(),
        family: number,
        padding: [0; 3],
    }
}

/// The socket's mark; 0 where it has none.
#[inline(always)]
pub fn mark_of_socket(context: &SockOpsContext) -> u32 {
    // SAFETY: a pointer that the verifier knows, and a field of what it points to once it is not null.
    unsafe {
        let socket = (*context.ops).__bindgen_anon_2.sk;
        if socket.is_null() { 0 } else { (*socket).mark }
    }
}

/// Takes a socket out of the map of sockets; its bytes are TCP's from now on.
#[inline(always)]
pub fn remove_socket(key: &EndKey) {
    // SAFETY: the map is a static that the loader relocates, and the key is of its type. A socket that is not in it is no
    // error.
    unsafe {
        bpf_map_delete_elem(
            (&raw const JOINED_SOCKETS).cast_mut().cast::<c_void>(),
            (&raw const *key).cast::<c_void>(),
        );
    }
}
