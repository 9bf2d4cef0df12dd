//! The health checks of this node's pods: who is asked, and who hears what comes of it.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::status::Observed;
use super::tables::Tables;
use super::{DocumentSource, Settings};
use crate::health::{Asked, Checker, PodHealth};

/// Starts them. They go on while the agent drains: others go by what it says until it has left.
pub(super) fn start(
    settings: &Settings,
    observed: &Observed,
    tables: &Tables,
    health: watch::Sender<Arc<PodHealth>>,
) -> JoinHandle<()> {
    let asked = Asked {
        node: settings.node.as_str().into(),
        // Alone, nobody else could be meant.
        unplaced: matches!(settings.documents, DocumentSource::Directory(_)),
        mark: settings.capture.as_ref().map(|capture| capture.marks.own),
    };
    let counts = observed.watch_probes(health.subscribe());
    let (seed, mut calls) = (RandomState::new(), 0_u64);
    let random = move || {
        calls = calls.wrapping_add(1);
        seed.hash_one(calls)
    };
    tokio::spawn(Checker::new(asked, counts, random).run(tables.subscribe(), health))
}
