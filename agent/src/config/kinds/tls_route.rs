//! `gateway.networking.k8s.io` TLSRoute: where connections go whose TLS does not end at the Gateway. It is checked into the form of
//! an HTTPRoute with one rule for everything.

use serde::Deserialize;

use super::super::field::Field;
use super::super::node::{DecodeError, Extra, Known};
use super::super::object::Notes;
use super::http_route::{BackendSpec, ParentSpec, backends, hostnames, parents};
use super::{DOCUMENT, HttpRoute, RouteRule, RuleAction, Source, decode_spec};
use crate::model::{PathRewrite, RequestMatch};

const EXTRAS: &[&[Extra]] =
    &[DOCUMENT, &[Extra { of: "TlsRouteSpec", fields: &[Known::Later("useDefaultGateways", &[])] }]];

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct TlsRouteSpec {
    parent_refs: Vec<ParentSpec>,
    hostnames: Vec<String>,
    rules: Vec<TlsRuleSpec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct TlsRuleSpec {
    name: Option<String>,
    backend_refs: Vec<BackendSpec>,
}

/// Decodes a TLSRoute.
pub(super) fn decode(source: &Source<'_>, notes: &mut Notes<'_>) -> Result<HttpRoute, DecodeError> {
    let spec: TlsRouteSpec = decode_spec(source, EXTRAS, notes)?;
    let field = Field::spec();
    let namespace = &*source.name.namespace;
    let list = field.key("rules");
    if spec.rules.len() != 1 {
        notes.error(&list, "one rule is needed: nothing tells several apart");
    }
    let rules = spec.rules.iter().take(1).map(|rule| {
        let field = list.index(0);
        for (index, backend) in rule.backend_refs.iter().enumerate() {
            if backend.has_filters() {
                let field = field.key("backendRefs").index(index).key("filters");
                notes.error(&field, "bytes that are passed on as they are can't be filtered");
            }
        }
        let name = rule.name.as_deref().filter(|name| !name.is_empty()).unwrap_or("rule-0");
        let backends = backends(&rule.backend_refs, (&field, namespace), notes);
        RouteRule {
            name: name.into(),
            matches: vec![RequestMatch::default()],
            action: RuleAction::Forward { backends, rewrite: PathRewrite::default() },
            timeout: None,
            try_timeout: None,
            request_headers: Vec::new(),
            response_headers: Vec::new(),
        }
    });
    let rules = rules.collect();
    let hostnames = hostnames(&spec.hostnames, &field.key("hostnames"), notes);
    Ok(HttpRoute {
        parents: parents(&spec.parent_refs, namespace, &field.key("parentRefs"), notes),
        hostnames,
        rules,
    })
}
