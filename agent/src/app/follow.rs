//! Follows the documents, or the tables of the cluster: each becomes the table in force, with the Gateway listeners that it
//! asks for.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::bail;
use tokio::sync::{mpsc, watch};

use super::edge_tls::Privacy;
use super::gateways::{Gateways, ListenerError};
use super::status::Observed;
use super::tables::Tables;
use crate::compile::{RoutingTable, compile};
use crate::config::State;
use crate::health::{PodHealth, take_out};
use crate::proxy::{Command, WorkerHandle};

/// How soon a listener that could not be opened is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// Applies states in the order in which they come.
pub(super) struct Follower {
    tables: Arc<Tables>,
    observed: Arc<Observed>,
    workers: Vec<WorkerHandle>,
    gateways: Gateways,
    privacy: Privacy,
    /// Whether a listener is not open that should be.
    closed: bool,
    /// What was read last.
    state: State,
    /// The pods of this node, where their health is not the cluster's business.
    health: Arc<PodHealth>,
}

impl Follower {
    pub(super) fn new(tables: Arc<Tables>, observed: Arc<Observed>, workers: Vec<WorkerHandle>) -> Self {
        Self {
            tables,
            observed,
            workers,
            gateways: Gateways::default(),
            privacy: Privacy::default(),
            closed: false,
            state: State::default(),
            health: Arc::default(),
        }
    }

    /// Applies the state at start. A listener that can't be opened is a reason not to start only for an agent that would
    /// then do nothing: pods must not go without capture and policy because somebody has a port.
    pub(super) fn first(&mut self, state: State, captures: bool) -> anyhow::Result<()> {
        let errors = self.apply(state);
        if !captures && self.gateways.addresses().is_empty() {
            return errors.into_iter().next().map_or(Ok(()), |error| bail!(error));
        }
        self.closed = report(errors);
        Ok(())
    }

    /// Applies further states for as long as they come, and what becomes of pods.
    pub(super) async fn run(
        mut self,
        mut changes: mpsc::Receiver<State>,
        mut health: watch::Receiver<Arc<PodHealth>>,
    ) {
        loop {
            let state = tokio::select! {
                state = changes.recv() => state,
                Ok(()) = health.changed() => {
                    let now = Arc::clone(&health.borrow_and_update());
                    let differs = !now.failing.keys().eq(self.health.failing.keys());
                    self.health = now;
                    if differs {
                        self.compile();
                    }
                    continue;
                }
                () = tokio::time::sleep(RETRY), if self.closed => {
                    self.closed = !self.listen().is_empty();
                    continue;
                }
            };
            let Some(state) = state else { return };
            let errors = self.apply(state);
            self.closed = report(errors);
        }
    }

    /// Opens what the table in force asks for and is not open.
    fn listen(&mut self) -> Vec<ListenerError> {
        let table = self.tables.current.load();
        self.privacy.keep(&table);
        let errors = self.gateways.reconcile(&table, &self.workers);
        self.observed.listening(self.gateways.addresses(), &errors);
        errors
    }

    fn apply(&mut self, state: State) -> Vec<ListenerError> {
        self.state = state;
        self.compile();
        self.observed.reported(&self.state.report);
        self.listen()
    }

    /// Puts in force what was read last, without the pods that fail.
    fn compile(&self) {
        let mut model = Arc::clone(&self.state.model);
        if !self.health.failing.is_empty() {
            take_out(Arc::make_mut(&mut model), |_, uid| self.health.failing.contains_key(uid));
        }
        self.put_in_force(|previous| compile(&model, previous, previous.version.after_alone()));
    }

    /// Applies a table of the cluster.
    pub(super) fn table(&mut self, compile: impl FnOnce(&RoutingTable) -> RoutingTable) {
        self.put_in_force(compile);
        let errors = self.listen();
        self.closed = report(errors);
    }

    fn put_in_force(&self, compile: impl FnOnce(&RoutingTable) -> RoutingTable) {
        let (applied, gone) = self.tables.apply(compile);
        let gone = Arc::new(gone);
        for worker in &self.workers {
            // Fails for a worker that has ended, which holds nothing.
            let _ = worker.commands.send(Command::Table(Arc::clone(&gone)));
        }
        self.observed.applied(applied);
    }
}

/// Opens listeners that could not be opened, again and again, for as long as somebody else applies tables.
pub(super) async fn retry(follower: Arc<Mutex<Follower>>) {
    loop {
        tokio::time::sleep(RETRY).await;
        let mut follower = follower.lock().unwrap_or_else(PoisonError::into_inner);
        if follower.closed {
            follower.closed = !follower.listen().is_empty();
        }
    }
}

/// Logs listeners that are not open; whether there are any.
fn report(errors: Vec<ListenerError>) -> bool {
    let closed = !errors.is_empty();
    for error in errors {
        tracing::error!(%error, "a gateway listener is not open");
    }
    closed
}
