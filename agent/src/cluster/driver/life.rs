//! The life of the tasks: from the start, through faults of their own, to the end.
//!
//! A task that panics is a fault of this agent. The agent goes on all the same: what serves traffic has nothing to do with it,
//! and what makes one agent panic (a table, a document) may make all of them, so that an agent that ended by it would take the
//! traffic of the whole cluster along. All tasks then begin anew together, as after a start of the process, after a pause that
//! grows; the fault is logged, shown and counted.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{JoinError, JoinHandle, JoinSet};

use super::{Agent, ClusterView, EVENTS, Readiness, Shared, beat, ended, follow, lead, lease, lock, mirror};
use crate::cluster::election;
use crate::cluster::follower::Follower;
use crate::cluster::registry::NodeState;
use crate::cluster::store::Store;
use crate::health::PodHealth;

/// Between a fault and the new beginning: the shortest, and the longest after many.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_mins(1);
/// Who ran for so long without a fault begins with the shortest pause again.
const CALM: Duration = Duration::from_mins(5);

/// An agent's part in a cluster.
pub struct Handle {
    view: Arc<Mutex<ClusterView>>,
    health: watch::Sender<Arc<PodHealth>>,
    state: watch::Sender<NodeState>,
    told: watch::Receiver<Option<NodeState>>,
    ends: Ends,
    resting: watch::Receiver<bool>,
    life: JoinHandle<()>,
    /// Whether a table is in force.
    pub ready: watch::Receiver<Readiness>,
}

/// What tasks are told of the end.
#[derive(Clone)]
struct Ends {
    /// Nothing is led and applied any more.
    rest: watch::Sender<bool>,
    /// The others hear no more of this node.
    leave: watch::Sender<bool>,
}

impl Handle {
    /// What is known of the cluster; cheap to ask again.
    pub fn view(&self) -> Arc<Mutex<ClusterView>> {
        Arc::clone(&self.view)
    }

    /// Where it is told how the pods of this node are.
    pub fn health(&self) -> watch::Sender<Arc<PodHealth>> {
        self.health.clone()
    }

    /// Says that this agent ends, gives the lease back, and applies no further table; waits no longer than `limit`. The
    /// heartbeat goes on.
    pub async fn drain(&mut self, limit: Duration) {
        self.state.send_replace(NodeState::Draining);
        self.ends.rest.send_replace(true);
        let heard = async {
            // Who would say so may have ended by a fault: there is nothing to wait for then.
            let _ = self.resting.wait_for(|resting| *resting).await;
            let _ = self.told.wait_for(|told| *told == Some(NodeState::Draining)).await;
        };
        if tokio::time::timeout(limit, heard).await.is_err() {
            tracing::warn!("the store did not hear in time that this agent ends");
        }
    }

    /// Gives the lease back, takes the node out, and ends; waits no longer than `limit`.
    pub async fn stop(mut self, limit: Duration) {
        self.ends.rest.send_replace(true);
        self.ends.leave.send_replace(true);
        if tokio::time::timeout(limit, &mut self.life).await.is_err() {
            self.life.abort();
            tracing::warn!("the store did not hear of the end of this agent in time");
        }
    }
}

/// Starts the tasks. `heard`: what the election hears by the shared state.
pub(super) fn begin<S: Store>(
    shared: Shared<S>,
    (heard, follower): (mpsc::Receiver<election::Event>, Follower),
    agent: impl Agent,
    ready: watch::Sender<Readiness>,
) -> Handle {
    let ends = Ends { rest: watch::Sender::new(false), leave: watch::Sender::new(false) };
    let resting = watch::Sender::new(false);
    let (view, health, state) = (Arc::clone(&shared.view), shared.health.clone(), shared.state.clone());
    let (told, is_resting, is_ready) = (shared.told.subscribe(), resting.subscribe(), ready.subscribe());
    let life = Life { agent: Arc::new(agent), ready, ends: ends.clone(), resting };
    let life = tokio::spawn(life.run(shared, heard, follower));
    Handle { view, health, state, told, ends, resting: is_resting, life, ready: is_ready }
}

/// What outlives faults.
struct Life<A> {
    agent: Arc<A>,
    ready: watch::Sender<Readiness>,
    ends: Ends,
    resting: watch::Sender<bool>,
}

impl<A: Agent> Life<A> {
    async fn run<S: Store>(
        self,
        mut shared: Shared<S>,
        mut heard: mpsc::Receiver<election::Event>,
        mut follower: Follower,
    ) {
        let mut pause = PAUSE;
        loop {
            let (begun, whole) = (Instant::now(), Arc::new(shared));
            let Some(fault) = self.once(&whole, heard, follower).await else { return };
            let what = fault.to_string();
            tracing::error!(
                fault = what,
                "a task of the cluster has ended by a fault of this agent; all begin anew, and traffic goes on"
            );
            whole.note_fault(what).await;
            if begun.elapsed() >= CALM {
                pause = PAUSE;
            }
            let mut leave = self.ends.leave.subscribe();
            tokio::select! {
                () = ended(&mut leave) => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(PAUSE_MAX);
            let generation = whole.generation_in_force();
            (shared, heard) = whole.anew();
            follower = Follower::new(Arc::clone(&shared.settings.cluster), lock(&shared.view).highest);
            follower.hold(generation);
        }
    }

    /// Runs all tasks to their end, or to the first fault of one of them.
    async fn once<S: Store>(
        &self,
        shared: &Arc<Shared<S>>,
        heard: mpsc::Receiver<election::Event>,
        follower: Follower,
    ) -> Option<JoinError> {
        let highest = follower.highest().token;
        let rest = || self.ends.rest.subscribe();
        let mut tasks = JoinSet::new();
        tasks.spawn(lease::run(Arc::clone(shared), highest, heard, rest()));
        tasks.spawn(beat::run(Arc::clone(shared), self.ends.leave.subscribe()));
        tasks.spawn(mirror::run(Arc::clone(shared), rest()));
        tasks.spawn(lead::run(Arc::clone(shared), Arc::clone(&self.agent), rest()));
        let following = (Arc::clone(&self.agent), follower);
        tasks.spawn(follow::run(Arc::clone(shared), following, self.ready.clone(), rest()));
        while let Some(done) = tasks.join_next().await {
            if let Err(fault) = done {
                tasks.shutdown().await;
                return Some(fault);
            }
            // The heartbeat alone goes on.
            if *self.ends.rest.borrow() && tasks.len() <= 1 {
                self.resting.send_replace(true);
            }
        }
        None
    }
}

impl<S: Store> Shared<S> {
    /// Shows a fault. Nobody leads here any more, and others need not wait for a lease to run out.
    async fn note_fault(&self, what: String) {
        let led = self.term.send_replace(None);
        {
            let mut view = self.view();
            view.fault = Some(what);
            view.faults += 1;
            view.leads = None;
            if led.is_some() {
                view.yielded = Some("fault");
            }
        }
        if let Some(lease) = led {
            let _ = self.heard(self.store.release(&lease).await);
        }
    }

    /// The same, as if nothing had been heard of the store yet.
    fn anew(&self) -> (Self, mpsc::Receiver<election::Event>) {
        let (election, heard) = mpsc::channel(EVENTS);
        let shared = Self {
            store: Arc::clone(&self.store),
            settings: self.settings.clone(),
            nonce: self.nonce,
            trust: Arc::clone(&self.trust),
            disk: self.disk.clone(),
            keeper: Arc::clone(&self.keeper),
            view: Arc::clone(&self.view),
            term: watch::Sender::new(None),
            until: AtomicU64::new(0),
            calm_until: AtomicU64::new(0),
            documents: self.documents.clone(),
            synced: watch::Sender::new(None),
            nodes: watch::Sender::default(),
            state: self.state.clone(),
            told: self.told.clone(),
            health: self.health.clone(),
            continued: watch::Sender::default(),
            wanted: watch::Sender::default(),
            found: watch::Sender::default(),
            spoilt: Notify::new(),
            trusts_anew: Notify::new(),
            documents_judged: Notify::new(),
            outcome: watch::Sender::new(None),
            election,
        };
        (shared, heard)
    }
}
