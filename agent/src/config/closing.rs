//! AuthorizationPolicies and PeerAuthentications that can't be read and of which no earlier version is known: who starts an
//! agent with one can't tell whether it was in force before. Fail-closed: nobody gets into the pods that it selects, or no
//! plaintext, until a version can be read.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::kinds::{self, Kind, ObjectMeta, Source};
use super::node::{Entry, Node, Value};
use super::object::{Header, Notes, Object, ObjectId, Rejected};
use super::report::{Code, Message, Severity};

/// Fields beside which a policy is not enforced even where it is valid.
const ELSEWHERE: [&str; 2] = ["targetRef", "targetRefs"];
/// Actions that are not enforced.
const OTHER_ACTIONS: [&str; 2] = ["AUDIT", "CUSTOM"];

/// The policy that stands in for one that can't be read: of the same name, about the same pods (all of its namespace, where
/// not even the selector can be read), and without rules or STRICT.
pub(super) fn stand_in(node: &Node, header: &Header, meta: Option<&ObjectMeta>) -> Option<Arc<Object>> {
    let kind = Kind::find(&header.api_version, &header.id.kind).filter(|kind| is_closing(*kind))?;
    let spec = node.get("spec");
    let of_spec = |key: &str| spec.and_then(|spec| spec.get(key));
    let action = of_spec("action").and_then(Node::as_str);
    if ELSEWHERE.iter().any(|key| of_spec(key).is_some())
        || action.is_some_and(|action| OTHER_ACTIONS.contains(&action))
        || meta.is_some_and(|meta| {
            meta.annotation(kinds::DRY_RUN).is_some_and(|value| value.starts_with(['1', 't', 'T']))
        })
    {
        return None;
    }
    let decoded = [of_spec("selector"), None].into_iter().find_map(|selector| {
        let reduced = reduced(node, selector, kind);
        let mut notes = Notes::new(&reduced);
        let source = Source { node: &reduced, name: &header.id.name, meta: meta? };
        let spec = kinds::decode(kind, &source, &mut notes).ok()?;
        (!notes.failed()).then_some(spec)
    });
    Some(Arc::new(Object {
        header: header.clone(),
        created: meta?.created().into(),
        spec: decoded?,
        messages: Vec::new(),
        not_enforced: Vec::new(),
        node: None,
    }))
}

/// Whether something stands in for objects of a kind.
fn is_closing(kind: Kind) -> bool {
    matches!(kind, Kind::AuthorizationPolicy | Kind::PeerAuthentication)
}

/// The document with a spec that holds its selector alone, and of a PeerAuthentication STRICT.
fn reduced(node: &Node, selector: Option<&Node>, kind: Kind) -> Node {
    let line = node.line;
    let entry = |key: &str, value: Node| Entry { key: key.into(), line: value.line, value };
    let selector = selector.map(|selector| entry("selector", selector.clone()));
    let strict = (kind == Kind::PeerAuthentication).then(|| {
        let mode = entry("mode", Node { line, value: Value::String("STRICT".into()) });
        entry("mtls", Node { line, value: Value::Map(vec![mode]) })
    });
    let spec = Node { line, value: Value::Map(selector.into_iter().chain(strict).collect()) };
    let rest = match &node.value {
        Value::Map(entries) => entries.iter().filter(|entry| &*entry.key != "spec").cloned().collect(),
        _ => Vec::new(),
    };
    Node { line, value: Value::Map(rest.into_iter().chain([entry("spec", spec)]).collect()) }
}

/// What stands in for rejected documents. `known`: whether there is a version of an object in force. `before`: what stood in
/// before; `None`: nothing has been read before.
pub(super) fn stand_ins<'a>(
    rejected: impl Iterator<Item = &'a Rejected>,
    known: impl Fn(&ObjectId) -> bool,
    before: Option<&BTreeMap<ObjectId, Arc<Object>>>,
) -> BTreeMap<ObjectId, Arc<Object>> {
    let stands = |id: &ObjectId| !known(id) && before.is_none_or(|before| before.contains_key(id));
    let rejected = rejected.filter(|rejected| stands(&rejected.header.id));
    rejected.filter_map(|one| Some((one.header.id.clone(), Arc::clone(one.stand_in.as_ref()?)))).collect()
}

/// What the report says of one that something stands in for.
pub(super) fn message(header: &Header) -> Message {
    Message {
        severity: Severity::Error,
        code: Code::SchemaValidationError,
        line: header.line,
        field: String::new(),
        text: format!(
            "no version of it is known that could be read: {} the pods that it selects",
            if &*header.id.kind == "PeerAuthentication" {
                "no plaintext gets into"
            } else {
                "nobody gets into"
            }
        ),
    }
}
