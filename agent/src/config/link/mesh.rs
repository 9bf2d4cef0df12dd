//! VirtualServices -> routes of the mesh.

use std::collections::BTreeMap;

use super::super::field::Field;
use super::super::kinds::{Spec, VirtualService};
use super::super::object::Object;
use super::super::report::{Code, Severity};
use super::host::{HostIndex, holds};
use super::{LinkNotes, World, opaque};
use crate::model::{
    Destination, HostPattern, HttpRule, ObjectName, RequestMatch, RouteAction, RouteKind, RouteTable,
    TrafficPolicy,
};

type Rules<'a> = (usize, &'a Object, &'a VirtualService);

/// The routes in order of precedence: oldest first, then by name.
pub(super) fn routes(
    world: &World<'_>,
    policies: &[TrafficPolicy],
    notes: &mut LinkNotes<'_>,
) -> Vec<RouteTable> {
    let mut documents = world.by_age(|spec| match spec {
        Spec::VirtualService(route) => Some(route),
        _ => None,
    });
    documents.retain(|(_, _, route)| route.mesh && !route.hosts.is_empty());
    let mut taken = taken_services(world, &documents, notes);
    let subsets: BTreeMap<&ObjectName, &TrafficPolicy> =
        policies.iter().map(|policy| (&policy.service, policy)).collect();
    let mut tables = Vec::new();
    for (position, object, route) in documents {
        let services = taken.remove(&position).unwrap_or_default();
        let hosts = other_hosts(world, (position, object, route), notes);
        check_match_ports(world, &services, (position, route), notes);
        check_reachable(position, route, notes);
        let mut rules = Vec::with_capacity(route.rules.len());
        for (index, rule) in &route.rules {
            let field = Field::spec().key("http").index(*index);
            let mut rule = rule.clone();
            resolve(world, &subsets, &mut rule, &mut |field_path: &[&str], route_index, level, text| {
                let mut field = field.key("route").index(route_index).key("destination");
                for key in field_path {
                    field = field.key(key);
                }
                notes.say(position, level, &field, text);
            });
            rules.push(rule);
        }
        let takes_traffic = !services.is_empty() || !hosts.is_empty();
        if takes_traffic && !rules.is_empty() {
            let services = services.into_iter().map(|service| (service, None)).collect();
            let source = object.name().clone();
            tables.push(RouteTable { source, kind: RouteKind::VirtualService, services, hosts, rules });
        }
    }
    tables
}

/// Which services each document takes: for each service, the documents whose hosts name it most closely.
fn taken_services(
    world: &World<'_>,
    documents: &[Rules<'_>],
    notes: &mut LinkNotes<'_>,
) -> BTreeMap<usize, Vec<ObjectName>> {
    let mut index = HostIndex::default();
    for (order, (_, _, route)) in documents.iter().enumerate() {
        for host in &route.hosts {
            index.add(order, host.service.as_ref(), &host.pattern);
        }
    }
    let mut taken: BTreeMap<usize, Vec<ObjectName>> = BTreeMap::new();
    for service in world.services.keys() {
        let winners: Vec<&Rules<'_>> =
            index.closest(service).into_iter().map(|order| &documents[order]).collect();
        for (order, (position, ..)) in winners.iter().enumerate() {
            taken.entry(*position).or_default().push((*service).clone());
            if order > 0 {
                let text = format!(
                    "{} names the host of {service} as well; its rules come first",
                    winners[0].1.name()
                );
                let level = (Severity::Warning, Code::ConflictingMeshGatewayVirtualServiceHosts);
                notes.say(*position, level, &Field::spec().key("hosts"), text);
            }
        }
    }
    taken
}

/// Hosts that are not the names of services, wildcards among them. One that holds no service at all is for traffic that
/// is not captured.
fn other_hosts(
    world: &World<'_>,
    (position, _, route): Rules<'_>,
    notes: &mut LinkNotes<'_>,
) -> Vec<HostPattern> {
    let mut hosts = Vec::new();
    let mut idle = 0;
    for (index, host) in route.hosts.iter().enumerate() {
        let field = Field::spec().key("hosts").index(index);
        let named = host.service.as_ref().filter(|service| world.services.contains_key(service));
        if let Some(service) = named {
            if !route.rules.is_empty() {
                opaque::check(world, (service, None), (position, &field), notes);
            }
            continue;
        }
        hosts.push(host.pattern.clone());
        if world.services.keys().any(|service| holds(&host.pattern, service)) {
            continue;
        }
        idle += 1;
        let text = match &host.service {
            Some(service) => format!("there is no Service {service}: the rules take no traffic to it"),
            None => format!("the host {} is no Service: the rules take no traffic to it", host.pattern),
        };
        notes.say(position, (Severity::Warning, Code::ReferencedResourceNotFound), &field, text);
        // Without any Service the documents are a part of a larger set, and say little on what is enforced of it.
        if !world.services.is_empty() {
            notes.later(position, &field);
        }
    }
    if idle == route.hosts.len() && !world.services.is_empty() {
        notes.not_enforced(position);
    }
    hosts
}

/// Lists conditions on ports where the rules have no effect.
fn check_match_ports(
    world: &World<'_>,
    services: &[ObjectName],
    (position, route): (usize, &VirtualService),
    notes: &mut LinkNotes<'_>,
) {
    for (index, rule) in &route.rules {
        for port in rule.matches.iter().filter_map(|one| one.port) {
            for service in services {
                let field = Field::spec().key("http").index(*index).key("match");
                opaque::check(world, (service, Some(port)), (position, &field), notes);
            }
        }
    }
}

type Level = (Severity, Code);

/// Says something on the destination at a position of the rule: the field within it, the position, level and text.
type Say<'a> = dyn FnMut(&[&str], usize, Level, String) + 'a;

/// Looks up the destinations of a rule; one that is not there answers 503, as in Istio.
fn resolve(
    world: &World<'_>,
    policies: &BTreeMap<&ObjectName, &TrafficPolicy>,
    rule: &mut HttpRule,
    say: &mut Say<'_>,
) {
    let RouteAction::Forward { destinations, .. } = &mut rule.action else { return };
    for (index, weighted) in destinations.iter_mut().enumerate() {
        let found = problem(world, policies, &weighted.destination);
        if let Some((field, severity, text)) = found {
            say(
                field,
                index,
                (severity, Code::ReferencedResourceNotFound),
                format!("{text}: requests get 503"),
            );
            weighted.destination = Destination::Invalid { status: 503 };
        }
    }
}

fn problem(
    world: &World<'_>,
    policies: &BTreeMap<&ObjectName, &TrafficPolicy>,
    destination: &Destination,
) -> Option<(&'static [&'static str], Severity, String)> {
    let Destination::Service { service, port, subset } = destination else {
        return Some((&["host"], Severity::Error, "the host is no Service of the mesh".to_owned()));
    };
    if let Some((severity, text)) = world.service_problem(service, None) {
        return Some((&["host"], severity, text));
    }
    if let Some((severity, text)) = world.service_problem(service, *port) {
        return Some((&["port", "number"], severity, text));
    }
    let subset = subset.as_ref()?;
    let known =
        policies.get(service).is_some_and(|policy| policy.subsets.iter().any(|known| known.name == *subset));
    let text = format!("no DestinationRule gives {service} a subset {subset}");
    (!known).then_some((&["subset"], Severity::Error, text))
}

/// Says which rules never get a request, because one before them takes all.
fn check_reachable(position: usize, route: &VirtualService, notes: &mut LinkNotes<'_>) {
    let takes_all =
        |rule: &HttpRule| rule.matches.is_empty() || rule.matches.contains(&RequestMatch::default());
    for (order, (index, rule)) in route.rules.iter().enumerate() {
        let before = route.rules[..order].iter().filter(|(before, _)| before != index);
        let hidden_by = before.clone().find(|(_, before)| {
            takes_all(before)
                || (!rule.matches.is_empty() && rule.matches.iter().all(|one| before.matches.contains(one)))
        });
        if let Some((before, _)) = hidden_by {
            let field = Field::spec().key("http").index(*index);
            let text = format!("the rule never gets a request: spec.http[{before}] takes them all");
            notes.say(position, (Severity::Warning, Code::UnreachableRule), &field, text);
        }
    }
}
