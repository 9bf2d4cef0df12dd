//! Limits that the kernel holds to at pods' interfaces and at the guard: what a table asks for, in the kernel's maps, and the
//! program that looks there. It is attached only while there are such limits; for Gateways the guard looks, where there is one.
//!
//! Fail-open: an agent that stops takes the program off; one that is killed leaves it with the last limits, pinned, and the next
//! one's takes its place with maps of its own, filled. The buckets alone are pinned and carried on.

mod counts;
mod keys;
mod lower;

pub use counts::LimitCounters;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use agent_common::limit::{ExemptKey, LIMIT_EXEMPT_MAX, LimitEnd, LimitSet};
use agent_common::policy::PolicyAddress;
use aya::Ebpf;
use aya::maps::MapData;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::programs::TcAttachType;

use super::guard::RuleNumbers;
use super::hook::Place;
use super::mirror::Mirror;
use super::pins::Pins;
use super::pod_hooks::{PodHook, PodHooks};
use super::programs::{Attach, map, mirror};
use super::{CaptureError, MapUse};
use crate::compile::RoutingTable;
use keys::Buckets;
use lower::{Lowered, lower};

/// Sources that are remembered unless something else is said: some 8 MiB.
pub const SOURCES_DEFAULT: u32 = 65_536;
/// The map that the next agent carries on.
pub const BUCKETS: &str = "LIMIT_BUCKETS";
/// The map that the guard looks into.
pub const GATEWAYS: &str = "LIMIT_GATEWAYS";
const EXEMPT: &str = "LIMIT_EXEMPT";
/// Verdicts on what enters the pod; policy comes first.
const LIMIT: Place =
    Place { side: TcAttachType::Egress, pin: "limit-egress", priority: 3, after: Some("guard_pod") };
/// The program and its hook.
pub const HOOKS: [PodHook; 1] = [("limit_pod", LIMIT)];

/// The program, its maps and attachments.
pub struct PodLimits {
    hooks: PodHooks,
    ends: Mirror<LimitEnd, LimitSet>,
    /// Of Gateways; `None`: nothing is guarded, and nobody would look there.
    gateways: Option<Mirror<LimitEnd, LimitSet>>,
    named: Mirror<PolicyAddress, u64>,
    exempt: Exempt,
    numbers: RuleNumbers,
    buckets: Arc<Buckets>,
    counters: LimitCounters,
    /// Whether the last table's limits could not all be written.
    incomplete: bool,
}

impl PodLimits {
    /// Loads the program; nothing is attached yet. `guarded`: whether the guard is on any interface.
    pub fn load(ebpf: &mut Ebpf, attach: Attach, guarded: bool) -> Result<Self, CaptureError> {
        let buckets = Arc::new(Buckets::of(ebpf)?);
        Ok(Self {
            hooks: PodHooks::load(ebpf, &HOOKS, attach, "limits are not held to")?,
            ends: mirror(ebpf, "LIMIT_ENDS")?,
            gateways: guarded.then(|| mirror(ebpf, GATEWAYS)).transpose()?,
            named: mirror(ebpf, "LIMIT_NAMED")?,
            exempt: Exempt { kernel: map(ebpf, EXEMPT)?, held: BTreeSet::new(), left_out: 0 },
            numbers: RuleNumbers::default(),
            counters: LimitCounters::new(map(ebpf, "LIMIT_COUNTS")?, Arc::clone(&buckets)),
            buckets,
            incomplete: false,
        })
    }

    /// Whether a table may ask for another thing than is written, where it is not the one before.
    pub fn concerns(&self, table: &RoutingTable) -> bool {
        let holds = self.is_active() || !self.exempt.held.is_empty() || self.named.len() > 0;
        self.incomplete || holds || self.limits_gateways() || table.limits.of_kernel().next().is_some()
    }

    /// Puts a table's limits in force.
    pub fn apply(&mut self, table: &RoutingTable) -> Result<(), CaptureError> {
        if !self.concerns(table) {
            return Ok(());
        }
        self.incomplete = true;
        let asked = lower::asked(table);
        for number in self.numbers.assign(asked.iter().map(|asked| &asked.title)) {
            self.counters.forget(number)?;
        }
        let lowered = lower(table, &asked, &self.numbers);
        self.write(&lowered)?;
        self.counters.set(&asked, &lowered, &self.numbers, self.buckets.count().unwrap_or_default());
        self.incomplete = false;
        let left_out: usize = self.map_use().iter().map(|map| map.left_out).sum();
        if left_out > 0 || lowered.crowded > 0 {
            tracing::error!(
                left_out,
                crowded = lowered.crowded,
                "limits of the kernel ask for more than its maps hold, or too many are about one address"
            );
        }
        Ok(())
    }

    fn write(&mut self, lowered: &Lowered) -> Result<(), CaptureError> {
        // Nobody meets a limit before it knows whom it does not hold for.
        self.exempt.add(&lowered.exempt)?;
        self.named.set(&lowered.named)?;
        self.ends.set(&lowered.ends)?;
        if let Some(gateways) = &mut self.gateways {
            gateways.set(&lowered.gateways)?;
        }
        self.exempt.keep(&lowered.exempt)
    }

    /// Limits what enters the pods behind these interfaces, by index, and no others.
    pub fn follow(&mut self, on: (&mut Ebpf, &mut Pins), pods: &BTreeMap<u32, String>) {
        let active = self.is_active();
        self.hooks.follow(on, pods, active);
    }

    /// Takes the program off.
    pub fn detach_all(&mut self) {
        self.hooks.detach_all();
    }

    /// Looks how many sources are remembered, for metrics.
    pub fn look_again(&self) {
        if self.is_active() || self.limits_gateways() {
            self.counters.count_keys(self.buckets.count().unwrap_or_default());
        }
    }

    /// What is counted, readable from anywhere.
    pub fn counters(&self) -> LimitCounters {
        self.counters.clone()
    }

    /// Interfaces that should have the program and do not, with the reason.
    pub fn failed(&self) -> impl Iterator<Item = &(String, String)> {
        self.hooks.failed()
    }

    /// How full the maps are. Of buckets as many as were there when somebody looked last.
    pub fn map_use(&self) -> Vec<MapUse> {
        let of_gateways = self.gateways.iter().map(Mirror::usage);
        let others = [
            self.ends.usage(),
            self.named.usage(),
            MapUse {
                name: EXEMPT,
                entries: self.exempt.held.len(),
                capacity: Exempt::CAPACITY,
                left_out: self.exempt.left_out,
            },
            MapUse {
                name: BUCKETS,
                entries: self.counters.keys(),
                capacity: self.buckets.capacity(),
                left_out: 0,
            },
        ];
        others.into_iter().chain(of_gateways).collect()
    }

    /// Whether the guard has limits to hold to.
    pub fn limits_gateways(&self) -> bool {
        self.gateways.as_ref().is_some_and(|gateways| gateways.len() > 0)
    }

    fn is_active(&self) -> bool {
        self.ends.len() > 0
    }
}

/// Networks that limits do not hold for, as the trie has them.
struct Exempt {
    kernel: LpmTrie<MapData, ExemptKey, u32>,
    held: BTreeSet<(u32, ExemptKey)>,
    left_out: usize,
}

impl Exempt {
    /// Older kernels need one place more than is used to change an entry of a full trie.
    const CAPACITY: usize = LIMIT_EXEMPT_MAX as usize - 1;

    /// Adds what is wanted, as far as there is room.
    fn add(&mut self, wanted: &BTreeSet<(u32, ExemptKey)>) -> Result<(), CaptureError> {
        self.left_out = 0;
        for one in wanted {
            if self.held.contains(one) {
                continue;
            }
            if self.held.len() >= Self::CAPACITY {
                self.left_out += 1;
                continue;
            }
            let inserted = self.kernel.insert(&Key::new(one.0, one.1), 1, 0);
            inserted.map_err(|source| CaptureError::Map { map: EXEMPT, source })?;
            self.held.insert(*one);
        }
        Ok(())
    }

    /// Takes away what is not wanted.
    fn keep(&mut self, wanted: &BTreeSet<(u32, ExemptKey)>) -> Result<(), CaptureError> {
        let gone: Vec<_> = self.held.difference(wanted).copied().collect();
        for one in gone {
            let removed = self.kernel.remove(&Key::new(one.0, one.1));
            removed.map_err(|source| CaptureError::Map { map: EXEMPT, source })?;
            self.held.remove(&one);
        }
        if self.left_out > 0 { self.add(wanted) } else { Ok(()) }
    }
}
