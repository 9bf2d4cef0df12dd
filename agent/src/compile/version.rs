//! Which table it is.

use std::fmt;

/// What makes a leader's term distinct from every other: no two terms have the same token, and a later one's is higher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Token {
    /// Counts the terms, and is above every epoch that the leader or the store knew of; 0 where an agent runs alone.
    pub epoch: u64,
    /// Drawn at random when the leader's process began: a store that has forgotten the epochs gives none out twice.
    pub nonce: u64,
}

impl fmt::Display for Token {
    /// `EPOCH-NONCE`, the nonce as sixteen hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}", self.epoch, self.nonce)
    }
}

/// Which table this is; a later table has a higher version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TableVersion {
    /// The term of the leader that published it.
    pub token: Token,
    /// Counts the tables of one term.
    pub version: u64,
}

impl TableVersion {
    /// A table of an agent that runs alone.
    pub const fn alone(version: u64) -> Self {
        Self { token: Token { epoch: 0, nonce: 0 }, version }
    }

    /// The next table of an agent that runs alone.
    #[must_use]
    pub const fn after_alone(self) -> Self {
        Self::alone(self.version + 1)
    }
}

impl fmt::Display for TableVersion {
    /// `TOKEN.VERSION`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.token, self.version)
    }
}
