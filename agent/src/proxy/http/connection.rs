//! A client connection between requests: waiting, reading a head, closing.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{self, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::HttpSettings;
use super::caller::Caller;
use super::silence::{Timer, sleep_until};
use super::worker::{Buffers, Held, HttpWorker, make_room};
use crate::http::Refusal;
use crate::http::h1::HeadScan;
use crate::net::{Stream, linger};
use crate::proxy::open::Shown;
use crate::proxy::{Context, Downstream, Early, Handshaken, Protocol};
use crate::telemetry::Origin;

/// Empty lines that are passed over before a request line (RFC 9112 section 2.2).
const MAX_EMPTY_LINES: u32 = 2;
/// The room for what follows the first piece of a head.
const HEAD_PIECE_BYTES: usize = 1024;
/// What an HTTP/2 client's preface starts with (RFC 9113 section 3.4); no HTTP/1.1 request does.
const HTTP2_PREFACE_LINE: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";

/// One client connection.
pub(in crate::proxy) struct Connection {
    pub(in crate::proxy) ctx: Context,
    pub(in crate::proxy) settings: Rc<HttpSettings>,
    pub(in crate::proxy) io: Stream,
    pub(in crate::proxy) buffers: Held,
    pub(in crate::proxy) peer: SocketAddr,
    pub(in crate::proxy) original_destination: SocketAddr,
    pub(in crate::proxy) origin: Origin,
    pub(in crate::proxy) early: Option<Early>,
    /// Whether no table knows what the client dialled any more.
    pub(in crate::proxy) unknown: bool,
    /// Requests answered so far.
    pub(in crate::proxy) served: u32,
    /// One timer for all the waits, between requests and for upstreams; it is set anew when it fires too early, not for
    /// each wait.
    pub(in crate::proxy) idle: Timer,
    /// When the last answer ended, if that was looked at: spares the wait for the next request a look at the clock.
    pub(super) quiet_since: Option<Instant>,
    /// Shows it to those who ask what is open.
    pub(super) shown: Shown,
    /// What its TLS handshake told, where it had one.
    pub(in crate::proxy) tls: Option<Rc<Handshaken>>,
}

/// What reading a head came to.
#[derive(Debug)]
pub(in crate::proxy) enum HeadRead {
    /// `buffers.head` holds a request.
    Whole,
    /// There is no further request.
    Closed,
    /// The client's bytes are no request.
    Refused(Refusal),
    /// The client speaks HTTP/2; nothing of its preface is used up.
    Http2,
    /// The client began a head and did not finish it in time.
    TooLate,
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::proxy) enum Ending {
    /// Closed at once: both sides know that it is over.
    Now,
    /// Closed once the client has had time to read its answer, as it may still be sending.
    Linger,
    /// Reset, so that what it got of the answer is not taken for the whole.
    Abort,
}

impl Connection {
    /// Takes over an accepted connection.
    pub fn new(ctx: Context, downstream: Downstream<Stream>) -> Self {
        let Downstream { io, read, peer, original_destination, origin, early, shown, tls } = downstream;
        shown.is(Protocol::Http1, None);
        let settings = ctx.http.settings(&origin);
        let mut buffers = ctx.http.take_buffers();
        buffers.client_in.extend_from_slice(&read);
        Self {
            ctx,
            settings,
            io,
            buffers,
            peer,
            original_destination,
            origin,
            early,
            unknown: false,
            served: 0,
            idle: None,
            quiet_since: None,
            shown,
            tls,
        }
    }

    /// The connection as the phases of its requests see it.
    pub fn caller(&self) -> Caller<'_> {
        Caller {
            ctx: &self.ctx,
            settings: &self.settings,
            origin: &self.origin,
            peer: self.peer,
            original_destination: self.original_destination,
            tls: self.tls.as_deref(),
        }
    }

    /// Gives the connection back, with what has been read of it, to be served in another version.
    pub fn into_downstream(self) -> (Context, Downstream<Stream>) {
        let Self { ctx, io, mut buffers, peer, original_destination, origin, early, shown, tls, .. } = self;
        let read = buffers.client_in.split();
        ctx.http.keep_buffers(buffers);
        (ctx, Downstream { io, read, peer, original_destination, origin, early, shown, tls })
    }

    /// Whether the agent drains.
    pub fn draining(&self) -> bool {
        *self.ctx.drain.borrow()
    }

    /// Waits for the next request and reads its head.
    pub async fn read_head(&mut self, drained: Pin<&mut impl Future<Output = ()>>) -> HeadRead {
        self.buffers.next_request();
        let mut deadline = None;
        if self.buffers.client_in.is_empty() {
            let until = if self.served == 0 {
                // The first head's time begins with the connection, not with its first byte.
                deadline = self.head_deadline();
                deadline
            } else {
                let since = self.quiet_since.take();
                self.settings.idle_timeout.map(|timeout| since.unwrap_or_else(Instant::now) + timeout)
            };
            if !self.wait(drained, until).await {
                return HeadRead::Closed;
            }
        }
        let mut scan = HeadScan::default();
        let mut empty_lines = 0;
        let mut in_pieces = false;
        loop {
            while scan.is_fresh()
                && self.buffers.client_in.starts_with(b"\r\n")
                && empty_lines < MAX_EMPTY_LINES
            {
                self.buffers.client_in.advance(2);
                empty_lines += 1;
            }
            if self.served == 0 && self.buffers.client_in.starts_with(HTTP2_PREFACE_LINE) {
                return HeadRead::Http2;
            }
            // A lone CR may be half of an empty line.
            if self.buffers.client_in[..] != b"\r"[..] {
                match self.take_head(&mut scan) {
                    Ok(true) => return HeadRead::Whole,
                    Ok(false) => {}
                    Err(refusal) => return HeadRead::Refused(refusal),
                }
            }
            if deadline.is_none() {
                deadline = self.head_deadline();
            }
            if in_pieces {
                double_when_full(&mut self.buffers.client_in);
            } else {
                in_pieces = true;
                self.keep_only_input();
            }
            match read_until(&mut self.io, &mut self.buffers.client_in, deadline).await {
                Ok(0) if self.buffers.client_in.is_empty() => return HeadRead::Closed,
                Ok(0) => return HeadRead::Refused(Refusal::bad("head_truncated")),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return HeadRead::TooLate,
                Err(_) => return HeadRead::Closed,
            }
        }
    }

    fn take_head(&mut self, scan: &mut HeadScan) -> Result<bool, Refusal> {
        let Buffers { head, client_in, .. } = &mut *self.buffers;
        if client_in.is_empty() {
            return Ok(false);
        }
        let limits = &self.settings.request;
        // Nearly all heads come in one piece.
        if scan.is_fresh()
            && let Some(len) = head.read(client_in, limits)?
        {
            client_in.advance(len);
            return Ok(true);
        }
        let Some(len) = scan.find_end(client_in, limits)? else { return Ok(false) };
        head.parse(&client_in[..len], limits)?;
        client_in.advance(len);
        Ok(true)
    }

    /// A head that comes in pieces may take its time, and there may be thousands: it waits in a buffer of its own size.
    fn keep_only_input(&mut self) {
        let mut little = Held::fresh();
        let input = &self.buffers.client_in;
        little.client_in.reserve(input.len() + HEAD_PIECE_BYTES);
        little.client_in.extend_from_slice(input);
        self.ctx.http.keep_buffers(std::mem::replace(&mut self.buffers, little));
    }

    /// When a head whose time begins now must be there.
    fn head_deadline(&self) -> Option<Instant> {
        self.settings.header_timeout.map(|timeout| Instant::now() + self.ctx.http.spread(timeout))
    }

    /// Waits, without buffers, for the first bytes of a request; false once the connection is to be closed instead.
    async fn wait(
        &mut self,
        mut drained: Pin<&mut impl Future<Output = ()>>,
        until: Option<Instant>,
    ) -> bool {
        self.ctx.http.keep_buffers(std::mem::take(&mut self.buffers));
        let Self { ctx, io, idle, buffers, .. } = self;
        let read = tokio::select! {
            biased;
            read = poll_fn(|cx| poll_first_bytes(cx, io, &ctx.http, buffers)) => matches!(read, Ok(1..)),
            () = drained.as_mut() => false,
            () = idle_until(idle, until) => false,
        };
        let more = read || self.has_unread_request();
        if more && self.buffers.is_none() {
            self.buffers = self.ctx.http.take_buffers();
        }
        more
    }

    /// What the client has sent by the time of a drain is still answered.
    fn has_unread_request(&self) -> bool {
        self.draining() && self.io.has_unread()
    }

    /// Ends the connection.
    pub async fn close(self, ending: Ending) {
        self.caller().record_end(&self.shown, self.io.as_raw_fd(), self.served > 0);
        let Self { ctx, settings, mut io, buffers, .. } = self;
        match ending {
            // A TLS client is told that nothing more comes, or it could not tell it from a cut.
            Ending::Now => {
                if let Stream::Tls(_) = io {
                    let _ = tokio::time::timeout(settings.discard_time, io.shutdown()).await;
                }
            }
            Ending::Abort => {
                // Without a linger time the kernel would send FIN, which ends a close-delimited body. The socket is
                // closed either way.
                let _ = io.set_zero_linger();
            }
            Ending::Linger => {
                // What follows is only for the client to read its answer before unread bytes make the kernel reset.
                linger(&mut io, (settings.discard_time, settings.discard_bytes)).await;
            }
        }
        ctx.http.keep_buffers(buffers);
    }
}

/// Makes room for the next piece of a head.
fn double_when_full(input: &mut BytesMut) {
    if input.len() == input.capacity() {
        input.reserve(input.len());
    }
}

/// Reads into buffers that are taken only once there is something to read. Readiness alone is a hint.
fn poll_first_bytes(
    cx: &mut task::Context<'_>,
    io: &mut Stream,
    worker: &HttpWorker,
    buffers: &mut Held,
) -> Poll<io::Result<usize>> {
    ready!(io.poll_input(cx))?;
    *buffers = worker.take_buffers();
    make_room(&mut buffers.client_in);
    let read = pin!(io.read_buf(&mut buffers.client_in)).poll(cx);
    if read.is_pending() {
        worker.keep_buffers(std::mem::take(buffers));
    }
    read
}

/// Waits for the idle time to be over, where there is one.
async fn idle_until(timer: &mut Timer, until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(timer, until).await,
        None => std::future::pending().await,
    }
}

async fn read_until(io: &mut Stream, into: &mut BytesMut, deadline: Option<Instant>) -> io::Result<usize> {
    match deadline {
        None => io.read_buf(into).await,
        Some(at) => match tokio::time::timeout_at(at, io.read_buf(into)).await {
            Ok(read) => read,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        },
    }
}
