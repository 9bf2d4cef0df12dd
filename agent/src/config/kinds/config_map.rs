//! Core ConfigMap, where it holds CA certificates: `ca.crt`.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use super::super::field::Field;
use super::super::node::{DecodeError, Decoded, Extra, Known, Node, decode as decode_node};
use super::super::object::Notes;
use super::Source;
use crate::identity::edge_clients;

const EXTRAS: &[&[Extra]] = &[&[Extra {
    of: "ConfigMapDocument",
    fields: &[Known::Ignored(&["apiVersion", "kind", "metadata", "immutable", "binaryData"])],
}]];
/// The key of the certificates.
const ROOTS: &str = "ca.crt";

/// A checked ConfigMap.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ConfigMap {
    /// The certificates, in PEM.
    pub roots: Arc<str>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigMapDocument {
    data: BTreeMap<String, String>,
}

/// Whether a ConfigMap holds CA certificates; others say nothing about traffic.
pub(crate) fn has_roots(node: &Node) -> bool {
    let kind = node.get("kind").and_then(Node::as_str);
    kind == Some("ConfigMap") && node.get("data").is_some_and(|data| data.get(ROOTS).is_some())
}

/// Decodes a ConfigMap.
pub(super) fn decode(source: &Source<'_>, notes: &mut Notes<'_>) -> Result<ConfigMap, DecodeError> {
    let Decoded { value: document, .. } = decode_node::<ConfigMapDocument>(source.node, EXTRAS)?;
    let roots: Arc<str> = document.data.get(ROOTS).map_or("", String::as_str).into();
    if let Err(problem) = edge_clients::check_roots(&roots) {
        notes.error(&Field::root().key("data").key(ROOTS), format!("{ROOTS}: {problem}"));
    }
    Ok(ConfigMap { roots })
}
