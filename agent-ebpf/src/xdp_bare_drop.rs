//! XDP that drops everything and looks at nothing: what the bench holds the guard against. The agent never loads it.

use aya_ebpf::bindings::xdp_action::XDP_DROP;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;

/// Entry point.
#[xdp(frags)]
pub fn xdp_bare_drop(_context: XdpContext) -> u32 {
    XDP_DROP
}
