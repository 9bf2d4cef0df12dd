//! The answers that the agent gives itself: the only place that turns what went wrong into a status, a response flag
//! and a reason code.

use std::io;

use bytes::BytesMut;
use h2::Reason;
use http::HeaderMap;

use super::admission::{Crowded, Overload};
use super::http::HttpWorker;
use super::http::heads::{Fate, write_date, write_fate, write_status_line};
use super::limits::Limited;
use crate::http::grpc::{self, GrpcStatus};
use crate::http::h1::Version;
use crate::http::{FieldSink, Refusal};
use crate::identity::{PeerRefusal, edge_backends};
use crate::telemetry::Flag;

/// Why a request did not get its upstream's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Problem {
    /// The client broke the protocol.
    Refused(Refusal),
    /// The client did not finish its head in time.
    HeaderTimeout,
    /// The client sent no more of its body, or took no more of the response.
    BodyTimeout,
    /// The client sends its body too slowly.
    BodyTooSlow,
    /// The agent, or the client's share of it, has as many connections as it takes.
    Crowded(Crowded),
    /// The worker has as much to do as it takes on.
    Overload(Overload),
    /// The client is gone.
    ClientClosed,
    /// The Gateway listener that the connection came in by is gone.
    NoListener,
    /// No virtual host of the listener has the request's host.
    NoHost,
    /// No rule of the virtual host fits.
    NoRoute,
    /// The destination of the rule does not exist.
    NoCluster {
        /// What the rule's kind of document asks for.
        status: u16,
    },
    /// No destination of the rule has any weight.
    NoWeight,
    /// The cluster has no ready endpoint.
    NoEndpoint,
    /// Connecting failed.
    Connect(io::ErrorKind),
    /// Connecting took too long.
    ConnectTimeout,
    /// There is no tunnel to the upstream's pod, for this reason.
    NoTunnel(PeerRefusal),
    /// TLS can't be spoken with the upstream, for this reason.
    UpstreamTls(&'static str),
    /// The upstream closed or reset the connection before its answer.
    UpstreamClosed,
    /// The upstream closed or reset the connection within its answer.
    UpstreamTruncated,
    /// The upstream broke the protocol.
    UpstreamProtocol(&'static str),
    /// The upstream reset the request's stream, with this HTTP/2 error code.
    UpstreamReset(u32),
    /// The upstream said nothing for too long.
    UpstreamSilent,
    /// All connections that the upstream may have are full.
    UpstreamFull,
    /// The request's time is over.
    RequestTimeout,
    /// One try's time is over.
    TryTimeout,
    /// A policy of the endpoint's pod refuses the client; called so.
    Denied(&'static str),
    /// A rate limit refuses the request.
    RateLimited,
    /// It costs more than a rate limit would ever let through.
    RateLimitCost,
}

impl Problem {
    /// The answer's status; 0 where nobody is there to be answered.
    pub fn status(self) -> u16 {
        match self {
            Self::Refused(refusal) => refusal.status,
            Self::HeaderTimeout | Self::BodyTimeout | Self::BodyTooSlow => 408,
            Self::ClientClosed => 0,
            Self::NoListener | Self::NoHost | Self::NoRoute => 404,
            Self::NoCluster { status } => status,
            Self::NoWeight => 500,
            Self::Denied(_) => 403,
            Self::RateLimited | Self::RateLimitCost => 429,
            Self::NoEndpoint
            | Self::Crowded(_)
            | Self::Overload(_)
            | Self::Connect(_)
            | Self::ConnectTimeout
            | Self::NoTunnel(_)
            | Self::UpstreamClosed
            | Self::UpstreamReset(_)
            | Self::UpstreamTls(_)
            | Self::UpstreamFull => 503,
            Self::UpstreamTruncated | Self::UpstreamProtocol(_) => 502,
            Self::UpstreamSilent | Self::RequestTimeout | Self::TryTimeout => 504,
        }
    }

    /// The response flag.
    pub fn flag(self) -> Flag {
        match self {
            Self::Refused(_) => Flag::DownstreamProtocol,
            Self::HeaderTimeout | Self::BodyTimeout | Self::BodyTooSlow => Flag::IdleTimeout,
            Self::Crowded(_) | Self::Overload(_) => Flag::Overload,
            Self::ClientClosed => Flag::DownstreamClosed,
            Self::NoListener | Self::NoHost | Self::NoRoute => Flag::NoRoute,
            Self::NoCluster { .. } | Self::NoWeight => Flag::NoCluster,
            Self::NoEndpoint => Flag::NoHealthyUpstream,
            Self::Connect(_) | Self::ConnectTimeout | Self::NoTunnel(_) | Self::UpstreamTls(_) => {
                Flag::UpstreamConnectFailure
            }
            Self::UpstreamClosed | Self::UpstreamTruncated => Flag::UpstreamClosed,
            Self::UpstreamProtocol(_) => Flag::UpstreamProtocol,
            Self::UpstreamReset(_) => Flag::UpstreamReset,
            Self::UpstreamFull => Flag::UpstreamOverflow,
            Self::Denied(_) => Flag::AccessDenied,
            Self::RateLimited | Self::RateLimitCost => Flag::RateLimited,
            Self::UpstreamSilent | Self::RequestTimeout | Self::TryTimeout => Flag::UpstreamTimeout,
        }
    }

    /// The reason code.
    pub fn details(self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.reason,
            Self::HeaderTimeout => "header_timeout",
            Self::BodyTimeout => "body_timeout",
            Self::BodyTooSlow => "body_too_slow",
            Self::Crowded(Crowded::Agent) => "connections",
            Self::Crowded(Crowded::Source) => "connections_per_source",
            Self::Overload(Overload::Requests) => "requests_in_flight",
            Self::Overload(Overload::Buffered) => "buffered_bytes",
            Self::ClientClosed => "client_closed",
            Self::NoListener => "listener_removed",
            Self::NoHost => "host_not_found",
            Self::NoRoute => "route_not_found",
            Self::NoCluster { .. } => "destination_not_found",
            Self::NoWeight => "destinations_without_weight",
            Self::NoEndpoint => "no_ready_endpoint",
            Self::Connect(kind) => connect_details(kind),
            Self::ConnectTimeout => "connect_timeout",
            Self::NoTunnel(why) => why.name(),
            Self::UpstreamClosed => "upstream_closed",
            Self::UpstreamTruncated => "upstream_truncated",
            Self::UpstreamProtocol(reason) | Self::UpstreamTls(reason) | Self::Denied(reason) => reason,
            Self::UpstreamReset(code) => reset_details(code),
            Self::UpstreamSilent => "upstream_timeout",
            Self::UpstreamFull => "upstream_full",
            Self::RateLimited => "rate_limited",
            Self::RateLimitCost => "rate_limit_cost",
            Self::RequestTimeout => "request_timeout",
            Self::TryTimeout => "try_timeout",
        }
    }

    /// The proxy error type (RFC 9209 section 2.3).
    fn proxy_error(self) -> &'static str {
        match self {
            Self::Refused(_)
            | Self::HeaderTimeout
            | Self::BodyTimeout
            | Self::BodyTooSlow
            | Self::ClientClosed => "http_request_error",
            Self::Crowded(_) | Self::Overload(_) => "proxy_internal_error",
            Self::NoListener | Self::NoHost | Self::NoRoute => "destination_not_found",
            Self::Connect(io::ErrorKind::ConnectionRefused) => "connection_refused",
            Self::Connect(io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable) => {
                "destination_ip_unroutable"
            }
            Self::NoCluster { .. } | Self::NoWeight | Self::NoEndpoint | Self::Connect(_) => {
                "destination_unavailable"
            }
            Self::ConnectTimeout => "connection_timeout",
            Self::NoTunnel(_) | Self::UpstreamTls(_) => "tls_protocol_error",
            Self::UpstreamClosed | Self::UpstreamReset(_) => "connection_terminated",
            Self::UpstreamFull => "connection_limit_reached",
            Self::Denied(_) | Self::RateLimited | Self::RateLimitCost => "http_request_denied",
            Self::UpstreamTruncated => "http_response_incomplete",
            Self::UpstreamProtocol(_) => "http_protocol_error",
            Self::UpstreamSilent | Self::RequestTimeout | Self::TryTimeout => "http_response_timeout",
        }
    }

    /// The gRPC status of the answer.
    pub fn grpc_status(self) -> GrpcStatus {
        match self {
            Self::UpstreamReset(code) => GrpcStatus::of_reset(code),
            Self::RateLimited | Self::RateLimitCost => GrpcStatus::RESOURCE_EXHAUSTED,
            other => GrpcStatus::of_http(other.status()),
        }
    }

    /// The HTTP/2 error code that ends a stream whose answer has begun. An upstream's own code is passed on.
    pub fn reset_code(self) -> Reason {
        match self {
            Self::UpstreamReset(code) => Reason::from(code),
            Self::UpstreamSilent
            | Self::RequestTimeout
            | Self::TryTimeout
            | Self::BodyTimeout
            | Self::BodyTooSlow
            | Self::ClientClosed => Reason::CANCEL,
            Self::Refused(_) => Reason::PROTOCOL_ERROR,
            _ => Reason::INTERNAL_ERROR,
        }
    }

    /// What it is where the upstream has sent a TLS alert: in the place of an answer that refuses what it was shown.
    pub fn or_refused(self, alerted: bool) -> Self {
        if self == Self::UpstreamClosed && alerted { Self::UpstreamTls(edge_backends::REFUSED) } else { self }
    }

    /// Whether the same request may well succeed in a moment, and did no harm now.
    fn passes(self) -> bool {
        matches!(self, Self::Crowded(_) | Self::Overload(_) | Self::NoEndpoint | Self::UpstreamFull)
    }

    /// The answer; `None` where nobody is there to be answered.
    pub fn answer(self) -> Option<Answer<'static>> {
        let status = self.status();
        let problem = (status != 0).then_some(self)?;
        Some(Answer { status, problem: Some(problem), ..Answer::default() })
    }
}

fn reset_details(code: u32) -> &'static str {
    match Reason::from(code) {
        Reason::NO_ERROR => "upstream_reset_no_error",
        Reason::REFUSED_STREAM => "upstream_reset_refused_stream",
        Reason::CANCEL => "upstream_reset_cancel",
        Reason::ENHANCE_YOUR_CALM => "upstream_reset_enhance_your_calm",
        Reason::HTTP_1_1_REQUIRED => "upstream_reset_http_1_1_required",
        Reason::INTERNAL_ERROR => "upstream_reset_internal_error",
        Reason::PROTOCOL_ERROR => "upstream_reset_protocol_error",
        _ => "upstream_reset",
    }
}

impl From<io::Error> for Problem {
    /// What a failed connect means.
    fn from(error: io::Error) -> Self {
        let refusal = error.get_ref().and_then(|inner| inner.downcast_ref::<PeerRefusal>());
        refusal.map_or(Self::Connect(error.kind()), |why| Self::NoTunnel(*why))
    }
}

fn connect_details(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::ConnectionRefused => "connect_refused",
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "connect_unreachable",
        io::ErrorKind::ConnectionReset => "connect_reset",
        io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse => "connect_no_source_port",
        _ => "connect_failed",
    }
}

/// An answer by the agent itself.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Answer<'a> {
    /// The status.
    pub status: u16,
    /// Where a redirect leads.
    pub location: Option<&'a str>,
    /// The body; an answer to a problem writes its own.
    pub body: &'a [u8],
    /// What went wrong.
    pub problem: Option<Problem>,
    /// The limit that the request was beyond; its body takes the place of the problem's.
    pub limit: Option<Limited<'a>>,
}

/// What an answer depends on besides itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct AnswerTo {
    /// The version that the client speaks.
    pub client: Version,
    /// Whether the request is a HEAD.
    pub to_head: bool,
    /// What becomes of the connection.
    pub fate: Fate,
}

impl<'a> Answer<'a> {
    /// The answer to a request that a limit refuses.
    pub fn limited(limit: Limited<'a>) -> Self {
        let problem = Some(limit.problem());
        Self { status: limit.policy.answer.status, problem, limit: Some(limit), ..Self::default() }
    }

    /// The same for a gRPC client: a head alone that holds the status (a response that consists of trailers only).
    pub fn write_grpc(&self, worker: &HttpWorker, out: &mut HeaderMap) -> GrpcStatus {
        let status = self.problem.map_or(GrpcStatus::of_http(self.status), Problem::grpc_status);
        out.field(b"content-type", b"application/grpc");
        out.field(b"grpc-status", status.0.to_string().as_bytes());
        let mut text = BytesMut::new();
        self.write_body(false, &mut text);
        out.field(b"grpc-message", grpc::message(text.trim_ascii_end()).as_bytes());
        out.field(b"server", b"sluice");
        write_date(worker, out);
        if let Some(limit) = &self.limit {
            limit.write_fields(out);
        }
        status
    }

    /// Writes the head but for its end, so that a route can add fields; then see [`Self::finish`].
    pub fn start(&self, to: AnswerTo, worker: &HttpWorker, out: &mut BytesMut) {
        let reason = reason_phrase(self.status);
        write_status_line(out, self.status, reason.as_bytes());
        self.write_fields(worker, out);
        write_fate(out, to.fate, to.client);
    }

    /// The fields, whatever the version.
    pub fn write_fields(&self, worker: &HttpWorker, out: &mut impl FieldSink) {
        out.field(b"server", b"sluice");
        write_date(worker, out);
        if let Some(location) = self.location {
            out.field(b"location", location.as_bytes());
        }
        if self.status == 405 {
            // CONNECT and TRACE are the methods that the agent itself refuses.
            out.field(b"allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
        }
        if let Some(problem) = self.problem {
            let (error, details) = (problem.proxy_error(), problem.details());
            let value = format!("sluice; error={error}; details=\"{details}\"");
            out.field(b"proxy-status", value.as_bytes());
            if problem.passes() {
                out.field(b"retry-after", b"1");
            }
        }
        if let Some(limit) = &self.limit {
            limit.write_fields(out);
        }
        let has_body = !matches!(self.status, 204 | 304);
        if has_body {
            let length = self.body_len().to_string();
            if self.body_len() > 0 {
                let own = self.limit.as_ref().and_then(Limited::content_type);
                out.field(b"content-type", own.unwrap_or(b"text/plain; charset=utf-8"));
            }
            out.field(b"content-length", length.as_bytes());
        }
    }

    /// Ends the head and writes the body; gives the body's bytes.
    pub fn finish(&self, to: AnswerTo, out: &mut BytesMut) -> u64 {
        out.extend_from_slice(b"\r\n");
        self.write_body(to.to_head, out)
    }

    /// Writes the body; gives its bytes.
    pub fn write_body(&self, to_head: bool, out: &mut BytesMut) -> u64 {
        if to_head || matches!(self.status, 204 | 304) {
            return 0;
        }
        match self.problem.filter(|_| self.limit.is_none()) {
            Some(problem) => {
                out.extend_from_slice(reason_phrase(self.status).as_bytes());
                out.extend_from_slice(b": ");
                out.extend_from_slice(problem.details().as_bytes());
                out.extend_from_slice(b"\n");
            }
            None => out.extend_from_slice(self.own_body()),
        }
        self.body_len() as u64
    }

    fn body_len(&self) -> usize {
        match self.problem.filter(|_| self.limit.is_none()) {
            Some(problem) => reason_phrase(self.status).len() + problem.details().len() + 3,
            None => self.own_body().len(),
        }
    }

    fn own_body(&self) -> &[u8] {
        self.limit.as_ref().map_or(self.body, Limited::body)
    }
}

/// The registered phrase of a status that the agent or a route may answer with.
fn reason_phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        410 => "Gone",
        413 => "Content Too Large",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        418 => "I'm a Teapot",
        421 => "Misdirected Request",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        508 => "Loop Detected",
        // The phrase means nothing to recipients and may be empty (RFC 9112 section 4).
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    use crate::compile::{ACCESS_DENIED, MTLS_REQUIRED};
    use crate::proxy::http::worker::Share;
    use crate::proxy::{ProxySettings, Random};

    #[test]
    fn problems_have_status_flag_and_reason() {
        let check = |problem: Problem, status, flag, details| {
            assert_eq!((problem.status(), problem.flag(), problem.details()), (status, flag, details));
        };
        check(Problem::Refused(Refusal::bad("bare_lf")), 400, Flag::DownstreamProtocol, "bare_lf");
        check(Problem::HeaderTimeout, 408, Flag::IdleTimeout, "header_timeout");
        check(Problem::ClientClosed, 0, Flag::DownstreamClosed, "client_closed");
        check(Problem::NoRoute, 404, Flag::NoRoute, "route_not_found");
        check(Problem::NoCluster { status: 500 }, 500, Flag::NoCluster, "destination_not_found");
        check(Problem::NoEndpoint, 503, Flag::NoHealthyUpstream, "no_ready_endpoint");
        let refused = Problem::Connect(io::ErrorKind::ConnectionRefused);
        check(refused, 503, Flag::UpstreamConnectFailure, "connect_refused");
        check(Problem::ConnectTimeout, 503, Flag::UpstreamConnectFailure, "connect_timeout");
        check(Problem::UpstreamClosed, 503, Flag::UpstreamClosed, "upstream_closed");
        let refused = Problem::UpstreamClosed.or_refused(true);
        check(refused, 503, Flag::UpstreamConnectFailure, "upstream_tls_refused");
        check(Problem::UpstreamClosed.or_refused(false), 503, Flag::UpstreamClosed, "upstream_closed");
        check(Problem::UpstreamTruncated.or_refused(true), 502, Flag::UpstreamClosed, "upstream_truncated");
        check(Problem::UpstreamProtocol("bare_lf"), 502, Flag::UpstreamProtocol, "bare_lf");
        check(Problem::UpstreamReset(7), 503, Flag::UpstreamReset, "upstream_reset_refused_stream");
        check(Problem::UpstreamFull, 503, Flag::UpstreamOverflow, "upstream_full");
        check(Problem::BodyTooSlow, 408, Flag::IdleTimeout, "body_too_slow");
        check(Problem::Overload(Overload::Requests), 503, Flag::Overload, "requests_in_flight");
        check(Problem::Crowded(Crowded::Source), 503, Flag::Overload, "connections_per_source");
        for reason in [ACCESS_DENIED, MTLS_REQUIRED] {
            check(Problem::Denied(reason), 403, Flag::AccessDenied, reason);
        }
        check(Problem::UpstreamSilent, 504, Flag::UpstreamTimeout, "upstream_timeout");
        check(Problem::RequestTimeout, 504, Flag::UpstreamTimeout, "request_timeout");
    }

    #[test]
    fn the_length_of_an_answer_is_true() {
        let worker = HttpWorker::new(ProxySettings::default(), Share::default(), Rc::new(Random::new(1)));
        let answers = [
            Problem::NoRoute.answer().expect("an answer"),
            Answer { status: 200, body: b"hello", ..Answer::default() },
            Answer { status: 302, location: Some("http://a/"), ..Answer::default() },
        ];
        for answer in answers {
            let to = AnswerTo { client: Version::Http11, to_head: false, fate: Fate::Keep };
            let mut out = BytesMut::new();
            answer.start(to, &worker, &mut out);
            let bytes = answer.finish(to, &mut out);
            let text = String::from_utf8_lossy(&out);
            let (head, body) = text.split_once("\r\n\r\n").expect("a head");
            assert!(head.contains(&format!("content-length: {}", body.len())), "{text}");
            assert_eq!(bytes, body.len() as u64);
        }
    }
}
