//! HTTP messages without sockets: heads, bodies, and what a proxy may pass on. Owns no I/O and no routing.

pub mod body;
pub mod h1;
pub mod hop;
mod refusal;

pub use refusal::Refusal;
