//! Several agents as one cluster: who leads, what each node contributes, and the table that all of them apply.
//!
//! The machines are pure: [`election`] (who leads), [`publisher`] (what a leader publishes), [`follower`] (what an agent
//! applies), [`registry`] (what nodes say). [`store`] is what they share, [`driver`] runs them.

pub mod disk;
pub mod documents;
mod driver;
pub mod election;
pub mod follower;
mod local;
pub mod publisher;
mod redis;
pub mod registry;
#[cfg(test)]
mod sample;
pub mod seal;
pub mod standing;
mod store;
#[cfg(test)]
mod tests;
mod trust;

/// Milliseconds since 1970.
pub fn milliseconds(time: std::time::SystemTime) -> u64 {
    let since = time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

pub use driver::{Agent, ClusterSettings, ClusterView, Handle, Read, Readiness, start};

pub use local::{Clock, LocalState, LocalStore};
pub use redis::{CountersReading, NodeHolds, RedisCounters, RedisOptions, RedisStore};
pub use store::{
    Acquired, BYTES_MAX, Candidate, DELETED_MAX, DELTAS_MAX, Delta, Deltas, Document, DocumentWrite,
    Documents, EPOCH_MAX, Event, HISTORY_MAX, Lease, LeaseState, MEMBER_KEPT, Member, NODE_NAME_MAX, Odd,
    Oddity, Published, Snapshot, Store, StoreError, Sums, Written, sum_of,
};
pub use trust::Trust;
