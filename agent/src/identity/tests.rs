//! Good identities are believed, and every bad one is refused by its name.

mod directories;
pub(super) mod forge;
mod handshakes;
mod operators;
mod refusals;
mod signatures;
mod workloads;
