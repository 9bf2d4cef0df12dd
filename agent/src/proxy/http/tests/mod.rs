//! Wire tests: real sockets on loopback, raw bytes on both sides.

mod bodies;
mod connections;
mod failures;
mod gateway;
pub(in crate::proxy) mod harness;
mod heads;
mod overload;
mod silence;
mod upgrades;
