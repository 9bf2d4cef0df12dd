//! Several agents as one cluster: who leads, what each node contributes, and the table that all of them apply.
//!
//! The machines are pure: [`election`] (who leads), [`publisher`] (what a leader publishes), [`follower`] (what an agent
//! applies), [`registry`] (what nodes say). [`store`] is what they share, [`driver`] runs them.

pub mod disk;
pub mod election;
pub mod registry;
pub mod seal;
mod store;

pub use store::{
    Acquired, Candidate, Delta, Deltas, Document, DocumentWrite, Documents, Event, HISTORY_MAX, Lease,
    LeaseState, Member, NODE_NAME_MAX, Published, Snapshot, Store, StoreError, Written,
};
