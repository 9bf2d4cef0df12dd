//! One request and its response where either side speaks HTTP/2: both bodies stream at once, each in its own future.
//!
//! ```text
//! client --> BodySource --> upload --> BodySink --> upstream
//! client <-- Responder, BodySink <-- download <-- Answers, BodySource <-- upstream
//! ```

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

use super::body::{BodySink, BodySource, Piece};
use super::fault::Failed;
use crate::http::body::Framing;
use crate::http::grpc::GrpcStatus;
use crate::http::h1::{Known, ResponseHead};
use crate::proxy::admission::Load;
use crate::proxy::answer::Problem;
use crate::proxy::http::Http2Settings;
use crate::proxy::http::exchange::MAX_INTERIM;
use crate::proxy::http::silence::{Timer, silent};
use crate::proxy::http::upstream::Deadline;

/// Timers that one connection keeps.
const MAX_SPARE_TIMERS: usize = 16;

/// How far an exchange came; shared by its two directions.
#[derive(Debug)]
pub(super) struct Progress {
    load: Rc<Load>,
    /// Bytes that a sender may have sent while its receiver takes nothing.
    window: usize,
    /// Whether anything of the request's body has been taken from the client.
    pub taken: Cell<bool>,
    /// Body bytes from the client.
    pub request_bytes: Cell<u64>,
    /// Whether the whole request is with the upstream.
    pub uploaded: Cell<bool>,
    /// Whether the upstream said anything.
    pub answered: Cell<bool>,
    /// Bytes that the upstream's socket or window took.
    pub sent: Cell<u64>,
    /// Bytes that the client's socket or window took.
    pub delivered: Cell<u64>,
    /// Whether the client has been told to go on with its body.
    pub continued: Cell<bool>,
    /// The status of the response whose head is with the client; 0: none yet.
    pub status: Cell<u16>,
    /// The gRPC status that the client got.
    pub grpc_status: Cell<Option<GrpcStatus>>,
    /// Body bytes to the client.
    pub response_bytes: Cell<u64>,
}

impl Progress {
    /// Nothing has happened yet.
    pub fn new(load: &Rc<Load>, settings: &Http2Settings) -> Self {
        let window = usize::try_from(settings.stream_window).unwrap_or(usize::MAX);
        Self {
            load: Rc::clone(load),
            window: window.saturating_add(settings.send_buffer),
            taken: Cell::default(),
            request_bytes: Cell::default(),
            uploaded: Cell::default(),
            answered: Cell::default(),
            sent: Cell::default(),
            delivered: Cell::default(),
            continued: Cell::default(),
            status: Cell::default(),
            grpc_status: Cell::default(),
            response_bytes: Cell::default(),
        }
    }

    /// Counts what is buffered while a receiver makes its sender wait.
    async fn while_held<T>(&self, sending: impl Future<Output = T>) -> T {
        let _held = self.load.hold(self.window);
        sending.await
    }

    /// Bytes that moved in either direction.
    fn moved(&self) -> u64 {
        [&self.request_bytes, &self.sent, &self.delivered, &self.response_bytes]
            .iter()
            .fold(0, |sum: u64, count| sum.wrapping_add(count.get()))
    }
}

/// The client's end of a response.
pub(super) trait Responder {
    /// Takes the body.
    type Sink: BodySink;

    /// Passes an interim response on.
    async fn interim(&mut self, head: &ResponseHead) -> Result<(), Problem>;

    /// Passes the final response's head on; `ends`: it has no body.
    async fn start(self, head: &ResponseHead, ends: bool) -> Result<Self::Sink, Problem>;

    /// Waits until the client wants no answer any more.
    async fn gone(&mut self);
}

/// The upstream's end of a response.
pub(super) trait Answers {
    /// Gives the body.
    type Source: BodySource;

    /// Reads the next head, interim or final.
    async fn next_head(&mut self, into: &mut ResponseHead) -> Result<(), Failed>;

    /// Whether the final response ends with its head.
    fn ends(&self, head: &ResponseHead) -> bool;

    /// The body of the response whose final head has been read.
    fn into_body(self, head: &ResponseHead) -> Result<Self::Source, Problem>;
}

/// What bounds an exchange's time.
#[derive(Debug)]
pub(super) struct Bounds<'a> {
    /// When it must be over, and what it is then.
    pub deadline: Deadline,
    /// How long the upstream may be silent.
    pub patience: Option<Duration>,
    /// How far the exchange came.
    pub progress: &'a Progress,
    /// For the wait for silence.
    pub timer: &'a mut Timer,
}

/// Timers that wait for the next request: setting one up and taking it down for each costs more than letting it run.
#[derive(Debug, Default)]
pub(super) struct SpareTimers(RefCell<Vec<Timer>>);

impl SpareTimers {
    /// One that is kept again once it is dropped.
    pub fn take(&self) -> SpareTimer<'_> {
        SpareTimer { timer: self.0.borrow_mut().pop().flatten(), spares: self }
    }
}

/// A timer in use, which is spare again once it is dropped.
pub(super) struct SpareTimer<'a> {
    pub timer: Timer,
    spares: &'a SpareTimers,
}

impl Drop for SpareTimer<'_> {
    fn drop(&mut self) {
        let mut spares = self.spares.0.borrow_mut();
        if self.timer.is_some() && spares.len() < MAX_SPARE_TIMERS {
            spares.push(self.timer.take());
        }
    }
}

impl Bounds<'_> {
    /// Ends when the exchange's time is over. A request whose whole time is bounded is not watched for silence.
    async fn over(self) -> Problem {
        if let Some((at, problem)) = self.deadline {
            tokio::time::sleep_until(at).await;
            return problem;
        }
        silent(self.patience, Instant::now(), self.timer, || self.progress.moved()).await
    }
}

/// Runs both directions until the response is with the client, or one fails, or time is over.
pub(super) async fn run(
    upload: impl Future<Output = Problem>,
    download: impl Future<Output = Result<(), Failed>>,
    bounds: Bounds<'_>,
) -> Result<(), Failed> {
    let (upload, download) = (pin!(upload), pin!(download));
    let late = pin!(bounds.over());
    tokio::select! {
        biased;
        finished = download => finished,
        problem = upload => Err(problem.into()),
        problem = late => Err(problem.into()),
    }
}

/// Sends the request's body, unless the head was all (`ends`); ends only with a problem of the client's. An upstream that takes no more is left to the other
/// direction, which may still get its answer.
pub(super) async fn upload(
    source: &mut impl BodySource,
    mut sink: impl BodySink,
    ends: bool,
    progress: &Progress,
) -> Problem {
    if ends {
        progress.uploaded.set(true);
        return source.gone().await;
    }
    loop {
        let piece = tokio::select! {
            biased;
            piece = source.next() => piece,
            () = sink.gone() => return pending().await,
        };
        let sent = match piece {
            Ok(Piece::Data { data, last }) => {
                progress.taken.set(true);
                let bytes = data.len();
                progress.request_bytes.set(progress.request_bytes.get() + bytes as u64);
                let sent = progress.while_held(sink.send(data, last)).await;
                source.release(bytes);
                if !last && sent.is_ok() {
                    continue;
                }
                sent
            }
            Ok(Piece::Trailers(trailers)) => sink.finish(Some(trailers)).await,
            Ok(Piece::End) => sink.finish(None).await,
            Err(problem) => return problem,
        };
        if sent.is_err() {
            return pending().await;
        }
        progress.uploaded.set(true);
        return source.gone().await;
    }
}

/// Passes the response on.
pub(super) async fn download<R: Responder, A: Answers>(
    mut responder: R,
    mut answers: A,
    response: &mut ResponseHead,
    progress: &Progress,
) -> Result<(), Failed> {
    let mut interim = 0;
    loop {
        tokio::select! {
            biased;
            read = answers.next_head(response) => read?,
            () = responder.gone() => return Err(Problem::ClientClosed.into()),
        }
        progress.answered.set(true);
        if !response.is_interim() {
            break;
        }
        interim += 1;
        if interim > MAX_INTERIM {
            return Err(Problem::UpstreamProtocol("interim_too_many").into());
        }
        if response.status() == 100 {
            progress.continued.set(true);
        }
        responder.interim(response).await?;
    }
    if response.status() == 101 {
        return Err(Problem::UpstreamProtocol("upgrade_unasked").into());
    }
    progress.grpc_status.set(response.fields().first(Known::GrpcStatus).map(GrpcStatus::parse));
    let ends = answers.ends(response) || response.framing() == Framing::None;
    let mut sink = responder.start(response, ends).await?;
    progress.status.set(response.status());
    if ends {
        return Ok(());
    }
    let mut source = answers.into_body(response)?;
    pass(&mut source, &mut sink, progress).await.map_err(Failed::from)
}

async fn pass(
    source: &mut impl BodySource,
    sink: &mut impl BodySink,
    progress: &Progress,
) -> Result<(), Problem> {
    loop {
        let piece = tokio::select! {
            biased;
            piece = source.next() => piece?,
            () = sink.gone() => return Err(Problem::ClientClosed),
        };
        match piece {
            Piece::Data { data, last } => {
                let bytes = data.len();
                progress.while_held(sink.send(data, last)).await?;
                source.release(bytes);
                progress.response_bytes.set(progress.response_bytes.get() + bytes as u64);
                if last {
                    return Ok(());
                }
            }
            Piece::Trailers(trailers) => {
                note_grpc_status(&trailers, progress);
                return sink.finish(Some(trailers)).await;
            }
            Piece::End => return sink.finish(None).await,
        }
    }
}

fn note_grpc_status(trailers: &HeaderMap, progress: &Progress) {
    if let Some(status) = trailers.get("grpc-status") {
        progress.grpc_status.set(Some(GrpcStatus::parse(status.as_bytes())));
    }
}
