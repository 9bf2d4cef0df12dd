//! The documents: a copy of the store's, on every node.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{KEEP_EVERY, KEEP_REST, Shared, Woken, wait_for};
use crate::cluster::disk::KeptDocuments;
use crate::cluster::documents::{RESERVED, Step, compare};
use crate::cluster::election;
use crate::cluster::registry::{self, NodeRecord};
use crate::cluster::store::{DocumentWrite, Event, Lease, Store, StoreError, Written};

pub(super) async fn run<S: Store>(shared: Arc<Shared<S>>, mut stop: watch::Receiver<bool>) {
    let mut events = shared.store.events();
    let mut term = shared.term.subscribe();
    shared.note(&shared.documents.borrow().clone());
    let mut kept = Kept { documents: Arc::clone(&shared.documents.borrow()), next: Instant::now() };
    loop {
        let lease = term.borrow_and_update().clone();
        // What went wrong has been told; the next look is soon enough.
        if let Ok(true) = shared.heard(shared.mirror(lease.as_ref()).await) {
            shared.synced.send_replace(lease);
        }
        let rest = kept.keep(&shared, false);
        let pause = rest.map_or(shared.pause(), |rest| rest.min(shared.pause()));
        tokio::select! {
            woken = wait_for(&mut events, &[Event::Documents], pause, &mut stop) => {
                if woken == Woken::Ended {
                    kept.keep(&shared, true);
                    return;
                }
            }
            // Who leads looks first, and may have to give documents back.
            _ = term.changed() => {}
        }
    }
}

/// The documents as the disk has them. Who writes all of them at every change of a busy cluster does nothing else.
struct Kept {
    documents: Arc<KeptDocuments>,
    /// When they may be kept again.
    next: Instant,
}

impl Kept {
    /// Keeps the documents on disk if they changed, or if that failed before, and it is time or the end (`now`). How long it
    /// is until that time, where there is something to keep.
    fn keep<S: Store>(&mut self, shared: &Shared<S>, now: bool) -> Option<Duration> {
        let documents = Arc::clone(&shared.documents.borrow());
        let failed = shared.view().disk_errors.contains_key("documents");
        if Arc::ptr_eq(&documents, &self.documents) && !failed {
            return None;
        }
        let rest = self.next.saturating_duration_since(Instant::now());
        if !rest.is_zero() && !now {
            return Some(rest);
        }
        let begin = Instant::now();
        tokio::task::block_in_place(|| shared.keep("documents", |disk| disk.keep_documents(&documents)));
        self.next = Instant::now() + KEEP_EVERY.max(begin.elapsed() * KEEP_REST);
        self.documents = documents;
        None
    }
}

impl<S: Store> Shared<S> {
    /// Looks at the store's documents; whether those of this node are they now.
    async fn mirror(&self, lease: Option<&Lease>) -> Result<bool, StoreError> {
        let kept = Arc::clone(&self.documents.borrow());
        let heard = self.store.documents(&kept.store, kept.revision).await?;
        let step = match compare(&kept, heard, false) {
            Step::AskAll => compare(&kept, self.store.documents("", 0).await?, true),
            step => step,
        };
        match step {
            Step::Adopt(documents) => {
                self.adopt(&kept, documents);
                Ok(true)
            }
            Step::AskAll => Ok(false),
            Step::Restore(writes) => match lease {
                Some(lease) => self.restore(lease, &kept, writes).await,
                // Who leads gives them back. Until then what is here is what is known.
                None => Ok(false),
            },
        }
    }

    fn adopt(&self, before: &KeptDocuments, documents: KeptDocuments) {
        if *before != documents {
            self.note(&documents);
            self.documents.send_replace(Arc::new(documents));
        }
    }

    fn note(&self, documents: &KeptDocuments) {
        let count = documents.texts.keys().filter(|id| !id.starts_with(RESERVED)).count();
        self.view().documents = (Arc::clone(&documents.store), documents.revision, count);
    }

    /// The store has lost documents that this node has. Whether they are back.
    async fn restore(
        &self,
        lease: &Lease,
        kept: &KeptDocuments,
        writes: Vec<DocumentWrite>,
    ) -> Result<bool, StoreError> {
        // A store that has lost everything has lost who is there too: the others say so again, and what they know.
        tokio::time::sleep(self.settings.ttl / 3).await;
        let nodes = registry::read(self.store.members().await?);
        let records = nodes.iter().filter(|node| node.alive).filter_map(|node| node.record.as_ref().ok());
        let later = |record: &NodeRecord| record.store == kept.store && record.revision > kept.revision;
        if records.into_iter().any(later) {
            tracing::warn!("the store has lost documents, and another node has later ones: it shall lead");
            let _ = self.election.send(election::Event::Unfit).await;
            return Ok(false);
        }
        if !self.leads(lease) {
            return Ok(false);
        }
        let documents = writes.len();
        tracing::warn!(
            documents,
            epoch = lease.token.epoch,
            "the store has lost documents and gets them back"
        );
        if let Written::Conflict(ids) = self.store.restore(&writes, kept.revision).await? {
            tracing::warn!(conflicts = ids.len(), "somebody writes documents meanwhile");
            return Ok(false);
        }
        let all = self.store.documents("", 0).await?;
        if let Step::Adopt(documents) = compare(&KeptDocuments::default(), all, true) {
            self.adopt(kept, documents);
        }
        Ok(true)
    }
}
