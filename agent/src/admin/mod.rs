//! What operators and probes ask the agent over HTTP: state, dumps, log levels, metrics, health. Reads the dataplane's
//! state and never holds it up; the one thing that it changes is the log.

mod answer;
pub mod client;
mod cluster;
mod config_dump;
mod connections;
mod dump;
mod flows;
mod limits;
mod server;
mod stats;
mod status;
mod why;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::compile::RoutingTable;
use crate::telemetry::log::LogHandle;
use crate::telemetry::{AccessLog, Metrics};

pub use cluster::{
    ClusterDump, DocumentsDump, InForceDump, LeaderDump, NodeDump, RefusedDocumentsDump, RefusedDump,
    SealDump,
};
pub use config_dump::{CertDump, CertificateDump};
pub use connections::{ConnectionDump, ConnectionsDump};
pub use dump::{
    DestinationDump, EndpointDump, EndpointsDump, HostDump, OutReasons, RoutesDump, RuleDump, endpoints,
    routes,
};
pub use flows::{FlowDump, FlowsDump, RATE_LIMITED, protocol_name};
pub use limits::{
    LimitDump, LimitStoreDump, LimitsDump, NodeLeasedDump, OverrideDump, TopKeyDump, limits, read_limits,
};
pub use server::{Role, serve};
pub use status::{
    AccelerationStatus, CaptureStatus, CertificateStatus, ConnectStatus, DrainStatus, ForeignProgram,
    GuardLimits, GuardMap, GuardStatus, GuardedInterface, InterfaceStatus, ListenerStatus, PolicyStatus,
    RefusedTunnels, Status, TableCounts, TableStatus, TierStatus, WorkerStatus,
};

pub use why::{Asked, Explanation, Held, Step, Transport, Unreadable, UpstreamDump, why};

/// What the servers read.
pub struct Source {
    /// The table in force.
    pub tables: Arc<ArcSwap<RoutingTable>>,
    /// The metrics.
    pub metrics: Metrics,
    /// The agent's own log.
    pub log: LogHandle,
    /// The access log.
    pub access: AccessLog,
    /// Whether the agent is ready.
    pub ready: watch::Receiver<bool>,
    /// Collects the status.
    pub status: Box<dyn Fn() -> Status + Send + Sync>,
    /// The flows from a number on.
    pub flows: Box<dyn Fn(u64) -> FlowsDump + Send + Sync>,
    /// The connections that are open.
    pub connections: Box<dyn Fn() -> ConnectionsDump + Send + Sync>,
    /// The endpoints.
    pub endpoints: Box<dyn Fn() -> EndpointsDump + Send + Sync>,
    /// The cluster.
    pub cluster: Box<dyn Fn() -> ClusterDump + Send + Sync>,
    /// The rate limits, each with so many of its keys.
    pub limits: Box<dyn Fn(usize) -> LimitsDump + Send + Sync>,
    /// What the kernel's maps hold of a source and of what it dials.
    pub held: Box<dyn Fn(IpAddr, SocketAddr) -> Held + Send + Sync>,
    /// What this node's workloads show.
    pub certificates: Box<dyn Fn() -> Vec<CertificateDump> + Send + Sync>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("ready", &self.ready).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
