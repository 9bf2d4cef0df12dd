//! How often a client may do what costs work that it gets for nothing (rapid reset, pings): a bucket that fills again with
//! time. A client that overdraws it loses its connection.

use tokio::time::Instant;

/// What a connection has left.
#[derive(Debug)]
pub(super) struct Budget {
    burst: u32,
    per_second: u32,
    left: u32,
    since: Instant,
}

impl Budget {
    /// A full bucket.
    pub fn new(burst: u32, per_second: u32, now: Instant) -> Self {
        Self { burst, per_second, left: burst, since: now }
    }

    /// Adds some, up to the burst.
    pub fn add(&mut self, more: u32) {
        self.left = self.left.saturating_add(more).min(self.burst);
    }

    /// Takes one; false where there is none left.
    pub fn take(&mut self, now: Instant) -> bool {
        let seconds = now.saturating_duration_since(self.since).as_secs();
        if seconds > 0 {
            let earned = u32::try_from(seconds).unwrap_or(u32::MAX).saturating_mul(self.per_second);
            self.add(earned);
            self.since += std::time::Duration::from_secs(seconds);
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_and_then_its_rate() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut budget = Budget::new(3, 2, start);
        let taken = |budget: &mut Budget, millis| (0..10).filter(|_| budget.take(at(millis))).count();
        assert_eq!(taken(&mut budget, 0), 3);
        assert_eq!(taken(&mut budget, 900), 0);
        assert_eq!(taken(&mut budget, 1100), 2);
        assert_eq!(taken(&mut budget, 1900), 0);
        assert_eq!(taken(&mut budget, 2000), 2, "parts of seconds are not lost");
        assert_eq!(taken(&mut budget, 60_000), 3, "never more than the burst");
    }
}
