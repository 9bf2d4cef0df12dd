//! Follows the documents: each new state becomes a table, and the Gateway listeners that it asks for.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use tokio::sync::mpsc;

use super::gateways::{Gateways, ListenerError};
use super::status::Observed;
use super::tables::Tables;
use crate::config::State;
use crate::proxy::{Command, WorkerHandle};

/// How soon a listener that could not be opened is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// Applies states in the order in which they come.
pub(super) struct Follower {
    tables: Arc<Tables>,
    observed: Arc<Observed>,
    workers: Vec<WorkerHandle>,
    gateways: Gateways,
}

impl Follower {
    pub(super) fn new(tables: Arc<Tables>, observed: Arc<Observed>, workers: Vec<WorkerHandle>) -> Self {
        Self { tables, observed, workers, gateways: Gateways::default() }
    }

    /// Applies the state at start, when a listener that can't be opened is a reason not to start.
    pub(super) fn first(&mut self, state: &State) -> anyhow::Result<()> {
        match self.apply(state).into_iter().next() {
            Some(error) => bail!(error),
            None => Ok(()),
        }
    }

    /// Applies further states for as long as they come.
    pub(super) async fn run(mut self, mut changes: mpsc::Receiver<State>) {
        let mut closed = false;
        loop {
            let state = tokio::select! {
                state = changes.recv() => state,
                () = tokio::time::sleep(RETRY), if closed => {
                    closed = !self.listen().is_empty();
                    continue;
                }
            };
            let Some(state) = state else { return };
            let errors = self.apply(&state);
            closed = !errors.is_empty();
            for error in errors {
                tracing::error!(%error, "a gateway listener is not open");
            }
        }
    }

    /// Opens what the table in force asks for and is not open.
    fn listen(&mut self) -> Vec<ListenerError> {
        let errors = self.gateways.reconcile(&self.tables.current.load(), &self.workers);
        self.observed.listening(self.gateways.addresses(), &errors);
        errors
    }

    fn apply(&mut self, state: &State) -> Vec<ListenerError> {
        let applied = self.tables.apply(&state.model);
        for worker in &self.workers {
            // Fails for a worker that has ended, which holds nothing.
            let _ = worker.commands.send(Command::Table);
        }
        self.observed.applied(state, applied);
        self.listen()
    }
}
