//! What a limit of the cluster is counted by, on the node and in the store.

use super::super::counters::SharedRule;
use super::super::lease::LEASE;
use super::super::{Rate, Window};

/// Nanoseconds of a microsecond, the unit of the store's time.
pub(super) const MICROSECOND: u64 = 1000;

/// What a limit is counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SharedQuota {
    /// A rate whose unit of time is the nanosecond, and the same with the microsecond.
    Rate(Rate, Rate),
    /// A window.
    Window(Window),
}

/// A rate as the store counts it, in microseconds; `None` where its numbers would not be whole in the store's arithmetic, which has
/// 53 bits.
pub fn shared_rate(requests: u32, window_ns: u64, burst: u32) -> Option<Rate> {
    let rate = Rate::new(requests.into(), window_ns / MICROSECOND, burst.into()).ok()?;
    let (unit, leak, capacity) = rate.numbers();
    // A level is never above the capacity and a portion beyond it.
    let fits = |number: u64| number < 1 << 51;
    (fits(unit) && fits(leak) && fits(capacity)).then_some(rate)
}

impl SharedQuota {
    pub(super) fn rule(self) -> SharedRule {
        match self {
            Self::Rate(_, rate) => {
                let (unit, leak, capacity) = rate.numbers();
                SharedRule::Rate { unit, leak, capacity }
            }
            Self::Window(window) => SharedRule::Window {
                requests: window.requests.into(),
                span: window.window.div_ceil(MICROSECOND),
            },
        }
    }

    /// How many units may come at once after a pause.
    pub(super) fn budget(self) -> u64 {
        match self {
            Self::Rate(rate, _) => {
                let (unit, _, capacity) = rate.numbers();
                capacity / unit.max(1)
            }
            Self::Window(window) => window.requests.into(),
        }
    }

    /// How long a portion may be spent.
    pub(super) fn life(self) -> u64 {
        self.span().clamp(1, LEASE)
    }

    /// The time after which nothing is remembered, in nanoseconds.
    pub(super) fn span(self) -> u64 {
        match self {
            Self::Rate(rate, _) => {
                let (_, leak, capacity) = rate.numbers();
                capacity / leak.max(1)
            }
            Self::Window(window) => window.window,
        }
    }
}
