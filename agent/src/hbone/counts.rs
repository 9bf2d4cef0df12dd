//! How handshakes went, and why tunnels were ended, by role and reason.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::identity::{PeerRefusal, PeerRole};

/// Which end this node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// It dials.
    Client,
    /// It is dialled.
    Server,
}

impl Role {
    /// The name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }

    /// The role in which this end shows itself.
    pub(super) const fn own(self) -> PeerRole {
        match self {
            Self::Client => PeerRole::Client,
            Self::Server => PeerRole::Server,
        }
    }

    /// The role in which the other end does.
    pub(super) const fn peer(self) -> PeerRole {
        match self {
            Self::Client => PeerRole::Server,
            Self::Server => PeerRole::Client,
        }
    }
}

/// How often something went well, and why it did not.
#[derive(Debug, Default)]
pub struct Tally {
    done: [AtomicU64; 2],
    refused: [[AtomicU64; PeerRefusal::ALL.len()]; 2],
}

/// What happened to tunnels since the start.
#[derive(Debug, Default)]
pub struct TunnelCounts {
    /// Handshakes.
    pub handshakes: Tally,
    /// Certificates that were shown anew on open tunnels.
    pub proofs: Tally,
    /// Open tunnels that might not go on; none of them is done.
    pub ended: Tally,
    /// Streams that were refused before anything was dialled for them; none of them is done.
    pub streams: Tally,
}

impl Tally {
    /// One went well.
    pub fn done(&self, role: Role) {
        self.done[role as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// One did not.
    pub fn refused(&self, role: Role, why: PeerRefusal) {
        self.refused[role as usize][why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// One came to this.
    pub fn count<T>(&self, role: Role, outcome: Result<&T, PeerRefusal>) {
        match outcome {
            Ok(_) => self.done(role),
            Err(why) => self.refused(role, why),
        }
    }

    /// Role, outcome and count of all that have happened, successes always.
    pub fn read(&self) -> Vec<(&'static str, &'static str, u64)> {
        let mut read = Vec::new();
        for role in [Role::Client, Role::Server] {
            read.push((role.name(), "ok", self.done[role as usize].load(Ordering::Relaxed)));
        }
        read.extend(self.read_refused());
        read
    }

    /// Role, reason and count of what went wrong.
    pub fn read_refused(&self) -> Vec<(&'static str, &'static str, u64)> {
        let all = [Role::Client, Role::Server].into_iter().flat_map(|role| {
            PeerRefusal::ALL.map(|why| {
                let count = self.refused[role as usize][why as usize].load(Ordering::Relaxed);
                (role.name(), why.name(), count)
            })
        });
        all.filter(|(.., count)| *count > 0).collect()
    }
}
