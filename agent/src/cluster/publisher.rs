//! What a leader publishes: pure. A draft becomes the table only when the store has taken it, so that nothing follows what was
//! refused. It may have been taken although the answer was lost, and somebody may have applied it: so its number is never given
//! out again, and the next table is written whole, for no delta that follows another one would ever reach whoever has it.
//!
//! A term begins with the table in force, where there is one: a delta that changes nothing says that it goes on under the new
//! token. Whoever has that table needs no more; where the store ends with another one, the delta does not fit and nothing
//! comes of it.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::seal::{BODY_MAX, Digest, Form, Header, Position, Sealed, first_digest, seal};
use super::store::{Delta, Lease, Snapshot};
use crate::compile::TableVersion;
use crate::compile::wire::{Change, Counts, SCHEMA};
use crate::model::{Model, ObjectName};

/// After so many deltas the table is written whole again: whoever comes later reads no more of them.
const DELTAS_MAX: usize = 1024;
/// A delta of more records than this is a snapshot instead: it would be about as large.
const DELTA_RECORDS_MAX: usize = 20_000;

/// What a leader wants to publish next.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    /// What the store is given.
    pub form: DraftForm,
    /// What becomes of the publisher when the store has it.
    after: Published,
}

/// The form of a draft.
#[derive(Debug, Clone, PartialEq)]
pub enum DraftForm {
    /// The table as a whole.
    Whole(Snapshot),
    /// What changed.
    Change(Delta),
}

/// What was published last.
#[derive(Debug, Clone, PartialEq)]
struct Published {
    version: TableVersion,
    chain: Digest,
    /// `None`: it is what the term before left, and nobody has said yet what that is.
    model: Option<Arc<Model>>,
    deltas: usize,
    /// What the next one is held against; `None`: it is what the term before left.
    ground: Option<Ground>,
}

/// What the next table is held against, lest it lose most of it by a mistake.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ground {
    /// What it holds.
    pub counts: Counts,
    /// The revision of its documents; `None`: there is no table.
    pub revision: Option<u64>,
    /// As in [`Position`].
    pub shrinks_from: u64,
}

/// A table in force with which a term can begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Continued {
    /// Which it is.
    pub at: Position,
    /// The generation of its documents' seal; 0: they have none.
    pub generation: u64,
}

/// What a table is made of.
#[derive(Debug, Clone)]
pub struct Contents {
    /// The model.
    pub model: Arc<Model>,
    /// The revision of its documents.
    pub revision: u64,
    /// The generation of their seal; 0: they have none.
    pub generation: u64,
    /// What the model holds.
    pub counts: Counts,
    /// Most of the table before may go.
    pub allow_shrink: bool,
    /// As in [`Position`].
    pub shrinks_from: u64,
    /// A model from which this one differs in nothing but endpoints of these services, where one is known.
    pub since: Option<Since>,
}

/// A model, and the services whose endpoints differ from it.
pub type Since = (Arc<Model>, BTreeSet<ObjectName>);

impl Contents {
    /// All of a model, of documents that nobody has sealed.
    pub fn of(model: impl Into<Arc<Model>>, revision: u64) -> Self {
        let model = model.into();
        let counts = Counts::of(&model);
        Self { model, revision, generation: 0, counts, allow_shrink: false, shrinks_from: 0, since: None }
    }

    /// What makes this model out of another one: all of both is compared only where nothing is known of how they differ.
    fn change_from(&self, before: &Arc<Model>) -> Change {
        match &self.since {
            Some((model, services)) if Arc::ptr_eq(model, before) => {
                Change::between_endpoints(before, &self.model, services)
            }
            _ => Change::between(before, &self.model),
        }
    }
}

/// One term of one leader.
#[derive(Debug)]
pub struct Publisher {
    cluster: Arc<str>,
    lease: Lease,
    /// The highest version that was given to a draft, whatever became of it.
    drafted: u64,
    last: Option<Published>,
}

impl Publisher {
    /// A term in which nothing was published.
    pub fn new(cluster: Arc<str>, lease: Lease) -> Self {
        Self { cluster, lease, drafted: 0, last: None }
    }

    /// The lease under which it publishes.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// What was published last.
    pub fn version(&self) -> Option<TableVersion> {
        self.last.as_ref().map(|last| last.version)
    }

    /// Where in the chain that is: what the store holds while it keeps what it was given.
    pub fn chain(&self) -> Option<Digest> {
        self.last.as_ref().map(|last| last.chain)
    }

    /// The model that was published last.
    pub fn model(&self) -> Option<&Arc<Model>> {
        self.last.as_ref()?.model.as_ref()
    }

    /// What the next table is held against, where this term has published one.
    pub fn ground(&self) -> Option<Ground> {
        self.last.as_ref()?.ground
    }

    /// Where in the chain the table is that the term went on with, if it is out and nobody has said what it holds.
    pub fn lacks_model(&self) -> Option<Digest> {
        self.last.as_ref().filter(|last| last.model.is_none()).map(|last| last.chain)
    }

    /// What the table that is out holds.
    pub fn knows(&mut self, model: Arc<Model>) {
        if let Some(last) = &mut self.last {
            last.model = Some(model);
        }
    }

    /// The table in force, as the first one of this term. `None`: another one is out.
    pub fn go_on(&mut self, with: Continued, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> Option<Draft> {
        if self.last.is_some() {
            return None;
        }
        let Continued { at, generation } = with;
        let version = TableVersion { token: self.lease.token, version: self.drafted + 1 };
        let header = Header {
            schema: SCHEMA,
            cluster: Arc::clone(&self.cluster),
            leader: Arc::clone(&self.lease.node),
            version: version.into(),
            form: Form::Delta { previous: at.chain },
            allow_shrink: false,
            shrinks_from: at.shrinks_from,
            revision: at.revision,
            generation,
        };
        let (delta, chain) = sealed_delta(&header, at.chain, &Change::default(), sign);
        self.drafted = version.version;
        Some(Draft {
            form: DraftForm::Change(delta),
            after: Published { version, chain, model: None, deltas: 1, ground: None },
        })
    }

    /// The next table. `None`: it would be the one that is out. `whole`: the store has not got what a delta would follow.
    pub fn draft(
        &mut self,
        contents: &Contents,
        whole: bool,
        sign: impl FnOnce(&[u8]) -> Vec<u8>,
    ) -> Option<Draft> {
        let version = TableVersion { token: self.lease.token, version: self.drafted + 1 };
        // Of what was drafted after the last that came out nobody knows where it is.
        let last = self.last.as_ref().filter(|last| !whole && last.version.version == self.drafted);
        let change = last.and_then(|last| Some((last, contents.change_from(last.model.as_ref()?))));
        if change.as_ref().is_some_and(|(_, change)| change.is_empty()) {
            return None;
        }
        let delta =
            change.filter(|(last, change)| last.deltas < DELTAS_MAX && change.len() <= DELTA_RECORDS_MAX);
        let (form, chain, deltas) = if let Some((last, change)) = delta {
            let form = Form::Delta { previous: last.chain };
            let header = self.header(version, form, contents);
            let (delta, digest) = sealed_delta(&header, last.chain, &change, sign);
            (DraftForm::Change(delta), digest, last.deltas + 1)
        } else {
            let body = Change::whole(&contents.model).encode();
            let chain = first_digest(version, &body);
            let sealed = seal(&self.header(version, Form::Snapshot { chain }, contents), &body, sign);
            (DraftForm::Whole(Snapshot { digest: chain.to_string(), sealed }), chain, 0)
        };
        let Contents { counts, revision, shrinks_from, .. } = *contents;
        let ground = Some(Ground { counts, revision: Some(revision), shrinks_from });
        let after = Published { version, chain, model: Some(Arc::clone(&contents.model)), deltas, ground };
        self.drafted = version.version;
        Some(Draft { form, after })
    }

    /// The store has it.
    pub fn committed(&mut self, draft: Draft) {
        self.last = Some(draft.after);
    }

    /// Nobody was sent it, and nobody will be.
    pub fn unsent(&mut self, draft: &Draft) {
        if draft.version().version == self.drafted {
            self.drafted -= 1;
        }
    }

    fn header(&self, version: TableVersion, form: Form, contents: &Contents) -> Header {
        Header {
            schema: SCHEMA,
            cluster: Arc::clone(&self.cluster),
            leader: Arc::clone(&self.lease.node),
            version: version.into(),
            form,
            allow_shrink: contents.allow_shrink,
            shrinks_from: contents.shrinks_from,
            revision: contents.revision,
            generation: contents.generation,
        }
    }
}

/// A delta, and where in the chain whoever takes it in is.
fn sealed_delta(
    header: &Header,
    previous: Digest,
    change: &Change,
    sign: impl FnOnce(&[u8]) -> Vec<u8>,
) -> (Delta, Digest) {
    let sealed = seal(header, &change.encode(), sign);
    let digest = Sealed::open(&sealed).expect("it was just sealed").digest();
    (Delta { previous: previous.to_string(), digest: digest.to_string(), sealed }, digest)
}

impl Draft {
    /// Which table it would be.
    pub fn version(&self) -> TableVersion {
        self.after.version
    }

    /// Where in the chain it would be.
    pub fn chain(&self) -> Digest {
        self.after.chain
    }

    /// How many bytes each follower gets.
    pub fn bytes(&self) -> usize {
        match &self.form {
            DraftForm::Whole(snapshot) => snapshot.sealed.len(),
            DraftForm::Change(delta) => delta.sealed.len(),
        }
    }

    /// Whether no follower could read it.
    pub fn too_large(&self) -> bool {
        self.bytes() > BODY_MAX
    }
}

#[cfg(test)]
mod tests;
