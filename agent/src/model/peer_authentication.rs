//! Which pods take plaintext: PeerAuthentication.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Labels, ObjectName, PolicyScope};

/// Whether a pod takes connections of which nobody has proven who makes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MtlsMode {
    /// It takes both.
    Permissive,
    /// It takes mutual TLS alone.
    Strict,
    /// It need not take mutual TLS. As in Istio's ambient mesh tunnels are ended all the same: it takes both.
    Disable,
}

impl MtlsMode {
    /// The mode as documents have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Permissive => "PERMISSIVE",
            Self::Strict => "STRICT",
            Self::Disable => "DISABLE",
        }
    }
}

/// A checked PeerAuthentication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAuthentication {
    /// The document.
    pub name: ObjectName,
    /// When it was created, as RFC 3339 has it; empty where that is not known. Of equals the oldest wins.
    pub created: Arc<str>,
    /// Where the pods are that it is about.
    pub scope: PolicyScope,
    /// Labels that the pods have; empty: all pods of the scope.
    pub selector: Labels,
    /// What holds for the pods' ports; `None`: what the next wider one says.
    pub mode: Option<MtlsMode>,
    /// What holds for single ports of the pods; `None`: what holds for the others.
    pub ports: BTreeMap<u16, Option<MtlsMode>>,
}

/// How narrow a PeerAuthentication is; the narrower of two wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PeerLevel {
    /// About all pods.
    Mesh,
    /// About those of a namespace.
    Namespace,
    /// About those with labels.
    Workload,
}

impl PeerAuthentication {
    /// How narrow it is.
    pub fn level(&self) -> PeerLevel {
        match self.scope {
            _ if !self.selector.is_empty() => PeerLevel::Workload,
            PolicyScope::Mesh => PeerLevel::Mesh,
            PolicyScope::Namespace => PeerLevel::Namespace,
        }
    }

    /// Whether it is about a pod of this namespace with these labels. In the root namespace labels choose nothing, as in Istio:
    /// it is about all pods there or about none.
    pub fn selects(&self, namespace: &str, labels: &Labels) -> bool {
        let within = match self.scope {
            PolicyScope::Mesh => self.selector.is_empty(),
            PolicyScope::Namespace => *self.name.namespace == *namespace,
        };
        within && self.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}
