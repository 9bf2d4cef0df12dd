//! A limit with its counters: what is counted, by which numbers, and what is known of its use.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use super::overrides::Overrides;
use crate::limit::counters::KeyWriter;
use crate::limit::quota::{SharedLimit, SharedQuota, SharedSettings, SharedUse, WhenAway, shared_rate};
use crate::limit::top::{Sample, Top, TopKey};
use crate::limit::{Concurrency, Permit, Rate, Store, Verdict, Window};
use crate::model::{ClusterMode, FailMode, Limit, ObjectName, Quota};

/// How many limits there were.
static LIMITS: AtomicU64 = AtomicU64::new(0);

/// Keys that a limit remembers, whatever another agent asks for.
const KEYS_MAX: u32 = 4_194_304;

/// A limit with its counters.
#[derive(Debug)]
pub struct LimitCounter {
    /// What it says.
    pub limit: Limit,
    counts: Arc<Counts>,
    numbers: Arc<Numbers>,
    overrides: Overrides,
}

/// What goes on for as long as a limit counts the same things apart.
#[derive(Debug)]
struct Counts {
    /// Tells it from all others that there ever were.
    id: u64,
    /// The secret of its keys.
    hasher: RandomState,
    admitted: AtomicU64,
    refused: AtomicU64,
    pushed: AtomicU64,
    top: Top,
}

/// A quota with what keys have used of it.
#[derive(Debug)]
pub struct Numbers {
    /// The quota.
    pub quota: Quota,
    keys: Keys,
}

#[derive(Debug)]
enum Keys {
    Rate(Store<Rate>),
    Window(Store<Window>),
    InFlight(Arc<Store<Concurrency>>),
    /// All nodes count together.
    Shared(Arc<SharedLimit>),
}

/// What a request holds while it is in flight.
#[derive(Debug)]
pub struct InFlight(
    #[expect(dead_code, reason = "dropping it gives back what was taken")] Permit<Concurrency>,
);

/// What is known of a limit's use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitUse {
    /// Requests that were let through.
    pub admitted: u64,
    /// Requests that were refused, or would have been.
    pub refused: u64,
    /// Keys that are known.
    pub keys: usize,
    /// Keys that were forgotten although they counted something.
    pub evicted: u64,
    /// Requests that were let through uncounted.
    pub uncounted: u64,
    /// Sources that the guard was told to keep out.
    pub pushed: u64,
}

/// Nanoseconds since the first look: the time of all counters.
pub fn limit_time(now: Instant) -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    // A moment that was looked at before the first use counts as it.
    u64::try_from(now.saturating_duration_since(*START).as_nanos()).unwrap_or(u64::MAX)
}

impl Counts {
    fn new() -> Self {
        let (admitted, refused, pushed, top) = Default::default();
        let id = LIMITS.fetch_add(1, Ordering::Relaxed);
        Self { id, hasher: RandomState::new(), admitted, refused, pushed, top }
    }
}

impl LimitCounter {
    /// `previous`: the limit of this name before, whose counters go on where they mean the same.
    pub(super) fn new(document: &ObjectName, limit: &Limit, previous: Option<&Self>) -> Self {
        let apart = |of: &Limit| (of.key.clone(), of.missing);
        let previous = previous.filter(|previous| apart(&previous.limit) == apart(limit));
        let counts =
            previous.map_or_else(|| Arc::new(Counts::new()), |previous| Arc::clone(&previous.counts));
        let kept_like = |of: &Limit| (of.max_keys, of.cluster);
        let previous = previous.filter(|previous| kept_like(&previous.limit) == kept_like(limit));
        let numbers = previous.map(|previous| &previous.numbers).filter(|known| known.quota == limit.quota);
        let numbers =
            numbers.map_or_else(|| Arc::new(Numbers::new(document, limit, limit.quota)), Arc::clone);
        let overrides = Overrides::new(limit, &counts.hasher, |other| {
            let mut known = previous.into_iter().flat_map(|previous| previous.overrides.numbers());
            let known = known.find(|known| known.quota == other.quota);
            known.map_or_else(|| Arc::new(Numbers::new(document, limit, other.quota)), Arc::clone)
        });
        Self { limit: limit.clone(), counts, numbers, overrides }
    }

    /// What tells it from all others that there ever were.
    pub fn id(&self) -> u64 {
        self.counts.id
    }

    /// What its keys are held to, but for those that have other numbers.
    pub fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    /// Whether some keys have other numbers.
    pub fn has_overrides(&self) -> bool {
        !self.overrides.is_empty()
    }

    /// What the key is held to whose values that are no addresses have this hash.
    pub fn numbers_of(&self, values: u64, client: IpAddr) -> &Numbers {
        self.overrides.of(values, client).unwrap_or(&self.numbers)
    }

    fn all_numbers(&self) -> impl Iterator<Item = &Numbers> {
        std::iter::once(&self.numbers).chain(self.overrides.numbers()).map(|numbers| &**numbers)
    }

    /// Whether all nodes count together.
    pub fn is_shared(&self) -> bool {
        self.numbers.shared().is_some()
    }

    /// A key's hash: that of its parts in order, each behind its length.
    pub fn hasher(&self) -> impl std::hash::Hasher + use<> {
        self.counts.hasher.build_hasher()
    }

    /// Counts an outcome; `sample`: whose, where that is counted.
    pub fn count(&self, admitted: bool, sample: Option<Sample>, now: u64) {
        let counter = if admitted { &self.counts.admitted } else { &self.counts.refused };
        counter.fetch_add(1, Ordering::Relaxed);
        if let Some(sample) = sample {
            self.counts.top.count(sample, admitted, now);
        }
    }

    /// Whether it is counted whose request comes now, and for how many; never where all are counted together.
    pub fn top_weight(&self, now: u64) -> Option<u64> {
        if self.limit.key.is_empty() { None } else { self.counts.top.weight(now) }
    }

    /// The keys that were refused most often of late, and then those that were let through most often.
    pub fn top(&self, most: usize) -> Vec<TopKey> {
        self.counts.top.keys(limit_time(Instant::now()), most)
    }

    /// Counts a source that the guard was told to keep out.
    pub fn count_pushed(&self) {
        self.counts.pushed.fetch_add(1, Ordering::Relaxed);
    }

    /// How it is used.
    pub fn usage(&self) -> LimitUse {
        let [admitted, refused, pushed] = [&self.counts.admitted, &self.counts.refused, &self.counts.pushed]
            .map(|count| count.load(Ordering::Relaxed));
        let sum = |(keys, evicted, uncounted), numbers: &Numbers| {
            let more = numbers.usage();
            (keys + more.0, evicted + more.1, uncounted + more.2)
        };
        let (keys, evicted, uncounted) = self.all_numbers().fold((0, 0, 0), sum);
        LimitUse { admitted, refused, keys, evicted, uncounted, pushed }
    }

    /// How it is used of what all nodes count, where they do.
    pub fn shared_usage(&self) -> Option<SharedUse> {
        let now = limit_time(Instant::now());
        let each = self.all_numbers().filter_map(Numbers::shared).map(|shared| shared.usage(now));
        each.reduce(SharedUse::with)
    }

    /// Units that this node has leased and not used, where nodes lease of it.
    pub fn leased(&self) -> Option<u64> {
        let now = limit_time(Instant::now());
        let leases = self.limit.cluster.is_some_and(|cluster| cluster.mode == ClusterMode::Leased);
        let shared = || self.all_numbers().filter_map(Numbers::shared);
        (leases && self.is_shared()).then(|| shared().map(|shared| shared.leased(now)).sum())
    }
}

impl Numbers {
    fn new(document: &ObjectName, limit: &Limit, quota: Quota) -> Self {
        let size = usize::try_from(limit.max_keys.min(KEYS_MAX)).unwrap_or(1);
        let shared =
            shared_limit(document, limit, (quota, size)).map(|shared| Keys::Shared(Arc::new(shared)));
        Self { quota, keys: shared.unwrap_or_else(|| Keys::of_node(quota, size)) }
    }

    /// What all nodes count by, where they do.
    pub fn shared(&self) -> Option<&Arc<SharedLimit>> {
        match &self.keys {
            Keys::Shared(shared) => Some(shared),
            Keys::Rate(_) | Keys::Window(_) | Keys::InFlight(_) => None,
        }
    }

    /// Takes one request; in-flight ones are held by what is returned beside. What all nodes count is not taken here.
    pub fn take(&self, key: u64, now: u64, cost: u32) -> (Verdict, Option<InFlight>) {
        match &self.keys {
            Keys::Rate(store) => (store.take(key, now, cost), None),
            Keys::Window(store) => (store.take(key, now, cost), None),
            Keys::InFlight(store) => {
                // Where there is no room for the key nothing is held, and so nothing given back.
                let verdict = store.count(key, now, cost);
                let taken = matches!(verdict, Some(Verdict::Admitted { .. }));
                let permit = taken.then(|| InFlight(Permit::new(store, key, now, cost)));
                (verdict.unwrap_or(Verdict::Admitted { remaining: 0 }), permit)
            }
            Keys::Shared(_) => (Verdict::Admitted { remaining: 0 }, None),
        }
    }

    /// What [`Self::take`] would say.
    pub fn peek(&self, key: u64, now: u64, cost: u32) -> Verdict {
        match &self.keys {
            Keys::Rate(store) => store.peek(key, now, cost),
            Keys::Window(store) => store.peek(key, now, cost),
            Keys::InFlight(store) => store.peek(key, now, cost),
            Keys::Shared(_) => Verdict::Admitted { remaining: 0 },
        }
    }

    /// Gives back what was taken at `now` and is not held.
    pub fn give_back(&self, key: u64, now: u64, cost: u32) {
        match &self.keys {
            Keys::Rate(store) => store.give_back(key, now, cost),
            Keys::Window(store) => store.give_back(key, now, cost),
            Keys::InFlight(_) | Keys::Shared(_) => {}
        }
    }

    /// Keys that are known, those that were forgotten although they counted something, and requests that went uncounted.
    fn usage(&self) -> (usize, u64, u64) {
        match &self.keys {
            Keys::Rate(store) => (store.len(), store.evicted(), store.uncounted()),
            Keys::Window(store) => (store.len(), store.evicted(), store.uncounted()),
            Keys::InFlight(store) => (store.len(), store.evicted(), store.uncounted()),
            Keys::Shared(shared) => {
                let usage = shared.usage(limit_time(Instant::now()));
                (usage.keys, usage.evicted, usage.uncounted)
            }
        }
    }
}

impl Keys {
    fn of_node(quota: Quota, size: usize) -> Self {
        match quota {
            // What came from documents was checked; what another agent sent in another form holds to the least.
            Quota::Rate { requests, window_ns, burst } => {
                let rate = Rate::new(requests.into(), window_ns, burst.into());
                let rate = rate.or_else(|_| Rate::new(1, window_ns.max(1), 1));
                match rate {
                    Ok(rate) => Self::Rate(Store::new(rate, size)),
                    Err(_) => {
                        Self::Window(Store::new(Window { requests: 1, window: window_ns.max(1) }, size))
                    }
                }
            }
            Quota::Window { requests, window_ns } => {
                Self::Window(Store::new(Window { requests, window: window_ns }, size))
            }
            Quota::InFlight { requests } => {
                Self::InFlight(Arc::new(Store::new(Concurrency { most: requests }, size)))
            }
        }
    }
}

/// What all nodes count by; `None` where each counts for itself, as it does for a form that only another agent's documents have.
fn shared_limit(document: &ObjectName, limit: &Limit, (quota, size): (Quota, usize)) -> Option<SharedLimit> {
    let cluster = limit.cluster?;
    let counted = match quota {
        Quota::Rate { requests, window_ns, burst } => {
            let rate = Rate::new(requests.into(), window_ns, burst.into()).ok()?;
            SharedQuota::Rate(rate, shared_rate(requests, window_ns, burst)?)
        }
        Quota::Window { requests, window_ns } => SharedQuota::Window(Window { requests, window: window_ns }),
        Quota::InFlight { .. } => return None,
    };
    let settings = SharedSettings {
        leased: cluster.mode == ClusterMode::Leased,
        away: match cluster.fail {
            FailMode::Open => WhenAway::Open,
            FailMode::Closed => WhenAway::Closed,
            FailMode::Share => WhenAway::Share,
        },
    };
    // How nodes come by it means nothing to what is counted; where the sources are that it does not hold for, neither.
    let meaning = (&document.namespace, &document.name, &limit.name, &limit.key, limit.missing, quota);
    let meaning = serde_json::to_vec(&meaning).ok()?;
    Some(SharedLimit::new(settings, counted, KeyWriter::new(&meaning), size))
}
