//! `metadata`, which all objects have.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::super::field::Field;
use super::super::node::{DecodeError, Extra, Known, Node, decode};
use super::super::object::Notes;
use super::{is_cluster_scoped, name::is_object_name};
use crate::model::{Labels, ObjectName};

const EXTRAS: &[&[Extra]] = &[&[
    Extra {
        of: "ObjectMeta",
        fields: &[Known::Ignored(&[
            "clusterName",
            "deletionGracePeriodSeconds",
            "finalizers",
            "generateName",
            "generation",
            "managedFields",
            "resourceVersion",
            "selfLink",
        ])],
    },
    Extra { of: "OwnerReference", fields: &[Known::Ignored(&["apiVersion", "blockOwnerDeletion", "uid"])] },
]];

/// What is used of an object's metadata.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(crate) struct ObjectMeta {
    name: Option<String>,
    namespace: Option<String>,
    /// The object's uid.
    pub uid: Option<String>,
    creation_timestamp: Option<String>,
    deletion_timestamp: Option<String>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    /// The object's owners.
    pub owner_references: Vec<OwnerReference>,
}

/// An owner of an object.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(crate) struct OwnerReference {
    /// The owner's kind.
    pub kind: String,
    /// The owner's name.
    pub name: String,
    /// Whether the owner manages the object.
    pub controller: Option<bool>,
}

impl ObjectMeta {
    /// When the object was created, as written; empty where it is not said.
    pub fn created(&self) -> &str {
        self.creation_timestamp.as_deref().unwrap_or_default()
    }

    /// Whether the object is being deleted.
    pub fn is_deleted(&self) -> bool {
        self.deletion_timestamp.is_some()
    }

    /// An annotation's value.
    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.get(name).map(String::as_str)
    }

    /// The labels.
    pub fn labels(&self) -> Labels {
        labels(&self.labels)
    }
}

/// Labels as the model has them.
pub(crate) fn labels(written: &BTreeMap<String, String>) -> Labels {
    written.iter().map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect()
}

/// Reads the metadata of an object.
pub(crate) fn read_meta(node: &Node) -> Result<ObjectMeta, DecodeError> {
    let Some(meta) = node.get("metadata") else { return Ok(ObjectMeta::default()) };
    decode::<ObjectMeta>(meta, EXTRAS).map(|decoded| decoded.value).map_err(|mut error| {
        error.field.prepend(super::super::field::Step::Key("metadata".to_owned()));
        error
    })
}

/// Names an object, and notes what is wrong with the name.
pub(crate) fn object_name(kind: &str, meta: &ObjectMeta, notes: &mut Notes<'_>) -> ObjectName {
    let field = Field::root().key("metadata");
    let name = meta.name.as_deref().unwrap_or_default();
    if name.is_empty() {
        notes.error(&field.key("name"), "the object has no name");
    } else if !is_object_name(name) {
        notes.error(
            &field.key("name"),
            format!("`{name}` is no name: lower-case letters, digits, `-` and `.`"),
        );
    }
    let namespace = namespace_of(kind, meta.namespace.as_deref());
    if !namespace.is_empty() && !is_object_name(namespace) {
        notes.error(&field.key("namespace"), format!("`{namespace}` is no namespace"));
    }
    ObjectName::new(namespace, name)
}

/// The name of an object whose metadata is not valid, as far as it can be told.
pub(crate) fn written_name(kind: &str, node: &Node) -> ObjectName {
    let text = |key: &str| node.get("metadata").and_then(|meta| meta.get(key)).and_then(Node::as_str);
    ObjectName::new(namespace_of(kind, text("namespace")), text("name").unwrap_or_default())
}

fn namespace_of<'a>(kind: &str, written: Option<&'a str>) -> &'a str {
    match written {
        _ if is_cluster_scoped(kind) => "",
        None | Some("") => "default",
        Some(namespace) => namespace,
    }
}
