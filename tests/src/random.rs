//! Numbers for tests that make things up: the same ones for the same seed.

use anyhow::Result;

/// A generator of the family xorshift; its seed is not 0, and belongs into every failure's message.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number below a limit, which is not 0.
    pub fn below(&mut self, limit: usize) -> Result<usize> {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        Ok(usize::try_from(self.0 >> 16)? % limit)
    }
}
