//! How a body's end is told (RFC 9112 section 6), and the pure step that moves a body from one framing to another.

use bytes::{Buf, BytesMut};

use super::Refusal;
use super::h1::{ChunkDecoder, Piece, write_chunk, write_last_chunk};

/// How a body's end is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Framing {
    /// There is no body.
    #[default]
    None,
    /// So many bytes.
    Length(u64),
    /// Chunks, the last one empty.
    Chunked,
    /// Everything until the sender closes; responses only.
    UntilClose,
}

impl Framing {
    /// Whether there is nothing to transfer.
    pub fn is_empty(self) -> bool {
        matches!(self, Self::None | Self::Length(0))
    }
}

/// What a response's framing depends on besides its own fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResponseFacts {
    /// Whether it answers a HEAD request.
    pub to_head: bool,
    /// The status.
    pub status: u16,
    /// Its `Content-Length`.
    pub content_length: Option<u64>,
    /// Whether it is chunked.
    pub chunked: bool,
}

/// The framing of a response (RFC 9112 section 6.3, rules 1 and 4 to 8; CONNECT never gets here).
pub fn response_framing(facts: ResponseFacts) -> Framing {
    let bodiless = facts.to_head || facts.status < 200 || facts.status == 204 || facts.status == 304;
    match facts {
        _ if bodiless => Framing::None,
        ResponseFacts { chunked: true, .. } => Framing::Chunked,
        ResponseFacts { content_length: Some(length), .. } => Framing::Length(length),
        _ => Framing::UntilClose,
    }
}

/// Where a body's bytes stand.
#[derive(Debug)]
enum Source {
    Length(u64),
    Chunked(ChunkDecoder),
    UntilClose,
    Done,
}

/// What reading a body can end in besides its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyError {
    /// The sender broke the framing.
    Malformed(Refusal),
    /// The sender closed before the body's end.
    Truncated,
}

/// Moves one body from its sender's framing to its receiver's, a buffer at a time. Bytes that need no change stay in
/// the input buffer and are written from there.
#[derive(Debug)]
pub struct BodyTransfer {
    source: Source,
    encode_chunked: bool,
    end_written: bool,
    direct: usize,
    bytes: u64,
    /// Trailers that the receiver's framing has no place for, as lines.
    trailers: Vec<u8>,
    /// Whether trailers may have `_` in their names.
    underscores: bool,
}

impl BodyTransfer {
    /// A transfer from `from` to a receiver that gets chunks (`to` is `Chunked`) or plain bytes.
    pub fn new(from: Framing, to: Framing) -> Self {
        let source = match from {
            Framing::None | Framing::Length(0) => Source::Done,
            Framing::Length(length) => Source::Length(length),
            Framing::Chunked => Source::Chunked(ChunkDecoder::default()),
            Framing::UntilClose => Source::UntilClose,
        };
        let encode_chunked = to == Framing::Chunked;
        Self {
            source,
            encode_chunked,
            end_written: false,
            direct: 0,
            bytes: 0,
            trailers: Vec::new(),
            underscores: true,
        }
    }

    /// The same for a body whose trailers may or may not have `_` in their names; others are dropped.
    #[must_use]
    pub fn of_client(self, underscores: bool) -> Self {
        Self { underscores, ..self }
    }

    /// Takes what `input` holds: encoded bytes go to `staged`; of plain bytes only their number is noted, see
    /// [`Self::direct`]. Call again only after both have been written.
    pub fn stage(&mut self, input: &mut BytesMut, staged: &mut BytesMut) -> Result<(), BodyError> {
        debug_assert_eq!(self.direct, 0, "what was staged has been written");
        match &mut self.source {
            Source::Length(remaining) => {
                let take = usize::try_from(*remaining).map_or(input.len(), |left| left.min(input.len()));
                *remaining -= take as u64;
                if *remaining == 0 {
                    self.source = Source::Done;
                }
                self.take_plain(take, input, staged);
            }
            Source::UntilClose => self.take_plain(input.len(), input, staged),
            Source::Chunked(_) => self.take_chunks(input, staged)?,
            Source::Done => {}
        }
        if matches!(self.source, Source::Done) {
            self.write_end(&[], staged);
        }
        Ok(())
    }

    /// The sender closed. Ends a close-delimited body; every other body that is not done is cut short.
    pub fn close(&mut self, staged: &mut BytesMut) -> Result<(), BodyError> {
        match self.source {
            Source::Done => Ok(()),
            Source::UntilClose => {
                self.source = Source::Done;
                self.write_end(&[], staged);
                Ok(())
            }
            Source::Length(_) | Source::Chunked(_) => Err(BodyError::Truncated),
        }
    }

    /// Bytes at the start of the input that are to be written as they are, after what was staged.
    pub fn direct(&self) -> usize {
        self.direct
    }

    /// `written` of the direct bytes have left; the input has been advanced by as many.
    pub fn direct_written(&mut self, written: usize) {
        self.direct -= written;
    }

    /// Whether the sender has sent everything.
    pub fn is_done(&self) -> bool {
        matches!(self.source, Source::Done)
    }

    /// Body bytes taken so far, framing not counted.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether there are trailers to be taken.
    pub fn has_trailers(&self) -> bool {
        !self.trailers.is_empty()
    }

    /// The trailer fields, as lines, of a body that came in chunks and went on without; once it is done.
    pub fn take_trailers(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.trailers)
    }

    fn take_plain(&mut self, take: usize, input: &mut BytesMut, staged: &mut BytesMut) {
        self.bytes += take as u64;
        if self.encode_chunked {
            write_chunk(staged, &input[..take]);
            input.advance(take);
        } else {
            self.direct = take;
        }
    }

    fn take_chunks(&mut self, input: &mut BytesMut, staged: &mut BytesMut) -> Result<(), BodyError> {
        while let Source::Chunked(decoder) = &mut self.source {
            match decoder.next(input).map_err(BodyError::Malformed)? {
                Piece::Data { skip, len } => {
                    input.advance(skip);
                    self.bytes += len as u64;
                    if self.encode_chunked {
                        write_chunk(staged, &input[..len]);
                    } else {
                        staged.extend_from_slice(&input[..len]);
                    }
                    input.advance(len);
                }
                Piece::More { skip } => {
                    input.advance(skip);
                    return Ok(());
                }
                Piece::End { skip } => {
                    input.advance(skip);
                    let trailers = decoder.take_trailers(self.underscores).map_err(BodyError::Malformed)?;
                    self.source = Source::Done;
                    self.write_end(&trailers, staged);
                    if !self.encode_chunked {
                        self.trailers = trailers;
                    }
                }
            }
        }
        Ok(())
    }

    fn write_end(&mut self, trailers: &[u8], staged: &mut BytesMut) {
        if self.encode_chunked && !self.end_written {
            write_last_chunk(staged, trailers);
        }
        self.end_written = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_framing_follows_status_and_method() {
        let check = |to_head, status, content_length, chunked, expected| {
            let facts = ResponseFacts { to_head, status, content_length, chunked };
            assert_eq!(response_framing(facts), expected, "{facts:?}");
        };
        check(false, 200, Some(5), false, Framing::Length(5));
        check(false, 200, None, true, Framing::Chunked);
        check(false, 200, None, false, Framing::UntilClose);
        check(true, 200, Some(5), false, Framing::None);
        check(true, 200, None, true, Framing::None);
        check(false, 204, Some(5), false, Framing::None);
        check(false, 304, Some(5), false, Framing::None);
        check(false, 304, None, true, Framing::None);
        check(false, 103, None, false, Framing::None);
        check(false, 404, Some(0), false, Framing::Length(0));
    }

    /// Feeds `input` in pieces of `step` bytes and gives what a receiver would see.
    fn transfer(
        from: Framing,
        to: Framing,
        input: &[u8],
        step: usize,
    ) -> Result<(Vec<u8>, usize), BodyError> {
        let mut transfer = BodyTransfer::new(from, to);
        let (mut buffer, mut staged, mut seen) = (BytesMut::new(), BytesMut::new(), Vec::new());
        let mut fed = 0;
        loop {
            transfer.stage(&mut buffer, &mut staged)?;
            seen.extend_from_slice(&staged);
            staged.clear();
            let direct = transfer.direct();
            seen.extend_from_slice(&buffer[..direct]);
            buffer.advance(direct);
            transfer.direct_written(direct);
            if transfer.is_done() {
                return Ok((seen, buffer.len() + input.len() - fed));
            }
            if fed == input.len() {
                transfer.close(&mut staged)?;
                seen.extend_from_slice(&staged);
                return Ok((seen, 0));
            }
            let next = (fed + step).min(input.len());
            buffer.extend_from_slice(&input[fed..next]);
            fed = next;
        }
    }

    #[test]
    fn bodies_change_framing_whatever_the_pieces() {
        let check = |from, to, input: &[u8], expected: &[u8], left: usize| {
            for step in [1, 2, 3, 7, 1000] {
                let (seen, surplus) = transfer(from, to, input, step).expect("a good body");
                if step == 1000 {
                    assert_eq!(seen, expected, "{from:?} to {to:?}");
                }
                if to == Framing::Chunked {
                    let plain =
                        transfer(Framing::Chunked, Framing::UntilClose, &seen, 1000).expect("own chunks");
                    let wanted =
                        transfer(Framing::Chunked, Framing::UntilClose, expected, 1000).expect("chunks");
                    assert_eq!(plain, wanted);
                } else {
                    assert_eq!(seen, expected, "{from:?} to {to:?} by {step}");
                }
                assert_eq!(surplus, left, "{from:?} to {to:?} by {step}");
            }
        };
        check(Framing::Length(5), Framing::Length(5), b"helloGET", b"hello", 3);
        check(Framing::Length(0), Framing::Length(0), b"GET", b"", 3);
        check(Framing::None, Framing::None, b"x", b"", 1);
        check(Framing::Chunked, Framing::Chunked, b"5\r\nhello\r\n0\r\n\r\nX", b"5\r\nhello\r\n0\r\n\r\n", 1);
        check(Framing::Chunked, Framing::UntilClose, b"2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n", b"hello", 0);
        check(Framing::UntilClose, Framing::UntilClose, b"hello", b"hello", 0);
        check(Framing::UntilClose, Framing::Chunked, b"hello", b"5\r\nhello\r\n0\r\n\r\n", 0);
    }

    #[test]
    fn a_short_body_is_truncated() {
        for (from, input) in [
            (Framing::Length(5), &b"hell"[..]),
            (Framing::Chunked, b"5\r\nhello\r\n"),
            (Framing::Chunked, b"5\r\nhello\r\n0\r\n"),
            (Framing::Chunked, b""),
        ] {
            assert_eq!(transfer(from, from, input, 4), Err(BodyError::Truncated), "{from:?} {input:?}");
        }
    }
}
