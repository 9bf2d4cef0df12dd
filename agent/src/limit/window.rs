//! An exact sliding window: the time of each request within it is kept.

use std::collections::VecDeque;

use super::{Counter, Verdict};

/// So many requests in any span of so many nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// How many; at least 1.
    pub requests: u32,
    /// Nanoseconds; at least 1.
    pub window: u64,
}

/// When the requests within the window came, in order: 8 bytes for each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Log(VecDeque<u64>);

impl Window {
    /// Remembers a request that was let through whatever the log held, of at most as many as the window has.
    pub fn note(&self, log: &mut Log, now: u64) {
        self.forget(log, now);
        if log.0.len() >= self.requests as usize {
            log.0.pop_front();
        }
        let at = log.0.back().map_or(now, |last| now.max(*last));
        log.0.push_back(at);
    }

    fn forget(&self, log: &mut Log, now: u64) {
        while log.0.front().is_some_and(|at| at.saturating_add(self.window) <= now) {
            log.0.pop_front();
        }
    }
}

impl Counter for Window {
    type State = Log;

    fn take(&self, log: &mut Log, now: u64) -> Verdict {
        let verdict = self.peek(log, now);
        if matches!(verdict, Verdict::Admitted { .. }) {
            // Another thread's clock may have been read a moment later.
            let at = log.0.back().map_or(now, |last| now.max(*last));
            log.0.push_back(at);
        }
        verdict
    }

    fn peek(&self, log: &mut Log, now: u64) -> Verdict {
        self.forget(log, now);
        let free = u64::from(self.requests).saturating_sub(log.0.len() as u64);
        match (free.checked_sub(1), log.0.front()) {
            (Some(remaining), _) => Verdict::Admitted { remaining },
            (None, Some(first)) => Verdict::Refused { wait: first.saturating_add(self.window) - now },
            (None, None) => Verdict::Refused { wait: self.window },
        }
    }

    fn give_back(&self, log: &mut Log, taken: u64) {
        // The last one is the likeliest, and one that was moved behind a later one is as good.
        if let Some(position) = log.0.iter().rposition(|at| *at >= taken) {
            log.0.remove(position);
        }
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
            (0..tries).filter(|_| matches!(limit.take(&mut log, now), Verdict::Admitted { .. })).count()
        };
        assert_eq!(admitted(0, 60), 60);
        assert_eq!(admitted(MINUTE, 60), 40);
        assert_eq!(admitted(15 * MINUTE - 1, 60), 0);
        assert_eq!(admitted(15 * MINUTE, 100), 60);
        assert_eq!(admitted(16 * MINUTE, 100), 40);
        assert_eq!(limit.take(&mut log, 16 * MINUTE), Verdict::Refused { wait: 14 * MINUTE });
    }

    fn is_refused(verdict: Verdict) -> bool {
        matches!(verdict, Verdict::Refused { .. })
    }

    proptest! {
        #[test]
        fn it_admits_what_a_full_log_admits(
            requests in 1_u32..20,
            window in 1_u64..1000,
            gaps in prop::collection::vec(0_u64..200, 1..300),
        ) {
            let limit = Window { requests, window };
            let (mut log, mut all, mut now) = (Log::default(), Vec::new(), 0);
            for gap in gaps {
                now += gap;
                let within = all.iter().filter(|at| *at + window > now).count();
                let room = within < requests as usize;
                let verdict = limit.take(&mut log, now);
                prop_assert_eq!(matches!(verdict, Verdict::Admitted { .. }), room);
                if room {
                    all.push(now);
                } else if let Verdict::Refused { wait } = verdict {
                    let mut later = log.clone();
                    prop_assert!(is_refused(limit.peek(&mut log.clone(), now + wait - 1)));
                    prop_assert!(!is_refused(limit.peek(&mut later, now + wait)));
                }
                prop_assert!(log.0.len() <= requests as usize);
            }
        }
    }
}
