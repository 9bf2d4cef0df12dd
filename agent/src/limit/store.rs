//! Counters by key, in bounded memory.
//!
//! Keys are known by a 64-bit hash alone, made with a secret of the store, so that nobody can choose keys that collide. They are
//! spread over sets of about [`WAYS`], each with a lock of its own that is held for some nanoseconds; memory is taken as sets
//! fill. Chance gives some sets more than others, so that they may grow while the store as a whole has room. Where there is none, a
//! set forgets the key that says least: an idle one, else the one that was used longest ago.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Counter, Verdict};

/// Keys of a set, on average of a full store. So many it may always have.
const WAYS: usize = 8;
/// At most. Of a million sets that are filled by chance, less than one would have more.
const WAYS_MAX: usize = 32;

type Set<S> = Mutex<Vec<Way<S>>>;

/// A counter for each key.
pub struct Store<C: Counter> {
    counter: C,
    sets: Box<[Set<C::State>]>,
    /// Keys that it is for, and that it has.
    room: usize,
    held: AtomicUsize,
    evicted: AtomicU64,
    uncounted: AtomicU64,
}

struct Way<S> {
    key: u64,
    used: u64,
    state: S,
}

/// What was taken, until it is given back.
pub struct Permit<C: Counter> {
    store: Arc<Store<C>>,
    key: u64,
    taken: u64,
    cost: u32,
}

impl<C: Counter> Permit<C> {
    /// What was taken of a key's counter.
    pub fn new(store: &Arc<Store<C>>, key: u64, taken: u64, cost: u32) -> Self {
        Self { store: Arc::clone(store), key, taken, cost }
    }
}

impl<C: Counter> Drop for Permit<C> {
    fn drop(&mut self) {
        self.store.give_back(self.key, self.taken, self.cost);
    }
}

impl<C: Counter> fmt::Debug for Store<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("sets", &self.sets.len()).finish_non_exhaustive()
    }
}

impl<C: Counter> fmt::Debug for Permit<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").finish_non_exhaustive()
    }
}

impl<C: Counter> Store<C> {
    /// A store for `keys` keys. Beyond them it grows by those that find less than [`WAYS`] others in their set, and shrinks
    /// again by those that find more.
    pub fn new(counter: C, keys: usize) -> Self {
        let sets = keys.div_ceil(WAYS).max(1);
        let sets = (0..sets).map(|_| Mutex::default()).collect();
        Self {
            counter,
            sets,
            room: keys,
            held: AtomicUsize::new(0),
            evicted: AtomicU64::new(0),
            uncounted: AtomicU64::new(0),
        }
    }

    /// How requests are counted.
    pub fn counter(&self) -> &C {
        &self.counter
    }

    /// Keys that were forgotten although they said something.
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Requests that were let through uncounted, as no key could be forgotten.
    pub fn uncounted(&self) -> u64 {
        self.uncounted.load(Ordering::Relaxed)
    }

    /// Keys that are known.
    pub fn len(&self) -> usize {
        self.sets.iter().map(|set| lock(set).len()).sum()
    }

    /// Whether no key is known.
    pub fn is_empty(&self) -> bool {
        self.sets.iter().all(|set| lock(set).is_empty())
    }

    /// Takes one request of a key.
    pub fn take(&self, key: u64, now: u64, cost: u32) -> Verdict {
        self.count(key, now, cost).unwrap_or(Verdict::Admitted { remaining: 0 })
    }

    /// As [`Self::take`]; `None`: it is let through, and there was no room to count it.
    pub fn count(&self, key: u64, now: u64, cost: u32) -> Option<Verdict> {
        self.with(key, now, |counter, state| counter.take(state, now, cost))
    }

    /// Looks at all states.
    pub fn each(&self, mut look: impl FnMut(&C::State)) {
        for set in &self.sets {
            lock(set).iter().for_each(|way| look(&way.state));
        }
    }

    /// Lets a key's state be changed in other ways; `None` where there is no room for the key.
    pub fn with<T>(&self, key: u64, now: u64, change: impl FnOnce(&C, &mut C::State) -> T) -> Option<T> {
        let mut set = self.set(key);
        let Some(way) = self.find(&mut set, key, now) else {
            self.uncounted.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        way.used = now;
        Some(change(&self.counter, &mut way.state))
    }

    /// What [`Self::take`] would say.
    pub fn peek(&self, key: u64, now: u64, cost: u32) -> Verdict {
        let mut set = self.set(key);
        match set.iter_mut().find(|way| way.key == key) {
            Some(way) => self.counter.peek(&mut way.state, now, cost),
            None => self.counter.peek(&mut C::State::default(), now, cost),
        }
    }

    /// Gives back what was taken at `taken`.
    pub fn give_back(&self, key: u64, taken: u64, cost: u32) {
        if let Some(way) = self.set(key).iter_mut().find(|way| way.key == key) {
            self.counter.give_back(&mut way.state, taken, cost);
        }
    }

    fn set(&self, key: u64) -> MutexGuard<'_, Vec<Way<C::State>>> {
        // The upper bits, scaled: no number of sets is special.
        let index = (u128::from(key) * self.sets.len() as u128) >> 64;
        lock(&self.sets[usize::try_from(index).unwrap_or(0)])
    }

    /// The key's place in its set, made where it has none; `None` where no other may be forgotten for it.
    fn find<'s>(&self, set: &'s mut Vec<Way<C::State>>, key: u64, now: u64) -> Option<&'s mut Way<C::State>> {
        let fresh = || Way { key, used: now, state: C::State::default() };
        let position = match set.iter().position(|way| way.key == key) {
            Some(position) => position,
            None if self.has_room(set.len()) => {
                // Whoever comes is the occasion to let go of what those hold that say nothing any more.
                let idle = set.iter_mut().filter(|way| self.counter.is_idle(&way.state, now));
                idle.for_each(|way| way.state = C::State::default());
                self.held.fetch_add(1, Ordering::Relaxed);
                set.push(fresh());
                set.len() - 1
            }
            None => {
                if set.len() > WAYS && self.held.load(Ordering::Relaxed) > self.room {
                    let position = self.dispensable(set, now)?;
                    set.swap_remove(position);
                    self.held.fetch_sub(1, Ordering::Relaxed);
                }
                let position = self.dispensable(set, now)?;
                set[position] = fresh();
                position
            }
        };
        set.get_mut(position)
    }

    /// Whether a set with so many keys may have another one.
    fn has_room(&self, keys: usize) -> bool {
        keys < WAYS || keys < WAYS_MAX && self.held.load(Ordering::Relaxed) < self.room
    }

    /// The key of a set that is forgotten first.
    fn dispensable(&self, set: &[Way<C::State>], now: u64) -> Option<usize> {
        if let Some(idle) = set.iter().position(|way| self.counter.is_idle(&way.state, now)) {
            return Some(idle);
        }
        let ways = set.iter().enumerate().filter(|(_, way)| !self.counter.is_pinned(&way.state));
        let (oldest, _) = ways.min_by_key(|(_, way)| way.used)?;
        self.evicted.fetch_add(1, Ordering::Relaxed);
        Some(oldest)
    }
}

/// A state that a panic left half-changed is one count off at most.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::{Concurrency, Rate, Window};
    use super::*;

    /// As spread as hashes are.
    fn key(number: u64) -> u64 {
        number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn admitted(verdict: Verdict) -> bool {
        matches!(verdict, Verdict::Admitted { .. })
    }

    #[test]
    fn keys_do_not_share_and_memory_is_bounded() {
        let store = Store::new(Rate::new(1, 1_000_000, 2).expect("a rate"), 1000);
        for number in 0..500 {
            let verdicts: Vec<bool> = (0..3).map(|_| admitted(store.take(key(number), 0, 1))).collect();
            assert_eq!(verdicts, [true, true, false], "key {number}");
        }
        for number in 500..100_000 {
            assert!(admitted(store.take(key(number), 1, 1)));
        }
        assert!(store.len() <= 1000 + 1000 / WAYS, "{} keys", store.len());
        assert!(store.evicted() > 90_000);
    }

    /// What keys ask, and what they are let through, against counters that are never forgotten. Keys by number: so often each.
    fn compare<C: Counter>(counter: C, model: &C, asked: impl Iterator<Item = (u64, u64)>) -> [u64; 2] {
        let keys = 100_000;
        let store = Store::new(counter, keys);
        let hasher = std::hash::RandomState::new();
        let mut states: std::collections::HashMap<u64, C::State> = std::collections::HashMap::new();
        let mut totals = [0, 0];
        for (number, now) in asked {
            let key = std::hash::BuildHasher::hash_one(&hasher, number);
            totals[0] += u64::from(admitted(store.take(key, now, 1)));
            totals[1] += u64::from(admitted(model.take(states.entry(number).or_default(), now, 1)));
        }
        assert!(store.len() <= keys + keys / 100, "{} keys", store.len());
        totals
    }

    #[test]
    fn a_hundred_thousand_keys_are_let_through_what_each_of_them_may_be() {
        const KEYS: u64 = 100_000;
        // All as often; some far oftener than others; five of each together; and a few more than there is room for.
        let even = || (0..5 * KEYS).map(|at| (at % KEYS, at * 1000));
        let skewed = || (0..5 * KEYS).map(|at| (key(at) % (KEYS >> (key(at) >> 60)).max(1), at * 1000));
        let bursts = || (0..5 * KEYS).map(|at| (at / 5, at * 1000));
        let more = || (0..5 * KEYS).map(|at| (key(at) % (KEYS + KEYS / 200), at * 1000));
        let rate = || Rate::new(2, 1_000_000_000, 3).expect("a rate");
        let window = || Window { requests: 2, window: 300_000_000 };
        let check = |name: &str, [let_through, expected]: [u64; 2]| {
            let apart = let_through.abs_diff(expected);
            assert!(apart * 50 <= expected, "{name}: {let_through} and not {expected}");
        };
        check("even, rate", compare(rate(), &rate(), even()));
        check("even, window", compare(window(), &window(), even()));
        check("skewed, rate", compare(rate(), &rate(), skewed()));
        check("skewed, window", compare(window(), &window(), skewed()));
        check("bursts, rate", compare(rate(), &rate(), bursts()));
        check("bursts, window", compare(window(), &window(), bursts()));
        check("more, rate", compare(rate(), &rate(), more()));
        check("more, window", compare(window(), &window(), more()));
    }

    /// A million that never come again; `cargo xtask bench limit` has ten million.
    #[test]
    fn strangers_without_end_are_let_through_and_hide_nobody_who_is_refused() {
        const ROOM: usize = 65_536;
        const STRANGERS: u64 = 1_000_000;
        fn check<C: Counter>(counter: C) {
            let store = Store::new(counter, ROOM);
            let (busy, mut more) = (key(u64::MAX), 0);
            assert!(admitted(store.take(busy, 0, 1)));
            for number in 0..STRANGERS {
                let now = number * 1000;
                assert!(admitted(store.take(key(number), now, 1)), "{number}");
                // Often enough that no set forgets it.
                more += u64::from(number % 1024 == 0 && admitted(store.take(busy, now, 1)));
            }
            assert_eq!(more, 0, "of one that goes on beyond its limit");
            assert!(store.len() <= ROOM + ROOM / WAYS, "{} keys", store.len());
            assert!(store.evicted() + store.len() as u64 > STRANGERS, "each is kept or counted");
            assert_eq!(store.uncounted(), 0);
        }
        let hour = 3_600_000_000_000;
        check(Rate::new(1, hour, 1).expect("a rate"));
        check(Window { requests: 1, window: hour });
    }

    #[test]
    fn an_idle_key_is_forgotten_before_a_busy_one() {
        let store = Store::new(Window { requests: 1, window: 100 }, 1);
        assert!(admitted(store.take(0, 0, 1)));
        for number in 1..8 {
            assert!(admitted(store.take(number, 50, 1)));
        }
        // The first one's window is over.
        assert!(admitted(store.take(8, 120, 1)));
        assert_eq!(store.evicted(), 0);
        assert!(!admitted(store.take(1, 120, 1)));
        // Now one has to go that still counted.
        assert!(admitted(store.take(9, 130, 1)));
        assert_eq!(store.evicted(), 1);
    }

    #[test]
    fn what_is_in_flight_is_never_forgotten() {
        let store = Arc::new(Store::new(Concurrency { most: 1 }, 1));
        let take = |key| admitted(store.take(key, 0, 1)).then(|| Permit::new(&store, key, 0, 1));
        let permits: Vec<_> = (0..8).map(take).collect();
        assert!(permits.iter().all(Option::is_some));
        assert!(take(3).is_none(), "one is in flight");
        assert!(admitted(store.take(8, 0, 1)), "there is no room to count it");
        assert_eq!((store.uncounted(), store.evicted()), (1, 0));
        drop(permits);
        assert!(take(3).is_some());
    }

    #[test]
    fn threads_together_are_admitted_exactly_what_may_be() {
        let store = Store::new(Window { requests: 1000, window: u64::MAX }, 64);
        let count = |_| (0..1000).filter(|_| admitted(store.take(7, 5, 1))).count();
        let total: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|n| scope.spawn(move || count(n))).collect();
            threads.into_iter().map(|thread| thread.join().expect("a thread")).sum()
        });
        assert_eq!(total, 1000);
    }
}
