//! Good identities are believed, and every bad one is refused by its name.

mod directories;
pub(super) mod forge;
mod handshakes;
mod hostile;
mod operators;
mod proofs;
mod refusals;
mod revocations;
mod signatures;
mod workloads;
