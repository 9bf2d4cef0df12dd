//! TLS handshakes with clients of Gateways: how many are under way over all workers, and how they ended.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::identity::PeerRefusal;

/// Bounds of handshakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandshakeSettings {
    /// How long one may take, from the connection to its end.
    pub timeout: Duration,
    /// How many may be under way at once, over all workers.
    pub max: usize,
}

impl Default for HandshakeSettings {
    /// 10 s, 4096 at once.
    fn default() -> Self {
        Self { timeout: Duration::from_secs(10), max: 4096 }
    }
}

/// Why a handshake with a client did not come to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unshaken {
    /// By what the client said, or did not say.
    Peer(PeerRefusal),
    /// No listener is for the server name that it asks for; or it asks for none, and there is no listener for any host.
    UnknownServerName,
    /// Too many are under way.
    TooMany,
}

const OUTCOMES: usize = PeerRefusal::ALL.len() + 2;

impl Unshaken {
    /// The reason's stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Peer(refusal) => refusal.name(),
            Self::UnknownServerName => "unknown_server_name",
            Self::TooMany => "handshakes",
        }
    }

    /// The same as it stands in the access log, beside reasons of all kinds.
    pub fn details(self) -> &'static str {
        static DETAILS: LazyLock<Vec<String>> =
            LazyLock::new(|| Unshaken::all().map(|why| format!("tls_{}", why.name())).collect());
        &DETAILS[self.place()]
    }

    const fn place(self) -> usize {
        match self {
            Self::Peer(refusal) => refusal as usize,
            Self::UnknownServerName => PeerRefusal::ALL.len(),
            Self::TooMany => PeerRefusal::ALL.len() + 1,
        }
    }

    fn all() -> impl Iterator<Item = Self> {
        PeerRefusal::ALL.into_iter().map(Self::Peer).chain([Self::UnknownServerName, Self::TooMany])
    }
}

/// How a handshake that came to its end went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shaken {
    /// Whether TLS 1.3 is spoken, and not 1.2.
    pub is_13: bool,
    /// Whether an earlier session was resumed.
    pub resumed: bool,
}

/// Handshakes of the agent.
#[derive(Debug)]
pub struct Handshakes {
    settings: HandshakeSettings,
    under_way: AtomicUsize,
    /// By version, and whether resumed.
    done: [[AtomicU64; 2]; 2],
    passed_on: AtomicU64,
    refused: [AtomicU64; OUTCOMES],
}

/// One handshake under way.
#[derive(Debug)]
pub struct UnderWay<'a>(&'a Handshakes);

impl Handshakes {
    /// None yet, and at most so many at once.
    pub fn new(settings: HandshakeSettings) -> Self {
        Self {
            settings,
            under_way: AtomicUsize::new(0),
            done: Default::default(),
            passed_on: AtomicU64::new(0),
            refused: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// How long one may take.
    pub fn timeout(&self) -> Duration {
        self.settings.timeout
    }

    /// Begins one, unless there are too many.
    pub fn begin(&self) -> Result<UnderWay<'_>, Unshaken> {
        let before = self.under_way.fetch_add(1, Ordering::Relaxed);
        let counted = UnderWay(self);
        if before < self.settings.max { Ok(counted) } else { Err(Unshaken::TooMany) }
    }

    /// One came to its end.
    pub fn done(&self, how: Shaken) {
        self.done[usize::from(how.is_13)][usize::from(how.resumed)].fetch_add(1, Ordering::Relaxed);
    }

    /// One is for somebody else to come to.
    pub fn passed_on(&self) {
        self.passed_on.fetch_add(1, Ordering::Relaxed);
    }

    /// One did not.
    pub fn refused(&self, why: Unshaken) {
        self.refused[why.place()].fetch_add(1, Ordering::Relaxed);
    }

    /// Outcome and count of all that have happened; successes always, by whether they resumed a session.
    pub fn read(&self) -> Vec<(&'static str, u64)> {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let sum = |resumed: usize| self.done.iter().map(|version| count(&version[resumed])).sum();
        let mut read = vec![("ok", sum(0)), ("ok_resumed", sum(1)), ("passed_on", count(&self.passed_on))];
        let refused = Unshaken::all().map(|why| (why.name(), count(&self.refused[why.place()])));
        read.extend(refused.filter(|(_, count)| *count > 0));
        read
    }

    /// Handshakes that came to their end, by the version that is spoken then.
    pub fn versions(&self) -> [(&'static str, u64); 2] {
        let sum = |version: &[AtomicU64; 2]| version.iter().map(|count| count.load(Ordering::Relaxed)).sum();
        [("1.2", sum(&self.done[0])), ("1.3", sum(&self.done[1]))]
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn one_too_many_is_refused_and_room_comes_back() {
        let handshakes = Handshakes::new(HandshakeSettings { max: 2, ..HandshakeSettings::default() });
        let (one, _two) = (handshakes.begin().expect("room"), handshakes.begin().expect("room"));
        assert_eq!(handshakes.begin().expect_err("full"), Unshaken::TooMany);
        assert_eq!(handshakes.begin().expect_err("still full"), Unshaken::TooMany);
        drop(one);
        assert!(handshakes.begin().is_ok());
    }

    #[test]
    fn each_reason_has_a_place_and_a_name() {
        let places: HashSet<usize> = Unshaken::all().map(Unshaken::place).collect();
        let names: HashSet<&str> = Unshaken::all().map(Unshaken::name).collect();
        assert_eq!((places.len(), names.len()), (OUTCOMES, OUTCOMES));
        for why in Unshaken::all() {
            assert_eq!(why.details(), format!("tls_{}", why.name()), "{why:?}");
        }
        let handshakes = Handshakes::new(HandshakeSettings::default());
        handshakes.refused(Unshaken::UnknownServerName);
        handshakes.done(Shaken { is_13: true, resumed: true });
        handshakes.done(Shaken { is_13: false, resumed: false });
        assert_eq!(
            handshakes.read(),
            [("ok", 1), ("ok_resumed", 1), ("passed_on", 0), ("unknown_server_name", 1)]
        );
        assert_eq!(handshakes.versions(), [("1.2", 1), ("1.3", 1)]);
    }
}
