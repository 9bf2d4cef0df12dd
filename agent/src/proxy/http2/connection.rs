//! A client's HTTP/2 connection: its streams are answered each in a task of its own; here are the limits, the keepalive
//! and the end.

use std::cell::RefCell;
use std::future::{Future, pending, poll_fn};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::server::{self, Builder, SendResponse};
use h2::{Reason, RecvStream};
use http::Request;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::budget::Budget;
use super::exchange::SpareTimers;
use super::frames::{FrameGuard, Watched};
use super::respond::{StreamEnd, respond};
use crate::http::Refusal;
use crate::http::h1::{Limits, Version};
use crate::net::{Replay, Stream};
use crate::pool::Keepalive;
use crate::proxy::answer::Problem;
use crate::proxy::http::HttpSettings;
use crate::proxy::http::caller::Caller;
use crate::proxy::http::passed::Passed;
use crate::proxy::http::plan::Planned;
use crate::proxy::http::record::Trail;
use crate::proxy::http::worker::Buffers;
use crate::proxy::open::Shown;
use crate::proxy::{Context, Downstream, Early, Handshaken, Protocol};
use crate::telemetry::Origin;

/// Streams that a client opened and reset before we looked at them.
const MAX_PENDING_RESETS: usize = 20;
/// Streams whose frames are still let pass after we reset them.
const MAX_REMEMBERED_RESETS: usize = 50;

type Connection = server::Connection<Watched, Bytes>;
type Accepted = (Request<RecvStream>, SendResponse<Bytes>);

/// What the streams of one connection share.
pub(super) struct Session {
    pub ctx: Context,
    pub settings: Rc<HttpSettings>,
    pub origin: Origin,
    pub peer: SocketAddr,
    pub original_destination: SocketAddr,
    /// For the first stream.
    pub early: RefCell<Option<Early>>,
    pub timers: SpareTimers,
    /// What the connection's TLS handshake told, where it had one.
    pub tls: Option<Rc<Handshaken>>,
    /// Shows it to those who ask what is open.
    shown: Shown,
    /// The client's socket; only of use while the connection is there.
    socket: RawFd,
}

impl Session {
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

    /// A request as its endpoint gets to see it.
    pub fn passed<'a>(&'a self, planned: &Planned<'a>, buffers: &'a Buffers) -> Passed<'a> {
        Passed::new(self.caller(), planned, &buffers.head, &buffers.request_id)
    }

    /// Records the end of the connection, which is still there.
    fn record_end(&self, served: bool) {
        self.caller().record_end(&self.shown, self.socket, served);
    }

    /// Records what ended the connection where that was the client's doing.
    fn record_violation(&self, reason: &'static str) {
        let table = self.ctx.tables.load_full();
        let mut trail = Trail::new(Instant::now(), self.caller().ends(&table));
        trail.version = Version::Http2;
        trail.fail(Problem::Refused(Refusal::bad(reason)));
        self.caller().record(&trail, None, "");
    }
}

/// Serves one client connection, of which the preface has been seen, until it is closed. Runs within a `LocalSet`.
pub async fn serve(ctx: Context, downstream: Downstream<Stream>) {
    let Downstream { io, read, peer, original_destination, origin, early, shown, tls } = downstream;
    shown.is(Protocol::Http2, None);
    let socket = io.as_raw_fd();
    let settings = ctx.http.settings(&origin);
    let early = RefCell::new(early);
    let session = Rc::new(Session {
        ctx,
        settings,
        origin,
        peer,
        original_destination,
        early,
        timers: SpareTimers::default(),
        tls,
        shown,
        socket,
    });
    let guard = FrameGuard::new(&session.settings.http2, Instant::now());
    let io = Watched::new(Replay::new(read, io), Rc::clone(&guard));
    let shaken =
        within(session.settings.header_timeout, builder(&session.settings).handshake::<_, Bytes>(io));
    let connection = match shaken.await {
        Some(Ok(connection)) => connection,
        Some(Err(error)) => return note_end(&session, &guard, &error),
        None => return,
    };
    let draining = *session.ctx.drain.borrow();
    let flooded = None;
    Served { session, streams: JoinSet::new(), guard, begun: 0, flooded, draining }.run(connection).await;
}

/// Twice what is taken, so that nearly all heads that are too long are refused, and recorded, like those of HTTP/1. The
/// frame layer's own refusals leave no trace.
fn header_list_bytes(limits: &Limits) -> u32 {
    u32::try_from(limits.head_bytes.saturating_mul(2)).unwrap_or(u32::MAX)
}

fn builder(settings: &HttpSettings) -> Builder {
    let http2 = &settings.http2;
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(http2.max_streams)
        .initial_window_size(http2.stream_window)
        .initial_connection_window_size(http2.connection_window)
        .max_header_list_size(header_list_bytes(&settings.request))
        .max_send_buffer_size(http2.send_buffer)
        .max_concurrent_reset_streams(MAX_REMEMBERED_RESETS)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(usize::try_from(http2.reset_burst).ok());
    builder
}

/// A connection being served.
struct Served {
    session: Rc<Session>,
    streams: JoinSet<StreamEnd>,
    guard: Rc<FrameGuard>,
    /// Streams begun so far.
    begun: u32,
    /// Until when a client that has been told that it is too much may take to hear it.
    flooded: Option<Instant>,
    /// Whether GOAWAY has been said.
    draining: bool,
}

impl Served {
    async fn run(mut self, mut connection: Connection) {
        if self.draining {
            connection.graceful_shutdown();
        }
        let settings = Rc::clone(&self.session.settings);
        let mut budget =
            Budget::new(settings.http2.reset_burst, settings.http2.resets_per_second, Instant::now());
        let mut drain = self.session.ctx.drain.clone();
        let mut drained = pin!(async move {
            if drain.wait_for(|drains| *drains).await.is_err() {
                // Whoever could ask for a drain is gone.
                pending::<()>().await;
            }
        });
        let mut dead = pin!(Keepalive::dead(settings.http2.client_keepalive(), connection.ping_pong()));
        // Once over, it is not to be asked again.
        let mut drains = self.draining;
        let mut quiet_since = Instant::now();
        loop {
            let quiet_for_too_long = self.quiet_for_too_long(quiet_since);
            let quiet = self.streams.is_empty();
            tokio::select! {
                biased;
                Some(ended) = self.streams.join_next(), if !quiet => {
                    quiet_since = Instant::now();
                    if matches!(ended, Ok(StreamEnd::Last)) {
                        self.say_goaway(&mut connection);
                    }
                    let reset = matches!(ended, Ok(StreamEnd::Reset));
                    if reset && !budget.take(quiet_since) {
                        self.end_flood(&mut connection, "h2_reset_flood");
                    }
                }
                accepted = connection.accept() => match accepted {
                    Some(Ok(accepted)) => self.start(accepted, &mut connection),
                    Some(Err(error)) => {
                        note_end(&self.session, &self.guard, &error);
                        break;
                    }
                    None => break,
                },
                flood = poll_fn(|_| self.guard.poll_flood()), if self.flooded.is_none() => {
                    self.end_flood(&mut connection, flood);
                }
                () = until(self.flooded), if self.flooded.is_some() => break,
                () = &mut drained, if !drains => {
                    drains = true;
                    quiet_since = Instant::now();
                    self.say_goaway(&mut connection);
                }
                () = quiet_for_too_long, if quiet => {
                    if self.draining {
                        break;
                    }
                    quiet_since = Instant::now();
                    self.say_goaway(&mut connection);
                }
                () = &mut dead => {
                    tracing::debug!(peer = %self.session.peer, "a client answers no PING");
                    break;
                }
            }
        }
        self.session.record_end(self.begun > 0);
        drop(connection);
        // The streams see that the connection is gone, and are recorded.
        while self.streams.join_next().await.is_some() {}
    }

    /// Tells the client that it is too much. What it has opened ends with the connection.
    fn end_flood(&mut self, connection: &mut Connection, reason: &'static str) {
        if self.flooded.is_none() {
            self.flooded = Some(Instant::now() + self.session.settings.discard_time);
            self.session.record_violation(reason);
            connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
        }
    }

    /// Tells the client to open no more streams; those that it has opened are served.
    fn say_goaway(&mut self, connection: &mut Connection) {
        if !self.draining {
            self.draining = true;
            connection.graceful_shutdown();
        }
    }

    fn start(&mut self, (request, send): Accepted, connection: &mut Connection) {
        self.begun = self.begun.saturating_add(1);
        if self.session.settings.max_requests.is_some_and(|max| self.begun >= max) {
            self.say_goaway(connection);
        }
        self.streams.spawn_local(respond(Rc::clone(&self.session), request, send));
    }

    /// Waits, without streams, until it is time to say GOAWAY or, after that, to close: the client may take a while to see
    /// it, but not for ever.
    fn quiet_for_too_long(&self, since: Instant) -> impl Future<Output = ()> + use<> {
        let settings = &self.session.settings;
        let limit = if self.draining { Some(settings.drain_grace) } else { settings.idle_timeout };
        until(limit.map(|limit| since + limit))
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => pending().await,
    }
}

async fn within<T>(limit: Option<Duration>, future: impl Future<Output = T>) -> Option<T> {
    match limit {
        Some(limit) => tokio::time::timeout(limit, future).await.ok(),
        None => Some(future.await),
    }
}

/// Records an end that a client's violation of the protocol brought about; all others are the client's right.
fn note_end(session: &Session, guard: &FrameGuard, error: &h2::Error) {
    tracing::debug!(peer = %session.peer, %error, "an HTTP/2 connection ended");
    if !error.is_library() {
        return;
    }
    session.record_violation(match error.reason() {
        Some(Reason::ENHANCE_YOUR_CALM) => guard.frame_layer_flood(),
        Some(Reason::FLOW_CONTROL_ERROR) => "h2_flow_control",
        Some(Reason::FRAME_SIZE_ERROR) => "h2_frame_size",
        Some(Reason::COMPRESSION_ERROR) => "h2_compression",
        Some(Reason::STREAM_CLOSED) => "h2_stream_closed",
        _ => "h2_protocol_error",
    });
}
