//! What a node holds of a key's quota that the cluster counts, pure: what is spent at once, when the store is asked, and for how much.
//!
//! A quota that is decided request by request (`most` is 0) holds nothing; it only remembers for a moment that it is used up, so that
//! those who come for nothing cost the store little. One that is leased is taken in portions: each that was used up doubles the
//! next, each that ran out unused halves it.

/// How long a portion may be spent at most, in nanoseconds; what is counted in a shorter span is spent within that.
pub const LEASE: u64 = 1_000_000_000;
/// How long a quota is taken to be used up at most, before the store is asked again.
const USED_UP_MAX: u64 = 100_000_000;
/// How long the store is left alone after it could not give all of a portion: it would be asked for each single request.
const SCARCE: u64 = 10_000_000;
/// A portion is at most this part of a node's even share: with the one that is asked for before it is spent, a node holds less than a
/// tenth of its share.
const PARTS: u64 = 20;

/// What a node holds of a key's quota.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lease {
    /// Requests that may still be let through.
    left: u32,
    /// Until when.
    until: u64,
    /// So many of them are of the last portion, and that portion's time; those before it are spent first.
    last: (u32, u64),
    /// The time of the portion before.
    before: u64,
    /// The store's time of what it granted last.
    granted_at: u64,
    /// The size of the next portion.
    portion: u32,
    /// Whether the store is being asked for a portion.
    asking: bool,
    /// Until when the store has nothing more.
    used_up_until: u64,
    /// When it said that it would have more.
    more_at: u64,
    /// Requests that were let through without the store's knowing, which are paid for by the next that is granted.
    owed: u32,
    /// After this time nobody counts them any more.
    owed_until: u64,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It is let through.
    Spend {
        /// So many could follow it.
        left: u32,
        /// A portion that the store is to be asked for meanwhile; 0: none.
        refill: u32,
    },
    /// The store decides: it is asked for so many.
    Ask {
        /// How many.
        count: u32,
        /// Whether that is a portion.
        portion: bool,
    },
    /// It is refused, for so many nanoseconds.
    Refused {
        /// How long.
        wait: u64,
    },
}

/// What the store said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// So many were asked for,
    pub asked: u32,
    /// so many are granted,
    pub granted: u32,
    /// and whether one is for a request that waits.
    pub waits: bool,
    /// Whether a portion was asked for.
    pub portion: bool,
    /// Nanoseconds until there is more, where less was granted.
    pub wait: u64,
    /// The store's time.
    pub at: u64,
    /// Nanoseconds for which a portion may be spent.
    pub life: u64,
}

/// What an answer comes to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Settled {
    /// Whether the request that waits is let through.
    pub admits: bool,
    /// What had run out before.
    pub ran_out: RanOut,
}

/// What goes back to the store: so many, and its time of the portion that they are of.
pub type RanOut = [(u32, u64); 2];

/// The largest portion of a quota of which so many may come at once, among so many nodes.
pub fn largest_portion(budget: u64, nodes: u32) -> u32 {
    let part = budget / (PARTS * u64::from(nodes.max(1)));
    u32::try_from(part).unwrap_or(u32::MAX).max(1)
}

impl Lease {
    /// A request comes. `most`: the largest portion; 0: each is asked for alone.
    pub fn step(&mut self, now: u64, most: u32) -> Step {
        self.pay(now);
        if self.left > 0 && now < self.until && self.owed == 0 {
            self.left -= 1;
            let refill = self.left < self.portion / 2 && !self.asking && now >= self.used_up_until;
            self.asking |= refill;
            let portion = self.portion.clamp(1, most.max(1));
            return Step::Spend { left: self.left, refill: if refill { portion } else { 0 } };
        }
        if now < self.used_up_until {
            return Step::Refused { wait: self.used_up_until.max(self.more_at) - now };
        }
        if most == 0 || self.asking {
            return Step::Ask { count: self.owed.saturating_add(1), portion: false };
        }
        self.asking = true;
        self.portion = self.portion.clamp(1, most);
        Step::Ask { count: self.owed.saturating_add(self.portion), portion: true }
    }

    /// A request was let through without the store's knowing; after `span` it would not be counted any more.
    pub fn owe(&mut self, now: u64, span: u64) {
        if self.owed == 0 || now >= self.owed_until {
            (self.owed, self.owed_until) = (0, now.saturating_add(span));
        }
        self.owed = self.owed.saturating_add(1);
    }

    /// Pays for what was let through of what is left.
    fn pay(&mut self, now: u64) {
        if now >= self.owed_until {
            self.owed = 0;
        }
        if now < self.until {
            let paid = self.owed.min(self.left);
            self.owed -= paid;
            self.left -= paid;
        }
    }

    /// The store has answered. What had run out is taken away before; what is owed is paid first.
    pub fn settle(&mut self, grant: Grant, now: u64, most: u32) -> Settled {
        let ran_out = self.run_out(now);
        if grant.portion {
            self.asking = false;
        }
        if grant.granted > 0 {
            self.granted_at = grant.at;
        }
        self.pay(now);
        let paid = self.owed.min(grant.granted);
        self.owed -= paid;
        let admits = grant.waits && grant.granted > paid;
        let kept = grant.granted - paid - u32::from(admits);
        let settled = Settled { admits, ran_out };
        if kept > 0 {
            (self.before, self.last) = (self.last.1, (kept, grant.at));
            self.left = self.left.saturating_add(kept);
            self.until = now.saturating_add(grant.life);
        }
        if grant.granted >= grant.asked {
            if grant.portion {
                self.portion = self.portion.saturating_mul(2).clamp(1, most.max(1));
            }
            return settled;
        }
        let pause = if most == 0 { grant.wait } else { grant.wait.max(SCARCE) };
        // With some left, nobody is refused; the store is left alone all the same.
        self.more_at = now.saturating_add(grant.wait);
        self.used_up_until = now.saturating_add(pause.min(USED_UP_MAX));
        settled
    }

    /// Nobody waits any more for what was granted: one more may be let through.
    pub fn keep(&mut self, now: u64, life: u64) {
        self.left = self.left.saturating_add(1);
        self.last.0 = self.last.0.saturating_add(1);
        self.last.1 = self.granted_at;
        self.until = self.until.max(now.saturating_add(life));
        self.pay(now);
    }

    /// The store could not be asked.
    pub fn failed(&mut self, portion: bool) {
        self.asking &= !portion;
    }

    /// A request that was let through at `now` was refused by another limit: one more may follow, or, where nothing is leased any
    /// more, the store gets it back. Its time of the last portion then.
    pub fn give_back(&mut self, now: u64) -> Option<u64> {
        if now >= self.until {
            return Some(self.granted_at);
        }
        self.left = self.left.saturating_add(1);
        None
    }

    /// Takes away what has run out.
    pub fn run_out(&mut self, now: u64) -> RanOut {
        if self.left == 0 || now < self.until {
            return RanOut::default();
        }
        self.portion = (self.portion / 2).max(1);
        let left = std::mem::take(&mut self.left);
        let last = left.min(self.last.0);
        [(left - last, self.before), (last, self.last.1)]
    }

    /// What may still be let through.
    pub fn left(&self, now: u64) -> u32 {
        if now < self.until { self.left } else { 0 }
    }

    /// Whether it says no more than that of a key that was never seen.
    pub fn is_idle(&self, now: u64) -> bool {
        self.left == 0
            && !self.asking
            && now >= self.used_up_until
            && (self.owed == 0 || now >= self.owed_until)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: u64 = 1_000_000;

    fn grant(asked: u32, granted: u32) -> Grant {
        Grant { asked, granted, waits: true, portion: true, wait: 5 * MS, at: 7, life: LEASE }
    }

    #[test]
    fn portions_grow_with_demand_and_shrink_without() {
        let (mut lease, mut sizes) = (Lease::default(), Vec::new());
        for _ in 0..7 {
            let Step::Ask { count, portion: true } = lease.step(0, 16) else { panic!("{lease:?}") };
            sizes.push(count);
            lease.settle(grant(count, count), 0, 16);
            while lease.left > 0 {
                if let Step::Spend { refill, .. } = lease.step(0, 16)
                    && refill > 0
                {
                    lease.failed(true);
                }
            }
        }
        assert_eq!(sizes, [1, 2, 4, 8, 16, 16, 16]);
        lease.step(0, 16);
        lease.settle(grant(16, 16), 0, 16);
        assert_eq!(lease.run_out(LEASE - 1), RanOut::default());
        assert_eq!(lease.run_out(LEASE), [(0, 7), (15, 7)]);
        assert_eq!(lease.step(LEASE, 16), Step::Ask { count: 8, portion: true });
    }

    #[test]
    fn what_runs_out_is_told_by_its_portion() {
        let mut lease = Lease { portion: 8, ..Lease::default() };
        for (at, granted) in [(1, 8), (2, 8)] {
            lease.settle(Grant { at, waits: false, ..grant(granted, granted) }, 0, 8);
        }
        for _ in 0..5 {
            assert!(matches!(lease.step(0, 8), Step::Spend { .. }));
        }
        assert_eq!(lease.run_out(LEASE), [(3, 1), (8, 2)], "the older is spent first");
    }

    #[test]
    fn while_it_is_asked_for_requests_ask_for_themselves() {
        let mut lease = Lease::default();
        assert_eq!(lease.step(0, 8), Step::Ask { count: 1, portion: true });
        assert_eq!(lease.step(0, 8), Step::Ask { count: 1, portion: false });
        lease.settle(Grant { portion: false, ..grant(1, 1) }, 0, 8);
        assert_eq!(lease.step(0, 8), Step::Ask { count: 1, portion: false }, "the portion is still awaited");
    }

    #[test]
    fn a_store_that_has_nothing_is_left_alone() {
        // (largest portion, wait) -> how long; who is refused meanwhile is told the whole wait.
        for (most, wait, pause) in
            [(0, 5 * MS, 5 * MS), (0, 900 * MS, 100 * MS), (8, 5 * MS, 10 * MS), (8, 900 * MS, 100 * MS)]
        {
            let mut lease = Lease::default();
            lease.step(0, most);
            lease.settle(Grant { wait, portion: most > 0, ..grant(1, 0) }, 0, most);
            assert_eq!(lease.step(0, most), Step::Refused { wait: pause.max(wait) }, "{most} {wait}");
            assert!(matches!(lease.step(pause, most), Step::Ask { .. }), "{most} {wait}");
        }
    }

    #[test]
    fn what_was_let_through_unknown_is_paid_first() {
        let exact = |granted, owed| Grant { portion: false, ..grant(owed + 1, granted) };
        // (owed, granted) -> whether the one that waits is let through, and what is owed then
        for (owed, granted, admits, rest) in
            [(2, 3, true, 0), (2, 2, false, 0), (2, 1, false, 1), (2, 0, false, 2)]
        {
            let mut lease = Lease::default();
            for _ in 0..owed {
                lease.owe(0, 1000 * MS);
            }
            assert_eq!(lease.step(1, 0), Step::Ask { count: owed + 1, portion: false });
            assert_eq!(lease.settle(exact(granted, owed), 1, 0).admits, admits, "{owed} {granted}");
            assert_eq!((lease.owed, lease.left), (rest, 0), "{owed} {granted}");
        }
        // An answer that comes too late for its request pays for it.
        let mut lease = Lease::default();
        assert_eq!(lease.step(0, 0), Step::Ask { count: 1, portion: false });
        lease.owe(0, 1000 * MS);
        assert!(!lease.settle(exact(1, 0), 1, 0).admits && lease.owed == 0 && lease.left == 0);
        // After the span nobody counts it.
        lease.owe(0, MS);
        assert_eq!(lease.step(MS, 0), Step::Ask { count: 1, portion: false });
    }

    #[test]
    fn portions_are_small_beside_the_whole() {
        for (budget, nodes, portion) in [(100, 3, 1), (10_000, 3, 166), (0, 0, 1), (u64::MAX, 1, u32::MAX)] {
            assert_eq!(largest_portion(budget, nodes), portion, "{budget} {nodes}");
        }
    }

    fn sum(ran_out: RanOut) -> u64 {
        ran_out.iter().map(|(left, _)| u64::from(*left)).sum()
    }

    proptest! {
        #[test]
        fn no_more_is_spent_than_was_granted(
            most in 0_u32..20,
            events in prop::collection::vec((0_u8..4, 0_u64..200), 1..300),
        ) {
            let (mut lease, mut now) = (Lease::default(), 0);
            let (mut all, mut spent, mut returned) = (0_u64, 0_u64, 0_u64);
            let mut questions: Vec<(u32, bool, bool)> = Vec::new();
            for (what, gap) in events {
                now += gap * MS;
                match what {
                    0 | 1 => match lease.step(now, most) {
                        Step::Spend { refill, .. } => {
                            spent += 1;
                            if refill > 0 {
                                questions.push((refill, true, false));
                            }
                        }
                        Step::Ask { count, portion } => questions.push((count, portion, true)),
                        Step::Refused { wait } => prop_assert!(wait > 0),
                    },
                    2 => if let Some((count, portion, waits)) = questions.pop() {
                        let some = u32::try_from(gap % u64::from(count + 1)).unwrap();
                        all += u64::from(some);
                        let wait = gap * MS;
                        let (asked, granted, at, life) = (count, some, now, LEASE);
                        let settled = lease.settle(Grant { asked, granted, waits, portion, wait, at, life }, now, most);
                        returned += sum(settled.ran_out);
                        spent += u64::from(settled.admits);
                    },
                    _ => returned += sum(lease.run_out(now)),
                }
                prop_assert_eq!(all, spent + returned + u64::from(lease.left));
                let portion = most.max(1);
                prop_assert!(lease.left <= portion + portion / 2 + 1, "{lease:?}");
            }
        }
    }
}
