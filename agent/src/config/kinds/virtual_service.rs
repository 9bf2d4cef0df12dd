//! `networking.istio.io` VirtualService.

mod action;
mod matching;
mod schema;

use crate::model::{HostPattern, HttpRule, ObjectName};

use self::schema::{EXTRAS, HttpRoute, VirtualServiceSpec};
use super::super::field::Field;
use super::super::node::DecodeError;
use super::super::object::Notes;
use super::super::report::Code;
use super::{Source, decode_spec, duration, host_pattern, service_of_host};

/// The gateway name that means the mesh itself.
const MESH: &str = "mesh";

/// A checked VirtualService.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct VirtualService {
    /// Whether it is for traffic within the mesh; one that is only for Gateways is not enforced yet.
    pub mesh: bool,
    /// The hosts, in written order.
    pub hosts: Vec<MeshHost>,
    /// The rules in order, each with the position in `spec.http` that it comes from: a rule whose alternatives need
    /// different rewrites is several here. Destinations are named, not yet looked up.
    pub rules: Vec<(usize, HttpRule)>,
}

/// A host of a VirtualService.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct MeshHost {
    /// The service that it names, if there is one of this name.
    pub service: Option<ObjectName>,
    /// The name or wildcard as written.
    pub pattern: HostPattern,
}

/// Decodes a VirtualService.
pub(super) fn decode(source: &Source<'_>, notes: &mut Notes<'_>) -> Result<VirtualService, DecodeError> {
    let spec: VirtualServiceSpec = decode_spec(source, EXTRAS, notes)?;
    let field = Field::spec();
    let mesh = mesh_of(&spec, &field, notes);
    let hosts = hosts(&spec, source.name, &field.key("hosts"), notes);
    let mut rules = Vec::new();
    for (position, rule) in spec.http.iter().enumerate() {
        let context = RuleContext {
            position,
            field: field.key("http").index(position),
            namespace: &source.name.namespace,
        };
        rules.extend(rule_of(rule, &context, notes).into_iter().map(|rule| (position, rule)));
    }
    if spec.http.is_empty() && notes.not_enforced.is_empty() {
        notes.error(&field, "there are no rules: `http` is empty");
    }
    Ok(VirtualService { mesh, hosts, rules })
}

/// Where a rule stands.
struct RuleContext<'a> {
    position: usize,
    field: Field,
    namespace: &'a str,
}

fn mesh_of(spec: &VirtualServiceSpec, field: &Field, notes: &mut Notes<'_>) -> bool {
    if spec.gateways.is_empty() {
        return true;
    }
    for (index, gateway) in spec.gateways.iter().enumerate() {
        if gateway != MESH {
            notes.later(&field.key("gateways").index(index));
        }
    }
    spec.gateways.iter().any(|gateway| gateway == MESH)
}

fn hosts(
    spec: &VirtualServiceSpec,
    name: &ObjectName,
    field: &Field,
    notes: &mut Notes<'_>,
) -> Vec<MeshHost> {
    if spec.hosts.is_empty() {
        // A delegate's rules belong to the VirtualService that refers to it.
        notes.later(field);
    }
    let mut hosts: Vec<MeshHost> = Vec::new();
    for (index, host) in spec.hosts.iter().enumerate() {
        let Some(pattern) = host_pattern(host) else {
            notes.error(&field.index(index), format!("`{host}` is no host name or wildcard"));
            continue;
        };
        if hosts.iter().any(|before| before.pattern == pattern) {
            notes.error(&field.index(index), format!("the host `{host}` is given twice"));
            continue;
        }
        hosts.push(MeshHost { service: service_of_host(host, &name.namespace), pattern });
    }
    hosts
}

fn rule_of(rule: &HttpRoute, context: &RuleContext<'_>, notes: &mut Notes<'_>) -> Vec<HttpRule> {
    let field = &context.field;
    let name = match rule.name.as_deref() {
        None | Some("") => format!("rule-{}", context.position),
        Some(name) => name.to_owned(),
    };
    let timeout = rule.timeout.as_deref().and_then(|text| {
        let timeout = duration::istio(text);
        if timeout.is_none() {
            notes.error(&field.key("timeout"), format!("`{text}` is no duration such as `10s` or `250ms`"));
        }
        timeout
    });
    let headers = action::header_changes(rule.headers.as_ref(), &field.key("headers"), notes);
    let matches = matching::matches(&rule.matches, &field.key("match"), notes);
    let Some(actions) = action::actions(rule, &headers, matches, context, notes) else { return Vec::new() };
    let rules = actions.into_iter().map(|(matches, action)| HttpRule {
        name: name.as_str().into(),
        matches,
        action,
        timeout,
        try_timeout: None,
        request_headers: headers.request.clone(),
        response_headers: headers.response.clone(),
    });
    rules.collect()
}

/// Notes that a field is accepted without effect.
fn without_effect(field: &Field, why: &str, notes: &mut Notes<'_>) {
    notes.warning(Code::Ignored, field, why.to_owned());
}
