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

mod alert;
mod authority;
mod certificate;
mod directory;
pub mod edge;
pub mod edge_backends;
pub mod edge_clients;
mod error;
mod files;
mod handed;
mod inventory;
mod keeper;
mod ledger;
mod name;
mod node;
mod operator;
mod peer;
mod pem;
mod proof;
mod refusal;
mod revocation;
mod revoke;
mod rotation;
mod signature;
mod source;
mod succession;
pub mod tls;
mod trust;

pub use alert::Ending;
pub use authority::{Authority, Replace, Term};
pub use directory::{NodeDirectory, NodeTrust, Reload};
pub use error::{Content, IdentityError, ListFault, RootFault, Untrusted};
pub use handed::HandedFault;
pub use inventory::{Holding, inventory, next_step};
pub use keeper::{Changes, Turned, WorkloadCertificates};
pub use name::{NameError, NodeName, OperatorName, SpiffeId, TrustDomain};
pub use node::NodeIdentity;
pub use operator::OperatorIdentity;
pub use peer::{Expected, Peer, PeerRole};
pub use proof::{Binding, Chain, PROOF_MAX_BYTES};
pub use refusal::{PeerRefusal, RefusedPeer};
pub use revoke::{Listed, Target};
pub use rotation::{Rotation, backoff, renewal};
pub use signature::Signature;
pub use source::{CaSource, DirectorySource, ShownCertificate, WorkloadCertificate};
pub use succession::LeftBehind;
pub use trust::{SignedBy, TrustBundle};

#[cfg(test)]
mod tests;
