//! Same-node acceleration: bytes between two sockets on this node go from one to the other, past TCP and the interfaces.
//!
//! Owns the sockops and sk_msg programs, their maps, and what they know of pods. On only where the boot self-test passes.
//!
//! Nothing is pinned, and nothing needs to be: each socket in the map holds the sk_msg program, and the program its maps. So
//! connections that are joined stay so when the agent ends, however it ends, and no byte in a queue is lost; new ones are
//! TCP's, and the last one to close takes everything along.

mod backlog;
mod bridges;
mod hold;
pub(super) mod namespaces;
mod self_test;
mod trials;
mod watch;
mod watcher;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_common::acceleration::{AccelerationConfig, AccelerationReason, EndKey, PodValue};
use agent_common::bridge::BRIDGES_MAX;
use agent_common::capture::AddressKey;
use aya::maps::{Array, MapData, PerCpuArray, SockHash};
use aya::programs::sock_ops::SockOpsLink;
use aya::programs::{CgroupAttachMode, SkMsg, SockOps};
use aya::{Ebpf, EbpfLoader};
use rtnetlink::Handle;

use super::connect;
use super::kernel_call::netns_cookie;
use super::mirror::Mirror;
use super::privilege::Privileges;
use super::programs::{OBJECT, load_error, map, mirror, object_error, octets};
use super::{CaptureError, CaptureSettings, MapUse};
use crate::compile::RoutingTable;
use crate::telemetry::AccelerationCounts;

use hold::Holds;
use watcher::{Watched, Watcher, Withdrawn};

pub use bridges::Bridges;
pub use self_test::{TrialReport, VERB, run_trials, self_test};

/// The maps that are of no use where acceleration is off.
pub const MAPS: [&str; 6] =
    ["ACCELERATION_PODS", "JOINED_SOCKETS", "WAITING", "ENDS", "BRIDGE_OF", "HELD_BACK"];
/// The map that is small unless acceleration is on, and then as large.
pub const BRIDGES: (&str, u32) = ("BRIDGES", BRIDGES_MAX);
/// The program of connections.
pub const SOCKOPS: &str = "accelerate";
const SK_MSG: &str = "hand_over";

/// Whether acceleration is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AccelerationMode {
    /// Where there is a cgroup to see the sockets of, and the kernel passes the self-test.
    #[default]
    Auto,
    /// As `Auto`, and also where the kernel fails the two trials that `self_test` lets the operator do without.
    On,
    /// Never.
    Off,
}

/// What `status` shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccelerationStatus {
    /// Why it is off; `None`: it is on.
    pub off: Option<String>,
    /// Pods whose sockets take part.
    pub pods: usize,
    /// Pods of this node whose annotation says that they don't, and those under policy.
    pub opted_out: usize,
    /// Addresses of this node's pods whose namespace was not found; their connections are TCP's.
    pub not_found: usize,
    /// Addresses of this node's pods that take no part any more because bytes on their connections were not read.
    pub withdrawn: usize,
    /// Directions of opaque connections whose bytes go past the agent.
    pub bridged: u64,
    /// Why connections that stall may not be noticed.
    pub unwatched: Option<String>,
}

/// The cgroup whose sockets are to be accelerated, or why none are.
pub async fn wanted(settings: &CaptureSettings) -> Result<PathBuf, String> {
    match (settings.acceleration, &settings.cgroup) {
        (AccelerationMode::Off, _) => Err("--acceleration off".to_owned()),
        (_, None) => Err("no --cgroup names the pods' cgroup v2 directory".to_owned()),
        (mode, Some(cgroup)) => {
            if let Some(lack) = Privileges::own().missing_for_acceleration() {
                return Err(lack);
            }
            let cgroup = cgroup.find().map_err(|error| error.to_string())?;
            let path = cgroup.clone();
            match tokio::task::spawn_blocking(move || self_test(&path, mode)).await {
                Ok(Ok(_)) => Ok(cgroup),
                Ok(Err(error)) => Err(error.to_string()),
                Err(error) => Err(error.to_string()),
            }
        }
    }
}

/// The programs, attached.
pub struct Acceleration {
    /// New connections are looked at as long as this is held.
    _sockops: SockOpsLink,
    pods: Mirror<AddressKey, PodValue>,
    counters: AccelerationCounters,
    namespaces: HashMap<IpAddr, u64>,
    looked_for: Option<(BTreeSet<u32>, BTreeSet<IpAddr>)>,
    status: AccelerationStatus,
    /// Until the first pods are known, what the watcher will look at.
    watched: Option<Watched>,
    watcher: Option<Watcher>,
}

impl Acceleration {
    /// Attaches the programs of a loaded object: from now on connections of the cgroup's sockets are looked at.
    pub fn start(ebpf: &mut Ebpf, cgroup: &Path, config: AccelerationConfig) -> Result<Self, CaptureError> {
        let mut settings: Array<MapData, AccelerationConfig> = map(ebpf, "ACCELERATION")?;
        settings.set(0, config, 0).map_err(|source| CaptureError::Map { map: "ACCELERATION", source })?;
        let sockets: SockHash<MapData, EndKey> = map(ebpf, "JOINED_SOCKETS")?;
        let messages: &mut SkMsg = program(ebpf, SK_MSG);
        messages.load().map_err(|source| load_error(SK_MSG, source))?;
        // Sockets take the map's program when they enter, so it comes first.
        messages.attach(sockets.fd()).map_err(|source| load_error(SK_MSG, source))?;
        let directory = self_test::open(cgroup)?;
        let connections: &mut SockOps = program(ebpf, SOCKOPS);
        connections.load().map_err(|source| load_error(SOCKOPS, source))?;
        // A link lets others attach theirs beside it, whatever the mode is called.
        let link = connections.attach(directory, CgroupAttachMode::Single);
        let link = link.and_then(|id| connections.take_link(id));
        let bridges = Bridges::new(ebpf)?;
        Ok(Self {
            _sockops: link.map_err(|source| load_error(SOCKOPS, source))?,
            pods: mirror(ebpf, "ACCELERATION_PODS")?,
            counters: AccelerationCounters {
                kernel: Arc::new(map(ebpf, "ACCELERATION_COUNTERS")?),
                withdrawn: Arc::default(),
                bridges,
            },
            watched: Some((map(ebpf, "ENDS")?, Holds::new(ebpf)?)),
            watcher: None,
            namespaces: HashMap::new(),
            looked_for: None,
            status: AccelerationStatus::default(),
        })
    }

    /// The programs of an object of their own, for the self-test.
    fn alone(cgroup: &Path, config: AccelerationConfig) -> Result<(Self, Ebpf), CaptureError> {
        let mut loader = EbpfLoader::new();
        for map in ["DESTINATIONS", "LOCAL_ADDRESSES", "ACCELERATION_PODS"]
            .into_iter()
            .chain(connect::MAPS)
            .chain(["BRIDGE_OF", "HELD_BACK"])
        {
            loader.map_max_entries(map, 1);
        }
        let mut ebpf = loader.load(OBJECT).map_err(object_error)?;
        let acceleration = Self::start(&mut ebpf, cgroup, config)?;
        Ok((acceleration, ebpf))
    }

    /// What the programs count.
    pub fn counters(&self) -> AccelerationCounters {
        self.counters.clone()
    }

    /// How full the map of pods is.
    pub fn map_use(&self) -> MapUse {
        self.pods.usage()
    }

    /// How it stands.
    pub fn status(&self) -> AccelerationStatus {
        let (bridged, unwatched) = (self.counters.bridges.bridged(), self.counters.withdrawn.blind());
        AccelerationStatus { bridged, unwatched, ..self.status.clone() }
    }

    /// Brings what the programs know of pods in line with the table and the pods' interfaces. `again` looks once more for
    /// namespaces that were not there at the last look.
    pub async fn follow_pods(
        &mut self,
        node: &str,
        table: &RoutingTable,
        pods: (&Handle, BTreeSet<u32>),
        again: bool,
    ) -> Result<(), CaptureError> {
        if let Some(watched) = self.watched.take() {
            self.watcher = Watcher::start(watched, self.counters.clone());
        }
        let (handle, interfaces) = pods;
        let here = table.workloads.iter().filter(|(_, pod)| pod.node.as_deref().is_none_or(|at| at == node));
        let addresses: BTreeSet<IpAddr> = here.clone().map(|(address, _)| *address).collect();
        let looked_for = Some((interfaces, addresses));
        if self.looked_for != looked_for || (again && self.status.not_found > 0) {
            if let Some((interfaces, _)) = &looked_for {
                let found = namespaces::behind(handle, interfaces).await;
                self.namespaces = found.map_err(CaptureError::netlink("asking for pods' namespaces"))?;
            }
            self.looked_for = looked_for;
        }
        let mut status = AccelerationStatus::default();
        let mut wanted = HashMap::new();
        for (address, pod) in here {
            let cookie = self.namespaces.get(address).copied();
            // What is handed over passes no hook that could refuse it: pods under policy take no part.
            let wants_part =
                pod.accelerated && !table.policies.of(*address).is_some_and(|policy| policy.refuses());
            let withdrawn = cookie.is_some_and(|cookie| self.counters.withdrawn.contains(cookie));
            let takes_part = wants_part && !withdrawn;
            match (takes_part, cookie) {
                (false, _) if wants_part => status.withdrawn += 1,
                (false, _) => status.opted_out += 1,
                (true, Some(_)) => status.pods += 1,
                (true, None) if pod.node.is_some() => status.not_found += 1,
                // Some pod of the cluster, of which nothing says that it is here.
                (true, None) => continue,
            }
            let value =
                PodValue { cookie: cookie.unwrap_or(0), opted_out: u32::from(!takes_part), padding: 0 };
            wanted.insert(AddressKey { address: octets(*address) }, value);
        }
        let left_out = self.pods.set(&wanted)?;
        if left_out > 0 && self.status != status {
            tracing::error!(
                left_out,
                "so many pods' addresses found no room in the kernel's map; they use TCP"
            );
        }
        self.status = status;
        Ok(())
    }
}

/// The cookie of this process's network namespace.
pub fn node_cookie() -> Result<u64, CaptureError> {
    netns_cookie().map_err(CaptureError::listener("asking for the network namespace's cookie"))
}

/// What the programs count, and who takes no part any more.
#[derive(Clone)]
pub struct AccelerationCounters {
    kernel: Arc<PerCpuArray<MapData, u64>>,
    withdrawn: Arc<Withdrawn>,
    bridges: Bridges,
}

impl AccelerationCounters {
    /// What lets relays' bytes go past the agent.
    pub fn bridges(&self) -> Bridges {
        self.bridges.clone()
    }

    /// One count, over all CPUs.
    pub fn of(&self, reason: AccelerationReason) -> u64 {
        self.kernel.get(&(reason as u32), 0).map_or(0, |values| values.iter().sum())
    }

    /// All of them, as the metrics have them.
    pub fn read(&self) -> AccelerationCounts {
        use AccelerationReason::{Bridged, Closed, Joined, PeerClosed, Redirected};
        let count = |reason: AccelerationReason| (reason.as_str(), self.of(reason));
        let (joined, closed) = (self.of(Joined), self.of(Closed));
        let outcomes = AccelerationReason::ALL.into_iter();
        AccelerationCounts {
            sockets: (2 * joined).saturating_sub(closed + self.withdrawn.led_back()),
            faults: self.withdrawn.counts(),
            messages: vec![count(Redirected), count(Bridged), count(PeerClosed)],
            bridged: self.bridges.bridged(),
            bridges: self.bridges.counts(),
            connections: outcomes
                .filter(|reason| !matches!(reason, Bridged | Closed | PeerClosed | Redirected))
                .map(count)
                .collect(),
        }
    }
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut P
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error: std::fmt::Debug>,
{
    let program = ebpf.program_mut(name).expect("the object holds the program");
    program.try_into().expect("the program is of its kind")
}
