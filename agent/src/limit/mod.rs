//! Rate limits: pure algorithms over counters, the store that keeps a counter for each key of one node, and what nodes count
//! together.
//!
//! Nothing here looks at a clock or at a request: the time, in nanoseconds since any fixed moment, and the key's hash are
//! passed in. All arithmetic is in integers and saturates.

mod bucket;
pub mod counters;
pub mod lease;
pub mod quota;
mod share;
mod store;
mod window;

pub use bucket::{Bucket, Rate, RateError};
pub use store::{Permit, Store};
pub use window::{Log, Window};

/// What a counter says of one more request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is let through; so many more would be at once.
    Admitted {
        /// How many.
        remaining: u64,
    },
    /// It is refused.
    Refused {
        /// Nanoseconds after which the same would be let through if nothing else came; 0: when one in flight ends.
        wait: u64,
    },
}

/// How requests are counted, for one key.
pub trait Counter {
    /// What is remembered of a key. The default value is that of a key that was never seen.
    type State: Default;

    /// Takes one request, or refuses it and changes nothing.
    fn take(&self, state: &mut Self::State, now: u64) -> Verdict;

    /// What [`Self::take`] would say.
    fn peek(&self, state: &mut Self::State, now: u64) -> Verdict;

    /// Gives back what [`Self::take`] took at `taken`.
    fn give_back(&self, state: &mut Self::State, taken: u64);

    /// Whether the state says no more than that of a key that was never seen.
    fn is_idle(&self, state: &Self::State, now: u64) -> bool;

    /// Whether the state must not be forgotten.
    fn is_pinned(&self, _: &Self::State) -> bool {
        false
    }
}

/// So many requests at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Concurrency {
    /// How many; at least 1.
    pub most: u32,
}

impl Counter for Concurrency {
    type State = u32;

    fn take(&self, in_flight: &mut u32, now: u64) -> Verdict {
        let verdict = self.peek(in_flight, now);
        if matches!(verdict, Verdict::Admitted { .. }) {
            *in_flight += 1;
        }
        verdict
    }

    fn peek(&self, in_flight: &mut u32, _: u64) -> Verdict {
        match self.most.checked_sub(*in_flight) {
            None | Some(0) => Verdict::Refused { wait: 0 },
            Some(free) => Verdict::Admitted { remaining: u64::from(free - 1) },
        }
    }

    fn give_back(&self, in_flight: &mut u32, _: u64) {
        *in_flight = in_flight.saturating_sub(1);
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
    use super::*;

    #[test]
    fn as_many_as_may_are_in_flight() {
        let (limit, mut state) = (Concurrency { most: 2 }, 0);
        assert_eq!(limit.take(&mut state, 0), Verdict::Admitted { remaining: 1 });
        assert_eq!(limit.take(&mut state, 0), Verdict::Admitted { remaining: 0 });
        assert_eq!(limit.take(&mut state, 0), Verdict::Refused { wait: 0 });
        assert!(limit.is_pinned(&state) && !limit.is_idle(&state, 0));
        limit.give_back(&mut state, 0);
        assert_eq!(limit.take(&mut state, 0), Verdict::Admitted { remaining: 0 });
        limit.give_back(&mut state, 0);
        limit.give_back(&mut state, 0);
        assert!(limit.is_idle(&state, 0));
    }
}
