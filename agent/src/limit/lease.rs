//! What a node holds of a key's quota that the cluster counts, pure: what is spent at once, when the store is asked, and for how much.
//!
//! A quota that is decided request by request (`most` is 0) holds nothing; it only remembers for a moment that it is used up, so that
//! those who come for nothing cost the store little. One that is leased is taken in portions: each that was used up doubles the
//! next, each that ran out unused halves it. All of it is in units, of which a request may cost more than one.

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
    /// Units that may still be let through.
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
    /// Until when the store has nothing more
    used_up_until: u64,
    /// for requests that cost so many units or more.
    used_up_for: u32,
    /// When it said that it would have more.
    more_at: u64,
    /// Until when nobody asks beside the portion that is asked for next: of what is scarce, each would get one or none.
    scarce_until: u64,
    /// Units that were let through without the store's knowing, which are paid for by the next that are granted.
    owed: u32,
    /// After this time nobody counts them any more.
    owed_until: u64,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It is let through.
    Spend {
        /// So many units could follow it.
        left: u32,
        /// A portion that the store is to be asked for meanwhile; 0: none.
        refill: u32,
    },
    /// The store decides: it is asked for so many.
    Ask {
        /// How many units.
        count: u32,
        /// What is granted is a multiple of this.
        step: u32,
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
    /// and what the request costs that waits for it; 0: none does.
    pub waits: u32,
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
    pub fn step(&mut self, now: u64, most: u32, cost: u32) -> Step {
        self.pay(now);
        if self.left >= cost && now < self.until && self.owed == 0 {
            self.left -= cost;
            let refill = self.left < self.portion / 2 && !self.asking && now >= self.used_up_until;
            self.asking |= refill;
            let portion = self.portion.clamp(1, most.max(1));
            return Step::Spend { left: self.left, refill: if refill { portion } else { 0 } };
        }
        if let Some(wait) = self.holds(now, most, cost) {
            return Step::Refused { wait };
        }
        // A part of what it costs is of no use to a request, but pays what is owed.
        let step = if self.owed == 0 { cost } else { 1 };
        if most == 0 || self.asking {
            return Step::Ask { count: self.owed.saturating_add(cost), step, portion: false };
        }
        self.asking = true;
        self.portion = self.portion.clamp(1, most);
        let whole = (self.portion / cost.max(1)).max(1).saturating_mul(cost);
        Step::Ask { count: self.owed.saturating_add(whole), step, portion: true }
    }

    /// How long a request would be refused for, without a question to the store; `None` where it would not be.
    pub fn refuses(&mut self, now: u64, most: u32, cost: u32) -> Option<u64> {
        self.pay(now);
        let is_left = self.left >= cost && now < self.until && self.owed == 0;
        if is_left { None } else { self.holds(now, most, cost) }
    }

    /// How long nobody asks the store of whom nothing is left.
    fn holds(&self, now: u64, most: u32, cost: u32) -> Option<u64> {
        if now < self.used_up_until && cost >= self.used_up_for {
            return Some(self.used_up_until.max(self.more_at) - now);
        }
        (most > 0 && self.asking && now < self.scarce_until)
            .then(|| self.scarce_until.max(self.more_at) - now)
    }

    /// A request was let through without the store's knowing; after `span` it would not be counted any more.
    pub fn owe(&mut self, now: u64, span: u64, cost: u32) {
        if self.owed == 0 || now >= self.owed_until {
            (self.owed, self.owed_until) = (0, now.saturating_add(span));
        }
        self.owed = self.owed.saturating_add(cost);
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
        let rest = grant.granted - paid;
        let admits = grant.waits > 0 && rest >= grant.waits;
        let kept = if admits { rest - grant.waits } else { rest };
        let settled = Settled { admits, ran_out };
        if kept > 0 {
            (self.before, self.last) = (self.last.1, (kept, grant.at));
            self.left = self.left.saturating_add(kept);
            self.until = now.saturating_add(grant.life);
        }
        if grant.granted >= grant.asked {
            if grant.portion {
                self.portion = self.portion.saturating_mul(2).clamp(1, most.max(1));
                self.scarce_until = 0;
            }
            return settled;
        }
        // Where it had nothing at all, it may have something for whoever costs less.
        let used_up_for = if grant.granted == 0 { grant.waits.max(1) } else { 1 };
        if now < self.used_up_until && self.used_up_for < used_up_for {
            return settled;
        }
        let pause = if most == 0 { grant.wait } else { grant.wait.max(SCARCE) };
        // With some left, nobody is refused; the store is left alone all the same.
        self.more_at = now.saturating_add(grant.wait);
        self.used_up_until = now.saturating_add(pause.min(USED_UP_MAX));
        self.scarce_until = self.used_up_until.saturating_add(SCARCE);
        self.used_up_for = used_up_for;
        settled
    }

    /// Nobody waits any more for what was granted: one more may be let through.
    pub fn keep(&mut self, now: u64, life: u64, cost: u32) {
        self.left = self.left.saturating_add(cost);
        self.last.0 = self.last.0.saturating_add(cost);
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
    pub fn give_back(&mut self, now: u64, cost: u32) -> Option<u64> {
        if now >= self.until {
            return Some(self.granted_at);
        }
        self.left = self.left.saturating_add(cost);
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
        Grant { asked, granted, waits: 1, portion: true, wait: 5 * MS, at: 7, life: LEASE }
    }

    #[test]
    fn portions_grow_with_demand_and_shrink_without() {
        let (mut lease, mut sizes) = (Lease::default(), Vec::new());
        for _ in 0..7 {
            let Step::Ask { count, portion: true, .. } = lease.step(0, 16, 1) else { panic!("{lease:?}") };
            sizes.push(count);
            lease.settle(grant(count, count), 0, 16);
            while lease.left > 0 {
                if let Step::Spend { refill, .. } = lease.step(0, 16, 1)
                    && refill > 0
                {
                    lease.failed(true);
                }
            }
        }
        assert_eq!(sizes, [1, 2, 4, 8, 16, 16, 16]);
        lease.step(0, 16, 1);
        lease.settle(grant(16, 16), 0, 16);
        assert_eq!(lease.run_out(LEASE - 1), RanOut::default());
        assert_eq!(lease.run_out(LEASE), [(0, 7), (15, 7)]);
        assert_eq!(lease.step(LEASE, 16, 1), Step::Ask { count: 8, step: 1, portion: true });
    }

    #[test]
    fn what_runs_out_is_told_by_its_portion() {
        let mut lease = Lease { portion: 8, ..Lease::default() };
        for (at, granted) in [(1, 8), (2, 8)] {
            lease.settle(Grant { at, waits: 0, ..grant(granted, granted) }, 0, 8);
        }
        for _ in 0..5 {
            assert!(matches!(lease.step(0, 8, 1), Step::Spend { .. }));
        }
        assert_eq!(lease.run_out(LEASE), [(3, 1), (8, 2)], "the older is spent first");
    }

    #[test]
    fn while_it_is_asked_for_requests_ask_for_themselves() {
        let mut lease = Lease::default();
        assert_eq!(lease.step(0, 8, 1), Step::Ask { count: 1, step: 1, portion: true });
        assert_eq!(lease.step(0, 8, 1), Step::Ask { count: 1, step: 1, portion: false });
        lease.settle(Grant { portion: false, ..grant(1, 1) }, 0, 8);
        let alone = Step::Ask { count: 1, step: 1, portion: false };
        assert_eq!(lease.step(0, 8, 1), alone, "the portion is still awaited");
    }

    #[test]
    fn a_store_that_has_nothing_is_left_alone() {
        // (largest portion, wait) -> how long; who is refused meanwhile is told the whole wait.
        for (most, wait, pause) in
            [(0, 5 * MS, 5 * MS), (0, 900 * MS, 100 * MS), (8, 5 * MS, 10 * MS), (8, 900 * MS, 100 * MS)]
        {
            let mut lease = Lease::default();
            lease.step(0, most, 1);
            lease.settle(Grant { wait, portion: most > 0, ..grant(1, 0) }, 0, most);
            assert_eq!(lease.step(0, most, 1), Step::Refused { wait: pause.max(wait) }, "{most} {wait}");
            assert!(matches!(lease.step(pause, most, 1), Step::Ask { .. }), "{most} {wait}");
        }
    }

    #[test]
    fn what_would_be_refused_is_known_without_a_step() {
        // (largest portion, granted of what was asked, cost) -> whether it is
        for (most, granted, cost, known) in
            [(0, 0, 1, true), (0, 0, 2, true), (8, 0, 1, true), (8, 3, 1, false), (8, 3, 4, true)]
        {
            let mut lease = Lease::default();
            assert_eq!(lease.refuses(0, most, cost), None, "nothing is known of it");
            lease.step(0, most, 1);
            lease.settle(
                Grant { waits: u32::from(granted == 0), portion: most > 0, ..grant(8, granted) },
                0,
                most,
            );
            let before = lease;
            let wait = lease.refuses(1, most, cost);
            assert_eq!((wait.is_some(), lease), (known, before), "{most} {granted} {cost}");
            let refused = wait.map(|wait| Step::Refused { wait });
            let step = lease.step(1, most, cost);
            assert_eq!(
                refused,
                matches!(step, Step::Refused { .. }).then_some(step),
                "{most} {granted} {cost}"
            );
        }
    }

    #[test]
    fn nobody_asks_beside_a_portion_of_what_is_scarce() {
        let refused = |wait| Step::Refused { wait };
        let mut lease = Lease::default();
        lease.step(0, 8, 1);
        lease.settle(Grant { waits: 1, ..grant(8, 3) }, 0, 8);
        assert!(matches!(lease.step(1, 8, 1), Step::Spend { refill: 0, .. }), "what there is, is spent");
        assert!(matches!(lease.step(1, 8, 1), Step::Spend { refill: 0, .. }));
        assert_eq!(lease.step(4 * MS, 8, 1), refused(6 * MS), "the store is left alone");
        assert!(matches!(lease.step(SCARCE, 8, 1), Step::Ask { portion: true, .. }));
        assert_eq!(lease.step(SCARCE + MS, 8, 1), refused(9 * MS), "its answer is awaited");
        let alone = Step::Ask { count: 1, step: 1, portion: false };
        assert_eq!(lease.step(2 * SCARCE, 8, 1), alone, "but not for long");
        lease.settle(Grant { waits: 0, ..grant(1, 1) }, 2 * SCARCE, 8);
        lease.run_out(2 * SCARCE + LEASE);
        lease.step(2 * SCARCE + LEASE, 8, 1);
        assert_eq!(lease.step(2 * SCARCE + LEASE, 8, 1), alone, "it is not scarce any more");
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
                lease.owe(0, 1000 * MS, 1);
            }
            assert_eq!(lease.step(1, 0, 1), Step::Ask { count: owed + 1, step: 1, portion: false });
            assert_eq!(lease.settle(exact(granted, owed), 1, 0).admits, admits, "{owed} {granted}");
            assert_eq!((lease.owed, lease.left), (rest, 0), "{owed} {granted}");
        }
        // An answer that comes too late for its request pays for it.
        let mut lease = Lease::default();
        assert_eq!(lease.step(0, 0, 1), Step::Ask { count: 1, step: 1, portion: false });
        lease.owe(0, 1000 * MS, 1);
        assert!(!lease.settle(exact(1, 0), 1, 0).admits && lease.owed == 0 && lease.left == 0);
        // After the span nobody counts it.
        lease.owe(0, MS, 1);
        assert_eq!(lease.step(MS, 0, 1), Step::Ask { count: 1, step: 1, portion: false });
    }

    #[test]
    fn a_request_may_cost_more_than_is_left() {
        let mut lease = Lease { portion: 8, ..Lease::default() };
        assert_eq!(lease.step(0, 8, 3), Step::Ask { count: 6, step: 3, portion: true }, "whole requests");
        let settled = lease.settle(Grant { waits: 3, ..grant(6, 6) }, 0, 8);
        assert!(settled.admits && lease.left == 3);
        assert_eq!(lease.step(0, 8, 5), Step::Ask { count: 5, step: 5, portion: true });
        assert!(
            matches!(lease.step(0, 8, 3), Step::Spend { left: 0, .. }),
            "what is left is for who needs less"
        );
        assert_eq!(lease.give_back(0, 3), None);
        assert_eq!(lease.left, 3);
    }

    #[test]
    fn who_costs_less_than_what_was_refused_asks_for_himself() {
        let mut lease = Lease::default();
        let refused = |waits, wait| Grant { waits, wait, portion: false, ..grant(waits, 0) };
        lease.settle(refused(5, 50 * MS), 0, 0);
        assert_eq!(lease.step(0, 0, 5), Step::Refused { wait: 50 * MS });
        assert_eq!(lease.step(0, 0, 9), Step::Refused { wait: 50 * MS });
        assert_eq!(lease.step(0, 0, 4), Step::Ask { count: 4, step: 4, portion: false });
        lease.settle(refused(4, 20 * MS), 0, 0);
        lease.settle(refused(6, 60 * MS), 0, 0);
        assert_eq!(lease.step(0, 0, 4), Step::Refused { wait: 20 * MS }, "the larger one holds nobody up");
        assert!(matches!(lease.step(20 * MS, 0, 4), Step::Ask { .. }));
    }

    #[test]
    fn what_is_owed_is_paid_by_parts_of_what_a_request_costs() {
        let mut lease = Lease::default();
        lease.owe(0, 1000 * MS, 5);
        assert_eq!(lease.step(1, 0, 5), Step::Ask { count: 10, step: 1, portion: false });
        let settled = lease.settle(Grant { waits: 5, portion: false, ..grant(10, 7) }, 1, 0);
        assert!(!settled.admits && (lease.owed, lease.left) == (0, 2), "the rest goes back when it runs out");
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
            events in prop::collection::vec((0_u8..4, 0_u64..200, 1_u32..7), 1..300),
        ) {
            let (mut lease, mut now) = (Lease::default(), 0);
            let (mut all, mut spent, mut returned) = (0_u64, 0_u64, 0_u64);
            let mut questions: Vec<(u32, u32, bool, u32)> = Vec::new();
            for (what, gap, cost) in events {
                now += gap * MS;
                match what {
                    0 | 1 => match lease.step(now, most, cost) {
                        Step::Spend { refill, .. } => {
                            spent += u64::from(cost);
                            if refill > 0 {
                                questions.push((refill, 1, true, 0));
                            }
                        }
                        Step::Ask { count, step, portion } => questions.push((count, step, portion, cost)),
                        Step::Refused { wait } => prop_assert!(wait > 0),
                    },
                    2 => if let Some((count, step, portion, waits)) = questions.pop() {
                        let some = u32::try_from(gap % u64::from(count + 1)).unwrap() / step * step;
                        all += u64::from(some);
                        let wait = gap * MS;
                        let (asked, granted, at, life) = (count, some, now, LEASE);
                        let settled = lease.settle(Grant { asked, granted, waits, portion, wait, at, life }, now, most);
                        returned += sum(settled.ran_out);
                        spent += u64::from(waits) * u64::from(settled.admits);
                    },
                    _ => returned += sum(lease.run_out(now)),
                }
                prop_assert_eq!(all, spent + returned + u64::from(lease.left));
                let portion = most.max(1);
                // Beside a portion, what was too little for the request that it was asked for.
                prop_assert!(lease.left <= portion + (portion / 2).max(5) + 1, "{lease:?}");
            }
        }
    }
}
