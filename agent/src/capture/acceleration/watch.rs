//! What is wrong with joined connections, judged by what their ends hold unread: pure.
//!
//! Bytes that are handed over are read by the receiver or stay. A receiver that holds some and takes none for
//! [`STALLED_AFTER`] looks for them in vain (`splice` does) or is in no hurry; one that holds more than [`FLOOD`] does not keep
//! up, and nothing stops its sender. Neither kind gains from acceleration, so that being wrong costs speed alone.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use agent_common::acceleration::EndKey;

/// A receiver that has unread bytes and takes none for so long has stalled.
pub const STALLED_AFTER: Duration = Duration::from_secs(10);
/// More than the largest receive buffer that is usual; what waits here is the node's memory for TCP.
pub const FLOOD: u64 = 64 << 20;

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
    /// Bytes that it was ever handed.
    pub handed: u64,
}

/// What was seen of an end before.
#[derive(Debug, Clone, Copy)]
struct Seen {
    /// Bytes that it had read.
    taken: u64,
    /// Since when that is so.
    since: Instant,
    /// A fault is told once.
    told: bool,
}

/// The memory from look to look.
#[derive(Debug, Default)]
pub struct Watch {
    seen: HashMap<EndKey, Seen>,
}

impl Watch {
    /// Judges all ends that have unread bytes now.
    pub fn look(&mut self, now: Instant, sightings: &[Sighting]) -> Vec<(EndKey, Fault)> {
        let mut faults = Vec::new();
        let mut seen = HashMap::new();
        for sighting in sightings {
            let taken = sighting.handed.wrapping_sub(sighting.unread);
            let fresh = Seen { taken, since: now, told: false };
            let mut end = self.seen.get(&sighting.key).copied().unwrap_or(fresh);
            if end.taken != taken {
                end = Seen { told: end.told, ..fresh };
            }
            let fault = if sighting.unread > FLOOD {
                Some(Fault::Flooded)
            } else {
                (now.saturating_duration_since(end.since) >= STALLED_AFTER).then_some(Fault::Stalled)
            };
            if let Some(fault) = fault.filter(|_| !end.told) {
                end.told = true;
                faults.push((sighting.key, fault));
            }
            seen.insert(sighting.key, end);
        }
        self.seen = seen;
        faults
    }
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
            found.extend(watch.look(now, &sightings).into_iter().map(|(_, fault)| (*second, fault)));
        }
        found
    }

    #[test]
    fn ends_are_judged_by_what_they_take() {
        use Fault::{Flooded, Stalled};
        type Case<'a> = (&'a [(u64, u64, u64)], &'a [(u64, Fault)]);
        let cases: [Case<'_>; 8] = [
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
            // At once, and once.
            (&[(0, FLOOD + 1, FLOOD + 1), (1, 2 * FLOOD, 2 * FLOOD), (30, 5, 9)], &[(0, Flooded)]),
            (&[(0, FLOOD, FLOOD), (1, FLOOD + 1, 2 * FLOOD)], &[(1, Flooded)]),
        ];
        for (looks, expected) in cases {
            assert_eq!(faults(looks), expected, "{looks:?}");
        }
    }

    #[test]
    fn ends_are_told_apart_and_forgotten() {
        let (begin, mut watch) = (Instant::now(), Watch::default());
        let at = |port| Sighting { key: end(port), unread: 1, handed: 1 };
        assert!(watch.look(begin, &[at(1)]).is_empty());
        assert!(watch.look(begin + STALLED_AFTER / 2, &[at(1), at(2)]).is_empty());
        assert_eq!(watch.look(begin + STALLED_AFTER, &[at(1), at(2)]), [(end(1), Fault::Stalled)]);
        assert!(watch.look(begin + STALLED_AFTER, &[]).is_empty());
        assert!(watch.seen.is_empty());
    }
}
