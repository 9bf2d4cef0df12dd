//! Sluice's kernel programs, one file per hook. What they decide lives in `agent-common`, where the host tests it.
#![no_std]
#![no_main]
// Compare-and-swap: `core::sync::atomic` has none for this target.
#![feature(core_intrinsics)]
#![allow(internal_features)]

mod bridge;
mod cgroup_connect;
mod cgroup_udp;
mod ctx;
mod deliver;
mod events;
mod inbound;
mod limit;
mod maps;
mod sk_msg;
mod sock_addr;
mod socket;
mod socket_events;
mod sockops;
mod tc_limit;
mod tc_pod;
mod tc_policy;
mod tc_uplink;
mod xdp_bare_drop;
mod xdp_guard;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier proves that this is never reached; the compiler still asks for it.
    loop {}
}

/// Helpers such as `bpf_sk_assign` are only given to programs under a GPL-compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
