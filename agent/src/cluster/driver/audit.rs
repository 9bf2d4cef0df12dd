//! Whoever leads looks, some documents at a time, whether the store still has the texts that this node has. What somebody changes there
//! past all scripts has no new revision, and so nobody else would read it before everything is read.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::Shared;
use crate::cluster::disk::KeptDocuments;
use crate::cluster::documents::mending;
use crate::cluster::store::{DocumentWrite, Odd, Store, StoreError, Written, sum_of};

/// So many at a time: about a millisecond of the store's, in which it answers nobody else.
const AT_A_TIME: usize = 500;
/// So many are summed up without a pause, some tenths of a millisecond: nobody hurries.
const PIECE: usize = 50;
const PAUSE: Duration = Duration::from_millis(1);
/// So many documents that are odd are named.
const NAMED: usize = 3;

/// How far it came.
#[derive(Debug, Default)]
pub(super) struct Audit {
    /// The document with which it goes on; `None`: the first one.
    next: Option<Arc<str>>,
    /// When it was done last.
    last: Option<Instant>,
}

impl<S: Store> Shared<S> {
    /// Looks at the next documents, unless it did so a moment ago. Whether the store has another text of one of them, or more or
    /// fewer documents, at the very revision that this node has.
    pub(super) async fn audit(&self, audit: &mut Audit) -> Result<bool, StoreError> {
        if audit.last.is_some_and(|last| last.elapsed() < self.settings.ttl / 4) {
            return Ok(false);
        }
        audit.last = Some(Instant::now());
        let kept = Arc::clone(&self.documents.borrow());
        let from: &str = audit.next.as_deref().unwrap_or_default();
        let window: Vec<_> = kept.texts.starting_at(from).take(AT_A_TIME + 1).collect();
        let (now, later) = window.split_at(AT_A_TIME.min(window.len()));
        let ids: Vec<Arc<str>> = now.iter().map(|(id, _)| Arc::clone(id)).collect();
        let there = self.store.sums(&ids).await?;
        if (&*there.store, there.revision) != (&*kept.store, kept.revision) {
            // It has changed meanwhile, and what it has is read first.
            return Ok(false);
        }
        audit.next = later.first().map(|(id, _)| Arc::clone(id));
        let mut same = (there.count, there.sums.len()) == (kept.texts.len() as u64, now.len());
        for (texts, sums) in now.chunks(PIECE).zip(there.sums.chunks(PIECE)) {
            let sums_here = texts.iter().map(|(_, (_, text))| Some(sum_of(text)));
            same &= sums_here.eq(sums.iter().cloned());
            sleep(PAUSE).await;
        }
        Ok(!same)
    }

    /// Says which documents the store contradicts itself about and, where it still does at the next look, writes them anew as they
    /// count. `told`: what was said before. Whether there are any.
    pub(super) async fn mend(&self, odd: &[Odd], told: &mut Vec<Odd>) -> Result<bool, StoreError> {
        let named = odd.iter().take(NAMED).map(Odd::to_string).collect::<Vec<_>>().join(", ");
        let more = odd.len().saturating_sub(NAMED);
        let text = if more > 0 { format!("{named}, and {more} more") } else { named };
        self.view().at_odds = (!odd.is_empty()).then(|| text.clone());
        if odd != told.as_slice() {
            if !odd.is_empty() {
                self.view().odds += 1;
                tracing::error!(
                    documents = odd.len(),
                    "the store contradicts itself about documents: {text}"
                );
            }
            odd.clone_into(told);
            return Ok(!odd.is_empty());
        }
        if odd.is_empty() {
            return Ok(false);
        }
        let writes = mending(odd, &self.documents.borrow().texts);
        // Where somebody else writes them meanwhile that mends them too; else it is tried again, and was told already.
        if let Written::At(_) = self.store.write(&writes).await? {
            told.clear();
        }
        Ok(true)
    }

    /// Gives those that were changed past all scripts a revision, where nobody seals documents and so whatever is there counts: then
    /// all nodes take them over. `there`: all that the store has. Whether there are any.
    pub(super) async fn renumber(
        &self,
        kept: &KeptDocuments,
        there: &KeptDocuments,
    ) -> Result<bool, StoreError> {
        if (&kept.store, kept.revision) != (&there.store, there.revision) {
            return Ok(false);
        }
        let mut writes = Vec::new();
        kept.texts.differences(&there.texts, PartialEq::eq, |id, _, is| {
            writes.extend(is.map(|(revision, text)| DocumentWrite {
                id: Arc::clone(id),
                text: Some(Arc::clone(text)),
                expected: Some(*revision),
            }));
        });
        if writes.is_empty() {
            return Ok(false);
        }
        let first = &writes[0].id;
        tracing::warn!(documents = writes.len(), %first, "documents were changed in the store without a new revision, and get one");
        // Where somebody else writes them meanwhile they have one.
        self.store.write(&writes).await?;
        Ok(true)
    }
}
