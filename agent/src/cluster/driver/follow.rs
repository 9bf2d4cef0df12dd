//! The table that is applied: reads what is published and puts it in force.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

use super::{Agent, Shared, wait_for};
use crate::cluster::disk::KeptTable;
use crate::cluster::election;
use crate::cluster::follower::{Follower, Refusal, Step};
use crate::cluster::seal::{Position, Sealed};
use crate::cluster::store::{Event, Store, StoreError};
use crate::compile::wire::Change;

/// How often one look reads on: a leader that publishes all the time must not keep a follower from applying.
const READS_MAX: usize = 16;
/// Between two times at which a table that changed is kept on disk.
const KEEP_EVERY: Duration = Duration::from_secs(5);

pub(super) async fn run<S: Store, A: Agent>(
    shared: Arc<Shared<S>>,
    (agent, follower): (Arc<Mutex<A>>, Follower),
    ready: watch::Sender<bool>,
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
        let read = following.read().await;
        let _ = shared.heard(read);
        following.put_in_force(&ready).await;
        following.keep(false).await;
        if !wait_for(&mut events, &[Event::Table], shared.pause(), &mut stop).await {
            following.keep(true).await;
            return;
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
    /// What the disk has, and since when.
    kept: Option<(Position, Instant)>,
}

impl<S: Store, A: Agent> Following<S, A> {
    /// Takes in all that is published and not here yet.
    async fn read(&mut self) -> Result<(), StoreError> {
        let mut whole = false;
        for _ in 0..READS_MAX {
            let position = match self.position.clone() {
                Some(position) => position,
                // Read once already, and what follows does not follow it: another one is on its way.
                None if whole => return Ok(()),
                None => {
                    whole = true;
                    let Some((sealed, position)) = self.shared.store.snapshot().await? else { return Ok(()) };
                    self.receive(&sealed).await;
                    self.snapshot = Sealed::open(&sealed).map(|sealed| sealed.digest().to_string()).ok();
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
                return Ok(());
            }
            for sealed in &deltas.sealed {
                if self.receive(sealed).await == Some(Step::Gap) {
                    // What comes between is lost to this node: it begins with the snapshot.
                    self.position = None;
                    break;
                }
            }
        }
        Ok(())
    }

    /// Takes in one table; `None`: it is refused.
    async fn receive(&mut self, bytes: &[u8]) -> Option<Step> {
        match self.follower.receive(bytes, &self.shared.trust) {
            Ok(step) => Some(step),
            Err(refusal) => {
                let at = Sealed::open(bytes).ok().map(|sealed| sealed.position());
                self.shared.refused(&refusal, at);
                self.shared.spoilt.notify_one();
                // Who leads under a lower token shall hear of the higher one.
                if let Refusal::Outdated { highest } = refusal {
                    let _ = self.shared.election.send(election::Event::Saw(highest.token)).await;
                }
                None
            }
        }
    }

    async fn put_in_force(&mut self, ready: &watch::Sender<bool>) {
        let Some(at) = self.follower.in_force() else { return };
        if self.applied == Some(at) {
            return;
        }
        let new_term = self.applied.is_none_or(|before| before.version.token != at.version.token);
        self.shared.keep(|disk| disk.keep_highest(at.version, new_term));
        let _ = self.shared.election.send(election::Event::Saw(at.version.token)).await;
        let (agent, model) = (Arc::clone(&self.agent), self.follower.parts().model());
        let apply = move || agent.lock().unwrap_or_else(PoisonError::into_inner).apply(model, at);
        if tokio::task::spawn_blocking(apply).await.is_err() {
            return;
        }
        self.applied = Some(at);
        let mut view = self.shared.view();
        view.in_force = Some((at, SystemTime::now()));
        view.highest = self.follower.highest();
        view.counts = self.follower.parts().counts();
        view.refused = None;
        drop(view);
        ready.send_replace(true);
    }

    /// Keeps the table in force on disk, not at every change of a busy one. `now`: at the end.
    async fn keep(&mut self, now: bool) {
        let Some(at) = self.follower.in_force() else { return };
        let due = match self.kept {
            None => true,
            Some((kept, _)) if kept == at => false,
            Some((kept, since)) => {
                now || kept.version.token != at.version.token || since.elapsed() >= KEEP_EVERY
            }
        };
        if !due {
            return;
        }
        let (shared, model) = (Arc::clone(&self.shared), self.follower.parts().model());
        let keep = move || {
            let table = KeptTable { at, body: Change::whole(&model).encode() };
            shared.keep(|disk| disk.keep_table(&table));
        };
        if tokio::task::spawn_blocking(keep).await.is_ok() {
            self.kept = Some((at, Instant::now()));
        }
    }
}
