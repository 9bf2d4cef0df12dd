//! Sluice's kernel programs, one file per hook. What they decide lives in `agent-common`, where the host tests it.
#![no_std]
#![no_main]

mod ctx;
mod deliver;
mod events;
mod maps;
mod tc_pod;
mod tc_uplink;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier proves that this is never reached; the compiler still asks for it.
    loop {}
}

/// Helpers such as `bpf_sk_assign` are only given to programs under a GPL-compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
