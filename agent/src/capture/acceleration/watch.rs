//! What is wrong with joined connections, judged by what their ends hold unread: pure.
//!
//! Bytes that are handed over are read by the receiver or stay. A receiver that holds some and takes none for
//! [`STALLED_AFTER`] looks for them in vain (`splice` does) or is in no hurry; one that holds more than [`FLOOD`], or the most
//! of all where all together hold too much, does not keep up, and nothing stops its sender. Neither kind gains from
//! acceleration.
//!
//! Whoever finds a flood needs to know one thing more: whether the receiver is one that finds what was handed over. If it is
//! not, it would go on with what comes by TCP, as if nothing were between. Until that is known its sender is held back.

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
/// How long a flooded receiver may take nothing before it counts as one that never will.
const PROOF_AFTER: Duration = Duration::from_secs(1);
/// What ends the patience with one whose sender cannot be held back.
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
    /// Whether its sender is held back.
    pub held_back: bool,
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

/// Whether a receiver finds what is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proof {
    /// It has not shown it, and had no time to.
    None,
    /// It has not shown it, though it had.
    Missing,
    /// It was seen to read.
    Reads,
}

/// An end with a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The receiving end.
    pub key: EndKey,
    /// What is wrong with it.
    pub fault: Fault,
    /// Whether it finds what is handed over.
    pub proof: Proof,
    /// Whether the fault was not told before, with less proof.
    pub is_new: bool,
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
    /// The last that was told of it: each is told once.
    told: Option<(Fault, Proof)>,
}

impl Seen {
    fn first(sighting: &Sighting, now: Instant) -> Self {
        let taken = sighting.taken();
        Self { taken, since: now, reads: taken >= TAKEN_BY_READERS, told: None }
    }

    /// The same end, later.
    fn again(self, sighting: &Sighting, now: Instant) -> Self {
        let fresh = Self::first(sighting, now);
        if fresh.taken > self.taken {
            return Self { told: self.told, ..fresh };
        }
        // A message that was counted and not there yet had looked as if it were read; to one whose sender is held back none is
        // on its way.
        let taken = if sighting.held_back { fresh.taken } else { self.taken };
        Self { taken, ..self }
    }

    /// What is wrong with it, if that was not told.
    fn judge(&mut self, sighting: &Sighting, exceeds: bool, now: Instant) -> Option<Found> {
        let idle = now.saturating_duration_since(self.since);
        let was_told = self.told.is_some_and(|(fault, _)| fault == Fault::Flooded);
        let (fault, proof) = if exceeds || sighting.unread > FLOOD || sighting.held_back {
            let drowned = sighting.unread > DROWNED && !sighting.held_back;
            let proof = match self.reads {
                true => Proof::Reads,
                false if was_told && (drowned || idle >= PROOF_AFTER) => Proof::Missing,
                false => Proof::None,
            };
            (Fault::Flooded, proof)
        } else if idle >= STALLED_AFTER {
            (Fault::Stalled, if self.reads { Proof::Reads } else { Proof::Missing })
        } else {
            return None;
        };
        let told_already = |(before, before_proof): (Fault, Proof)| match fault {
            Fault::Stalled => true,
            Fault::Flooded => before == fault && before_proof >= proof,
        };
        if self.told.is_some_and(told_already) {
            return None;
        }
        if proof == Proof::None {
            // It has the time to show it from now on.
            self.since = now;
        }
        self.told = Some((fault, proof));
        Some(Found { key: sighting.key, fault, proof, is_new: !was_told })
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
            found.extend(end.judge(sighting, excess.contains(&sighting.key), now));
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

    /// Looks at one end at these seconds, with these (unread, handed), and tells when what was found. Its sender can be held back
    /// or not.
    fn faults(looks: &[(u64, u64, u64)], can_be_held: bool) -> Vec<(u64, Fault, Proof)> {
        let (begin, mut watch, mut held_back) = (Instant::now(), Watch::default(), false);
        let mut found = Vec::new();
        for (second, unread, handed) in looks {
            let now = begin + Duration::from_secs(*second);
            let there = Sighting { key: end(1), unread: *unread, handed: *handed, held_back };
            let sightings = if *unread > 0 { vec![there] } else { vec![] };
            for told in watch.look(now, &sightings, 16 * FLOOD) {
                let before = found.iter().any(|(_, fault, _)| *fault == told.fault);
                assert_eq!(told.is_new, !before, "{looks:?}: {told:?}");
                held_back = can_be_held && told.fault == Fault::Flooded && told.proof == Proof::None;
                found.push((*second, told.fault, told.proof));
            }
        }
        found
    }

    #[test]
    fn ends_are_judged_by_what_they_take() {
        use Fault::{Flooded, Stalled};
        use Proof::{Missing, Reads};
        type Case<'a> = (&'a [(u64, u64, u64)], &'a [(u64, Fault, Proof)]);
        let cases: [Case<'_>; 15] = [
            // Nothing is taken.
            (&[(0, 64, 64), (5, 64, 64), (10, 64, 64), (20, 64, 64)], &[(10, Stalled, Missing)]),
            // More comes, nothing is taken.
            (&[(0, 64, 64), (5, 128, 128), (10, 192, 192)], &[(10, Stalled, Missing)]),
            // It has read before.
            (&[(0, 64, FLOOD), (10, 64, FLOOD)], &[(10, Stalled, Reads)]),
            // As much is unread whenever one looks, and yet it goes on.
            (&[(0, 64, 64), (5, 64, 6400), (10, 64, 64_000), (15, 64, 640_000)], &[]),
            // Slowly.
            (&[(0, 1000, 1000), (9, 999, 1000), (18, 998, 1000)], &[]),
            // All was read in between.
            (&[(0, 64, 64), (9, 0, 64), (11, 64, 128)], &[]),
            // Not yet.
            (&[(0, 64, 64), (9, 64, 64)], &[]),
            // Nothing says yet whether it reads; once.
            (&[(0, FLOOD + 1, FLOOD + 1), (0, FLOOD + 1, FLOOD + 1)], &[(0, Flooded, Proof::None)]),
            (&[(0, DROWNED, DROWNED), (0, DROWNED, DROWNED)], &[(0, Flooded, Proof::None)]),
            // It had a second to show it, and read nothing; once.
            (
                &[(0, FLOOD + 1, FLOOD + 1), (1, 2 * FLOOD, 2 * FLOOD), (30, 2 * FLOOD, 2 * FLOOD)],
                &[(0, Flooded, Proof::None), (1, Flooded, Missing)],
            ),
            // It shows it.
            (
                &[(0, FLOOD + 1, FLOOD + 1), (0, FLOOD + 1, 2 * FLOOD), (9, 9, 2 * FLOOD)],
                &[(0, Flooded, Proof::None), (0, Flooded, Reads)],
            ),
            // At once, as it has read.
            (&[(0, FLOOD + 1, 2 * FLOOD), (1, 2 * FLOOD, 3 * FLOOD)], &[(0, Flooded, Reads)]),
            // It reads, if slowly.
            (&[(0, FLOOD, 2 * FLOOD), (1, FLOOD, 3 * FLOOD)], &[]),
            // What was told of a stall hides no flood.
            (
                &[(0, 64, 64), (10, 64, 64), (20, FLOOD + 1, FLOOD + 1), (20, FLOOD + 1, FLOOD + 1)],
                &[(10, Stalled, Missing), (20, Flooded, Proof::None)],
            ),
            (&[(0, FLOOD, FLOOD), (1, FLOOD + 1, 2 * FLOOD)], &[(1, Flooded, Reads)]),
        ];
        for (looks, expected) in cases {
            for can_be_held in [false, true] {
                assert_eq!(faults(looks, can_be_held), expected, "{looks:?} {can_be_held}");
            }
        }
    }

    #[test]
    fn patience_depends_on_whether_the_flood_is_stopped() {
        use Fault::Flooded;
        use Proof::{Missing, Reads};
        let (none, missing) = ((0, Flooded, Proof::None), (0, Flooded, Missing));
        let drowns: [_; 2] = [(0, 2 * DROWNED, 2 * DROWNED); 2];
        assert_eq!(faults(&drowns, false), [none, missing]);
        assert_eq!(faults(&drowns, true), [none]);
        // Held back, it is not forgotten before it has shown that it reads, however little is left.
        let slow = [(0, FLOOD + 1, FLOOD + 1), (1, FLOOD, FLOOD + 1), (2, 9, FLOOD + 1)];
        assert_eq!(faults(&slow, true), [none, (2, Flooded, Reads)]);
        let stops = [(0, FLOOD + 1, FLOOD + 1), (1, FLOOD, FLOOD + 1), (2, FLOOD, FLOOD + 1)];
        assert_eq!(faults(&stops, true), [none, (2, Flooded, Missing)]);
        assert_eq!(faults(&stops, false), [none]);
        // A message was on its way at the first look, and looked as if it were read; after that it reads byte by byte.
        let sips: Vec<_> = (0..9).map(|second| (second, 2 * FLOOD - second, 2 * FLOOD)).collect();
        let first = [(0, 2 * FLOOD, 2 * FLOOD + 8192)];
        assert_eq!(faults(&[&first, &sips[..]].concat(), true), [none]);
    }

    #[test]
    fn who_reads_is_told_from_who_looks_elsewhere() {
        use Proof::{Missing, Reads};
        // What was unread of what was handed over at the first look, and a second later.
        let cases = [
            ((2 * FLOOD, 2 * FLOOD), (2 * FLOOD, 2 * FLOOD), Some(Missing)),
            // A request's head was read before the rest was spliced.
            ((2 * FLOOD, 2 * FLOOD + 8192), (3 * FLOOD, 3 * FLOOD + 8192), Some(Missing)),
            // It has begun to read, or a packet's memory was counted otherwise: another second.
            ((2 * DROWNED, 2 * DROWNED), (2 * DROWNED - 9, 2 * DROWNED), None),
            ((2 * FLOOD, 2 * FLOOD), (2 * FLOOD - TAKEN_BY_READERS, 2 * FLOOD), Some(Reads)),
            ((FLOOD + 1, FLOOD + 1), (2 * FLOOD, 2 * FLOOD + TAKEN_BY_READERS), Some(Reads)),
            // The kernel charges more than the bytes.
            ((FLOOD + 1, FLOOD - 1), (2 * FLOOD, 2 * FLOOD - 1), Some(Missing)),
        ];
        for (first, second, expected) in cases {
            let (begin, mut watch) = (Instant::now(), Watch::default());
            let at = |(unread, handed)| [Sighting { key: end(1), unread, handed, held_back: true }];
            let proofs = |found: Vec<Found>| found.iter().map(|found| found.proof).collect::<Vec<_>>();
            assert_eq!(proofs(watch.look(begin, &at(first), u64::MAX)), [Proof::None], "{first:?}");
            let later = proofs(watch.look(begin + PROOF_AFTER, &at(second), u64::MAX));
            assert_eq!(later, expected.into_iter().collect::<Vec<_>>(), "{first:?} {second:?}");
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
                held_back: false,
            };
            let sightings: Vec<_> = held.iter().enumerate().map(sighting).collect();
            let found = Watch::default().look(Instant::now(), &sightings, limit);
            let ports: Vec<_> = found.iter().map(|found| found.key.local_port_be[1]).collect();
            assert_eq!(ports, expected, "{held:?} {limit}");
            let as_readers = |found: &Found| found.fault == Fault::Flooded && found.proof == Proof::Reads;
            assert!(found.iter().all(as_readers), "{found:?}");
        }
        // A hundred slow ones.
        let one = |port| Sighting { key: end(port), unread: 60 << 20, handed: 120 << 20, held_back: false };
        let many: Vec<_> = (0..100).map(one).collect();
        let found = Watch::default().look(Instant::now(), &many, 512 << 20);
        assert_eq!(many.len() - found.len(), 8);
    }

    #[test]
    fn ends_are_told_apart_and_forgotten() {
        let (begin, mut watch) = (Instant::now(), Watch::default());
        let at = |port| Sighting { key: end(port), unread: 1, handed: 1, held_back: false };
        let mut look = |after, sightings: &[Sighting]| watch.look(begin + after, sightings, u64::MAX);
        assert!(look(Duration::ZERO, &[at(1)]).is_empty());
        assert!(look(STALLED_AFTER / 2, &[at(1), at(2)]).is_empty());
        let stalled = Found { key: end(1), fault: Fault::Stalled, proof: Proof::Missing, is_new: true };
        assert_eq!(look(STALLED_AFTER, &[at(1), at(2)]), [stalled]);
        assert!(look(STALLED_AFTER, &[]).is_empty());
        assert!(watch.seen.is_empty());
    }
}
