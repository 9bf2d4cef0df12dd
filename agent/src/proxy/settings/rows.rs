//! The table of settings: what each is called, what it means, what it may be, and where its value lies.

use super::ProxySettings;
use super::value::{Stored, Unit};
use crate::http::h1::MAX_FIELDS;
use crate::proxy::http::HttpSettings;

/// One setting of `S`.
pub(super) struct Row<S: 'static> {
    /// Its name, behind the prefix of its part.
    pub name: &'static str,
    /// What its values are.
    pub unit: Unit,
    /// The least and the greatest value.
    pub range: (u64, u64),
    /// What it means, in one line.
    pub meaning: &'static str,
    /// Where its value lies.
    pub at: fn(&mut S) -> &mut dyn Stored,
}

type At<S> = fn(&mut S) -> &mut dyn Stored;

const MS_MAX: u64 = 24 * 3_600_000;
const COUNT_MAX: u64 = 1_000_000_000;
const WINDOW_MAX: u64 = (1 << 31) - 1;
const KIB: u64 = 1 << 10;
const GIB: u64 = 1 << 30;

const fn time<S>(name: &'static str, at: At<S>, meaning: &'static str) -> Row<S> {
    Row { name, unit: Unit::Duration, range: (1, MS_MAX), meaning, at }
}

const fn count<S>(name: &'static str, least: u64, at: At<S>, meaning: &'static str) -> Row<S> {
    Row { name, unit: Unit::Count, range: (least, COUNT_MAX), meaning, at }
}

const fn bytes<S>(name: &'static str, range: (u64, u64), at: At<S>, meaning: &'static str) -> Row<S> {
    Row { name, unit: Unit::Bytes, range, meaning, at }
}

const fn switch<S>(name: &'static str, at: At<S>, meaning: &'static str) -> Row<S> {
    Row { name, unit: Unit::Switch, range: (0, 1), meaning, at }
}

/// Settings of the whole agent.
pub(super) const AGENT: &[Row<ProxySettings>] = &[
    count(
        "connections.max",
        1,
        |s| &mut s.admission.connections,
        "Open client connections, of all listeners together; those of Gateways take at most three quarters.",
    ),
    count(
        "overload.max-requests",
        1,
        |s| &mut s.admission.requests,
        "Requests in flight; each worker has its share, Gateways at most three quarters. More are answered 503.",
    ),
    bytes(
        "overload.max-buffered",
        (KIB * KIB, KIB * GIB),
        |s| &mut s.admission.buffered,
        "Bytes that requests in flight may have buffered; each worker has its share, Gateways at most three quarters. Beyond it requests are answered 503.",
    ),
    count(
        "guard.push-down.after",
        1,
        |s| &mut s.admission.push_down.after,
        "A client of Gateways that is refused this often for `connections-per-source` is kept out by the guard, where there is one (`--guard`).",
    ),
    time(
        "guard.push-down.window",
        |s| &mut s.admission.push_down.window,
        "The time within which these refusals count.",
    ),
    time(
        "guard.push-down.for",
        |s| &mut s.admission.push_down.lasts,
        "How long the guard keeps such a client out.",
    ),
    time(
        "gateway.tls.handshake-timeout",
        |s| &mut s.admission.handshakes.timeout,
        "How long a TLS handshake with a client of a Gateway may take, from the connection on.",
    ),
    count(
        "gateway.tls.max-handshakes",
        1,
        |s| &mut s.admission.handshakes.max,
        "TLS handshakes with clients of Gateways that may be under way at once; more are reset.",
    ),
    time(
        "pool.idle-timeout",
        |s| &mut s.pool.idle,
        "How long an upstream connection may stay unused. One that its server closes meanwhile leaves within about a second.",
    ),
    count(
        "pool.max-idle-per-endpoint",
        0,
        |s| &mut s.pool.per_key,
        "Unused connections of one worker to one endpoint; 0: none is kept. Those in use do not count.",
    ),
    count(
        "pool.max-idle",
        0,
        |s| &mut s.pool.total,
        "Unused upstream connections of one worker; 0: none is kept. Those in use do not count.",
    ),
];

/// Settings of client connections, one set for captured ones and one for those of Gateways.
pub(super) const HTTP: &[Row<HttpSettings>] = &[
    count(
        "connections-per-source",
        1,
        |s| &mut s.connections_per_source,
        "Open connections of one client: an IPv4 address, or the /64 of an IPv6 address.",
    ),
    bytes(
        "header.max-bytes",
        (KIB, KIB * KIB),
        |s| &mut s.request.head_bytes,
        "A request's whole head; longer ones are answered 431.",
    ),
    bytes(
        "header.max-target-bytes",
        (64, 64 * KIB),
        |s| &mut s.request.target_bytes,
        "A request's target; longer ones are answered 414.",
    ),
    count_of_fields(
        "header.max-fields",
        |s| &mut s.request.fields,
        "Fields of a request; more are answered 431.",
    ),
    switch("header.underscores", |s| &mut s.request.underscores, "Whether `_` in field names is taken."),
    time(
        "header.timeout",
        |s| &mut s.header_timeout,
        "A head must be there this long after its first byte, the first after the connection; 408.",
    ),
    bytes(
        "response-header.max-bytes",
        (KIB, KIB * KIB),
        |s| &mut s.response.head_bytes,
        "A response's whole head; 502.",
    ),
    count_of_fields("response-header.max-fields", |s| &mut s.response.fields, "Fields of a response; 502."),
    time(
        "idle-timeout",
        |s| &mut s.idle_timeout,
        "How long a connection may be silent between two requests.",
    ),
    time(
        "body.timeout",
        |s| &mut s.body_timeout,
        "How long a client may neither send the next byte of a body nor take one; 408. Not while it waits for 100.",
    ),
    bytes(
        "body.min-rate",
        (1, GIB),
        |s| &mut s.body_rate,
        "Bytes a second that a client must send of a body while it is waited for, on average; 408. Not for gRPC.",
    ),
    time(
        "body.rate-grace",
        |s| &mut s.body_grace,
        "How long a body may be waited for before its rate counts.",
    ),
    bytes(
        "body.max-bytes",
        (0, KIB * KIB * GIB),
        |s| &mut s.body_max,
        "A request's body; longer ones are answered 413.",
    ),
    bytes(
        "body.read-buffer",
        (32 * KIB, 16 * KIB * KIB),
        |s| &mut s.read_buffer,
        "What the read buffer of one direction of an HTTP/1 exchange may grow to.",
    ),
    bytes(
        "body.max-discarded",
        (0, GIB),
        |s| &mut s.discard_bytes,
        "Bytes of a request's body without a taker that are read and dropped to save its connection.",
    ),
    time("body.discard-timeout", |s| &mut s.discard_time, "How long that may take."),
    bytes(
        "pipeline.max-bytes",
        (KIB, KIB * KIB),
        |s| &mut s.ahead_bytes,
        "Bytes of further requests beyond which nothing more is read while one is answered, looked at before each read; the rest waits in the kernel.",
    ),
    count(
        "connection.max-requests",
        1,
        |s| &mut s.max_requests,
        "Requests of one connection, which is then closed.",
    ),
    time(
        "upstream.timeout",
        |s| &mut s.upstream_timeout,
        "How long an upstream may be silent, before its answer and within, where no time is set for the request; 504.",
    ),
    time("connect.timeout", |s| &mut s.connect_timeout, "How long connecting to one endpoint may take; 503."),
    Row {
        name: "connect.attempts",
        unit: Unit::Count,
        range: (1, 100),
        meaning: "Endpoints tried for one request.",
        at: |s| &mut s.connect_attempts,
    },
    time(
        "drain-grace",
        |s| &mut s.drain_grace,
        "How long an idle connection may still send a request in a drain.",
    ),
    Row {
        name: "upgrades",
        unit: Unit::Choice(&["none", "websocket", "any"]),
        range: (0, 2),
        meaning: "The protocols that a connection may switch to; never HTTP/2.",
        at: |s| &mut s.upgrades,
    },
    switch(
        "trust-forwarded",
        |s| &mut s.trust_forwarded,
        "Whether a client is believed about whom it speaks for (`x-forwarded-*`, `forwarded`, `x-real-ip`).",
    ),
    Row {
        name: "trusted-hops",
        unit: Unit::Count,
        range: (0, 16),
        meaning: "Proxies before the agent that are trusted. With N of them rate limits count by the N-th address from the end of `x-forwarded-for`, and by the connection's where there is none.",
        at: |s| &mut s.trusted_hops,
    },
    Row {
        name: "path.normalisation",
        unit: Unit::Choice(&["none", "base", "merge_slashes"]),
        range: (0, 2),
        meaning: "How far paths are normalised before they are matched and forwarded; with `none`, a rule with escapes matches only the spelling that `base` gives.",
        at: |s| &mut s.path.normalisation,
    },
    Row {
        name: "path.escaped-slashes",
        unit: Unit::Choice(&["keep", "reject", "decode"]),
        range: (0, 2),
        meaning: "What is done with `%2F` and `%5C`.",
        at: |s| &mut s.path.escaped_slashes,
    },
    switch("path.strict", |s| &mut s.path.strict, "Whether paths that no honest client sends are refused."),
    switch("trace", |s| &mut s.trace, "Whether TRACE and TRACK are passed on."),
    switch(
        "strict-target",
        |s| &mut s.strict_target,
        "Whether an absolute-form target must name the authority that `Host` does, and the scheme that is spoken.",
    ),
    count(
        "max-hops",
        1,
        |s| &mut s.max_hops,
        "Agents like this one that a request may have passed before; 508.",
    ),
    count("http2.max-streams", 1, |s| &mut s.http2.max_streams, "Streams that a client may have open."),
    bytes(
        "http2.stream-window",
        (KIB, WINDOW_MAX),
        |s| &mut s.http2.stream_window,
        "Bytes of one stream that a peer may send before any has been passed on.",
    ),
    bytes(
        "http2.connection-window",
        (64 * KIB, WINDOW_MAX),
        |s| &mut s.http2.connection_window,
        "The same for all streams of a connection together.",
    ),
    bytes(
        "http2.send-buffer",
        (KIB, GIB),
        |s| &mut s.http2.send_buffer,
        "Bytes of one stream that wait to be written.",
    ),
    time("http2.client-ping", |s| &mut s.http2.client_ping, "Time between two PINGs to a client."),
    time("http2.upstream-ping", |s| &mut s.http2.upstream_ping, "Time between two PINGs to an upstream."),
    time("http2.ping-timeout", |s| &mut s.http2.ping_timeout, "How long the answer to a PING may take."),
    count(
        "http2.reset-burst",
        1,
        |s| &mut s.http2.reset_burst,
        "Streams that a client may reset, or have reset for its errors, in one burst.",
    ),
    count(
        "http2.resets-per-second",
        0,
        |s| &mut s.http2.resets_per_second,
        "How many more each second allows.",
    ),
    count(
        "http2.settings-per-second",
        1,
        |s| &mut s.http2.frames.settings,
        "SETTINGS frames of a client; ten seconds' worth may come at once.",
    ),
    count(
        "http2.pings-per-second",
        1,
        |s| &mut s.http2.frames.pings,
        "PING frames of a client, and one for each frame of an answer; ten seconds' worth may come at once.",
    ),
    count(
        "http2.window-updates-per-second",
        1,
        |s| &mut s.http2.frames.window_updates,
        "WINDOW_UPDATE frames of a client, and ten for each frame of an answer; ten seconds' worth may come at once.",
    ),
    count(
        "http2.other-frames-per-second",
        1,
        |s| &mut s.http2.frames.others,
        "PRIORITY, GOAWAY and unknown frames of a client; ten seconds' worth may come at once.",
    ),
];

/// Fields are indexed in an array of that size.
const fn count_of_fields<S>(name: &'static str, at: At<S>, meaning: &'static str) -> Row<S> {
    Row { name, unit: Unit::Count, range: (1, MAX_FIELDS as u64), meaning, at }
}
