//! The store of one process: an agent that runs alone, and the models and simulations of many.
//!
//! Time is passed in, and what may go wrong with a store can be made to: [`LocalStore::fail`] cuts one client off,
//! [`LocalStore::state`] and [`LocalStore::restore`] take the whole store back to what it was, or to nothing.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use tokio::sync::broadcast;

use super::documents::sealed::SEAL;
use super::store::{
    Acquired, BYTES_MAX, Candidate, DELETED_MAX, DELTAS_MAX, Delta, Deltas, Document, DocumentWrite,
    Documents, EPOCH_MAX, EVENTS_KEPT, Event, HISTORY_MAX, Lease, LeaseState, MEMBER_KEPT, Member, Published,
    Snapshot, Store, StoreError, Sums, Written, checked_node, checked_size, sum_of, write_bytes,
};
use crate::compile::Token;

/// The time since 1970.
pub type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// One client of a store in memory. Clones are the same client; [`Self::client`] makes another one.
#[derive(Debug, Clone)]
pub struct LocalStore {
    shared: Arc<Shared>,
    client: Arc<Client>,
}

struct Shared {
    clock: Clock,
    inner: Mutex<Inner>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("inner", &self.inner).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Client {
    events: broadcast::Sender<Event>,
    failure: Mutex<Option<StoreError>>,
}

impl Client {
    fn failure(&self) -> MutexGuard<'_, Option<StoreError>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: Event) {
        if self.failure().is_none() {
            // Nobody may be listening.
            let _ = self.events.send(event);
        }
    }
}

#[derive(Debug, Default)]
struct Inner {
    state: LocalState,
    /// How many stores' ids were given out: survives a loss of the state, so that none is given out twice.
    stores: u64,
    /// Counts deltas, whatever is lost or restored: what a position is in this store.
    appended: u64,
    clients: Vec<Weak<Client>>,
}

/// All that a store in memory holds.
#[derive(Debug, Clone, Default)]
pub struct LocalState {
    lease: Option<(Lease, Duration)>,
    epoch: u64,
    history: VecDeque<(Lease, u64)>,
    nodes: BTreeMap<Arc<str>, Beat>,
    store: Arc<str>,
    revision: u64,
    documents: BTreeMap<Arc<str>, Document>,
    table: Option<Table>,
    log: VecDeque<(u64, Vec<u8>)>,
}

#[derive(Debug, Clone)]
struct Beat {
    until: Duration,
    record_until: Duration,
    record: Vec<u8>,
}

#[derive(Debug, Clone)]
struct Table {
    sealed: Vec<u8>,
    position: u64,
    /// Its own digest.
    digest: String,
    /// The digest after the last delta.
    head: String,
    /// The bytes of all deltas after it.
    log_bytes: usize,
}

impl LocalStore {
    /// An empty store with its first client.
    pub fn new(clock: Clock) -> Self {
        let shared = Arc::new(Shared { clock, inner: Mutex::default() });
        Self::attached(shared)
    }

    /// The store of an agent that runs alone, by the machine's clock.
    pub fn alone() -> Self {
        // A clock before 1970 is taken for 1970: leases then never run out, and nobody else wants them.
        Self::new(Arc::new(|| SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default()))
    }

    /// Another client of the same store.
    #[must_use]
    pub fn client(&self) -> Self {
        Self::attached(Arc::clone(&self.shared))
    }

    /// Lets all calls of this client fail from now on, and no event reach it; `None` lets it in again.
    pub fn fail(&self, failure: Option<StoreError>) {
        let back = failure.is_none();
        *self.client.failure() = failure;
        if back {
            self.client.tell(Event::Connected);
        }
    }

    /// Changes a text past all that writes documents: no revision and no event tells of it.
    pub fn overwrite(&self, id: &str, text: &str) {
        if let Some(document) = self.shared.inner().state.documents.get_mut(id) {
            document.text = Some(text.into());
        }
    }

    /// All that the store holds.
    pub fn state(&self) -> LocalState {
        self.shared.inner().state.clone()
    }

    /// Makes the store hold what it held once; [`LocalState::default`] is an empty one. Everybody has to connect anew.
    pub fn restore(&self, state: LocalState) {
        let mut inner = self.shared.inner();
        inner.state = state;
        inner.tell(Event::Connected);
    }

    fn attached(shared: Arc<Shared>) -> Self {
        let client =
            Arc::new(Client { events: broadcast::channel(EVENTS_KEPT).0, failure: Mutex::default() });
        let mut inner = shared.inner();
        inner.clients.retain(|known| known.strong_count() > 0);
        inner.clients.push(Arc::downgrade(&client));
        drop(inner);
        Self { shared, client }
    }

    fn enter(&self) -> Result<(MutexGuard<'_, Inner>, Duration), StoreError> {
        // Not held while the other is waited for: whoever tells of something holds that one and looks at this.
        let failure = self.client.failure().clone();
        failure.map_or_else(|| Ok((self.shared.inner(), (self.shared.clock)())), Err)
    }
}

impl Shared {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn tell(&self, event: Event) {
        for client in self.clients.iter().filter_map(Weak::upgrade) {
            client.tell(event);
        }
    }

    fn draw_store(&mut self, now: Duration) {
        self.stores += 1;
        self.state.store = format!("{:x}-{}", now.as_nanos(), self.stores).into();
    }
}

impl LocalState {
    fn leader(&self, now: Duration) -> Option<&(Lease, Duration)> {
        self.lease.as_ref().filter(|(_, until)| *until > now)
    }

    fn is_held(&self, lease: &Lease, now: Duration) -> bool {
        self.leader(now).is_some_and(|(held, _)| held == lease)
    }

    fn not_leader(&self, now: Duration) -> Published {
        Published::NotLeader(self.leader(now).map(|(held, _)| held.clone()))
    }

    fn revision_of(&self, id: &str) -> u64 {
        self.documents
            .get(id)
            .filter(|document| document.text.is_some())
            .map_or(0, |document| document.revision)
    }

    /// Puts a document in, or takes it out, at a revision; answers whether that changed anything.
    fn put(&mut self, write: &DocumentWrite, revision: u64) -> bool {
        let changes = write.text.is_some() || self.revision_of(&write.id) > 0;
        if changes {
            let document = Document { id: write.id.clone(), text: write.text.clone(), revision };
            self.documents.insert(write.id.clone(), document);
        }
        changes
    }
}

impl LocalStore {
    /// Writes all of these documents or none; `above`: what the revision must be above where documents are restored.
    fn put_all(&self, writes: &[DocumentWrite], above: Option<u64>) -> Result<Written, StoreError> {
        checked_size("documents", write_bytes(writes))?;
        let (mut inner, now) = self.enter()?;
        let state = &mut inner.state;
        let unexpected = |write: &DocumentWrite| {
            let revision = state.revision_of(&write.id);
            (write.expected.is_some_and(|expected| expected != revision))
                .then(|| (write.id.clone(), revision))
        };
        let conflicts: Vec<_> = writes.iter().filter_map(unexpected).collect();
        if !conflicts.is_empty() {
            return Ok(Written::Conflict(conflicts));
        }
        let revision = state.revision.max(above.unwrap_or(0)) + 1;
        let changes = writes.iter().filter(|write| state.put(write, revision)).count();
        if changes == 0 && above.is_none() {
            return Ok(Written::At(state.revision));
        }
        state.revision = revision;
        let deleted = state.documents.values().filter(|document| document.text.is_none()).count();
        if deleted > DELETED_MAX {
            state.documents.retain(|_, document| document.text.is_some());
        }
        if state.store.is_empty() || above.is_some() || deleted > DELETED_MAX {
            inner.draw_store(now);
        }
        inner.tell(Event::Documents);
        Ok(Written::At(revision))
    }
}

impl Store for LocalStore {
    async fn acquire(&self, candidate: &Candidate, ttl: Duration) -> Result<Acquired, StoreError> {
        checked_node(&candidate.node)?;
        let (mut inner, now) = self.enter()?;
        let state = &mut inner.state;
        if let Some((held, _)) = state.leader(now) {
            return Ok(Acquired::Held(Some(held.clone())));
        }
        let epoch = state.epoch.max(candidate.above) + 1;
        if epoch > EPOCH_MAX {
            return Err(StoreError::Unfit(format!("no epoch is left above {}", epoch - 1)));
        }
        let token = Token { epoch, nonce: candidate.nonce };
        let lease = Lease { token, node: candidate.node.clone() };
        state.epoch = epoch;
        state.lease = Some((lease.clone(), now + ttl));
        state.history.push_front((lease.clone(), milliseconds(now)));
        state.history.truncate(HISTORY_MAX);
        inner.tell(Event::Leader);
        Ok(Acquired::Yes(lease))
    }

    async fn renew(&self, lease: &Lease, ttl: Duration) -> Result<bool, StoreError> {
        let (mut inner, now) = self.enter()?;
        let held = inner.state.is_held(lease, now);
        if held {
            inner.state.lease = Some((lease.clone(), now + ttl));
        }
        Ok(held)
    }

    async fn release(&self, lease: &Lease) -> Result<bool, StoreError> {
        let (mut inner, now) = self.enter()?;
        let held = inner.state.is_held(lease, now);
        if held {
            inner.state.lease = None;
            inner.tell(Event::Leader);
        }
        Ok(held)
    }

    async fn lease(&self) -> Result<LeaseState, StoreError> {
        let (inner, now) = self.enter()?;
        let held = inner.state.leader(now).map(|(lease, until)| (lease.clone(), until.saturating_sub(now)));
        Ok(LeaseState { held, history: inner.state.history.iter().cloned().collect() })
    }

    async fn beat(&self, node: &str, record: &[u8], ttl: Duration, changed: bool) -> Result<(), StoreError> {
        checked_node(node)?;
        checked_size("a record", record.len())?;
        let (mut inner, now) = self.enter()?;
        // Others took it for dead.
        let back = inner.state.nodes.get(node).is_some_and(|beat| beat.until <= now);
        let beat = Beat { until: now + ttl, record_until: now + ttl * 3, record: record.to_vec() };
        inner.state.nodes.insert(node.into(), beat);
        inner.state.nodes.retain(|_, beat| beat.until + MEMBER_KEPT > now);
        if changed || back {
            inner.tell(Event::Nodes);
        }
        Ok(())
    }

    async fn leave(&self, node: &str) -> Result<(), StoreError> {
        let (mut inner, _) = self.enter()?;
        inner.state.nodes.remove(node);
        inner.tell(Event::Nodes);
        Ok(())
    }

    async fn members(&self) -> Result<Vec<Member>, StoreError> {
        let (inner, now) = self.enter()?;
        let member = |(node, beat): (&Arc<str>, &Beat)| Member {
            node: node.clone(),
            alive: beat.until > now,
            record: (beat.record_until > now).then(|| beat.record.clone()),
        };
        let known = inner.state.nodes.iter().filter(|(_, beat)| beat.until + MEMBER_KEPT > now);
        Ok(known.map(member).collect())
    }

    async fn documents(&self, store: &str, after: u64) -> Result<Documents, StoreError> {
        let (inner, _) = self.enter()?;
        let state = &inner.state;
        let after = if store == &*state.store { after } else { 0 };
        let seal = |document: &&Document| &*document.id == SEAL && document.text.is_some();
        let told = |document: &&Document| document.revision > after || seal(document);
        let mut changed: Vec<_> = state.documents.values().filter(told).cloned().collect();
        changed.sort_by(|one, other| (one.revision, &one.id).cmp(&(other.revision, &other.id)));
        let (store, revision) = (state.store.clone(), state.revision);
        Ok(Documents { store, revision, changed, odd: Vec::new() })
    }

    async fn sums(&self, ids: &[Arc<str>]) -> Result<Sums, StoreError> {
        let (inner, _) = self.enter()?;
        let state = &inner.state;
        let sum = |id| Some(sum_of(state.documents.get(id)?.text.as_ref()?));
        let count = state.documents.values().filter(|document| document.text.is_some()).count() as u64;
        let (store, revision) = (state.store.clone(), state.revision);
        Ok(Sums { store, revision, sums: ids.iter().map(sum).collect(), count })
    }

    async fn write(&self, writes: &[DocumentWrite]) -> Result<Written, StoreError> {
        self.put_all(writes, None)
    }

    async fn restore(&self, writes: &[DocumentWrite], above: u64) -> Result<Written, StoreError> {
        self.put_all(writes, Some(above))
    }

    async fn publish(&self, lease: &Lease, snapshot: &Snapshot) -> Result<Published, StoreError> {
        checked_size("a table", snapshot.sealed.len())?;
        let (mut inner, now) = self.enter()?;
        let state = &mut inner.state;
        if !state.is_held(lease, now) {
            return Ok(state.not_leader(now));
        }
        let (sealed, head) = (snapshot.sealed.clone(), snapshot.digest.clone());
        state.log.clear();
        let digest = head.clone();
        inner.state.table = Some(Table { sealed, position: inner.appended, digest, head, log_bytes: 0 });
        inner.tell(Event::Table);
        Ok(Published::Yes)
    }

    async fn append(&self, lease: &Lease, delta: &Delta) -> Result<Published, StoreError> {
        checked_size("a delta", delta.sealed.len())?;
        let (mut inner, now) = self.enter()?;
        let state = &mut inner.state;
        if !state.is_held(lease, now) {
            return Ok(state.not_leader(now));
        }
        let full = state.log.len() >= DELTAS_MAX;
        let follows = state.table.as_mut().filter(|table| {
            !full && table.head == delta.previous && table.log_bytes + delta.sealed.len() <= BYTES_MAX
        });
        let Some(table) = follows else {
            return Ok(Published::NeedsSnapshot);
        };
        table.head.clone_from(&delta.digest);
        table.log_bytes += delta.sealed.len();
        inner.appended += 1;
        let entry = (inner.appended, delta.sealed.clone());
        inner.state.log.push_back(entry);
        inner.tell(Event::Table);
        Ok(Published::Yes)
    }

    async fn snapshot(&self) -> Result<Option<(Vec<u8>, String)>, StoreError> {
        let (inner, _) = self.enter()?;
        Ok(inner.state.table.as_ref().map(|table| (table.sealed.clone(), table.position.to_string())))
    }

    async fn deltas(&self, position: &str) -> Result<Deltas, StoreError> {
        let (inner, _) = self.enter()?;
        // Where another store's position is asked for, all that there is follows.
        let after = position.parse().unwrap_or(0);
        let newer = inner.state.log.iter().filter(|(number, _)| *number > after);
        let sealed: Vec<_> = newer.map(|(_, sealed)| sealed.clone()).collect();
        let position = inner.state.log.back().map_or(after, |(number, _)| after.max(*number));
        let snapshot = inner.state.table.as_ref().map(|table| table.digest.clone()).unwrap_or_default();
        Ok(Deltas { position: position.to_string(), snapshot, sealed })
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.client.events.subscribe()
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
