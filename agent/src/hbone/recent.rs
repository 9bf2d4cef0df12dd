//! Tunnels that came to nothing lately, by the pods at both ends, for whoever asks why.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::Role;
use crate::identity::PeerRefusal;

/// For how long a refusal is shown.
const SHOWN: Duration = Duration::from_mins(1);
/// Pairs and reasons that are told apart at once: of more the longest silent are forgotten.
const KEPT_MAX: usize = 1024;

/// Handshakes that were refused for one reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecentRefusals {
    /// What this node had of them.
    pub role: Role,
    /// Who dialled.
    pub source: IpAddr,
    /// Whom it dialled.
    pub destination: IpAddr,
    /// Why.
    pub why: PeerRefusal,
    /// How many there have been, without a minute's silence between them.
    pub count: u64,
    /// When the last one came.
    pub last: SystemTime,
}

/// What is alike.
type Key = (Role, IpAddr, IpAddr, PeerRefusal);

/// What came lately: how often, and when last.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<HashMap<Key, (u64, SystemTime)>>);

impl Recent {
    pub(super) fn note(&self, key: Key, now: SystemTime) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT_MAX && !kept.contains_key(&key) {
            kept.retain(|_, (_, last)| is_shown(*last, now));
            let oldest = kept.iter().min_by_key(|(_, (_, last))| *last).map(|(key, _)| *key);
            if let Some(oldest) = oldest.filter(|_| kept.len() >= KEPT_MAX) {
                kept.remove(&oldest);
            }
        }
        let (count, last) = kept.entry(key).or_insert((0, now));
        *count = if is_shown(*last, now) { *count + 1 } else { 1 };
        *last = now;
    }

    /// The last first.
    pub(super) fn all(&self, now: SystemTime) -> Vec<RecentRefusals> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = kept.iter().filter(|(_, (_, last))| is_shown(*last, now));
        let mut all: Vec<_> = shown
            .map(|(&(role, source, destination, why), &(count, last))| RecentRefusals {
                role,
                source,
                destination,
                why,
                count,
                last,
            })
            .collect();
        all.sort_by_key(|one| (std::cmp::Reverse(one.last), one.source, one.destination, one.why.name()));
        all
    }
}

fn is_shown(last: SystemTime, now: SystemTime) -> bool {
    now.duration_since(last).is_ok_and(|age| age < SHOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(source: u32, why: PeerRefusal) -> Key {
        (Role::Server, IpAddr::from(source.to_be_bytes()), IpAddr::from([10, 0, 0, 1]), why)
    }

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(second)
    }

    #[test]
    fn what_came_in_the_last_minute_is_shown_with_how_many_there_were() {
        use PeerRefusal::{Expired, NotTls};
        let recent = Recent::default();
        let shown = |second| -> Vec<_> {
            recent.all(at(second)).into_iter().map(|one| (one.why, one.count, one.last)).collect()
        };
        for (second, why) in [(0, Expired), (1, Expired), (5, NotTls), (59, Expired)] {
            recent.note(key(1, why), at(second));
        }
        assert_eq!(shown(60), [(Expired, 3, at(59)), (NotTls, 1, at(5))]);
        assert_eq!(shown(65), [(Expired, 3, at(59))]);
        assert_eq!(shown(119), []);
        recent.note(key(1, Expired), at(119));
        assert_eq!(shown(119), [(Expired, 1, at(119))], "it begins anew after a silence");
    }

    #[test]
    fn a_flood_of_peers_takes_bounded_memory_and_the_last_are_shown() {
        let recent = Recent::default();
        for peer in 0..5000 {
            recent.note(key(peer, PeerRefusal::NotTls), at(u64::from(peer) / 1000));
        }
        let all = recent.all(at(5));
        assert_eq!(all.len(), KEPT_MAX);
        assert!(all.iter().any(|one| one.source == IpAddr::from(4999u32.to_be_bytes())));
    }
}
