//! The policy maps, written generation by generation: a pod leads to verdicts that are complete, of the last table or of
//! this one, never to a mixture. What an earlier agent has left in them is such a generation as well: it is in force until
//! this agent's first table takes its place.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use agent_common::policy::{
    CLOSED, HIDDEN_SLOT, POLICY_PODS_MAX, POLICY_SLOTS, PolicyAddress, PolicyPod, PolicyRuleKey,
    PolicyRuleValue, PolicySourceKey, SOURCE_HEAD_BITS, TENTHS, policy_address,
};
use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap as KernelMap, MapData, MapError, PerCpuArray};

use super::guard::kernel_now_ns;
use super::lowering::{Lowered, Room, captured, ip_address, lower, proven_address};
use super::programs::map;
use super::{CaptureError, MapUse, kernel_call};
use crate::compile::{Denied, RoutingTable};
use crate::model::Cidr;

/// The maps that the next agent carries on.
pub const MAPS: [&str; 4] = ["POLICY_PODS", "POLICY_SOURCES", "POLICY_RULES", "POLICY_FLOWS"];

/// The maps and what is in them.
pub struct KernelPolicy {
    pods: KernelMap<MapData, PolicyAddress, PolicyPod>,
    sources: LpmTrie<MapData, PolicySourceKey, u32>,
    rules: KernelMap<MapData, PolicyRuleKey, PolicyRuleValue>,
    drops: PolicyDrops,
    /// This node's name, as Pod documents call it.
    node: String,
    /// What was written last.
    written: Lowered,
    /// Pods that the agent takes connections for, as written last.
    captured: BTreeSet<IpAddr>,
    generation: Generation,
    revision: u32,
    /// Whether that failed halfway, so that the next table is written whatever it is.
    incomplete: bool,
    /// Pods whose entry is in the map, and since when, as the programs have it.
    held: BTreeMap<IpAddr, u32>,
    /// What an earlier agent has left and nobody leads to once the first table is in force.
    inherited: Inherited,
}

/// Where a generation is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Generation {
    side: u8,
    /// The number of its first set.
    first_set: u32,
}

impl Generation {
    /// One after which the next meets nothing of what is in use.
    fn beside(sides: &BTreeSet<u8>, last_set: Option<u32>) -> Self {
        let free = (0..=u8::MAX).find(|side| !sides.contains(side)).unwrap_or_default();
        Self { side: free.wrapping_sub(1), first_set: last_set.map_or(0, |last| last + 1) }
    }

    fn next_side(self) -> u8 {
        self.side.wrapping_add(1)
    }
}

/// Entries of an earlier agent: one generation, or two where it was killed between them.
#[derive(Default)]
struct Inherited {
    sources: Vec<Key<PolicySourceKey>>,
    rules: Vec<PolicyRuleKey>,
}

/// What is enforced, and what for lack of room is not enforced as written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PolicyStatus {
    /// Addresses of this node's pods under policy.
    pub pods: usize,
    /// Those that are closed to everybody because their verdicts found no room.
    pub closed: usize,
    /// Those that found no room themselves: the kernel lets everything through to them.
    pub left_out: usize,
    /// Those at which plaintext is refused, at some port.
    pub strict: usize,
    /// Whether what is refused stays refused when the agent is gone.
    pub outlives: bool,
}

impl KernelPolicy {
    /// Takes the maps of a loaded object, which an earlier agent may have filled, for a node of this name.
    pub fn new(ebpf: &mut Ebpf, node: &str) -> Result<Self, CaptureError> {
        let pods: KernelMap<MapData, PolicyAddress, PolicyPod> = map(ebpf, "POLICY_PODS")?;
        let sources: LpmTrie<MapData, PolicySourceKey, u32> = map(ebpf, "POLICY_SOURCES")?;
        let rules: KernelMap<MapData, PolicyRuleKey, PolicyRuleValue> = map(ebpf, "POLICY_RULES")?;
        let found: Vec<(PolicyAddress, PolicyPod)> =
            pods.iter().collect::<Result<_, _>>().map_err(unread("POLICY_PODS"))?;
        let inherited = Inherited {
            sources: sources.keys().collect::<Result<_, _>>().map_err(unread("POLICY_SOURCES"))?,
            rules: rules.keys().collect::<Result<_, _>>().map_err(unread("POLICY_RULES"))?,
        };
        let sides = inherited.sources.iter().map(|key| key.data().side);
        let sides = sides.chain(found.iter().map(|(_, pod)| pod.side)).collect();
        let sets = found.iter().map(|(_, pod)| pod.set).filter(|set| *set != CLOSED);
        let last_set = inherited.rules.iter().map(|key| key.set).chain(sets).max();
        Ok(Self {
            pods,
            sources,
            rules,
            drops: PolicyDrops { counts: Arc::new(map(ebpf, "POLICY_DROPS")?), slots: Arc::default() },
            node: node.to_owned(),
            written: Lowered::default(),
            captured: BTreeSet::new(),
            generation: Generation::beside(&sides, last_set),
            revision: 0,
            // An earlier agent's rules are no table of this one.
            incomplete: !(found.is_empty() && inherited.sources.is_empty() && inherited.rules.is_empty()),
            held: found.iter().map(|(pod, value)| (ip_address(*pod), value.since)).collect(),
            inherited,
        })
    }

    /// Whether any pod is under policy, or should be.
    pub fn is_active(&self) -> bool {
        !self.held.is_empty() || !self.written.pods.is_empty()
    }

    /// A number that changes whenever pods get other rules.
    pub fn revision(&self) -> u32 {
        self.revision
    }

    /// Pods that the agent takes connections for.
    pub fn captured(&self) -> &BTreeSet<IpAddr> {
        &self.captured
    }

    /// What was refused, readable from anywhere.
    pub fn drops(&self) -> PolicyDrops {
        self.drops.clone()
    }

    /// Puts a table's policies in force. On an error every pod under policy is closed: what was denied stays denied.
    pub fn apply(&mut self, table: &RoutingTable) -> Result<PolicyStatus, CaptureError> {
        let mut lowered = lower(table, &self.node, Room::default());
        let captured = captured(table, &lowered, &self.node);
        if !self.incomplete && lowered == self.written && captured == self.captured {
            return Ok(self.status());
        }
        self.captured = captured;
        let old = self.generation;
        let next = Generation { side: old.next_side(), first_set: self.next_set() };
        let prepared = self.write(&lowered, next);
        if prepared.is_err() {
            lowered.pods.values_mut().for_each(|set| *set = CLOSED);
        }
        let switched = self.switch(&lowered, next);
        let written = std::mem::replace(&mut self.written, lowered);
        self.generation = next;
        self.revision = self.revision.wrapping_add(1);
        self.clear(&written, old);
        self.drops.free_unused(&self.written);
        let outcome = prepared.and(switched);
        self.incomplete = outcome.is_err();
        outcome.map(|()| self.status())
    }

    /// How full the maps are. Of sources and verdicts two generations are there while one replaces the other, so a table may
    /// take half of the kernel's maps, and that is their capacity.
    pub fn map_use(&self) -> [MapUse; 3] {
        let Lowered { pods, sources, proven, rules, left_out, .. } = &self.written;
        let Room { sources: most_sources, rules: most_rules } = Room::default();
        [
            MapUse {
                name: "POLICY_PODS",
                entries: self.held.len(),
                capacity: POLICY_PODS_MAX as usize,
                left_out: pods.keys().filter(|pod| !self.held.contains_key(pod)).count(),
            },
            MapUse {
                name: "POLICY_SOURCES",
                entries: sources.len() + proven.len() + self.inherited.sources.len(),
                capacity: most_sources,
                left_out: left_out.sources,
            },
            MapUse {
                name: "POLICY_RULES",
                entries: rules.len() + self.inherited.rules.len(),
                capacity: most_rules,
                left_out: left_out.rules,
            },
        ]
    }

    fn status(&self) -> PolicyStatus {
        let pods = self.written.pods.len();
        let closed = self.written.pods.values().filter(|set| **set == CLOSED).count();
        let left_out = pods.saturating_sub(self.held.len());
        PolicyStatus { pods, closed, left_out, strict: self.written.strict, outlives: false }
    }

    /// A number above all sets in use; after billions of them it begins anew, long after the first have gone.
    fn next_set(&self) -> u32 {
        let sets = self.written.rules.keys().map(|key| key.set).max().map_or(0, |last| last + 1);
        let next = self.generation.first_set + sets;
        if next > u32::MAX / 2 { 0 } else { next }
    }

    /// Writes what no pod leads to yet.
    fn write(&mut self, lowered: &Lowered, at: Generation) -> Result<(), CaptureError> {
        for (key, class) in source_keys(at.side, lowered) {
            let inserted = self.sources.insert(&key, class, 0);
            inserted.map_err(|source| CaptureError::Map { map: "POLICY_SOURCES", source })?;
        }
        for (key, verdict) in &lowered.rules {
            let slot = verdict.denied.as_ref().map_or(0, |denied| self.drops.slot(denied));
            let value = PolicyRuleValue { access: verdict.access as u32, slot };
            let inserted = self.rules.insert(rule_key(at, *key), value, 0);
            inserted.map_err(|source| CaptureError::Map { map: "POLICY_RULES", source })?;
        }
        Ok(())
    }

    /// Leads the pods to it, one by one, and lets go of those without policy. One that fails does not keep the others.
    fn switch(&mut self, lowered: &Lowered, at: Generation) -> Result<(), CaptureError> {
        let mut outcome = Ok(());
        let error = |source| CaptureError::Map { map: "POLICY_PODS", source };
        let gone: Vec<_> = self.held.keys().filter(|pod| !lowered.pods.contains_key(pod)).copied().collect();
        for pod in gone {
            match self.pods.remove(&policy_address(pod)).map_err(error) {
                Ok(()) => drop(self.held.remove(&pod)),
                failed => outcome = failed,
            }
        }
        let now = tenths_now();
        for (pod, set) in &lowered.pods {
            let since = self.held.get(pod).copied().unwrap_or(now);
            let set = if *set == CLOSED { CLOSED } else { at.first_set + set };
            let captured = u8::from(self.captured.contains(pod));
            let proofs = u8::from(!lowered.proven.is_empty());
            let value = PolicyPod { set, side: at.side, captured, proofs, padding: 0, since };
            match self.pods.insert(policy_address(*pod), value, 0) {
                Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::E2BIG) => {}
                Ok(()) => drop(self.held.insert(*pod, since)),
                failed => outcome = failed.map_err(error),
            }
        }
        outcome
    }

    /// Takes away what no pod leads to any more. Entries that are not there were never written.
    fn clear(&mut self, lowered: &Lowered, at: Generation) {
        let Inherited { mut sources, mut rules } = std::mem::take(&mut self.inherited);
        sources.extend(source_keys(at.side, lowered).map(|(key, _)| key));
        rules.extend(lowered.rules.keys().map(|key| rule_key(at, *key)));
        if sources.is_empty() && rules.is_empty() {
            return;
        }
        // A run that is under way may have read a pod's entry before that was switched, and look the rest up only now. Where
        // the kernel does not let us wait for it, such a packet is refused, by the order in which things go.
        if let Err(error) = kernel_call::wait_for_program_runs() {
            tracing::debug!(%error, "packets under way while policies change may be refused");
        }
        for key in least_exact_first(rules) {
            let _ = self.rules.remove(&key);
        }
        for key in sources {
            let _ = self.sources.remove(&key);
        }
    }
}

/// The time, as the programs count it.
fn tenths_now() -> u32 {
    u32::try_from(kernel_now_ns() / TENTHS).unwrap_or(u32::MAX)
}

/// Rules in an order in which they can go one by one while somebody looks them up: what was found stays found or nothing is,
/// as a look-up goes from the most exact to the least.
fn least_exact_first(mut rules: Vec<PolicyRuleKey>) -> Vec<PolicyRuleKey> {
    rules.sort_by_key(|key| (key.class != 0, key.port != 0));
    rules
}

fn unread(map: &'static str) -> impl Fn(MapError) -> CaptureError {
    move |source| CaptureError::Map { map, source }
}

/// The classes of sources, as the map has them.
fn source_keys(side: u8, lowered: &Lowered) -> impl Iterator<Item = (Key<PolicySourceKey>, u32)> {
    let key = move |source, prefix| {
        Key::new(SOURCE_HEAD_BITS + u32::from(prefix), PolicySourceKey { side, source })
    };
    let ranges = lowered.sources.iter();
    let ranges =
        ranges.map(move |(cidr, class)| (key(policy_address(cidr.network()), cidr.prefix()), *class));
    let proven = lowered.proven.iter();
    ranges
        .chain(proven.map(move |(pod, class)| (key(proven_address(*pod), Cidr::host(*pod).prefix()), *class)))
}

fn rule_key(at: Generation, key: PolicyRuleKey) -> PolicyRuleKey {
    PolicyRuleKey { set: at.first_set + key.set, ..key }
}

/// Why the kernel has refused packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DropCause {
    /// A policy says so.
    Rule(Denied),
    /// Their pod is closed as its verdicts found no room, or too many rules are counted apart.
    NoRoom,
    /// They hide their ports.
    HiddenPorts,
}

/// What the kernel has refused, by rule.
#[derive(Clone)]
pub struct PolicyDrops {
    counts: Arc<PerCpuArray<MapData, u64>>,
    slots: Arc<Mutex<Slots>>,
}

/// Which rule is counted where. A rule that goes lets go of its slot only where slots run short; what it counted stays, so
/// that no count ever goes back.
#[derive(Debug, Default)]
struct Slots {
    of: HashMap<Denied, u32>,
    rules: BTreeMap<u32, Denied>,
    /// Slots that had another rule before, with what had been counted there when it went.
    free: Vec<(u32, u64)>,
    /// What was counted in a slot before its rule had it.
    before: HashMap<u32, u64>,
    /// What rules have counted in slots that they no longer have.
    past: HashMap<Denied, u64>,
}

impl Slots {
    /// Slot 0 is for what has no rule, and for the rules beyond the last slot.
    fn slot(&mut self, denied: &Denied) -> u32 {
        if let Some(slot) = self.of.get(denied) {
            return *slot;
        }
        let fresh = || u32::try_from(self.of.len() + 1).ok().filter(|next| *next < HIDDEN_SLOT);
        let Some((slot, before)) = self.free.pop().or_else(|| Some((fresh()?, 0))) else { return 0 };
        self.of.insert(denied.clone(), slot);
        self.rules.insert(slot, denied.clone());
        self.before.insert(slot, before);
        slot
    }

    /// Frees the slots of rules that are gone, where more than half of all are taken.
    fn free_unused(&mut self, used: &HashSet<&Denied>, count: impl Fn(u32) -> u64) {
        if self.of.len() < POLICY_SLOTS as usize / 2 {
            return;
        }
        for (denied, slot) in self.of.extract_if(|denied, _| !used.contains(denied)) {
            let counted = count(slot);
            let own = counted.saturating_sub(self.before.remove(&slot).unwrap_or_default());
            *self.past.entry(denied).or_default() += own;
            self.rules.remove(&slot);
            self.free.push((slot, counted));
        }
    }

    /// What each rule has counted, wherever it was counted.
    fn read(&self, count: impl Fn(u32) -> u64) -> HashMap<Denied, u64> {
        let mut counts = self.past.clone();
        for (denied, slot) in &self.of {
            let before = self.before.get(slot).copied().unwrap_or_default();
            *counts.entry(denied.clone()).or_default() += count(*slot).saturating_sub(before);
        }
        counts
    }
}

impl PolicyDrops {
    fn slot(&self, denied: &Denied) -> u32 {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).slot(denied)
    }

    fn free_unused(&self, lowered: &Lowered) {
        let used = lowered.rules.values().filter_map(|verdict| verdict.denied.as_ref()).collect();
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.free_unused(&used, |slot| self.count(slot));
    }

    /// Packets counted in a slot, over all CPUs.
    fn count(&self, slot: u32) -> u64 {
        self.counts.get(&slot, 0).map_or(0, |values| values.iter().sum())
    }

    /// What is counted in a slot.
    pub(super) fn cause(&self, slot: u32) -> DropCause {
        if slot == HIDDEN_SLOT {
            return DropCause::HiddenPorts;
        }
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.rules.get(&slot).cloned().map_or(DropCause::NoRoom, DropCause::Rule)
    }

    /// Packets refused, by cause.
    pub fn read(&self) -> Vec<(DropCause, u64)> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let rules = slots.read(|slot| self.count(slot));
        let rules = rules.into_iter().map(|(denied, count)| (DropCause::Rule(denied), count));
        let others = [(DropCause::NoRoom, 0), (DropCause::HiddenPorts, HIDDEN_SLOT)];
        rules.chain(others.map(|(cause, slot)| (cause, self.count(slot)))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::DeniedBy;
    use crate::model::ObjectName;

    #[test]
    fn the_first_table_meets_nothing_of_an_earlier_agent() {
        let sides = |sides: &[u8]| sides.iter().copied().collect::<BTreeSet<u8>>();
        // (sides in use, last set) -> (the first table's side, its first set)
        for ((used, last), expected) in [
            ((vec![], None), (0, 0)),
            ((vec![0], Some(4)), (1, 5)),
            ((vec![1], Some(0)), (0, 1)),
            ((vec![0, 1], Some(7)), (2, 8)),
            ((vec![255], None), (0, 0)),
            (((0..=254).collect(), None), (255, 0)),
        ] {
            let at = Generation::beside(&sides(&used), last);
            assert_eq!((at.next_side(), at.first_set), expected, "{used:?} {last:?}");
        }
    }

    /// A look-up asks at four moments; between any two of them, any number of rules may have gone.
    #[test]
    fn rules_that_go_allow_nobody_whom_they_refused() {
        let key = |class, port| PolicyRuleKey { set: 1, class, port };
        let asked = [key(2, 80), key(2, 0), key(0, 80), key(0, 0)];
        // Every combination of the rules that a look-up can meet, with others between them.
        for present in 0..16u32 {
            let rules = (0..4).filter(|bit| present & (1 << bit) != 0).map(|bit| asked[bit]);
            let going = least_exact_first(rules.chain([key(3, 80), key(0, 81), key(3, 0)]).collect());
            let found = |gone: [usize; 4]| {
                let there =
                    |(at, gone): (usize, usize)| going[gone..].contains(&asked[at]).then_some(asked[at]);
                gone.into_iter().enumerate().find_map(there)
            };
            let whole = found([0; 4]);
            let end = going.len();
            for a in 0..=end {
                for (b, c, d) in
                    (a..=end).flat_map(|b| (b..=end).flat_map(move |c| (c..=end).map(move |d| (b, c, d))))
                {
                    let answer = found([a, b, c, d]);
                    assert!(answer.is_none() || answer == whole, "{going:?} at {a} {b} {c} {d}: {answer:?}");
                }
            }
        }
    }

    #[test]
    fn rules_keep_their_slots_and_the_last_share_one() {
        let denied = |index| Denied { policy: ObjectName::new("a", "b"), by: DeniedBy::Rule(index) };
        let mut slots = Slots::default();
        for index in 0..POLICY_SLOTS as usize + 10 {
            let next = u32::try_from(index + 1).expect("few");
            let expected = if next >= HIDDEN_SLOT { 0 } else { next };
            assert_eq!(slots.slot(&denied(index)), expected, "{index}");
        }
        assert_eq!(slots.slot(&denied(7)), 8);
    }

    #[test]
    fn slots_of_rules_that_are_gone_serve_others_and_no_count_goes_back() {
        let denied = |index| Denied { policy: ObjectName::new("a", "b"), by: DeniedBy::Rule(index) };
        let mut slots = Slots::default();
        slots.slot(&denied(0));
        slots.free_unused(&HashSet::new(), |_| 5);
        assert_eq!(slots.slot(&denied(0)), 1, "there is room");
        for index in 0..POLICY_SLOTS as usize {
            slots.slot(&denied(index));
        }
        assert_eq!(slots.slot(&denied(9999)), 0, "all are taken");
        let (kept, gone) = (denied(3), denied(4));
        slots.free_unused(&HashSet::from([&kept]), |slot| u64::from(slot) * 10);
        assert_eq!(slots.slot(&kept), 4);
        let again = slots.slot(&denied(9999));
        assert!(again != 0 && again != 4, "slot {again}");
        // One packet more in every slot: what was counted before belongs to the rules that were there.
        let counts = slots.read(|slot| u64::from(slot) * 10 + 1);
        assert_eq!((counts[&kept], counts[&gone], counts[&denied(9999)]), (41, 50, 1));
        // A rule that comes back counts on.
        let slot = slots.slot(&gone);
        assert_eq!(slots.read(|other| u64::from(other) * 10 + u64::from(other == slot) * 3)[&gone], 53);
    }
}
