//! Kinds that are accepted and not enforced yet, and Namespace, of which only the labels are used. Their content is
//! checked for the names of its outermost fields.

use super::super::field::Step;
use super::super::node::{DecodeError, Extra, Known, decode};
use super::Source;

/// The outermost field of a kind that is no `spec`.
const ROOT: &[Extra] = &[Extra {
    of: "Unread",
    fields: &[Known::Ignored(&["apiVersion", "kind", "metadata", "spec", "status"])],
}];

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Unread {}

/// The fields of a kind's `spec`; `None`: not checked before the kind is built.
fn spec_fields(kind: &str) -> Option<&'static [&'static str]> {
    Some(match kind {
        "RequestAuthentication" => &["jwtRules", "selector", "targetRef", "targetRefs"],
        "ServiceEntry" => &[
            "addresses",
            "endpoints",
            "exportTo",
            "hosts",
            "location",
            "ports",
            "resolution",
            "subjectAltNames",
            "workloadSelector",
        ],
        "WorkloadEntry" => &["address", "labels", "locality", "network", "ports", "serviceAccount", "weight"],
        "GRPCRoute" => &["hostnames", "parentRefs", "rules", "useDefaultGateways"],
        "TCPRoute" => &["parentRefs", "rules", "useDefaultGateways"],
        "Namespace" => &["finalizers"],
        _ => return None,
    })
}

/// Checks an object of a kind that is not enforced yet.
pub(super) fn check(source: &Source<'_>) -> Result<(), DecodeError> {
    let kind = source.node.get("kind").and_then(|node| node.as_str()).unwrap_or_default();
    decode::<Unread>(source.node, &[ROOT])?;
    check_spec(source, kind)
}

/// Checks a Namespace.
pub(super) fn check_namespace(source: &Source<'_>) -> Result<(), DecodeError> {
    decode::<Unread>(source.node, &[ROOT])?;
    check_spec(source, "Namespace")
}

fn check_spec(source: &Source<'_>, kind: &str) -> Result<(), DecodeError> {
    let (Some(names), Some(spec)) = (spec_fields(kind), source.node.get("spec")) else { return Ok(()) };
    super::super::node::check_names(spec, names).map_err(|mut error| {
        error.field.prepend(Step::Key("spec".to_owned()));
        error
    })
}
