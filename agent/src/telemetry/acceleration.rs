//! The series of same-node acceleration: what its kernel programs count.

use std::sync::OnceLock;

use prometheus::{Error, IntCounterVec, IntGauge, Opts, Registry};

/// What the programs have counted until now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccelerationCounts {
    /// Sockets that are joined to another one.
    pub sockets: u64,
    /// Messages of joined sockets, by what became of them.
    pub messages: Vec<(&'static str, u64)>,
    /// Directions of opaque connections whose bytes go past the agent.
    pub bridged: u64,
    /// Directions of opaque connections, by what became of them.
    pub bridges: Vec<(&'static str, u64)>,
    /// Connections, by what was decided.
    pub connections: Vec<(&'static str, u64)>,
    /// Connections whose pods take no part any more, by what was wrong.
    pub faults: Vec<(&'static str, u64)>,
}

type Read = Box<dyn Fn() -> AccelerationCounts + Send + Sync>;

/// The series, and who is asked for them.
pub(super) struct AccelerationSeries {
    active: IntGauge,
    sockets: IntGauge,
    messages: IntCounterVec,
    bridged: IntGauge,
    bridges: IntCounterVec,
    connections: IntCounterVec,
    faults: IntCounterVec,
    read: OnceLock<Read>,
}

impl AccelerationSeries {
    pub fn new(registry: &Registry) -> Result<Self, Error> {
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone())).map(|()| gauge)
        };
        let counters = |name: &str, help: &str| {
            let counters = IntCounterVec::new(Opts::new(name, help), &["reason"])?;
            registry.register(Box::new(counters.clone())).map(|()| counters)
        };
        Ok(Self {
            active: gauge("sluice_acceleration_active", "Whether same-node connections are accelerated.")?,
            sockets: gauge("sluice_acceleration_sockets", "Sockets that are joined to another one.")?,
            messages: counters(
                "sluice_acceleration_messages_total",
                "Messages of joined sockets, by what became of them.",
            )?,
            bridged: gauge(
                "sluice_acceleration_bridged",
                "Directions of opaque connections whose bytes go past the agent.",
            )?,
            bridges: counters(
                "sluice_acceleration_bridges_total",
                "Directions of opaque connections that might go past the agent, by what became of them.",
            )?,
            connections: counters(
                "sluice_acceleration_connections_total",
                "Connections of this node's pods and the agent, by what was decided of them.",
            )?,
            faults: counters(
                "sluice_acceleration_faults_total",
                "Joined connections whose bytes were not read, by how; their pods take no part any more.",
            )?,
            read: OnceLock::new(),
        })
    }

    /// Only the first reader is taken.
    pub fn watch(&self, read: impl Fn() -> AccelerationCounts + Send + Sync + 'static) {
        self.active.set(1);
        let _ = self.read.set(Box::new(read));
    }

    /// Asks for the counts anew.
    pub fn refresh(&self) {
        let Some(read) = self.read.get() else { return };
        let counts = read();
        self.sockets.set(i64::try_from(counts.sockets).unwrap_or(i64::MAX));
        self.bridged.set(i64::try_from(counts.bridged).unwrap_or(i64::MAX));
        for (series, counts) in [
            (&self.bridges, counts.bridges),
            (&self.messages, counts.messages),
            (&self.connections, counts.connections),
            (&self.faults, counts.faults),
        ] {
            for (reason, count) in counts {
                let counter = series.with_label_values(&[reason]);
                counter.inc_by(count.saturating_sub(counter.get()));
            }
        }
    }
}
