//! The stores that agents share: one suite for all of them, and what only some of them can meet.

#[path = "cluster_store/faults.rs"]
mod faults;
#[path = "cluster_store/foreign.rs"]
mod foreign;
#[path = "cluster_store/memory.rs"]
mod memory;
#[path = "cluster_store/redis.rs"]
mod redis;
#[path = "cluster_store/slow.rs"]
mod slow;
#[path = "cluster_store/suite.rs"]
mod suite;
