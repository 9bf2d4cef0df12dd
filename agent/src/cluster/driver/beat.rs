//! The heartbeat: what this node says of itself, and what it hears of the others.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use super::{ClusterView, Shared, Woken, ended, now, wait_for};
use crate::cluster::documents::knows_more;
use crate::cluster::election;
use crate::cluster::milliseconds;
use crate::cluster::registry::{self, Node, NodeRecord, Refused, Sealing};
use crate::cluster::store::{Event, Lease, Store};
use crate::compile::wire::SCHEMA;
use crate::compile::{TableVersion, Token};

/// How long after a new connection nobody is taken for dead who was not before: nodes spread their coming back over two seconds.
const CALM: Duration = Duration::from_secs(3);
/// Between two heartbeats that tell of news.
const NEWS_EVERY: Duration = Duration::from_millis(250);

pub(super) async fn run<S: Store>(shared: Arc<Shared<S>>, mut stop: watch::Receiver<bool>) {
    let started = seconds(SystemTime::now());
    let mut events = shared.store.events();
    let (mut health, mut state) = (shared.health.subscribe(), shared.state.subscribe());
    let mut outcome = shared.outcome.subscribe();
    let mut last: Option<NodeRecord> = None;
    let mut beaten: Option<Instant> = None;
    loop {
        let begun = Instant::now();
        health.mark_unchanged();
        outcome.mark_unchanged();
        let doing = *state.borrow_and_update();
        let record = shared.record(started);
        let due = beaten.is_none_or(|at| at.elapsed() >= shared.settings.ttl / 4);
        if due || last.as_ref() != Some(&record) {
            let news = last.as_ref().is_none_or(|last| is_news(last, &record));
            let bytes = serde_json::to_vec(&record).expect("a record is JSON");
            let (node, ttl) = (&shared.settings.node, shared.settings.ttl);
            let beat = shared.store.beat(node, &bytes, ttl, news).await;
            if shared.wrote(beat).is_ok() {
                (last, beaten) = (Some(record), Some(Instant::now()));
                shared.told.send_replace(Some(doing));
            }
        }
        shared.look().await;
        shared.trust.reload();
        let pause = shared.pause().min(shared.settings.ttl / 4);
        let woken = tokio::select! {
            woken = wait_for(&mut events, &[Event::Nodes, Event::Leader], pause, &mut stop) => woken,
            _ = health.changed() => Woken::News,
            _ = state.changed() => Woken::News,
            // Whoever has written documents waits for it.
            _ = outcome.changed() => Woken::News,
        };
        match woken {
            Woken::News => {}
            // Others come back too, one after the other.
            Woken::Anew => shared.calm_until.store(now().after(CALM).0, Ordering::Release),
            Woken::Ended => break,
        }
        // The first news goes at once, what follows it waits.
        tokio::select! {
            () = tokio::time::sleep(NEWS_EVERY.min(pause).saturating_sub(begun.elapsed())) => {}
            () = ended(&mut stop) => break,
        }
    }
    let _ = shared.heard(shared.store.leave(&shared.settings.node).await);
}

/// Whether others should hear of it at once.
fn is_news(before: &NodeRecord, now: &NodeRecord) -> bool {
    before.state != now.state
        || before.unhealthy != now.unhealthy
        || before.refused != now.refused
        || before.sealing.refused != now.sealing.refused
}

impl<S: Store> Shared<S> {
    fn record(&self, started: u64) -> NodeRecord {
        let view = self.view();
        let at = view.in_force.map(|(at, _)| at.version).unwrap_or_default();
        let mut record = NodeRecord {
            nonce: self.nonce,
            version: self.settings.version.to_owned(),
            schema: SCHEMA,
            state: *self.state.borrow(),
            started,
            epoch: at.token.epoch,
            token_nonce: at.token.nonce,
            table: at.version,
            highest_epoch: view.highest.token.epoch,
            highest_nonce: view.highest.token.nonce,
            applied_at: view.in_force.map_or(0, |(_, since)| milliseconds(since)),
            store: Arc::clone(&view.documents.0),
            revision: view.documents.1,
            workloads: 0,
            unhealthy: BTreeSet::new(),
            failing: Vec::new(),
            refused: refused(&view),
            sealing: self.sealing(&view),
            outcome: self.outcome.borrow().clone(),
        };
        record.set_health(&self.health.borrow());
        record
    }

    fn sealing(&self, view: &ClusterView) -> Sealing {
        Sealing {
            demanded: self.trust.operators().is_some(),
            generation: view.seal.as_ref().map_or(0, |seal| seal.head.generation),
            refused: view.documents_refused.as_ref().map(|(reason, why)| format!("{reason}: {why}")),
        }
    }

    /// Looks at who is there and who leads.
    async fn look(&self) {
        if let Ok(members) = self.heard(self.store.members().await) {
            let nodes = registry::read(members);
            self.hear(&nodes).await;
            self.view().nodes.clone_from(&nodes);
            self.nodes.send_if_modified(|before| {
                let differs = **before != nodes;
                if differs {
                    *before = Arc::new(nodes);
                }
                differs
            });
        }
        if let Ok(lease) = self.heard(self.store.lease().await) {
            let good_until = |(lease, left): (Lease, Duration)| (lease, Instant::now() + left);
            self.view().leader = lease.held.map(good_until);
        }
    }

    /// Tells the election what the records of others mean for it.
    async fn hear(&self, nodes: &[Node]) {
        let Some(lease) = self.term.borrow().clone() else { return };
        let records = || nodes.iter().filter(|node| node.alive).filter_map(|node| node.record.as_ref().ok());
        let credible = |token: &Token| election::is_credible(lease.token.epoch, token.epoch);
        let highest = records().map(NodeRecord::highest).filter(credible).max();
        if let Some(highest) = highest.filter(|token| *token > lease.token) {
            let _ = self.election.send(election::Event::Saw(highest)).await;
        }
        let documents = Arc::clone(&self.documents.borrow());
        let has_more = |record: &NodeRecord| knows_more(&documents, &record.store, record.revision);
        // Of what others have, this node has nothing: they refuse to lose it.
        let ours = |refused: &Refused| {
            let unfit = ["shrinks", "older_documents"].contains(&refused.reason.as_str());
            Token { epoch: refused.epoch, nonce: refused.nonce } == lease.token && unfit
        };
        // Who has lost its table, and not its number, takes no table of a term before: there has to be a whole one of this term.
        let lost = |record: &NodeRecord| {
            let outdated = record.refused.as_ref().is_some_and(|refused| refused.reason == "outdated");
            outdated && record.in_force().is_none()
        };
        if records().any(lost) {
            self.spoilt.notify_one();
        }
        if records().any(|record| has_more(record) || record.refused.as_ref().is_some_and(ours)) {
            let _ = self.election.send(election::Event::Unfit).await;
        }
    }
}

fn refused(view: &ClusterView) -> Option<Refused> {
    let (at, reason, detail) = view.refused.as_ref()?;
    let token = at.map_or(TableVersion::default(), |at| at.version).token;
    Some(Refused {
        epoch: token.epoch,
        nonce: token.nonce,
        reason: (*reason).to_owned(),
        detail: detail.clone(),
    })
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
