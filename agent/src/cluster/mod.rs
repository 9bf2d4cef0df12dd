//! Several agents as one cluster: who leads, what each node contributes, and the table that all of them apply.

mod store;

pub use store::{
    Acquired, Candidate, Delta, Deltas, Document, DocumentWrite, Documents, Event, HISTORY_MAX, Lease,
    LeaseState, Member, NODE_NAME_MAX, Published, Snapshot, Store, StoreError, Written,
};
