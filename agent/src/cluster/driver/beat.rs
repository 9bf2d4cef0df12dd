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
use crate::cluster::trust::Trust;
use crate::compile::wire::SCHEMA;
use crate::compile::{TableVersion, Token};

/// How long after a new connection nobody is taken for dead who was not before: nodes spread their coming back over two seconds.
const CALM: Duration = Duration::from_secs(3);
/// Between two heartbeats that tell of news.
const NEWS_EVERY: Duration = Duration::from_millis(250);

/// Why nodes refuse tables of a leader that lacks what they have.
const UNFIT: [&str; 2] = ["shrinks", "older_documents"];
/// Why they refuse what they would take if it were written again. Not what may be their own fault: then all others would read the
/// whole table again and again.
const WRITING_HELPS: [&str; 4] = ["outdated", "malformed", "unsigned", "bad_signature"];

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
        if shared.trust.reload() {
            shared.trusts_anew.notify_one();
        }
        let pause = shared.pause().min(shared.settings.ttl / 4);
        let woken = tokio::select! {
            woken = wait_for(&mut events, &[Event::Nodes, Event::Leader], pause, &mut stop) => woken,
            _ = health.changed() => Woken::News,
            _ = state.changed() => Woken::News,
            // Whoever has written documents waits for it.
            _ = outcome.changed() => Woken::News,
            () = shared.documents_judged.notified() => Woken::News,
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
        || before.sealing.refused_seal != now.sealing.refused_seal
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
            ttl: u64::try_from(self.settings.ttl.as_millis()).unwrap_or(u64::MAX),
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
            refused_seal: view.seal_refused.clone(),
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
            let unfit = UNFIT.contains(&refused.reason.as_str());
            Token { epoch: refused.epoch, nonce: refused.nonce } == lease.token && unfit
        };
        // Who has no table and refuses the store's gets none before it is written anew: because it has lost its table, or its end, and not its
        // number, and takes none of a term before, or because what lies there was spoilt.
        let published = self.view().in_force.map(|(at, _)| at.version);
        let lost = |record: &NodeRecord| {
            // Who signs nothing can't help whoever wants a signature.
            let in_vain = |reason: &str| reason == "unsigned" && matches!(*self.trust, Trust::Unsigned);
            let helps = |refused: &Refused| {
                WRITING_HELPS.contains(&refused.reason.as_str()) && !in_vain(&refused.reason)
            };
            // It may serve one from before what it has lost, or from before what lies there was spoilt.
            let behind =
                record.in_force().is_none_or(|at| at.token < record.highest() || Some(at) < published);
            behind && record.refused.as_ref().is_some_and(helps)
        };
        if records().any(lost) {
            self.spoilt.notify_one();
        }
        // Who refuses what the store has as it has later ones, which this node lacks, shall lead and give them back.
        let generation = self.view().seal.as_ref().map_or(0, |seal| seal.head.generation);
        let has_later = |sealing: &Sealing| {
            let outdated = sealing.refused.as_ref().is_some_and(|why| why.starts_with("outdated: "));
            outdated && sealing.generation > generation
        };
        let more = |record: &NodeRecord| has_more(record) || has_later(&record.sealing);
        if records().any(|record| more(record) || record.refused.as_ref().is_some_and(ours)) {
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
