//! What is known of the running agent, gathered from its parts for those who ask.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use agent_common::balance::{Tier, TierReason};
use anyhow::Context as _;
use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::gateways::ListenerError;
use super::tables::Applied;
use super::unmet::unmet;
use super::{Addresses, Settings};
use crate::admin::{
    AccelerationStatus, CaptureStatus, CertificateStatus, ClusterDump, ConnectStatus, ConnectionsDump,
    DrainStatus, EndpointsDump, ForeignProgram, GuardLimits, GuardMap, GuardStatus, GuardedInterface, Held,
    InterfaceStatus, LimitsDump, ListenerStatus, PolicyStatus, RefusedTunnels, Source, Status, TableStatus,
    TierStatus, WorkerStatus,
};
use crate::capture::{self, DropCause, EngineHandle, LimitCounters, PolicyDrops, Released};
use crate::cluster::{ClusterView, RedisCounters};
use crate::compile::{DeniedBy, RoutingTable};
use crate::config::{Message, ObjectState, Report, Severity};
use crate::hbone::Mesh;
use crate::health::{PodHealth, ProbeCounts};
use crate::proxy::OpenConnections;
use crate::telemetry::log::LogHandle;
use crate::telemetry::{
    AccessLog, BuildInfo, ConfigState, FlowLog, KernelGauges, MapReading, Metrics, rfc3339,
};

/// The agent's version.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Everything that can be seen of the agent.
pub(super) struct Observed {
    pub(super) metrics: Metrics,
    pub(super) access: AccessLog,
    /// The last flow events.
    pub(super) flows: FlowLog,
    pub(super) tables: Arc<ArcSwap<RoutingTable>>,
    /// Open client connections of each worker.
    pub(super) open: Vec<Arc<OpenConnections>>,
    node: String,
    cluster: String,
    /// Whether this agent captures, once it has started.
    captures: bool,
    started: Instant,
    addresses: Addresses,
    ready: watch::Sender<bool>,
    draining: watch::Receiver<bool>,
    changing: Mutex<Changing>,
}

/// What changes while the agent runs.
#[derive(Default)]
struct Changing {
    applied: Option<Applied>,
    report: Report,
    listeners: Vec<ListenerStatus>,
    /// What has been logged of what the documents ask for in vain.
    unmet: Vec<String>,
    capture: Option<watch::Receiver<capture::CaptureStatus>>,
    live: Option<capture::Live>,
    held: Option<capture::Held>,
    /// What policy has refused in the kernel.
    drops: Option<PolicyDrops>,
    /// What limits of the kernel have done.
    limits: Option<LimitCounters>,
    /// Certificates of this node's workloads.
    mesh: Option<Arc<Mesh>>,
    /// What is known of the cluster, and whether its tables are signed; `None`: the agent runs alone.
    cluster: Option<(Arc<Mutex<ClusterView>>, bool)>,
    /// What limits of the cluster are counted by.
    counters: Option<Arc<RedisCounters>>,
    /// The pods of this node.
    health: Option<watch::Receiver<Arc<PodHealth>>>,
}

impl Observed {
    pub(super) fn new(
        settings: &Settings,
        addresses: Addresses,
        tables: Arc<ArcSwap<RoutingTable>>,
        draining: watch::Receiver<bool>,
    ) -> anyhow::Result<Self> {
        let metrics = Metrics::new(BuildInfo { version: VERSION, cluster: &settings.cluster })?;
        let access = if settings.access_log {
            AccessLog::new(io::stdout()).context("starting the access log")?
        } else {
            AccessLog::disabled()
        };
        if let Some(writer) = access.writer() {
            metrics.watch_writer("access", writer);
        }
        metrics.workers(settings.workers);
        let flows = FlowLog::new(Arc::clone(&tables));
        metrics.watch_flows(flows.clone());
        Ok(Self {
            metrics,
            access,
            flows,
            tables,
            open: (0..settings.workers).map(|_| Arc::default()).collect(),
            node: settings.node.clone(),
            cluster: settings.cluster.clone(),
            captures: settings.capture.is_some(),
            started: Instant::now(),
            addresses,
            ready: watch::Sender::new(false),
            draining,
            changing: Mutex::default(),
        })
    }

    /// What the admin servers read.
    pub(super) fn source(self: &Arc<Self>, log: LogHandle) -> Source {
        self.metrics.watch_writer("agent", log.writer());
        // The metrics are part of what they ask here.
        let counted = Arc::downgrade(self);
        let limits = move || counted.upgrade().map(|observed| observed.limits(0));
        self.metrics.watch_rate_limits(move || limits().map(crate::admin::read_limits).unwrap_or_default());
        let observed = Arc::clone(self);
        let flows = self.flows.clone();
        let opened = Arc::clone(self);
        let among = Arc::clone(self);
        let endpoints = Arc::clone(self);
        let asked = Arc::clone(self);
        let shown = Arc::clone(self);
        let limiting = Arc::clone(self);
        Source {
            tables: Arc::clone(&self.tables),
            metrics: self.metrics.clone(),
            log,
            access: self.access.clone(),
            ready: self.ready.subscribe(),
            status: Box::new(move || observed.status()),
            connections: Box::new(move || opened.connections()),
            cluster: Box::new(move || among.cluster()),
            limits: Box::new(move |top| limiting.limits_with_leased(top)),
            endpoints: Box::new(move || endpoints.endpoints()),
            flows: Box::new(move |since| super::flows::dump(&flows, since)),
            held: Box::new(move |source, destination| asked.held(source, destination)),
            certificates: Box::new(move || {
                shown.changing().mesh.as_ref().map(|mesh| super::mesh::dump(mesh)).unwrap_or_default()
            }),
        }
    }

    /// The limits in force.
    fn limits(&self, top: usize) -> LimitsDump {
        let changing = self.changing();
        let (counters, kernel) = (changing.counters.clone(), changing.limits.clone());
        let status = changing.capture.as_ref().map(|status| status.borrow().guard.clone());
        drop(changing);
        let guarded = status.flatten().map(|guard| guard.interfaces).unwrap_or_default();
        let guarded: Vec<String> = guarded.into_iter().map(|(name, _)| name).collect();
        super::limits::dump(counters.as_deref(), (kernel.as_ref(), &guarded), &self.tables.load(), top)
    }

    /// Likewise, with what each node has leased, for which the store is asked.
    fn limits_with_leased(&self, top: usize) -> LimitsDump {
        let mut dump = self.limits(top);
        let changing = self.changing();
        let view = changing.cluster.as_ref().map(|(view, _)| Arc::clone(view));
        let counters = changing.counters.clone();
        drop(changing);
        if let Some(counters) = counters {
            super::limits::add_leased(&mut dump, &self.node, &counters, view.as_deref());
        }
        dump
    }

    /// What the kernel's maps hold of a connection's ends.
    fn held(&self, source: IpAddr, destination: SocketAddr) -> Held {
        let Some(maps) = self.changing().held.clone() else { return Held::default() };
        Held::ask((source, destination), |to| maps.takes(to), |ip| maps.guards(ip))
    }

    /// The connections that are open.
    fn connections(&self) -> ConnectionsDump {
        let live = self.changing().live.clone();
        let workers = self.open.iter().map(|open| &**open);
        super::connections::dump(workers, live.as_ref(), &self.tables.load())
    }

    /// Shows how the pods of this node are; gives what counts the questions to them.
    pub(super) fn watch_probes(&self, health: watch::Receiver<Arc<PodHealth>>) -> Arc<ProbeCounts> {
        let counts = Arc::new(ProbeCounts::default());
        let read = Arc::clone(&counts);
        self.metrics.watch_probes(move || read.read());
        self.changing().health = Some(health);
        counts
    }

    /// The endpoints of the table in force, with what is known of those that get no work.
    fn endpoints(&self) -> EndpointsDump {
        let changing = self.changing();
        let health = changing.health.as_ref().map(|health| Arc::clone(&health.borrow()));
        let view = changing.cluster.as_ref().map(|(view, _)| Arc::clone(view));
        drop(changing);
        let out = super::cluster::reasons(&self.node, health.as_deref(), view.as_deref());
        crate::admin::endpoints(&self.tables.load(), &out)
    }

    /// Shows what limits of the cluster are counted by.
    pub(super) fn set_counters(&self, counters: Arc<RedisCounters>) {
        super::limits::watch(&self.metrics, Arc::clone(&counters));
        self.changing().counters = Some(counters);
    }

    pub(super) fn set_cluster(&self, view: Arc<Mutex<ClusterView>>, signed: bool) {
        let (read, node) = (Arc::clone(&view), self.node.clone());
        self.metrics.watch_cluster(move || super::cluster::reading(&read, &node));
        self.changing().cluster = Some((view, signed));
    }

    /// The cluster as it is known here.
    fn cluster(&self) -> ClusterDump {
        self.cluster_of(&self.changing())
    }

    fn cluster_of(&self, changing: &Changing) -> ClusterDump {
        match &changing.cluster {
            Some((view, signed)) => super::cluster::dump(view, (&self.node, &self.cluster, *signed)),
            None => super::cluster::alone(&self.node, &self.cluster, &changing.report),
        }
    }

    /// Client connections that are open, over all workers.
    pub(super) fn open_connections(&self) -> usize {
        self.open.iter().map(|open| open.count()).sum()
    }

    /// Whether captured connections wait to be accepted.
    pub(super) fn has_waiting(&self) -> bool {
        self.open.iter().any(|open| open.have_waiting())
    }

    pub(super) fn set_ready(&self, ready: bool) {
        self.ready.send_replace(ready);
        self.metrics.ready(ready);
        if ready {
            self.log_unmet();
        }
    }

    pub(super) fn set_mesh(&self, mesh: &Arc<Mesh>) {
        let read = Arc::clone(mesh);
        self.metrics.watch_tls(move || super::mesh::reading(&read));
        self.changing().mesh = Some(Arc::clone(mesh));
    }

    pub(super) fn set_capture(&self, handle: &EngineHandle) {
        let counters = handle.counters();
        self.metrics.watch_packets(move || counters.read());
        let status = handle.status();
        self.metrics.watch_kernel(move || kernel_gauges(&status.borrow()));
        let readings = handle.readings();
        if let Some(connects) = readings.connects {
            self.metrics.watch_connects(move || connects.read());
        }
        let drops = readings.drops;
        self.changing().drops = Some(drops.clone());
        self.metrics.watch_policy(move || drops.read().into_iter().map(refused).collect());
        if let Some(counters) = readings.acceleration {
            self.metrics.watch_acceleration(move || counters.read());
        }
        if let Some((_, counters)) = readings.guard {
            self.metrics.watch_guard(move || counters.read());
        }
        let mut changing = self.changing();
        changing.live = Some(readings.live);
        changing.held = Some(readings.held);
        changing.limits = Some(readings.limits);
        changing.capture = Some(handle.status());
    }

    /// Documents were read.
    pub(super) fn reported(&self, report: &Report) {
        count_objects(&self.metrics, report);
        let before = std::mem::replace(&mut self.changing().report, report.clone());
        if report.objects.is_empty() && !before.objects.is_empty() {
            tracing::warn!(objects = before.objects.len(), "there are no documents any more");
        }
        log_new_messages(&before, report);
    }

    /// A table came into force.
    pub(super) fn applied(&self, applied: Applied) {
        self.metrics.table_applied(&self.tables.load(), applied.took);
        self.changing().applied = Some(applied);
        // At the start nothing is captured yet.
        if *self.ready.borrow() {
            self.log_unmet();
        }
    }

    /// Logs what the documents ask for in vain and was not said before.
    fn log_unmet(&self) {
        let mut changing = self.changing();
        let unmet = self.unmet(&changing);
        for text in unmet.iter().filter(|text| !changing.unmet.contains(text)) {
            tracing::warn!("not enforced: {text}");
        }
        changing.unmet = unmet;
    }

    fn unmet(&self, changing: &Changing) -> Vec<String> {
        let capture = changing.capture.as_ref().map(|status| status.borrow());
        let table = self.tables.load();
        // What capture is for is not asked in vain before it was tried.
        let starting = self.captures && capture.is_none();
        let mut unmet = if starting { Vec::new() } else { unmet(&table, &self.node, capture.as_deref()) };
        if changing.mesh.is_none() && table.workloads.values().any(|workload| workload.is_tunnelled()) {
            unmet.push(format!(
                "pods are labelled networking.istio.io/tunnel=http, and {}: \
                 they are reached without TLS, and what is sent to this node's pods by tunnel fails",
                without_certificates(self.captures)
            ));
        }
        let strict = |pod: IpAddr| {
            let here = table.workloads.get(&pod).is_some_and(|pod| table.realm.runs(pod));
            here && table.policies.of(pod).is_some_and(|policy| policy.mtls().is_strict())
        };
        if changing.mesh.is_none() && table.policies.iter().any(|(pod, _)| strict(pod)) {
            unmet.push(format!(
                "pods of this node are STRICT, and {}: nobody of another node gets in",
                without_certificates(self.captures)
            ));
        }
        unmet
    }

    /// The Gateway listeners that are open, and those that could not be opened.
    pub(super) fn listening(&self, open: Vec<(String, SocketAddr)>, errors: &[ListenerError]) {
        let bound = open.into_iter().map(|(name, address)| listener(&name, address));
        let failed = errors.iter().map(|error| ListenerStatus {
            name: error.name().to_owned(),
            address: String::new(),
            error: Some(error.to_string()),
        });
        self.changing().listeners = bound.chain(failed).collect();
    }

    /// Waits until the access log has been written, for `limit` at most.
    pub(super) fn flush(&self, limit: Duration) {
        if let Some(writer) = self.access.writer() {
            writer.flush(limit);
        }
    }

    fn changing(&self) -> std::sync::MutexGuard<'_, Changing> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn status(&self) -> Status {
        let changing = self.changing();
        let capture = changing.capture.as_ref().map(|status| status.borrow().clone());
        let Addresses { admin, metrics, health } = self.addresses;
        let own = [("admin", admin), ("metrics", metrics), ("health", health)];
        let workers = self.open.iter().enumerate();
        let cluster = self.cluster_of(&changing);
        // Who led once has read what there was then.
        let (nothing, follows) = (Report::default(), cluster.role == "follower");
        let report = if follows { &nothing } else { &changing.report };
        Status {
            node: self.node.clone(),
            version: VERSION.to_owned(),
            uptime_seconds: self.started.elapsed().as_secs(),
            ready: *self.ready.borrow(),
            guard: capture.as_ref().and_then(|capture| capture.guard.as_ref()).map(guarding),
            capture: match capture {
                Some(status) => capturing(status, changing.drops.as_ref()),
                None => not_capturing(self.captures),
            },
            table: TableStatus::new(
                &self.tables.load(),
                changing.applied.map(|applied| rfc3339(applied.at).to_string()),
            ),
            listeners: own
                .map(|(name, address)| listener(name, address))
                .into_iter()
                .chain(changing.listeners.iter().cloned())
                .collect(),
            config: serde_json::to_value(report).unwrap_or_default(),
            unmet: self.unmet(&changing),
            unhealthy: changing.health.as_ref().map(|health| unhealthy(&health.borrow())).unwrap_or_default(),
            certificates: changing.mesh.as_ref().map(|mesh| certificates(mesh)).unwrap_or_default(),
            alerts: changing
                .mesh
                .as_ref()
                .map(|mesh| mesh.certificates().alerts(mesh.now()))
                .unwrap_or_default()
                .into_iter()
                .chain(super::edge_tls::alerts(&self.tables.load(), report, SystemTime::now()))
                .collect(),
            cluster,
            refused_tunnels: changing.mesh.as_ref().map(|mesh| refused_tunnels(mesh)).unwrap_or_default(),
            workers: workers
                .map(|(id, open)| WorkerStatus { id, connections: open.count() as u64 })
                .collect(),
            drain: DrainStatus {
                draining: *self.draining.borrow(),
                connections: self.open_connections() as u64,
            },
        }
    }
}

/// Pods that fail their checks, as they are shown.
fn unhealthy(health: &PodHealth) -> Vec<String> {
    let shown = |failing: &crate::health::Failing| {
        super::cluster::failing_text(&failing.pod.to_string(), &failing.why, failing.since)
    };
    health.failing.values().map(shown).collect()
}

fn certificates(mesh: &Mesh) -> Vec<CertificateStatus> {
    let list = mesh.certificates().list().into_iter();
    list.map(|(identity, until)| CertificateStatus { identity, not_after: rfc3339(until).to_string() })
        .collect()
}

fn refused_tunnels(mesh: &Mesh) -> Vec<RefusedTunnels> {
    let shown = mesh.recent_refusals().into_iter().map(|one| RefusedTunnels {
        role: one.role.name().to_owned(),
        source: one.source,
        destination: one.destination,
        reason: one.why.name().to_owned(),
        what: one.why.to_string(),
        count: one.count,
        last: rfc3339(one.last).to_string(),
    });
    shown.collect()
}

/// Labels of what policy refused.
fn refused((cause, packets): (DropCause, u64)) -> (String, String, u64) {
    match cause {
        DropCause::Rule(denied) => (denied.policy.to_string(), denied.rule_label(), packets),
        DropCause::NoRoom => ("-".to_owned(), "no_room".to_owned(), packets),
        DropCause::HiddenPorts => ("-".to_owned(), "hidden_ports".to_owned(), packets),
    }
}

fn listener(name: &str, address: SocketAddr) -> ListenerStatus {
    ListenerStatus { name: name.to_owned(), address: address.to_string(), error: None }
}

/// `captures`: whether that is still to come.
fn not_capturing(captures: bool) -> CaptureStatus {
    let mode = if captures { CaptureStatus::STARTING } else { CaptureStatus::OFF };
    CaptureStatus { mode: mode.to_owned(), ..CaptureStatus::default() }
}

/// Why an agent has no certificates for pods.
fn without_certificates(captures: bool) -> &'static str {
    if captures {
        "this agent has no certificates (--ca)"
    } else {
        "this agent makes no certificates, as it captures nothing (--capture off)"
    }
}

/// Packets of plaintext that were refused where mutual TLS is asked for.
fn plaintext(drops: &PolicyDrops) -> u64 {
    let plaintext =
        |cause: &DropCause| matches!(cause, DropCause::Rule(denied) if denied.by == DeniedBy::Plaintext);
    drops.read().into_iter().filter(|(cause, _)| plaintext(cause)).map(|(_, packets)| packets).sum()
}

fn capturing(status: capture::CaptureStatus, drops: Option<&PolicyDrops>) -> CaptureStatus {
    let hooked = |name: String| InterfaceStatus { name, not_captured: None };
    let failed =
        status.failed.into_iter().map(|(name, reason)| InterfaceStatus { name, not_captured: Some(reason) });
    CaptureStatus {
        mode: "packet".to_owned(),
        attach: status.attach.to_owned(),
        pins: status.pins,
        paused: status.paused,
        interfaces: status.pod_interfaces.into_iter().map(hooked).chain(failed).collect(),
        uplinks: status.uplinks.into_iter().map(hooked).collect(),
        local_addresses: status.local_addresses,
        foreign: status.foreign.into_iter().map(foreign_program).collect(),
        destinations: status.destinations,
        destinations_over_capacity: status.destinations_over_capacity,
        connect: connecting(status.connect),
        policy: PolicyStatus {
            pods: status.policy.pods,
            closed: status.policy.closed,
            left_out: status.policy.left_out,
            strict: status.policy.strict,
            plaintext_refused: drops.map(plaintext).unwrap_or_default(),
            outlives_agent: status.policy.outlives,
        },
        inbound: status.inbound,
        acceleration: AccelerationStatus {
            active: status.acceleration.off.is_none(),
            reason: status.acceleration.off,
            pods: status.acceleration.pods,
            opted_out: status.acceleration.opted_out,
            not_found: status.acceleration.not_found,
            withdrawn: status.acceleration.withdrawn,
            bridged: status.acceleration.bridged,
            unwatched: status.acceleration.unwatched,
        },
        socket_events_off: status.socket_events_off,
        outbound_released: status.released.is_some(),
        inbound_released: status.released == Some(Released::All),
    }
}

fn connecting(status: capture::ConnectStatus) -> ConnectStatus {
    let tier = |((tier, why), count): ((Tier, TierReason), usize)| TierStatus {
        tier: tier.as_str().to_owned(),
        reason: why.as_str().to_owned(),
        frontends: count,
    };
    ConnectStatus {
        cgroup: status.cgroup.map(|path| path.display().to_string()),
        unavailable: status.unavailable,
        tiers: status.frontends.into_iter().map(tier).collect(),
    }
}

fn foreign_program(foreign: capture::Foreign) -> ForeignProgram {
    let capture::Sighting { hook, place, program } = foreign.seen;
    let capture::Foreign { name, before_ours, .. } = foreign;
    ForeignProgram { hook: hook.to_owned(), place, id: program, name, before_ours }
}

fn kernel_gauges(status: &capture::CaptureStatus) -> KernelGauges {
    let on = |hook| (hook, status.foreign.iter().filter(|foreign| foreign.seen.hook == hook).count());
    KernelGauges {
        foreign: capture::HOOKS.map(on).into(),
        maps: status.maps.iter().map(map_reading).collect(),
    }
}

fn map_reading(map: &capture::MapUse) -> MapReading {
    let capture::MapUse { name, entries, capacity, left_out } = *map;
    MapReading { map: name, entries, capacity, left_out }
}

fn guarding(guard: &capture::GuardStatus) -> GuardStatus {
    let attached = guard.interfaces.iter().map(|(name, mode)| GuardedInterface {
        name: name.clone(),
        mode: (*mode).to_owned(),
        not_guarded: None,
    });
    let failed = guard.failed.iter().map(|(name, reason)| GuardedInterface {
        name: name.clone(),
        mode: String::new(),
        not_guarded: Some(reason.clone()),
    });
    let (packets, syns) = (guard.policy.packets, guard.policy.syns);
    GuardStatus {
        interfaces: attached.chain(failed).collect(),
        maps: guard
            .maps
            .iter()
            .map(|fill| GuardMap {
                name: fill.map.to_owned(),
                entries: fill.entries,
                capacity: fill.capacity,
                left_out: fill.left_out,
            })
            .collect(),
        rules: guard.policy.rules.iter().map(|rule| rule.name.to_string()).collect(),
        per_source: GuardLimits {
            packets_per_second: packets.map(|rate| rate.per_second),
            packets_burst: packets.map(|rate| rate.burst),
            syns_per_second: syns.map(|rate| rate.per_second),
            syns_burst: syns.map(|rate| rate.burst),
        },
    }
}

fn count_objects(metrics: &Metrics, report: &Report) {
    let count = |wanted: fn(&ObjectState) -> bool| {
        report.objects.iter().filter(|object| wanted(&object.state)).count()
    };
    let rejected = count(|state| matches!(state, ObjectState::Rejected { .. }));
    metrics.config_objects(ConfigState::Accepted, count(|state| matches!(state, ObjectState::Applied)));
    metrics.config_objects(
        ConfigState::Partial,
        count(|state| matches!(state, ObjectState::NotEnforced { .. })),
    );
    metrics.config_objects(ConfigState::Rejected, rejected);
    let is_bad = |message: &Message| message.severity > Severity::Info;
    let broken = report.files.iter().filter(|file| file.messages.iter().any(is_bad)).count();
    metrics.config_rejected(rejected + broken);
}

/// Logs what was not said of the state before.
fn log_new_messages(before: &Report, now: &Report) {
    let known: std::collections::HashSet<String> = before.lines().map(|(_, line)| line).collect();
    for (severity, line) in now.lines().filter(|(_, line)| !known.contains(line)) {
        match severity {
            Severity::Error => tracing::error!("{line}"),
            Severity::Warning => tracing::warn!("{line}"),
            Severity::Info => tracing::info!("{line}"),
        }
    }
}
