//! When a certificate is so near to its end that somebody has to look. Pure.

use std::time::{Duration, SystemTime};

use super::certificate::{Validity, seconds};
use crate::telemetry::rfc3339;

/// What lives long is told of so early.
const LONG: Duration = Duration::from_hours(14 * 24);
/// What lives shorter than four times that is told of when this part of its life is left. Those of workloads are renewed long
/// before, at 70 % of their life at the latest.
const LAST_PART: u32 = 4;

/// Something that ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// What it is: a file, or an identity.
    pub what: String,
    pub(super) validity: Validity,
}

impl Ending {
    pub(super) fn new(what: impl Into<String>, validity: Validity) -> Self {
        Self { what: what.into(), validity }
    }

    /// Its last second.
    pub fn not_after(&self) -> SystemTime {
        self.validity.end()
    }

    /// The same as it is shown.
    pub fn shown(&self) -> String {
        rfc3339(self.not_after()).to_string()
    }

    /// Whether its last second is over.
    pub fn has_ended(&self, now: SystemTime) -> bool {
        self.validity.until < seconds(now)
    }

    /// What to tell of it, where it ends soon or has ended.
    pub fn alert(&self, now: SystemTime) -> Option<String> {
        let (what, until) = (&self.what, rfc3339(self.validity.end()));
        let left = u64::try_from(self.validity.until.saturating_sub(seconds(now)));
        let Ok(left) = left else { return Some(format!("{what} has ended at {until}")) };
        let life = u64::try_from(self.validity.until.saturating_sub(self.validity.from)).unwrap_or(0);
        let early = LONG.min(Duration::from_secs(life) / LAST_PART);
        (Duration::from_secs(left) < early).then(|| format!("{what} ends at {until}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_soon_is_told_of() {
        const DAY: i64 = 24 * 3600;
        let check = |life: i64, left: i64, expected: Option<&str>| {
            let ending = Ending::new("it", Validity { from: 0, until: life });
            let now =
                SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(life - left).expect("later"));
            let told = ending.alert(now);
            let matches = match (&told, expected) {
                (Some(told), Some(expected)) => told.starts_with(expected),
                (told, expected) => told.is_none() && expected.is_none(),
            };
            assert!(matches, "a life of {life} s, {left} s left: {told:?}");
        };
        check(3650 * DAY, 15 * DAY, None);
        check(3650 * DAY, 13 * DAY, Some("it ends at "));
        check(90 * DAY, 15 * DAY, None);
        check(90 * DAY, 13 * DAY, Some("it ends at "));
        check(DAY, DAY / 4, None);
        check(DAY, DAY / 4 - 1, Some("it ends at "));
        check(10, 3, None);
        check(10, 1, Some("it ends at "));
        check(10, 0, Some("it ends at "));
        check(10, -1, Some("it has ended at "));
    }
}
