//! Rules of HTTPRoutes with their backends looked up, in the order of precedence that the Gateway API gives; and the
//! routes whose parents are Services (GAMMA).

use std::cmp::Reverse;

use super::super::field::Field;
use super::super::kinds::{BackendRef, HttpRoute, Parent, ParentKind, RouteRule, RuleAction, Spec};
use super::super::object::Object;
use super::super::report::{Code, Severity};
use super::{LinkNotes, World};
use crate::model::{
    Destination, HttpRule, ObjectName, RouteAction, RouteKind, RouteTable, WeightedDestination,
};

/// The status of a backend that is not there or not allowed.
const INVALID_BACKEND_STATUS: u16 = 500;

/// An HTTPRoute with its position.
pub(super) type Route<'a> = (usize, &'a Object, &'a HttpRoute);

/// All TLSRoutes, oldest first.
pub(super) fn tls_by_age<'a>(world: &World<'a>) -> Vec<Route<'a>> {
    world.by_age(|spec| match spec {
        Spec::TlsRoute(route) => Some(route),
        _ => None,
    })
}

/// All HTTPRoutes, oldest first.
pub(super) fn by_age<'a>(world: &World<'a>) -> Vec<Route<'a>> {
    world.by_age(|spec| match spec {
        Spec::HttpRoute(route) => Some(route),
        _ => None,
    })
}

/// Routes of the mesh: those of HTTPRoutes with Service parents.
pub(super) fn mesh_routes(world: &World<'_>, notes: &mut LinkNotes<'_>) -> Vec<RouteTable> {
    let mut tables = Vec::new();
    for route in by_age(world) {
        let (position, object, spec) = route;
        let mut own = Vec::new();
        let mut foreign = Vec::new();
        for (index, parent) in spec.parents.iter().enumerate() {
            if parent.kind != ParentKind::Service {
                continue;
            }
            let field = Field::spec().key("parentRefs").index(index);
            let port = match parent_port(world, parent) {
                Ok(port) => port,
                Err(text) => {
                    notes.say(position, (Severity::Warning, Code::NoMatchingParent), &field, text);
                    continue;
                }
            };
            super::opaque::check(world, (&parent.name, port), (position, &field), notes);
            let services =
                if parent.name.namespace == object.name().namespace { &mut own } else { &mut foreign };
            services.push((parent.name.clone(), port));
        }
        if own.is_empty() && foreign.is_empty() {
            continue;
        }
        if !spec.hostnames.is_empty() {
            let text =
                "hostnames have no effect on a route of a Service: the Service is what the client dials";
            notes.say(position, (Severity::Warning, Code::Ignored), &Field::spec().key("hostnames"), text);
        }
        let rules = rules(world, route, notes);
        // A route in another namespace than the Service is for the clients of its own namespace alone (GEP-1426).
        let mut consumer_rules = rules.clone();
        for one in consumer_rules.iter_mut().flat_map(|rule| &mut rule.matches) {
            one.source_namespace = Some(object.name().namespace.clone());
        }
        for (services, rules) in [(foreign, consumer_rules), (own, rules)] {
            if !services.is_empty() {
                let source = object.name().clone();
                tables.push(RouteTable {
                    source,
                    kind: RouteKind::HttpRoute,
                    services,
                    hosts: Vec::new(),
                    rules,
                });
            }
        }
    }
    tables
}

/// The port of a Service that a parent reference means, by number, by name (`sectionName`) or by both; `None`: all.
fn parent_port(world: &World<'_>, parent: &Parent) -> Result<Option<u16>, String> {
    if let Some((_, text)) = world.service_problem(&parent.name, parent.port) {
        return Err(text);
    }
    let Some(section) = &parent.section else { return Ok(parent.port) };
    let mut ports = world.services.get(&parent.name).into_iter().flat_map(|service| &service.ports);
    match ports.find(|(port, _)| port.name == *section).map(|(port, _)| port.port) {
        None => Err(format!("the Service {} has no TCP port called {section}", parent.name)),
        Some(named) => match parent.port.filter(|port| *port != named) {
            Some(port) => {
                Err(format!("the port {section} of the Service {} is {named}, not {port}", parent.name))
            }
            None => Ok(Some(named)),
        },
    }
}

/// The rules of a route, one for each alternative, the most specific first.
pub(super) fn rules(
    world: &World<'_>,
    (position, object, route): Route<'_>,
    notes: &mut LinkNotes<'_>,
) -> Vec<HttpRule> {
    let mut rules = Vec::new();
    for (index, rule) in route.rules.iter().enumerate() {
        let field = Field::spec().key("rules").index(index);
        let action = action(world, (position, object), rule, &field, notes);
        rules.extend(rule.matches.iter().map(|one| HttpRule {
            name: rule.name.clone(),
            matches: vec![one.clone()],
            action: action.clone(),
            timeout: rule.timeout,
            try_timeout: rule.try_timeout,
            request_headers: rule.request_headers.clone(),
            response_headers: rule.response_headers.clone(),
        }));
    }
    // The sort is stable: of equals the earlier one stays first.
    rules.sort_by_key(|rule| Reverse(rule.matches.first().map(crate::model::RequestMatch::specificity)));
    rules
}

fn action(
    world: &World<'_>,
    (position, object): (usize, &Object),
    rule: &RouteRule,
    field: &Field,
    notes: &mut LinkNotes<'_>,
) -> RouteAction {
    let (backends, rewrite) = match &rule.action {
        RuleAction::Redirect(redirect) => return RouteAction::Redirect(redirect.clone()),
        RuleAction::Forward { backends, rewrite } => (backends, rewrite.clone()),
    };
    let list = field.key("backendRefs");
    let mut destinations = Vec::with_capacity(backends.len());
    for (index, backend) in backends.iter().enumerate() {
        let destination = destination(world, object, backend).unwrap_or_else(|(code, text)| {
            let text = format!("{text}: requests get {INVALID_BACKEND_STATUS}");
            notes.say(position, (Severity::Warning, code), &list.index(index), text);
            Destination::Invalid { status: INVALID_BACKEND_STATUS }
        });
        destinations.push(WeightedDestination {
            destination,
            weight: backend.weight,
            request_headers: backend.request_headers.clone(),
            response_headers: backend.response_headers.clone(),
        });
    }
    if destinations.iter().all(|destination| destination.weight == 0) {
        let what = if destinations.is_empty() { "the rule has no backends" } else { "all weights are zero" };
        let text = format!("{what}: requests get {INVALID_BACKEND_STATUS}");
        notes.say(position, (Severity::Warning, Code::BackendNotFound), &list, text);
        destinations = vec![WeightedDestination {
            destination: Destination::Invalid { status: INVALID_BACKEND_STATUS },
            weight: 1,
            request_headers: Vec::new(),
            response_headers: Vec::new(),
        }];
    }
    RouteAction::Forward { destinations, rewrite }
}

fn destination(
    world: &World<'_>,
    route: &Object,
    backend: &BackendRef,
) -> Result<Destination, (Code, String)> {
    let BackendRef { is_service, name, port, .. } = backend;
    if !is_service {
        return Err((Code::InvalidKind, "only a Service can be a backend".to_owned()));
    }
    let namespace = &route.name().namespace;
    if name.namespace != *namespace && !is_granted(world, route, name) {
        return Err((
            Code::RefNotPermitted,
            format!("no ReferenceGrant lets routes of {namespace} refer to {name}"),
        ));
    }
    match world.service_problem(name, *port) {
        Some((_, text)) => Err((Code::BackendNotFound, text)),
        None => Ok(Destination::Service { service: name.clone(), port: *port, subset: None }),
    }
}

fn is_granted(world: &World<'_>, route: &Object, service: &ObjectName) -> bool {
    let from = (&*route.header.id.kind, &*route.name().namespace);
    let mut grants = world.grants.iter().filter(|(namespace, _)| **namespace == *service.namespace);
    grants.any(|(_, grant)| grant.allows(from, ("Service", &service.name)))
}
