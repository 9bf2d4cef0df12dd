//! How handshakes went, by role and reason.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::identity::PeerRefusal;

/// Which end this node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
}

/// Handshakes since the start.
#[derive(Debug, Default)]
pub struct HandshakeCounts {
    done: [AtomicU64; 2],
    refused: [[AtomicU64; PeerRefusal::ALL.len()]; 2],
}

impl HandshakeCounts {
    /// One went well.
    pub fn done(&self, role: Role) {
        self.done[role as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// One did not.
    pub fn refused(&self, role: Role, why: PeerRefusal) {
        self.refused[role as usize][why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Role, outcome and count of all that have happened, successes always.
    pub fn read(&self) -> Vec<(&'static str, &'static str, u64)> {
        let mut read = Vec::new();
        for role in [Role::Client, Role::Server] {
            read.push((role.name(), "ok", self.done[role as usize].load(Ordering::Relaxed)));
            for why in PeerRefusal::ALL {
                let count = self.refused[role as usize][why as usize].load(Ordering::Relaxed);
                if count > 0 {
                    read.push((role.name(), why.name(), count));
                }
            }
        }
        read
    }
}
