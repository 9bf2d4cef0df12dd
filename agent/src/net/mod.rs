//! Sockets: how connections are dialled and what is known of an accepted one.

mod connect;

pub use connect::{ConnectTarget, Connector};
