//! The agent's state in one document, as `/status` serves it and `sluice status` reads it.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::ClusterDump;
use crate::compile::RoutingTable;

/// Everything that `sluice status` shows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The node's name.
    pub node: String,
    /// The agent's version.
    pub version: String,
    /// Seconds since the agent started.
    pub uptime_seconds: u64,
    /// Whether it is ready.
    pub ready: bool,
    /// What is captured, and how.
    pub capture: CaptureStatus,
    /// The guard at the edge; `None`: no interface is guarded.
    #[serde(default)]
    pub guard: Option<GuardStatus>,
    /// The routing table in force.
    pub table: TableStatus,
    /// What is bound.
    pub listeners: Vec<ListenerStatus>,
    /// The report on the configuration: per object what is in force, not enforced, or wrong.
    pub config: serde_json::Value,
    /// What the documents ask for and this agent, as it was started and on this node, does not do.
    #[serde(default)]
    pub unmet: Vec<String>,
    /// Pods of this node that fail their health checks, with the reason and since when.
    #[serde(default)]
    pub unhealthy: Vec<String>,
    /// The cluster, as far as this agent knows it.
    #[serde(default)]
    pub cluster: ClusterDump,
    /// Certificates of this node's workloads.
    #[serde(default)]
    pub certificates: Vec<CertificateStatus>,
    /// What somebody has to look at soon: certificates that end and were not renewed, and why.
    #[serde(default)]
    pub alerts: Vec<String>,
    /// Tunnels between nodes that came to nothing in the last minute.
    #[serde(default)]
    pub refused_tunnels: Vec<RefusedTunnels>,
    /// The dataplane's threads.
    pub workers: Vec<WorkerStatus>,
    /// How far draining has come.
    pub drain: DrainStatus,
}

/// The certificate of a workload.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// Its SPIFFE id.
    pub identity: String,
    /// When it ends, as RFC 3339 has it.
    pub not_after: String,
}

/// What is captured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureStatus {
    /// `packet`, or one of those of [`Self::is_off`].
    pub mode: String,
    /// How programs are attached: `tcx`, `clsact`; empty where none are.
    pub attach: String,
    /// Where maps and links are pinned, or `not pinned` with the reason.
    #[serde(default)]
    pub pins: String,
    /// Why captured packets would be lost, so that new connections go direct for now.
    #[serde(default)]
    pub paused: Option<String>,
    /// Pod interfaces that match.
    pub interfaces: Vec<InterfaceStatus>,
    /// Interfaces on which replies come back.
    pub uplinks: Vec<InterfaceStatus>,
    /// The node's own addresses.
    #[serde(default)]
    pub local_addresses: Vec<IpAddr>,
    /// Programs of others on the hooks that ours use.
    #[serde(default)]
    pub foreign: Vec<ForeignProgram>,
    /// Destinations that are captured.
    pub destinations: usize,
    /// Destinations beyond the kernel map's capacity; their traffic goes direct.
    pub destinations_over_capacity: usize,
    /// Balancing at `connect()`.
    #[serde(default)]
    pub connect: ConnectStatus,
    /// Pods under AuthorizationPolicies, as the kernel enforces them.
    #[serde(default)]
    pub policy: PolicyStatus,
    /// Pods of this node whose requests the agent judges.
    #[serde(default)]
    pub inbound: Vec<IpAddr>,
    /// Same-node acceleration.
    #[serde(default)]
    pub acceleration: AccelerationStatus,
    /// Why no flow events of sockets are told (open, close, bytes, round-trip time); `None`: they are.
    #[serde(default)]
    pub socket_events_off: Option<String>,
    /// New connections that pods dial are taken no more, as the agent ends.
    #[serde(default)]
    pub outbound_released: bool,
    /// Nor are those that come to pods, by tunnel or where a policy judges requests.
    #[serde(default)]
    pub inbound_released: bool,
}

impl CaptureStatus {
    /// The mode of an agent that captures nothing.
    pub const OFF: &str = "off";
    /// The mode of one that has not begun to.
    pub const STARTING: &str = "starting";

    /// Whether nothing is captured, as it was not asked for or is still to come.
    pub fn is_off(&self) -> bool {
        [Self::OFF, Self::STARTING].contains(&self.mode.as_str())
    }
}

/// Same-node acceleration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccelerationStatus {
    /// Whether same-node connections are accelerated.
    pub active: bool,
    /// Why they are not.
    pub reason: Option<String>,
    /// Addresses of this node's pods that take part.
    pub pods: usize,
    /// Addresses of pods whose annotation says that they don't, and of those under policy.
    pub opted_out: usize,
    /// Addresses of this node's pods whose network namespace was not found; they use TCP.
    pub not_found: usize,
    /// Addresses of this node's pods that take no part any more because bytes on their connections were not read.
    #[serde(default)]
    pub withdrawn: usize,
    /// Directions of opaque connections whose bytes go past the agent.
    #[serde(default)]
    pub bridged: u64,
    /// Why accelerated connections that stall may not be noticed; `None`: they are.
    #[serde(default)]
    pub unwatched: Option<String>,
}

/// Balancing at `connect()`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectStatus {
    /// The cgroup below which sockets are balanced; `None`: no socket is.
    pub cgroup: Option<String>,
    /// Why none are although they should be; the packet programs see them then.
    pub unavailable: Option<String>,
    /// Frontends by where they are decided.
    pub tiers: Vec<TierStatus>,
}

/// Frontends of one tier for one reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierStatus {
    /// `direct`, `balance`, `agent_l4` or `agent_l7`.
    pub tier: String,
    /// Why it is no lower.
    pub reason: String,
    /// How many.
    pub frontends: usize,
}

/// Somebody else's program on a hook that ours use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignProgram {
    /// `tcx`, `clsact`, `xdp` or `cgroup`.
    pub hook: String,
    /// The interface and the side, or what it decides about in the cgroup.
    pub place: String,
    /// The kernel's number of it.
    pub id: u32,
    /// Its name; empty where it has none.
    pub name: String,
    /// Whether it comes before one of ours there, and can let through or take what policy would refuse.
    #[serde(default)]
    pub before_ours: bool,
}

/// Addresses of pods under policy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyStatus {
    /// All of them.
    pub pods: usize,
    /// Closed to everybody, because their verdicts found no room in the kernel's maps.
    pub closed: usize,
    /// Left to the agent alone, because they found no room themselves.
    pub left_out: usize,
    /// Those at which plaintext is refused, at some port.
    #[serde(default)]
    pub strict: usize,
    /// Packets of plaintext that the kernel has refused there since the agent's start.
    #[serde(default)]
    pub plaintext_refused: u64,
    /// Whether what the kernel refuses stays refused when the agent is gone.
    pub outlives_agent: bool,
}

/// The guard at the edge.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardStatus {
    /// The interfaces that the user named.
    pub interfaces: Vec<GuardedInterface>,
    /// How full its maps are.
    pub maps: Vec<GuardMap>,
    /// EdgeGuards with a deny list.
    pub rules: Vec<String>,
    /// What one source may send.
    pub per_source: GuardLimits,
}

/// An interface that shall be guarded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardedInterface {
    /// Its name.
    pub name: String,
    /// `native` or `generic`; empty where it is not guarded.
    pub mode: String,
    /// Why it is not guarded; `None`: it is.
    pub not_guarded: Option<String>,
}

/// One of the guard's maps.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardMap {
    /// Its name.
    pub name: String,
    /// Entries that are in it.
    pub entries: usize,
    /// Entries that it has room for.
    pub capacity: usize,
    /// Entries that found no room: whom they would keep out passes.
    pub left_out: usize,
}

/// What one source may send; `None`: anything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardLimits {
    /// Packets per second.
    pub packets_per_second: Option<u32>,
    /// Packets at once.
    pub packets_burst: Option<u32>,
    /// Requests for TCP connections per second.
    pub syns_per_second: Option<u32>,
    /// Requests for TCP connections at once.
    pub syns_burst: Option<u32>,
}

/// One interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// Why it is not captured; `None`: it is.
    pub not_captured: Option<String>,
}

/// The routing table in force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableStatus {
    /// The leader's fencing epoch; 0 where the agent runs alone.
    pub epoch: u64,
    /// Counts the tables of one epoch.
    pub version: u64,
    /// When it came into force, in RFC 3339.
    pub applied_at: Option<String>,
    /// What it holds.
    #[serde(flatten)]
    pub counts: TableCounts,
}

/// What a table holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableCounts {
    /// Services that traffic is captured for.
    pub services: usize,
    /// Rules of all virtual hosts.
    pub routes: usize,
    /// Ready endpoints of services.
    pub endpoints: usize,
    /// Clusters, subsets included.
    pub clusters: usize,
}

impl TableStatus {
    /// The status of a table that came into force at a time in RFC 3339.
    pub fn new(table: &RoutingTable, applied_at: Option<String>) -> Self {
        let whole = || table.clusters.values().filter(|cluster| cluster.key.subset.is_none());
        let mut services: Vec<_> = whole().map(|cluster| &cluster.key.service).collect();
        services.dedup();
        let hosts = super::dump::virtual_hosts(table);
        Self {
            epoch: table.version.token.epoch,
            version: table.version.version,
            applied_at,
            counts: TableCounts {
                services: services.len(),
                routes: hosts.iter().map(|host| host.host.rules().count()).sum(),
                endpoints: whole().map(|cluster| cluster.endpoints.len()).sum(),
                clusters: table.clusters.len(),
            },
        }
    }
}

/// A bound listener.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// `capture`, `admin`, `metrics`, `health`, or a Gateway's `namespace/gateway/listener`.
    pub name: String,
    /// The address that it got.
    pub address: String,
    /// Why it is not bound; `None`: it is.
    pub error: Option<String>,
}

/// Tunnels with another node's agent that came to nothing lately, for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedTunnels {
    /// What this node had of them: `client` (it dialled) or `server`.
    pub role: String,
    /// Who dialled: a pod, or a node for its Gateways.
    pub source: IpAddr,
    /// The pod that it dialled.
    pub destination: IpAddr,
    /// Why: the name in metrics and in the log.
    pub reason: String,
    /// Why, in words.
    pub what: String,
    /// How many there have been, without a minute's silence between them.
    pub count: u64,
    /// When the last one came, in RFC 3339.
    pub last: String,
}

impl RefusedTunnels {
    /// Whether this node dialled.
    pub fn is_dialled(&self) -> bool {
        self.role == "client"
    }
}

impl fmt::Display for RefusedTunnels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, destination, reason, what, count, last, .. } = self;
        write!(f, "from {source} to {destination}: {reason}: {what} ({count} times, the last at {last})")
    }
}

/// A thread of the dataplane.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its number, from zero.
    pub id: usize,
    /// Client connections that it holds.
    pub connections: u64,
}

/// How far draining has come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainStatus {
    /// Whether the agent is draining.
    pub draining: bool,
    /// Client connections that are still open.
    pub connections: u64,
}
