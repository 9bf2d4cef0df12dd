//! What a document's limits are about.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use super::super::super::field::Field;
use super::super::super::object::Notes;
use super::super::{GATEWAY_API, ISTIO, ROOT_NAMESPACE, meta};
use crate::model::{LimitTarget, LimitedPods, LimitedRoute, ObjectName};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct TargetSpec {
    #[serde(default)]
    group: String,
    kind: String,
    name: String,
    section_name: Option<String>,
}

/// Pods of the document's namespace, or in the root namespace of all of them, as an AuthorizationPolicy has it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct SelectorSpec {
    #[serde(default)]
    match_labels: BTreeMap<String, String>,
}

/// Which of a pod's requests are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum DirectionSpec {
    Inbound,
    Outbound,
}

/// Everything that a document says of what it is about.
pub(super) struct About<'a> {
    pub refs: &'a [TargetSpec],
    pub selector: Option<&'a SelectorSpec>,
    pub direction: Option<DirectionSpec>,
}

impl About<'_> {
    fn is_inbound(&self) -> bool {
        self.direction == Some(DirectionSpec::Inbound)
    }
}

pub(super) fn targets(about: &About<'_>, document: &ObjectName, notes: &mut Notes<'_>) -> Vec<LimitTarget> {
    let list = Field::spec().key("targetRefs");
    if about.refs.is_empty() && about.selector.is_none() {
        notes.error(&list, "without a target or a selector the limit would be about nothing");
    }
    let mut targets = Vec::with_capacity(about.refs.len() + 1);
    targets.extend(about.selector.map(|selector| {
        let pods = selected(selector, document, notes);
        if about.is_inbound() { LimitTarget::Enters(pods) } else { LimitTarget::SentBy(pods) }
    }));
    for (index, spec) in about.refs.iter().enumerate() {
        let field = list.index(index);
        // As policies of the Gateway API, it is about objects of its own namespace.
        let name = ObjectName::new(&document.namespace, &spec.name);
        let section = spec.section_name.as_deref().map(Arc::from);
        let target = match (spec.group.as_str(), spec.kind.as_str()) {
            ("" | "core", "Service") => {
                if section.is_some() {
                    notes.error(&field.key("sectionName"), "a limit holds for all ports of a Service");
                }
                LimitTarget::Service(name)
            }
            (GATEWAY_API, "Gateway") => LimitTarget::Gateway(name, section),
            (GATEWAY_API, "HTTPRoute") => LimitTarget::Route(LimitedRoute::HttpRoute, name, section),
            (ISTIO, "VirtualService") => LimitTarget::Route(LimitedRoute::VirtualService, name, section),
            ("" | "core", "Node") => {
                if section.is_some() {
                    notes.error(&field.key("sectionName"), "a node has no sections");
                }
                if *document.namespace != *ROOT_NAMESPACE {
                    let text =
                        format!("nodes are everybody's: only a document in {ROOT_NAMESPACE} is about them");
                    notes.error(&field, text);
                }
                let node = (spec.name != "*").then(|| spec.name.as_str().into());
                if about.is_inbound() { LimitTarget::EntersNode(node) } else { LimitTarget::SentFrom(node) }
            }
            (group, kind) => {
                let text = format!(
                    "`{group}` `{kind}` is none of Service and Node (core), Gateway and HTTPRoute ({GATEWAY_API}) and \
                     VirtualService ({ISTIO})"
                );
                notes.error(&field, text);
                continue;
            }
        };
        targets.push(target);
    }
    directed(about.direction, &targets, notes);
    targets
}

fn selected(selector: &SelectorSpec, document: &ObjectName, notes: &mut Notes<'_>) -> LimitedPods {
    for (key, value) in &selector.match_labels {
        if key.contains('*') || value.contains('*') {
            let field = Field::spec().key("selector").key("matchLabels").key(key);
            notes.error(&field, "labels are compared as they are: `*` stands for nothing else");
        }
    }
    let everywhere = *document.namespace == *ROOT_NAMESPACE;
    LimitedPods {
        namespace: (!everywhere).then(|| Arc::clone(&document.namespace)),
        labels: meta::labels(&selector.match_labels),
    }
}

/// Says where a direction is missing, means nothing, or can't be held to.
fn directed(direction: Option<DirectionSpec>, targets: &[LimitTarget], notes: &mut Notes<'_>) {
    let field = Field::spec().key("direction");
    match direction {
        Some(_) if !targets.iter().any(LimitTarget::is_of_pods) => {
            let text = "only what pods or nodes send or get has a direction; a Service, Gateway or route is where requests go";
            notes.error(&field, text);
        }
        // Two agents would count it, where a request goes to the pod of another node.
        Some(DirectionSpec::Inbound) if !targets.iter().all(LimitTarget::is_of_pods) => {
            let text = "what enters pods is counted by their own node, and nothing else of the same document can be: give Services, \
                        Gateways and routes one of their own";
            notes.error(&field, text);
        }
        None if targets.iter().any(LimitTarget::is_of_pods) => {
            let text = "a `selector` or a Node needs it: `Outbound`, what their pods send, or `Inbound`, what enters them";
            notes.error(&field, text);
        }
        Some(DirectionSpec::Inbound | DirectionSpec::Outbound) | None => {}
    }
}

/// Whether clients of Gateways may meet some of them.
pub(super) fn reach_gateways(targets: &[LimitTarget]) -> bool {
    !targets.iter().all(LimitTarget::is_of_pods)
}
