//! Guests of `cargo xtask vm`: their processors are emulated, which takes some twenty times as long.

use std::time::Duration;

/// Set in a guest.
pub const VARIABLE: &str = "SLUICE_EMULATED";
/// How much longer a test waits there.
const SLOWER: u32 = 6;

/// Whether this machine is one.
#[must_use]
pub fn is_emulated() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// How long to wait for what is given `limit` elsewhere.
#[must_use]
pub fn patience(limit: Duration) -> Duration {
    if is_emulated() { limit * SLOWER } else { limit }
}

/// How much to move where `size` bytes are moved elsewhere: `most` at most, in a guest.
#[must_use]
pub fn transfer(size: usize, most: usize) -> usize {
    if is_emulated() { size.min(most) } else { size }
}
