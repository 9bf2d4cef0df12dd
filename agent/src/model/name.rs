//! The name of a namespaced object.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// `namespace/name` of a document; cheap to clone, ordered by namespace and then by name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "(Arc<str>, Arc<str>)", into = "(Arc<str>, Arc<str>)")]
pub struct ObjectName {
    /// The namespace; `default` where the document gives none.
    pub namespace: Arc<str>,
    /// The name within the namespace.
    pub name: Arc<str>,
}

impl ObjectName {
    /// Names an object.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The DNS name of a service of this name: `name.namespace.svc.cluster.local`.
    pub fn fqdn(&self) -> String {
        format!("{}.{}.svc.cluster.local", self.name, self.namespace)
    }
}

impl From<(Arc<str>, Arc<str>)> for ObjectName {
    fn from((namespace, name): (Arc<str>, Arc<str>)) -> Self {
        Self { namespace, name }
    }
}

impl From<ObjectName> for (Arc<str>, Arc<str>) {
    fn from(name: ObjectName) -> Self {
        (name.namespace, name.name)
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
