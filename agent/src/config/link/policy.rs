//! DestinationRules -> the traffic policy of each service.

use std::collections::HashMap;

use super::super::field::Field;
use super::super::kinds::{DestinationRule, Spec, SubsetPolicy};
use super::super::object::Object;
use super::super::report::{Code, Severity};
use super::client_tls::{self, Surroundings};
use super::endpoints::selects;
use super::host::{HostIndex, holds};
use super::{LinkNotes, World};
use crate::model::{Endpoint, HostPattern, ObjectName, Service, Subset, TrafficPolicy};

type Rule<'a> = (usize, &'a Object, &'a DestinationRule);

/// The policies, sorted by service.
pub(super) fn policies(
    world: &World<'_>,
    endpoints: &[Endpoint],
    surroundings: &Surroundings<'_>,
    notes: &mut LinkNotes<'_>,
) -> Vec<TrafficPolicy> {
    let rules = world.by_age(|spec| match spec {
        Spec::DestinationRule(rule) => Some(rule),
        _ => None,
    });
    check_hosts(world, &rules, notes);
    let mut by_service: HashMap<&ObjectName, Vec<&Endpoint>> = HashMap::new();
    for endpoint in endpoints {
        by_service.entry(&endpoint.service).or_default().push(endpoint);
    }
    let mut index = HostIndex::default();
    for (order, (_, _, rule)) in rules.iter().enumerate() {
        index.add(order, rule.service.as_ref(), &rule.pattern);
    }
    let mut policies = Vec::new();
    for service in world.services.keys() {
        let mut rules: Vec<Rule<'_>> = index.closest(service).into_iter().map(|order| rules[order]).collect();
        // The service's own namespace has the say; the sort keeps the order by age.
        rules.sort_by_key(|(_, object, _)| object.name().namespace != service.namespace);
        let endpoints = by_service.get(service).map_or(&[][..], Vec::as_slice);
        check_subsets(&rules, endpoints, notes);
        let Some(policy) = merge(world, service, &rules, notes) else { continue };
        check_tls(&rules, (&policy, endpoints), surroundings, notes);
        policies.push(policy);
    }
    policies
}

/// One policy of several rules for one host: the first says how to balance, all add their subsets.
fn merge(
    world: &World<'_>,
    service: &ObjectName,
    rules: &[Rule<'_>],
    notes: &mut LinkNotes<'_>,
) -> Option<TrafficPolicy> {
    let (position, first, rule) = rules.first()?;
    let mut policy = TrafficPolicy {
        source: first.name().clone(),
        service: service.clone(),
        lb: rule.lb.unwrap_or_default(),
        port_lb: rule.port_lb.clone(),
        tls: client_tls::resolve(world, (*position, first.name()), &rule.tls, notes),
        subsets: Vec::new(),
    };
    for subset in &rule.subsets {
        policy.subsets.push(linked(world, (*position, first), subset, notes));
    }
    for (position, object, rule) in &rules[1..] {
        let level = (Severity::Warning, Code::Ignored);
        let text =
            format!("{} is about {service} as well: only the subsets of this one are added", first.name());
        notes.say(*position, level, &Field::spec().key("host"), text);
        for written in &rule.subsets {
            let (index, subset, _) = written;
            if policy.subsets.iter().any(|known| known.name == subset.name) {
                let field = Field::spec().key("subsets").index(*index);
                notes.say(
                    *position,
                    level,
                    &field,
                    format!("{} has a subset {} too", first.name(), subset.name),
                );
            } else {
                policy.subsets.push(linked(world, (*position, object), written, notes));
            }
        }
    }
    Some(policy)
}

/// A subset with the TLS that its rule asks for.
fn linked(
    world: &World<'_>,
    (position, object): (usize, &Object),
    (_, subset, tls): &SubsetPolicy,
    notes: &mut LinkNotes<'_>,
) -> Subset {
    Subset { tls: client_tls::resolve(world, (position, object.name()), tls, notes), ..subset.clone() }
}

/// Says where TLS that is asked for and endpoints do not go together.
fn check_tls(
    rules: &[Rule<'_>],
    (policy, endpoints): (&TrafficPolicy, &[&Endpoint]),
    surroundings: &Surroundings<'_>,
    notes: &mut LinkNotes<'_>,
) {
    if let Some((position, _, rule)) = rules.first() {
        client_tls::check(*position, (&rule.tls, &policy.tls), endpoints, surroundings, notes);
    }
    for (position, _, rule) in rules {
        for (_, subset, asked) in &rule.subsets {
            let Some(linked) = policy.subsets.iter().find(|known| known.name == subset.name) else {
                continue;
            };
            let chosen: Vec<_> = endpoints
                .iter()
                .copied()
                .filter(|endpoint| selects(&subset.labels, &endpoint.labels))
                .collect();
            client_tls::check(*position, (asked, &linked.tls), &chosen, surroundings, notes);
        }
    }
}

/// Says of which ports a BackendTLSPolicy decides for Gateways in a DestinationRule's stead.
pub(super) fn report_backend_policies(
    world: &World<'_>,
    services: &[Service],
    policies: &[TrafficPolicy],
    notes: &mut LinkNotes<'_>,
) {
    let rules = world.by_age(|spec| match spec {
        Spec::DestinationRule(rule) => Some(rule),
        _ => None,
    });
    for policy in policies.iter().filter(|policy| !policy.tls.is_silent()) {
        let service = services.binary_search_by(|service| service.name.cmp(&policy.service));
        let service = service.ok().map(|at| &services[at]);
        let Some((position, ..)) = rules.iter().find(|(_, object, _)| *object.name() == policy.source) else {
            continue;
        };
        for port in service.iter().flat_map(|service| &service.ports) {
            if port.tls.is_some() && policy.tls.on(port.port).is_some() {
                let text = format!(
                    "for port {} of {} a BackendTLSPolicy tells Gateways what to do",
                    port.port, policy.service
                );
                let field = Field::spec().key("trafficPolicy");
                notes.say(*position, (Severity::Warning, Code::Conflicted), &field, text);
            }
        }
    }
}

fn check_hosts(world: &World<'_>, rules: &[Rule<'_>], notes: &mut LinkNotes<'_>) {
    for (position, _, rule) in rules {
        let known = match &rule.pattern {
            HostPattern::Exact(_) => {
                rule.service.as_ref().is_some_and(|service| world.services.contains_key(service))
            }
            wildcard => world.services.keys().any(|service| holds(wildcard, service)),
        };
        if !known {
            let level = (Severity::Warning, Code::UnknownDestinationRuleHost);
            notes.say(
                *position,
                level,
                &Field::spec().key("host"),
                "the host names no Service among the documents",
            );
        }
    }
}

fn check_subsets(rules: &[Rule<'_>], endpoints: &[&Endpoint], notes: &mut LinkNotes<'_>) {
    if endpoints.is_empty() {
        return;
    }
    for (position, _, rule) in rules {
        // One rule may be about many services; a subset need not be in each of them.
        if !matches!(rule.pattern, HostPattern::Exact(_)) {
            continue;
        }
        for (index, subset, _) in &rule.subsets {
            if !endpoints.iter().any(|endpoint| selects(&subset.labels, &endpoint.labels)) {
                let field = Field::spec().key("subsets").index(*index).key("labels");
                let text = format!("no endpoint has the labels of the subset {}", subset.name);
                notes.say(*position, (Severity::Warning, Code::SubsetSelectsNoPods), &field, text);
            }
        }
    }
}
