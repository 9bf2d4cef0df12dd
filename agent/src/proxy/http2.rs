//! HTTP/2 on either side of a request.
//!
//! [`connection`] serves a client's connection and gives each of its streams to [`respond`]; [`from_http1`] sends an
//! HTTP/1.1 client's request to an HTTP/2 upstream. What is asked for, what is changed and what is recorded is decided
//! where HTTP/1.1 decides it, over the same head; only the streaming in [`exchange`] and its [`sides`] is of its own.

mod body;
mod budget;
mod connection;
mod exchange;
mod fault;
mod frames;
mod from_http1;
mod respond;
mod sides;
mod upstream;

pub use connection::serve;

#[cfg(test)]
pub(super) mod tests;
