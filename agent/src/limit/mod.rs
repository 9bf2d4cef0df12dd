//! Rate limits: pure algorithms over counters, the store that keeps a counter for each key of one node, and what nodes count
//! together.
//!
//! Nothing here looks at a clock or at a request: the time, in nanoseconds since any fixed moment, and the key's hash are
//! passed in. All arithmetic is in integers and saturates.

mod bucket;
pub mod counters;
pub mod holdings;
pub mod lease;
pub mod quota;
mod share;
mod store;
pub mod top;
mod window;

pub use bucket::{Bucket, Rate, RateError};
pub use store::{Permit, Store};
pub use window::{Log, Window};

/// What a counter says of one more request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is let through; so many units more would be at once.
    Admitted {
        /// How many.
        remaining: u64,
    },
    /// It is refused.
    Refused {
        /// Nanoseconds after which the same would be let through if nothing else came; 0: when one in flight ends;
        /// [`NEVER`]: never.
        wait: u64,
    },
}

/// The wait of a request that costs more than could ever be let through.
pub const NEVER: u64 = u64::MAX;

/// How requests are counted, for one key. What one costs is counted in units, most often 1.
pub trait Counter {
    /// What is remembered of a key. The default value is that of a key that was never seen.
    type State: Default;

    /// Takes one request, or refuses it and changes nothing.
    fn take(&self, state: &mut Self::State, now: u64, cost: u32) -> Verdict;

    /// What [`Self::take`] would say.
    fn peek(&self, state: &mut Self::State, now: u64, cost: u32) -> Verdict;

    /// Gives back what [`Self::take`] took at `taken`.
    fn give_back(&self, state: &mut Self::State, taken: u64, cost: u32);

    /// Whether the state says no more than that of a key that was never seen.
    fn is_idle(&self, state: &Self::State, now: u64) -> bool;

    /// Whether the state must not be forgotten.
    fn is_pinned(&self, _: &Self::State) -> bool {
        false
    }
}

/// Requests of so many units at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Concurrency {
    /// How many; at least 1.
    pub most: u32,
}

impl Counter for Concurrency {
    type State = u32;

    fn take(&self, in_flight: &mut u32, now: u64, cost: u32) -> Verdict {
        let verdict = self.peek(in_flight, now, cost);
        if matches!(verdict, Verdict::Admitted { .. }) {
            *in_flight += cost;
        }
        verdict
    }

    fn peek(&self, in_flight: &mut u32, _: u64, cost: u32) -> Verdict {
        let free = self.most.saturating_sub(*in_flight);
        match free.checked_sub(cost) {
            Some(remaining) => Verdict::Admitted { remaining: remaining.into() },
            None if cost > self.most => Verdict::Refused { wait: NEVER },
            None => Verdict::Refused { wait: 0 },
        }
    }

    fn give_back(&self, in_flight: &mut u32, _: u64, cost: u32) {
        *in_flight = in_flight.saturating_sub(cost);
    }

    fn is_idle(&self, in_flight: &u32, _: u64) -> bool {
        *in_flight == 0
    }

    fn is_pinned(&self, in_flight: &u32) -> bool {
        *in_flight > 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What may happen to a key's counter.
    #[derive(Debug, Clone)]
    enum Step {
        /// A request of this cost comes.
        Take(u32),
        /// One of those in flight ends, where there is any.
        End(prop::sample::Index),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        // Costs about as large as the limits below, and any other.
        let cost = prop_oneof![9 => 1_u32..9, 1 => 1..=u32::MAX];
        let step = prop_oneof![cost.prop_map(Step::Take), any::<prop::sample::Index>().prop_map(Step::End)];
        prop::collection::vec(step, 1..200)
    }

    proptest! {
        /// The model keeps the cost of each request in flight.
        #[test]
        fn it_admits_what_a_list_of_those_in_flight_admits(
            most in prop_oneof![9 => 1_u32..20, 1 => 1..=u32::MAX],
            steps in steps(),
        ) {
            let (limit, mut state) = (Concurrency { most }, 0);
            let mut in_flight: Vec<u32> = Vec::new();
            for (now, step) in (0..).zip(steps) {
                match step {
                    Step::Take(cost) => {
                        let held: u64 = in_flight.iter().copied().map(u64::from).sum();
                        let expected = match u64::from(most).checked_sub(held + u64::from(cost)) {
                            Some(remaining) => Verdict::Admitted { remaining },
                            None if cost > most => Verdict::Refused { wait: NEVER },
                            None => Verdict::Refused { wait: 0 },
                        };
                        prop_assert_eq!(limit.peek(&mut state, now, cost), expected);
                        prop_assert_eq!(limit.take(&mut state, now, cost), expected);
                        if matches!(expected, Verdict::Admitted { .. }) {
                            in_flight.push(cost);
                        }
                    }
                    Step::End(_) if in_flight.is_empty() => {}
                    Step::End(which) => {
                        let cost = in_flight.swap_remove(which.index(in_flight.len()));
                        limit.give_back(&mut state, now, cost);
                    }
                }
                let held: u64 = in_flight.iter().copied().map(u64::from).sum();
                prop_assert_eq!(u64::from(state), held);
                prop_assert!(held <= most.into());
                prop_assert_eq!(limit.is_idle(&state, now), in_flight.is_empty());
                prop_assert_eq!(limit.is_pinned(&state), !in_flight.is_empty());
            }
        }
    }

    #[test]
    fn as_many_as_may_are_in_flight() {
        let (limit, mut state) = (Concurrency { most: 2 }, 0);
        assert_eq!(limit.take(&mut state, 0, 1), Verdict::Admitted { remaining: 1 });
        assert_eq!(limit.take(&mut state, 0, 1), Verdict::Admitted { remaining: 0 });
        assert_eq!(limit.take(&mut state, 0, 1), Verdict::Refused { wait: 0 });
        assert!(limit.is_pinned(&state) && !limit.is_idle(&state, 0));
        limit.give_back(&mut state, 0, 1);
        assert_eq!(limit.take(&mut state, 0, 1), Verdict::Admitted { remaining: 0 });
        limit.give_back(&mut state, 0, 1);
        limit.give_back(&mut state, 0, 1);
        assert!(limit.is_idle(&state, 0));
    }

    #[test]
    fn one_in_flight_may_hold_more_than_one_place() {
        let (limit, mut state) = (Concurrency { most: 5 }, 0);
        assert_eq!(limit.take(&mut state, 0, 3), Verdict::Admitted { remaining: 2 });
        assert_eq!(limit.take(&mut state, 0, 3), Verdict::Refused { wait: 0 });
        assert_eq!(limit.take(&mut state, 0, 6), Verdict::Refused { wait: NEVER });
        assert_eq!(limit.take(&mut state, 0, 2), Verdict::Admitted { remaining: 0 });
        limit.give_back(&mut state, 0, 3);
        assert_eq!(limit.take(&mut state, 0, 3), Verdict::Admitted { remaining: 0 });
    }
}
