//! Simulated nodes: each has the product's own client of the store, reads what is published, checks signatures, decodes the
//! changes, and follows their order by the product's own machine. They hold no records, as a hundred tables would not fit into
//! one machine, compile nothing, and tell nobody that they are there.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use agent::cluster::follower::{Step, Verify};
use agent::cluster::seal::{Form, Position, Sealed};
use agent::cluster::standing::{Place, Standing};
use agent::cluster::{Event, RedisOptions, RedisStore, Store, StoreError, Trust};
use agent::compile::wire::Change;
use tokio::runtime::Runtime;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinHandle;

/// What one of them has seen.
#[derive(Default)]
struct Account {
    position: Mutex<Option<Position>>,
    /// Of changes, sealed.
    bytes: AtomicU64,
    changes: AtomicU64,
    refused: AtomicU64,
}

/// Followers that run.
pub struct Followers {
    accounts: Vec<Arc<Account>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Followers {
    /// Starts so many.
    pub fn start(runtime: &Runtime, count: usize, options: &RedisOptions, trust: &Trust) -> Self {
        let accounts: Vec<Arc<Account>> = (0..count).map(|_| Arc::default()).collect();
        let start = |account: &Arc<Account>| {
            let account = Arc::clone(account);
            let (options, trust) = (options.clone(), trust.clone());
            runtime.spawn(async move {
                let Ok(store) = RedisStore::connect(options) else { return };
                let (standing, position, snapshot) = Default::default();
                Simulated { store, trust, standing, position, snapshot, account }.run().await;
            })
        };
        let tasks = accounts.iter().map(start).collect();
        Self { accounts, tasks }
    }

    /// Where each of them is.
    pub fn positions(&self) -> Vec<Option<Position>> {
        let position =
            |account: &Arc<Account>| *account.position.lock().unwrap_or_else(PoisonError::into_inner);
        self.accounts.iter().map(position).collect()
    }

    /// Bytes of changes that each has taken in, and how many changes; the most of any.
    pub fn taken(&self) -> (u64, u64) {
        let most = |of: fn(&Account) -> &AtomicU64| {
            self.accounts.iter().map(|account| of(account).load(Ordering::Relaxed)).max().unwrap_or(0)
        };
        (most(|account| &account.bytes), most(|account| &account.changes))
    }

    /// Tables that any of them refused.
    pub fn refused(&self) -> u64 {
        self.accounts.iter().map(|account| account.refused.load(Ordering::Relaxed)).sum()
    }
}

impl Drop for Followers {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

struct Simulated {
    store: RedisStore,
    trust: Trust,
    standing: Standing,
    position: Option<String>,
    snapshot: String,
    account: Arc<Account>,
}

impl Simulated {
    async fn run(&mut self) {
        let mut events = self.store.events();
        loop {
            // A store that is away comes back, and says so.
            let _ = self.read().await;
            loop {
                match events.recv().await {
                    Ok(Event::Table) => break,
                    Ok(Event::Connected) | Err(RecvError::Lagged(_)) => {
                        self.position = None;
                        break;
                    }
                    Ok(_) => {}
                    Err(RecvError::Closed) => return,
                }
            }
        }
    }

    async fn read(&mut self) -> Result<(), StoreError> {
        loop {
            let position = if let Some(position) = self.position.clone() {
                position
            } else {
                let Some((sealed, position)) = self.store.snapshot().await? else { return Ok(()) };
                let snapshot = Sealed::open(&sealed).map(|sealed| sealed.position().chain.to_string());
                self.snapshot = snapshot.unwrap_or_default();
                self.take(&sealed);
                position
            };
            let deltas = self.store.deltas(&position).await?;
            if deltas.snapshot != self.snapshot {
                self.position = None;
                continue;
            }
            self.position = Some(deltas.position);
            if deltas.sealed.is_empty() {
                return Ok(());
            }
            for sealed in &deltas.sealed {
                self.account.bytes.fetch_add(sealed.len() as u64, Ordering::Relaxed);
                self.account.changes.fetch_add(1, Ordering::Relaxed);
                if self.take(sealed) == Some(Step::Gap) {
                    self.position = None;
                    break;
                }
            }
        }
    }

    /// Takes in one table; `None`: it is refused.
    fn take(&mut self, bytes: &[u8]) -> Option<Step> {
        let step = self.judge(bytes);
        if step.is_none() {
            self.account.refused.fetch_add(1, Ordering::Relaxed);
        }
        *self.account.position.lock().unwrap_or_else(PoisonError::into_inner) = self.standing.in_force();
        step
    }

    fn judge(&mut self, bytes: &[u8]) -> Option<Step> {
        let sealed = Sealed::open(bytes).ok()?;
        self.trust.signer(sealed.signed, sealed.signature).ok()?;
        let next = sealed.position();
        match self.standing.judge(&next, sealed.header.form).ok()? {
            Place::Next => {}
            Place::Known => return Some(Step::Known),
            Place::Gap => return Some(Step::Gap),
        }
        // A hundred whole tables at once would be the machine's work, not the cluster's.
        if matches!(sealed.header.form, Form::Delta { .. }) {
            Change::decode(sealed.body).ok()?;
        }
        Some(self.standing.take(next))
    }
}
