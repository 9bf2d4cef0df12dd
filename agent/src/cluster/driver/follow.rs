//! The table that is applied: reads what is published and puts it in force.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;

use super::{Agent, Readiness, Shared, Woken, wait_for};
use crate::cluster::election;
use crate::cluster::follower::{Follower, Refusal, Step};
use crate::cluster::seal::{Digest, Form, Position, Sealed};
use crate::cluster::store::{Event, Store, StoreError};
use crate::compile::TableVersion;

/// How often one look reads on: a leader that publishes all the time must not keep a follower from applying.
const READS_MAX: usize = 16;

pub(super) async fn run<S: Store, A: Agent>(
    shared: Arc<Shared<S>>,
    (agent, follower): (Arc<A>, Follower),
    ready: watch::Sender<Readiness>,
    mut stop: watch::Receiver<bool>,
) {
    let mut events = shared.store.events();
    let mut wanted = shared.wanted.subscribe();
    let applied = follower.in_force();
    let mut following =
        Following { shared: Arc::clone(&shared), agent, follower, position: None, snapshot: None, applied };
    loop {
        let read = shared.heard(following.read().await);
        following.put_in_force(&ready).await;
        if read.is_ok() {
            following.look_for_nothing(&ready).await;
        }
        following.tell(*wanted.borrow_and_update());
        let woken = tokio::select! {
            woken = wait_for(&mut events, &[Event::Table], shared.pause(), &mut stop) => woken,
            _ = wanted.changed() => Woken::News,
        };
        match woken {
            Woken::News => {}
            Woken::Anew => following.position = None,
            Woken::Ended => {
                shared.keeper.finish().await;
                return;
            }
        }
    }
}

struct Following<S, A> {
    shared: Arc<Shared<S>>,
    agent: Arc<A>,
    follower: Follower,
    /// Where the deltas are read on; `None`: the snapshot comes first.
    position: Option<String>,
    /// The digest of the snapshot that was read last.
    snapshot: Option<String>,
    /// What the agent has applied.
    applied: Option<Position>,
}

/// What was read at one look, in the order of the store.
#[derive(Default)]
struct Course {
    /// The last table.
    last: Option<Position>,
    /// Somewhere a table does not follow the one before it.
    broken: bool,
    /// The last one of a term before the one in force.
    outdated: Option<(Refusal, Option<Position>)>,
}

impl Course {
    fn note(&mut self, bytes: &[u8]) {
        let sealed = Sealed::open(bytes).ok();
        if let Some(Form::Delta { previous }) = sealed.as_ref().map(|sealed| sealed.header.form) {
            self.broken |= self.last.is_some_and(|last| last.chain != previous);
        }
        self.last = sealed.map(|sealed| sealed.position());
    }
}

impl<S: Store, A: Agent> Following<S, A> {
    /// Takes in all that is published and not here yet.
    async fn read(&mut self) -> Result<(), StoreError> {
        let mut course = Course::default();
        self.read_on(&mut course).await?;
        let here = self.follower.in_force();
        // A term goes on with the table of the one before: what leads to the table in force is no step back.
        let leads_here =
            !course.broken && course.last.zip(here).is_some_and(|(last, here)| last.version >= here.version);
        if let Some((refusal, at)) = course.outdated.filter(|_| !leads_here) {
            self.refuse(&refusal, at).await;
        }
        Ok(())
    }

    async fn read_on(&mut self, course: &mut Course) -> Result<(), StoreError> {
        let mut whole = false;
        for _ in 0..READS_MAX {
            let position = match self.position.clone() {
                Some(position) => position,
                // Read once already, and what follows does not follow it: another one is on its way.
                None if whole => return Ok(()),
                None => {
                    whole = true;
                    let Some((sealed, position)) = self.shared.store.snapshot().await? else {
                        self.missing();
                        return Ok(());
                    };
                    *course = Course::default();
                    self.receive(&sealed, course).await;
                    self.snapshot = course.last.map(|there| there.chain.to_string());
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
                self.compare(course.last);
                return Ok(());
            }
            for sealed in &deltas.sealed {
                if self.receive(sealed, course).await == Some(Step::Gap) {
                    // What comes between is lost to this node: it begins with the snapshot.
                    self.position = None;
                    break;
                }
            }
        }
        Ok(())
    }

    /// The store has no table, and this node has one: who comes now would get none.
    fn missing(&self) {
        if self.follower.in_force().is_some() {
            self.shared.spoilt.notify_one();
        }
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
    async fn receive(&mut self, bytes: &[u8], course: &mut Course) -> Option<Step> {
        course.note(bytes);
        // A whole table takes its time, and a lease must be renewed meanwhile.
        let received = tokio::task::block_in_place(|| self.follower.receive(bytes, &*self.shared.trust));
        match received {
            Ok(step) => {
                if matches!(step, Step::Applied | Step::Behind)
                    && let Ok(sealed) = Sealed::open(bytes)
                {
                    self.shared.keeper.table(&sealed);
                }
                Some(step)
            }
            Err(refusal @ Refusal::Outdated { .. }) => {
                course.outdated = Some((refusal, course.last));
                None
            }
            Err(refusal) => {
                self.refuse(&refusal, course.last).await;
                None
            }
        }
    }

    /// Says that a table is refused, to whoever has to do something about it.
    async fn refuse(&self, refusal: &Refusal, at: Option<Position>) {
        self.shared.refused(refusal, at);
        self.shared.spoilt.notify_one();
        // Its own, which is signed and can't be applied: the next would be no better.
        let own = |at: Position| {
            self.shared.term.borrow().as_ref().is_some_and(|lease| lease.token == at.version.token)
        };
        let of_contents =
            matches!(refusal, Refusal::Records(_) | Refusal::Shrinks { .. } | Refusal::OlderDocuments(..));
        if of_contents && at.is_some_and(own) {
            let _ = self.shared.election.send(election::Event::Unfit).await;
        }
        // Who leads under a lower token shall hear of the higher one.
        if let Refusal::Outdated { highest } = refusal {
            let _ = self.shared.election.send(election::Event::Saw(highest.token)).await;
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

    /// Tells whoever leads, or may, of the table in force, and of the one that is `wanted` what it holds.
    fn tell(&self, wanted: Option<Digest>) {
        let now = self.follower.continued();
        self.shared.continued.send_if_modified(|before| std::mem::replace(before, now) != now);
        let here = self.follower.in_force().map(|at| at.chain);
        if wanted.is_none() {
            self.shared.found.send_if_modified(|found| found.take().is_some());
        }
        let Some(chain) = wanted.filter(|chain| here == Some(*chain)) else { return };
        if self.shared.found.borrow().as_ref().is_none_or(|(found, _)| *found != chain) {
            let model = tokio::task::block_in_place(|| Arc::new(self.follower.parts().model()));
            self.shared.found.send_replace(Some((chain, model)));
        }
    }

    async fn put_in_force(&mut self, ready: &watch::Sender<Readiness>) {
        let Some(at) = self.follower.in_force() else { return };
        if self.applied == Some(at) {
            return;
        }
        let new_term = self.applied.is_none_or(|before| before.version.token != at.version.token);
        // The disk of a new term is waited for, which takes its time.
        tokio::task::block_in_place(|| self.shared.keep_highest(at.version, new_term));
        let _ = self.shared.election.send(election::Event::Saw(at.version.token)).await;
        let touched = self.follower.take_touched();
        let parts = self.follower.parts();
        tokio::task::block_in_place(|| self.agent.apply(parts, touched.as_ref(), at));
        self.applied = Some(at);
        let mut view = self.shared.view();
        view.in_force = Some((at, SystemTime::now()));
        view.highest = self.follower.highest();
        view.counts = self.follower.parts().counts();
        view.refused = None;
        drop(view);
        ready.send_replace(Readiness::InForce);
    }
}
