//! Where a probe stands: outcomes are counted until enough of them decide.
//!
//! ```text
//!                    pass x success_threshold
//!   Untried ------------------------------------> Passing
//!      |                                           |   ^
//!      | fail                fail x failure_threshold  | pass x success_threshold
//!      |                                           v   |
//!      +-----------------------------------------> Failing
//! ```
//!
//! Until its first outcome a pod counts as whoever began with it says: one that was there when the agent began counts as its
//! documents have it, one that came later takes no work before it has passed.

use std::num::NonZeroU32;

/// Where a probe stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nothing has decided yet.
    Untried {
        /// Whether it counts as passing meanwhile.
        trusted: bool,
        /// Passes so far.
        passes: u32,
    },
    /// It takes work.
    Passing {
        /// Failures since the last pass.
        failures: u32,
    },
    /// It takes none.
    Failing {
        /// Passes since the last failure.
        passes: u32,
    },
}

/// How many outcomes in a row decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Passes until it takes work.
    pub success: NonZeroU32,
    /// Failures until it takes none.
    pub failure: NonZeroU32,
}

impl Standing {
    /// Before the first outcome.
    pub fn untried(trusted: bool) -> Self {
        Self::Untried { trusted, passes: 0 }
    }

    /// Whether it may be given work.
    pub fn takes_work(self) -> bool {
        matches!(self, Self::Untried { trusted: true, .. } | Self::Passing { .. })
    }

    /// Where it stands after an outcome.
    #[must_use]
    pub fn after(self, passed: bool, thresholds: Thresholds) -> Self {
        let Thresholds { success, failure } = thresholds;
        match (self, passed) {
            (Self::Untried { passes, .. } | Self::Failing { passes }, true)
                if passes.saturating_add(1) >= success.get() =>
            {
                Self::Passing { failures: 0 }
            }
            (Self::Untried { trusted, passes }, true) => Self::Untried { trusted, passes: passes + 1 },
            (Self::Failing { passes }, true) => Self::Failing { passes: passes + 1 },
            (Self::Passing { .. }, true) => Self::Passing { failures: 0 },
            (Self::Passing { failures }, false) if failures.saturating_add(1) < failure.get() => {
                Self::Passing { failures: failures + 1 }
            }
            (Self::Untried { .. } | Self::Passing { .. } | Self::Failing { .. }, false) => {
                Self::Failing { passes: 0 }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn thresholds(success: u32, failure: u32) -> Thresholds {
        let number = |number| NonZeroU32::new(number).expect("at least one");
        Thresholds { success: number(success), failure: number(failure) }
    }

    /// `+` passes, `-` fails; what comes of it after each, `1`: it takes work.
    fn told(trusted: bool, limits: (u32, u32), outcomes: &str) -> String {
        let mut standing = Standing::untried(trusted);
        let after = |outcome| {
            standing = standing.after(outcome == '+', thresholds(limits.0, limits.1));
            if standing.takes_work() { '1' } else { '0' }
        };
        outcomes.chars().map(after).collect()
    }

    #[test]
    fn outcomes_decide_by_their_number() {
        let cases = [
            ("one decides where none is said", true, (1, 1), "+-+--+", "101001"),
            ("the first failure decides of one that nobody saw pass", true, (1, 3), "-+", "01"),
            ("the first pass likewise", false, (1, 3), "+", "1"),
            ("three failures in a row", true, (1, 3), "+--+---+", "11111101"),
            ("two passes in a row", false, (2, 1), "+-+++-", "000110"),
            ("who is trusted is it until something decides", true, (3, 1), "++-+++", "110001"),
            ("who came later is not", false, (3, 2), "+++--", "00110"),
        ];
        for (what, trusted, limits, outcomes, expected) in cases {
            assert_eq!(told(trusted, limits, outcomes), expected, "{what}");
        }
    }

    proptest! {
        /// Whatever came before: as many equal outcomes as the threshold asks decide, and it changes at no other.
        #[test]
        fn it_changes_at_its_thresholds_alone(
            trusted: bool,
            limits in (1_u32..5, 1_u32..5),
            outcomes in proptest::collection::vec(any::<bool>(), 0..60),
        ) {
            let mut standing = Standing::untried(trusted);
            let mut row = 0;
            let mut last = None;
            for passed in outcomes {
                let before = standing;
                standing = standing.after(passed, thresholds(limits.0, limits.1));
                row = if last == Some(passed) { row + 1 } else { 1 };
                last = Some(passed);
                let needed = if passed { limits.0 } else { limits.1 };
                if row >= needed {
                    prop_assert_eq!(standing.takes_work(), passed);
                }
                let first = matches!(before, Standing::Untried { .. });
                if standing.takes_work() != before.takes_work() {
                    prop_assert!(row >= needed || first, "{before:?} {standing:?}");
                    prop_assert_eq!(standing.takes_work(), passed);
                }
            }
        }
    }
}
