//! The store in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use agent::cluster::{Event, LocalState, LocalStore, Store, StoreError};
use anyhow::{Result, ensure};

use crate::suite::{self, Site, candidate, put, taken, told};

/// A store in memory, and its clock, which moves when it is told to.
struct Memory {
    store: LocalStore,
    now: Arc<AtomicU64>,
}

impl Memory {
    fn new() -> Self {
        let now = Arc::new(AtomicU64::new(1_700_000_000_000));
        let clock = Arc::clone(&now);
        let store = LocalStore::new(Arc::new(move || Duration::from_millis(clock.load(Ordering::SeqCst))));
        Self { store, now }
    }
}

impl Site for Memory {
    type Store = LocalStore;

    async fn client(&self) -> Result<LocalStore> {
        Ok(self.store.client())
    }

    async fn lose(&self) -> Result<()> {
        self.store.restore(LocalState::default());
        Ok(())
    }

    async fn moment(&self) {
        self.now.fetch_add(10, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_store_in_memory_keeps_its_promises() -> Result<()> {
    suite::run(&Memory::new()).await
}

#[tokio::test]
async fn a_store_in_memory_fails_and_forgets_as_it_is_told_to() -> Result<()> {
    let site = Memory::new();
    let (store, other) = (site.client().await?, site.client().await?);
    let mut events = store.events();
    let lease = taken(&store, &candidate("a", 1, 0), suite::TTL).await?;
    store.write(&[put("a", "1", None)]).await?;
    let before = store.state();
    ensure!(store.release(&lease).await?);

    let gone = StoreError::Unreachable("it was cut off".to_owned());
    store.fail(Some(gone.clone()));
    ensure!(store.clone().lease().await == Err(gone), "a client that was cut off asks");
    let next = taken(&other, &candidate("b", 2, 0), suite::TTL).await?;
    while let Ok(event) = events.try_recv() {
        ensure!(event != Event::Connected, "it was cut off and is told of a connection");
    }
    store.fail(None);
    told(&mut events, Event::Connected).await?;
    ensure!(store.lease().await?.held.is_some_and(|(held, _)| held == next));

    // An older state comes back: the lease that was in it is held again, and its epoch is the highest.
    store.restore(before);
    told(&mut events, Event::Connected).await?;
    ensure!(other.lease().await?.held.is_some_and(|(held, _)| held == lease));
    ensure!(!other.renew(&next, suite::TTL).await?);
    ensure!(other.documents("", 0).await?.revision == 1);
    Ok(())
}
