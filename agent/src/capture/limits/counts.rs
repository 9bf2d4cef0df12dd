//! What limits of the kernel have let through and refused, by document and limit, readable from anywhere.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent_common::limit::{LIMIT_SLOTS, LimitCounts};
use aya::maps::{MapData, MapError, PerCpuArray, PerCpuValues};

use super::keys::Buckets;
use super::lower::{Asked, Lowered};
use crate::capture::CaptureError;
use crate::capture::guard::RuleNumbers;
use crate::model::ObjectName;
use crate::telemetry::KernelLimitReading;

/// A document and the name of a limit in it.
type Name = (ObjectName, Arc<str>);

/// What the program counts, and what is known of the limits.
#[derive(Clone)]
pub struct LimitCounters {
    counts: Arc<Mutex<PerCpuArray<MapData, LimitCounts>>>,
    buckets: Arc<Buckets>,
    known: Arc<Mutex<Known>>,
}

#[derive(Default)]
struct Known {
    limits: HashMap<Name, OfLimit>,
    /// Limits by slot, but for those that share one.
    slots: HashMap<u32, Name>,
    /// Buckets of each limit, by its id.
    keys: HashMap<u64, usize>,
}

struct OfLimit {
    id: u64,
    slot: u32,
    ends: usize,
    /// Of Gateways.
    listeners: usize,
    /// Buckets that were there before the program counted those that it makes.
    inherited: usize,
    /// The most that were shown as forgotten.
    evicted: AtomicU64,
}

impl LimitCounters {
    pub(super) fn new(counts: PerCpuArray<MapData, LimitCounts>, buckets: Arc<Buckets>) -> Self {
        Self { counts: Arc::new(Mutex::new(counts)), buckets, known: Arc::default() }
    }

    /// What a limit has done; `None`: it is not in force.
    pub fn read(&self, policy: &ObjectName, limit: &Arc<str>) -> Option<KernelLimitReading> {
        let known = self.known();
        let of = known.limits.get(&(policy.clone(), Arc::clone(limit)))?;
        let LimitCounts { by_outcome, made } = self.counted(of.slot);
        let keys = known.keys.get(&of.id).copied().unwrap_or_default();
        let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let evicted = number(of.inherited).saturating_add(made).saturating_sub(number(keys));
        // Sources come while those that are there are counted; what was shown once is not taken back.
        let evicted = of.evicted.fetch_max(evicted, Ordering::Relaxed).max(evicted);
        Some(KernelLimitReading { by_outcome, keys, evicted, ends: of.ends, listeners: of.listeners })
    }

    /// Of a slot, the document and the limit.
    pub(in crate::capture) fn name(&self, slot: u32) -> Option<(ObjectName, Arc<str>)> {
        self.known().slots.get(&slot).cloned()
    }

    /// Looks anew how many sources are remembered.
    pub fn look(&self) {
        if let Ok(keys) = self.buckets.count() {
            self.count_keys(keys);
        }
    }

    pub(super) fn count_keys(&self, keys: HashMap<u64, usize>) {
        self.known().keys = keys;
    }

    /// How many sources were remembered, of all limits.
    pub(super) fn keys(&self) -> usize {
        self.known().keys.values().sum()
    }

    pub(super) fn set(
        &self,
        asked: &[Asked<'_>],
        lowered: &Lowered,
        numbers: &RuleNumbers,
        keys: HashMap<u64, usize>,
    ) {
        let mut known = self.known();
        let mut limits = HashMap::new();
        let mut slots = HashMap::new();
        for one in asked {
            let (name, slot) = ((one.policy.clone(), Arc::clone(&one.limit.name)), numbers.of(&one.title));
            let of = |all: &BTreeMap<u64, usize>| all.get(&one.id).copied().unwrap_or_default();
            let (ends, listeners) = (of(&lowered.used), of(&lowered.listened));
            let (inherited, evicted) = match known.limits.get(&name) {
                Some(before) if before.id == one.id => {
                    (before.inherited, before.evicted.load(Ordering::Relaxed))
                }
                _ => (keys.get(&one.id).copied().unwrap_or_default(), 0),
            };
            let evicted = AtomicU64::new(evicted);
            limits.insert(name.clone(), OfLimit { id: one.id, slot, ends, listeners, inherited, evicted });
            slots.insert(slot, name);
        }
        slots.remove(&(LIMIT_SLOTS - 1));
        *known = Known { limits, slots, keys };
    }

    /// Begins to count in a slot anew.
    pub(super) fn forget(&self, slot: u32) -> Result<(), CaptureError> {
        let error = |source| CaptureError::Map { map: "LIMIT_COUNTS", source };
        let cpus = aya::util::nr_cpus().map_err(|(_, io)| error(MapError::IoError(io)))?;
        let zeros = PerCpuValues::try_from(vec![LimitCounts::default(); cpus]);
        let zeros = zeros.map_err(|io| error(MapError::IoError(io)))?;
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).set(slot, zeros, 0).map_err(error)
    }

    /// Over all processors.
    fn counted(&self, slot: u32) -> LimitCounts {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sum = LimitCounts::default();
        let Ok(values) = counts.get(&slot, 0) else { return sum };
        for one in values.iter() {
            for (sum, count) in sum.by_outcome.iter_mut().zip(one.by_outcome) {
                *sum += count;
            }
            sum.made += one.made;
        }
        sum
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
