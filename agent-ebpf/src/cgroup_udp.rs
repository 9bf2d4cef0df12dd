//! Datagrams of sockets below the cgroup that are sent to a service's address, and the answers to them: resolvers refuse an
//! answer that comes from elsewhere.
//!
//! Connected sockets are led at their `connect()`; of these only received datagrams pass here. Fail-open, as there.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::cgroup_connect::{lead, tell};
use crate::sock_addr::Call;

/// `sendto()` and `sendmsg()` with an IPv4 address.
#[cgroup_sock_addr(sendmsg4)]
pub fn balance_sendmsg4(context: SockAddrContext) -> i32 {
    lead(&Call::v4(&context))
}

/// `sendto()` and `sendmsg()` with an IPv6 address.
#[cgroup_sock_addr(sendmsg6)]
pub fn balance_sendmsg6(context: SockAddrContext) -> i32 {
    lead(&Call::v6(&context))
}

/// A datagram received on an IPv4 socket.
#[cgroup_sock_addr(recvmsg4)]
pub fn balance_recvmsg4(context: SockAddrContext) -> i32 {
    tell(&Call::v4(&context))
}

/// A datagram received on an IPv6 socket.
#[cgroup_sock_addr(recvmsg6)]
pub fn balance_recvmsg6(context: SockAddrContext) -> i32 {
    tell(&Call::v6(&context))
}
