//! HTTP messages without sockets: heads, bodies, and what a proxy may pass on. Owns no I/O and no routing.

pub mod body;
pub mod grpc;
pub mod h1;
pub mod h2;
pub mod hop;
mod refusal;
mod sink;

pub use refusal::Refusal;
pub use sink::FieldSink;
