//! The documents: a copy of the store's, on every node.

use std::sync::Arc;

use tokio::sync::watch;

use super::{Shared, wait_for};
use crate::cluster::disk::KeptDocuments;
use crate::cluster::documents::{RESERVED, Step, compare};
use crate::cluster::registry::NodeRecord;
use crate::cluster::store::{DocumentWrite, Event, Store, StoreError, Written};

/// A store takes so many documents in one step.
const WRITES_MAX: usize = 1000;

pub(super) async fn run<S: Store>(shared: Arc<Shared<S>>, mut stop: watch::Receiver<bool>) {
    let mut events = shared.store.events();
    shared.note(&shared.documents.borrow().clone());
    loop {
        // What went wrong has been told; the next look is soon enough.
        let _ = shared.heard(shared.mirror().await);
        // Who leads may have to give documents back.
        if !wait_for(&mut events, &[Event::Documents, Event::Leader], shared.pause(), &mut stop).await {
            return;
        }
    }
}

impl<S: Store> Shared<S> {
    async fn mirror(&self) -> Result<(), StoreError> {
        let kept = Arc::clone(&self.documents.borrow());
        let heard = self.store.documents(&kept.store, kept.revision).await?;
        let step = match compare(&kept, heard, false) {
            Step::AskAll => compare(&kept, self.store.documents("", 0).await?, true),
            step => step,
        };
        match step {
            Step::Adopt(documents) => self.adopt(&kept, documents),
            Step::AskAll => {}
            Step::Restore(writes) => self.restore(&kept, writes).await?,
        }
        Ok(())
    }

    fn adopt(&self, before: &KeptDocuments, documents: KeptDocuments) {
        if *before != documents {
            self.keep(|disk| disk.keep_documents(&documents));
            self.note(&documents);
            self.documents.send_replace(Arc::new(documents));
        }
        self.synced.send_replace(true);
    }

    fn note(&self, documents: &KeptDocuments) {
        let count = documents.texts.keys().filter(|id| !id.starts_with(RESERVED)).count();
        self.view().documents = (Arc::clone(&documents.store), documents.revision, count);
    }

    /// The store has lost documents that this node has.
    async fn restore(&self, kept: &KeptDocuments, writes: Vec<DocumentWrite>) -> Result<(), StoreError> {
        let Some(lease) = self.term.borrow().clone() else {
            // Who leads gives them back. Until then what is here is what is known.
            return Ok(());
        };
        let nodes = Arc::clone(&self.nodes.borrow());
        let records = nodes.iter().filter(|node| node.alive).filter_map(|node| node.record.as_ref().ok());
        if records.map(|record: &NodeRecord| record.revision).max() > Some(kept.revision) {
            tracing::warn!("the store has lost documents, and another node has later ones: it shall lead");
            let _ = self.election.send(crate::cluster::election::Event::Unfit).await;
            return Ok(());
        }
        tracing::warn!(documents = writes.len(), epoch = lease.token.epoch, "the store has lost documents and gets them back");
        for some in writes.chunks(WRITES_MAX) {
            if let Written::Conflict(ids) = self.store.write(some).await? {
                tracing::warn!(conflicts = ids.len(), "somebody writes documents meanwhile");
                return Ok(());
            }
        }
        // The store's revision may be lower than the one known here: what it has now is what counts.
        let all = self.store.documents("", 0).await?;
        if let Step::Adopt(documents) = compare(&KeptDocuments::default(), all, true) {
            self.adopt(kept, documents);
        }
        Ok(())
    }
}
