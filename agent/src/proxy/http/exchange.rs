//! One request and its response over one upstream connection: both bodies stream at once, each in its own future.
//!
//! ```text
//! client --> client_in --> upload: [request head, chunks, plain bytes] --> upstream
//! client <-- download: [response head, chunks, plain bytes] <-- upstream_in <-- upstream
//! ```
//!
//! Each direction reads only after what it read before has been written, so that a slow receiver holds its sender back
//! and no more than a buffer of either body is in memory.

use std::cell::Cell;
use std::future::pending;
use std::io;
use std::pin::pin;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::watch;
use tokio::time::Instant;

use super::HttpSettings;
use super::changes::Changes;
use super::heads::{Fate, ResponseWriter};
use super::pace::Pace;
use super::upload::Upload;
use super::wire::{Fairness, write_parts};
use super::worker::{Buffers, HttpWorker, ReadSize, make_room};
use crate::http::body::{BodyError, BodyTransfer, Framing};
use crate::http::h1::{HeadScan, Known, Limits, RequestHead, ResponseHead, Version};
use crate::net::{ReadHalf, Stream, WriteHalf};
use crate::proxy::admission::Load;
use crate::proxy::answer::Problem;
use crate::route::RequestView;

/// Body bytes that are copied behind their head instead of being written from where they were read.
const MAX_COPIED_BYTES: usize = 1024;
/// Interim responses passed on for one request.
pub(in crate::proxy) const MAX_INTERIM: u32 = 32;

/// What an exchange needs to know.
#[derive(Debug, Clone, Copy)]
pub(in crate::proxy) struct Terms<'a> {
    /// The worker.
    pub worker: &'a HttpWorker,
    /// What the worker is busy with for such connections.
    pub load: &'a Load,
    /// The connection's settings.
    pub settings: &'a HttpSettings,
    /// The route's changes to the response.
    pub changes: Changes<'a>,
    /// Whether the client's connection may be kept, but for a drain.
    pub may_keep: bool,
    /// Whether the agent drains, asked when the response comes.
    pub drain: &'a watch::Receiver<bool>,
    /// Whether the upstream may switch protocols.
    pub may_switch: bool,
    /// When the exchange must be over, and what it is then.
    pub deadline: Option<(Instant, Problem)>,
}

/// How far an exchange came; shared by its two directions.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Progress {
    /// Bytes that the upstream's socket took.
    pub sent: Cell<u64>,
    /// Whether the upstream said anything.
    pub answered: Cell<bool>,
    /// Whether the upload met the upstream's reset, which the kernel tells only once: the response's reader then sees an
    /// end like any other.
    pub upstream_reset: Cell<bool>,
    /// Whether the whole request is with the upstream.
    pub uploaded: Cell<bool>,
    /// Whether the client has been told to go on with its body.
    pub continued: Cell<bool>,
    /// Bytes that the client's socket took.
    pub delivered: Cell<u64>,
    /// The status of the response whose head is going to the client; 0: none yet.
    pub status: Cell<u16>,
    /// Body bytes to the client.
    pub response_bytes: Cell<u64>,
}

impl Progress {
    /// Bytes that moved in either direction.
    pub fn moved(&self) -> u64 {
        self.sent.get().wrapping_add(self.delivered.get())
    }
}

/// What a finished exchange leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::proxy) struct Finished {
    /// What becomes of the client's connection.
    pub fate: Fate,
    /// Whether the upstream's connection is between two messages.
    pub reusable: bool,
}

/// Runs an exchange to its end. The request's head is in `buffers.request`; `body` is left where the client's body
/// stands.
pub(in crate::proxy) async fn run(
    terms: Terms<'_>,
    buffers: &mut Buffers,
    body: &mut BodyTransfer,
    progress: &Progress,
    (client, upstream): (&mut Stream, &mut Stream),
) -> Result<Finished, Problem> {
    let (client_read, client_write) = client.split();
    let (upstream_read, upstream_write) = upstream.split();
    let Buffers { head, response, client_in, client_out, upstream_in, upstream_out, request, .. } = buffers;
    let pace = Pace::of(terms.settings, head);
    let upload = Upload {
        terms,
        progress,
        pace,
        client: client_read,
        upstream: upstream_write,
        client_in,
        upstream_out,
    };
    let download = Download {
        terms,
        progress,
        head,
        upstream: upstream_read,
        client: client_write,
        upstream_in,
        client_out,
    };
    let mut finished = {
        let download = pin!(download.run(response));
        let upload = pin!(upload.run(request, body));
        let deadline = pin!(deadline(terms.deadline));
        tokio::select! {
            biased;
            finished = download => finished?,
            problem = upload => return Err(problem),
            problem = deadline => return Err(problem),
        }
    };
    finished.reusable &= progress.uploaded.get() && upstream_in.is_empty();
    Ok(finished)
}

async fn deadline(deadline: Option<(Instant, Problem)>) -> Problem {
    match deadline {
        Some((at, problem)) => {
            // Boxed, as few requests have one.
            Box::pin(tokio::time::sleep_until(at)).await;
            problem
        }
        None => pending().await,
    }
}

/// Reads response heads.
#[derive(Debug, Clone, Copy)]
pub(in crate::proxy) struct HeadReading<'a> {
    /// Bounds of a head.
    pub limits: &'a Limits,
    /// Whether the request is a HEAD.
    pub to_head: bool,
    /// Set once the upstream has said anything.
    pub answered: &'a Cell<bool>,
}

impl HeadReading<'_> {
    /// Reads one head.
    pub async fn read(
        self,
        upstream: &mut (impl AsyncRead + Unpin),
        upstream_in: &mut BytesMut,
        response: &mut ResponseHead,
    ) -> Result<(), Problem> {
        let mut scan = HeadScan::default();
        loop {
            if !upstream_in.is_empty() {
                let protocol = |refusal: crate::http::Refusal| {
                    // A status line has no target that could be too long.
                    let reason = if refusal.status == 414 { "header_too_long" } else { refusal.reason };
                    Problem::UpstreamProtocol(reason)
                };
                // Nearly all heads come in one piece.
                if scan.is_fresh()
                    && let Some(len) =
                        response.read(upstream_in, self.to_head, self.limits).map_err(protocol)?
                {
                    upstream_in.advance(len);
                    return Ok(());
                }
                if let Some(len) = scan.find_end(upstream_in, self.limits).map_err(protocol)? {
                    response.parse(&upstream_in[..len], self.to_head, self.limits).map_err(protocol)?;
                    upstream_in.advance(len);
                    return Ok(());
                }
            }
            make_room(upstream_in);
            match upstream.read_buf(upstream_in).await {
                Ok(0) if upstream_in.is_empty() => return Err(Problem::UpstreamClosed),
                Ok(0) => return Err(Problem::UpstreamProtocol("head_truncated")),
                Ok(_) => self.answered.set(true),
                Err(_) => return Err(Problem::UpstreamClosed),
            }
        }
    }
}

/// The response's direction.
struct Download<'a> {
    terms: Terms<'a>,
    progress: &'a Progress,
    head: &'a RequestHead,
    upstream: ReadHalf<'a>,
    client: WriteHalf<'a>,
    upstream_in: &'a mut BytesMut,
    client_out: &'a mut BytesMut,
}

impl Download<'_> {
    async fn run(mut self, response: &mut ResponseHead) -> Result<Finished, Problem> {
        let mut interim = 0;
        loop {
            self.read_head(response).await?;
            if !response.is_interim() {
                break;
            }
            interim += 1;
            if interim > MAX_INTERIM {
                return Err(Problem::UpstreamProtocol("interim_too_many"));
            }
            self.pass_interim(response).await?;
        }
        if response.status() == 101 {
            return self.switch(response).await;
        }
        let framing = self.client_framing(response);
        let fate = self.fate(framing);
        self.write_head(response, framing, fate);
        self.pass_body(response.status(), BodyTransfer::new(response.framing(), framing)).await?;
        let reusable = response.version() == Version::Http11
            && response.connection().persistent(response.version())
            && response.framing() != Framing::UntilClose
            && !self.body_in_doubt();
        Ok(Finished { fate, reusable })
    }

    async fn read_head(&mut self, response: &mut ResponseHead) -> Result<(), Problem> {
        let reading = HeadReading {
            limits: &self.terms.settings.response,
            to_head: self.head.method() == "HEAD",
            answered: &self.progress.answered,
        };
        reading.read(&mut self.upstream, self.upstream_in, response).await
    }

    /// HTTP/1.0 knows no interim responses.
    async fn pass_interim(&mut self, response: &ResponseHead) -> Result<(), Problem> {
        if self.head.version() == Version::Http10 {
            return Ok(());
        }
        if response.status() == 100 {
            self.progress.continued.set(true);
        }
        self.write_head(response, Framing::None, Fate::Keep);
        self.flush(0).await
    }

    async fn switch(&mut self, response: &ResponseHead) -> Result<Finished, Problem> {
        if !self.terms.may_switch {
            return Err(Problem::UpstreamProtocol("upgrade_unasked"));
        }
        let asked = self.head.upgrade().unwrap_or_default();
        if !response.fields().all(Known::Upgrade).all(|switched| is_same_protocol(switched, asked)) {
            return Err(Problem::UpstreamProtocol("upgrade_to_another"));
        }
        self.write_head(response, Framing::None, Fate::Switch);
        self.progress.status.set(101);
        self.flush(0).await?;
        Ok(Finished { fate: Fate::Switch, reusable: false })
    }

    /// The framing that the client gets: as received where its version allows.
    fn client_framing(&self, response: &ResponseHead) -> Framing {
        match (response.framing(), self.head.version()) {
            (Framing::Chunked | Framing::UntilClose, Version::Http11 | Version::Http2) => Framing::Chunked,
            (Framing::Chunked | Framing::UntilClose, Version::Http10) => Framing::UntilClose,
            (framing, _) => framing,
        }
    }

    /// A client that waits for 100 and gets its answer instead may send the body or not; only closing tells its next
    /// request from the body's bytes. The upstream is in the same doubt about us, even where the whole body was sent.
    fn fate(&self, framing: Framing) -> Fate {
        let body_in_doubt = self.body_in_doubt();
        let keep = self.terms.may_keep
            && !*self.terms.drain.borrow()
            && framing != Framing::UntilClose
            && !body_in_doubt;
        if keep { Fate::Keep } else { Fate::Close }
    }

    fn body_in_doubt(&self) -> bool {
        let asked = self.head.expects_continue() && !self.head.framing().is_empty();
        asked && !self.progress.continued.get()
    }

    fn write_head(&mut self, response: &ResponseHead, framing: Framing, fate: Fate) {
        let interim = response.is_interim();
        let changes = if interim { Changes::default() } else { self.terms.changes };
        ResponseWriter { head: response, client: self.head.version(), framing, fate, changes }
            .write(self.terms.worker, self.client_out);
    }

    /// Passes the head that was written, and the body: in one write where they fit.
    async fn pass_body(&mut self, status: u16, mut body: BodyTransfer) -> Result<(), Problem> {
        let mut size = ReadSize::new(self.terms.settings.read_buffer, self.terms.load);
        let mut fair = Fairness::default();
        loop {
            let staged = body.stage(self.upstream_in, self.client_out);
            self.progress.response_bytes.set(body.bytes());
            staged.map_err(upstream_body_problem)?;
            self.progress.status.set(status);
            self.flush(body.direct()).await?;
            take_direct(&mut body, self.upstream_in);
            if body.is_done() {
                size.settle(self.upstream_in);
                return Ok(());
            }
            size.make_room(self.upstream_in);
            fair.turn(body.bytes()).await;
            match self.upstream.read_buf(self.upstream_in).await {
                Ok(0) if self.progress.upstream_reset.get() => return Err(Problem::UpstreamTruncated),
                Ok(0) => body.close(self.client_out).map_err(upstream_body_problem)?,
                Ok(bytes) => size.learn(bytes),
                Err(_) => return Err(Problem::UpstreamTruncated),
            }
        }
    }

    /// Writes what is encoded and `direct` bytes as they came.
    async fn flush(&mut self, direct: usize) -> Result<(), Problem> {
        // A short body costs less to copy than the kernel's handling of a second slice.
        let gathered = if direct <= MAX_COPIED_BYTES {
            self.client_out.extend_from_slice(&self.upstream_in[..direct]);
            0
        } else {
            direct
        };
        let parts = [&self.client_out[..], &self.upstream_in[..gathered], &[]];
        let patience = self.terms.settings.body_timeout;
        match write_parts(&mut self.client, parts, patience, &self.progress.delivered).await {
            Ok(()) => {
                self.client_out.clear();
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(Problem::BodyTimeout),
            Err(_) => Err(Problem::ClientClosed),
        }
    }
}

/// Whether a write failed because the peer reset its connection. One that had closed it properly before gives `EPIPE`.
pub(in crate::proxy) fn is_reset(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionReset
}

/// Whether two protocols of `Upgrade` have one name, whatever their versions.
fn is_same_protocol(one: &[u8], other: &[u8]) -> bool {
    let name = |protocol: &[u8]| protocol.iter().position(|byte| *byte == b'/').unwrap_or(protocol.len());
    one[..name(one)].eq_ignore_ascii_case(&other[..name(other)])
}

/// Drops the direct bytes from `input`: they have been written, or nobody will.
pub(in crate::proxy) fn take_direct(body: &mut BodyTransfer, input: &mut BytesMut) {
    let direct = body.direct();
    input.advance(direct);
    body.direct_written(direct);
}

pub(in crate::proxy) fn client_body_problem(error: BodyError) -> Problem {
    match error {
        BodyError::Malformed(refusal) => Problem::Refused(refusal),
        BodyError::Truncated => Problem::ClientClosed,
    }
}

pub(in crate::proxy) fn upstream_body_problem(error: BodyError) -> Problem {
    match error {
        BodyError::Malformed(refusal) => Problem::UpstreamProtocol(refusal.reason),
        BodyError::Truncated => Problem::UpstreamTruncated,
    }
}
