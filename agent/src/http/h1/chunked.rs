//! Chunked coding (RFC 9112 section 7.1), strict: CRLF only, no space around the size, extensions dropped.
//!
//! ```text
//!            digit            ;             CR          LF, size > 0          CR        LF
//! SizeStart ------> Size ---------> Ext ---------> SizeLf --------> Data -> DataCr -> DataLf -> SizeStart
//!                    `------------ CR ------------^   `- LF, size 0 -> Trailers -- empty line --> End
//! ```

use bytes::{BufMut, BytesMut};

use crate::http::{Refusal, hop};

/// The most bytes of chunk extensions in one body.
const MAX_EXTENSION_BYTES: usize = 1024;
/// The most bytes of a trailer section.
const MAX_TRAILER_BYTES: usize = 8 * 1024;
/// The most trailer fields.
const MAX_TRAILERS: usize = 32;
/// The most digits of a chunk size: all that fit into 64 bits.
const MAX_SIZE_DIGITS: u8 = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    SizeStart,
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    Trailers,
    End,
}

/// What lies at the start of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// After `skip` bytes of framing, `len` bytes of data.
    Data {
        /// Bytes to pass over.
        skip: usize,
        /// Bytes of data behind them.
        len: usize,
    },
    /// The input's `skip` bytes are used up and more are needed.
    More {
        /// Bytes to pass over.
        skip: usize,
    },
    /// The body ends after `skip` bytes.
    End {
        /// Bytes to pass over.
        skip: usize,
    },
}

/// Reads a chunked body piece by piece. Pure: bytes in, ranges out.
#[derive(Debug, Default)]
pub struct ChunkDecoder {
    state: State,
    remaining: u64,
    digits: u8,
    extension_bytes: usize,
    trailers: Vec<u8>,
}

impl ChunkDecoder {
    /// The next piece of `input`; the caller passes over what it names before it calls again.
    pub fn next(&mut self, input: &[u8]) -> Result<Piece, Refusal> {
        let mut at = 0;
        while at < input.len() {
            match self.state {
                State::Data => {
                    let left = input.len() - at;
                    let len = usize::try_from(self.remaining).map_or(left, |remaining| remaining.min(left));
                    self.remaining -= len as u64;
                    if self.remaining == 0 {
                        self.state = State::DataCr;
                    }
                    return Ok(Piece::Data { skip: at, len });
                }
                State::End => return Ok(Piece::End { skip: at }),
                State::Trailers => self.trailer_byte(input[at])?,
                _ => self.frame_byte(input[at])?,
            }
            at += 1;
        }
        if self.state == State::End { Ok(Piece::End { skip: at }) } else { Ok(Piece::More { skip: at }) }
    }

    /// The trailer fields that may be passed on, as `name: value` lines; `underscores`: also those with `_` in their names.
    /// Call once, after [`Piece::End`].
    pub fn take_trailers(&mut self, underscores: bool) -> Result<Vec<u8>, Refusal> {
        let raw = std::mem::take(&mut self.trailers);
        if raw.len() <= 2 { Ok(Vec::new()) } else { filter_trailers(&raw, underscores) }
    }

    fn frame_byte(&mut self, byte: u8) -> Result<(), Refusal> {
        self.state = match (self.state, byte) {
            (State::SizeStart | State::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => self.digit(byte)?,
            (State::Size | State::Extension, b'\r') => State::SizeLf,
            (State::Size, b';') => State::Extension,
            (State::Extension, b'\t' | b' '..=b'~' | 0x80..) => self.extension_byte()?,
            (State::SizeLf, b'\n') => self.size_end(),
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::SizeStart,
            (State::SizeStart | State::Size, _) => return Err(Refusal::bad("chunk_size")),
            (State::Extension, _) => return Err(Refusal::bad("chunk_extension")),
            _ => return Err(Refusal::bad("chunk_line_end")),
        };
        Ok(())
    }

    fn digit(&mut self, byte: u8) -> Result<State, Refusal> {
        if self.state == State::SizeStart {
            (self.digits, self.remaining) = (0, 0);
        }
        if self.digits == MAX_SIZE_DIGITS {
            return Err(Refusal::bad("chunk_size_overflow"));
        }
        self.digits += 1;
        let value = match byte {
            b'0'..=b'9' => byte - b'0',
            _ => (byte | 0x20) - b'a' + 10,
        };
        self.remaining = self.remaining << 4 | u64::from(value);
        Ok(State::Size)
    }

    fn extension_byte(&mut self) -> Result<State, Refusal> {
        self.extension_bytes += 1;
        if self.extension_bytes > MAX_EXTENSION_BYTES {
            return Err(Refusal::bad("chunk_extension_too_long"));
        }
        Ok(State::Extension)
    }

    fn size_end(&self) -> State {
        if self.remaining == 0 { State::Trailers } else { State::Data }
    }

    /// Gathers the trailer section, its empty last line included.
    fn trailer_byte(&mut self, byte: u8) -> Result<(), Refusal> {
        if self.trailers.len() == MAX_TRAILER_BYTES {
            return Err(Refusal::with(431, "trailers_too_long"));
        }
        let after_cr = self.trailers.last() == Some(&b'\r');
        if after_cr != (byte == b'\n') {
            return Err(Refusal::bad("trailer_line_end"));
        }
        self.trailers.push(byte);
        if byte == b'\n' && (self.trailers == b"\r\n" || self.trailers.ends_with(b"\r\n\r\n")) {
            self.state = State::End;
        }
        Ok(())
    }
}

/// Checks a trailer section and keeps the fields that a proxy may forward.
fn filter_trailers(raw: &[u8], underscores: bool) -> Result<Vec<u8>, Refusal> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_TRAILERS];
    let parsed = match httparse::parse_headers(raw, &mut fields) {
        Ok(httparse::Status::Complete((used, parsed))) if used == raw.len() => parsed,
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::with(431, "trailers_too_many")),
        _ => return Err(Refusal::bad("trailer_field")),
    };
    let mut kept = Vec::with_capacity(raw.len());
    let may_pass = |name: &str| hop::may_be_trailer(name.as_bytes()) && (underscores || !name.contains('_'));
    for field in parsed.iter().filter(|field| may_pass(field.name)) {
        kept.extend_from_slice(field.name.as_bytes());
        kept.extend_from_slice(b": ");
        kept.extend_from_slice(field.value);
        kept.extend_from_slice(b"\r\n");
    }
    Ok(kept)
}

/// Writes one chunk; nothing for no data, which would end the body.
pub fn write_chunk(out: &mut BytesMut, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    write_hex(out, data.len());
    out.reserve(data.len() + 4);
    out.put_slice(b"\r\n");
    out.put_slice(data);
    out.put_slice(b"\r\n");
}

/// Writes the last chunk with `trailers`, which are whole lines.
pub fn write_last_chunk(out: &mut BytesMut, trailers: &[u8]) {
    out.extend_from_slice(b"0\r\n");
    out.extend_from_slice(trailers);
    out.extend_from_slice(b"\r\n");
}

/// Writes a chunk's size.
pub fn write_hex(out: &mut BytesMut, value: usize) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = (usize::BITS - value.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..digits).rev() {
        out.put_u8(DIGITS[value >> (digit * 4) & 0xf]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Data, forwarded trailers, and how many bytes are left over.
    type Decoded = (Vec<u8>, Vec<u8>, usize);

    /// Decodes in pieces of `step` bytes; nothing where the body does not end.
    fn decode(input: &[u8], step: usize) -> Result<Option<Decoded>, &'static str> {
        let mut decoder = ChunkDecoder::default();
        let (mut data, mut at, mut end) = (Vec::new(), 0, 0);
        loop {
            match decoder.next(&input[at..end]).map_err(|refusal| refusal.reason)? {
                Piece::Data { skip, len } => {
                    data.extend_from_slice(&input[at + skip..at + skip + len]);
                    at += skip + len;
                }
                Piece::End { skip } => {
                    let trailers = decoder.take_trailers(true).map_err(|refusal| refusal.reason)?;
                    return Ok(Some((data, trailers, input.len() - at - skip)));
                }
                Piece::More { .. } if end == input.len() => return Ok(None),
                Piece::More { skip } => {
                    at += skip;
                    end = (end + step).min(input.len());
                }
            }
        }
    }

    #[test]
    fn good_bodies() {
        let check = |input: &[u8], data: &[u8], trailers: &[u8], left: usize| {
            for step in [1, 2, 5, 1000] {
                let expected = Ok(Some((data.to_vec(), trailers.to_vec(), left)));
                // What is left over is counted from the whole input, whatever the pieces.
                assert_eq!(decode(input, step), expected, "{:?} by {step}", input.escape_ascii().to_string());
            }
        };
        check(b"0\r\n\r\n", b"", b"", 0);
        check(b"5\r\nhello\r\n0\r\n\r\n", b"hello", b"", 0);
        check(b"5\r\nhello\r\n0\r\n\r\nGET / ", b"hello", b"", 6);
        check(b"A\r\n0123456789\r\n00\r\n\r\n", b"0123456789", b"", 0);
        check(b"000000000000000a\r\n0123456789\r\n0\r\n\r\n", b"0123456789", b"", 0);
        check(b"2;a=b\r\nhi\r\n0;last\r\n\r\n", b"hi", b"", 0);
        check(b"2;a=\"q \xc3\xa4\"\r\nhi\r\n0\r\n\r\n", b"hi", b"", 0);
        check(b"0\r\nx-sum: 1\r\n\r\n", b"", b"x-sum: 1\r\n", 0);
        check(b"0\r\nX-Sum:1\r\nContent-Length: 5\r\nHost: a\r\n\r\n", b"", b"X-Sum: 1\r\n", 0);
        check(b"0\r\nTransfer-Encoding: chunked\r\nAuthorization: x\r\n\r\n", b"", b"", 0);
    }

    #[test]
    fn hostile_bodies() {
        let check = |input: &[u8], reason: &'static str| {
            for step in [1, 1000] {
                assert_eq!(
                    decode(input, step),
                    Err(reason),
                    "{:?} by {step}",
                    input.escape_ascii().to_string()
                );
            }
        };
        check(b"\r\n", "chunk_size");
        check(b"\n", "chunk_size");
        check(b" 5\r\nhello", "chunk_size");
        check(b"5 \r\nhello", "chunk_size");
        check(b"5 ;a\r\nhello", "chunk_size");
        check(b"+5\r\nhello", "chunk_size");
        check(b"-5\r\nhello", "chunk_size");
        check(b"0x5\r\nhello", "chunk_size");
        check(b"5_0\r\nhello", "chunk_size");
        check(b"g\r\n", "chunk_size");
        check(b";a\r\n", "chunk_size");
        check(b"5\nhello", "chunk_size");
        check(b"5\0\r\nhello", "chunk_size");
        check(b"5\r\rhello", "chunk_line_end");
        check(b"5\rhello", "chunk_line_end");
        check(b"5;a\nb\r\nhello", "chunk_extension");
        check(b"5;a\0\r\nhello", "chunk_extension");
        check(b"5;a\rb\r\nhello", "chunk_line_end");
        check(b"5\r\nhelloX\r\n", "chunk_line_end");
        check(b"5\r\nhello\n0\r\n\r\n", "chunk_line_end");
        check(b"5\r\nhello\r0\r\n\r\n", "chunk_line_end");
        check(b"10000000000000000\r\n", "chunk_size_overflow");
        check(b"00000000000000005\r\nhello", "chunk_size_overflow");
        check(b"0\r\n\n", "trailer_line_end");
        check(b"0\r\na: b\n\r\n", "trailer_line_end");
        check(b"0\r\na: b\rc\r\n\r\n", "trailer_line_end");
        check(b"0\r\nGET / HTTP/1.1\r\n\r\n", "trailer_field");
        check(b"0\r\na : b\r\n\r\n", "trailer_field");
        check(b"0\r\na: b\r\n c\r\n\r\n", "trailer_field");
        check(b"0\r\na: b\0\r\n\r\n", "trailer_field");
        check(&[b"5;".as_slice(), &[b'x'; 1025], b"\r\nhello"].concat(), "chunk_extension_too_long");
        check(&[b"0\r\na: ".as_slice(), &[b'x'; 8192], b"\r\n\r\n"].concat(), "trailers_too_long");
        check(&[b"0\r\n".as_slice(), &b"a: b\r\n".repeat(33), b"\r\n"].concat(), "trailers_too_many");
    }

    #[test]
    fn unfinished_bodies_ask_for_more() {
        for input in [&b""[..], b"5", b"5\r\nhel", b"5\r\nhello\r\n", b"0\r\n", b"0\r\n\r", b"0\r\na: b\r\n"]
        {
            assert_eq!(decode(input, 1), Ok(None), "{input:?}");
        }
    }

    #[test]
    fn chunk_sizes_are_written_in_hex() {
        for (len, expected) in [(1, "1"), (15, "f"), (16, "10"), (4096, "1000"), (65_535, "ffff")] {
            let mut out = BytesMut::new();
            write_hex(&mut out, len);
            assert_eq!(out, expected);
        }
    }
}
