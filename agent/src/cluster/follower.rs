//! What an agent applies of what is published: pure. It believes nothing that is not signed, nothing of a lower token than the
//! highest that it ever applied, and no change of a table that it does not have.

use std::sync::Arc;

use super::publisher::Continued;
use super::seal::{Form, Header, Malformed, Position, Sealed};
use super::standing::{Place, Standing};
use crate::compile::TableVersion;
use crate::compile::wire::{Change, Counts, Parts, SCHEMA, Touched, WireError};

/// A table may lose all its routes, or have no endpoint ready any more, if it had fewer than this: small ones do so in daily life.
/// All its endpoints it never may.
pub const SHRINK_FROM: usize = 8;

/// Why a published table is not applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is no table.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Its records are in a form that this version does not know.
    #[error("its schema is {0}, this agent reads {SCHEMA}")]
    Schema(u32),
    /// It belongs to another cluster.
    #[error("it is a table of the cluster '{0}'")]
    Cluster(Arc<str>),
    /// Its signature does not prove that a node of the cluster made it.
    #[error("its signature is not good: {reason}: {detail}")]
    Untrusted {
        /// The stable name.
        reason: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// It has no signature at all.
    #[error("it is not signed")]
    Unsigned,
    /// The node that signed it is not the one that it names as leader.
    #[error("it is signed by {signer} and names {leader} as the leader")]
    Signer {
        /// Who signed.
        signer: Arc<str>,
        /// Who should have.
        leader: Arc<str>,
    },
    /// A later term's table was applied before.
    #[error("it is older than {highest}")]
    Outdated {
        /// The highest that was ever applied.
        highest: TableVersion,
    },
    /// There is another table of the same name.
    #[error("it differs from the table that was applied as {0}")]
    Forked(TableVersion),
    /// It is made of documents that were sealed before those of the table in force.
    #[error("it is made of documents of generation {0}, and the table in force of generation {1}")]
    OlderDocuments(u64, u64),
    /// Its records can't be read.
    #[error("its records can't be read: {0}")]
    Records(#[from] WireError),
    /// Most of what is in force would go, and nobody said that it may.
    #[error("{what} would go from {before} to {after}; `--allow-shrink` lets it")]
    Shrinks {
        /// Routes or endpoints.
        what: &'static str,
        /// How many there are.
        before: usize,
        /// How many would be left.
        after: usize,
    },
}

impl Refusal {
    /// The name that metrics and status show.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::Schema(_) => "schema",
            Self::Cluster(_) => "cluster",
            Self::Untrusted { reason, .. } => reason,
            Self::Unsigned => "unsigned",
            Self::Signer { .. } => "signer",
            Self::Outdated { .. } => "outdated",
            Self::Forked(_) => "forked",
            Self::OlderDocuments(..) => "older_documents",
            Self::Records(_) => "records",
            Self::Shrinks { .. } => "shrinks",
        }
    }
}

/// What became of a table that is in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It is the one in force now.
    Applied,
    /// It is here, and lower than what was in force before this process began: those that follow it are needed.
    Behind,
    /// It came before.
    Known,
    /// It follows a table that is not here: the snapshot is needed.
    Gap,
}

/// Who says whether a signature is good; the node that made it.
pub trait Verify {
    /// The signer of these bytes; `None`: tables are not signed here.
    fn signer(&self, signed: &[u8], signature: &[u8]) -> Result<Option<Arc<str>>, Refusal>;
}

/// An agent's view of what is published.
#[derive(Debug)]
pub struct Follower {
    cluster: Arc<str>,
    standing: Standing,
    /// The highest generation of documents of which a table was in force.
    generation: u64,
    /// The generation of the documents of the table that is here, where it is known.
    here: Option<u64>,
    parts: Parts,
    /// What changed since it was last asked for; `None`: everything may have.
    touched: Option<Touched>,
}

impl Follower {
    /// Nothing is here yet; `highest` is what was in force before this process began.
    pub fn new(cluster: Arc<str>, highest: TableVersion) -> Self {
        let standing = Standing::new(highest);
        Self { cluster, standing, generation: 0, here: None, parts: Parts::default(), touched: None }
    }

    /// Takes no table of documents that were sealed before those of this generation.
    pub fn hold(&mut self, generation: u64) {
        self.generation = self.generation.max(generation);
    }

    /// Begins with the table that was in force before this process did, as this node kept it.
    pub fn restore(&mut self, at: Position, whole: &Change) -> Result<(), WireError> {
        self.parts.apply(whole)?;
        self.standing.restore(at);
        Ok(())
    }

    /// The table in force.
    pub fn in_force(&self) -> Option<Position> {
        self.standing.in_force()
    }

    /// The table in force, where a term can go on with it: nobody would refuse it for its documents.
    pub fn continued(&self) -> Option<Continued> {
        let (at, generation) = (self.in_force()?, self.here?);
        (generation == self.generation).then_some(Continued { at, generation })
    }

    /// The highest table that was ever in force.
    pub fn highest(&self) -> TableVersion {
        self.standing.highest()
    }

    /// The records.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// What changed since this was last asked; `None`: everything may have.
    pub fn take_touched(&mut self) -> Option<Touched> {
        self.touched.replace(Touched::default())
    }

    /// Takes in what the store holds. On a refusal nothing changes.
    pub fn receive(&mut self, bytes: &[u8], verify: &impl Verify) -> Result<Step, Refusal> {
        let sealed = Sealed::open(bytes)?;
        if sealed.header.schema != SCHEMA {
            return Err(Refusal::Schema(sealed.header.schema));
        }
        if sealed.header.cluster != self.cluster {
            return Err(Refusal::Cluster(sealed.header.cluster));
        }
        if let Some(signer) = verify.signer(sealed.signed, sealed.signature)?
            && signer != sealed.header.leader
        {
            return Err(Refusal::Signer { signer, leader: sealed.header.leader });
        }
        self.believe(&sealed)
    }

    /// A table of somebody who may publish.
    fn believe(&mut self, sealed: &Sealed<'_>) -> Result<Step, Refusal> {
        let next = sealed.position();
        match self.standing.judge(&next, sealed.header.form)? {
            Place::Next => {}
            Place::Known => {
                if self.standing.at().is_some_and(|at| at.version == next.version) {
                    // One that an earlier version kept has none on the disk.
                    self.hold(sealed.header.generation);
                    self.here = Some(sealed.header.generation);
                }
                return Ok(Step::Known);
            }
            Place::Gap => return Ok(Step::Gap),
        }
        if sealed.header.generation < self.generation {
            return Err(Refusal::OlderDocuments(sealed.header.generation, self.generation));
        }
        let change = Change::decode(sealed.body)?;
        match sealed.header.form {
            Form::Snapshot { .. } => {
                let mut parts = Parts::default();
                parts.apply(&change)?;
                self.may_shrink(parts.counts(), sealed)?;
                self.parts = parts;
                self.touched = None;
            }
            Form::Delta { .. } => {
                // What removes nothing takes nothing away, and to count takes time.
                if change.removals().next().is_some() {
                    self.may_shrink(self.parts.counts_after(&change)?, sealed)?;
                }
                let touched = self.parts.apply(&change)?;
                if let Some(before) = &mut self.touched {
                    before.extend(touched);
                }
            }
        }
        self.hold(sealed.header.generation);
        self.here = Some(sealed.header.generation);
        Ok(self.standing.take(next))
    }

    fn may_shrink(&self, after: Counts, sealed: &Sealed<'_>) -> Result<(), Refusal> {
        let Header { allow_shrink, shrinks_from, .. } = sealed.header;
        // Who was away while it was allowed finds what came of it.
        let from = self.in_force().filter(|_| shrinks_from > 0).is_some_and(|at| at.revision <= shrinks_from);
        if allow_shrink || from { Ok(()) } else { shrinks(self.parts.counts(), after) }
    }
}

/// Whether so much goes at once that it is more likely a mistake: every endpoint, or more than half of all routes. That none is
/// ready any more is daily life where there are few: the only pod of a service begins anew.
pub fn shrinks(before: Counts, after: Counts) -> Result<(), Refusal> {
    let much = |what, before: usize, after: usize, least: usize| {
        if after < least.min(before) { Err(Refusal::Shrinks { what, before, after }) } else { Ok(()) }
    };
    much("endpoints", before.endpoints, after.endpoints, 1)?;
    if before.ready >= SHRINK_FROM {
        much("ready endpoints", before.ready, after.ready, 1)?;
    }
    if before.routes >= SHRINK_FROM {
        much("routes", before.routes, after.routes, before.routes.div_ceil(2))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
