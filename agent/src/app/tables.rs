//! Documents become the table in force.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::compile::{RoutingTable, TableVersion, compile};
use crate::model::Model;

/// The table in force and those who follow it.
pub(super) struct Tables {
    /// What requests look up.
    pub(super) current: Arc<ArcSwap<RoutingTable>>,
    follow: watch::Sender<Arc<RoutingTable>>,
}

/// When the table in force was put there, and how long that took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Applied {
    pub(super) at: SystemTime,
    pub(super) took: Duration,
}

impl Tables {
    /// Starts with an empty table.
    pub(super) fn new() -> Self {
        let table = Arc::new(RoutingTable::default());
        Self { current: Arc::new(ArcSwap::new(Arc::clone(&table))), follow: watch::Sender::new(table) }
    }

    /// Compiles a model and puts its table in force: for new requests first, for the kernel after it, so that what the
    /// kernel captures is always known here.
    pub(super) fn apply(&self, model: &Model, version: TableVersion) -> Applied {
        let since = Instant::now();
        let previous = self.current.load();
        let table = Arc::new(compile(model, &previous, version));
        self.current.store(Arc::clone(&table));
        self.follow.send_replace(table);
        Applied { at: SystemTime::now(), took: since.elapsed() }
    }

    /// The version after the one in force, of an agent that runs alone.
    pub(super) fn next(&self) -> TableVersion {
        TableVersion::alone(self.current.load().version.version + 1)
    }

    /// Hears of every new table.
    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<RoutingTable>> {
        self.follow.subscribe()
    }
}
