//! What this agent does while it leads: reads the documents, publishes the table that follows from them and from what nodes say.

mod basis;
mod signatures;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use self::basis::{Basis, Known};
use self::signatures::Signatures;
use super::{Agent, Read, Shared, ended, now};
use crate::cluster::disk::KeptDocuments;
use crate::cluster::documents::may_shrink;
use crate::cluster::election::{self, Millis};
use crate::cluster::follower::shrinks;
use crate::cluster::publisher::{Contents, Draft, DraftForm, Ground, Publisher};
use crate::cluster::registry::{DocumentsOutcome, Health, Node};
use crate::cluster::seal::Digest;
use crate::cluster::store::{Lease, Published, Store, StoreError};
use crate::compile::wire::Counts;
use crate::model::Model;

/// Changes that come within this time are published as one.
const COALESCE: Duration = Duration::from_millis(20);
/// A leader rests as long as its last table took to make, and no longer than this: a cluster that changes all the time takes
/// half a core of it, and one change alone does not wait.
const REST_MAX: Duration = Duration::from_millis(200);
/// After a publication that the store did not take.
const RETRY: Duration = Duration::from_millis(500);
/// The last tables of the term before may still be on their way to this node when its own begins: for how long it waits for
/// each, and for how many. To write the table whole instead takes seconds where it is large.
const CATCH_UP: Duration = Duration::from_millis(300);
const CATCH_UP_TABLES: usize = 4;
/// How long it may take to say what a table in force holds.
const FIND: Duration = Duration::from_secs(5);
/// Whoever spoils the table in the store again and again is not followed at every turn.
const PATIENCE_MAX: Duration = Duration::from_secs(30);

pub(super) async fn run<S: Store, A: Agent>(
    shared: Arc<Shared<S>>,
    agent: Arc<A>,
    mut stop: watch::Receiver<bool>,
) {
    let mut term = shared.term.subscribe();
    loop {
        // What a term held back is not held back by the next, nor by a node that leads no more.
        shared.unpublished(None);
        shared.outcome.send_replace(None);
        let lease = term.borrow_and_update().clone();
        let leading = async {
            match lease {
                Some(lease) => lead(&shared, &agent, lease).await,
                None => std::future::pending().await,
            }
        };
        // Of a term that is over nobody wants to know anything.
        shared.wanted.send_replace(None);
        tokio::select! {
            () = ended(&mut stop) => return shared.unpublished(None),
            changed = term.changed() => if changed.is_err() { return },
            () = leading => {
                // Deposed by what the store said; the election hears of it by its next renewal.
                if term.changed().await.is_err() { return }
            }
        }
    }
}

/// One term, until somebody else leads.
async fn lead<S: Store, A: Agent>(shared: &Arc<Shared<S>>, agent: &Arc<A>, lease: Lease) {
    let mut publisher = Publisher::new(Arc::clone(&shared.settings.cluster), lease.clone());
    shared.go_on(&mut publisher).await;
    let (mut documents, mut nodes) = (shared.documents.subscribe(), shared.nodes.subscribe());
    // What this node remembers is not what the store has: it is asked first.
    let asked = |synced: &Option<Lease>| synced.as_ref() == Some(&lease);
    if shared.synced.subscribe().wait_for(asked).await.is_err() {
        return;
    }
    let mut known: Option<Known> = None;
    // The last that was not held back, or what the term began with: what becomes of nodes and pods goes on from there.
    let (mut good, mut begun_with): (Option<Basis>, Option<Basis>) = (None, None);
    // When the table is written anew, as somebody can't read it.
    let mut anew: Option<Instant> = None;
    let (mut whole, mut patience, mut health) = (false, RETRY, Health::default());
    let mut signatures = Signatures::of(shared);
    loop {
        let round = Instant::now();
        let latest = Arc::clone(&documents.borrow_and_update());
        let seen = Arc::clone(&nodes.borrow_and_update());
        let calm = now().until(Millis(shared.calm_until.load(Ordering::Acquire)));
        if calm.is_zero() {
            health = Health::of(&seen);
        }
        if known.as_ref().is_none_or(|known| !Arc::ptr_eq(&known.documents, &latest)) {
            let Some(read) = reading(agent, &latest).await else {
                shared.unpublished(Some("the documents can't be read, by a fault of this agent".to_owned()));
                let _ = shared.election.send(election::Event::Unfit).await;
                return;
            };
            known = Some(Known::after(known, read, latest, publisher.model()));
        }
        let known = known.as_ref().expect("it was just read");
        // The table in force may have come from the store only after the term had begun.
        if good.is_none() && publisher.chain().is_none() && shared.holds_back() {
            shared.go_on(&mut publisher).await;
        }
        begun_with = shared.learn_model(&mut publisher, &seen).await.or(begun_with);
        // Not before it is known who is dead: it would give them work again.
        if good.is_none() && calm.is_zero() {
            good = begun_with.take();
        }
        let mut pause = (!calm.is_zero()).then_some(calm);
        let outcome = shared.publish_known(&mut publisher, (known, &mut good), &health, whole).await;
        match outcome {
            Outcome::Done => {
                whole = false;
                shared.dealt_with(known.documents.revision);
            }
            Outcome::Withheld => shared.dealt_with(known.documents.revision),
            // It may have been taken all the same: what follows is whole.
            Outcome::Later | Outcome::Foreign => (pause, whole) = (Some(RETRY), true),
            Outcome::Deposed => return,
        }
        let rested = Instant::now() + round.elapsed().min(REST_MAX);
        let retry = pause.map(|pause| Instant::now() + pause);
        tokio::select! {
            changed = documents.changed() => if changed.is_err() { return } else { patience = RETRY },
            changed = nodes.changed() => if changed.is_err() { return },
            () = shared.spoilt.notified(), if anew.is_none() => {
                anew = Some(Instant::now() + patience);
                patience = (patience * 2).min(PATIENCE_MAX);
            }
            () = until(anew) => (whole, anew) = (true, None),
            () = signatures.due(shared) => whole |= signatures.have_ended(shared).await,
            () = until(retry) => {}
        }
        tokio::time::sleep(COALESCE.max(rested.saturating_duration_since(Instant::now()))).await;
    }
}

/// Waits; for ever where there is no time to wait for.
async fn until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when.into()).await,
        None => std::future::pending().await,
    }
}

/// Whether all that are there read and write the same records: else a table goes on that holds some that not all know, and
/// whoever does not know them could never take them away.
fn is_one_version(nodes: &[Node], own: &str) -> bool {
    let there = nodes.iter().filter(|node| node.alive);
    there.into_iter().all(|node| node.record.as_ref().is_ok_and(|record| record.version == own))
}

/// Reads documents on a thread that may be busy with it. `None`: the agent ends.
async fn reading<A: Agent>(agent: &Arc<A>, documents: &Arc<KeptDocuments>) -> Option<Read> {
    let (agent, documents) = (Arc::clone(agent), Arc::clone(documents));
    let read = move || agent.read(&documents);
    tokio::task::spawn_blocking(read).await.ok()
}

/// What the table shall be; or why that may not be published.
fn contents(basis: &Basis, health: &Health, before: Ground) -> Result<Contents, String> {
    let (mut model, mut since) = (Arc::clone(&basis.model), basis.since.clone());
    if !health.is_quiet() {
        health.overlay(Arc::make_mut(&mut model));
        since = None;
    }
    let counts = Counts::of(&model);
    let allow_shrink =
        basis.documents.as_ref().is_some_and(|documents| may_shrink(documents, before.revision));
    let lost = shrinks(before.counts, counts).err().filter(|_| !allow_shrink);
    // Pods that fail are no mistake in the documents, and dead nodes never take the last endpoint.
    let by_health =
        lost.is_some() && !health.is_quiet() && shrinks(before.counts, Counts::of(&basis.model)).is_ok();
    let (lost, allow_shrink) = (lost.filter(|_| !by_health), allow_shrink || by_health);
    if let Some(lost) = lost {
        return Err(lost.to_string());
    }
    let Basis { revision, generation, .. } = *basis;
    let from = before.revision.filter(|_| allow_shrink);
    let shrinks_from = from.map_or(before.shrinks_from, |from| from.max(before.shrinks_from));
    Ok(Contents { model, revision, generation, counts, allow_shrink, shrinks_from, since })
}

/// What became of a publication.
enum Outcome {
    Done,
    /// Nothing was published, for a reason that stays.
    Withheld,
    /// A key for tables holds something foreign: until somebody deletes it nothing can be published.
    Foreign,
    Later,
    Deposed,
}

impl<S: Store> Shared<S> {
    /// Publishes what is known, or goes on with what is `good` where that is held back.
    async fn publish_known(
        &self,
        publisher: &mut Publisher,
        (known, good): (&Known, &mut Option<Basis>),
        health: &Health,
        whole: bool,
    ) -> Outcome {
        // Where nothing was ever applied there is no table: an empty one could take the place of one that others still have.
        if known.documents.store.is_empty() {
            self.unpublished(None);
            return Outcome::Done;
        }
        let basis = known.basis(self.trust.operators().is_some());
        let ground = self.ground(publisher);
        let (found, held_back) = match contents(&basis, health, ground) {
            Ok(contents) => (Some(contents), None),
            Err(lost) => {
                let good = good.as_ref().map(|good| good.beside(known));
                (good.and_then(|good| contents(&good, health, ground).ok()), Some(lost))
            }
        };
        let is_good = held_back.is_none();
        let outcome = self.publish(publisher, found, held_back, whole).await;
        match outcome {
            Outcome::Done if is_good => *good = Some(basis.published()),
            // It is too large: nodes and pods may fail all the same.
            Outcome::Withheld if is_good => {
                let why = self.view().unpublished.clone();
                let before = good.as_ref().map(|good| good.beside(known));
                let before = before.and_then(|good| contents(&good, health, ground).ok());
                return self.publish(publisher, before, why, whole).await;
            }
            // Whoever writes documents is told.
            Outcome::Foreign => self.dealt_with(known.documents.revision),
            _ => {}
        }
        outcome
    }

    /// `held_back`: why `contents` are not what the documents say.
    async fn publish(
        &self,
        publisher: &mut Publisher,
        contents: Option<Contents>,
        held_back: Option<String>,
        whole: bool,
    ) -> Outcome {
        let Some(contents) = contents else {
            self.unpublished(held_back);
            return Outcome::Withheld;
        };
        for whole in [whole, true] {
            // A whole one takes its time.
            let draft = tokio::task::block_in_place(|| {
                publisher.draft(&contents, whole, |bytes| self.trust.sign(bytes))
            });
            let too_large = draft.as_ref().filter(|draft| draft.too_large());
            let why =
                too_large.map(|draft| format!("the table has {} bytes, which is too much", draft.bytes()));
            let fits = why.is_none();
            self.unpublished(why.or_else(|| held_back.clone()));
            let Some(draft) = draft else {
                // What was allowed was for what followed from that write: no later one shall find the table older than it.
                let before = self.ground(publisher).revision;
                if contents.allow_shrink && !whole && before.is_some_and(|before| before < contents.revision)
                {
                    continue;
                }
                return Outcome::Done;
            };
            if !fits {
                publisher.unsent(&draft);
                return Outcome::Withheld;
            }
            // What is sent after the deadline would be another leader's time.
            if !self.leads(publisher.lease()) {
                return Outcome::Later;
            }
            match self.send(publisher.lease(), &draft).await {
                Ok(Published::Yes) => {
                    publisher.committed(draft);
                    return Outcome::Done;
                }
                Ok(Published::NeedsSnapshot) => {}
                Ok(Published::NotLeader(_)) => {
                    self.view().fenced += 1;
                    tracing::warn!(version = %draft.version(), "a table was not published: another node leads");
                    // Its renewal will say the same; if not, somebody else shall try.
                    let _ = self.election.send(election::Event::Unfit).await;
                    return Outcome::Deposed;
                }
                Err(error @ StoreError::Foreign { .. }) => {
                    self.view().unpublished = Some(error.to_string());
                    return Outcome::Foreign;
                }
                Err(_) => return Outcome::Later,
            }
        }
        Outcome::Later
    }

    async fn send(&self, lease: &Lease, draft: &Draft) -> Result<Published, StoreError> {
        let answer = match &draft.form {
            DraftForm::Whole(snapshot) => self.store.publish(lease, snapshot).await,
            DraftForm::Change(delta) => self.store.append(lease, delta).await,
        };
        let answer = self.heard(answer);
        self.view().publications += u64::from(answer == Ok(Published::Yes));
        answer
    }

    /// Says that the table in force goes on under this term, where the store ends with it: so all obey the new leader before
    /// it has read a document. Where nothing comes of it the first table is whole.
    async fn go_on(&self, publisher: &mut Publisher) {
        let mut continued = self.continued.subscribe();
        for _ in 0..=CATCH_UP_TABLES {
            let Some(with) = *continued.borrow_and_update() else { return };
            let draft = publisher.go_on(with, |bytes| self.trust.sign(bytes));
            let Some(draft) = draft.filter(|_| self.leads(publisher.lease())) else { return };
            match self.send(publisher.lease(), &draft).await {
                Ok(Published::Yes) => return publisher.committed(draft),
                Ok(Published::NeedsSnapshot) => {}
                // Whatever is wrong is met again by what is published next.
                Ok(Published::NotLeader(_)) | Err(_) => return,
            }
            if tokio::time::timeout(CATCH_UP, continued.changed()).await.is_err() {
                return;
            }
        }
    }

    /// Tells a publisher that goes on with a table what that holds, where this node has it; returns it as what to go on from.
    async fn learn_model(&self, publisher: &mut Publisher, nodes: &[Node]) -> Option<Basis> {
        let chain = publisher.lacks_model().filter(|_| is_one_version(nodes, self.settings.version))?;
        let model = self.find(chain).await?;
        let with = self.continued.borrow().filter(|with| with.at.chain == chain);
        publisher.knows(Arc::clone(&model));
        with.map(|with| Basis::continued(model, with))
    }

    /// What the table in force with this place in the chain holds; `None`: this node does not have it.
    async fn find(&self, chain: Digest) -> Option<Arc<Model>> {
        let mut found = self.found.subscribe();
        self.wanted.send_replace(Some(chain));
        let is_it = |found: &Option<(Digest, _)>| found.as_ref().is_some_and(|(of, _)| *of == chain);
        let waited = tokio::time::timeout(FIND, found.wait_for(is_it)).await.is_ok_and(|found| found.is_ok());
        self.wanted.send_replace(None);
        let found = self.found.send_replace(None);
        found.filter(|_| waited).map(|(_, model)| model)
    }

    /// What the next table is held against: what this term has published last, which may not be in force here yet, or what was
    /// in force before it.
    fn ground(&self, publisher: &Publisher) -> Ground {
        publisher.ground().unwrap_or_else(|| {
            let view = self.view();
            let at = view.in_force.map(|(at, _)| at);
            let (revision, shrinks_from) = (at.map(|at| at.revision), at.map_or(0, |at| at.shrinks_from));
            Ground { counts: view.counts, revision, shrinks_from }
        })
    }

    fn holds_back(&self) -> bool {
        self.view().unpublished.is_some()
    }

    /// Says up to which revision the documents are published, or why not.
    fn dealt_with(&self, revision: u64) {
        let outcome = DocumentsOutcome { revision, held_back: self.view().unpublished.clone() };
        self.outcome.send_if_modified(|before| {
            let differs = before.as_ref() != Some(&outcome);
            if differs {
                *before = Some(outcome);
            }
            differs
        });
    }

    fn unpublished(&self, why: Option<String>) {
        let mut view = self.view();
        if let Some(why) = why.as_ref().filter(|why| view.unpublished.as_ref() != Some(*why)) {
            tracing::error!("what the documents say is not published: {why}");
        }
        view.unpublished = why;
    }
}
