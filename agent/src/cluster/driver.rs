//! Runs the machines of one agent: a task each for the lease, the heartbeat, the documents, the table that is published while
//! this agent leads, and the table that is applied.
//!
//! Nothing here waits for the store before traffic is served: what the disk holds comes into force first, and a store that is
//! away is asked again and again.

mod audit;
mod beat;
mod follow;
mod keep;
mod lead;
mod lease;
mod life;
mod mirror;
mod view;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};
use tokio::sync::{Notify, broadcast, mpsc, watch};

use self::keep::Keeper;
use super::disk::{Disk, DiskError, KeptChange, KeptDocuments, KeptTable};
use super::election::{self, Millis};
use super::follower::{Follower, Refusal};
use super::publisher::Continued;
use super::registry::{DocumentsOutcome, Node, NodeState};
use super::seal::{Digest, Position};
use super::store::{Event, Lease, Store, StoreError};
use super::trust::Trust;
use crate::compile::TableVersion;
use crate::compile::wire::{Change, Parts, Touched};
use crate::health::PodHealth;
use crate::model::{Model, ObjectName};

pub use life::Handle;
pub use view::ClusterView;

/// Events of the election that wait for it.
const EVENTS: usize = 64;

/// How an agent takes part.
#[derive(Debug, Clone)]
pub struct ClusterSettings {
    /// This node.
    pub node: Arc<str>,
    /// The cluster: the name that its keys and tables carry.
    pub cluster: Arc<str>,
    /// The life of the lease, and of a node's heartbeat.
    pub ttl: Duration,
    /// Where the table and the documents are kept; `None`: nowhere, and a start without the store serves nothing.
    pub state: Option<PathBuf>,
    /// The version of this agent.
    pub version: &'static str,
}

/// What the documents say, as whoever reads documents understands them.
pub struct Read {
    /// The model.
    pub model: Arc<Model>,
    /// Services whose endpoints alone differ from the model that was read before; `None`: more may differ.
    pub touched: Option<BTreeSet<ObjectName>>,
}

/// What the agent does with what the cluster agrees on. It is called on threads that may be kept busy: a leader reads documents
/// for seconds, and tables come into force meanwhile.
pub trait Agent: Send + Sync + 'static {
    /// Reads the documents of the cluster.
    fn read(&self, documents: &Arc<KeptDocuments>) -> Read;
    /// Puts a table in force. `touched`: what differs from the one before; `None`: everything may.
    fn apply(&self, parts: &Parts, touched: Option<&Touched>, at: Position);
}

/// Whether there is a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Readiness {
    /// Nobody knows.
    Unknown,
    /// There is none: nothing was ever applied to the cluster, as far as the store and this node know.
    Empty,
    /// One is in force.
    InForce,
}

/// What the tasks share.
pub(super) struct Shared<S> {
    store: Arc<S>,
    settings: ClusterSettings,
    nonce: u64,
    trust: Arc<Trust>,
    disk: Option<Arc<Disk>>,
    keeper: Arc<Keeper>,
    view: Arc<Mutex<ClusterView>>,
    /// The term in which this agent leads.
    term: watch::Sender<Option<Lease>>,
    /// Until when it does, by [`now`].
    until: AtomicU64,
    /// Until then nobody is taken for dead who was not before, by [`now`].
    calm_until: AtomicU64,
    documents: watch::Sender<Arc<KeptDocuments>>,
    /// The term whose leader has seen that the documents are the store's.
    synced: watch::Sender<Option<Lease>>,
    nodes: watch::Sender<Arc<Vec<Node>>>,
    /// What this node does.
    state: watch::Sender<NodeState>,
    /// What the others were told last that this node does.
    told: watch::Sender<Option<NodeState>>,
    /// The pods of this node.
    health: watch::Sender<Arc<PodHealth>>,
    /// The table in force, where a term can go on with it.
    continued: watch::Sender<Option<Continued>>,
    /// The table of which a leader wants to know what it holds, by its place in the chain.
    wanted: watch::Sender<Option<Digest>>,
    /// What that holds.
    found: watch::Sender<Option<(Digest, Arc<Model>)>>,
    /// What the store holds is no table that anybody would apply: who leads writes it anew.
    spoilt: Notify,
    /// This node's certificates, or those that it believes, were replaced.
    trusts_anew: Notify,
    /// Documents were refused: others hear of it at once.
    documents_judged: Notify,
    /// What became of the documents, where this agent leads.
    outcome: watch::Sender<Option<DocumentsOutcome>>,
    /// What the election shall hear.
    election: mpsc::Sender<election::Event>,
}

/// Takes part in a cluster. What the disk holds is in force when this returns.
pub fn start<S: Store>(
    store: S,
    settings: ClusterSettings,
    trust: Trust,
    agent: impl Agent,
) -> Result<Handle, DiskError> {
    let disk = settings.state.as_deref().map(Disk::open).transpose()?.map(Arc::new);
    let view = Arc::new(Mutex::new(ClusterView::default()));
    let highest = disk.as_ref().map(|disk| disk.highest()).unwrap_or_default();
    let mut follower = Follower::new(Arc::clone(&settings.cluster), highest);
    let kept = disk.as_ref().map(|disk| kept(disk, &view)).unwrap_or_default();
    let table = disk.as_ref().and_then(|disk| restore(disk, &mut follower, &view));
    let restored = table.as_ref().map(|(table, changes)| changes.last().map_or(table.at, |last| last.at));
    let ready = watch::Sender::new(restored.map_or(Readiness::Unknown, |_| Readiness::InForce));
    if let Some(at) = restored {
        let touched = follower.take_touched();
        agent.apply(follower.parts(), touched.as_ref(), at);
        let mut view = lock(&view);
        view.in_force = Some((at, SystemTime::now()));
        view.counts = follower.parts().counts();
    }
    lock(&view).highest = follower.highest();
    let (election, told) = mpsc::channel(EVENTS);
    let shared = Shared {
        store: Arc::new(store),
        settings,
        nonce: random(),
        trust: Arc::new(trust),
        keeper: Arc::new(Keeper::start(disk.as_ref(), &view, table)),
        disk,
        view,
        term: watch::Sender::new(None),
        until: AtomicU64::new(0),
        calm_until: AtomicU64::new(0),
        documents: watch::Sender::new(Arc::new(kept)),
        synced: watch::Sender::new(None),
        nodes: watch::Sender::default(),
        state: watch::Sender::new(NodeState::Serving),
        told: watch::Sender::new(None),
        health: watch::Sender::default(),
        continued: watch::Sender::default(),
        wanted: watch::Sender::default(),
        found: watch::Sender::default(),
        spoilt: Notify::new(),
        trusts_anew: Notify::new(),
        documents_judged: Notify::new(),
        outcome: watch::Sender::new(None),
        election,
    };
    Ok(life::begin(shared, (told, follower), agent, ready))
}

/// The table that was in force when the last process of this node ended: one, and the changes that follow it.
fn restore(
    disk: &Disk,
    follower: &mut Follower,
    view: &Mutex<ClusterView>,
) -> Option<(KeptTable, Vec<KeptChange>)> {
    let kept = disk.table_and_changes().map_err(|error| disk_failed(view, "table", &error));
    let kept = kept.ok()?;
    let ends =
        |(table, changes): &(KeptTable, Vec<KeptChange>)| changes.last().map_or(table.at, |last| last.at);
    if let Some((what, error)) = disk.missing(kept.as_ref().map(|kept| ends(kept).version)) {
        disk_failed(view, what, &error);
    }
    let (table, changes) = kept?;
    let at = changes.last().map_or(table.at, |last| last.at);
    let whole = Change::decode(&table.body).and_then(|records| {
        let changes = changes.iter().map(|change| Change::decode(&change.body));
        follower.restore(at, &records.followed_by(changes.collect::<Result<Vec<_>, _>>()?))
    });
    if let Err(error) = whole {
        tracing::error!(%error, "the table that was kept can't be read");
        return None;
    }
    // Not that of the documents: who leads may hold back what they say, and publishes none of that generation.
    follower.hold(changes.last().map_or(table.generation, |last| last.generation));
    tracing::info!(version = %at.version, "serving the table that was kept");
    Some((table, changes))
}

fn kept(disk: &Disk, view: &Mutex<ClusterView>) -> KeptDocuments {
    disk.documents()
        .map_err(|error| disk_failed(view, "documents", &error))
        .ok()
        .flatten()
        .unwrap_or_default()
}

fn disk_failed(view: &Mutex<ClusterView>, what: &'static str, error: &DiskError) {
    let text = error.to_string();
    let mut view = lock(view);
    if view.disk_errors.get(what) != Some(&text) {
        tracing::error!(%error, "the state directory");
    }
    view.disk_errors.insert(what, text);
}

impl<S: Store> Shared<S> {
    fn view(&self) -> MutexGuard<'_, ClusterView> {
        lock(&self.view)
    }

    /// Whether this agent leads under this lease at this moment.
    fn leads(&self, lease: &Lease) -> bool {
        now().0 < self.until.load(Ordering::Acquire) && self.term.borrow().as_ref() == Some(lease)
    }

    /// Notes what the store answered, and says once what is wrong with it. That it answers says nothing of whether it takes
    /// writes: see [`Shared::wrote`].
    fn heard<T>(&self, answer: Result<T, StoreError>) -> Result<T, StoreError> {
        match &answer {
            Ok(_) => {
                if self.mended(|error| matches!(error, StoreError::Unreachable(_))) {
                    self.view().reconnects += 1;
                }
            }
            Err(error) => {
                let mut view = self.view();
                if view.store_error.as_ref() != Some(error) {
                    if view.in_force.is_some() {
                        tracing::warn!(%error, "traffic goes on with the last good table");
                    } else {
                        tracing::warn!(%error, "no table is in force");
                    }
                }
                view.store_error = Some(error.clone());
            }
        }
        answer
    }

    /// Likewise, of a heartbeat: a store that takes that takes everything.
    fn wrote(&self, answer: Result<(), StoreError>) -> Result<(), StoreError> {
        let answer = self.heard(answer);
        if answer.is_ok() {
            self.mended(|_| true);
        }
        answer
    }

    /// Whether that was wrong, and is no more.
    fn mended(&self, which: impl FnOnce(&StoreError) -> bool) -> bool {
        let mut view = self.view();
        let mended = view.store_error.as_ref().is_some_and(which);
        if mended {
            view.store_error = None;
            tracing::info!("the store answers again");
        }
        mended
    }

    /// Remembers that a table was in force, before it is. What fails is shown, and costs no traffic.
    fn keep_highest(&self, version: TableVersion, durable: bool) {
        if let Some(disk) = &self.disk {
            keep::written(&self.view, "highest", disk.keep_highest(version, durable));
        }
    }

    fn refused(&self, refusal: &Refusal, at: Option<Position>) {
        let mut view = self.view();
        *view.refusals.entry(refusal.as_str()).or_default() += 1;
        let text = refusal.to_string();
        if view.refused.as_ref().is_none_or(|(_, _, before)| *before != text) {
            tracing::error!(reason = refusal.as_str(), "a published table is refused: {refusal}");
        }
        view.refused = Some((at, refusal.as_str(), text));
    }

    /// Between two looks at what nobody told of: a third of the lease's life, spread so that nodes don't come at once.
    fn pause(&self) -> Duration {
        spread(self.settings.ttl / 3)
    }
}

fn lock(view: &Mutex<ClusterView>) -> MutexGuard<'_, ClusterView> {
    view.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The clock of the election: it goes on while the machine sleeps.
fn now() -> Millis {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has had this clock since 2.6.39");
    Millis(u64::try_from(Duration::from(time).as_millis()).unwrap_or(u64::MAX))
}

/// Four fifths to all of it.
fn spread(wait: Duration) -> Duration {
    let part = u32::try_from(random() % 1000).unwrap_or_default();
    wait * (800 + part / 5) / 1000
}

/// A number that nobody can foresee.
fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(now())
}

/// Waits for the end of the agent.
async fn ended(stop: &mut watch::Receiver<bool>) {
    // Whoever would tell is gone: that is the end as well.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Why a task goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Woken {
    /// Something happened, or enough time went by.
    News,
    /// The connection to the store is new, or so much happened that it can't be told: what is known of it is worth nothing.
    Anew,
    /// The agent ends.
    Ended,
}

/// Waits for one of these events, for that long at most.
async fn wait_for(
    events: &mut broadcast::Receiver<Event>,
    wanted: &[Event],
    limit: Duration,
    stop: &mut watch::Receiver<bool>,
) -> Woken {
    let heard = async {
        loop {
            match events.recv().await {
                Ok(Event::Connected) | Err(broadcast::error::RecvError::Lagged(_)) => return Woken::Anew,
                Ok(event) if wanted.contains(&event) => return Woken::News,
                Ok(_) => {}
                // The store has ended with the agent.
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    };
    tokio::select! {
        () = ended(stop) => Woken::Ended,
        woken = tokio::time::timeout(limit, heard) => woken.unwrap_or(Woken::News),
    }
}

#[cfg(test)]
mod tests;
