//! A rate with a burst: the generic cell rate algorithm, kept as the level of a leaky bucket.
//!
//! The level is counted in a unit in which both a request and a nanosecond's leak are whole numbers, so that nothing is
//! ever rounded: after a year of any pattern the bucket admits what the exact one would.

use super::{Counter, NEVER, Verdict};

/// So many requests in so many nanoseconds, and so many at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// What one request adds to the level.
    unit: u64,
    /// What the level loses in a nanosecond.
    leak: u64,
    /// The highest level.
    capacity: u64,
}

/// Why a rate can't be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RateError {
    /// Nothing would ever be let through, or everything.
    #[error("requests, window and burst must be above zero")]
    Zero,
    /// The level would not fit its integer.
    #[error("a burst of {burst} is too large for this rate: at most {most}")]
    Burst {
        /// What was asked for.
        burst: u64,
        /// The most.
        most: u64,
    },
}

/// How full the bucket is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bucket {
    level: u64,
    /// When it had that level.
    at: u64,
}

impl Rate {
    /// `requests` in `window` nanoseconds, `burst` at once.
    pub fn new(requests: u64, window: u64, burst: u64) -> Result<Self, RateError> {
        if requests == 0 || window == 0 || burst == 0 {
            return Err(RateError::Zero);
        }
        let divisor = greatest_common_divisor(requests, window);
        let (unit, leak) = (window / divisor, requests / divisor);
        // One more request than the capacity still fits.
        let most = (u64::MAX / unit).saturating_sub(1);
        if burst > most {
            return Err(RateError::Burst { burst, most });
        }
        Ok(Self { unit, leak, capacity: burst * unit })
    }

    /// The numbers that it is computed with, for whoever counts elsewhere: what a request adds, what a unit of time takes away (a
    /// nanosecond's where the window was given in them), and the highest level.
    pub fn numbers(&self) -> (u64, u64, u64) {
        (self.unit, self.leak, self.capacity)
    }

    /// As [`Counter::take`], where each unit weighs as much as so many; an empty bucket takes a request of any weight.
    pub fn take_weighed(&self, bucket: &mut Bucket, now: u64, cost: u32, weight: u64) -> Verdict {
        let verdict = self.peek_weighed(bucket, now, cost, weight);
        if matches!(verdict, Verdict::Admitted { .. }) {
            bucket.level = bucket.level.saturating_add(self.raised(cost, weight));
        }
        verdict
    }

    /// What [`Self::take_weighed`] would say.
    pub fn peek_weighed(&self, bucket: &mut Bucket, now: u64, cost: u32, weight: u64) -> Verdict {
        *bucket = self.leaked(bucket, now);
        let raised = self.raised(cost, weight);
        let capacity = self.capacity.max(raised);
        // Level and cost may each be as high as the capacity, and so their sum beyond the integer.
        let over = u128::from(bucket.level) + u128::from(raised);
        match over.checked_sub(capacity.into()) {
            None | Some(0) => {
                let free = capacity.saturating_sub(bucket.level).saturating_sub(raised);
                Verdict::Admitted { remaining: free / self.raised(1, weight).max(1) }
            }
            Some(over) => {
                let wait = over.div_ceil(self.leak.into());
                Verdict::Refused { wait: u64::try_from(wait).unwrap_or(NEVER - 1) }
            }
        }
    }

    /// What a request adds to the level.
    fn raised(&self, cost: u32, weight: u64) -> u64 {
        self.unit.saturating_mul(weight).saturating_mul(cost.into())
    }

    /// Fills the bucket by a request of this weight that was let through whatever it held; it is never more than full.
    pub fn pour(&self, bucket: &mut Bucket, now: u64, cost: u32, weight: u64) {
        *bucket = self.leaked(bucket, now);
        let full = self.capacity.max(bucket.level);
        bucket.level = bucket.level.saturating_add(self.raised(cost, weight)).min(full);
    }

    /// Takes out again what a request of this weight filled in.
    pub fn drain(&self, bucket: &mut Bucket, cost: u32, weight: u64) {
        bucket.level = bucket.level.saturating_sub(self.raised(cost, weight));
    }

    fn leaked(&self, bucket: &Bucket, now: u64) -> Bucket {
        let leaked = now.saturating_sub(bucket.at).saturating_mul(self.leak);
        // Another thread's clock may have been read a moment later.
        Bucket { level: bucket.level.saturating_sub(leaked), at: bucket.at.max(now) }
    }
}

impl Counter for Rate {
    type State = Bucket;

    fn take(&self, bucket: &mut Bucket, now: u64, cost: u32) -> Verdict {
        if self.raised(cost, 1) > self.capacity {
            return Verdict::Refused { wait: NEVER };
        }
        self.take_weighed(bucket, now, cost, 1)
    }

    fn peek(&self, bucket: &mut Bucket, now: u64, cost: u32) -> Verdict {
        if self.raised(cost, 1) > self.capacity {
            return Verdict::Refused { wait: NEVER };
        }
        self.peek_weighed(bucket, now, cost, 1)
    }

    fn give_back(&self, bucket: &mut Bucket, _: u64, cost: u32) {
        self.drain(bucket, cost, 1);
    }

    fn is_idle(&self, bucket: &Bucket, now: u64) -> bool {
        self.leaked(bucket, now).level == 0
    }
}

fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn is_refused(verdict: Verdict) -> bool {
        matches!(verdict, Verdict::Refused { .. })
    }

    #[test]
    fn a_burst_at_once_and_then_the_rate() {
        let rate = Rate::new(10, SECOND, 3).expect("a rate");
        let mut bucket = Bucket::default();
        for remaining in [2, 1, 0] {
            assert_eq!(rate.take(&mut bucket, SECOND, 1), Verdict::Admitted { remaining });
        }
        assert_eq!(rate.take(&mut bucket, SECOND, 1), Verdict::Refused { wait: SECOND / 10 });
        let later = SECOND + SECOND / 10;
        assert_eq!(rate.take(&mut bucket, later - 1, 1), Verdict::Refused { wait: 1 });
        assert_eq!(rate.take(&mut bucket, later, 1), Verdict::Admitted { remaining: 0 });
        assert!(!rate.is_idle(&bucket, later) && rate.is_idle(&bucket, later + SECOND));
    }

    #[test]
    fn a_request_may_cost_more_than_one() {
        let rate = Rate::new(100, SECOND, 100).expect("a rate");
        let mut bucket = Bucket::default();
        for number in 1..=20 {
            assert_eq!(rate.take(&mut bucket, SECOND, 5), Verdict::Admitted { remaining: 100 - 5 * number });
        }
        assert_eq!(rate.take(&mut bucket, SECOND, 5), Verdict::Refused { wait: SECOND / 20 });
        assert_eq!(rate.take(&mut bucket, SECOND, 1), Verdict::Refused { wait: SECOND / 100 });
        assert_eq!(rate.take(&mut Bucket::default(), SECOND, 101), Verdict::Refused { wait: NEVER });
        rate.give_back(&mut bucket, SECOND, 5);
        assert_eq!(rate.take(&mut bucket, SECOND, 4), Verdict::Admitted { remaining: 1 });
    }

    #[test]
    fn what_can_not_be_is_refused() {
        for (requests, window, burst) in [(0, 1, 1), (1, 0, 1), (1, 1, 0)] {
            assert_eq!(Rate::new(requests, window, burst), Err(RateError::Zero));
        }
        assert!(matches!(Rate::new(1, u64::MAX / 2, 5), Err(RateError::Burst { most: 1, .. })));
        assert!(Rate::new(u64::MAX, u64::MAX, u64::MAX - 1).is_ok());
    }

    #[test]
    fn a_year_drifts_by_nothing() {
        // A prime number, which no unit of time divides.
        let (requests, year) = (997_u64, 365 * 86_400 * SECOND);
        let rate = Rate::new(requests, 60 * SECOND, 1).expect("a rate");
        let (mut bucket, mut now, mut admitted) = (Bucket::default(), 0_u64, 0_u64);
        // From one admission to the next, without the loop's having to run for a year.
        let step = year / 1000;
        while now < year {
            for _ in 0..1000 {
                match rate.take(&mut bucket, now, 1) {
                    Verdict::Admitted { .. } => admitted += 1,
                    Verdict::Refused { wait } => now += wait,
                }
            }
            // What follows is not taken: the pause empties the bucket.
            now += step;
        }
        assert!(admitted > 300_000);
        // Without pauses, each window has exactly its requests.
        let (mut bucket, start) = (Bucket::default(), year);
        let mut now = start;
        let mut taken = 0;
        while now < start + 600 * SECOND {
            match rate.take(&mut bucket, now, 1) {
                Verdict::Admitted { .. } => taken += 1,
                Verdict::Refused { wait } => now += wait,
            }
        }
        assert_eq!(taken, requests * 10);
    }

    proptest! {
        #[test]
        fn it_admits_what_the_exact_fraction_admits(
            requests in 1_u64..2000,
            window in 1_u64..(100 * SECOND),
            burst in 1_u64..50,
            asked in prop::collection::vec((0_u64..SECOND, 1_u32..60), 1..200),
        ) {
            let rate = Rate::new(requests, window, burst).expect("a rate");
            let mut bucket = Bucket::default();
            // Level and time as a fraction with the window as its denominator.
            let (mut level, mut now) = (0_u128, 0_u64);
            for (gap, cost) in asked {
                now += gap;
                level = level.saturating_sub(u128::from(gap) * u128::from(requests));
                let after = level + u128::from(cost) * u128::from(window);
                let most = u128::from(burst) * u128::from(window);
                let verdict = rate.take(&mut bucket, now, cost);
                match verdict {
                    Verdict::Admitted { remaining } => {
                        prop_assert!(after <= most);
                        level = after;
                        prop_assert_eq!(u128::from(remaining), (most - level) / u128::from(window));
                    }
                    Verdict::Refused { wait: NEVER } => prop_assert!(u64::from(cost) > burst),
                    Verdict::Refused { wait } => {
                        prop_assert!(after > most && u64::from(cost) <= burst);
                        // The wait is exact: the nanosecond before is too early.
                        let mut probe = bucket;
                        prop_assert!(is_refused(rate.peek(&mut probe, now + wait - 1, cost)));
                        prop_assert!(!is_refused(rate.peek(&mut probe, now + wait, cost)));
                    }
                }
            }
        }

        #[test]
        fn the_largest_numbers_wrap_nowhere(
            requests in 1_u64..1000,
            window in (u64::MAX / 4096)..(u64::MAX / 1024),
            asked in prop::collection::vec((0_u64..(1 << 44), 1_u32..600), 1..50),
        ) {
            let divisor = greatest_common_divisor(requests, window);
            let burst = (u64::MAX / (window / divisor)).saturating_sub(1);
            let rate = Rate::new(requests, window, burst).expect("a rate");
            let (mut bucket, mut level, mut now) = (Bucket::default(), 0_u128, 0_u64);
            for (gap, cost) in asked {
                now += gap;
                level = level.saturating_sub(u128::from(gap) * u128::from(requests));
                let after = level + u128::from(cost) * u128::from(window);
                let room = after <= u128::from(burst) * u128::from(window);
                prop_assert_eq!(!is_refused(rate.take(&mut bucket, now, cost)), room, "{:?}", rate);
                if room {
                    level = after;
                }
            }
        }

        #[test]
        fn what_is_given_back_is_as_if_never_taken(
            asked in prop::collection::vec((0_u64..SECOND, 1_u32..7), 1..50),
        ) {
            let rate = Rate::new(7, SECOND, 5).expect("a rate");
            let (mut bucket, mut other, mut now) = (Bucket::default(), Bucket::default(), 0);
            for (gap, cost) in asked {
                now += gap;
                if matches!(rate.take(&mut bucket, now, cost), Verdict::Admitted { .. }) {
                    rate.give_back(&mut bucket, now, cost);
                }
                let _ = rate.peek(&mut other, now, 1);
                let _ = rate.peek(&mut bucket, now, 1);
                prop_assert_eq!(bucket, other);
            }
        }
    }
}
