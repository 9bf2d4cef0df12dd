//! Balancing at `connect()`: the cgroup programs, their maps, and the sockets that they have led somewhere.
//!
//! The programs go with the process: their links are file descriptors. Connections that were balanced live on without
//! them; only `getpeername()` tells of the backend then. Nothing of it is needed for traffic to flow: where it is off, or
//! refused by the kernel, the packet programs see the services' addresses.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_common::balance::{
    ConnectReason, End, FrontendValue, MemberKey, SlotKey, SlotValue, SocketKey, SocketValue, TCP, Tier,
    TierReason,
};
use aya::Ebpf;
use aya::maps::{HashMap as KernelMap, MapData, PerCpuArray};
use aya::programs::cgroup_sock_addr::CgroupSockAddrLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr};

use super::lower::{Changes, Decision, Follower, Pool, PoolName};
use super::mirror::Mirror;
use super::programs::{load_error, map, mirror};
use super::vanished::{Sought, Vanished};
use super::{CaptureError, MapUse};
use crate::compile::RoutingTable;

/// Slots of all tables together, as in the kernel's map.
const SLOTS_MAX: usize = 262_144;

/// Those that tell come first, so that no socket is led before it can be told of it.
pub const PROGRAMS: [&str; 8] = [
    "balance_peername4",
    "balance_peername6",
    "balance_recvmsg4",
    "balance_recvmsg6",
    "balance_connect4",
    "balance_connect6",
    "balance_sendmsg4",
    "balance_sendmsg6",
];

/// Maps that hold nothing where balancing is off.
pub const MAPS: [&str; 5] = ["FRONTENDS", "SLOTS", "MEMBERS", "AFFINITY", "SOCKETS"];

/// Whose sockets are balanced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CgroupChoice {
    /// All of the first cgroup v2 hierarchy that is mounted.
    Auto,
    /// Those below this directory.
    Path(PathBuf),
}

impl CgroupChoice {
    /// The directory, which is there and is a cgroup's.
    pub fn find(&self) -> Result<PathBuf, CaptureError> {
        let path = self.directory(&std::fs::read_to_string("/proc/mounts").unwrap_or_default())?;
        // Groups of version 1 do not have this file.
        match path.join("cgroup.controllers").metadata() {
            Ok(_) => Ok(path),
            Err(_) => {
                Err(CaptureError::Cgroup { path, reason: "is not the directory of a cgroup v2".to_owned() })
            }
        }
    }

    /// The directory; for [`CgroupChoice::Auto`] looked up in the text of `/proc/mounts`.
    fn directory(&self, mounts: &str) -> Result<PathBuf, CaptureError> {
        match self {
            Self::Path(path) => Ok(path.clone()),
            Self::Auto => mounts.lines().find_map(mount_of_cgroup2).ok_or(CaptureError::NoCgroup),
        }
    }
}

impl std::str::FromStr for CgroupChoice {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(if text == "auto" { Self::Auto } else { Self::Path(text.into()) })
    }
}

fn mount_of_cgroup2(line: &str) -> Option<PathBuf> {
    let mut fields = line.split(' ').skip(1);
    let (path, kind) = (fields.next()?, fields.next()?);
    (kind == "cgroup2").then(|| PathBuf::from(path))
}

/// What `status` shows of balancing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectStatus {
    /// Whose sockets are balanced.
    pub cgroup: Option<PathBuf>,
    /// Why none are, where they should be: what is used instead is the packet programs.
    pub unavailable: Option<String>,
    /// Frontends by tier and reason.
    pub frontends: BTreeMap<(Tier, TierReason), usize>,
}

/// The programs, attached, with their maps.
pub struct ConnectBalancer {
    cgroup: PathBuf,
    /// Detach as they drop.
    links: Vec<CgroupSockAddrLink>,
    frontends: Mirror<End, FrontendValue>,
    members: Mirror<MemberKey, u32>,
    slots: KernelMap<MapData, SlotKey, SlotValue>,
    pools: BTreeMap<PoolName, Held>,
    /// Tables that nothing points to any more, with their sizes. They go with the next change: a program may still read
    /// them now.
    retired: Vec<(u32, u32)>,
    slots_used: usize,
    /// Slots of pools that found no room.
    slots_left_out: usize,
    next_pool: u32,
    next_table: u32,
    seed: u32,
    follower: Follower,
    /// Whether the kernel has all of what it was told last.
    complete: bool,
    vanished: Vanished,
    /// What is done with each frontend, and how many there are of each kind.
    decided: HashMap<End, (Tier, TierReason)>,
    counts: BTreeMap<(Tier, TierReason), usize>,
    counters: ConnectCounters,
}

/// A pool as the kernel has it.
struct Held {
    pool: Pool,
    id: u32,
    table: u32,
    slots: u32,
}

impl ConnectBalancer {
    /// Attaches the programs to a cgroup: all of them, or none.
    pub fn attach(ebpf: &mut Ebpf, cgroup: &Path) -> Result<Self, CaptureError> {
        let failed = |reason: String| CaptureError::Cgroup { path: cgroup.to_owned(), reason };
        let directory = File::open(cgroup).map_err(|error| failed(error.to_string()))?;
        load(ebpf)?;
        let counters =
            ConnectCounters { kernel: Arc::new(map(ebpf, "CONNECT_COUNTERS")?), vanished: Arc::default() };
        let vanished = Vanished::new(map(ebpf, "SOCKETS")?, Arc::clone(&counters.vanished));
        let mut balancer = Self {
            cgroup: cgroup.to_owned(),
            links: Vec::new(),
            frontends: mirror(ebpf, "FRONTENDS")?,
            members: mirror(ebpf, "MEMBERS")?,
            slots: map(ebpf, "SLOTS")?,
            pools: BTreeMap::new(),
            retired: Vec::new(),
            slots_used: 0,
            slots_left_out: 0,
            next_pool: 0,
            next_table: 0,
            seed: seed(),
            follower: Follower::default(),
            complete: false,
            vanished,
            decided: HashMap::new(),
            counts: BTreeMap::new(),
            counters,
        };
        for name in PROGRAMS {
            let program = program(ebpf, name);
            let link = program.attach(&directory, CgroupAttachMode::Single);
            let link = link.and_then(|link| program.take_link(link));
            balancer.links.push(link.map_err(|error| failed(super::pins::innermost(&error)))?);
        }
        Ok(balancer)
    }

    /// Whose sockets are balanced, and what is done with them.
    pub fn status(&self) -> ConnectStatus {
        ConnectStatus { cgroup: Some(self.cgroup.clone()), unavailable: None, frontends: self.counts.clone() }
    }

    /// How full the maps are that the agent writes.
    pub fn map_use(&self) -> [MapUse; 3] {
        let slots = MapUse {
            name: "SLOTS",
            entries: self.slots_used,
            capacity: SLOTS_MAX,
            left_out: self.slots_left_out,
        };
        [self.frontends.usage(), slots, self.members.usage()]
    }

    /// What the programs count, and what became of vanished backends' sockets.
    pub fn counters(&self) -> ConnectCounters {
        self.counters.clone()
    }

    /// Makes the kernel decide as a table says. Sockets whose backend is gone are closed.
    pub fn apply(&mut self, table: &Arc<RoutingTable>) -> Result<(), CaptureError> {
        // What found no room may find it now, and what failed halfway is told again.
        let whole = !std::mem::take(&mut self.complete);
        let changes = self.follower.follow(table, whole);
        let gone = changes.gone.clone();
        let told = self.tell(changes);
        // They are gone whatever became of the rest.
        self.vanished.seek(gone);
        told
    }

    fn tell(&mut self, changes: Changes) -> Result<(), CaptureError> {
        let Changes { whole, frontends, pools, gone: _ } = changes;
        self.drop_retired();
        let has_room = self.hold_all(pools, whole);
        let forgetful = self.members.set(&self.wanted_members())?;
        if forgetful > 0 {
            tracing::error!(
                left_out = forgetful,
                "more backends with affinity than the kernel's map holds; clients of those do not come back to them"
            );
        }
        let left_out = self.decide(frontends, whole)?;
        if left_out > 0 {
            tracing::error!(left_out, "more frontends than the kernel's map holds; those are not balanced");
        }
        self.complete = has_room && left_out == 0;
        Ok(())
    }

    /// Brings pools into the kernel. `whole`: all others go. Whether there was room for all.
    fn hold_all(&mut self, pools: BTreeMap<PoolName, Option<Pool>>, whole: bool) -> bool {
        let (mut held, mut has_room) = (Vec::new(), true);
        // Where something was left out, all of it is told again.
        self.slots_left_out = 0;
        for (name, pool) in pools {
            let before = self.pools.remove(&name);
            match pool {
                Some(pool) => match self.hold(before, pool) {
                    Some(now) => held.push((name, now)),
                    None => has_room = false,
                },
                None => self.retired.extend(before.map(|gone| (gone.table, gone.slots))),
            }
        }
        if whole {
            let gone = std::mem::take(&mut self.pools).into_values();
            self.retired.extend(gone.map(|gone| (gone.table, gone.slots)));
        }
        self.pools.extend(held);
        has_room
    }

    /// Brings frontends into the kernel. `whole`: all others go. Answers how many found no room.
    fn decide(
        &mut self,
        frontends: BTreeMap<End, Option<Decision>>,
        whole: bool,
    ) -> Result<usize, CaptureError> {
        if whole {
            (self.decided, self.counts) = Default::default();
        }
        let mut values = HashMap::with_capacity(frontends.len());
        for (address, decision) in frontends {
            let (decided, value) = decision.map(|decision| self.decided(address, &decision)).unzip();
            self.count(address, decided);
            values.insert(address, value);
        }
        if whole {
            let all = values.into_iter().filter_map(|(address, value)| Some((address, value?)));
            return self.frontends.set(&all.collect());
        }
        self.frontends.change(&values)
    }

    /// Counts a frontend by what is done with it now.
    fn count(&mut self, address: End, now: Option<(Tier, TierReason)>) {
        let before = match now {
            Some(now) => self.decided.insert(address, now),
            None => self.decided.remove(&address),
        };
        if let Some(count) = before.and_then(|before| self.counts.get_mut(&before)) {
            *count -= 1;
        }
        if let Some(now) = now {
            *self.counts.entry(now).or_default() += 1;
        }
        self.counts.retain(|_, count| *count > 0);
    }

    /// Looks once more for sockets of backends that have gone: one may have been led there in the last moment.
    pub fn look_again(&mut self) {
        self.vanished.seek_again();
    }

    /// The pool with its table in the kernel; `None` where there is no room for it.
    fn hold(&mut self, before: Option<Held>, pool: Pool) -> Option<Held> {
        let id = match before {
            Some(held) if held.pool == pool => return Some(held),
            Some(held) => {
                self.retired.push((held.table, held.slots));
                held.id
            }
            None => {
                self.next_pool += 1;
                self.next_pool
            }
        };
        let slots = pool.slots();
        let wanted = slots.len();
        if self.slots_used + wanted > SLOTS_MAX {
            self.slots_left_out += wanted;
            tracing::error!("more backends than the kernel's map holds; a service's port is not balanced");
            return None;
        }
        self.next_table = self.next_table.wrapping_add(1);
        let table = self.next_table;
        let mut count = 0;
        for value in slots {
            if let Err(error) = self.slots.insert(SlotKey { table, slot: count }, value, 0) {
                tracing::error!(%error, "the kernel's map takes no backends; a service's port is not balanced");
                self.slots_left_out += wanted;
                self.retired.push((table, count));
                return None;
            }
            count += 1;
            self.slots_used += 1;
        }
        Some(Held { pool, id, table, slots: count })
    }

    fn drop_retired(&mut self) {
        for (table, slots) in std::mem::take(&mut self.retired) {
            for slot in 0..slots {
                if let Err(error) = self.slots.remove(&SlotKey { table, slot }) {
                    tracing::debug!(%error, "taking a slot away");
                }
                self.slots_used -= 1;
            }
        }
    }

    fn wanted_members(&self) -> HashMap<MemberKey, u32> {
        let coming_back = self.pools.values().filter(|held| held.pool.affinity_seconds > 0);
        let members =
            coming_back.flat_map(|held| held.pool.backends.iter().map(|backend| (held.id, *backend)));
        members.map(|(pool, backend)| (MemberKey { pool, backend }, 1)).collect()
    }

    /// What is done with a frontend, and how the kernel is told so.
    fn decided(&self, address: End, decision: &Decision) -> ((Tier, TierReason), FrontendValue) {
        let held = decision.pool.as_ref().map(|name| self.pools.get(name));
        let decided = match held {
            Some(None) if address.protocol == TCP => (Tier::AgentL4, TierReason::NoRoom),
            Some(None) => (Tier::Direct, TierReason::NoRoom),
            _ => (decision.tier, decision.why),
        };
        (decided, self.value(decided, held.flatten()))
    }

    fn value(&self, (tier, why): (Tier, TierReason), held: Option<&Held>) -> FrontendValue {
        FrontendValue {
            tier: tier as u32,
            why: why as u32,
            pool: held.map_or(0, |held| held.id),
            table: held.map_or(0, |held| held.table),
            slots: held.map_or(0, |held| held.slots),
            choice: held.map_or(0, |held| held.pool.choice as u32),
            affinity_seconds: held.map_or(0, |held| held.pool.affinity_seconds),
            seed: self.seed,
        }
    }
}

/// Sockets by what became of their wish, readable from anywhere.
#[derive(Clone)]
pub struct ConnectCounters {
    kernel: Arc<PerCpuArray<MapData, u64>>,
    vanished: Arc<Sought>,
}

impl ConnectCounters {
    /// Reads them, summed over all CPUs.
    pub fn read(&self) -> Vec<(&'static str, u64)> {
        let sum = |reason: ConnectReason| match self.kernel.get(&(reason as u32), 0) {
            Ok(values) => values.iter().sum(),
            Err(_) => 0,
        };
        let decided = ConnectReason::ALL.into_iter().map(|reason| (reason.as_str(), sum(reason)));
        decided.chain(self.vanished.read()).collect()
    }
}

/// The same for as long as the machine runs, as the cookies are that it is mixed with.
fn seed() -> u32 {
    let boot = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    boot.iter().fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// Loads the programs; nothing is attached yet.
pub fn load(ebpf: &mut Ebpf) -> Result<(), CaptureError> {
    for name in PROGRAMS {
        program(ebpf, name).load().map_err(|source| load_error(name, source))?;
    }
    Ok(())
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut CgroupSockAddr {
    let program = ebpf.program_mut(name).expect("the object holds the program");
    program.try_into().expect("the program is one of socket addresses")
}

/// The map of balanced sockets.
pub type Sockets = KernelMap<MapData, SocketKey, SocketValue>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_is_found_wherever_it_is_mounted() {
        let check = |mounts: &str, expected: Option<&str>| {
            let found = CgroupChoice::Auto.directory(mounts).ok();
            assert_eq!(found, expected.map(PathBuf::from), "{mounts}");
        };
        check("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", Some("/sys/fs/cgroup"));
        check(
            "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\nnone /sys/fs/cgroup/unified cgroup2 rw 0 0\n",
            Some("/sys/fs/cgroup/unified"),
        );
        check("cgroup2 /trap tmpfs rw 0 0\n", None);
        check("", None);
        let named = CgroupChoice::Path("/x".into());
        assert_eq!(named.directory("").ok(), Some("/x".into()));
    }
}
