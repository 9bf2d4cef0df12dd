//! One object of a file: what it is called, where it stands, and its checked content.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::closing;
use super::field::Field;
use super::kinds::{self, Spec};
use super::node::{DecodeError, Node};
use super::report::{Code, Message, Severity};
use crate::model::ObjectName;

/// What identifies an object: two documents with one id are two versions of the same thing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ObjectId {
    /// The API group; empty for the core group.
    pub group: Arc<str>,
    /// The kind.
    pub kind: Arc<str>,
    /// Namespace and name; the namespace is empty for kinds without one.
    pub name: ObjectName,
}

/// What is known of an object before its content is read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Header {
    /// Group, kind and name.
    pub id: ObjectId,
    /// The API version as written.
    pub api_version: Arc<str>,
    /// The file.
    pub file: Arc<str>,
    /// The line where the object begins.
    pub line: u32,
}

/// A valid object.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Object {
    /// What and where it is.
    pub header: Header,
    /// Its `creationTimestamp` as written (RFC 3339 in UTC, so text order is time order); empty where there is none.
    pub created: Arc<str>,
    /// Its content.
    pub spec: Spec,
    /// Warnings and notes on it.
    pub messages: Vec<Message>,
    /// Fields that are not enforced yet.
    pub not_enforced: Vec<String>,
    /// The tree it was read from, kept for kinds whose references are checked later, to find the lines.
    pub node: Option<Arc<Node>>,
}

/// An object that is refused.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rejected {
    /// What and where it is, as far as that can be told.
    pub header: Header,
    /// Why.
    pub messages: Vec<Message>,
    /// What stands in for it where no version of it is known.
    pub stand_in: Option<Arc<Object>>,
}

impl Object {
    /// The line of a field.
    pub fn line_at(&self, field: &Field) -> u32 {
        self.node.as_ref().map_or(self.header.line, |node| node.line_at(field))
    }

    /// A message on a field of this object.
    pub fn message(&self, severity: Severity, code: Code, field: &Field, text: String) -> Message {
        Message { severity, code, line: self.line_at(field), field: field.to_string(), text }
    }

    /// Namespace and name.
    pub fn name(&self) -> &ObjectName {
        &self.header.id.name
    }
}

/// Collects what there is to say about an object while it is read.
#[derive(Debug)]
pub(crate) struct Notes<'a> {
    node: &'a Node,
    /// The messages so far.
    pub messages: Vec<Message>,
    /// Fields that are not enforced yet.
    pub not_enforced: Vec<String>,
}

impl<'a> Notes<'a> {
    /// Notes on an object.
    pub fn new(node: &'a Node) -> Self {
        Self { node, messages: Vec::new(), not_enforced: Vec::new() }
    }

    /// Refuses the object.
    pub fn error(&mut self, field: &Field, text: impl Into<String>) {
        self.push(Severity::Error, Code::SchemaValidationError, field, text.into());
    }

    /// Says that a field does not do what one would think.
    pub fn warning(&mut self, code: Code, field: &Field, text: impl Into<String>) {
        self.push(Severity::Warning, code, field, text.into());
    }

    /// Says something worth knowing.
    pub fn info(&mut self, code: Code, field: &Field, text: impl Into<String>) {
        self.push(Severity::Info, code, field, text.into());
    }

    /// Lists a field as not enforced yet.
    pub fn later(&mut self, field: &Field) {
        let path = field.to_string();
        if !self.not_enforced.contains(&path) {
            self.not_enforced.push(path);
        }
    }

    /// Whether the object is refused.
    pub fn failed(&self) -> bool {
        self.messages.iter().any(|message| message.severity == Severity::Error)
    }

    fn push(&mut self, severity: Severity, code: Code, field: &Field, text: String) {
        let line = self.node.line_at(field);
        self.messages.push(Message { severity, code, line, field: field.to_string(), text });
    }

    fn decode_error(&mut self, error: DecodeError) {
        self.messages.push(Message {
            severity: Severity::Error,
            code: Code::SchemaValidationError,
            line: if error.line == 0 { self.node.line } else { error.line },
            field: error.field.to_string(),
            text: error.text,
        });
    }
}

/// Reads one document, or the items of a `kind: List`, in written order. The kinds of objects that are no business of ours
/// go to `elsewhere`.
pub(crate) fn read_objects(
    file: &Arc<str>,
    node: Node,
    elsewhere: &mut BTreeSet<String>,
) -> Vec<Result<Object, Box<Rejected>>> {
    let api_version = node.get("apiVersion").and_then(Node::as_str).unwrap_or_default();
    let kind = node.get("kind").and_then(Node::as_str).unwrap_or_default();
    // Typed lists (`PodList`) come from the API server itself; both forms hold whole objects.
    let is_list = api_version == "v1" && kind.ends_with("List") || kinds::is_list(api_version, kind);
    match list_items(is_list, &node) {
        Some(items) => items.iter().flat_map(|item| read_objects(file, item.clone(), elsewhere)).collect(),
        None if kinds::is_elsewhere(api_version, kind) && !kinds::has_roots(&node) => {
            elsewhere.insert(kind.to_owned());
            Vec::new()
        }
        None => vec![read_object(file, node)],
    }
}

fn list_items(is_list: bool, node: &Node) -> Option<&[Node]> {
    match &node.get("items")?.value {
        super::node::Value::Seq(items) if is_list => Some(items),
        _ => None,
    }
}

fn read_object(file: &Arc<str>, node: Node) -> Result<Object, Box<Rejected>> {
    let mut notes = Notes::new(&node);
    let (header, meta) = read_header(file, &node, &mut notes);
    if let Some((field, line)) = node.duplicate() {
        notes.messages.push(Message {
            severity: Severity::Error,
            code: Code::SchemaValidationError,
            line,
            field: field.to_string(),
            text: "the key is given twice".to_owned(),
        });
    }
    let known = kinds::Kind::find(&header.api_version, &header.id.kind);
    if known.is_none() {
        unknown_kind(&header, &mut notes);
    }
    let mut decoded = None;
    if let (Some(kind), false, Some(meta)) = (known, notes.failed(), &meta) {
        match kinds::decode(kind, &kinds::Source { node: &node, name: &header.id.name, meta }, &mut notes) {
            Ok(spec) => decoded = Some((kind, spec)),
            Err(error) => notes.decode_error(error),
        }
    }
    let failed = notes.failed();
    let Notes { messages, not_enforced, .. } = notes;
    match decoded {
        Some((kind, spec)) if !failed => {
            let created = meta.map_or_else(|| "".into(), |meta| meta.created().into());
            let node = kind.keeps_lines().then(|| Arc::new(node));
            Ok(Object { header, created, spec, messages, not_enforced, node })
        }
        _ => {
            let stand_in = closing::stand_in(&node, &header, meta.as_ref());
            Err(Box::new(Rejected { header, messages, stand_in }))
        }
    }
}

fn unknown_kind(header: &Header, notes: &mut Notes<'_>) {
    let field = Field::root().key(if header.id.kind.is_empty() { "kind" } else { "apiVersion" });
    let text = match (&*header.api_version, &*header.id.kind) {
        ("", "") => "no Kubernetes object: apiVersion and kind are missing".to_owned(),
        ("", kind) => format!("the apiVersion of {kind} is missing or no string"),
        (_, "") => "the kind is missing or no string".to_owned(),
        (version, kind) => match kinds::versions_of(kind) {
            versions if versions.is_empty() => format!("the kind {kind} of {version} is not known"),
            versions => format!("{kind} is not known in {version}; known: {}", versions.join(", ")),
        },
    };
    notes.push(Severity::Error, Code::UnknownKind, &field, text);
}

fn read_header(file: &Arc<str>, node: &Node, notes: &mut Notes<'_>) -> (Header, Option<kinds::ObjectMeta>) {
    let text = |key: &str| node.get(key).and_then(Node::as_str).unwrap_or_default();
    let api_version: Arc<str> = text("apiVersion").into();
    let kind: Arc<str> = text("kind").into();
    let group: Arc<str> = api_version.split_once('/').map_or("", |(group, _)| group).into();
    let (meta, name) = match kinds::read_meta(node) {
        Ok(meta) => {
            let name = kinds::object_name(&kind, &meta, notes);
            (Some(meta), name)
        }
        Err(error) => {
            notes.decode_error(error);
            (None, kinds::written_name(&kind, node))
        }
    };
    let header =
        Header { id: ObjectId { group, kind, name }, api_version, file: Arc::clone(file), line: node.line };
    (header, meta)
}
