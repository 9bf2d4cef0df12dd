//! Where an agent stands in the order of tables: pure, and the rule by which no table is ever followed by a lower one.

use super::follower::{Refusal, Step};
use super::seal::{Form, Position};
use crate::compile::TableVersion;

/// Where an agent stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Standing {
    /// The highest that was ever in force.
    highest: TableVersion,
    /// The one that is here.
    at: Option<Position>,
}

/// What a table is to an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// It can be taken in.
    Next,
    /// It is here, or a later one of its term is.
    Known,
    /// It follows a table that is not here.
    Gap,
}

impl Standing {
    /// Nothing is here; `highest` was in force before.
    pub fn new(highest: TableVersion) -> Self {
        Self { highest, at: None }
    }

    /// The highest that was ever in force.
    pub fn highest(&self) -> TableVersion {
        self.highest
    }

    /// The one that is here, whether or not a higher one was in force before.
    pub fn at(&self) -> Option<Position> {
        self.at
    }

    /// The one that is in force.
    pub fn in_force(&self) -> Option<Position> {
        self.at.filter(|at| at.version >= self.highest)
    }

    /// What a table is that somebody published who may.
    pub fn judge(&self, next: &Position, form: Form) -> Result<Place, Refusal> {
        if next.version.token < self.highest.token {
            return Err(Refusal::Outdated { highest: self.highest });
        }
        if let Some(at) = self.at {
            if at.version == next.version && at.chain != next.chain {
                return Err(Refusal::Forked(at.version));
            }
            if at.version >= next.version {
                return Ok(Place::Known);
            }
        }
        Ok(match form {
            Form::Delta { previous } if self.at.is_none_or(|at| at.chain != previous) => Place::Gap,
            Form::Delta { .. } | Form::Snapshot { .. } => Place::Next,
        })
    }

    /// A table that was to be taken in has been.
    pub fn take(&mut self, next: Position) -> Step {
        self.at = Some(next);
        if next.version < self.highest {
            return Step::Behind;
        }
        self.highest = next.version;
        Step::Applied
    }

    /// The table that was kept is here, from before this process began.
    pub fn restore(&mut self, at: Position) {
        self.highest = self.highest.max(at.version);
        self.at = Some(at);
    }
}
