//! Who a node is, and whose word a node takes: names, certificates, the signature of routing tables, and the CA that
//! makes them offline.
//!
//! [`NodeIdentity`] signs tables, [`OperatorIdentity`] seals documents, [`TrustBundle`] verifies both, [`NodeDirectory`] holds both as they are on disk now. Nothing here
//! reads a clock or talks to a network; files are read and written where a function says so. `docs/identity.md` has
//! the layout of the directories.
//!
//! **Which issuer may make which identity.** A node's certificate is issued by a root, with nothing in between, and a
//! signature carries that certificate alone. A node's intermediate, which is on the node to make certificates of its
//! workloads, can therefore make no node identity at all: neither another node's nor its own.

mod authority;
mod certificate;
mod directory;
pub mod edge;
mod error;
mod files;
mod keeper;
mod name;
mod node;
mod operator;
mod peer;
mod pem;
mod refusal;
mod rotation;
mod signature;
mod source;
pub mod tls;
mod trust;

pub use authority::{Authority, Replace, Term};
pub use directory::{NodeDirectory, NodeTrust, Reload};
pub use error::{Content, IdentityError, RootFault, Untrusted};
pub use keeper::{Turned, WorkloadCertificates};
pub use name::{NameError, NodeName, OperatorName, SpiffeId, TrustDomain};
pub use node::NodeIdentity;
pub use operator::OperatorIdentity;
pub use peer::Expected;
pub use refusal::PeerRefusal;
pub use rotation::{Rotation, renewal};
pub use signature::Signature;
pub use source::{CaSource, DirectorySource, WorkloadCertificate};
pub use trust::{SignedBy, TrustBundle};

#[cfg(test)]
mod tests;
