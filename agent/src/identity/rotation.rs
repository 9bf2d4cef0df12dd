//! When certificates of workloads are made anew. Pure: the time and chance are passed in.
//!
//! ```text
//! wanted ──due──▶ minted ──50-70 % of its life──▶ due ──▶ minted ...
//!                   due ──failed──▶ waiting (1 s, doubled up to 60 s) ──▶ due
//! ```
//! Whoever holds a certificate keeps it while a new one can't be had.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use super::SpiffeId;

/// How long the first retry waits.
const RETRY: Duration = Duration::from_secs(1);
/// How long a retry waits at most.
const RETRY_MAX: Duration = Duration::from_mins(1);
/// What of a life is over when its certificate is made anew at the earliest, in hundredths.
const EARLIEST_PERCENT: u32 = 50;
/// The width of the time within which that happens, in hundredths of a life.
const SPREAD_PERCENT: u32 = 20;

/// When a certificate of that life is made anew: at 50 to 70 % of it, or after a second, as what ends with its issuer lives shorter
/// each time. `draw` is evenly from 0 to 255.
pub fn renewal(from: SystemTime, until: SystemTime, draw: u8) -> SystemTime {
    let life = until.duration_since(from).unwrap_or_default();
    let part = life / 100 * EARLIEST_PERCENT + life / 100 * SPREAD_PERCENT / 255 * u32::from(draw);
    from + part.max(RETRY)
}

/// How long the next try waits after so many that failed: a second, then twice as long each time up to a minute, less up to a
/// half by chance.
pub fn backoff(failures: u32, draw: u8) -> Duration {
    let wait = RETRY.saturating_mul(1 << failures.min(6)).min(RETRY_MAX);
    wait.saturating_sub(wait / 510 * u32::from(draw))
}

/// What is known of each certificate that is wanted.
#[derive(Debug, Default)]
pub struct Rotation {
    entries: HashMap<SpiffeId, Entry>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    due: SystemTime,
    failures: u32,
}

impl Rotation {
    /// Says whose certificates are wanted from now on; new ones are due at once. Answers which no longer are.
    pub fn want(&mut self, wanted: &HashSet<SpiffeId>, now: SystemTime) -> Vec<SpiffeId> {
        let gone: Vec<_> = self.entries.keys().filter(|id| !wanted.contains(*id)).cloned().collect();
        for id in &gone {
            self.entries.remove(id);
        }
        for id in wanted {
            self.entries.entry(id.clone()).or_insert(Entry { due: now, failures: 0 });
        }
        gone
    }

    /// Wants one more. Answers whether it is to be made now.
    pub fn add(&mut self, id: &SpiffeId, now: SystemTime) -> bool {
        self.entries.entry(id.clone()).or_insert(Entry { due: now, failures: 0 }).due <= now
    }

    /// What is to be made now.
    pub fn due(&self, now: SystemTime) -> Vec<SpiffeId> {
        self.entries.iter().filter(|(_, entry)| entry.due <= now).map(|(id, _)| id.clone()).collect()
    }

    /// One was made, which holds for this time.
    pub fn minted(&mut self, id: &SpiffeId, (from, until): (SystemTime, SystemTime), draw: u8) {
        if let Some(entry) = self.entries.get_mut(id) {
            *entry = Entry { due: renewal(from, until, draw), failures: 0 };
        }
    }

    /// One could not be made; the next try comes after [`backoff`].
    pub fn failed(&mut self, id: &SpiffeId, now: SystemTime, draw: u8) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.due = now + backoff(entry.failures, draw);
            entry.failures = entry.failures.saturating_add(1);
        }
    }

    /// The issuer is another: everything is due.
    pub fn issuer_changed(&mut self, now: SystemTime) {
        for entry in self.entries.values_mut() {
            entry.due = entry.due.min(now);
        }
    }

    /// When something is due next.
    pub fn next(&self) -> Option<SystemTime> {
        self.entries.values().map(|entry| entry.due).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> SpiffeId {
        format!("spiffe://td/ns/x/sa/{name}").parse().expect("an id")
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
    }

    #[test]
    fn certificates_are_renewed_at_half_to_seven_tenths_of_their_life() {
        for (draw, expected) in [(0, 500), (255, 700), (128, 600)] {
            let due = renewal(at(0), at(1000), draw);
            let off = due.duration_since(at(expected)).unwrap_or_else(|before| before.duration());
            assert!(off < Duration::from_secs(1), "{draw}: off by {off:?}");
        }
        assert_eq!(renewal(at(5), at(0), 255), at(6), "no more than one a second");
    }

    #[test]
    fn each_lives_through_its_turns() {
        let mut rotation = Rotation::default();
        let wanted = HashSet::from([id("a"), id("b")]);
        assert!(rotation.want(&wanted, at(0)).is_empty());
        assert_eq!(rotation.due(at(0)).len(), 2);
        rotation.minted(&id("a"), (at(0), at(1000)), 0);
        assert_eq!(rotation.due(at(0)), [id("b")]);
        let mut now = at(0);
        for wait in [1, 2, 4, 8, 16, 32, 60, 60] {
            rotation.failed(&id("b"), now, 0);
            assert!(rotation.due(now).is_empty());
            now += Duration::from_secs(wait);
            assert_eq!((rotation.next(), rotation.due(now)), (Some(now), vec![id("b")]));
        }
        rotation.failed(&id("b"), now, 255);
        let soon = rotation.next().expect("wanted").duration_since(now).expect("later");
        assert!(soon >= Duration::from_secs(29) && soon < Duration::from_secs(31), "{soon:?}");
        rotation.minted(&id("b"), (now, now + Duration::from_secs(1000)), 0);
        assert_eq!(rotation.next(), Some(at(500)));
        rotation.issuer_changed(at(300));
        assert_eq!(rotation.due(at(300)).len(), 2);
        assert_eq!(rotation.want(&HashSet::from([id("b")]), at(300)), [id("a")]);
        rotation.minted(&id("a"), (at(0), at(1)), 0);
        assert_eq!(rotation.due(at(300)), [id("b")], "what is not wanted is not kept");
    }
}
