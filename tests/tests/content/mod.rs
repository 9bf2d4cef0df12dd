//! Content for large transfers, and whether it arrives as it was sent.
#![allow(dead_code, reason = "every test binary uses its own part of this")]

use std::io::{BufRead, Write};

use anyhow::{Context, Result, ensure};

/// Bytes given to one write; a chunk of HTTP carries as many.
pub const PIECE: usize = 100_000;

/// Bytes that are not the same anywhere: noise of a prime length, over and over, each time under another number.
pub struct Content {
    /// The position of the next byte.
    pub at: u64,
    block: Vec<u8>,
}

pub const BLOCK: usize = 65_521;

impl Content {
    pub fn new() -> Self {
        let mut state = 0x9e37_79b9_u32;
        let block = (0..BLOCK).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        });
        let mut content = Self { at: 0, block: block.collect() };
        content.number();
        content
    }

    fn number(&mut self) {
        let number = self.at / BLOCK as u64;
        self.block[..8].copy_from_slice(&number.to_be_bytes());
    }

    /// The next bytes, at most `len` of them and at least one.
    pub fn next(&mut self, len: usize) -> &[u8] {
        let from = usize::try_from(self.at % BLOCK as u64).expect("below the block's length");
        if from == 0 {
            self.number();
        }
        let to = BLOCK.min(from + len);
        self.at += (to - from) as u64;
        &self.block[from..to]
    }

    /// Fails unless these are the next bytes.
    pub fn expect(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let at = self.at;
            let expected = self.next(bytes.len());
            let (now, rest) = bytes.split_at(expected.len());
            ensure!(now == expected, "changed between bytes {at} and {}", at + now.len() as u64);
            bytes = rest;
        }
        Ok(())
    }

    /// Writes the next `len` bytes.
    pub fn write(&mut self, to: &mut impl Write, mut len: u64) -> std::io::Result<()> {
        while len > 0 {
            let piece = self.next(usize::try_from(len.min(PIECE as u64)).unwrap_or(PIECE));
            let written = piece.len() as u64;
            to.write_all(piece)?;
            len -= written;
        }
        Ok(())
    }

    /// Writes the next `len` bytes as chunks.
    pub fn write_chunked(&mut self, to: &mut impl Write, mut len: u64) -> std::io::Result<()> {
        while len > 0 {
            let piece = self.next(usize::try_from(len.min(PIECE as u64)).unwrap_or(PIECE));
            len -= piece.len() as u64;
            to.write_all(&chunk(piece))?;
        }
        to.write_all(LAST_CHUNK)
    }

    /// Reads the next `len` bytes and compares them.
    pub fn read(&mut self, from: &mut impl BufRead, mut len: u64) -> Result<()> {
        while len > 0 {
            let bytes = from.fill_buf()?;
            ensure!(!bytes.is_empty(), "ended after {} bytes, {len} too early", self.at);
            let now = bytes.len().min(usize::try_from(len).unwrap_or(usize::MAX));
            self.expect(&bytes[..now])?;
            from.consume(now);
            len -= now as u64;
        }
        Ok(())
    }

    /// Reads chunks to their end, compares them, and returns how many bytes they carried.
    pub fn read_chunked(&mut self, from: &mut impl BufRead) -> Result<u64> {
        let start = self.at;
        loop {
            let size = line(from)?;
            let size = u64::from_str_radix(&size, 16).with_context(|| format!("chunk size {size:?}"))?;
            self.read(from, size)?;
            ensure!(line(from)?.is_empty(), "a chunk longer than it said");
            if size == 0 {
                return Ok(self.at - start);
            }
        }
    }
}

pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

pub fn chunk(content: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", content.len()).as_bytes(), content, b"\r\n"].concat()
}

/// A line without its end.
pub fn line(from: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    line.strip_suffix("\r\n").map(str::to_owned).with_context(|| format!("a line that ends as {line:?}"))
}
