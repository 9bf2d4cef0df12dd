//! Follows the documents: each new state becomes a table, and the Gateway listeners that it asks for.

use std::sync::Arc;

use anyhow::bail;
use tokio::sync::mpsc;

use super::gateways::{Gateways, ListenerError};
use super::status::Observed;
use super::tables::Tables;
use crate::config::State;
use crate::proxy::{Command, WorkerHandle};

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
        while let Some(state) = changes.recv().await {
            for error in self.apply(&state) {
                tracing::error!(%error, "a gateway listener is not open");
            }
        }
    }

    fn apply(&mut self, state: &State) -> Vec<ListenerError> {
        let applied = self.tables.apply(&state.model);
        let table = self.tables.current.load();
        let errors = self.gateways.reconcile(&table, &self.workers);
        for worker in &self.workers {
            // Fails for a worker that has ended, which holds nothing.
            let _ = worker.commands.send(Command::Table);
        }
        self.observed.applied(state, applied, self.gateways.addresses(), &errors);
        errors
    }
}
