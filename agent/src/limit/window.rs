//! An exact sliding window: the time of each unit that requests within it cost is kept.

use std::collections::VecDeque;

use super::{Counter, NEVER, Verdict};

/// Room that an empty log keeps, in units.
const KEPT: usize = 16;

/// Requests of so many units in any span of so many nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// How many; at least 1.
    pub requests: u32,
    /// Nanoseconds; at least 1.
    pub window: u64,
}

/// When the requests within the window came, in order: 8 bytes for each unit of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Log(VecDeque<u64>);

impl Window {
    /// Remembers a request that was let through whatever the log held, of at most as many as the window has.
    pub fn note(&self, log: &mut Log, now: u64, cost: u32) {
        self.forget(log, now);
        log.push(now, cost.min(self.requests));
        let beyond = log.0.len().saturating_sub(self.requests as usize);
        log.0.drain(..beyond);
    }

    fn forget(&self, log: &mut Log, now: u64) {
        while log.0.front().is_some_and(|at| at.saturating_add(self.window) <= now) {
            log.0.pop_front();
        }
        // What a burst has taken is given back once it is forgotten.
        if log.0.is_empty() && log.0.capacity() > KEPT {
            log.0 = VecDeque::new();
        }
    }
}

impl Log {
    fn push(&mut self, now: u64, cost: u32) {
        // Another thread's clock may have been read a moment later.
        let at = self.0.back().map_or(now, |last| now.max(*last));
        self.0.extend(std::iter::repeat_n(at, cost as usize));
    }
}

impl Counter for Window {
    type State = Log;

    fn take(&self, log: &mut Log, now: u64, cost: u32) -> Verdict {
        let verdict = self.peek(log, now, cost);
        if matches!(verdict, Verdict::Admitted { .. }) {
            log.push(now, cost);
        }
        verdict
    }

    fn peek(&self, log: &mut Log, now: u64, cost: u32) -> Verdict {
        self.forget(log, now);
        let free = (self.requests as usize).saturating_sub(log.0.len());
        match free.checked_sub(cost as usize) {
            Some(remaining) => Verdict::Admitted { remaining: remaining as u64 },
            None if cost > self.requests => Verdict::Refused { wait: NEVER },
            None => {
                // So many of the oldest have to go.
                let last = log.0.get(cost as usize - free - 1).copied().unwrap_or(now);
                Verdict::Refused { wait: last.saturating_add(self.window).saturating_sub(now) }
            }
        }
    }

    fn give_back(&self, log: &mut Log, taken: u64, cost: u32) {
        // Those that were moved behind a later one have its time.
        let first = log.0.partition_point(|at| *at < taken);
        let end = log.0.len().min(first.saturating_add(cost as usize));
        log.0.drain(first..end);
    }

    fn is_idle(&self, log: &Log, now: u64) -> bool {
        log.0.back().is_none_or(|last| last.saturating_add(self.window) <= now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_hundred_in_fifteen_minutes_and_not_one_more() {
        const MINUTE: u64 = 60_000_000_000;
        let limit = Window { requests: 100, window: 15 * MINUTE };
        let mut log = Log::default();
        let mut admitted = |now: u64, tries: u32| {
            (0..tries).filter(|_| matches!(limit.take(&mut log, now, 1), Verdict::Admitted { .. })).count()
        };
        assert_eq!(admitted(0, 60), 60);
        assert_eq!(admitted(MINUTE, 60), 40);
        assert_eq!(admitted(15 * MINUTE - 1, 60), 0);
        assert_eq!(admitted(15 * MINUTE, 100), 60);
        assert_eq!(admitted(16 * MINUTE, 100), 40);
        assert_eq!(limit.take(&mut log, 16 * MINUTE, 1), Verdict::Refused { wait: 14 * MINUTE });
    }

    #[test]
    fn a_hundred_units_are_twenty_requests_of_five() {
        let limit = Window { requests: 100, window: 1000 };
        let mut log = Log::default();
        for number in 1..=20 {
            assert_eq!(limit.take(&mut log, number, 5), Verdict::Admitted { remaining: 100 - 5 * number });
        }
        assert_eq!(limit.take(&mut log, 20, 5), Verdict::Refused { wait: 981 });
        assert_eq!(limit.take(&mut log, 20, 6), Verdict::Refused { wait: 982 }, "two have to go");
        assert_eq!(limit.take(&mut log, 20, 101), Verdict::Refused { wait: NEVER });
        limit.give_back(&mut log, 7, 5);
        assert_eq!(limit.take(&mut log, 21, 3), Verdict::Admitted { remaining: 2 });
        let mut noted = Log::default();
        for now in 0..1000 {
            limit.note(&mut noted, now, 70);
        }
        assert_eq!(noted.0.len(), 100, "what is noted is never more than the whole");
    }

    fn is_refused(verdict: Verdict) -> bool {
        matches!(verdict, Verdict::Refused { .. })
    }

    proptest! {
        #[test]
        fn it_admits_what_a_full_log_admits(
            requests in 1_u32..20,
            window in 1_u64..1000,
            asked in prop::collection::vec((0_u64..200, 1_u32..22), 1..300),
        ) {
            let limit = Window { requests, window };
            let (mut log, mut all, mut now) = (Log::default(), Vec::new(), 0);
            for (gap, cost) in asked {
                now += gap;
                let costs = all.iter().filter(|(at, _)| *at + window > now).map(|(_, cost)| *cost);
                let left = requests - costs.sum::<u32>();
                match limit.take(&mut log, now, cost) {
                    Verdict::Admitted { remaining } => {
                        prop_assert_eq!(left.checked_sub(cost).map(u64::from), Some(remaining));
                        all.push((now, cost));
                    }
                    Verdict::Refused { wait: NEVER } => prop_assert!(cost > requests),
                    Verdict::Refused { wait } => {
                        prop_assert!(left < cost && cost <= requests);
                        prop_assert!(is_refused(limit.peek(&mut log.clone(), now + wait - 1, cost)));
                        prop_assert!(!is_refused(limit.peek(&mut log.clone(), now + wait, cost)));
                    }
                }
                prop_assert!(log.0.len() <= requests as usize);
            }
        }

        #[test]
        fn what_is_given_back_is_as_if_never_taken(
            asked in prop::collection::vec((0_u64..100, 1_u32..9, 1_u32..9), 1..100),
        ) {
            let limit = Window { requests: 20, window: 1000 };
            let (mut log, mut other, mut now) = (Log::default(), Log::default(), 0);
            for (gap, cost, kept) in asked {
                now += gap;
                let taken = (!is_refused(limit.take(&mut log, now, cost))).then_some(now);
                // Another one comes in between.
                now += gap;
                if !is_refused(limit.take(&mut log, now, kept)) {
                    prop_assert!(!is_refused(limit.take(&mut other, now, kept)));
                }
                if let Some(taken) = taken {
                    limit.give_back(&mut log, taken, cost);
                }
                limit.forget(&mut other, now);
                prop_assert_eq!(&log, &other);
            }
        }
    }
}
