//! All metrics of the agent. The metrics library is known to this module alone.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder, Error, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use super::acceleration::{AccelerationCounts, AccelerationSeries};
use super::cluster::{ClusterReading, ClusterSeries, ProbeReading};
use super::guard::{GuardReading, GuardSeries, MapReading};
use super::limits::{LIMITS, PortShortage};
use super::rate_limits::{LimitStoreReading, RateLimitReading, RateLimitSeries};
use super::recorder::WorkerRecorder;
use super::series::TrafficSeries;
use super::tls::{TlsReading, TlsSeries};
use super::{AccessLog, FlowLog, LineWriter, Recorder};
use crate::compile::{Cluster, ClusterKey, Realm, RoutingTable};
use crate::model::SharedMap;

/// Seconds that applying a table takes: from a small edit to a large cluster.
const APPLY_BUCKETS: [f64; 10] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0];

/// Metrics that could not be made or written.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// A metric's name, labels or buckets are wrong, or it was registered twice.
    #[error("metrics cannot be registered: {0}")]
    Register(#[source] Error),
    /// The text could not be made.
    #[error("metrics cannot be written: {0}")]
    Encode(#[source] Error),
}

/// What the build and node metrics say.
#[derive(Debug, Clone, Copy)]
pub struct BuildInfo<'a> {
    /// The agent's version.
    pub version: &'a str,
    /// The cluster's name, as `source_cluster` and `destination_cluster` have it.
    pub cluster: &'a str,
}

/// How far an object of the configuration has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigState {
    /// In force.
    Accepted,
    /// In force, with parts that are not enforced.
    Partial,
    /// Wrong; its last good form, if any, is in force.
    Rejected,
}

impl ConfigState {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Partial => "partial",
            Self::Rejected => "rejected",
        }
    }
}

/// All metrics; clones share them.
#[derive(Clone)]
pub struct Metrics {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    registry: Registry,
    pub(super) traffic: TrafficSeries,
    pub(super) downstream: IntGaugeVec,
    pub(super) downstream_total: IntCounterVec,
    pub(super) protocol_errors: IntCounterVec,
    /// By reason, in the order of the limits.
    pub(super) limit_hits: Vec<(&'static str, IntCounter)>,
    pub(super) port_shortage: PortShortage,
    config_objects: IntGaugeVec,
    config_rejected: IntCounter,
    table_position: IntGaugeVec,
    table_entries: IntGaugeVec,
    table_apply: Histogram,
    endpoints: Mutex<CountedEndpoints>,
    interfaces: IntGaugeVec,
    workers: IntGauge,
    ready: IntGauge,
    lines_dropped: IntCounterVec,
    writers: Mutex<Vec<(&'static str, LineWriter)>>,
    flow_events_lost: IntCounter,
    flow_log: OnceLock<FlowLog>,
    packets: IntCounterVec,
    packet_counts: OnceLock<PacketCounts>,
    kernel: KernelSeries,
    kernel_gauges: OnceLock<ReadKernel>,
    connects: IntCounterVec,
    connect_counts: OnceLock<PacketCounts>,
    pub(super) policy_drops: IntCounterVec,
    pub(super) policy_audits: IntCounterVec,
    policy_counts: OnceLock<PolicyCounts>,
    acceleration: AccelerationSeries,
    cluster: ClusterSeries,
    tls: TlsSeries,
    guard: GuardSeries,
    guard_reading: OnceLock<Box<dyn Fn() -> GuardReading + Send + Sync>>,
    rate_limits: RateLimitSeries,
}

/// How many endpoints a table has. Only what differs from the table before is counted.
#[derive(Default)]
struct CountedEndpoints {
    clusters: SharedMap<ClusterKey, Arc<Cluster>>,
    count: usize,
}

impl CountedEndpoints {
    fn of(&mut self, table: &RoutingTable) -> usize {
        let mut count = self.count;
        // A subset's endpoints are those of its service.
        let size = |cluster: Option<&Arc<Cluster>>| cluster.map_or(0, |cluster| cluster.endpoints.len());
        self.clusters.differences(&table.clusters, Arc::ptr_eq, |key, was, is| {
            if key.subset.is_none() {
                count = count + size(is) - size(was);
            }
        });
        (self.clusters, self.count) = (table.clusters.clone(), count);
        count
    }
}

/// What is seen in the kernel at one time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelGauges {
    /// Programs of others, by hook.
    pub foreign: Vec<(&'static str, usize)>,
    /// How full maps are.
    pub maps: Vec<MapReading>,
}

/// The series of [`KernelGauges`].
struct KernelSeries {
    foreign: IntGaugeVec,
    map_entries: IntGaugeVec,
    map_capacity: IntGaugeVec,
    map_left_out: IntGaugeVec,
}

impl KernelSeries {
    fn show(&self, seen: &KernelGauges) {
        for (hook, count) in &seen.foreign {
            self.foreign.with_label_values(&[*hook]).set(gauge_value(*count));
        }
        for MapReading { map, entries, capacity, left_out } in &seen.maps {
            self.map_entries.with_label_values(&[*map]).set(gauge_value(*entries));
            self.map_capacity.with_label_values(&[*map]).set(gauge_value(*capacity));
            self.map_left_out.with_label_values(&[*map]).set(gauge_value(*left_out));
        }
    }
}

/// Reads what is in the kernel.
type ReadKernel = Box<dyn Fn() -> KernelGauges + Send + Sync>;

/// Reads what the kernel programs have counted, by reason.
type PacketCounts = Box<dyn Fn() -> Vec<(&'static str, u64)> + Send + Sync>;

/// Reads what policy has refused in the kernel, by policy and rule.
type PolicyCounts = Box<dyn Fn() -> Vec<(String, String, u64)> + Send + Sync>;

impl Metrics {
    /// Registers everything.
    pub fn new(build: BuildInfo<'_>) -> Result<Self, MetricsError> {
        Shared::new(build).map(|shared| Self { shared: Arc::new(shared) }).map_err(MetricsError::Register)
    }

    /// Says where the agent is, before anything is recorded; only the first word counts.
    pub fn settle(&self, realm: Realm) {
        self.shared.traffic.settle(realm);
    }

    /// The recorder of one worker.
    pub fn recorder(&self, access: AccessLog, flows: FlowLog) -> impl Recorder + use<> {
        WorkerRecorder::new(self.clone(), access, flows)
    }

    /// Counts the lines that a writer drops, under the log's name (`access`, `agent`).
    pub fn watch_writer(&self, log: &'static str, writer: &LineWriter) {
        self.shared.writers.lock().unwrap_or_else(PoisonError::into_inner).push((log, writer.clone()));
    }

    /// Shows how many flow events could not be told; read whenever the metrics are. Only the first log is taken.
    pub fn watch_flows(&self, flows: FlowLog) {
        let _ = self.shared.flow_log.set(flows);
    }

    /// Shows what the kernel programs count; read whenever the metrics are. Only the first reader is taken.
    pub fn watch_packets(&self, read: impl Fn() -> Vec<(&'static str, u64)> + Send + Sync + 'static) {
        let _ = self.shared.packet_counts.set(Box::new(read));
    }

    /// Shows what is in the kernel; read whenever the metrics are. Only the first reader is taken.
    pub fn watch_kernel(&self, read: impl Fn() -> KernelGauges + Send + Sync + 'static) {
        let _ = self.shared.kernel_gauges.set(Box::new(read));
    }

    /// Likewise for the programs that balance sockets.
    pub fn watch_connects(&self, read: impl Fn() -> Vec<(&'static str, u64)> + Send + Sync + 'static) {
        let _ = self.shared.connect_counts.set(Box::new(read));
    }

    /// Shows what policy has refused in the kernel, by policy and rule; read whenever the metrics are.
    pub fn watch_policy(&self, read: impl Fn() -> Vec<(String, String, u64)> + Send + Sync + 'static) {
        let _ = self.shared.policy_counts.set(Box::new(read));
    }

    /// Shows handshakes and certificates of workloads; read whenever the metrics are.
    pub fn watch_tls(&self, read: impl Fn() -> TlsReading + Send + Sync + 'static) {
        self.shared.tls.watch(read);
    }

    /// Whom to ask about TLS at Gateways.
    pub fn watch_edge_tls(&self, read: impl Fn() -> TlsReading + Send + Sync + 'static) {
        self.shared.tls.watch_edge(read);
    }

    /// Shows that same-node acceleration is on, and what it counts; read whenever the metrics are.
    pub fn watch_acceleration(&self, read: impl Fn() -> AccelerationCounts + Send + Sync + 'static) {
        self.shared.acceleration.watch(read);
    }

    /// Shows the cluster; read whenever the metrics are. Only the first reader is taken.
    pub fn watch_cluster(&self, read: impl Fn() -> ClusterReading + Send + Sync + 'static) {
        self.shared.cluster.watch(read);
    }

    /// Shows what came of health checks; read whenever the metrics are. Only the first reader is taken.
    pub fn watch_probes(&self, read: impl Fn() -> ProbeReading + Send + Sync + 'static) {
        self.shared.cluster.watch_probes(read);
    }

    /// Shows what rate limits let through; read whenever the metrics are. Only the first reader is taken.
    pub fn watch_rate_limits(&self, read: impl Fn() -> Vec<RateLimitReading> + Send + Sync + 'static) {
        self.shared.rate_limits.watch(read);
    }

    /// Likewise what limits of the cluster are counted by.
    pub fn watch_limit_store(&self, read: impl Fn() -> LimitStoreReading + Send + Sync + 'static) {
        self.shared.rate_limits.watch_store(read);
    }

    /// Shows what the guard says; read whenever the metrics are. Only the first reader is taken.
    pub fn watch_guard(&self, read: impl Fn() -> GuardReading + Send + Sync + 'static) {
        let _ = self.shared.guard_reading.set(Box::new(read));
    }

    /// How many objects of the configuration are in a state.
    pub fn config_objects(&self, state: ConfigState, count: usize) {
        self.shared.config_objects.with_label_values(&[state.as_str()]).set(gauge_value(count));
    }

    /// Documents were read again and so many objects were found wrong.
    pub fn config_rejected(&self, objects: usize) {
        self.shared.config_rejected.inc_by(objects as u64);
    }

    /// A table came into force, `took` after it was asked for.
    pub fn table_applied(&self, table: &RoutingTable, took: Duration) {
        let Shared { table_position, table_entries, table_apply, endpoints, .. } = &*self.shared;
        table_position
            .with_label_values(&["epoch"])
            .set(i64::try_from(table.version.token.epoch).unwrap_or(i64::MAX));
        table_position
            .with_label_values(&["version"])
            .set(i64::try_from(table.version.version).unwrap_or(i64::MAX));
        let endpoints = endpoints.lock().unwrap_or_else(PoisonError::into_inner).of(table);
        for (kind, count) in [
            ("frontends", table.frontends.len()),
            ("clusters", table.clusters.len()),
            ("endpoints", endpoints),
            ("workloads", table.workloads.len()),
            ("gateways", table.gateways.len()),
        ] {
            table_entries.with_label_values(&[kind]).set(gauge_value(count));
        }
        table_apply.observe(took.as_secs_f64());
    }

    /// Pod interfaces that are hooked, and those that match but could not be.
    pub fn interfaces(&self, captured: usize, failed: usize) {
        self.shared.interfaces.with_label_values(&["captured"]).set(gauge_value(captured));
        self.shared.interfaces.with_label_values(&["failed"]).set(gauge_value(failed));
    }

    /// How many workers run.
    pub fn workers(&self, count: usize) {
        self.shared.workers.set(gauge_value(count));
    }

    /// Whether the agent is ready.
    pub fn ready(&self, ready: bool) {
        self.shared.ready.set(i64::from(ready));
    }

    /// All metrics in Prometheus' text format.
    pub fn render(&self) -> Result<String, MetricsError> {
        for (log, writer) in self.shared.writers.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let counter = self.shared.lines_dropped.with_label_values(&[*log]);
            counter.inc_by(writer.dropped().saturating_sub(counter.get()));
        }
        for (series, read) in [
            (&self.shared.packets, &self.shared.packet_counts),
            (&self.shared.connects, &self.shared.connect_counts),
        ] {
            for (reason, count) in read.get().map(|read| read()).unwrap_or_default() {
                let counter = series.with_label_values(&[reason]);
                counter.inc_by(count.saturating_sub(counter.get()));
            }
        }
        if let Some(flows) = self.shared.flow_log.get() {
            let counter = &self.shared.flow_events_lost;
            counter.inc_by(flows.lost().saturating_sub(counter.get()));
        }
        if let Some(read) = self.shared.kernel_gauges.get() {
            self.shared.kernel.show(&read());
        }
        for (policy, rule, packets) in self.shared.policy_counts.get().map(|read| read()).unwrap_or_default()
        {
            let counter = self.shared.policy_drops.with_label_values(&["kernel", &policy, &rule]);
            counter.inc_by(packets.saturating_sub(counter.get()));
        }
        self.shared.acceleration.refresh();
        self.shared.cluster.refresh();
        self.shared.tls.refresh();
        self.shared.rate_limits.refresh();
        if let Some(read) = self.shared.guard_reading.get() {
            self.shared.guard.show(&read());
        }
        let encoder = TextEncoder::new();
        let mut text = Vec::new();
        encoder.encode(&self.shared.registry.gather(), &mut text).map_err(MetricsError::Encode)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Shared {
    fn new(build: BuildInfo<'_>) -> Result<Self, Error> {
        let registry = Registry::new();
        registry.register(Box::new(ProcessCollector::for_self()))?;
        let make = Maker { registry: &registry };
        make.build(build.version)?;
        Ok(Self {
            traffic: TrafficSeries::new(&registry, build.cluster)?,
            downstream: make.downstream()?,
            downstream_total: make.counters(
                "sluice_downstream_connections_total",
                "Client connections that were accepted.",
                &["origin"],
            )?,
            protocol_errors: make.counters(
                "sluice_protocol_errors_total",
                "Requests and answers that broke their protocol.",
                &["side", "reason"],
            )?,
            limit_hits: make.limit_hits()?,
            port_shortage: PortShortage::default(),
            config_objects: make.gauges(
                "sluice_config_objects",
                "Objects of the configuration.",
                &["state"],
            )?,
            config_rejected: make
                .counter("sluice_config_rejected_total", "Objects found wrong when read.")?,
            table_position: make.gauges("sluice_table", "Which routing table is in force.", &["part"])?,
            table_entries: make.gauges("sluice_table_entries", "What the routing table holds.", &["kind"])?,
            endpoints: Mutex::default(),
            table_apply: make.histogram(
                "sluice_table_apply_seconds",
                "Time from a change to the table in force.",
                &APPLY_BUCKETS,
            )?,
            interfaces: make.gauges("sluice_captured_interfaces", "Pod interfaces.", &["state"])?,
            workers: make.gauge("sluice_workers", "Worker threads of the dataplane.")?,
            ready: make.gauge("sluice_ready", "Whether the agent is ready.")?,
            lines_dropped: make.lines_dropped()?,
            writers: Mutex::default(),
            flow_events_lost: make.counter(
                "sluice_flow_events_lost_total",
                "Flow events that could not be told, for lack of room or as there were too many.",
            )?,
            flow_log: OnceLock::new(),
            packets: make.counters(
                "sluice_capture_packets_total",
                "Packets that the kernel programs saw, by what became of them.",
                &["reason"],
            )?,
            packet_counts: OnceLock::new(),
            kernel: make.kernel()?,
            kernel_gauges: OnceLock::new(),
            connects: make.counters(
                "sluice_connect_decisions_total",
                "Sockets that were told an address, by what became of it; and those whose backend vanished.",
                &["reason"],
            )?,
            connect_counts: OnceLock::new(),
            policy_drops: make.policy_drops()?,
            policy_audits: make.policy_audits()?,
            policy_counts: OnceLock::new(),
            acceleration: AccelerationSeries::new(&registry)?,
            cluster: ClusterSeries::new(&registry)?,
            tls: TlsSeries::new(&registry)?,
            guard: make.guard()?,
            guard_reading: OnceLock::new(),
            rate_limits: RateLimitSeries::new(&registry)?,
            registry,
        })
    }
}

/// Makes registered metrics.
struct Maker<'a> {
    registry: &'a Registry,
}

impl Maker<'_> {
    fn registered<M: prometheus::core::Collector + Clone + 'static>(&self, metric: M) -> Result<M, Error> {
        self.registry.register(Box::new(metric.clone())).map(|()| metric)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, Error> {
        self.registered(IntGauge::new(name, help)?)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, Error> {
        self.registered(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, Error> {
        self.registered(IntCounter::new(name, help)?)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, Error> {
        self.registered(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    fn downstream(&self) -> Result<IntGaugeVec, Error> {
        self.gauges("sluice_downstream_connections", "Client connections that are open.", &["origin"])
    }

    /// Each limit has its series from the start.
    fn limit_hits(&self) -> Result<Vec<(&'static str, IntCounter)>, Error> {
        let help = "Requests and connections that met a limit.";
        let counters = self.counters("sluice_limit_hits_total", help, &["limit"])?;
        Ok(LIMITS.map(|limit| (limit, counters.with_label_values(&[limit]))).into())
    }

    fn lines_dropped(&self) -> Result<IntCounterVec, Error> {
        let help = "Log lines dropped because their sink did not keep up.";
        self.counters("sluice_log_lines_dropped_total", help, &["log"])
    }

    fn build(&self, version: &str) -> Result<(), Error> {
        let build = self.gauges("istio_build", "The agent's build.", &["component", "tag"])?;
        build.with_label_values(&["sluice", version]).set(1);
        Ok(())
    }

    fn kernel(&self) -> Result<KernelSeries, Error> {
        let foreign = "Programs of others on the hooks that ours use.";
        Ok(KernelSeries {
            foreign: self.gauges("sluice_capture_foreign_programs", foreign, &["hook"])?,
            map_entries: self.gauges("sluice_bpf_map_entries", "Entries of a kernel map.", &["map"])?,
            map_capacity: self.gauges(
                "sluice_bpf_map_capacity",
                "The most entries of a kernel map.",
                &["map"],
            )?,
            map_left_out: self.gauges(
                "sluice_bpf_map_left_out",
                "Entries that found no room in a kernel map.",
                &["map"],
            )?,
        })
    }

    fn policy_drops(&self) -> Result<IntCounterVec, Error> {
        self.counters(
            "sluice_policy_drops_total",
            "What policies refused: packets in the kernel, requests and connections in the agent.",
            &["tier", "policy", "rule"],
        )
    }

    fn policy_audits(&self) -> Result<IntCounterVec, Error> {
        self.counters(
            "sluice_policy_audits_total",
            "What AuthorizationPolicies say that refuse nobody (AUDIT and dry runs) of requests and connections.",
            &["policy", "rule", "outcome"],
        )
    }

    fn guard(&self) -> Result<GuardSeries, Error> {
        Ok(GuardSeries {
            packets: self.counters(
                "sluice_guard_packets_total",
                "Frames that the guard at the edge saw, by what became of them and why.",
                &["verdict", "reason"],
            )?,
            hits: self.counters(
                "sluice_guard_rule_hits_total",
                "Frames that the guard denied, by the EdgeGuard that says so.",
                &["rule"],
            )?,
            maps: self.gauges(
                "sluice_guard_map_entries",
                "The guard's maps: entries used, capacity, and what found no room.",
                &["map", "state"],
            )?,
        })
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Result<Histogram, Error> {
        self.registered(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?)
    }
}

fn gauge_value(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
