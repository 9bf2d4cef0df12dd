//! Whose tables are believed, and with what this node's own are signed.

use std::sync::Arc;
use std::time::SystemTime;

use super::follower::{Refusal, Verify};
use crate::identity::{NodeDirectory, NodeTrust, Reload, Signature, Untrusted};

/// How tables are signed and believed, and whether documents have to be sealed.
#[derive(Debug, Clone)]
pub enum Trust {
    /// By the certificates of the nodes.
    Signed(Arc<NodeDirectory>),
    /// Not at all: whoever can write to the store moves traffic. Somebody asked for that.
    Unsigned,
}

impl Trust {
    /// A signature of this node; empty where tables are not signed.
    pub(super) fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Signed(directory) => directory.current().identity.sign(bytes).to_bytes(),
            Self::Unsigned => Vec::new(),
        }
    }

    /// Why nobody would believe this node's signature now; `None`: they do.
    pub(super) fn cannot_sign(&self) -> Option<String> {
        let Self::Signed(directory) = self else { return None };
        let checked = directory.current().check(SystemTime::now());
        checked.err().map(|why| format!("this node's certificate is not good: {why}"))
    }

    /// Why one of these signatures is not believed at a time, where this node's is.
    pub(super) fn outlived(&self, at: SystemTime, signatures: &[Signature]) -> Option<Untrusted> {
        let Self::Signed(directory) = self else { return None };
        let trust = directory.current();
        trust.bundle.holds(at, &trust.identity.sign(&[])).ok()?;
        signatures.iter().find_map(|signature| trust.bundle.holds(at, signature).err())
    }

    /// Whose documents are believed; `None`: anybody's.
    pub(super) fn operators(&self) -> Option<Arc<NodeTrust>> {
        match self {
            Self::Signed(directory) => Some(directory.current()),
            Self::Unsigned => None,
        }
    }

    /// Looks whether the certificates were replaced: whether others are used from now on.
    pub(super) fn reload(&self) -> bool {
        let Self::Signed(directory) = self else { return false };
        match directory.reload(SystemTime::now()) {
            Ok(Reload::Unchanged) => return false,
            Ok(Reload::Changed) => tracing::info!("the node's certificates were read again"),
            Err(error) => {
                tracing::warn!(%error, "the node's certificates stay what they were");
                return false;
            }
        }
        true
    }
}

impl Verify for Trust {
    fn signer(&self, signed: &[u8], signature: &[u8]) -> Result<Option<Arc<str>>, Refusal> {
        let Self::Signed(directory) = self else { return Ok(None) };
        let untrusted =
            |reason: Untrusted| Refusal::Untrusted { reason: reason.name(), detail: reason.to_string() };
        if signature.is_empty() {
            return Err(Refusal::Unsigned);
        }
        let signature = Signature::from_bytes(signature).map_err(untrusted)?;
        let by =
            directory.current().bundle.verify(SystemTime::now(), signed, &signature).map_err(untrusted)?;
        Ok(Some(by.node))
    }
}
