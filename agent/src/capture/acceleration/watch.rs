//! What is wrong with joined connections, judged by what their ends hold unread: pure.
//!
//! Bytes that are handed over are read by the receiver or stay. A receiver that holds some and takes none for
//! [`STALLED_AFTER`] looks for them in vain (`splice` does) or is in no hurry; one that holds more than [`FLOOD`], or the most
//! of all where all together hold too much, does not keep up, and nothing stops its sender. Neither kind gains from
//! acceleration.
//!
//! Whoever finds a flood needs to know one thing more: whether the receiver is one that finds what was handed over. If it is
//! not, it would go on with what comes by TCP, as if nothing were between.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use agent_common::acceleration::EndKey;

/// A receiver that has unread bytes and takes none for so long has stalled.
pub const STALLED_AFTER: Duration = Duration::from_secs(10);
/// More than the largest receive buffer that is usual; what waits here is the node's memory for TCP.
const FLOOD: u64 = 64 << 20;
/// Who has taken so much finds what is handed over: those that splice look at less before they do.
const TAKEN_BY_READERS: u64 = 256 << 10;
/// How long a flooded receiver may take to show that it reads, where it holds no more than [`DROWNED`].
const PROOF_AFTER: Duration = Duration::from_secs(1);
/// What ends the patience with one that does not read.
const DROWNED: u64 = 16 * FLOOD;

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The receiver takes nothing.
    Stalled,
    /// The receiver does not keep up.
    Flooded,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Stalled, Self::Flooded];

    /// The name that metrics and the log show.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stalled => "stalled",
            Self::Flooded => "flooded",
        }
    }
}

/// A joined end with unread bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    /// The end.
    pub key: EndKey,
    /// Bytes that it holds.
    pub unread: u64,
    /// Bytes that it was ever handed, seen before those that it holds.
    pub handed: u64,
}

impl Sighting {
    /// Bytes that it has read at least: more may have come between the one look and the other.
    const fn taken(&self) -> u64 {
        self.handed.saturating_sub(self.unread)
    }

    /// Whether it might be seen to read, were the two looks closer to each other.
    pub const fn is_vague(&self) -> bool {
        self.taken() < TAKEN_BY_READERS && self.unread >= TAKEN_BY_READERS
    }
}

/// An end with a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The receiving end.
    pub key: EndKey,
    /// What is wrong with it.
    pub fault: Fault,
    /// Whether it was seen to read what is handed over.
    pub reads: bool,
}

/// What was seen of an end before.
#[derive(Debug, Clone, Copy)]
struct Seen {
    /// Bytes that it had read.
    taken: u64,
    /// Since when that is so.
    since: Instant,
    /// It has read what was handed over.
    reads: bool,
    /// The worst that was told of it: each is told once.
    told: Option<Fault>,
}

impl Seen {
    fn first(sighting: &Sighting, now: Instant) -> Self {
        let taken = sighting.taken();
        Self { taken, since: now, reads: taken >= TAKEN_BY_READERS, told: None }
    }

    /// The same end, later.
    fn again(self, sighting: &Sighting, now: Instant) -> Self {
        let fresh = Self::first(sighting, now);
        if fresh.taken > self.taken { Self { told: self.told, ..fresh } } else { self }
    }
}

/// The memory from look to look.
#[derive(Debug, Default)]
pub struct Watch {
    seen: HashMap<EndKey, Seen>,
}

impl Watch {
    /// Judges all ends that have unread bytes now, and may hold so many of them together.
    pub fn look(&mut self, now: Instant, sightings: &[Sighting], limit: u64) -> Vec<Found> {
        let excess = excess(sightings, limit);
        let mut found = Vec::new();
        let mut seen = HashMap::new();
        for sighting in sightings {
            let before = self.seen.get(&sighting.key);
            let mut end = before.map_or_else(|| Seen::first(sighting, now), |end| end.again(sighting, now));
            let idle = now.saturating_duration_since(end.since);
            let judged = end.reads || idle >= PROOF_AFTER || (before.is_some() && sighting.unread > DROWNED);
            let fault = if judged && (sighting.unread > FLOOD || excess.contains(&sighting.key)) {
                Some(Fault::Flooded)
            } else {
                (idle >= STALLED_AFTER).then_some(Fault::Stalled)
            };
            if let Some(fault) = fault.filter(|fault| Some(*fault) > end.told) {
                end.told = Some(fault);
                found.push(Found { key: sighting.key, fault, reads: end.reads });
            }
            seen.insert(sighting.key, end);
        }
        self.seen = seen;
        found
    }

    /// Forgets all ends.
    pub fn forget(&mut self) {
        self.seen.clear();
    }
}

/// The largest ends, without which the others are within the limit.
fn excess(sightings: &[Sighting], limit: u64) -> HashSet<EndKey> {
    let mut largest: Vec<_> = sightings.iter().collect();
    largest.sort_by_key(|sighting| Reverse(sighting.unread));
    let mut sum: u64 = sightings.iter().map(|sighting| sighting.unread).sum();
    let mut excess = HashSet::new();
    for sighting in largest {
        if sum <= limit {
            break;
        }
        sum -= sighting.unread;
        excess.insert(sighting.key);
    }
    excess
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(port: u8) -> EndKey {
        EndKey {
            cookie: 7,
            local: [1; 16],
            remote: [2; 16],
            local_port_be: [0, port],
            remote_port_be: [9, 9],
            family: 4,
            padding: [0; 3],
        }
    }

    /// Looks at one end at these seconds, with these (unread, handed), and tells when which fault was found.
    fn faults(looks: &[(u64, u64, u64)]) -> Vec<(u64, Fault)> {
        let (begin, mut watch) = (Instant::now(), Watch::default());
        let mut found = Vec::new();
        for (second, unread, handed) in looks {
            let now = begin + Duration::from_secs(*second);
            let there = Sighting { key: end(1), unread: *unread, handed: *handed };
            let sightings = if *unread > 0 { vec![there] } else { vec![] };
            let told = watch.look(now, &sightings, 16 * FLOOD);
            found.extend(told.into_iter().map(|found| (*second, found.fault)));
        }
        found
    }

    #[test]
    fn ends_are_judged_by_what_they_take() {
        use Fault::{Flooded, Stalled};
        type Case<'a> = (&'a [(u64, u64, u64)], &'a [(u64, Fault)]);
        let cases: [Case<'_>; 14] = [
            // Nothing is taken.
            (&[(0, 64, 64), (5, 64, 64), (10, 64, 64), (20, 64, 64)], &[(10, Stalled)]),
            // More comes, nothing is taken.
            (&[(0, 64, 64), (5, 128, 128), (10, 192, 192)], &[(10, Stalled)]),
            // As much is unread whenever one looks, and yet it goes on.
            (&[(0, 64, 64), (5, 64, 6400), (10, 64, 64_000), (15, 64, 640_000)], &[]),
            // Slowly.
            (&[(0, 1000, 1000), (9, 999, 1000), (18, 998, 1000)], &[]),
            // All was read in between.
            (&[(0, 64, 64), (9, 0, 64), (11, 64, 128)], &[]),
            // Not yet.
            (&[(0, 64, 64), (9, 64, 64)], &[]),
            // Nothing says yet whether it reads; once.
            (&[(0, FLOOD + 1, FLOOD + 1), (1, 2 * FLOOD, 2 * FLOOD), (30, 5, 9)], &[(1, Flooded)]),
            (&[(0, FLOOD + 1, FLOOD + 1), (0, 2 * FLOOD, 2 * FLOOD)], &[]),
            (&[(0, DROWNED, DROWNED), (0, DROWNED, DROWNED)], &[]),
            (&[(0, 2 * DROWNED, 2 * DROWNED), (0, 2 * DROWNED, 2 * DROWNED)], &[(0, Flooded)]),
            // At once, as it has read.
            (&[(0, FLOOD + 1, 2 * FLOOD), (1, 2 * FLOOD, 3 * FLOOD)], &[(0, Flooded)]),
            // It reads, if slowly.
            (&[(0, FLOOD, 2 * FLOOD), (1, FLOOD, 3 * FLOOD)], &[]),
            // What was told of a stall hides no flood.
            (&[(0, 64, 64), (10, 64, 64), (20, FLOOD + 1, FLOOD + 1)], &[(10, Stalled), (20, Flooded)]),
            (&[(0, FLOOD, FLOOD), (1, FLOOD + 1, 2 * FLOOD)], &[(1, Flooded)]),
        ];
        for (looks, expected) in cases {
            assert_eq!(faults(looks), expected, "{looks:?}");
        }
    }

    #[test]
    fn who_reads_is_told_from_who_looks_elsewhere() {
        // What was unread of what was handed over at the first look, and a second later.
        let cases = [
            ((2 * FLOOD, 2 * FLOOD), (2 * FLOOD, 2 * FLOOD), false),
            // A request's head was read before the rest was spliced.
            ((2 * FLOOD, 2 * FLOOD + 8192), (3 * FLOOD, 3 * FLOOD + 8192), false),
            ((2 * DROWNED, 2 * DROWNED), (2 * DROWNED - 9, 2 * DROWNED), false),
            ((2 * FLOOD, 2 * FLOOD), (2 * FLOOD - TAKEN_BY_READERS, 2 * FLOOD), true),
            ((FLOOD, FLOOD + TAKEN_BY_READERS), (2 * FLOOD, 2 * FLOOD + TAKEN_BY_READERS), true),
            // The kernel charges more than the bytes.
            ((FLOOD, FLOOD - 1), (2 * FLOOD, 2 * FLOOD - 1), false),
        ];
        for (first, second, reads) in cases {
            let (begin, mut watch) = (Instant::now(), Watch::default());
            let at = |(unread, handed)| [Sighting { key: end(1), unread, handed }];
            assert!(watch.look(begin, &at(first), u64::MAX).is_empty(), "{first:?}");
            let found = watch.look(begin + PROOF_AFTER, &at(second), u64::MAX);
            assert_eq!(found, [Found { key: end(1), fault: Fault::Flooded, reads }], "{first:?} {second:?}");
        }
    }

    #[test]
    fn all_ends_together_are_bounded() {
        // (what each end holds, the limit) -> the ends that are acted on
        let cases: [(&[u64], u64, &[u8]); 6] = [
            (&[10, 30, 20], 60, &[]),
            (&[10, 30, 20], 59, &[1]),
            (&[10, 30, 20], 29, &[1, 2]),
            (&[10, 30, 20], 0, &[0, 1, 2]),
            (&[5, FLOOD + 1, 7], u64::MAX, &[1]),
            // What is acted on for its own sake relieves the others.
            (&[FLOOD, FLOOD + 1], FLOOD, &[1]),
        ];
        for (held, limit, expected) in cases {
            let port = |at: usize| u8::try_from(at).expect("few");
            let sighting = |(at, unread): (usize, &u64)| Sighting {
                key: end(port(at)),
                unread: *unread,
                handed: unread + TAKEN_BY_READERS,
            };
            let sightings: Vec<_> = held.iter().enumerate().map(sighting).collect();
            let found = Watch::default().look(Instant::now(), &sightings, limit);
            let ports: Vec<_> = found.iter().map(|found| found.key.local_port_be[1]).collect();
            assert_eq!(ports, expected, "{held:?} {limit}");
            assert!(found.iter().all(|found| found.fault == Fault::Flooded && found.reads), "{found:?}");
        }
        // A hundred slow ones.
        let many: Vec<_> =
            (0..100).map(|port| Sighting { key: end(port), unread: 60 << 20, handed: 120 << 20 }).collect();
        let found = Watch::default().look(Instant::now(), &many, 512 << 20);
        assert_eq!(many.len() - found.len(), 8);
    }

    #[test]
    fn ends_are_told_apart_and_forgotten() {
        let (begin, mut watch) = (Instant::now(), Watch::default());
        let at = |port| Sighting { key: end(port), unread: 1, handed: 1 };
        let mut look = |after, sightings: &[Sighting]| watch.look(begin + after, sightings, u64::MAX);
        assert!(look(Duration::ZERO, &[at(1)]).is_empty());
        assert!(look(STALLED_AFTER / 2, &[at(1), at(2)]).is_empty());
        let stalled = Found { key: end(1), fault: Fault::Stalled, reads: false };
        assert_eq!(look(STALLED_AFTER, &[at(1), at(2)]), [stalled]);
        assert!(look(STALLED_AFTER, &[]).is_empty());
        assert!(watch.seen.is_empty());
    }
}
