//! HTTP/2 frame by frame, for tests that send what no library would: a writer without any check, and a reader that tells
//! what the peer said.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// What a client says first (RFC 9113 section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frame types (RFC 9113 section 6).
pub const DATA: u8 = 0;
/// See [`DATA`].
pub const HEADERS: u8 = 1;
/// See [`DATA`].
pub const PRIORITY: u8 = 2;
/// See [`DATA`].
pub const RST_STREAM: u8 = 3;
/// See [`DATA`].
pub const SETTINGS: u8 = 4;
/// See [`DATA`].
pub const PUSH_PROMISE: u8 = 5;
/// See [`DATA`].
pub const PING: u8 = 6;
/// See [`DATA`].
pub const GOAWAY: u8 = 7;
/// See [`DATA`].
pub const WINDOW_UPDATE: u8 = 8;
/// See [`DATA`].
pub const CONTINUATION: u8 = 9;

/// The flag of a stream's last frame; of SETTINGS and PING it is the one of an answer.
pub const END_STREAM: u8 = 1;
/// The flag of a header section's last frame.
pub const END_HEADERS: u8 = 4;
/// The flag of a frame with padding.
pub const PADDED: u8 = 8;
/// The flag of HEADERS with a priority.
pub const WITH_PRIORITY: u8 = 32;

/// A frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header block of literals without indexing.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            write_length(&mut block, text.len());
            block.extend(text.as_bytes());
        }
    }
    block
}

/// A length in seven bits and what follows them (RFC 7541 section 5.1).
fn write_length(block: &mut Vec<u8>, length: usize) {
    let Some(mut rest) = length.checked_sub(127) else {
        block.push(u8::try_from(length).unwrap_or_default());
        return;
    };
    block.push(127);
    while rest >= 128 {
        block.push(u8::try_from(rest % 128).unwrap_or_default() | 128);
        rest /= 128;
    }
    block.push(u8::try_from(rest).unwrap_or_default());
}

/// A whole header section in one frame.
pub fn headers(stream: u32, flags: u8, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, stream, &block(fields))
}

/// A stream's end with an error code.
pub fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.to_be_bytes())
}

/// SETTINGS.
pub fn settings(pairs: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> =
        pairs.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
    frame(SETTINGS, 0, 0, &payload)
}

/// WINDOW_UPDATE.
pub fn window_update(stream: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes())
}

/// What a peer said of a stream or of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// The stream was answered with this status.
    Status(u16),
    /// The stream was reset with this code.
    Reset(u32),
    /// The connection was ended with this code.
    GoAway(u32),
    /// The connection was closed.
    Closed,
}

/// A frame that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream.
    pub stream: u32,
    /// The rest.
    pub payload: Vec<u8>,
}

impl Frame {
    fn word(&self, at: usize) -> u32 {
        let bytes = self.payload.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u32::from_be_bytes)
    }
}

/// A connection on which whatever a test likes is sent.
#[derive(Debug)]
pub struct RawHttp2 {
    io: TcpStream,
    /// Whether the answer that was heard last has no body.
    ended: bool,
}

impl RawHttp2 {
    /// Connects and says what every client says first.
    pub fn open(to: SocketAddr, timeout: Duration) -> io::Result<Self> {
        let io = TcpStream::connect_timeout(&to, timeout)?;
        let mut peer = Self::over(io, timeout)?;
        peer.send(&[PREFACE, &settings(&[])].concat())?;
        Ok(peer)
    }

    /// Takes over a connection on which nothing has been said.
    pub fn over(io: TcpStream, timeout: Duration) -> io::Result<Self> {
        io.set_read_timeout(Some(timeout))?;
        io.set_write_timeout(Some(timeout))?;
        io.set_nodelay(true)?;
        Ok(Self { io, ended: false })
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.io.write_all(bytes)
    }

    /// Says that nothing more follows.
    pub fn finish(&self) -> io::Result<()> {
        self.io.shutdown(Shutdown::Write)
    }

    /// The connection itself, for a second thread.
    pub fn try_clone(&self) -> io::Result<TcpStream> {
        self.io.try_clone()
    }

    /// Reads a client's preface, as a server does.
    pub fn read_preface(&mut self) -> io::Result<()> {
        let mut preface = [0; PREFACE.len()];
        self.io.read_exact(&mut preface)
    }

    /// The next frame; `None` where the connection was closed or reset.
    pub fn next_frame(&mut self) -> io::Result<Option<Frame>> {
        let mut head = [0; 9];
        match self.io.read_exact(&mut head) {
            Err(error) if is_end(&error) => return Ok(None),
            other => other?,
        }
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        match self.io.read_exact(&mut payload) {
            Err(error) if is_end(&error) => return Ok(None),
            other => other?,
        }
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Ok(Some(Frame { kind: head[3], flags: head[4], stream, payload }))
    }

    /// What becomes of a stream, unless the connection ends before it. A GOAWAY without an error code is no answer.
    pub fn hear(&mut self, stream: u32) -> io::Result<Said> {
        while let Some(frame) = self.next_frame()? {
            match frame.kind {
                HEADERS if frame.stream == stream => {
                    self.ended = frame.flags & END_STREAM != 0;
                    let status = read_status(&frame.payload);
                    let status = status.ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "no status"))?;
                    return Ok(Said::Status(status));
                }
                RST_STREAM if frame.stream == stream => return Ok(Said::Reset(frame.word(0))),
                GOAWAY if frame.word(4) != 0 => return Ok(Said::GoAway(frame.word(4))),
                _ => {}
            }
        }
        Ok(Said::Closed)
    }

    /// The DATA of the stream that was heard last, up to its end.
    pub fn body(&mut self, stream: u32) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        while !self.ended {
            let Some(frame) = self.next_frame()? else { break };
            if frame.stream == stream && frame.kind == DATA {
                body.extend_from_slice(&frame.payload);
            }
            self.ended = frame.stream == stream && frame.flags & END_STREAM != 0 && frame.kind <= HEADERS;
        }
        Ok(body)
    }

    /// Reads until the connection is closed or reset.
    pub fn end(&mut self) -> io::Result<()> {
        while self.next_frame()?.is_some() {}
        Ok(())
    }
}

fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

/// The status that a header block begins with: indexed, or a literal of the indexed name.
fn read_status(block: &[u8]) -> Option<u16> {
    const INDEXED: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    // The encoder may begin by telling the size of its table.
    let block = if block.first()? & 0xe0 == 0x20 { &block[1..] } else { block };
    let first = *block.first()?;
    if (0x88..=0x8e).contains(&first) {
        return Some(INDEXED[usize::from(first - 0x88)]);
    }
    if !matches!(first, 0x48 | 0x08 | 0x18) {
        return None;
    }
    let length = *block.get(1)?;
    let value = block.get(2..2 + usize::from(length & 0x7f))?;
    if length & 0x80 == 0 { std::str::from_utf8(value).ok()?.parse().ok() } else { huffman_digits(value) }
}

/// Three digits in the code of RFC 7541 appendix B: five bits for 0 to 2, six for the others.
fn huffman_digits(bytes: &[u8]) -> Option<u16> {
    let bits: Vec<u16> =
        bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| u16::from(byte >> bit & 1))).collect();
    let number = |bits: &[u16]| bits.iter().fold(0, |sum, bit| sum << 1 | bit);
    let (mut at, mut status) = (0, 0);
    for _ in 0..3 {
        let short = number(bits.get(at..at + 5)?);
        let digit = if short <= 2 {
            at += 5;
            short
        } else {
            let long = number(bits.get(at..at + 6)?);
            at += 6;
            long.checked_sub(0x16).filter(|digit| (3..=9).contains(digit))?
        };
        status = status * 10 + digit;
    }
    Some(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_read_in_every_form() {
        let check = |block: &[u8], expected| assert_eq!(read_status(block), expected, "{block:?}");
        check(&[0x88, 0x61], Some(200));
        check(&[0x8e], Some(500));
        check(&[0x20, 0x8c], Some(400));
        check(&[0x48, 3, b'4', b'3', b'1'], Some(431));
        // The examples of RFC 7541 appendices C.6.1 and C.6.2.
        check(&[0x48, 0x82, 0x64, 0x02], Some(302));
        check(&[0x48, 0x83, 0x64, 0x0e, 0xff], Some(307));
        check(&[], None);
        check(&[0x40, 1], None);
    }

    #[test]
    fn frames_and_blocks() {
        assert_eq!(frame(PING, 1, 3, b"ab"), [0, 0, 2, 6, 1, 0, 0, 0, 3, b'a', b'b']);
        assert_eq!(block(&[("a", "b")]), [0, 1, b'a', 1, b'b']);
        let long = block(&[("a", &"x".repeat(127 + 128 + 3))]);
        assert_eq!(long[3..6], [127, 0x83, 1]);
        assert_eq!(settings(&[(4, 5)])[9..], [0, 4, 0, 0, 0, 5]);
    }
}
