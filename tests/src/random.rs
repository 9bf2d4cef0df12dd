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

    /// Puts one of the bytes that packets are read by at some place behind the link addresses of a frame.
    pub fn disturb(&mut self, frame: &mut [u8]) -> Result<()> {
        let at = 12 + self.below(frame.len() - 12)?;
        frame[at] = [0, 1, 0xff, 0x11, 0x2c, 0x3c, 0x45, 0x60][self.below(8)?];
        Ok(())
    }
}
