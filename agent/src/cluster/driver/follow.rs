//! The table that is applied: reads what is published and puts it in force.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use tokio::sync::watch;

use super::{Agent, KEEP_EVERY, KEEP_REST, Readiness, Shared, Woken, wait_for};
use crate::cluster::disk::KeptTable;
use crate::cluster::election;
use crate::cluster::follower::{Follower, Refusal, Step};
use crate::cluster::seal::{Position, Sealed};
use crate::cluster::store::{Event, Store, StoreError};
use crate::compile::TableVersion;
use crate::compile::wire::Change;

/// How often one look reads on: a leader that publishes all the time must not keep a follower from applying.
const READS_MAX: usize = 16;

pub(super) async fn run<S: Store, A: Agent>(
    shared: Arc<Shared<S>>,
    (agent, follower): (Arc<Mutex<A>>, Follower),
    ready: watch::Sender<Readiness>,
    mut stop: watch::Receiver<bool>,
) {
    let mut events = shared.store.events();
    let applied = follower.in_force();
    let mut following = Following {
        shared: Arc::clone(&shared),
        agent,
        follower,
        position: None,
        snapshot: None,
        applied,
        kept: None,
    };
    loop {
        let read = shared.heard(following.read().await);
        following.put_in_force(&ready).await;
        if read.is_ok() {
            following.look_for_nothing(&ready).await;
        }
        following.keep(false);
        match wait_for(&mut events, &[Event::Table], shared.pause(), &mut stop).await {
            Woken::News => {}
            Woken::Anew => following.position = None,
            Woken::Ended => {
                following.keep(true);
                return;
            }
        }
    }
}

struct Following<S, A> {
    shared: Arc<Shared<S>>,
    agent: Arc<Mutex<A>>,
    follower: Follower,
    /// Where the deltas are read on; `None`: the snapshot comes first.
    position: Option<String>,
    /// The digest of the snapshot that was read last.
    snapshot: Option<String>,
    /// What the agent has applied.
    applied: Option<Position>,
    /// What the disk has, and when the next may be kept.
    kept: Option<(Position, Instant)>,
}

impl<S: Store, A: Agent> Following<S, A> {
    /// Takes in all that is published and not here yet.
    async fn read(&mut self) -> Result<(), StoreError> {
        let mut whole = false;
        let mut last = None;
        for _ in 0..READS_MAX {
            let position = match self.position.clone() {
                Some(position) => position,
                // Read once already, and what follows does not follow it: another one is on its way.
                None if whole => return Ok(()),
                None => {
                    whole = true;
                    let Some((sealed, position)) = self.shared.store.snapshot().await? else { return Ok(()) };
                    self.receive(&sealed).await;
                    let there = Sealed::open(&sealed).map(|sealed| sealed.position()).ok();
                    self.snapshot = there.map(|there| there.chain.to_string());
                    last = there;
                    position
                }
            };
            let deltas = self.shared.store.deltas(&position).await?;
            if self.snapshot.as_ref() != Some(&deltas.snapshot) {
                // The table was written whole meanwhile, and the deltas may be those that follow that.
                self.position = None;
                whole &= self.snapshot.is_none();
                continue;
            }
            self.position = Some(deltas.position);
            if deltas.sealed.is_empty() {
                self.compare(last);
                return Ok(());
            }
            for sealed in &deltas.sealed {
                last = Sealed::open(sealed).ok().map(|sealed| sealed.position());
                if self.receive(sealed).await == Some(Step::Gap) {
                    // What comes between is lost to this node: it begins with the snapshot.
                    self.position = None;
                    break;
                }
            }
        }
        Ok(())
    }

    /// The store ends with a table that is lower than the one in force: it went back in time, and who comes now would be given
    /// an old one.
    fn compare(&self, last: Option<Position>) {
        let in_force = self.follower.in_force();
        if last.zip(in_force).is_some_and(|(last, here)| last.version < here.version) {
            self.shared.spoilt.notify_one();
        }
    }

    /// Takes in one table; `None`: it is refused.
    async fn receive(&mut self, bytes: &[u8]) -> Option<Step> {
        match self.follower.receive(bytes, &*self.shared.trust) {
            Ok(step) => Some(step),
            Err(refusal) => {
                let at = Sealed::open(bytes).ok().map(|sealed| sealed.position());
                self.shared.refused(&refusal, at);
                self.shared.spoilt.notify_one();
                // Its own, which is signed and can't be applied: the next would be no better.
                let own = |at: Position| {
                    self.shared.term.borrow().as_ref().is_some_and(|lease| lease.token == at.version.token)
                };
                let of_contents = matches!(
                    refusal,
                    Refusal::Records(_) | Refusal::Shrinks { .. } | Refusal::OlderDocuments(..)
                );
                if of_contents && at.is_some_and(own) {
                    let _ = self.shared.election.send(election::Event::Unfit).await;
                }
                // Who leads under a lower token shall hear of the higher one.
                if let Refusal::Outdated { highest } = refusal {
                    let _ = self.shared.election.send(election::Event::Saw(highest.token)).await;
                }
                None
            }
        }
    }

    /// Where neither the store nor this node ever had a table or documents, there is nothing to wait for.
    async fn look_for_nothing(&self, ready: &watch::Sender<Readiness>) {
        if *ready.borrow() != Readiness::Unknown || self.follower.highest() != TableVersion::default() {
            return;
        }
        let has_documents = !self.shared.documents.borrow().store.is_empty();
        if has_documents || self.position.is_some() {
            return;
        }
        // Nor where the store has some that nobody sealed, and this node has no others.
        let refused = self.shared.view().documents_refused.is_some();
        let nothing =
            async || self.shared.store.documents("", 0).await.is_ok_and(|found| found.store.is_empty());
        if refused || nothing().await {
            ready.send_replace(Readiness::Empty);
        }
    }

    async fn put_in_force(&mut self, ready: &watch::Sender<Readiness>) {
        let Some(at) = self.follower.in_force() else { return };
        if self.applied == Some(at) {
            return;
        }
        let new_term = self.applied.is_none_or(|before| before.version.token != at.version.token);
        self.shared.keep("highest", |disk| disk.keep_highest(at.version, new_term));
        let _ = self.shared.election.send(election::Event::Saw(at.version.token)).await;
        let touched = self.follower.take_touched();
        let parts = self.follower.parts();
        tokio::task::block_in_place(|| {
            self.agent.lock().unwrap_or_else(PoisonError::into_inner).apply(parts, touched.as_ref(), at);
        });
        self.applied = Some(at);
        let mut view = self.shared.view();
        view.in_force = Some((at, SystemTime::now()));
        view.highest = self.follower.highest();
        view.counts = self.follower.parts().counts();
        view.refused = None;
        drop(view);
        ready.send_replace(Readiness::InForce);
    }

    /// Keeps the table in force on disk, not at every change of a busy one. `now`: at the end.
    fn keep(&mut self, now: bool) {
        let Some(at) = self.follower.in_force() else { return };
        let due = match self.kept {
            None => true,
            Some((kept, _)) if kept == at => false,
            Some((kept, next)) => now || kept.version.token != at.version.token || Instant::now() >= next,
        };
        if !due {
            return;
        }
        let begin = Instant::now();
        let kept = tokio::task::block_in_place(|| {
            let table = KeptTable { at, body: Change::whole(&self.follower.parts().model()).encode() };
            self.shared.keep("table", |disk| disk.keep_table(&table))
        });
        // What could not be kept is tried again as if it were new.
        let next = Instant::now() + KEEP_EVERY.max(begin.elapsed() * KEEP_REST);
        self.kept = Some(if kept { (at, next) } else { (Position { revision: u64::MAX, ..at }, next) });
    }
}
