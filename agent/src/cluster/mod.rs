//! Several agents as one cluster: who leads, what each node contributes, and the table that all of them apply.

mod local;
mod redis;
mod store;

pub use local::{Clock, LocalState, LocalStore};
pub use redis::{RedisOptions, RedisStore};
pub use store::{
    Acquired, BYTES_MAX, Candidate, DELETED_MAX, DELTAS_MAX, Delta, Deltas, Document, DocumentWrite,
    Documents, EPOCH_MAX, Event, HISTORY_MAX, Lease, LeaseState, MEMBER_KEPT, Member, NODE_NAME_MAX,
    Published, Snapshot, Store, StoreError, Written,
};
