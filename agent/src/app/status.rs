//! What is known of the running agent, gathered from its parts for those who ask.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agent_common::balance::{Tier, TierReason};
use anyhow::Context as _;
use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::gateways::ListenerError;
use super::tables::Applied;
use super::{Addresses, Settings};
use crate::admin::{
    AccelerationStatus, CaptureStatus, ConnectStatus, DrainStatus, FlowsDump, ForeignProgram, GuardLimits,
    GuardMap, GuardStatus, GuardedInterface, InterfaceStatus, ListenerStatus, PolicyStatus, Source, Status,
    TableStatus, TierStatus, WorkerStatus,
};
use crate::capture::{self, EngineHandle};
use crate::compile::{Denied, RoutingTable};
use crate::config::{ObjectState, Report, Severity, State};
use crate::telemetry::log::LogHandle;
use crate::telemetry::{AccessLog, BuildInfo, ConfigState, KernelGauges, Metrics, rfc3339};

/// The agent's version.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Everything that can be seen of the agent.
pub(super) struct Observed {
    pub(super) metrics: Metrics,
    pub(super) access: AccessLog,
    pub(super) tables: Arc<ArcSwap<RoutingTable>>,
    /// Open client connections of each worker.
    pub(super) open: Vec<Arc<AtomicUsize>>,
    node: String,
    started: Instant,
    addresses: Addresses,
    ready: watch::Sender<bool>,
    draining: watch::Receiver<bool>,
    /// Whether any interface is guarded, or it has been said that none is.
    guarded: AtomicBool,
    changing: Mutex<Changing>,
}

/// What changes while the agent runs.
#[derive(Default)]
struct Changing {
    applied: Option<Applied>,
    report: Report,
    listeners: Vec<ListenerStatus>,
    capture: Option<watch::Receiver<capture::CaptureStatus>>,
    flows: Option<capture::Flows>,
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
        let guarded = settings.capture.as_ref().is_some_and(|capture| capture.guard.is_some());
        Ok(Self {
            metrics,
            access,
            tables,
            open: (0..settings.workers).map(|_| Arc::default()).collect(),
            node: settings.node.clone(),
            started: Instant::now(),
            addresses,
            ready: watch::Sender::new(false),
            draining,
            guarded: AtomicBool::new(guarded),
            changing: Mutex::default(),
        })
    }

    /// What the admin servers read.
    pub(super) fn source(self: &Arc<Self>, log: LogHandle) -> Source {
        self.metrics.watch_writer("agent", log.writer());
        let observed = Arc::clone(self);
        let flowing = Arc::clone(self);
        Source {
            tables: Arc::clone(&self.tables),
            metrics: self.metrics.clone(),
            log,
            access: self.access.clone(),
            ready: self.ready.subscribe(),
            status: Box::new(move || observed.status()),
            flows: Box::new(move |since| flowing.flows(since)),
        }
    }

    fn flows(&self, since: u64) -> FlowsDump {
        let flows = self.changing().flows.clone();
        flows.map_or_else(FlowsDump::default, |flows| super::flows::dump(&flows, since, &self.tables.load()))
    }

    /// Client connections that are open, over all workers.
    pub(super) fn open_connections(&self) -> usize {
        self.open.iter().map(|open| open.load(Ordering::Relaxed)).sum()
    }

    pub(super) fn set_ready(&self, ready: bool) {
        self.ready.send_replace(ready);
        self.metrics.ready(ready);
    }

    pub(super) fn set_capture(&self, handle: &EngineHandle) {
        let counters = handle.counters();
        self.metrics.watch_packets(move || counters.read());
        self.changing().flows = Some(handle.flows());
        let status = handle.status();
        self.metrics.watch_kernel(move || kernel_gauges(&status.borrow()));
        let readings = handle.readings();
        if let Some(connects) = readings.connects {
            self.metrics.watch_connects(move || connects.read());
        }
        let drops = readings.drops;
        self.metrics.watch_policy(move || drops.read().into_iter().map(refused).collect());
        if let Some(counters) = readings.acceleration {
            self.metrics.watch_acceleration(move || counters.read());
        }
        if let Some((_, counters)) = readings.guard {
            self.metrics.watch_guard(move || counters.read());
        }
        self.changing().capture = Some(handle.status());
    }

    /// A state of the documents came into force.
    pub(super) fn applied(&self, state: &State, applied: Applied) {
        self.metrics.table_applied(&self.tables.load(), applied.took);
        count_objects(&self.metrics, &state.report);
        if !state.model.guards.is_empty() && !self.guarded.swap(true, Ordering::Relaxed) {
            tracing::warn!("EdgeGuards have no effect: no interface is guarded (--guard IFACE)");
        }
        log_new_messages(&self.changing().report, &state.report);
        let mut changing = self.changing();
        changing.applied = Some(applied);
        changing.report = state.report.clone();
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
        Status {
            node: self.node.clone(),
            version: VERSION.to_owned(),
            uptime_seconds: self.started.elapsed().as_secs(),
            ready: *self.ready.borrow(),
            guard: capture.as_ref().and_then(|capture| capture.guard.as_ref()).map(guarding),
            capture: capture.map_or_else(not_capturing, capturing),
            table: TableStatus::new(
                &self.tables.load(),
                changing.applied.map(|applied| rfc3339(applied.at).to_string()),
            ),
            listeners: own
                .map(|(name, address)| listener(name, address))
                .into_iter()
                .chain(changing.listeners.iter().cloned())
                .collect(),
            config: serde_json::to_value(&changing.report).unwrap_or_default(),
            workers: workers
                .map(|(id, open)| WorkerStatus { id, connections: open.load(Ordering::Relaxed) as u64 })
                .collect(),
            drain: DrainStatus {
                draining: *self.draining.borrow(),
                connections: self.open_connections() as u64,
            },
        }
    }
}

/// Labels of what policy refused. Without a rule of its own it was refused for lack of room in the kernel's maps.
fn refused((denied, packets): (Option<Denied>, u64)) -> (String, String, u64) {
    match denied {
        Some(denied) => (denied.policy.to_string(), denied.rule_label(), packets),
        None => ("-".to_owned(), "no_room".to_owned(), packets),
    }
}

fn listener(name: &str, address: SocketAddr) -> ListenerStatus {
    ListenerStatus { name: name.to_owned(), address: address.to_string(), error: None }
}

fn not_capturing() -> CaptureStatus {
    CaptureStatus { mode: "off".to_owned(), ..CaptureStatus::default() }
}

fn capturing(status: capture::CaptureStatus) -> CaptureStatus {
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
        },
        acceleration: AccelerationStatus {
            active: status.acceleration.off.is_none(),
            reason: status.acceleration.off,
            pods: status.acceleration.pods,
            opted_out: status.acceleration.opted_out,
            not_found: status.acceleration.not_found,
            withdrawn: status.acceleration.withdrawn,
        },
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
    ForeignProgram { hook: hook.to_owned(), place, id: program, name: foreign.name }
}

fn kernel_gauges(status: &capture::CaptureStatus) -> KernelGauges {
    let on = |hook| (hook, status.foreign.iter().filter(|foreign| foreign.seen.hook == hook).count());
    KernelGauges {
        foreign: capture::HOOKS.map(on).into(),
        maps: status.maps.iter().map(|map| (map.name, map.entries, map.capacity)).collect(),
    }
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
    let broken = report.files.iter().filter(|file| !file.messages.is_empty()).count();
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
