//! Sockets: how connections are dialled and accepted, what protocol they speak, and how bytes are moved.

mod connect;
mod copy;
mod detect;
mod listen;

pub use connect::{ConnectSource, ConnectTarget, Connector, PlainConnector, finish_connect, keepalive};
pub use copy::{RelayFailure, Relayed, relay};
pub use detect::{Spoken, classify};
pub use listen::{gateway_listener, lacks_ipv6, server_listener};
