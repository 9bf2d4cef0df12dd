//! The table that is to be kept, as it was published: all records once, and the changes that follow. Pure.

use crate::cluster::disk::{KeptChange, KeptTable};
use crate::cluster::seal::{Form, Position};
use crate::compile::wire::{Change, WireError};

/// With more bytes of changes than this they are put together at once.
const CHANGES_MAX: usize = 16 << 20;

/// So many bytes of changes may stay in their file: a start reads them beside the table as fast as within it.
const CHANGES_SOME: usize = 1 << 20;

/// A table, and what of it the disk has.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// All records, as they were once; `None`: nothing is known of them.
    whole: Option<KeptTable>,
    /// What changed since, compressed.
    changes: Vec<Vec<u8>>,
    /// How large that is.
    bytes: usize,
    /// Where the changes lead.
    at: Option<Position>,
    /// The generation of the documents there.
    generation: u64,
    /// What the disk has.
    kept: Option<Position>,
}

impl Table {
    /// What is on the disk, with the changes that follow.
    pub(super) fn of(kept: Option<(KeptTable, Vec<KeptChange>)>) -> Self {
        let Some((whole, changes)) = kept else { return Self::default() };
        let (at, generation) = (Some(whole.at), whole.generation);
        let mut table = Self { whole: Some(whole), at, generation, kept: at, ..Self::default() };
        for KeptChange { at, previous, generation, body } in changes {
            table.take(at, Form::Delta { previous }, (generation, body));
        }
        table
    }

    /// The table that is on the disk.
    pub(super) fn on_disk(&self) -> Option<Position> {
        self.kept
    }

    /// Takes in a published table, with the generation of its documents and its records. One that came before is passed over:
    /// whoever applies may have begun anew.
    pub(super) fn take(&mut self, at: Position, form: Form, (generation, body): (u64, Vec<u8>)) {
        if self.at.is_some_and(|here| here.version >= at.version) {
            return;
        }
        match form {
            Form::Snapshot { .. } => self.begin(Some(KeptTable { at, generation, body })),
            Form::Delta { previous } if self.at.is_some_and(|here| here.chain == previous) => {
                self.bytes += body.len();
                self.changes.push(body);
            }
            // Of what is between nothing is known here. The next one that is whole will do.
            Form::Delta { .. } => self.begin(None),
        }
        (self.at, self.generation) = (Some(at), generation);
    }

    fn begin(&mut self, whole: Option<KeptTable>) {
        (self.whole, self.changes, self.bytes) = (whole, Vec::new(), 0);
    }

    /// Whether there is something that the disk does not have.
    pub(super) fn differs(&self) -> bool {
        self.whole.is_some() && self.at != self.kept
    }

    /// Whether it should be there at once: the changes on the disk do not follow the table there, or are many.
    pub(super) fn is_urgent(&self) -> bool {
        self.whole.as_ref().map(|whole| whole.at) != self.kept || self.bytes > CHANGES_MAX
    }

    /// Whether it is worth while to write the table anew: its changes are on the disk as well.
    pub(super) fn is_due(&self) -> bool {
        self.is_urgent() || self.bytes > CHANGES_SOME
    }

    /// All records as they are now; `None`: the disk has them.
    pub(super) fn put_together(&mut self) -> Option<Result<&KeptTable, WireError>> {
        let at = self.at.filter(|_| self.differs())?;
        let whole = self.whole.as_mut()?;
        if !self.changes.is_empty() {
            let changed = Change::decode(&whole.body).and_then(|records| {
                let changes = self.changes.iter().map(|change| Change::decode(change));
                Ok(records.followed_by(changes.collect::<Result<Vec<_>, _>>()?))
            });
            match changed {
                Ok(records) => whole.body = records.encode(),
                Err(error) => return Some(Err(error)),
            }
            (self.changes, self.bytes) = (Vec::new(), 0);
        }
        (whole.at, whole.generation) = (at, self.generation);
        Some(Ok(whole))
    }

    /// What was put together is on the disk, or could not be kept and is tried again.
    pub(super) fn kept(&mut self, kept: bool) {
        if kept {
            self.kept = self.at;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::publisher::{Contents, DraftForm, Publisher};
    use crate::cluster::sample;
    use crate::cluster::seal::Sealed;
    use crate::cluster::store::Lease;
    use crate::compile::Token;
    use crate::compile::wire::Parts;
    use crate::model::Model;
    use std::sync::Arc;

    /// Publishes as one leader would.
    struct Leader(Publisher);

    impl Leader {
        fn of_epoch(epoch: u64) -> Self {
            let lease = Lease { token: Token { epoch, nonce: 1 }, node: "a".into() };
            Self(Publisher::new("c".into(), lease))
        }

        /// The bytes of the next table, with so many endpoints.
        fn publish(&mut self, endpoints: u8, whole: bool) -> Vec<u8> {
            let model = Arc::new(sample::model(endpoints, 1));
            let contents = Contents { allow_shrink: true, ..Contents::of(model, 1) };
            let draft = self.0.draft(&contents, whole, |_| Vec::new()).expect("is another one");
            let bytes = match &draft.form {
                DraftForm::Whole(snapshot) => snapshot.sealed.clone(),
                DraftForm::Change(delta) => delta.sealed.clone(),
            };
            self.0.committed(draft);
            bytes
        }
    }

    fn take(table: &mut Table, bytes: &[u8]) -> Position {
        let sealed = Sealed::open(bytes).expect("is a table");
        let records = (sealed.header.generation, sealed.body.to_vec());
        table.take(sealed.position(), sealed.header.form, records);
        sealed.position()
    }

    /// What an agent that begins with it has.
    fn model(kept: &KeptTable) -> Model {
        let mut parts = Parts::default();
        parts.apply(&Change::decode(&kept.body).expect("is a change")).expect("is whole");
        parts.model()
    }

    fn keep(table: &mut Table) -> KeptTable {
        let kept =
            table.put_together().expect("there is something").expect("its records can be read").clone();
        table.kept(true);
        kept
    }

    #[test]
    fn what_was_published_piece_by_piece_is_kept_as_one() {
        let (mut table, mut leader) = (Table::default(), Leader::of_epoch(1));
        assert!(!table.differs() && table.put_together().is_none());
        take(&mut table, &leader.publish(3, false));
        assert!(table.differs() && table.is_urgent(), "no change leads there");
        assert_eq!(model(&keep(&mut table)), sample::model(3, 1));
        assert!(!table.differs() && !table.is_urgent() && table.put_together().is_none());
        for endpoints in [4, 9, 2] {
            take(&mut table, &leader.publish(endpoints, false));
        }
        let last = take(&mut table, &leader.publish(5, false));
        assert!(table.differs() && !table.is_urgent() && !table.is_due());
        let kept = keep(&mut table);
        assert_eq!((kept.at, model(&kept)), (last, sample::model(5, 1)));
        // What an agent reads at its start goes on likewise.
        let mut table = Table::of(Some((kept, Vec::new())));
        assert!(!table.differs());
        let last = take(&mut table, &leader.publish(6, false));
        let kept = keep(&mut table);
        assert_eq!((kept.at, model(&kept)), (last, sample::model(6, 1)));
    }

    #[test]
    fn what_could_not_be_kept_is_still_to_be_kept() {
        let (mut table, mut leader) = (Table::default(), Leader::of_epoch(1));
        take(&mut table, &leader.publish(1, false));
        take(&mut table, &leader.publish(2, false));
        table.put_together().expect("there is something").expect("its records can be read");
        table.kept(false);
        assert!(table.differs());
        take(&mut table, &leader.publish(3, false));
        assert_eq!(model(&keep(&mut table)), sample::model(3, 1));
    }

    #[test]
    fn what_came_before_is_passed_over_and_what_has_a_gap_is_never_kept() {
        let (mut table, mut leader) = (Table::default(), Leader::of_epoch(1));
        let pieces = [leader.publish(1, false), leader.publish(2, false), leader.publish(3, false)];
        for piece in pieces.iter().chain(&pieces) {
            take(&mut table, piece);
        }
        assert_eq!(model(&keep(&mut table)), sample::model(3, 1));
        leader.publish(4, false);
        take(&mut table, &leader.publish(5, false));
        assert!(!table.differs() && table.put_together().is_none());
        take(&mut table, &leader.publish(6, false));
        assert!(!table.differs());
        take(&mut table, &leader.publish(7, true));
        assert_eq!(model(&keep(&mut table)), sample::model(7, 1));
        let mut next = Leader::of_epoch(2);
        take(&mut table, &next.publish(2, false));
        assert!(table.is_urgent() && table.is_due());
    }
}
