//! Bodies as pieces, whatever version they come in and go out in. A piece is taken only once the one before has been
//! written, and HTTP/2's windows are opened only then, so that a slow receiver holds its sender back.

use std::cell::Cell;
use std::future::{pending, poll_fn};
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use http::HeaderMap;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;

use super::fault::Side;
use crate::http::body::{BodyError, BodyTransfer};
use crate::http::h1::{write_hex, write_last_chunk};
use crate::http::h2 as translate;
use crate::proxy::answer::Problem;
use crate::proxy::http::exchange::{client_body_problem, is_reset, upstream_body_problem};
use crate::proxy::http::pace::{BODY_TOO_LONG, Pace};
use crate::proxy::http::upload::read_ahead;
use crate::proxy::http::wire::{patient, write_parts};
use crate::proxy::http::worker::make_room;

/// A piece of a body.
#[derive(Debug)]
pub(super) enum Piece {
    /// Bytes; `last`: nothing follows.
    Data { data: Bytes, last: bool },
    /// The end, with trailers.
    Trailers(HeaderMap),
    /// The end.
    End,
}

/// Where a body comes from.
pub(super) trait BodySource {
    /// The next piece. Not called again after the end.
    async fn next(&mut self) -> Result<Piece, Problem>;

    /// So many bytes have been passed on.
    fn release(&mut self, bytes: usize);

    /// Waits, after the end, until the sender is gone.
    async fn gone(&mut self) -> Problem;
}

/// Where a body goes.
pub(super) trait BodySink {
    /// Writes bytes; `last`: nothing follows.
    async fn send(&mut self, data: Bytes, last: bool) -> Result<(), Problem>;

    /// Writes the end.
    async fn finish(&mut self, trailers: Option<HeaderMap>) -> Result<(), Problem>;

    /// Waits until the receiver wants no more.
    async fn gone(&mut self);
}

/// A body that comes in an HTTP/2 stream.
#[derive(Debug)]
pub(super) struct Http2Source {
    pub body: RecvStream,
    pub side: Side,
    pub pace: Pace,
    /// Bytes that may still come.
    pub left: Option<u64>,
    /// Whether trailers may have `_` in their names.
    pub underscores: bool,
}

impl BodySource for Http2Source {
    async fn next(&mut self) -> Result<Piece, Problem> {
        loop {
            let Self { body, pace, side, left, .. } = self;
            match pace.wait(body.data()).await? {
                Some(Ok(data)) => {
                    pace.took(data.len());
                    if let Some(left) = left {
                        *left = left.checked_sub(data.len() as u64).ok_or(BODY_TOO_LONG)?;
                    }
                    let last = body.is_end_stream();
                    if last || !data.is_empty() {
                        return Ok(Piece::Data { data, last });
                    }
                }
                Some(Err(error)) => return Err(side.in_body(&error)),
                None => break,
            }
        }
        let trailers = self.body.trailers().await.map_err(|error| self.side.in_body(&error))?;
        let keep = |fields| match self.side {
            Side::Client => translate::request_trailers(fields, self.underscores),
            Side::Upstream => translate::response_trailers(fields),
        };
        Ok(trailers.map_or(Piece::End, |fields| Piece::Trailers(keep(fields))))
    }

    fn release(&mut self, bytes: usize) {
        // Fails for a stream that is over, whose window nobody needs.
        let _ = self.body.flow_control().release_capacity(bytes);
    }

    /// The stream's other direction tells.
    async fn gone(&mut self) -> Problem {
        pending().await
    }
}

/// A body that goes out in an HTTP/2 stream.
pub(super) struct Http2Sink<'a> {
    pub stream: SendStream<Bytes>,
    pub side: Side,
    pub patience: Option<Duration>,
    /// Bytes that the receiver's window let pass.
    pub taken: &'a Cell<u64>,
}

impl Http2Sink<'_> {
    async fn capacity(&mut self, wanted: usize) -> Result<usize, Problem> {
        let Self { stream, side, patience, .. } = self;
        stream.reserve_capacity(wanted);
        if stream.capacity() > 0 {
            return Ok(stream.capacity());
        }
        let granted = patient(*patience, async {
            loop {
                match poll_fn(|cx| stream.poll_capacity(cx)).await {
                    Some(Ok(0)) => {}
                    granted => return Ok(granted),
                }
            }
        });
        match granted.await.map_err(|_| Problem::BodyTimeout)? {
            Some(Ok(bytes)) => Ok(bytes),
            Some(Err(error)) => Err(side.in_body(&error)),
            None => Err(side.closed()),
        }
    }
}

impl BodySink for Http2Sink<'_> {
    async fn send(&mut self, mut data: Bytes, last: bool) -> Result<(), Problem> {
        while !data.is_empty() {
            let granted = self.capacity(data.len()).await?;
            let part = data.split_to(granted.min(data.len()));
            let (bytes, ends) = (part.len() as u64, last && data.is_empty());
            self.stream.send_data(part, ends).map_err(|error| self.side.in_body(&error))?;
            self.taken.set(self.taken.get() + bytes);
            if ends {
                return Ok(());
            }
        }
        if last { self.finish(None).await } else { Ok(()) }
    }

    async fn finish(&mut self, trailers: Option<HeaderMap>) -> Result<(), Problem> {
        let sent = match trailers {
            Some(trailers) => self.stream.send_trailers(trailers),
            None => self.stream.send_data(Bytes::new(), true),
        };
        sent.map_err(|error| self.side.in_body(&error))
    }

    async fn gone(&mut self) {
        let _ = poll_fn(|cx| self.stream.poll_reset(cx)).await;
    }
}

/// A body that comes in HTTP/1 text.
pub(super) struct Http1Source<'a, R> {
    pub io: R,
    pub input: &'a mut BytesMut,
    pub staged: &'a mut BytesMut,
    /// To plain bytes.
    pub transfer: &'a mut BodyTransfer,
    pub side: Side,
    pub pace: Pace,
    /// The greatest body.
    pub most: Option<u64>,
    /// Bytes that may be read beyond the body's end.
    pub ahead: usize,
    /// Whether the other direction has met a reset of this peer, whose end then is none.
    pub reset: Option<&'a Cell<bool>>,
}

impl<R> Http1Source<'_, R> {
    fn problem(&self, error: BodyError) -> Problem {
        match self.side {
            Side::Client => client_body_problem(error),
            Side::Upstream => upstream_body_problem(error),
        }
    }

    /// What lies in the buffers.
    fn take(&mut self) -> Result<Option<Piece>, Problem> {
        self.transfer.stage(self.input, self.staged).map_err(|error| self.problem(error))?;
        if self.most.is_some_and(|most| self.transfer.bytes() > most) {
            return Err(BODY_TOO_LONG);
        }
        let direct = self.transfer.direct();
        let data = if direct > 0 {
            self.transfer.direct_written(direct);
            self.input.split_to(direct).freeze()
        } else {
            self.staged.split().freeze()
        };
        let (done, trailers) = (self.transfer.is_done(), self.transfer.has_trailers());
        Ok(match (data.is_empty(), done) {
            (false, _) => Some(Piece::Data { data, last: done && !trailers }),
            (true, false) => None,
            (true, true) if trailers => {
                Some(Piece::Trailers(translate::from_lines(&self.transfer.take_trailers())))
            }
            (true, true) => Some(Piece::End),
        })
    }
}

impl<R: AsyncRead + AsRef<TcpStream> + Unpin> BodySource for Http1Source<'_, R> {
    async fn next(&mut self) -> Result<Piece, Problem> {
        loop {
            if let Some(piece) = self.take()? {
                return Ok(piece);
            }
            make_room(self.input);
            match self.pace.wait(self.io.read_buf(self.input)).await? {
                Ok(0) if self.reset.is_some_and(Cell::get) => {
                    return Err(self.problem(BodyError::Truncated));
                }
                Ok(0) => {
                    self.transfer.close(self.staged).map_err(|error| self.problem(error))?;
                }
                Ok(bytes) => self.pace.took(bytes),
                Err(_) => return Err(self.problem(BodyError::Truncated)),
            }
        }
    }

    fn release(&mut self, _bytes: usize) {}

    async fn gone(&mut self) -> Problem {
        read_ahead(&mut self.io, self.input, self.ahead).await
    }
}

/// A body that goes out in HTTP/1 text.
pub(super) struct Http1Sink<'a, W> {
    pub io: W,
    /// What is to be written before the next piece: the head.
    pub out: &'a mut BytesMut,
    pub chunked: bool,
    pub side: Side,
    pub patience: Option<Duration>,
    pub written: &'a Cell<u64>,
    /// Set where the peer is found to have reset its connection.
    pub reset: Option<&'a Cell<bool>>,
}

impl<W: AsyncWrite + Unpin> Http1Sink<'_, W> {
    /// Writes what lies in the buffer, then `data` and `tail`.
    pub async fn flush(&mut self, data: &[u8], tail: &[u8]) -> Result<(), Problem> {
        let written = write_parts(&mut self.io, [self.out, data, tail], self.patience, self.written).await;
        // What is left in the buffer tells that a head was cut.
        match (&written, self.reset) {
            (Ok(()), _) => self.out.clear(),
            (Err(error), Some(reset)) => reset.set(is_reset(error)),
            (Err(_), None) => {}
        }
        written.map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => Problem::BodyTimeout,
            _ => self.side.closed(),
        })
    }
}

impl<W: AsyncWrite + Unpin> BodySink for Http1Sink<'_, W> {
    async fn send(&mut self, data: Bytes, last: bool) -> Result<(), Problem> {
        if !self.chunked {
            return self.flush(&data, b"").await;
        }
        if data.is_empty() {
            return if last { self.finish(None).await } else { Ok(()) };
        }
        write_hex(self.out, data.len());
        self.out.extend_from_slice(b"\r\n");
        self.flush(&data, if last { b"\r\n0\r\n\r\n" } else { b"\r\n" }).await
    }

    async fn finish(&mut self, trailers: Option<HeaderMap>) -> Result<(), Problem> {
        if self.chunked {
            let lines = trailers.map(|fields| translate::to_lines(&fields)).unwrap_or_default();
            write_last_chunk(self.out, &lines);
        }
        self.flush(b"", b"").await
    }

    /// The connection's reading half tells.
    async fn gone(&mut self) {
        pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_head_that_was_cut_stays_in_the_buffer() {
        for (room, expected) in [(4, Err(Problem::BodyTimeout)), (64, Ok(()))] {
            let (io, _peer) = tokio::io::duplex(room);
            let (mut out, written) = (BytesMut::from("HTTP/1.1 200 OK"), Cell::new(0));
            let patience = Some(Duration::from_millis(5));
            let (side, reset) = (Side::Client, None);
            let mut sink =
                Http1Sink { io, out: &mut out, chunked: false, side, patience, written: &written, reset };
            assert_eq!(sink.flush(b"", b"").await, expected);
            assert_eq!((out.is_empty(), written.get()), (expected.is_ok(), room.min(15) as u64));
        }
    }
}
