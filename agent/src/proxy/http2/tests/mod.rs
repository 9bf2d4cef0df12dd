//! Wire tests: real sockets on loopback, the `h2` crate as client and as server.

mod grpc;
mod hostile;
mod limits;
mod peers;
mod requests;
mod streams;
mod strict;
mod upstreams;
