//! What the agents of a cluster share, as one trait: [`super::redis`] keeps it in Redis, [`super::local`] in memory.
//!
//! Every method is one atomic step of the store, and none waits longer than the store's own time limit. What is read is bytes
//! that anybody may have written: who uses them checks them.

mod odd;

use std::fmt::{self, Write as _};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use tokio::sync::broadcast;

pub use self::odd::{Odd, Oddity};
use crate::compile::Token;

/// The longest name of a node that a store takes.
pub const NODE_NAME_MAX: usize = 253;

/// One term of one leader: what the lease's key holds, so that nobody renews, releases or publishes for another term.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lease {
    /// The fencing token that came with it.
    pub token: Token,
    /// The node that holds it.
    pub node: Arc<str>,
}

impl fmt::Display for Lease {
    /// `EPOCH/NONCE/NODE`, as it is stored: the nonce as sixteen hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:016x}/{}", self.token.epoch, self.token.nonce, self.node)
    }
}

impl Lease {
    /// Reads what [`fmt::Display`] wrote; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '/');
        let (epoch, nonce, node) = (parts.next()?, parts.next()?, parts.next()?);
        let token = Token { epoch: epoch.parse().ok()?, nonce: u64::from_str_radix(nonce, 16).ok()? };
        let lease = Self { token, node: node.into() };
        (node.len() <= NODE_NAME_MAX && lease.to_string() == text).then_some(lease)
    }
}

/// Who wants the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its node.
    pub node: Arc<str>,
    /// Its boot nonce.
    pub nonce: u64,
    /// The highest epoch that it knows of: the new one will be above it, and above the store's.
    pub above: u64,
}

/// What became of a try to take the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acquired {
    /// It is the candidate's, under this token.
    Yes(Lease),
    /// Somebody holds it. `None`: what is stored is no lease of ours, and is left to expire.
    Held(Option<Lease>),
}

/// The lease as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LeaseState {
    /// Who holds it, and for how long still.
    pub held: Option<(Lease, Duration)>,
    /// The terms before and this one, the newest first, each with the milliseconds since 1970 at which it began by the store's
    /// clock; at most [`HISTORY_MAX`].
    pub history: Vec<(Lease, u64)>,
}

/// How many events a listener may lag behind before it misses some.
pub(super) const EVENTS_KEPT: usize = 64;

/// How many terms a store remembers.
pub const HISTORY_MAX: usize = 32;

/// The highest epoch that a store gives out: Redis counts in doubles.
pub const EPOCH_MAX: u64 = (1 << 53) - 1;

/// The most bytes of a table, of all deltas after it together, and of the documents of one write.
pub const BYTES_MAX: usize = 64 << 20;

/// The most bytes of what a node says of itself.
pub const RECORD_MAX: usize = 4 << 20;

/// The most bytes of what all nodes say of themselves; a node beyond that is there without a record.
pub const RECORDS_MAX: usize = 16 << 20;

/// The most deltas after a table.
pub const DELTAS_MAX: usize = 4096;

/// How long a node that does not say that it leaves is remembered after its last heartbeat has run out.
pub const MEMBER_KEPT: Duration = Duration::from_hours(24);

/// The most deleted documents that a store remembers. One more, and it forgets them all and takes another id, so that
/// everybody reads everything.
pub const DELETED_MAX: usize = 4096;

/// A document of the configuration store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// `KIND/NAMESPACE/NAME`.
    pub id: Arc<str>,
    /// Its text; `None`: it was deleted, or there never was one.
    pub text: Option<Arc<str>>,
    /// The store's revision at which it came to be so.
    pub revision: u64,
}

/// What changed among the documents.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Documents {
    /// Which store it is: drawn when the first document is written, so that one that lost everything is another one.
    /// Empty: nothing was ever written.
    pub store: Arc<str>,
    /// The store's revision; counts changes.
    pub revision: u64,
    /// Documents whose revision is above the one that was asked for, and the seal, in the order of their revisions.
    pub changed: Vec<Document>,
    /// Those among them of which the store says something that no write leaves so: somebody else has written there.
    pub odd: Vec<Odd>,
}

/// What the texts of some documents are at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sums {
    /// Which store it is.
    pub store: Arc<str>,
    /// Its revision.
    pub revision: u64,
    /// The [`sum_of`] of each document's text, in the order in which they were named; `None`: there is no such document, or
    /// it is [`Odd`].
    pub sums: Vec<Option<String>>,
    /// How many documents there are.
    pub count: u64,
}

/// What tells one text from another: its SHA-1, the only one that Redis has, in hexadecimal digits. It proves nothing of who wrote it.
pub fn sum_of(text: &str) -> String {
    let sum = digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    sum.as_ref().iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A change of one document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentWrite {
    /// `KIND/NAMESPACE/NAME`.
    pub id: Arc<str>,
    /// Its new text; `None` deletes it.
    pub text: Option<Arc<str>>,
    /// What its revision must be now; 0: there must be none. `None`: it is written whatever is there.
    pub expected: Option<u64>,
}

/// What became of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// All of it is in, at this revision.
    At(u64),
    /// Nothing is: these documents are at other revisions than expected (0: there is none).
    Conflict(Vec<(Arc<str>, u64)>),
}

/// A member of the cluster as its record says; the record is what the node wrote, unread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The node.
    pub node: Arc<str>,
    /// Whether its heartbeat is in time.
    pub alive: bool,
    /// What it says of itself; `None`: nothing any more.
    pub record: Option<Vec<u8>>,
}

/// What became of a publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Published {
    /// It is out.
    Yes,
    /// The lease is somebody else's now, or nobody's: whoever tried leads no more.
    NotLeader(Option<Lease>),
    /// The store does not have what the delta follows, or holds as many as it may: it needs a snapshot.
    NeedsSnapshot,
}

/// A table as a whole, with what the store needs to know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The digest that the next delta follows, as text.
    pub digest: String,
    /// The sealed table.
    pub sealed: Vec<u8>,
}

/// A change of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta {
    /// The digest that it follows.
    pub previous: String,
    /// The digest after it.
    pub digest: String,
    /// The sealed change.
    pub sealed: Vec<u8>,
}

/// Deltas that followed each other, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Deltas {
    /// Where to read on: opaque, of the store.
    pub position: String,
    /// The digest with which the table was last written whole; empty: it was not. Whoever has read another one reads it anew.
    pub snapshot: String,
    /// The sealed changes.
    pub sealed: Vec<Vec<u8>>,
}

/// What the store tells without being asked. Any may be lost or come twice: whoever hears asks the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// The lease was taken or released.
    Leader,
    /// A snapshot or a delta came.
    Table,
    /// Documents changed.
    Documents,
    /// A node came, changed or left.
    Nodes,
    /// The connection is new: anything may have happened meanwhile.
    Connected,
}

/// Why the store did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It can't be reached, or did not answer in time.
    #[error("the store can't be reached: {0}")]
    Unreachable(String),
    /// It refuses the credentials, or lets them do too little.
    #[error("the store refuses access: {0}")]
    Denied(String),
    /// It can't take what it is given: no memory, no disk, read-only.
    #[error("the store takes no writes: {0}")]
    ReadOnly(String),
    /// It is too old, or something else than it should be.
    #[error("the store can't be used: {0}")]
    Unfit(String),
    /// Under a key of ours is something that is not ours.
    #[error("{key} holds something foreign: {what}")]
    Foreign {
        /// The key.
        key: String,
        /// What is wrong with it.
        what: String,
    },
}

/// What the agents of a cluster share.
pub trait Store: Send + Sync + 'static {
    /// Takes the lease if nobody has it, and raises the epoch above all that is known, in one step.
    fn acquire(
        &self,
        candidate: &Candidate,
        ttl: Duration,
    ) -> impl Future<Output = Result<Acquired, StoreError>> + Send;

    /// Extends the lease if it is still this one. `false`: it is not.
    fn renew(&self, lease: &Lease, ttl: Duration) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Gives the lease back if it is still this one, and tells everybody. `false`: it was not.
    fn release(&self, lease: &Lease) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Who leads, and who led.
    fn lease(&self) -> impl Future<Output = Result<LeaseState, StoreError>> + Send;

    /// Says that a node is there, for `ttl`; `changed` tells others that its record is another one than before.
    fn beat(
        &self,
        node: &str,
        record: &[u8],
        ttl: Duration,
        changed: bool,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Takes a node out, as it said so.
    fn leave(&self, node: &str) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// All nodes that are there or were and did not say that they leave, sorted by name. A node is forgotten
    /// [`MEMBER_KEPT`] after its last heartbeat ran out, its record after two more `ttl`.
    fn members(&self) -> impl Future<Output = Result<Vec<Member>, StoreError>> + Send;

    /// What changed among the documents after a revision of a store. Of another store than the one named, everything. The seal is
    /// told in any case: a revision is a count, which a store that was put back reaches once more with other documents.
    fn documents(
        &self,
        store: &str,
        after: u64,
    ) -> impl Future<Output = Result<Documents, StoreError>> + Send;

    /// What the texts of these documents are, as [`sum_of`] has it.
    fn sums(&self, ids: &[Arc<str>]) -> impl Future<Output = Result<Sums, StoreError>> + Send;

    /// Writes all of these documents or none. To delete what is not there changes nothing.
    fn write(&self, writes: &[DocumentWrite]) -> impl Future<Output = Result<Written, StoreError>> + Send;

    /// Gives documents back that the store has lost, as [`Store::write`] does. The store becomes another one, whose revision is
    /// above its own and above `above`, so that everybody reads everything and nobody takes it for an older one.
    fn restore(
        &self,
        writes: &[DocumentWrite],
        above: u64,
    ) -> impl Future<Output = Result<Written, StoreError>> + Send;

    /// Replaces the table if the lease is still this one; deltas before it go.
    fn publish(
        &self,
        lease: &Lease,
        snapshot: &Snapshot,
    ) -> impl Future<Output = Result<Published, StoreError>> + Send;

    /// Adds a delta if the lease is still this one, and what is stored is what the delta follows.
    fn append(
        &self,
        lease: &Lease,
        delta: &Delta,
    ) -> impl Future<Output = Result<Published, StoreError>> + Send;

    /// The table as it was last written whole, with the position of the deltas that follow it.
    fn snapshot(&self) -> impl Future<Output = Result<Option<(Vec<u8>, String)>, StoreError>> + Send;

    /// Deltas after a position.
    fn deltas(&self, position: &str) -> impl Future<Output = Result<Deltas, StoreError>> + Send;

    /// What the store tells from now on; who lags behind misses some.
    fn events(&self) -> broadcast::Receiver<Event>;
}

/// Refuses a name of a node that no store takes.
pub(super) fn checked_node(node: &str) -> Result<(), StoreError> {
    if node.is_empty() || node.len() > NODE_NAME_MAX {
        let length = node.len();
        return Err(StoreError::Unfit(format!("a node's name has 1 to {NODE_NAME_MAX} bytes, not {length}")));
    }
    Ok(())
}

/// Refuses more bytes than a store takes at once.
pub(super) fn checked_size(what: &str, bytes: usize) -> Result<(), StoreError> {
    if bytes > BYTES_MAX {
        return Err(StoreError::ReadOnly(format!(
            "{what} of {bytes} bytes is over the {BYTES_MAX} that are kept"
        )));
    }
    Ok(())
}

/// The bytes of a write's documents.
pub(super) fn write_bytes(writes: &[DocumentWrite]) -> usize {
    writes.iter().map(|write| write.id.len() + write.text.as_ref().map_or(0, |text| text.len())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_read_as_they_are_written() {
        let lease = Lease { token: Token { epoch: 7, nonce: 0xab }, node: "a/b".into() };
        assert_eq!(lease.to_string(), "7/00000000000000ab/a/b");
        assert_eq!(Lease::parse("7/00000000000000ab/a/b"), Some(lease));
        for foreign in ["", "7", "7/ab/a", "+7/00000000000000ab/a", "x/00000000000000ab/a", "7//a"] {
            assert_eq!(Lease::parse(foreign), None, "{foreign}");
        }
        assert_eq!(Lease::parse(&format!("7/00000000000000ab/{}", "a".repeat(254))), None);
    }
}
