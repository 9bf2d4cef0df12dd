//! The access log: one JSON line for each request and each opaque connection, at its end. Names are those of Istio's
//! JSON access log where it has one.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};
use std::{fmt, io};

use super::json::JsonLine;
use super::{ConnectionRecord, LimitedBy, LineWriter, Origin, RequestRecord, TlsRecord, rfc3339};
use crate::compile::{ClusterKey, Denied, DeniedBy, Observed};
use crate::model::Workload;

/// Where access log lines go, with a switch. Clones share both.
#[derive(Debug, Clone, Default)]
pub struct AccessLog {
    writer: Option<LineWriter>,
    enabled: Arc<AtomicBool>,
}

impl AccessLog {
    /// Writes to a sink, from a thread of its own.
    pub fn new(sink: impl Write + Send + 'static) -> io::Result<Self> {
        Ok(Self { writer: Some(LineWriter::new(sink)?), enabled: Arc::new(AtomicBool::new(true)) })
    }

    /// Writes nothing, ever.
    pub fn disabled() -> Self {
        Self::default()
    }

    /// Turns the log on or off.
    pub fn set_enabled(&self, enabled: bool) {
        self.enabled.store(enabled, Ordering::Relaxed);
    }

    /// The writer, to count what it drops and to flush it at the end.
    pub fn writer(&self) -> Option<&LineWriter> {
        self.writer.as_ref()
    }

    pub(super) fn write(&self, buffer: &mut Vec<u8>, format: impl FnOnce(&mut Vec<u8>)) {
        if let Some(writer) = &self.writer
            && self.enabled.load(Ordering::Relaxed)
        {
            format(buffer);
            writer.append(buffer);
        }
    }
}

/// One request's line.
pub(super) fn request(buffer: &mut Vec<u8>, record: &RequestRecord<'_>) {
    let began = SystemTime::now() - record.duration;
    let user_agent = String::from_utf8_lossy(record.user_agent);
    let mut line = JsonLine::new(buffer);
    line.text("level", "info")
        .display("time", rfc3339(began))
        .text("scope", "access")
        .text("message", "request")
        .text("method", record.method)
        .text("path", record.path)
        .text("authority", record.authority)
        .text("protocol", record.protocol)
        .raw("response_code", record.status)
        .display("response_flags", record.flags);
    details(&mut line, record);
    line.raw("bytes_received", record.request_bytes)
        .raw("bytes_sent", record.response_bytes)
        .raw("duration", millis(record.duration))
        .optional("request_id", non_empty(record.request_id))
        .optional("user_agent", non_empty(&user_agent));
    if let Some(status) = record.grpc_status {
        line.text("grpc_status", status.name());
    }
    match record.route {
        Some(route) => {
            line.display("route_name", format_args!("{}/{}/{}", route.kind, route.source, route.rule))
        }
        None => line.optional("route_name", None),
    };
    Ends {
        origin: record.origin,
        peer: record.peer,
        original_destination: record.original_destination,
        source: record.source,
        cluster: record.cluster,
        upstream: record.upstream,
        destination: record.destination,
        tls: record.tls.as_ref(),
    }
    .write(&mut line);
    if let Some(tls) = &record.tls {
        line.optional("downstream_tls_version", tls.version)
            .optional("requested_server_name", tls.server_name);
        if let Some(subject) = tls.subject {
            line.text("downstream_peer_subject", subject);
        }
    }
    line.finish();
}

/// Why the request ended so, with the policy or the limit that refused it.
fn details(line: &mut JsonLine<'_>, record: &RequestRecord<'_>) {
    const NAME: &str = "response_code_details";
    let why = record.details;
    match (record.denied.filter(|denied| why == denied.reason()), record.limited) {
        (Some(Denied { policy, by: DeniedBy::Plaintext }), _) => {
            line.display(NAME, format_args!("{why}_by[{policy}]"))
        }
        (Some(denied), _) => line.display(
            NAME,
            format_args!("{why}_matched_policy[{} rule {}]", denied.policy, denied.rule_label()),
        ),
        (None, Some(by)) => line.display(NAME, LimitedDetails(why, by)),
        (None, None) => line.optional(NAME, non_empty(why)),
    };
}

/// A reason with the limit that gave it.
struct LimitedDetails<'a>(&'static str, LimitedBy<'a>);

impl fmt::Display for LimitedDetails<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(why, LimitedBy { policy, limit }) = self;
        write!(f, "{why}_by[{policy} limit {limit}]")
    }
}

/// One opaque connection's line.
pub(super) fn connection(buffer: &mut Vec<u8>, record: &ConnectionRecord<'_>) {
    const TERMINATION: &str = "connection_termination_details";
    let mut line = JsonLine::new(buffer);
    line.text("level", "info")
        .display("time", rfc3339(record.start))
        .text("scope", "access")
        .text("message", "connection")
        .text("protocol", "TCP")
        .display("response_flags", record.flags);
    match record.limited {
        Some(by) => line.display(TERMINATION, LimitedDetails(record.details, by)),
        None => line.optional(TERMINATION, non_empty(record.details)),
    };
    line.raw("bytes_received", record.sent_bytes)
        .raw("bytes_sent", record.received_bytes)
        .raw("duration", millis(record.duration));
    Ends {
        origin: record.origin,
        peer: record.peer,
        original_destination: record.original_destination,
        source: record.source,
        cluster: record.cluster,
        upstream: record.upstream,
        destination: record.destination,
        tls: None,
    }
    .write(&mut line);
    if let Some(identity) = record.identity {
        line.display("src.identity", identity);
    }
    line.finish();
}

/// What a policy says of a client's request or connection that it does not refuse.
pub(super) fn observed(
    buffer: &mut Vec<u8>,
    observed: &Observed,
    (client, endpoint): (SocketAddr, SocketAddr),
) {
    let mut line = JsonLine::new(buffer);
    line.text("level", "info")
        .display("time", rfc3339(SystemTime::now()))
        .text("scope", "access")
        .text("message", "policy")
        .text("outcome", observed.outcome.as_str())
        .display("policy", &observed.policy)
        .display("rule", observed.rule_label())
        .display("downstream_remote_address", client)
        .display("upstream_host", endpoint);
    line.finish();
}

/// Who spoke with whom.
struct Ends<'a> {
    origin: &'a Origin,
    peer: SocketAddr,
    original_destination: SocketAddr,
    source: Option<&'a Arc<Workload>>,
    cluster: Option<&'a ClusterKey>,
    upstream: Option<SocketAddr>,
    destination: Option<&'a Arc<Workload>>,
    tls: Option<&'a TlsRecord<'a>>,
}

impl Ends<'_> {
    fn write(&self, line: &mut JsonLine<'_>) {
        match self.origin {
            Origin::Outbound => line.text("direction", "outbound"),
            Origin::Inbound | Origin::Tunnel(_) => line.text("direction", "inbound"),
            Origin::Gateway(port) => {
                // A port that several share goes by the first one's name.
                let listener = self.tls.map_or(Some(&**port), |tls| tls.listener);
                line.text("direction", "gateway").optional("listener", listener)
            }
        };
        line.display("downstream_remote_address", self.peer)
            .display("downstream_local_address", self.original_destination);
        match self.upstream {
            Some(upstream) => line.display("upstream_host", upstream),
            None => line.optional("upstream_host", None),
        };
        match (self.cluster, self.origin) {
            (Some(cluster), _) => line.display("upstream_cluster", ClusterName(cluster)),
            (None, Origin::Inbound | Origin::Tunnel(_)) => {
                let port = self.original_destination.port();
                line.display("upstream_cluster", format_args!("inbound|{port}||"))
            }
            (None, _) => line.optional("upstream_cluster", None),
        };
        line.optional("src.workload", self.source.map(|workload| &*workload.workload))
            .optional("src.namespace", self.source.map(|workload| &*workload.name.namespace))
            .optional("dst.workload", self.destination.map(|workload| &*workload.workload))
            .optional("dst.namespace", self.destination.map(|workload| &*workload.name.namespace));
    }
}

/// A cluster as Istio calls it: `outbound|80|v1|order-service.default.svc.cluster.local`.
struct ClusterName<'a>(&'a ClusterKey);

impl fmt::Display for ClusterName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ClusterKey { service, port, subset } = self.0;
        let subset = subset.as_deref().unwrap_or("");
        write!(f, "outbound|{port}|{subset}|{}.{}.svc.cluster.local", service.name, service.namespace)
    }
}

/// Milliseconds with three decimals.
fn millis(duration: Duration) -> impl fmt::Display {
    struct Millis(u128);
    impl fmt::Display for Millis {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
        }
    }
    Millis(duration.as_micros())
}

fn non_empty(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}
