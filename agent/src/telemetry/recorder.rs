//! Takes one worker's records: counts them and writes the access log. On the data path, so what a record needs is found
//! with one look-up and without allocating once it has been there before.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use agent_common::event::{DropBudget, spend};
use foldhash::fast::RandomState;
use prometheus::{IntCounter, IntGauge};

use super::access;
use super::labels::Traffic;
use super::limits::NO_SOURCE_PORT;
use super::series::{RequestSeries, TcpSeries};
use super::{
    AccessLog, ConnectionRecord, Flag, FlowEvent, FlowKind, FlowLog, FlowRule, FlowTier, LimitedBy, Metrics,
    Origin, Recorder, RequestRecord, ResponseFlags, ServedRecord,
};
use crate::compile::{Denied, Observed};
use crate::http::grpc::GrpcStatus;
use crate::model::{ObjectName, Workload};

/// The reason of all that limits refuse, in events.
const RATE_LIMITED: &str = "rate_limited";

/// Label sets that one worker remembers; when there are more it starts anew, which also lets go of pods that are gone.
const CACHE_MAX: usize = 4096;

pub(super) struct WorkerRecorder {
    metrics: Metrics,
    access: AccessLog,
    flows: FlowLog,
    /// What is left of refusals that may be told, by the time since this.
    budget: (Instant, Cell<DropBudget>),
    requests: RefCell<Cache<RequestSeries>>,
    connections: RefCell<Cache<TcpSeries>>,
    refusals: RefCell<HashMap<Denied, IntCounter, RandomState>>,
    downstream: RefCell<Vec<Downstream>>,
    line: RefCell<Vec<u8>>,
}

struct Downstream {
    origin: Origin,
    open: IntGauge,
    total: IntCounter,
}

impl WorkerRecorder {
    pub(super) fn new(metrics: Metrics, access: AccessLog, flows: FlowLog) -> Self {
        Self {
            metrics,
            access,
            flows,
            budget: (Instant::now(), Cell::default()),
            requests: RefCell::default(),
            connections: RefCell::default(),
            refusals: RefCell::default(),
            downstream: RefCell::default(),
            line: RefCell::default(),
        }
    }

    fn count_refusal(&self, denied: &Denied) {
        let mut known = self.refusals.borrow_mut();
        if let Some(refusals) = known.get(denied) {
            return refusals.inc();
        }
        if known.len() >= CACHE_MAX {
            known.clear();
        }
        let labels = ["agent", &denied.policy.to_string(), &denied.rule_label()];
        let refusals = self.metrics.shared.policy_drops.with_label_values(&labels);
        refusals.inc();
        known.insert(denied.clone(), refusals);
    }

    /// Tells of a refusal, where it is a policy's with its rule.
    fn refused(&self, reason: &'static str, denied: Option<&Denied>, ends: (SocketAddr, SocketAddr)) {
        self.tell_drop(|| FlowEvent {
            rule: denied.cloned().map(FlowRule::Policy),
            ..FlowEvent::new((FlowKind::Drop, FlowTier::Agent), ("refused", reason), ends)
        });
    }

    /// Tells what a limit refuses.
    fn limited(&self, tier: FlowTier, by: LimitedBy<'_>, ends: (SocketAddr, SocketAddr)) {
        self.tell_drop(|| FlowEvent {
            rule: Some(FlowRule::Limit(by.policy.clone(), Arc::clone(by.limit))),
            ..FlowEvent::new((FlowKind::Drop, tier), ("refused", RATE_LIMITED), ends)
        });
    }

    /// Tells of a drop. Whoever keeps asking for what it is refused shall not push all else out of the log.
    fn tell_drop(&self, event: impl FnOnce() -> FlowEvent) {
        let (since, budget) = &self.budget;
        let now_ns = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let (left, may) = spend(budget.get(), now_ns);
        budget.set(left);
        if !may {
            return self.flows.leave_out();
        }
        self.flows.tell(event());
    }

    fn limit_hit(&self, details: &'static str, (peer, endpoint): (SocketAddr, Option<SocketAddr>)) {
        // It is no setting's, and what meets it is mostly no fault of who is refused: somebody has to look.
        if details == NO_SOURCE_PORT {
            self.metrics.shared.port_shortage.tell(peer, endpoint);
        }
        if let Some((_, hits)) = self.metrics.shared.limit_hits.iter().find(|(limit, _)| *limit == details) {
            hits.inc();
        }
    }

    /// Counts a peer that broke the protocol of a request: by what it said, by saying it too slowly (`SI`), or by leaving
    /// off in the middle of an answer or before it (`UC`).
    fn protocol_error(&self, flags: ResponseFlags, details: &'static str) {
        let has = |wanted: [Flag; 2]| wanted.into_iter().any(|flag| flags.contains(flag));
        let side = if has([Flag::DownstreamProtocol, Flag::IdleTimeout]) {
            "downstream"
        } else if has([Flag::UpstreamProtocol, Flag::UpstreamClosed]) {
            "upstream"
        } else {
            return;
        };
        self.metrics.shared.protocol_errors.with_label_values(&[side, details]).inc();
    }
}

impl Recorder for WorkerRecorder {
    fn request(&self, record: &RequestRecord<'_>) {
        let traffic = Traffic {
            origin: record.origin,
            source: record.source,
            destination: record.destination,
            service: record.cluster.map(|cluster| &cluster.service),
            status: Some(record.status),
            grpc: record.grpc,
            grpc_status: record.grpc_status,
            flags: record.flags,
        };
        self.requests.borrow_mut().with(
            &traffic,
            || self.metrics.shared.traffic.request(&traffic),
            |series| {
                series.requests.inc();
                series.duration_ms.observe(record.duration.as_secs_f64() * 1000.0);
                series.request_bytes.observe(as_float(record.request_bytes));
                series.response_bytes.observe(as_float(record.response_bytes));
            },
        );
        if record.flags != ResponseFlags::default() {
            self.protocol_error(record.flags, record.details);
            self.limit_hit(record.details, (record.peer, record.upstream));
        }
        if let Some(by) = record.limited {
            self.limited(FlowTier::AgentL7, by, (record.peer, record.original_destination));
        }
        self.access.write(&mut self.line.borrow_mut(), |line| access::request(line, record));
    }

    fn connection_opened(&self, record: &ConnectionRecord<'_>) {
        let traffic = of_connection(record);
        let make = || self.metrics.shared.traffic.tcp(&traffic);
        self.connections.borrow_mut().with(&traffic, make, |series| series.opened.inc());
    }

    fn connection(&self, record: &ConnectionRecord<'_>) {
        let traffic = of_connection(record);
        self.connections.borrow_mut().with(
            &traffic,
            || self.metrics.shared.traffic.tcp(&traffic),
            |series| {
                series.closed.inc();
                series.sent_bytes.inc_by(record.received_bytes);
                series.received_bytes.inc_by(record.sent_bytes);
            },
        );
        if record.flags != ResponseFlags::default() {
            self.limit_hit(record.details, (record.peer, record.upstream));
        }
        if let Some(by) = record.limited {
            self.limited(FlowTier::AgentL4, by, (record.peer, record.original_destination));
        }
        self.access.write(&mut self.line.borrow_mut(), |line| access::connection(line, record));
        self.flows.tell(closed(record));
    }

    fn served(&self, record: &ServedRecord) {
        self.flows.tell(FlowEvent {
            bytes: record.bytes,
            rtt: record.rtt,
            lasted: record.since.elapsed().ok(),
            ..FlowEvent::new(
                (FlowKind::Close, FlowTier::AgentL7),
                ("agent", "closed"),
                (record.peer, record.original_destination),
            )
        });
    }

    fn denied(&self, denied: &Denied, client: SocketAddr, endpoint: SocketAddr) {
        self.count_refusal(denied);
        self.refused(denied.reason(), Some(denied), (client, endpoint));
    }

    fn turned_away(&self, reason: &'static str, client: SocketAddr, dialled: SocketAddr) {
        self.refused(reason, None, (client, dialled));
    }

    fn observed(&self, observed: &Observed, client: SocketAddr, endpoint: SocketAddr) {
        let (policy, rule) = (observed.policy.to_string(), observed.rule_label());
        let labels = [policy.as_str(), rule.as_str(), observed.outcome.as_str()];
        self.metrics.shared.policy_audits.with_label_values(&labels).inc();
        self.access.write(&mut self.line.borrow_mut(), |line| {
            access::observed(line, observed, (client, endpoint));
        });
    }

    fn downstream(&self, origin: &Origin, opened: bool) {
        let mut known = self.downstream.borrow_mut();
        // A handful: captured traffic and the gateway's listeners.
        let index = known.iter().position(|entry| entry.origin == *origin).unwrap_or_else(|| {
            let name = match origin {
                Origin::Outbound => "outbound",
                Origin::Inbound | Origin::Tunnel(_) => "inbound",
                Origin::Gateway(listener) => listener,
            };
            known.push(Downstream {
                origin: origin.clone(),
                open: self.metrics.shared.downstream.with_label_values(&[name]),
                total: self.metrics.shared.downstream_total.with_label_values(&[name]),
            });
            known.len() - 1
        });
        let entry = &known[index];
        if opened {
            entry.open.inc();
            entry.total.inc();
        } else {
            entry.open.dec();
        }
    }
}

/// What is told of an opaque connection at its end.
fn closed(record: &ConnectionRecord<'_>) -> FlowEvent {
    let reason = if record.details.is_empty() { "closed" } else { record.details };
    FlowEvent {
        endpoint: record.upstream,
        bytes: Some((record.sent_bytes, record.received_bytes)),
        rtt: record.rtt,
        lasted: Some(record.duration),
        ..FlowEvent::new(
            (FlowKind::Close, FlowTier::AgentL4),
            ("agent", reason),
            (record.peer, record.original_destination),
        )
    }
}

fn of_connection<'a>(record: &ConnectionRecord<'a>) -> Traffic<'a> {
    Traffic {
        origin: record.origin,
        source: record.source,
        destination: record.destination,
        service: record.cluster.map(|cluster| &cluster.service),
        status: None,
        grpc: false,
        grpc_status: None,
        flags: record.flags,
    }
}

/// Counts of bytes above 2^53 lose their last digits in a histogram, which has none to show them in.
#[expect(clippy::cast_precision_loss, reason = "histograms hold floats")]
fn as_float(bytes: u64) -> f64 {
    bytes as f64
}

/// Series by what a record says, without building its labels.
///
/// The key is the hash; an entry holds what was hashed, to tell a collision, and its `Arc`s, so that a pod's address in
/// memory is not used again while it stands for that pod here.
struct Cache<S> {
    hasher: RandomState,
    entries: HashMap<u64, Entry<S>, RandomState>,
}

struct Entry<S> {
    origin: Origin,
    source: Option<Arc<Workload>>,
    destination: Option<Arc<Workload>>,
    service: Option<ObjectName>,
    status: Option<u16>,
    grpc: bool,
    grpc_status: Option<GrpcStatus>,
    flags: ResponseFlags,
    series: Arc<S>,
}

impl<S> Default for Cache<S> {
    fn default() -> Self {
        Self { hasher: RandomState::default(), entries: HashMap::default() }
    }
}

impl<S> Cache<S> {
    fn with(&mut self, traffic: &Traffic<'_>, make: impl FnOnce() -> Arc<S>, count: impl FnOnce(&S)) {
        let Traffic { origin, source, destination, service, status, grpc, grpc_status, flags } = traffic;
        let outcome = (status, grpc, grpc_status, flags);
        let hash = self.hasher.hash_one((origin, address(*source), address(*destination), service, outcome));
        if let Some(entry) = self.entries.get(&hash).filter(|entry| entry.is_for(traffic)) {
            count(&entry.series);
            return;
        }
        if self.entries.len() >= CACHE_MAX {
            self.entries.clear();
        }
        let series = make();
        count(&series);
        let entry = Entry {
            origin: (*origin).clone(),
            source: source.cloned(),
            destination: destination.cloned(),
            service: service.cloned(),
            status: *status,
            grpc: *grpc,
            grpc_status: *grpc_status,
            flags: *flags,
            series,
        };
        self.entries.insert(hash, entry);
    }
}

impl<S> Entry<S> {
    fn is_for(&self, traffic: &Traffic<'_>) -> bool {
        address(self.source.as_ref()) == address(traffic.source)
            && address(self.destination.as_ref()) == address(traffic.destination)
            && self.status == traffic.status
            && (self.grpc, self.grpc_status) == (traffic.grpc, traffic.grpc_status)
            && self.flags == traffic.flags
            && self.service.as_ref() == traffic.service
            && self.origin == *traffic.origin
    }
}

fn address(workload: Option<&Arc<Workload>>) -> usize {
    workload.map_or(0, |workload| Arc::as_ptr(workload).addr())
}
