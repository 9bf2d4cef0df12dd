//! The lease: runs the election.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::{broadcast, mpsc, watch};

use super::{Shared, ended, now, random};
use crate::cluster::election::{Action, Election, Event, is_credible};
use crate::cluster::registry;
use crate::cluster::store::{self, Acquired, Candidate, Lease, Store, StoreError};
use crate::compile::Token;

pub(super) async fn run<S: Store>(
    shared: Arc<Shared<S>>,
    highest: Token,
    mut told: mpsc::Receiver<Event>,
    mut stop: watch::Receiver<bool>,
) {
    let settings = &shared.settings;
    let mut election = Election::new(Arc::clone(&settings.node), shared.nonce, settings.ttl, highest, now());
    let mut events = shared.store.events();
    loop {
        let event = next(&election, &mut events, &mut told, &mut stop).await;
        let ends = event == Event::Stop;
        let mut actions = VecDeque::from(election.on(event, now(), random()));
        loop {
            // Before whoever leads is told that it does.
            let until = election.leads_until().map_or(0, |until| until.0);
            shared.until.store(until, Ordering::Release);
            let Some(action) = actions.pop_front() else { break };
            if let Some(event) = shared.act(action).await {
                actions.extend(election.on(event, now(), random()));
            }
        }
        if ends {
            return;
        }
    }
}

/// What the election shall hear next.
async fn next(
    election: &Election,
    events: &mut broadcast::Receiver<store::Event>,
    told: &mut mpsc::Receiver<Event>,
    stop: &mut watch::Receiver<bool>,
) -> Event {
    let wake = async {
        match election.wake_at() {
            Some(at) => tokio::time::sleep(now().until(at)).await,
            None => std::future::pending().await,
        }
    };
    let changed = async {
        loop {
            match events.recv().await {
                Ok(store::Event::Leader | store::Event::Connected)
                | Err(broadcast::error::RecvError::Lagged(_)) => return,
                Ok(_) => {}
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    };
    tokio::select! {
        biased;
        () = ended(stop) => Event::Stop,
        Some(event) = told.recv() => event,
        () = changed => Event::Changed,
        () = wake => Event::Tick,
    }
}

impl<S: Store> Shared<S> {
    /// Does what the election says; the answer, where there is one.
    async fn act(&self, action: Action) -> Option<Event> {
        let ttl = self.settings.ttl;
        match action {
            Action::Acquire(candidate) => {
                // Whom nobody would believe leaves it to others.
                let why_not = self.trust.cannot_sign();
                self.view().cannot_lead.clone_from(&why_not);
                if why_not.is_some() {
                    return Some(Event::Acquired(Ok(Acquired::Held(None))));
                }
                let candidate = self.informed(candidate).await;
                Some(Event::Acquired(self.heard(self.store.acquire(&candidate, ttl).await)))
            }
            // Whom nobody believes any more gives way.
            Action::Renew(_) if self.trust.cannot_sign().is_some() => {
                let _ = self.election.try_send(Event::Unfit);
                Some(Event::Renewed(Err(StoreError::Denied("this node's certificate".to_owned()))))
            }
            Action::Renew(lease) => Some(Event::Renewed(self.heard(self.store.renew(&lease, ttl).await))),
            Action::Release(lease) => {
                // A store that does not hear of it lets the lease expire.
                let _ = self.heard(self.store.release(&lease).await);
                None
            }
            Action::Lead(lease) => {
                self.lead(lease);
                None
            }
            Action::Yield(why) => {
                tracing::warn!(reason = why.as_str(), "this node leads no more");
                let mut view = self.view();
                view.leads = None;
                view.yielded = Some(why.as_str());
                drop(view);
                self.term.send_replace(None);
                None
            }
        }
    }

    fn lead(&self, lease: Lease) {
        tracing::info!(epoch = lease.token.epoch, "this node leads");
        self.view().leads = Some(lease.clone());
        self.term.send_replace(Some(lease));
    }

    /// With the highest epoch that any node has applied: a store that has lost its own must not give one out twice.
    async fn informed(&self, candidate: Candidate) -> Candidate {
        let Ok(members) = self.heard(self.store.members().await) else { return candidate };
        let nodes = registry::read(members);
        let highest =
            nodes.iter().filter_map(|node| node.record.as_ref().ok()).map(|record| record.highest_epoch);
        let above = highest.filter(|epoch| is_credible(candidate.above, *epoch)).max().unwrap_or(0);
        Candidate { above: candidate.above.max(above), ..candidate }
    }
}
