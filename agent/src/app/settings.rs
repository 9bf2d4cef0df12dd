//! What an agent is started with; the command line fills it in, and so do tests.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::capture::{AccelerationMode, Bpffs, CgroupChoice, Glob, GuardOptions, Marks, OnStop};
use crate::proxy::ProxySettings;

use super::cluster::ClusterOptions;
use super::mesh::MeshOptions;

/// Everything an agent is told at start.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This node's name.
    pub node: String,
    /// The cluster's name, a label of the metrics.
    pub cluster: String,
    /// Where the documents come from.
    pub documents: DocumentSource,
    /// Capture, or `None` for a plain reverse proxy.
    pub capture: Option<CaptureOptions>,
    /// Mutual TLS with pods of other nodes; `None`: without certificates there is none.
    pub mesh: Option<MeshOptions>,
    /// Limits and timeouts of the data path.
    pub proxy: ProxySettings,
    /// How many workers.
    pub workers: usize,
    /// Where dumps and control are served; loopback.
    pub admin: SocketAddr,
    /// Where metrics are served.
    pub metrics: SocketAddr,
    /// Where health and readiness are served.
    pub health: SocketAddr,
    /// Whether an access log is written to standard output.
    pub access_log: bool,
    /// How long everything goes on as ever once the agent shall stop, but for readiness.
    pub drain_delay: Duration,
    /// How long connections may go on after that.
    pub drain_timeout: Duration,
}

/// Where documents come from.
#[derive(Debug, Clone)]
pub enum DocumentSource {
    /// A directory: the agent runs alone.
    Directory(PathBuf),
    /// The store of a cluster.
    Cluster(Box<ClusterOptions>),
}

/// How pods' traffic is captured.
#[derive(Debug, Clone)]
pub struct CaptureOptions {
    /// Interfaces that lead to pods.
    pub pod_interfaces: Glob,
    /// Interfaces by which replies to the agent come back; empty: all but the pods' and loopback.
    pub uplinks: Vec<String>,
    /// Whose sockets are balanced at `connect()`; `None`: nobody's.
    pub cgroup: Option<CgroupChoice>,
    /// The port of the first worker's capture listener; further workers take free ones.
    pub outbound_port: u16,
    /// The same for connections to pods whose policy asks of requests.
    pub inbound_port: u16,
    /// Numbers that the node's other software must not use.
    pub marks: Marks,
    /// Where maps and links are pinned.
    pub bpffs: Bpffs,
    /// What a stop leaves in the kernel.
    pub on_stop: OnStop,
    /// How many destinations can be captured; those beyond go direct.
    pub destinations_max: u32,
    /// Sources whose buckets the limits of the kernel keep.
    pub limit_sources: u32,
    /// Whether same-node connections are accelerated.
    pub acceleration: AccelerationMode,
    /// The guard at the edge; `None`: nothing is guarded.
    pub guard: Option<GuardOptions>,
    /// Whether sockets below the cgroup are told of.
    pub socket_events: bool,
}
