//! Documents become the table in force.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::compile::{Realm, RoutingTable, gone};

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

    /// Says where tables are in force; before the first one is.
    pub(super) fn settle(&self, realm: Realm) {
        let table = Arc::new(RoutingTable { realm: Arc::new(realm), ..RoutingTable::default() });
        self.current.store(Arc::clone(&table));
        self.follow.send_replace(table);
    }

    /// Compiles a table after the one in force and puts it there: for new requests first, for the kernel after it, so that what the
    /// kernel captures is always known here. Answers which endpoints are gone, too, by uid.
    pub(super) fn apply(
        &self,
        compile: impl FnOnce(&RoutingTable) -> RoutingTable,
    ) -> (Applied, HashSet<Arc<str>>) {
        let since = Instant::now();
        let previous = self.current.load();
        let table = Arc::new(compile(&previous));
        self.current.store(Arc::clone(&table));
        self.follow.send_replace(Arc::clone(&table));
        let applied = Applied { at: SystemTime::now(), took: since.elapsed() };
        (applied, gone(&previous, &table))
    }

    /// Hears of every new table.
    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<RoutingTable>> {
        self.follow.subscribe()
    }
}
