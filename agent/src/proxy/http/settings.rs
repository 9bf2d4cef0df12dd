//! What can be set about HTTP connections, with its defaults.

use std::time::Duration;

use crate::http::h1::Limits;
use crate::pool::Keepalive;
use crate::route::PathPolicy;

/// Limits and timeouts of client connections of one kind and of what is done for them.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// Bytes a second that a client must send of a body, on average, while it is waited for.
    pub body_rate: Option<u32>,
    /// How long a body may be waited for before its rate counts.
    pub body_grace: Duration,
    /// The greatest request body.
    pub body_max: Option<u64>,
    /// What the read buffer of one direction of an HTTP/1 exchange may grow to.
    pub read_buffer: usize,
    /// Bytes of further requests, or of a switch, that are read while one request is answered.
    pub ahead_bytes: usize,
    /// Open connections of one client.
    pub connections_per_source: Option<u32>,
    /// How long an upstream may be silent, before its answer and within, where no time is set for the whole request.
    pub upstream_timeout: Option<Duration>,
    /// How long connecting to one endpoint may take.
    pub connect_timeout: Duration,
    /// Endpoints tried for one request until one can be connected to.
    pub connect_attempts: usize,
    /// How long an idle connection may still send a request once the agent drains. Its answer then says that the connection
    /// closes, which a client can't race with as it can with a connection that closes under its request.
    pub drain_grace: Duration,
    /// Requests served on one connection before it is closed.
    pub max_requests: Option<u32>,
    /// Which protocols a client may switch its connection to. The request's `Upgrade` is then passed on, and the
    /// connection tunnelled once the upstream has switched.
    pub upgrades: Upgrades,
    /// Whether the client is believed about whom it speaks for: `x-forwarded-*`, `forwarded`, `x-real-ip` and the paths that
    /// some servers take from fields. Else they are set anew or taken away; `x-forwarded-for` is always added to.
    pub trust_forwarded: bool,
    /// How many proxies before the agent are trusted to say who asked them.
    pub trusted_hops: usize,
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

/// Protocols that a connection may be switched to. HTTP/2 is never among them: a request in clear text that switches to it
/// would take all that follow past routes and checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upgrades {
    /// None.
    Off,
    /// WebSocket (RFC 6455).
    WebSocket,
    /// Whatever the upstream agrees to.
    Any,
}

impl HttpSettings {
    /// The same for clients of a pod that may be anybody: their number and their heads are held to what those of `gateway` are.
    #[must_use]
    pub fn for_strangers(self, gateway: &Self) -> Self {
        Self {
            connections_per_source: gateway.connections_per_source,
            header_timeout: gateway.header_timeout,
            ..self
        }
    }
}

impl Upgrades {
    /// Whether a protocol (`name` or `name/version`, RFC 9110 section 7.8) is among them.
    pub fn allow(self, protocol: &[u8]) -> bool {
        let name = protocol.split(|byte| *byte == b'/').next().unwrap_or_default();
        match self {
            Self::Off => false,
            Self::WebSocket => name.eq_ignore_ascii_case(b"websocket"),
            Self::Any => true,
        }
    }
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
    /// Time between two PINGs to a client.
    pub client_ping: Option<Duration>,
    /// Time between two PINGs to an upstream.
    pub upstream_ping: Option<Duration>,
    /// How long the answer to a PING may take.
    pub ping_timeout: Duration,
    /// How many streams a client may reset, or have reset for its errors, in one burst; more end the connection.
    pub reset_burst: u32,
    /// How many more each second allows.
    pub resets_per_second: u32,
    /// Frames of a client that carry no request.
    pub frames: FrameRates,
}

/// How many frames of some kinds a client may send each second; ten times as many may come at once. They cost work, or
/// answers, and no window holds them back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameRates {
    /// SETTINGS, each of which is answered.
    pub settings: Option<u32>,
    /// PING, each of which is answered. Each HEADERS and DATA frame of ours allows one more: clients measure with them.
    pub pings: Option<u32>,
    /// WINDOW_UPDATE. Each HEADERS and DATA frame of ours allows ten more.
    pub window_updates: Option<u32>,
    /// PRIORITY, GOAWAY, and types that nobody knows.
    pub others: Option<u32>,
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
            client_ping: None,
            upstream_ping: Some(Duration::from_secs(330)),
            ping_timeout: Duration::from_secs(20),
            reset_burst: 1000,
            resets_per_second: 100,
            frames: FrameRates {
                settings: Some(100),
                pings: Some(1000),
                window_updates: Some(10_000),
                others: Some(1000),
            },
        }
    }

    /// For Gateway listeners: windows of 64 KiB, and of as much as all streams have together, so that uploads which their
    /// upstreams do not take leave room for others, whose clients would be found slow; bursts of 100 resets and ten a second, a PING each minute.
    pub fn gateway() -> Self {
        Self {
            stream_window: 64 * 1024,
            connection_window: 100 * 64 * 1024,
            client_ping: Some(Duration::from_mins(1)),
            reset_burst: 100,
            resets_per_second: 10,
            frames: FrameRates {
                settings: Some(10),
                pings: Some(10),
                window_updates: Some(100),
                others: Some(100),
            },
            ..Self::captured()
        }
    }

    /// How clients are asked whether they live.
    pub fn client_keepalive(&self) -> Option<Keepalive> {
        self.client_ping.map(|every| Keepalive { every, patience: self.ping_timeout })
    }

    /// How upstreams are asked whether they live.
    pub fn upstream_keepalive(&self) -> Option<Keepalive> {
        self.upstream_ping.map(|every| Keepalive { every, patience: self.ping_timeout })
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
            body_rate: None,
            body_grace: Duration::from_secs(5),
            body_max: None,
            read_buffer: 256 * 1024,
            ahead_bytes: 16 * 1024,
            connections_per_source: None,
            upstream_timeout: None,
            connect_timeout: Duration::from_secs(5),
            connect_attempts: 3,
            drain_grace: Duration::from_secs(3),
            max_requests: None,
            upgrades: Upgrades::Any,
            trust_forwarded: true,
            trusted_hops: 0,
            path: PathPolicy::captured(),
            trace: false,
            strict_target: false,
            max_hops: None,
            discard_bytes: 256 * 1024,
            discard_time: Duration::from_secs(1),
            http2: Http2Settings::captured(),
        }
    }

    /// For Gateway listeners, whose clients are strangers: 10 s for a head, 60 s idle, 30 s for a body's next byte and 240 of
    /// them a second, 60 s for an upstream's next byte, 16,384 connections of one address, 1,000 requests on each, no `_` in
    /// field names, upgrades to WebSocket alone, targets that can be read in one way only, at most 8 agents passed.
    pub fn gateway() -> Self {
        Self {
            request: Limits { underscores: false, ..Limits::default() },
            header_timeout: Some(Duration::from_secs(10)),
            idle_timeout: Some(Duration::from_mins(1)),
            body_timeout: Some(Duration::from_secs(30)),
            body_rate: Some(240),
            connections_per_source: Some(16_384),
            upstream_timeout: Some(Duration::from_mins(1)),
            max_requests: Some(1000),
            upgrades: Upgrades::WebSocket,
            trust_forwarded: false,
            path: PathPolicy::gateway(),
            strict_target: true,
            max_hops: Some(8),
            http2: Http2Settings::gateway(),
            ..Self::captured()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upgrades_are_allowed_by_name() {
        let websocket = HttpSettings::gateway().upgrades;
        let none = Upgrades::Off;
        for (protocol, gateway) in [
            (&b"websocket"[..], true),
            (b"WebSocket", true),
            (b"websocket/13", true),
            (b"websockets", false),
            (b"web", false),
            (b"tcp", false),
            (b"", false),
            (b"/websocket", false),
        ] {
            let seen = (websocket.allow(protocol), none.allow(protocol), Upgrades::Any.allow(protocol));
            assert_eq!(seen, (gateway, false, true), "{}", protocol.escape_ascii());
        }
    }
}
