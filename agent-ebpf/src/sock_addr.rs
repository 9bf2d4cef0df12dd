//! A socket that is told an address, or asks for one: the unsafe reads and writes of the cgroup hooks' context.

use core::ptr::{read_volatile, write_volatile};

use agent_common::balance::{End, TCP, UDP};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::{
    bpf_get_current_pid_tgid, bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie,
    bpf_ktime_get_ns,
};
use aya_ebpf::programs::SockAddrContext;

/// The address of one call, in the family of its hook.
pub struct Call<'a> {
    context: &'a SockAddrContext,
    v6: bool,
}

impl<'a> Call<'a> {
    /// A call at an IPv4 hook.
    #[inline(always)]
    pub fn v4(context: &'a SockAddrContext) -> Self {
        Self { context, v6: false }
    }

    /// A call at an IPv6 hook.
    #[inline(always)]
    pub fn v6(context: &'a SockAddrContext) -> Self {
        Self { context, v6: true }
    }

    /// The address, where the protocol is one that is balanced.
    #[inline(always)]
    pub fn end(&self) -> Option<End> {
        let call = self.context.sock_addr;
        // SAFETY: fields of the context at constant offsets, which the verifier checks. Volatile, so that each read stays a
        // read of one field: the kernel knows no others.
        unsafe {
            let protocol = match read_volatile(&raw const (*call).protocol) {
                p if p == TCP as u32 => TCP,
                p if p == UDP as u32 => UDP,
                _ => return None,
            };
            let port = read_volatile(&raw const (*call).user_port) as u16;
            if !self.v6 {
                return Some(End::v4(read_volatile(&raw const (*call).user_ip4), port, protocol));
            }
            let address = [
                read_volatile(&raw const (*call).user_ip6[0]),
                read_volatile(&raw const (*call).user_ip6[1]),
                read_volatile(&raw const (*call).user_ip6[2]),
                read_volatile(&raw const (*call).user_ip6[3]),
            ];
            Some(End::v6(address, port, protocol))
        }
    }

    /// Puts another address in its place, of the same family as the one that is there.
    #[inline(always)]
    pub fn set(&self, end: &End) {
        let call = self.context.sock_addr;
        // SAFETY: as above; addresses and ports are the fields that these hooks may write.
        unsafe {
            if self.v6 {
                let [a, b, c, d] = end.as_v6();
                write_volatile(&raw mut (*call).user_ip6[0], a);
                write_volatile(&raw mut (*call).user_ip6[1], b);
                write_volatile(&raw mut (*call).user_ip6[2], c);
                write_volatile(&raw mut (*call).user_ip6[3], d);
            } else {
                write_volatile(&raw mut (*call).user_ip4, end.address_be[0]);
            }
            write_volatile(&raw mut (*call).user_port, end.port_be as u32);
        }
    }

    /// The socket's cookie, which no other socket has had since the machine started.
    #[inline(always)]
    pub fn socket(&self) -> u64 {
        // SAFETY: the helper only reads the context.
        unsafe { bpf_get_socket_cookie(self.context.as_ptr()) }
    }

    /// The cookie of the socket's network namespace.
    #[inline(always)]
    pub fn client(&self) -> u64 {
        // SAFETY: as above.
        unsafe { bpf_get_netns_cookie(self.context.as_ptr()) }
    }
}

/// Chance.
#[inline(always)]
pub fn random() -> u64 {
    // SAFETY: takes nothing.
    unsafe { (u64::from(bpf_get_prandom_u32()) << 32) | u64::from(bpf_get_prandom_u32()) }
}

/// Seconds since the machine started.
#[inline(always)]
pub fn now_seconds() -> u64 {
    // SAFETY: takes nothing.
    unsafe { bpf_ktime_get_ns() / 1_000_000_000 }
}

/// The process that makes the call.
#[inline(always)]
pub fn process() -> u32 {
    // SAFETY: takes nothing; the upper half is what user space calls the process.
    (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32
}
