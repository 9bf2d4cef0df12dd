//! The kernel's limits on the host: what their maps hold, in ordinary maps that the shared functions judge by, to be held against what the
//! kernel's programs say of the same frames.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;

use agent_common::guard::advance;
use agent_common::limit::{
    Apart, EXEMPT_HEAD_BITS, ExemptKey, KernelLimit, LimitCounts, LimitEnd, LimitKey, LimitMaps, LimitSet,
    Outcome, Taken,
};
use agent_common::policy::{PolicyAddress, policy_address};
use anyhow::{Context, Result, ensure};
use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap as KernelMap, MapData, PerCpuArray};
use aya::programs::ProgramError;

/// No token comes while a test runs.
pub const DAY: u64 = 24 * 3_600_000_000_000;
/// The identifier of [`limit`] in slot 1, whose exempt sources a host has.
const EXEMPTING: u64 = 8;

/// What the maps hold.
#[derive(Debug, Default)]
pub struct LimitHost {
    /// What is limited.
    pub ends: HashMap<LimitEnd, LimitSet>,
    /// Identities by pod.
    pub named: HashMap<PolicyAddress, u64>,
    /// What was spent.
    pub buckets: RefCell<HashMap<LimitKey, u64>>,
    exempt: HashSet<ExemptKey>,
    counts: RefCell<HashMap<u32, [u64; Outcome::ALL.len()]>>,
}

impl LimitMaps for LimitHost {
    fn is_exempt(&self, key: &ExemptKey) -> bool {
        self.exempt.contains(key)
    }

    fn identity(&self, source: &PolicyAddress) -> Option<u64> {
        self.named.get(source).copied()
    }

    fn has_token(&self, key: &LimitKey, limit: &KernelLimit) -> bool {
        let bucket = self.buckets.borrow().get(key).copied().unwrap_or(0);
        advance(bucket, DAY, limit.interval_ns, limit.whole_ns).1
    }

    fn take(&self, key: &LimitKey, limit: &KernelLimit) -> Taken {
        let mut buckets = self.buckets.borrow_mut();
        let bucket = buckets.entry(*key).or_default();
        let (next, granted) = advance(*bucket, DAY, limit.interval_ns, limit.whole_ns);
        *bucket = next;
        if granted { Taken::Yes } else { Taken::No }
    }

    fn count(&self, limit: &KernelLimit, outcome: Outcome) {
        self.counts.borrow_mut().entry(limit.slot).or_default()[outcome as usize] += 1;
    }
}

impl LimitHost {
    /// Limits an end.
    pub fn insert(&mut self, end: LimitEnd, limits: &[KernelLimit]) {
        let mut set = LimitSet::default();
        set.limits[..limits.len()].copy_from_slice(limits);
        self.ends.insert(end, set);
    }

    /// Exempts a source from the [`limit`] in slot 1.
    pub fn exempt(&mut self, source: IpAddr) {
        self.exempt.insert(ExemptKey { id: EXEMPTING.to_ne_bytes(), source: policy_address(source) });
    }

    /// Writes the ends to a map of the kernel's of this name, and who is exempt to its own.
    pub fn write(&self, ebpf: &mut Ebpf, ends_map: &str) -> Result<()> {
        let mut ends: KernelMap<_, LimitEnd, LimitSet> =
            KernelMap::try_from(ebpf.map_mut(ends_map).context("no ends")?)?;
        self.ends.iter().try_for_each(|(end, set)| ends.insert(end, set, 0))?;
        let mut exempt: LpmTrie<_, ExemptKey, u32> =
            LpmTrie::try_from(ebpf.map_mut("LIMIT_EXEMPT").context("no exempt")?)?;
        for key in &self.exempt {
            let bits = if key.source.family == 4 { 32 } else { 128 };
            exempt.insert(&Key::new(EXEMPT_HEAD_BITS + bits, *key), 1, 0)?;
        }
        Ok(())
    }

    /// Fails unless the kernel has counted, in so many slots, what the host has, and each has refused something; that of slot 2 is a
    /// shadow.
    pub fn agrees(&self, counts: &KernelCounts, slots: u32) -> Result<()> {
        for slot in 0..slots {
            let expected = self.counts.borrow().get(&slot).copied().context("a limit that nobody met")?;
            let counted = counts.of(slot)?.by_outcome;
            ensure!(counted == expected, "slot {slot}: {counted:?} and not {expected:?}");
            let outcome = if slot == 2 { Outcome::ShadowRefused } else { Outcome::Refused };
            ensure!(expected[outcome as usize] > 0, "slot {slot} refused nothing: {expected:?}");
        }
        Ok(())
    }
}

/// A limit in a slot: of so many, each /24 or /64 by itself.
pub fn limit(slot: u32, burst: u64, flags: u32) -> KernelLimit {
    KernelLimit {
        id: u64::from(slot) + EXEMPTING - 1,
        interval_ns: DAY,
        whole_ns: DAY * burst,
        slot,
        apart: Apart::by_prefix(24, 64),
        flags,
    }
}

/// What the kernel has counted.
pub struct KernelCounts(PerCpuArray<MapData, LimitCounts>);

impl fmt::Debug for KernelCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KernelCounts")
    }
}

impl KernelCounts {
    /// Takes the map.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self(PerCpuArray::try_from(ebpf.take_map("LIMIT_COUNTS").context("no counts")?)?))
    }

    /// Of a slot, by all processors.
    pub fn of(&self, slot: u32) -> Result<LimitCounts> {
        let mut sum = LimitCounts::default();
        for one in self.0.get(&slot, 0)?.iter() {
            for (sum, count) in sum.by_outcome.iter_mut().zip(one.by_outcome) {
                *sum += count;
            }
            sum.made += one.made;
        }
        Ok(sum)
    }
}

/// What a program answered in the kernel's test run; `None` where the run itself refuses the frame.
pub fn unless_refused<T>(ran: Result<T, ProgramError>) -> Result<Option<T>> {
    match ran {
        Err(ProgramError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EINVAL) => {
            Ok(None)
        }
        ran => Ok(Some(ran?)),
    }
}

/// An address of a test's own table.
pub fn address(text: &str) -> IpAddr {
    text.parse().expect("an address of the test's own table")
}
