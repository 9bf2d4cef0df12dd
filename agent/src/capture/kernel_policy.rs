//! The policy maps, written generation by generation: a pod leads to verdicts that are complete, of the last table or of
//! this one, never to a mixture.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use agent_common::policy::{
    CLOSED, POLICY_SLOTS, PolicyAddress, PolicyPod, PolicyRuleKey, PolicyRuleValue, PolicySourceKey,
    SOURCE_HEAD_BITS,
};
use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap as KernelMap, MapData, MapError, PerCpuArray};

use super::CaptureError;
use super::lowering::{Lowered, Room, lower, policy_address};
use super::programs::map;
use crate::compile::{Denied, RoutingTable};
use crate::model::Cidr;

/// The maps and what is in them.
pub struct KernelPolicy {
    pods: KernelMap<MapData, PolicyAddress, PolicyPod>,
    sources: LpmTrie<MapData, PolicySourceKey, u32>,
    rules: KernelMap<MapData, PolicyRuleKey, PolicyRuleValue>,
    drops: PolicyDrops,
    /// What was written last.
    written: Lowered,
    generation: Generation,
    /// Whether that failed halfway, so that the next table is written whatever it is.
    incomplete: bool,
    /// Pods whose entry is in the map.
    held: BTreeSet<IpAddr>,
}

/// Where a generation is.
#[derive(Debug, Clone, Copy, Default)]
struct Generation {
    side: u8,
    /// The number of its first set.
    first_set: u32,
}

/// What is enforced, and what for lack of room is not enforced as written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PolicyStatus {
    /// Addresses of pods under policy.
    pub pods: usize,
    /// Those that are closed to everybody because their verdicts found no room.
    pub closed: usize,
    /// Those that found no room themselves: the kernel lets everything through to them.
    pub left_out: usize,
}

impl KernelPolicy {
    /// Takes the maps of a loaded object.
    pub fn new(ebpf: &mut Ebpf) -> Result<Self, CaptureError> {
        Ok(Self {
            pods: map(ebpf, "POLICY_PODS")?,
            sources: map(ebpf, "POLICY_SOURCES")?,
            rules: map(ebpf, "POLICY_RULES")?,
            drops: PolicyDrops { counts: Arc::new(map(ebpf, "POLICY_DROPS")?), slots: Arc::default() },
            written: Lowered::default(),
            generation: Generation::default(),
            incomplete: false,
            held: BTreeSet::new(),
        })
    }

    /// Whether any pod is under policy.
    pub fn is_active(&self) -> bool {
        !self.held.is_empty()
    }

    /// What was refused, readable from anywhere.
    pub fn drops(&self) -> PolicyDrops {
        self.drops.clone()
    }

    /// Puts a table's policies in force. On an error every pod under policy is closed: what was denied stays denied.
    pub fn apply(&mut self, table: &RoutingTable) -> Result<PolicyStatus, CaptureError> {
        let mut lowered = lower(table, Room::default());
        if !self.incomplete && lowered == self.written {
            return Ok(self.status());
        }
        let old = self.generation;
        let next = Generation { side: 1 - old.side, first_set: self.next_set() };
        let prepared = self.write(&lowered, next);
        if prepared.is_err() {
            lowered.pods.values_mut().for_each(|set| *set = CLOSED);
        }
        let switched = self.switch(&lowered, next);
        let written = std::mem::replace(&mut self.written, lowered);
        self.generation = next;
        self.clear(&written, old);
        let outcome = prepared.and(switched);
        self.incomplete = outcome.is_err();
        outcome.map(|()| self.status())
    }

    fn status(&self) -> PolicyStatus {
        let pods = self.written.pods.len();
        let closed = self.written.pods.values().filter(|set| **set == CLOSED).count();
        PolicyStatus { pods, closed, left_out: pods.saturating_sub(self.held.len()) }
    }

    /// A number above all sets in use; after billions of them it begins anew, long after the first have gone.
    fn next_set(&self) -> u32 {
        let sets = self.written.rules.keys().map(|key| key.set).max().map_or(0, |last| last + 1);
        let next = self.generation.first_set + sets;
        if next > u32::MAX / 2 { 0 } else { next }
    }

    /// Writes what no pod leads to yet.
    fn write(&mut self, lowered: &Lowered, at: Generation) -> Result<(), CaptureError> {
        for (cidr, class) in &lowered.sources {
            let inserted = self.sources.insert(&source_key(at.side, *cidr), class, 0);
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

    /// Leads the pods to it, one by one, and lets go of those without policy.
    fn switch(&mut self, lowered: &Lowered, at: Generation) -> Result<(), CaptureError> {
        let error = |source| CaptureError::Map { map: "POLICY_PODS", source };
        let gone: Vec<_> = self.held.iter().filter(|pod| !lowered.pods.contains_key(pod)).copied().collect();
        for pod in gone {
            self.pods.remove(&policy_address(pod)).map_err(error)?;
            self.held.remove(&pod);
        }
        for (pod, set) in &lowered.pods {
            let set = if *set == CLOSED { CLOSED } else { at.first_set + set };
            let value = PolicyPod { set, side: at.side, padding: [0; 3] };
            match self.pods.insert(policy_address(*pod), value, 0) {
                Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::E2BIG) => {}
                result => {
                    result.map_err(error)?;
                    self.held.insert(*pod);
                }
            }
        }
        Ok(())
    }

    /// Takes away what no pod leads to any more. Entries that are not there were never written.
    fn clear(&mut self, lowered: &Lowered, at: Generation) {
        for cidr in lowered.sources.keys() {
            let _ = self.sources.remove(&source_key(at.side, *cidr));
        }
        for key in lowered.rules.keys() {
            let _ = self.rules.remove(&rule_key(at, *key));
        }
    }
}

fn source_key(side: u8, cidr: Cidr) -> Key<PolicySourceKey> {
    let source = policy_address(cidr.network());
    Key::new(SOURCE_HEAD_BITS + u32::from(cidr.prefix()), PolicySourceKey { side, source })
}

fn rule_key(at: Generation, key: PolicyRuleKey) -> PolicyRuleKey {
    PolicyRuleKey { set: at.first_set + key.set, ..key }
}

/// What the kernel has refused, by rule.
#[derive(Clone)]
pub struct PolicyDrops {
    counts: Arc<PerCpuArray<MapData, u64>>,
    slots: Arc<Mutex<Slots>>,
}

/// Which rule is counted where. A rule keeps its slot for good, so that no count ever goes back.
#[derive(Debug, Default)]
struct Slots {
    of: HashMap<Denied, u32>,
    rules: BTreeMap<u32, Denied>,
}

impl Slots {
    /// Slot 0 is for what has no rule, and for the rules beyond the last slot.
    fn slot(&mut self, denied: &Denied) -> u32 {
        if let Some(slot) = self.of.get(denied) {
            return *slot;
        }
        let next = u32::try_from(self.of.len()).map_or(POLICY_SLOTS, |taken| taken + 1);
        if next >= POLICY_SLOTS {
            return 0;
        }
        self.of.insert(denied.clone(), next);
        self.rules.insert(next, denied.clone());
        next
    }
}

impl PolicyDrops {
    fn slot(&self, denied: &Denied) -> u32 {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).slot(denied)
    }

    /// The rule that is counted in a slot; `None`: none of its own.
    pub(super) fn rule(&self, slot: u32) -> Option<Denied> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).rules.get(&slot).cloned()
    }

    /// Packets refused, summed over all CPUs; `None`: by no rule of its own.
    pub fn read(&self) -> Vec<(Option<Denied>, u64)> {
        let sum = |slot: u32| self.counts.get(&slot, 0).map_or(0, |values| values.iter().sum());
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let rules = slots.rules.iter().map(|(slot, denied)| (Some(denied.clone()), sum(*slot)));
        rules.chain([(None, sum(0))]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;

    #[test]
    fn rules_keep_their_slots_and_the_last_share_one() {
        let denied = |index| Denied { policy: ObjectName::new("a", "b"), rule: Some(index) };
        let mut slots = Slots::default();
        for index in 0..POLICY_SLOTS as usize + 10 {
            let expected = u32::try_from(index + 1).expect("few").checked_rem(POLICY_SLOTS);
            let expected = if index + 1 >= POLICY_SLOTS as usize { Some(0) } else { expected };
            assert_eq!(Some(slots.slot(&denied(index))), expected, "{index}");
        }
        assert_eq!(slots.slot(&denied(7)), 8);
    }
}
