//! Refused handshakes in the agent's log: a line for each peer and reason, and not for each of its tries.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::Role;
use crate::identity::PeerRefusal;

/// A peer that keeps coming has a line for the same reason once in so long.
const PAUSE: Duration = Duration::from_secs(10);
/// Peers and reasons that are told apart at once; further ones wait until one has been silent.
const KEPT_MAX: usize = 1024;

/// Which lines are alike.
type Key = (Role, IpAddr, PeerRefusal);

/// What was told when.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<HashMap<Key, (SystemTime, u64)>>);

impl Refusals {
    /// Whether a refusal is told now; how many like it have not been since the last one that was.
    pub(super) fn due(&self, key: Key, now: SystemTime) -> Option<u64> {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A clock that was set back says nothing of how long it is ago.
        let recent = |at: SystemTime| now.duration_since(at).is_ok_and(|age| age < PAUSE);
        if let Some((at, left_out)) = told.get_mut(&key) {
            if recent(*at) {
                *left_out += 1;
                return None;
            }
            *at = now;
            return Some(std::mem::take(left_out));
        }
        if told.len() >= KEPT_MAX {
            told.retain(|_, (at, _)| recent(*at));
        }
        if told.len() >= KEPT_MAX {
            return None;
        }
        told.insert(key, (now, 0));
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(peer: u32, why: PeerRefusal) -> Key {
        (Role::Server, IpAddr::from(peer.to_be_bytes()), why)
    }

    #[test]
    fn the_same_refusal_is_told_once_in_ten_seconds_with_how_many_there_were() {
        use PeerRefusal::{Expired, NotTls};
        let refusals = Refusals::default();
        // (second, peer, reason) -> left out before, where it is told
        for ((second, peer, why), expected) in [
            ((0, 1, Expired), Some(0)),
            ((0, 1, Expired), None),
            ((1, 1, NotTls), Some(0)),
            ((1, 2, Expired), Some(0)),
            ((9, 1, Expired), None),
            ((10, 1, Expired), Some(2)),
            ((11, 1, Expired), None),
            ((3, 1, Expired), Some(1)),
        ] {
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
            assert_eq!(refusals.due(key(peer, why), now), expected, "{second} s: {peer} {why:?}");
        }
    }

    #[test]
    fn a_flood_of_peers_takes_bounded_memory() {
        let (refusals, now) = (Refusals::default(), SystemTime::UNIX_EPOCH);
        let told = |now| {
            let due = |peer: &u32| refusals.due(key(*peer, PeerRefusal::NotTls), now).is_some();
            (0..5000).filter(due).count()
        };
        assert_eq!((told(now), told(now + PAUSE)), (KEPT_MAX, KEPT_MAX));
        assert!(refusals.0.lock().expect("nobody panics").len() <= KEPT_MAX);
    }
}
