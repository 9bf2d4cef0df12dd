//! Certificates of workloads from a SPIFFE Workload API, as SPIRE's agent serves it on a Unix socket.
//!
//! [`WorkloadApi`] is the source that the certificates' keeper asks; [`follow`] keeps it up to date by two streams of gRPC.
//! The bytes of messages are read in [`wire`], those of gRPC in [`grpc`]. What the API hands out is for this process: every
//! identity that the server has registered for the agent. It says nothing of pods, so an identity that was not registered
//! can't be had, and its pods get no certificates.

mod follow;
mod grpc;
mod source;
mod wire;

pub use follow::follow;
pub use source::WorkloadApi;
