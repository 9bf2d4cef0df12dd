//! The documents: a copy of the store's, on every node.

use std::sync::Arc;

use tokio::sync::watch;

use super::audit::Audit;
use super::{Shared, Woken, lock, wait_for};
use crate::cluster::disk::KeptDocuments;
use crate::cluster::documents::sealed::{
    Refused, SEAL, Seal, Sums, check, check_beside, compare_sealed, generation,
};
use crate::cluster::documents::{RESERVED, Step, adds_nothing, compare, lost};
use crate::cluster::election;
use crate::cluster::registry::{self, NodeRecord, RefusedSeal};
use crate::cluster::store::{DocumentWrite, Documents, Event, Lease, Odd, Store, StoreError, Written};

/// What is known of the seal over the documents.
#[derive(Debug, Default)]
struct Sealing {
    sums: Sums,
    /// The seal of the documents that this node has.
    held: Option<Seal>,
    /// The store and the revision that were refused last.
    refused: Option<(Arc<str>, u64)>,
    /// The generation of what was judged last.
    judged: u64,
    /// It was refused as made without knowing what this node has, which counts no more once a table is in force that is made of it.
    unaware: bool,
    /// What the store says has to be read as a whole: it may have been written past all that writes documents.
    doubted: bool,
    /// What is odd about what was read last.
    odd: Vec<Odd>,
    /// What was told of that, by whoever leads.
    told: Vec<Odd>,
}

impl Sealing {
    /// Whether what was refused may be taken over now, though it is the same.
    fn reconsiders(&self, in_force: u64) -> bool {
        self.unaware && in_force >= self.judged
    }

    fn hold<S>(&mut self, shared: &Shared<S>, seal: Seal) {
        let before = self.held.as_ref().map_or(0, |held| held.head.generation);
        let follows = seal.head.follows;
        if before != 0 && seal.head.generation != before && follows < before {
            tracing::warn!(%seal, before, follows, "documents were sealed by somebody who did not know those before: what these changed is lost");
        }
        lock(&shared.view).seal = Some(seal.clone());
        self.held = Some(seal);
    }
}

pub(super) async fn run<S: Store>(shared: Arc<Shared<S>>, mut stop: watch::Receiver<bool>) {
    let mut events = shared.store.events();
    let mut term = shared.term.subscribe();
    let (mut sealing, mut audit) = (Sealing::default(), Audit::default());
    shared.look_at_kept(&mut sealing);
    loop {
        let lease = term.borrow_and_update().clone();
        if lease.is_none() {
            sealing.told.clear();
            shared.view().at_odds = None;
        }
        // What went wrong has been told; the next look is soon enough.
        if let Ok(true) = shared.heard(shared.mirror(&mut sealing, lease.as_ref()).await) {
            shared.synced.send_replace(lease.clone());
        }
        if lease.is_some() && matches!(shared.heard(shared.audit(&mut audit).await), Ok(true)) {
            sealing.doubted = true;
            continue;
        }
        tokio::select! {
            woken = wait_for(&mut events, &[Event::Documents], shared.pause(), &mut stop) => {
                if woken == Woken::Ended {
                    shared.keeper.finish().await;
                    return;
                }
            }
            // Who leads looks first, and may have to give documents back.
            _ = term.changed() => {}
        }
    }
}

impl<S: Store> Shared<S> {
    /// Looks at the store's documents; whether those of this node are what counts now.
    async fn mirror(&self, sealing: &mut Sealing, lease: Option<&Lease>) -> Result<bool, StoreError> {
        let kept = Arc::clone(&self.documents.borrow());
        let heard = self.store.documents(&kept.store, kept.revision).await?;
        let at = (Arc::clone(&heard.store), heard.revision);
        // Of the many looks most find nothing, and must not copy all there is to see it.
        let same = (&kept.store, kept.revision) == (&at.0, at.1);
        // A seal that was taken away says nothing of what else was.
        sealing.doubted |= same && heard.changed.is_empty() && kept.texts.contains_key(SEAL);
        if same && adds_nothing(&kept, &heard) && !sealing.doubted {
            sealing.refused = None;
            self.view().documents_refused = None;
            return Ok(true);
        }
        let doubted = sealing.doubted;
        let step = match self.compare(sealing, &kept, heard, false) {
            // Who does not lead has nothing to do about what it refuses: to read it once is enough.
            Ok(Step::AskAll)
                if !doubted
                    && lease.is_none()
                    && sealing.refused.as_ref() == Some(&at)
                    && !sealing.reconsiders(self.generation_in_force()) =>
            {
                return Ok(false);
            }
            Ok(step) if !doubted && step != Step::AskAll => step,
            _ => {
                let all = self.store.documents("", 0).await?;
                sealing.doubted = false;
                self.compare(sealing, &kept, all, true)?
            }
        };
        match step {
            Step::Adopt(documents) => {
                sealing.refused = None;
                self.view().documents_refused = None;
                let by_hand = doubted && self.trust.operators().is_none();
                if !(by_hand && self.renumber(&kept, &documents).await?) {
                    self.adopt(&kept, documents);
                }
                let at_odds = lease.is_some() && self.mend(&sealing.odd, &mut sealing.told).await?;
                sealing.doubted |= at_odds;
                Ok(true)
            }
            Step::AskAll => Ok(false),
            Step::Restore(writes) => match lease {
                Some(lease) => self.restore(lease, &kept, &writes).await,
                // Who leads gives them back. Until then what is here is what is known.
                None => Ok(false),
            },
            Step::Refuse(refused, writes) => {
                sealing.unaware = matches!(refused, Refused::Unaware { .. });
                let new = sealing.refused.replace(at.clone()) != Some(at);
                self.documents_refused(&refused, sealing.judged, new);
                match lease.filter(|_| !writes.is_empty()) {
                    // A table may come before the documents that it is made of.
                    Some(_) if self.generation_in_force() > generation(&kept.texts) => {
                        tracing::warn!(
                            "this node lacks the documents that the table in force is made of: another shall lead"
                        );
                        let _ = self.election.send(election::Event::Unfit).await;
                        Ok(false)
                    }
                    Some(lease) => self.restore(lease, &kept, &writes).await,
                    // What was sealed is what counts, whatever the store holds.
                    None => Ok(true),
                }
            }
        }
    }

    fn compare(
        &self,
        sealing: &mut Sealing,
        kept: &KeptDocuments,
        heard: Documents,
        all: bool,
    ) -> Result<Step, StoreError> {
        sealing.odd.clone_from(&heard.odd);
        let Some(trust) = self.trust.operators() else {
            lost(&heard)?;
            return Ok(tokio::task::block_in_place(|| compare(kept, heard, all)));
        };
        Ok(tokio::task::block_in_place(|| {
            compare_sealed(kept, &heard, all, |there| {
                let held = sealing.held.as_ref().map(|seal| (&kept.texts, seal));
                let cluster = &self.settings.cluster;
                sealing.judged = generation(&there.texts);
                let beside = (held, self.generation_in_force());
                let seal = check_beside(cluster, &there.texts, &mut sealing.sums, &trust.bundle, beside)?;
                sealing.hold(self, seal);
                Ok(())
            })
        }))
    }

    /// What the disk has counts only where it was sealed: this node may have been one that asked for no seals.
    fn look_at_kept(&self, sealing: &mut Sealing) {
        let kept = Arc::clone(&self.documents.borrow());
        if let Some(trust) = self.trust.operators().filter(|_| !kept.texts.is_empty()) {
            let cluster = &self.settings.cluster;
            match check(cluster, &kept.texts, &mut sealing.sums, &trust.bundle, None) {
                Ok(seal) => sealing.hold(self, seal),
                Err(refused) => {
                    tracing::warn!(
                        reason = refused.as_str(),
                        "the documents that were kept do not count: {refused}"
                    );
                    self.documents.send_replace(Arc::default());
                }
            }
        }
        self.note(&self.documents.borrow().clone());
    }

    /// Of which generation the documents are that the table in force is made of; 0: that is not known.
    pub(super) fn generation_in_force(&self) -> u64 {
        self.continued.borrow().map_or(0, |with| with.generation)
    }

    /// `new`: the store did not hold them when it was last looked at.
    fn documents_refused(&self, refused: &Refused, generation: u64, new: bool) {
        let mut view = self.view();
        if new {
            *view.document_refusals.entry(refused.as_str()).or_default() += 1;
            tracing::error!(reason = refused.as_str(), "the documents of the store are refused: {refused}");
        }
        view.documents_refused = Some((refused.as_str(), refused.to_string()));
        let why = format!("{}: {refused}", refused.as_str());
        view.seal_refused = Some(RefusedSeal { generation, why });
        drop(view);
        if new {
            self.documents_judged.notify_one();
        }
    }

    fn adopt(&self, before: &KeptDocuments, documents: KeptDocuments) {
        if *before != documents {
            self.note(&documents);
            let documents = Arc::new(documents);
            self.keeper.documents(Arc::clone(&documents));
            self.documents.send_replace(documents);
        }
    }

    fn note(&self, documents: &KeptDocuments) {
        let reserved = documents.texts.starting_at(RESERVED).take_while(|(id, _)| id.starts_with(RESERVED));
        let count = documents.texts.len() - reserved.count();
        self.view().documents = (Arc::clone(&documents.store), documents.revision, count);
    }

    /// The store has lost documents that this node has, or holds what nobody sealed. Whether it was made what this node has: that is
    /// another store then, which the next look takes over.
    async fn restore(
        &self,
        lease: &Lease,
        kept: &KeptDocuments,
        writes: &[DocumentWrite],
    ) -> Result<bool, StoreError> {
        // A store that has lost everything has lost who is there too: the others say so again, and what they know.
        tokio::time::sleep(self.settings.ttl / 3).await;
        let nodes = registry::read(self.store.members().await?);
        let records = nodes.iter().filter(|node| node.alive).filter_map(|node| node.record.as_ref().ok());
        let held = generation(&kept.texts);
        let later = |record: &NodeRecord| {
            let further = record.store == kept.store && record.revision > kept.revision;
            further || record.sealing.generation > held
        };
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
            "the store has lost documents, or holds others than were sealed, and gets back what counts"
        );
        if let Written::Conflict(ids) = self.store.restore(writes, kept.revision).await? {
            tracing::warn!(conflicts = ids.len(), "somebody writes documents meanwhile");
            return Ok(false);
        }
        Ok(true)
    }
}
