//! The series of traffic, by their labels; the only place where they are made, and where their number is bounded.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use prometheus::{Error, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry};

use crate::compile::Realm;

use super::labels::{self, NAMES, REQUEST_NAMES, TCP_NAMES, Traffic};

/// Distinct label sets of one kind of traffic. Above it everything counts in one set whose labels all say `overflow`, so
/// that the totals stay right and memory bounded.
const SERIES_MAX: usize = 5_000;

/// The bounds of Envoy's own histograms, which Istio uses for milliseconds and for bytes.
const BUCKETS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// The series of one label set of requests.
pub(super) struct RequestSeries {
    pub(super) requests: IntCounter,
    pub(super) duration_ms: Histogram,
    pub(super) request_bytes: Histogram,
    pub(super) response_bytes: Histogram,
}

/// The series of one label set of opaque connections.
pub(super) struct TcpSeries {
    pub(super) opened: IntCounter,
    pub(super) closed: IntCounter,
    pub(super) sent_bytes: IntCounter,
    pub(super) received_bytes: IntCounter,
}

/// All series of traffic.
pub(super) struct TrafficSeries {
    cluster: String,
    realm: OnceLock<Realm>,
    requests: Bounded<RequestFamilies>,
    tcp: Bounded<TcpFamilies>,
}

impl TrafficSeries {
    pub(super) fn new(registry: &Registry, cluster: &str) -> Result<Self, Error> {
        Ok(Self {
            cluster: cluster.to_owned(),
            realm: OnceLock::new(),
            requests: Bounded::new(RequestFamilies::new(registry)?),
            tcp: Bounded::new(TcpFamilies::new(registry)?),
        })
    }

    /// Only the first is taken.
    pub(super) fn settle(&self, realm: Realm) {
        let _ = self.realm.set(realm);
    }

    fn values(&self, traffic: &Traffic<'_>) -> Vec<String> {
        labels::values(traffic, &self.cluster, self.realm.get_or_init(Realm::default))
    }

    pub(super) fn request(&self, traffic: &Traffic<'_>) -> Arc<RequestSeries> {
        self.requests.series(self.values(traffic))
    }

    pub(super) fn tcp(&self, traffic: &Traffic<'_>) -> Arc<TcpSeries> {
        self.tcp.series(self.values(traffic))
    }
}

/// Families that share their labels.
trait Families {
    type Series;
    fn with(&self, values: &[&str]) -> Self::Series;
}

struct Bounded<F: Families> {
    families: F,
    known: Mutex<HashMap<Vec<String>, Arc<F::Series>>>,
}

impl<F: Families> Bounded<F> {
    fn new(families: F) -> Self {
        Self { families, known: Mutex::default() }
    }

    fn series(&self, values: Vec<String>) -> Arc<F::Series> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(series) = known.get(&values) {
            return Arc::clone(series);
        }
        let values =
            if known.len() < SERIES_MAX { values } else { vec!["overflow".to_owned(); values.len()] };
        let make = || {
            let texts: Vec<&str> = values.iter().map(String::as_str).collect();
            Arc::new(self.families.with(&texts))
        };
        Arc::clone(known.entry(values.clone()).or_insert_with(make))
    }
}

struct RequestFamilies {
    requests: IntCounterVec,
    duration_ms: HistogramVec,
    request_bytes: HistogramVec,
    response_bytes: HistogramVec,
}

impl RequestFamilies {
    fn new(registry: &Registry) -> Result<Self, Error> {
        let names: Vec<&str> = NAMES.into_iter().chain(REQUEST_NAMES).collect();
        let histogram = |name: &str, help: &str| {
            let family = HistogramVec::new(HistogramOpts::new(name, help).buckets(BUCKETS.to_vec()), &names)?;
            registry.register(Box::new(family.clone())).map(|()| family)
        };
        Ok(Self {
            requests: counter(registry, &names, "istio_requests_total", "Requests that ended.")?,
            duration_ms: histogram(
                "istio_request_duration_milliseconds",
                "Time from a request's head to the last byte of its answer.",
            )?,
            request_bytes: histogram("istio_request_bytes", "Body bytes of requests.")?,
            response_bytes: histogram("istio_response_bytes", "Body bytes of responses.")?,
        })
    }
}

impl Families for RequestFamilies {
    type Series = RequestSeries;

    fn with(&self, values: &[&str]) -> RequestSeries {
        RequestSeries {
            requests: self.requests.with_label_values(values),
            duration_ms: self.duration_ms.with_label_values(values),
            request_bytes: self.request_bytes.with_label_values(values),
            response_bytes: self.response_bytes.with_label_values(values),
        }
    }
}

struct TcpFamilies {
    opened: IntCounterVec,
    closed: IntCounterVec,
    sent_bytes: IntCounterVec,
    received_bytes: IntCounterVec,
}

impl TcpFamilies {
    fn new(registry: &Registry) -> Result<Self, Error> {
        let names: Vec<&str> = NAMES.into_iter().chain(TCP_NAMES).collect();
        let counter = |name: &str, help: &str| counter(registry, &names, name, help);
        Ok(Self {
            opened: counter("istio_tcp_connections_opened_total", "Opaque connections that were opened.")?,
            closed: counter("istio_tcp_connections_closed_total", "Opaque connections that ended.")?,
            // Istio names the directions from the server's side: sent is what the client got.
            sent_bytes: counter("istio_tcp_sent_bytes_total", "Bytes of opaque connections to clients.")?,
            received_bytes: counter(
                "istio_tcp_received_bytes_total",
                "Bytes of opaque connections from clients.",
            )?,
        })
    }
}

impl Families for TcpFamilies {
    type Series = TcpSeries;

    fn with(&self, values: &[&str]) -> TcpSeries {
        TcpSeries {
            opened: self.opened.with_label_values(values),
            closed: self.closed.with_label_values(values),
            sent_bytes: self.sent_bytes.with_label_values(values),
            received_bytes: self.received_bytes.with_label_values(values),
        }
    }
}

fn counter(registry: &Registry, labels: &[&str], name: &str, help: &str) -> Result<IntCounterVec, Error> {
    let family = IntCounterVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(family.clone())).map(|()| family)
}
