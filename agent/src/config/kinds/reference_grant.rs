//! `gateway.networking.k8s.io` ReferenceGrant: who may refer to objects of its namespace.

use serde::Deserialize;

use super::super::node::{DecodeError, Extra};
use super::super::object::Notes;
use super::{DOCUMENT, Source, decode_spec};

const EXTRAS: &[&[Extra]] = &[DOCUMENT];

/// A checked ReferenceGrant.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReferenceGrant {
    from: Vec<GrantFrom>,
    to: Vec<GrantTo>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct GrantFrom {
    group: String,
    kind: String,
    namespace: String,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct GrantTo {
    group: String,
    kind: String,
    name: Option<String>,
}

impl ReferenceGrant {
    /// Whether objects of a kind of the Gateway API, in a namespace, may refer to a core object of this kind and name in the
    /// grant's own namespace.
    pub fn allows(&self, (kind, namespace): (&str, &str), (to_kind, name): (&str, &str)) -> bool {
        let from = self
            .from
            .iter()
            .any(|from| from.group == super::GATEWAY_API && from.kind == kind && from.namespace == namespace);
        let to = self.to.iter().any(|to| {
            let named = to.name.as_deref().filter(|name| !name.is_empty());
            matches!(to.group.as_str(), "" | "core")
                && to.kind == to_kind
                && named.is_none_or(|named| named == name)
        });
        from && to
    }
}

/// Decodes a ReferenceGrant.
pub(super) fn decode(source: &Source<'_>, notes: &mut Notes<'_>) -> Result<ReferenceGrant, DecodeError> {
    decode_spec(source, EXTRAS, notes)
}
