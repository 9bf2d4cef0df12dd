//! Wire tests: real sockets on loopback, the `h2` crate as client and as server.

mod early_answers;
mod grpc;
mod hostile;
mod limits;
mod overload;
mod patience;
pub(in crate::proxy) mod peers;
mod requests;
mod streams;
mod strict;
mod upstreams;
