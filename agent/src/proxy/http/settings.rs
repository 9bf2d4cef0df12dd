//! What can be set about HTTP connections, with its defaults.

use std::time::Duration;

use crate::http::h1::Limits;
use crate::pool::Keepalive;
use crate::route::PathPolicy;

/// Limits and timeouts of client connections of one kind and of what is done for them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is set by itself")]
pub struct HttpSettings {
    /// Bounds of request heads.
    pub request: Limits,
    /// Bounds of response heads.
    pub response: Limits,
    /// A request's head must be there this long after its first byte, and the first one after the connection.
    pub header_timeout: Option<Duration>,
    /// How long a kept connection may be silent between two requests.
    pub idle_timeout: Option<Duration>,
    /// How long a client may neither send the next byte of a body that we wait for nor take one that we have for it.
    pub body_timeout: Option<Duration>,
    /// How long connecting to one endpoint may take.
    pub connect_timeout: Duration,
    /// Endpoints tried for one request until one can be connected to.
    pub connect_attempts: usize,
    /// How long an idle connection may still send a request once the agent drains. Its answer then says that the connection
    /// closes, which a client can't race with as it can with a connection that closes under its request.
    pub drain_grace: Duration,
    /// Requests served on one connection before it is closed.
    pub max_requests: Option<u32>,
    /// Whether `Upgrade` is passed on, and the connection tunnelled once the upstream has switched.
    pub upgrades: bool,
    /// Whether the client is believed about whom it speaks for: `x-forwarded-*`, `forwarded`, `x-real-ip` and the paths that
    /// some servers take from fields. Else they are set anew or taken away; `x-forwarded-for` is always added to.
    pub trust_forwarded: bool,
    /// What is done to paths before they are matched and forwarded.
    pub path: PathPolicy,
    /// Whether TRACE and TRACK are passed on.
    pub trace: bool,
    /// Whether an absolute-form target must name the authority that `Host` does, and the scheme that is spoken.
    pub strict_target: bool,
    /// How many agents like this one a request may have passed before; more are a loop.
    pub max_hops: Option<usize>,
    /// Bytes of a request body without a taker that are read and dropped to save its connection.
    pub discard_bytes: u64,
    /// HTTP/2's own settings, for clients and upstreams.
    pub http2: Http2Settings,
    /// How long that may take, and how long a closed connection is still read from so that the client sees its answer.
    pub discard_time: Duration,
}

/// Limits of HTTP/2 connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http2Settings {
    /// Streams that a client may have open.
    pub max_streams: u32,
    /// Bytes of one stream that a peer may send before we have passed any on; bounds what a stream holds in memory.
    pub stream_window: u32,
    /// The same for all streams of a connection together.
    pub connection_window: u32,
    /// Bytes of one stream that wait to be written.
    pub send_buffer: usize,
    /// PINGs to clients.
    pub client_keepalive: Option<Keepalive>,
    /// PINGs to upstreams.
    pub upstream_keepalive: Option<Keepalive>,
    /// How many streams a client may reset, or have reset for its errors, in one burst; more end the connection.
    pub reset_burst: u32,
    /// How many more each second allows.
    pub resets_per_second: u32,
}

impl Http2Settings {
    /// For connections of captured pods: windows of 256 KiB and 1 MiB, 100 streams, bursts of 1,000 resets (clients with
    /// deadlines cancel a lot). gRPC servers end connections that ping more often than every five minutes, so that
    /// upstreams are asked less often; dead ones are found by TCP's own probes before that.
    pub fn captured() -> Self {
        Self {
            max_streams: 100,
            stream_window: 256 * 1024,
            connection_window: 1024 * 1024,
            send_buffer: 64 * 1024,
            client_keepalive: None,
            upstream_keepalive: Some(Keepalive {
                every: Duration::from_secs(330),
                patience: Duration::from_secs(20),
            }),
            reset_burst: 1000,
            resets_per_second: 100,
        }
    }

    /// For Gateway listeners: windows of 64 KiB and 1 MiB, bursts of 100 resets and ten a second, a PING each minute.
    pub fn gateway() -> Self {
        let keepalive = Keepalive { every: Duration::from_mins(1), patience: Duration::from_secs(20) };
        Self {
            stream_window: 64 * 1024,
            client_keepalive: Some(keepalive),
            reset_burst: 100,
            resets_per_second: 10,
            ..Self::captured()
        }
    }
}

impl HttpSettings {
    /// For connections of captured pods: applications must see what they would see without us, so that nothing is cut
    /// for being idle, and what their peers agreed on passes.
    pub fn captured() -> Self {
        Self {
            request: Limits::default(),
            response: Limits::default(),
            header_timeout: None,
            idle_timeout: None,
            body_timeout: None,
            connect_timeout: Duration::from_secs(5),
            connect_attempts: 3,
            drain_grace: Duration::from_secs(3),
            max_requests: None,
            upgrades: true,
            trust_forwarded: true,
            path: PathPolicy::captured(),
            trace: false,
            strict_target: false,
            max_hops: None,
            discard_bytes: 256 * 1024,
            discard_time: Duration::from_secs(1),
            http2: Http2Settings::captured(),
        }
    }

    /// For Gateway listeners, whose clients are strangers: 10 s for a head, 60 s idle, 30 s for a body's next byte, 1,000
    /// requests, no `_` in field names, no upgrades, targets that can be read in one way only, at most 8 agents passed.
    pub fn gateway() -> Self {
        Self {
            request: Limits { underscores: false, ..Limits::default() },
            header_timeout: Some(Duration::from_secs(10)),
            idle_timeout: Some(Duration::from_mins(1)),
            body_timeout: Some(Duration::from_secs(30)),
            max_requests: Some(1000),
            upgrades: false,
            trust_forwarded: false,
            path: PathPolicy::gateway(),
            strict_target: true,
            max_hops: Some(8),
            http2: Http2Settings::gateway(),
            ..Self::captured()
        }
    }
}
