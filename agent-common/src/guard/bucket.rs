//! Token buckets as one number each, so that a compare-and-swap is all the locking they need.
//!
//! The number is the time at which the bucket would be full again. Every token that is taken moves it on by the time that one
//! token takes to come; a token is refused where that would move it further ahead than a whole bucket. Nothing is ever
//! subtracted from a count, so nothing can wrap below zero.

/// How far ahead of a full bucket's debt a bucket may lie before it is taken to belong to another clock, or to a limit that is
/// no longer in force. Clocks of two processors differ by far less.
const FOREIGN_NS: u64 = 1_000_000_000;

/// How much one source may send.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limit {
    /// Nanoseconds in which one token comes; zero: there is no limit.
    pub interval_ns: u32,
    /// Tokens of a full bucket.
    pub burst: u32,
}

impl Limit {
    /// The highest rate: tokens come in whole nanoseconds, rounded up, which costs 1 % of this rate at most.
    pub const MAX_PER_SECOND: u32 = 10_000_000;

    /// So many per second, and so many at once.
    pub const fn per_second(rate: u32, burst: u32) -> Self {
        match rate {
            0 => Self { interval_ns: 0, burst: 0 },
            rate => Self { interval_ns: 1_000_000_000_u32.div_ceil(rate), burst },
        }
    }

    /// Whether it limits anything.
    #[inline(always)]
    pub const fn is_set(self) -> bool {
        self.interval_ns != 0
    }
}

/// Takes one token at a time: the bucket afterwards, and whether there was one. A bucket begins, full, at zero.
///
/// Over any interval of `t` seconds it gives at most `burst + rate * t` tokens, whichever way the clock jitters by less than
/// [`FOREIGN_NS`]. A clock that goes back by more finds the bucket empty. At the end of time no token is left.
#[inline(always)]
pub fn step(bucket: u64, now_ns: u64, limit: Limit) -> (u64, bool) {
    if !limit.is_set() {
        return (bucket, true);
    }
    let interval = u64::from(limit.interval_ns);
    // Two factors of 32 bits.
    advance(bucket, now_ns, interval, interval * u64::from(limit.burst))
}

/// As [`step`], where one token comes in `interval` nanoseconds and a whole bucket in `whole`.
#[inline(always)]
pub fn advance(bucket: u64, now_ns: u64, interval: u64, whole: u64) -> (u64, bool) {
    let mut full_at = bucket;
    if full_at > now_ns && full_at - now_ns > whole.saturating_add(FOREIGN_NS) {
        full_at = now_ns.saturating_add(whole);
    }
    let from = if full_at > now_ns { full_at } else { now_ns };
    let next = from.wrapping_add(interval);
    // The sum may have passed the end of 64 bits, and then there is no such time.
    if next < from || next - now_ns > whole {
        return (full_at, false);
    }
    (next, true)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use proptest::prelude::*;

    use super::*;

    /// How many of so many tries at one time get a token.
    fn taken(bucket: &mut u64, now: u64, limit: Limit, tries: u32) -> u32 {
        let mut taken = 0;
        for _ in 0..tries {
            let (next, allowed) = step(*bucket, now, limit);
            *bucket = next;
            taken += u32::from(allowed);
        }
        taken
    }

    #[test]
    fn burst_then_rate_then_full_again() {
        let limit = Limit::per_second(1000, 10);
        let (mut bucket, start) = (0, 5_000_000_000);
        assert_eq!(taken(&mut bucket, start, limit, 50), 10);
        assert_eq!(taken(&mut bucket, start + 999_999, limit, 50), 0);
        assert_eq!(taken(&mut bucket, start + 1_000_000, limit, 50), 1);
        assert_eq!(taken(&mut bucket, start + 4_000_000, limit, 50), 3);
        assert_eq!(taken(&mut bucket, start + 60_000_000_000, limit, 50), 10);
    }

    #[test]
    fn extremes() {
        let limit = Limit::per_second(1, u32::MAX);
        // (bucket, now) -> allowed
        for ((bucket, now), allowed) in [
            ((0, 0), true),
            ((0, u64::MAX), false),
            ((u64::MAX, u64::MAX), false),
            // Another clock's: the bucket counts as empty.
            ((u64::MAX, 0), false),
        ] {
            assert_eq!(step(bucket, now, limit).1, allowed, "{bucket} {now}");
        }
        assert!(!step(0, 1, Limit { interval_ns: 1, burst: 0 }).1, "a bucket without tokens gives none");
        assert_eq!(step(7, 1, Limit::default()), (7, true), "no limit");
        assert_eq!(Limit::per_second(3, 1).interval_ns, 333_333_334, "never faster than asked");
    }

    #[test]
    fn a_lowered_limit_acts_at_once() {
        let mut bucket = 0;
        taken(&mut bucket, 1, Limit::per_second(1, 1000), 1000);
        let lower = Limit::per_second(100, 10);
        assert_eq!(taken(&mut bucket, 2, lower, 5), 0);
        assert_eq!(taken(&mut bucket, 10_000_002, lower, 5), 1, "the old debt of 1,000 s is forgiven");
    }

    fn limits() -> impl Strategy<Value = Limit> {
        (1..=Limit::MAX_PER_SECOND, 1..2000u32).prop_map(|(rate, burst)| Limit::per_second(rate, burst))
    }

    /// Moves of a clock: mostly on, by next to nothing or by much, and back by less than [`FOREIGN_NS`].
    fn moves() -> impl Strategy<Value = Vec<i64>> {
        let by = prop_oneof![0..1000i64, 0..2_000_000_000i64, -900_000_000..0i64];
        prop::collection::vec(by, 1..300)
    }

    proptest! {
        #[test]
        fn no_interval_has_more_than_it_may(limit in limits(), moves in moves(), start in any::<u32>()) {
            let mut now = 1_000_000_000 + u64::from(start);
            let (mut low, mut high, mut bucket, mut allowed) = (now, now, 0, 0u64);
            for by in moves {
                // A clock that went back by more over all would be another clock.
                now = now.saturating_add_signed(by).max(high - 900_000_000);
                (low, high) = (low.min(now), high.max(now));
                allowed += u64::from(taken(&mut bucket, now, limit, 7));
                let most = u64::from(limit.burst) + (high - low) / u64::from(limit.interval_ns);
                prop_assert!(allowed <= most, "{allowed} of {most} after {} ns", high - low);
            }
        }

        #[test]
        fn what_is_saved_up_is_given(limit in limits(), start in any::<u32>()) {
            let mut bucket = 0;
            let now = u64::from(start);
            prop_assert_eq!(taken(&mut bucket, now, limit, limit.burst + 5), limit.burst);
            let later = now + 3 * u64::from(limit.interval_ns);
            prop_assert_eq!(taken(&mut bucket, later, limit, 10), limit.burst.min(3));
        }

        #[test]
        fn nothing_wraps(bucket in any::<u64>(), now in any::<u64>(), interval_ns in 1u32.., burst in any::<u32>()) {
            let limit = Limit { interval_ns, burst };
            let whole = u64::from(interval_ns) * u64::from(burst);
            let (next, allowed) = step(bucket, now, limit);
            if allowed {
                prop_assert!(next > now && next - now <= whole);
            }
            // A second try at the same time never finds a fuller bucket.
            prop_assert!(!step(next, now, limit).1 || allowed);
        }

        #[test]
        fn nothing_wraps_where_tokens_are_slow(bucket: u64, now: u64, interval in 1u64.., whole: u64) {
            let (next, allowed) = advance(bucket, now, interval, whole);
            if allowed {
                prop_assert!(next > now && next - now <= whole);
            }
            prop_assert!(!advance(next, now, interval, whole).1 || allowed);
        }

        #[test]
        fn a_clock_that_went_back_finds_it_empty(limit in limits(), back in 20_000_000_000u64..u64::MAX / 2) {
            let now = u64::MAX / 2;
            let mut bucket = 0;
            prop_assert_eq!(taken(&mut bucket, now, limit, limit.burst), limit.burst);
            let whole = u64::from(limit.interval_ns) * u64::from(limit.burst);
            prop_assume!(back > whole.saturating_add(FOREIGN_NS));
            let before = now - back;
            prop_assert_eq!(taken(&mut bucket, before, limit, 5), 0);
            prop_assert_eq!(taken(&mut bucket, before + u64::from(limit.interval_ns), limit, 5), 1);
        }
    }

    /// What the program does on several processors: each tries until its swap succeeds.
    #[test]
    fn threads_never_share_a_token() {
        const THREADS: u64 = 4;
        const STEPS: u64 = 50_000;
        let limit = Limit::per_second(1_000_000, 64);
        let (bucket, allowed, clock) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(1));
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for _ in 0..STEPS {
                        // Read before the others move it on: clocks of two processors disagree.
                        let now = clock.fetch_add(100, Ordering::Relaxed);
                        let mut seen = bucket.load(Ordering::Relaxed);
                        loop {
                            let (next, granted) = step(seen, now, limit);
                            match bucket.compare_exchange(seen, next, Ordering::Relaxed, Ordering::Relaxed) {
                                Ok(_) => {
                                    allowed.fetch_add(u64::from(granted), Ordering::Relaxed);
                                    break;
                                }
                                Err(other) => seen = other,
                            }
                        }
                    }
                });
            }
        });
        let elapsed = THREADS * STEPS * 100;
        let (allowed, most) = (allowed.into_inner(), 64 + elapsed / u64::from(limit.interval_ns));
        assert!(allowed <= most, "{allowed} of {most}");
        assert!(allowed >= most * 9 / 10, "only {allowed} of {most}");
    }
}
