//! Limits on the host: against a naive model, and with processors that race.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::guard::advance;

/// The maps on the host, at a time.
#[derive(Default)]
struct Host {
    now: u64,
    buckets: RefCell<HashMap<LimitKey, u64>>,
    room: Option<usize>,
    named: HashMap<PolicyAddress, u64>,
    exempt: Vec<(u64, PolicyAddress)>,
    counts: RefCell<HashMap<(u32, Outcome), u64>>,
}

impl std::hash::Hash for Outcome {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (*self as usize).hash(state);
    }
}

impl LimitMaps for Host {
    fn is_exempt(&self, key: &ExemptKey) -> bool {
        self.exempt.iter().any(|(id, source)| id.to_ne_bytes() == key.id && *source == key.source)
    }

    fn identity(&self, source: &PolicyAddress) -> Option<u64> {
        self.named.get(source).copied()
    }

    fn has_token(&self, key: &LimitKey, limit: &KernelLimit) -> bool {
        let bucket = self.buckets.borrow().get(key).copied().unwrap_or(0);
        advance(bucket, self.now, limit.interval_ns, limit.whole_ns).1
    }

    fn take(&self, key: &LimitKey, limit: &KernelLimit) -> Taken {
        let mut buckets = self.buckets.borrow_mut();
        if !buckets.contains_key(key) && self.room.is_some_and(|room| buckets.len() >= room) {
            return Taken::NoRoom;
        }
        let bucket = buckets.entry(*key).or_default();
        let (next, granted) = advance(*bucket, self.now, limit.interval_ns, limit.whole_ns);
        *bucket = next;
        if granted { Taken::Yes } else { Taken::No }
    }

    fn count(&self, limit: &KernelLimit, outcome: Outcome) {
        *self.counts.borrow_mut().entry((limit.slot, outcome)).or_default() += 1;
    }
}

impl Host {
    fn counted(&self, slot: u32, outcome: Outcome) -> u64 {
        self.counts.borrow().get(&(slot, outcome)).copied().unwrap_or(0)
    }
}

fn v4(last: [u8; 4]) -> PolicyAddress {
    let mut address = [0; 16];
    address[..4].copy_from_slice(&last);
    PolicyAddress { family: 4, address }
}

fn v6(segments: [u16; 8]) -> PolicyAddress {
    PolicyAddress { family: 6, address: std::net::Ipv6Addr::from(segments).octets() }
}

/// So many at once, one more each second.
fn limit(slot: u32, burst: u64) -> KernelLimit {
    const SECOND: u64 = 1_000_000_000;
    KernelLimit {
        id: u64::from(slot) + 100,
        interval_ns: SECOND,
        whole_ns: SECOND * burst,
        slot,
        apart: Apart::by_prefix(32, 128),
        flags: 0,
    }
}

fn set(limits: &[KernelLimit]) -> LimitSet {
    let mut set = LimitSet::default();
    set.limits[..limits.len()].copy_from_slice(limits);
    set
}

#[test]
fn sources_are_one_by_their_prefix() {
    let long = [0xfd00, 1, 2, 3, 4, 5, 6, 7];
    let with = |at: usize, value: u16| {
        let mut other = long;
        other[at] = value;
        v6(other)
    };
    // (bits of IPv4, of IPv6), two sources -> whether they share a bucket
    let cases = [
        ((32, 128), (v4([10, 0, 0, 1]), v4([10, 0, 0, 1])), true),
        ((32, 128), (v4([10, 0, 0, 1]), v4([10, 0, 0, 2])), false),
        ((24, 128), (v4([10, 0, 0, 1]), v4([10, 0, 0, 2])), true),
        ((24, 128), (v4([10, 0, 0, 1]), v4([10, 0, 1, 1])), false),
        ((1, 128), (v4([10, 0, 0, 1]), v4([127, 0, 1, 1])), true),
        ((32, 128), (v6(long), with(7, 8)), false),
        ((32, 64), (v6(long), with(4, 8)), true),
        ((32, 64), (v6(long), with(3, 8)), false),
        ((32, 65), (v6(long), with(4, 0x8004)), false),
        ((32, 65), (v6(long), with(4, 5)), true),
        ((32, 1), (v6(long), with(3, 8)), true),
        ((32, 64), (v4([10, 0, 0, 1]), v6([0x0a00, 1, 0, 0, 0, 0, 0, 0])), false),
    ];
    for ((v4_bits, v6_bits), (one, other), shared) in cases {
        let maps = Host { now: 5, ..Host::default() };
        let set = set(&[KernelLimit { apart: Apart::by_prefix(v4_bits, v6_bits), ..limit(0, 1) }]);
        assert_eq!(judge(&set, &one, true, &maps), None);
        assert_eq!(
            judge(&set, &other, true, &maps).is_some(),
            shared,
            "{one:?} {other:?} /{v4_bits} /{v6_bits}"
        );
    }
}

#[test]
fn who_has_no_identity_is_treated_as_asked() {
    let (named, twin, stranger, other) = (v4([1; 4]), v4([2; 4]), v4([3; 4]), v4([4; 4]));
    // what holds -> how many of two strangers' two packets each are let through
    let apart = Apart::by_prefix(32, 64);
    for (flags, apart, expected) in
        [(0, apart, 2), (0, Apart::together(), 1), (UNNAMED_EXEMPT, apart, 4), (UNNAMED_REFUSED, apart, 0)]
    {
        let maps = Host { now: 5, named: [(named, 7), (twin, 7)].into(), ..Host::default() };
        let set = set(&[KernelLimit { flags: BY_IDENTITY | flags, apart, ..limit(0, 1) }]);
        assert_eq!(judge(&set, &named, true, &maps), None);
        assert_eq!(judge(&set, &twin, true, &maps), Some(0), "one identity at two addresses");
        let through = [stranger, other, stranger, other];
        let through = through.iter().filter(|source| judge(&set, source, true, &maps).is_none()).count();
        assert_eq!(through, expected, "{flags} {apart:?}");
    }
}

#[test]
fn each_limit_counts_what_it_is_about() {
    let source = v4([10, 0, 0, 1]);
    let maps = Host { now: 5, exempt: vec![(103, source)], ..Host::default() };
    let limits = [
        limit(0, 2),
        KernelLimit { flags: COUNTS_PACKETS, ..limit(1, 3) },
        KernelLimit { flags: SHADOW, apart: Apart::together(), ..limit(2, 1) },
        KernelLimit { flags: HAS_EXEMPT, ..limit(3, 1) },
    ];
    let set = set(&limits);
    let verdicts: Vec<_> =
        [true, false, true, true, false].map(|opens| judge(&set, &source, opens, &maps)).into();
    assert_eq!(verdicts, [None, None, None, Some(0), Some(1)]);
    let of = |slot| Outcome::ALL.map(|outcome| maps.counted(slot, outcome));
    assert_eq!(of(0), [2, 1, 0, 0]);
    assert_eq!(of(1), [3, 1, 0, 0], "what another limit refuses takes nothing");
    assert_eq!(of(2), [1, 0, 1, 0]);
    assert_eq!(of(3), [0; 4]);
    assert_eq!(judge(&set, &v4([10, 0, 0, 2]), true, &maps), None);
    assert_eq!(judge(&set, &v4([10, 0, 0, 2]), true, &maps), Some(3), "the first that has none");
}

#[test]
fn who_finds_no_room_is_let_through_and_counted() {
    let maps = Host { now: 5, room: Some(1), ..Host::default() };
    let set = set(&[limit(0, 1)]);
    assert_eq!(judge(&set, &v4([1; 4]), true, &maps), None);
    for _ in 0..3 {
        assert_eq!(judge(&set, &v4([2; 4]), true, &maps), None);
    }
    assert_eq!(maps.counted(0, Outcome::Uncounted), 3);
    assert_eq!(judge(&set, &v4([1; 4]), true, &maps), Some(0));
}

#[test]
fn outcomes_are_numbered_in_order() {
    for (index, outcome) in Outcome::ALL.into_iter().enumerate() {
        assert_eq!(outcome as usize, index);
    }
}

/// A limit whose tokens come in up to an hour.
fn limits() -> impl Strategy<Value = Vec<KernelLimit>> {
    let one = (1..3_600_000_000_000_u64, 1..50_u64, any::<bool>());
    vec(one, 1..=LIMITS_PER_END).prop_map(|made| {
        let number = |(slot, (interval_ns, burst, packets)): (usize, (u64, u64, bool))| KernelLimit {
            interval_ns,
            whole_ns: interval_ns * burst,
            flags: if packets { COUNTS_PACKETS } else { 0 },
            ..limit(u32::try_from(slot).expect("few"), 1)
        };
        made.into_iter().enumerate().map(number).collect()
    })
}

proptest! {
    /// Against the naive model: the times of what each limit let through.
    #[test]
    fn no_source_gets_more_than_any_limit_gives(
        limits in limits(),
        packets in vec((0..5_000_000_000_u64, 0..3_u8, any::<bool>()), 1..200),
        start: u32,
    ) {
        let mut maps = Host { now: 1 + u64::from(start), ..Host::default() };
        let set = set(&limits);
        let mut passed: HashMap<(u32, u8), Vec<u64>> = HashMap::new();
        for (gap, source, opens) in packets {
            maps.now += gap;
            let verdict = judge(&set, &v4([10, 0, 0, source]), opens, &maps);
            let about = |limit: &&KernelLimit| opens || limit.flags & COUNTS_PACKETS != 0;
            let times = |limit: &KernelLimit| passed.get(&(limit.slot, source)).cloned().unwrap_or_default();
            // A bucket that gave nothing is full: as many as were let through since, one for each interval that has passed.
            let full = |limit: &KernelLimit| {
                let debt = times(limit).iter().fold(0_u64, |full_at, at| full_at.max(*at) + limit.interval_ns);
                debt.max(maps.now) + limit.interval_ns - maps.now > limit.whole_ns
            };
            let refusing = limits.iter().filter(about).find(|limit| full(limit));
            prop_assert_eq!(verdict, refusing.map(|limit| limit.slot));
            if verdict.is_none() {
                for limit in limits.iter().filter(about) {
                    passed.entry((limit.slot, source)).or_default().push(maps.now);
                }
            }
        }
        for ((slot, _), times) in &passed {
            let limit = &limits[*slot as usize];
            for (index, first) in times.iter().enumerate() {
                for (count, last) in (1_u64..).zip(&times[index..]) {
                    let most = limit.whole_ns / limit.interval_ns + (last - first) / limit.interval_ns;
                    prop_assert!(count <= most, "{count} of {most} in {} ns", last - first);
                }
            }
        }
    }
}

/// The maps as several processors have them: each bucket changed by compare-and-swap alone.
struct Racing {
    now: AtomicU64,
    buckets: [AtomicU64; 2],
    counts: [[AtomicU64; 4]; 2],
}

impl LimitMaps for Racing {
    fn is_exempt(&self, _: &ExemptKey) -> bool {
        false
    }

    fn identity(&self, _: &PolicyAddress) -> Option<u64> {
        None
    }

    fn has_token(&self, _: &LimitKey, limit: &KernelLimit) -> bool {
        let bucket = self.buckets[limit.slot as usize].load(Ordering::Relaxed);
        advance(bucket, self.now.load(Ordering::Relaxed), limit.interval_ns, limit.whole_ns).1
    }

    fn take(&self, _: &LimitKey, limit: &KernelLimit) -> Taken {
        let (bucket, now) = (&self.buckets[limit.slot as usize], self.now.fetch_add(100, Ordering::Relaxed));
        let mut seen = bucket.load(Ordering::Relaxed);
        loop {
            let (next, granted) = advance(seen, now, limit.interval_ns, limit.whole_ns);
            match bucket.compare_exchange(seen, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) if granted => return Taken::Yes,
                Ok(_) => return Taken::No,
                Err(other) => seen = other,
            }
        }
    }

    fn count(&self, limit: &KernelLimit, outcome: Outcome) {
        self.counts[limit.slot as usize][outcome as usize].fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn processors_that_race_let_nothing_through_beyond_either_limit() {
    const THREADS: u64 = 4;
    const STEPS: u64 = 50_000;
    let limits = [(1_000, 64_000), (1_500, 48_000)];
    let numbered = |(slot, (interval_ns, whole_ns)): (u32, (u64, u64))| KernelLimit {
        interval_ns,
        whole_ns,
        ..limit(slot, 1)
    };
    let limits: Vec<KernelLimit> = (0..).zip(limits).map(numbered).collect();
    let set = set(&limits);
    let maps = Racing { now: AtomicU64::new(1), buckets: Default::default(), counts: Default::default() };
    let passed = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for _ in 0..STEPS {
                    // Time goes on whether or not anybody is let through.
                    maps.now.fetch_add(50, Ordering::Relaxed);
                    if judge(&set, &v4([10, 0, 0, 1]), true, &maps).is_none() {
                        passed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let (elapsed, passed) = (maps.now.into_inner(), passed.into_inner());
    for limit in &limits {
        let most = (limit.whole_ns + elapsed) / limit.interval_ns;
        assert!(passed <= most, "{passed} of {most}");
    }
    let tightest = (48_000 + elapsed) / 1_500;
    assert!(passed >= tightest * 8 / 10, "only {passed} of {tightest}");
}
