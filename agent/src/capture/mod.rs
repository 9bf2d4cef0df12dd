//! Capture: takes pods' connections in the kernel and hands them to the workers' listeners.
//!
//! [`Engine`] owns the kernel side (programs, maps, mark rule, local route, nft table) from start to stop. It reacts to
//! two things: interfaces and addresses that come and go, and routing tables that change what is captured.

mod acceleration;
mod claim;
mod cleanup;
mod connect;
mod engine;
mod error;
mod events;
mod expel;
mod features;
mod foreign;
mod glob;
mod guard;
mod held;
mod hook;
mod inherited;
mod interfaces;
mod kernel_call;
mod kernel_policy;
mod layout;
mod limits;
mod listener;
mod live;
mod lower;
mod lowering;
mod mirror;
mod netlink;
mod parts;
mod pins;
mod plumbing;
mod pod_guard;
mod pod_hooks;
mod privilege;
mod programs;
mod self_check;
mod sock_diag;
mod socket_events;
mod tunnels;
mod upkeep;
mod vanished;

pub use acceleration::{
    AccelerationCounters, AccelerationMode, AccelerationStatus, VERB as TRIALS_VERB, run_trials,
};
pub use claim::Claim;
pub use cleanup::{Cleaned, Under, clean};
pub use connect::{CgroupChoice, ConnectCounters, ConnectStatus};
pub use engine::{Engine, EngineHandle, Released};
pub use error::CaptureError;
pub use foreign::{Foreign, HOOKS, Sighting};
pub use glob::Glob;
pub use guard::{Fill, Guard, GuardCounters, GuardHandle, GuardOptions, GuardStatus, Push};
pub use held::Held;
pub use inherited::policies_left;
pub use interfaces::{Hooked, Snapshot};
pub use kernel_policy::{DropCause, PolicyDrops, PolicyStatus};
pub use limits::{LimitCounters, SOURCES_DEFAULT as LIMIT_SOURCES_DEFAULT};
pub use listener::{CaptureListeners, SpoofingConnector};
pub use live::{Balanced, Joined, Live, counted};
pub use pins::Bpffs;
pub use programs::{Counters, DESTINATIONS_DEFAULT, OBJECT};
pub use self_check::{Check, Outcome, checks};

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::telemetry::FlowLog;

/// What the engine is told at start.
#[derive(Debug, Clone)]
pub struct CaptureSettings {
    /// Interfaces that lead to pods.
    pub pod_interfaces: Glob,
    /// Interfaces by which replies to the agent come back; empty: all but the pods' and loopback.
    pub uplinks: Vec<String>,
    /// The marks and the routing table that lead captured packets to the agent.
    pub marks: Marks,
    /// How many workers have listeners.
    pub workers: u32,
    /// Where maps and links are pinned.
    pub bpffs: Bpffs,
    /// What a stop leaves in the kernel.
    pub on_stop: OnStop,
    /// How many destinations can be captured; those beyond go direct.
    pub destinations_max: u32,
    /// Sources whose buckets the limits of the kernel keep; beyond them who was silent longest is forgotten.
    pub limit_sources: u32,
    /// Whose sockets are balanced at `connect()`; `None`: nobody's.
    pub cgroup: Option<CgroupChoice>,
    /// Whether same-node connections are accelerated.
    pub acceleration: AccelerationMode,
    /// This node's name, as Pod documents call it.
    pub node: String,
    /// Whether tunnels to this node's pods are taken.
    pub tunnels: bool,
    /// The guard at the edge; `None`: nothing is guarded.
    pub guard: Option<GuardOptions>,
    /// Whether sockets below the cgroup are told of.
    pub socket_events: bool,
    /// Takes flow events.
    pub flows: FlowLog,
}

/// What is left in the kernel when the agent stops.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnStop {
    /// Nothing but what refuses on behalf of policies, where that is pinned.
    #[default]
    Remove,
    /// Programs, maps, rules, routes and the nft table, for the next agent. Without a listener they capture nothing.
    Keep,
}

/// Numbers that other software on the node must not use; each can be set where it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// The packet mark that an `ip rule` delivers locally. Never on a socket, or output routing would loop back.
    pub deliver: u32,
    /// The mark on the agent's own sockets.
    pub own: u32,
    /// The routing table that holds the one `local default` route.
    pub table: u32,
    /// The priority of the `ip rule`; after the kernel's local table (0), before the main one (32766).
    pub rule_priority: u32,
}

impl Default for Marks {
    // Clear of kube-proxy (0x4000, 0x8000), Cilium (0x0200, 0x0f00), Istio (0x539, 0x111) and the port-map plugin (0x2000).
    fn default() -> Self {
        Self { deliver: 0x1510, own: 0x1520, table: 1510, rule_priority: 90 }
    }
}

/// The node's own addresses, as the connector needs them: nobody may be impersonated towards one of these.
pub type LocalAddresses = Arc<ArcSwap<Vec<IpAddr>>>;

/// What `status` shows of capture.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CaptureStatus {
    /// How programs are attached: `tcx` or `clsact`.
    pub attach: &'static str,
    /// Where maps and links are pinned, or `not pinned` with the reason.
    pub pins: String,
    /// Pod interfaces with the program.
    pub pod_interfaces: Vec<String>,
    /// Why captured packets would be lost, so that none are captured.
    pub paused: Option<String>,
    /// Uplinks with the program.
    pub uplinks: Vec<String>,
    /// Interfaces that should have it and do not, with the reason.
    pub failed: Vec<(String, String)>,
    /// The node's own addresses.
    pub local_addresses: Vec<IpAddr>,
    /// Programs of others on the hooks that ours use.
    pub foreign: Vec<Foreign>,
    /// How full the kernel's maps are.
    pub maps: Vec<MapUse>,
    /// Destinations that are captured.
    pub destinations: usize,
    /// Destinations beyond the map's capacity; their traffic goes direct.
    pub destinations_over_capacity: usize,
    /// Balancing at `connect()`.
    pub connect: ConnectStatus,
    /// Pods under policy.
    pub policy: PolicyStatus,
    /// Pods of this node whose requests the agent judges.
    pub inbound: Vec<IpAddr>,
    /// Same-node acceleration.
    pub acceleration: AccelerationStatus,
    /// Why no events of sockets are told; `None`: they are.
    pub socket_events_off: Option<String>,
    /// New connections that are taken no more.
    pub released: Option<Released>,
    /// The guard at the edge, where there is one.
    pub guard: Option<GuardStatus>,
}

/// How full a map is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapUse {
    /// Its name.
    pub name: &'static str,
    /// Entries that it holds.
    pub entries: usize,
    /// The most that it can hold.
    pub capacity: usize,
    /// Entries that found no room.
    pub left_out: usize,
}
