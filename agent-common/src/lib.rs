//! The one truth of every type that crosses the kernel boundary, and the pure decisions that both sides make with them.
//!
//! `no_std`, no allocation. Kernel programs call these functions on packets; the host tests call the same ones on bytes.
#![cfg_attr(not(test), no_std)]
#![expect(
    clippy::inline_always,
    reason = "a call from a kernel program that is not inlined is one that the verifier may refuse"
)]

pub mod acceleration;
pub mod balance;
pub mod bridge;
pub mod capture;
pub mod event;
pub mod guard;
pub mod inbound;
pub mod layout;
pub mod limit;
pub mod packet;
pub mod policy;
