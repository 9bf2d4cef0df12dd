//! `gateway.networking.k8s.io` HTTPRoute.

mod filter;
mod matching;
mod schema;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use self::filter::Filters;
pub(super) use self::schema::{BackendSpec, ParentSpec};
use self::schema::{EXTRAS, HttpRouteSpec, RuleSpec};
use super::super::field::Field;
use super::super::node::DecodeError;
use super::super::object::Notes;
use super::{GATEWAY_API, Source, decode_spec, duration, host_pattern};
use crate::model::{HeaderOp, HostPattern, ObjectName, PathRewrite, Redirect, RequestMatch};

/// Rules of one route and alternatives of one rule, as the API limits them.
const RULES_MAX: usize = 128;

/// The largest weight of the API.
const WEIGHT_MAX: u32 = 1_000_000;

/// A checked HTTPRoute; references are named, not yet looked up.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HttpRoute {
    /// What it attaches to.
    pub parents: Vec<Parent>,
    /// The hosts it is for; empty: all of its parents'.
    pub hostnames: Vec<HostPattern>,
    /// The rules in written order.
    pub rules: Vec<RouteRule>,
}

/// What a route attaches to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Parent {
    /// Group and kind as written, with their defaults.
    pub kind: ParentKind,
    /// The parent.
    pub name: ObjectName,
    /// A listener of it.
    pub section: Option<Arc<str>>,
    /// A port of it.
    pub port: Option<u16>,
}

/// Kinds of parents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ParentKind {
    Gateway,
    Service,
    Other,
}

/// A rule.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RouteRule {
    /// Its name.
    pub name: Arc<str>,
    /// Alternatives; never empty.
    pub matches: Vec<RequestMatch>,
    /// What is done.
    pub action: RuleAction,
    /// The request's time.
    pub timeout: Option<Duration>,
    /// One try's time.
    pub try_timeout: Option<Duration>,
    /// Changes of the request.
    pub request_headers: Vec<HeaderOp>,
    /// Changes of the response.
    pub response_headers: Vec<HeaderOp>,
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum RuleAction {
    /// Answers with a redirect.
    Redirect(Redirect),
    /// Sends the request on.
    Forward { backends: Vec<BackendRef>, rewrite: PathRewrite },
}

/// A backend.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct BackendRef {
    /// Whether it is a Service, the one kind of backend there is.
    pub is_service: bool,
    /// Its name.
    pub name: ObjectName,
    /// Its port.
    pub port: Option<u16>,
    /// Its weight.
    pub weight: u32,
    /// Changes of the request on this share alone.
    pub request_headers: Vec<HeaderOp>,
    /// Changes of the response on this share alone.
    pub response_headers: Vec<HeaderOp>,
}

/// Decodes an HTTPRoute.
pub(super) fn decode(source: &Source<'_>, notes: &mut Notes<'_>) -> Result<HttpRoute, DecodeError> {
    let spec: HttpRouteSpec = decode_spec(source, EXTRAS, notes)?;
    let field = Field::spec();
    let namespace = &source.name.namespace;
    let hostnames = hostnames(&spec.hostnames, &field.key("hostnames"), notes);
    let list = field.key("rules");
    if spec.rules.len() > RULES_MAX {
        notes.error(&list, format!("more than {RULES_MAX} rules"));
    }
    let default_rule = [RuleSpec::default()];
    let written = if spec.rules.is_empty() { &default_rule[..] } else { &spec.rules[..] };
    let rules = written.iter().enumerate().map(|(position, rule)| {
        let context = RuleContext { position, field: list.index(position), namespace };
        rule_of(rule, &context, notes)
    });
    let rules = rules.collect();
    Ok(HttpRoute {
        parents: parents(&spec.parent_refs, namespace, &field.key("parentRefs"), notes),
        hostnames,
        rules,
    })
}

/// The hosts that a route names.
pub(super) fn hostnames(written: &[String], field: &Field, notes: &mut Notes<'_>) -> Vec<HostPattern> {
    let mut hostnames = Vec::new();
    for (index, host) in written.iter().enumerate() {
        let is_address = host.parse::<IpAddr>().is_ok();
        match host_pattern(host) {
            Some(pattern) if pattern != HostPattern::Any && !is_address => hostnames.push(pattern),
            _ => notes.error(&field.index(index), format!("`{host}` is no host name or wildcard")),
        }
    }
    hostnames
}

/// Where a rule stands.
struct RuleContext<'a> {
    position: usize,
    field: Field,
    namespace: &'a str,
}

/// What a route attaches to.
pub(super) fn parents(
    written: &[ParentSpec],
    namespace: &str,
    field: &Field,
    notes: &mut Notes<'_>,
) -> Vec<Parent> {
    let mut parents = Vec::with_capacity(written.len());
    for (index, parent) in written.iter().enumerate() {
        let kind = match (
            parent.group.as_deref().unwrap_or(GATEWAY_API),
            parent.kind.as_deref().unwrap_or("Gateway"),
        ) {
            (GATEWAY_API, "Gateway") => ParentKind::Gateway,
            ("" | "core", "Service") => ParentKind::Service,
            _ => ParentKind::Other,
        };
        let parent = Parent {
            kind,
            name: ObjectName::new(parent.namespace.as_deref().unwrap_or(namespace), &parent.name),
            section: parent.section_name.as_deref().filter(|name| !name.is_empty()).map(Into::into),
            port: parent.port,
        };
        if parents.contains(&parent) {
            notes.error(&field.index(index), "the parent is given twice");
        }
        parents.push(parent);
    }
    parents
}

fn rule_of(rule: &RuleSpec, context: &RuleContext<'_>, notes: &mut Notes<'_>) -> RouteRule {
    let field = &context.field;
    let name = rule.name.as_deref().filter(|name| !name.is_empty());
    let matches = matching::matches(&rule.matches, &field.key("matches"), notes);
    let filters = Filters::read(&rule.filters, &field.key("filters"), notes);
    filters.check_prefix(&matches, &field.key("filters"), notes);
    let backends = backends(&rule.backend_refs, (field, context.namespace), notes);
    let timeouts = &rule.timeouts;
    let mut timeout = |name: &str, text: &Option<String>| {
        let text = text.as_deref()?;
        let timeout = duration::gateway(text);
        if timeout.is_none() {
            notes.error(
                &field.key("timeouts").key(name),
                format!("`{text}` is no duration such as `10s` or `1m30s`"),
            );
        }
        timeout
    };
    let request = timeout("request", &timeouts.request);
    let try_timeout = timeout("backendRequest", &timeouts.backend_request);
    if let (Some(request), Some(one)) = (request, try_timeout)
        && one > request
        && !request.is_zero()
    {
        notes.error(&field.key("timeouts").key("backendRequest"), "longer than the request's own timeout");
    }
    if filters.redirect.is_some() && !backends.is_empty() {
        notes.error(&field.key("backendRefs"), "a rule that redirects has no backends");
    }
    RouteRule {
        name: name.map_or_else(|| format!("rule-{}", context.position).into(), Into::into),
        matches,
        action: match filters.redirect {
            Some(redirect) => RuleAction::Redirect(redirect),
            None => RuleAction::Forward { backends, rewrite: filters.rewrite },
        },
        timeout: request,
        try_timeout,
        request_headers: filters.request_headers,
        response_headers: filters.response_headers,
    }
}

/// The backends of the rule at `field` of a route in `namespace`.
pub(super) fn backends(
    written: &[BackendSpec],
    (field, namespace): (&Field, &str),
    notes: &mut Notes<'_>,
) -> Vec<BackendRef> {
    let list = field.key("backendRefs");
    let mut backends = Vec::with_capacity(written.len());
    for (index, backend) in written.iter().enumerate() {
        let field = list.index(index);
        let weight = backend.weight.unwrap_or(1);
        if weight > WEIGHT_MAX {
            notes.error(&field.key("weight"), format!("{weight} is more than {WEIGHT_MAX}"));
        }
        let is_service = matches!(backend.group.as_deref().unwrap_or(""), "" | "core")
            && backend.kind.as_deref().unwrap_or("Service") == "Service";
        if is_service && backend.port.is_none() {
            notes.error(&field.key("port"), "a Service needs a port here");
        }
        let filters = Filters::read(&backend.filters, &field.key("filters"), notes);
        filters.check_backend(&field.key("filters"), notes);
        backends.push(BackendRef {
            is_service,
            name: ObjectName::new(backend.namespace.as_deref().unwrap_or(namespace), &backend.name),
            port: backend.port,
            weight,
            request_headers: filters.request_headers,
            response_headers: filters.response_headers,
        });
    }
    backends
}
