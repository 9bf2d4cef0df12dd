//! AuthorizationPolicies, PeerAuthentications, BackendTLSPolicies, and DestinationRules about TLS that can't be read and of which no
//! earlier version is known: who starts an agent with one can't tell whether it was in force before. Fail-closed: nobody gets into
//! the pods that it selects, or no plaintext; or nothing is sent to its host but by the mesh's mutual TLS, or nothing to its targets,
//! until a version can be read.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::kinds::{self, Kind, ObjectMeta, Source, Spec};
use super::node::{Entry, Node, Value};
use super::object::{Header, Notes, Object, ObjectId, Rejected};
use super::report::{Code, Message, Severity};

/// Fields beside which a policy is not enforced even where it is valid.
const ELSEWHERE: [&str; 2] = ["targetRef", "targetRefs"];
/// The field that says which pods a policy is about.
const SELECTOR: &str = "selector";
/// The fields of a target.
const TARGET: [&str; 4] = ["group", "kind", "name", "sectionName"];
/// Actions that are not enforced.
const OTHER_ACTIONS: [&str; 2] = ["AUDIT", "CUSTOM"];

/// The policy that stands in for one that can't be read: of the same name, about the same pods (all of its namespace, where
/// not even the selector can be read), and without rules or STRICT; for a DestinationRule one of the same host with ISTIO_MUTUAL, for
/// a BackendTLSPolicy one of the same targets that believes nobody.
pub(super) fn stand_in(node: &Node, header: &Header, meta: Option<&ObjectMeta>) -> Option<Arc<Object>> {
    let spec = node.get("spec");
    let kind = Kind::find(&header.api_version, &header.id.kind).filter(|kind| is_closing(*kind, spec))?;
    let of_spec = |key: &str| spec.and_then(|spec| spec.get(key));
    let action = of_spec("action").and_then(Node::as_str);
    if kept(kind) == SELECTOR && ELSEWHERE.iter().any(|key| of_spec(key).is_some())
        || action.is_some_and(|action| OTHER_ACTIONS.contains(&action))
        || meta.is_some_and(|meta| {
            meta.annotation(kinds::DRY_RUN).is_some_and(|value| value.starts_with(['1', 't', 'T']))
        })
    {
        return None;
    }
    let selector = match kind {
        Kind::BackendTlsPolicy => Some(readable_targets(of_spec(kept(kind))?)),
        _ => of_spec(kept(kind)).cloned(),
    };
    let decoded = [selector.as_ref(), None].into_iter().find_map(|selector| {
        let reduced = reduced(node, selector, kind);
        let mut notes = Notes::new(&reduced);
        let source = Source { node: &reduced, name: &header.id.name, meta: meta? };
        let mut spec = kinds::decode(kind, &source, &mut notes).ok()?;
        if let Spec::BackendTlsPolicy(policy) = &mut spec {
            policy.bundles = Some(Vec::new());
        }
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

/// Whether something stands in for objects of a kind, with that spec.
fn is_closing(kind: Kind, spec: Option<&Node>) -> bool {
    match kind {
        Kind::AuthorizationPolicy | Kind::PeerAuthentication | Kind::BackendTlsPolicy => true,
        Kind::DestinationRule => spec.is_some_and(asks_for_tls),
        _ => false,
    }
}

/// Those of a list of targets that are Services, without what can't be read of them.
fn readable_targets(list: &Node) -> Node {
    let Value::Seq(items) = &list.value else { return list.clone() };
    let text = |item: &Node, key: &str| item.get(key).and_then(Node::as_str).map(str::to_owned);
    let is_service = |item: &&Node| {
        text(item, "kind").is_some_and(|kind| kind == "Service")
            && text(item, "group").is_some_and(|group| ["", "core"].contains(&group.as_str()))
            && text(item, "name").is_some()
    };
    let cut = |item: &Node| {
        let Value::Map(entries) = &item.value else { return item.clone() };
        let known = |entry: &&Entry| TARGET.contains(&&*entry.key) && entry.value.as_str().is_some();
        Node { line: item.line, value: Value::Map(entries.iter().filter(known).cloned().collect()) }
    };
    Node { line: list.line, value: Value::Seq(items.iter().filter(is_service).map(cut).collect()) }
}

/// Whether something in it is called `tls`, and does not say `DISABLE`.
fn asks_for_tls(node: &Node) -> bool {
    let says = |tls: &Node| tls.get("mode").and_then(Node::as_str) != Some("DISABLE");
    match &node.value {
        Value::Map(entries) => entries
            .iter()
            .any(|entry| if &*entry.key == "tls" { says(&entry.value) } else { asks_for_tls(&entry.value) }),
        Value::Seq(items) => items.iter().any(asks_for_tls),
        _ => false,
    }
}

/// The field of the spec that says what a document is about.
fn kept(kind: Kind) -> &'static str {
    match kind {
        Kind::DestinationRule => "host",
        Kind::BackendTlsPolicy => "targetRefs",
        _ => SELECTOR,
    }
}

/// The document with a spec that holds that field alone, and of a PeerAuthentication STRICT, of a DestinationRule ISTIO_MUTUAL, of a
/// BackendTLSPolicy the least that it needs.
fn reduced(node: &Node, selector: Option<&Node>, kind: Kind) -> Node {
    let line = node.line;
    let entry = |key: &str, value: Node| Entry { key: key.into(), line: value.line, value };
    let map = |key: &str, value: Node| Node { line, value: Value::Map(vec![entry(key, value)]) };
    let string = |text: &str| Node { line, value: Value::String(text.into()) };
    let mode = |mode: &str| map("mode", string(mode));
    let validation =
        vec![entry("hostname", string("none.invalid")), entry("wellKnownCACertificates", string("System"))];
    let closed = match kind {
        Kind::PeerAuthentication => Some(entry("mtls", mode("STRICT"))),
        Kind::DestinationRule => Some(entry("trafficPolicy", map("tls", mode("ISTIO_MUTUAL")))),
        Kind::BackendTlsPolicy => Some(entry("validation", Node { line, value: Value::Map(validation) })),
        _ => None,
    };
    let selector = selector.map(|selector| entry(kept(kind), selector.clone()));
    let spec = Node { line, value: Value::Map(selector.into_iter().chain(closed).collect()) };
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
            "no version of it is known that could be read: {}",
            match &*header.id.kind {
                "PeerAuthentication" => "no plaintext gets into the pods that it selects",
                "DestinationRule" => "nothing is sent to its host but by the mesh's mutual TLS",
                "BackendTLSPolicy" => "Gateways send nothing to its targets",
                _ => "nobody gets into the pods that it selects",
            }
        ),
    }
}
