//! RateLimits: what they target is looked up, so that one that selects nothing is told.

use super::super::field::Field;
use super::super::kinds::Spec;
use super::super::report::{Code, Severity};
use super::{LinkNotes, World};
use crate::model::{LimitTarget, LimitedRoute, ObjectName, RateLimit};

pub(super) fn limits(world: &World<'_>, notes: &mut LinkNotes<'_>) -> Vec<RateLimit> {
    let mut limits = Vec::new();
    for (position, object) in world.objects.iter().enumerate() {
        let Spec::RateLimit(limit) = &object.spec else { continue };
        for (index, target) in limit.targets.iter().enumerate() {
            if let Some((severity, text)) = problem(world, target) {
                let field = Field::spec().key("targetRefs").index(index);
                notes.say(position, (severity, Code::ReferencedResourceNotFound), &field, text);
            }
        }
        limits.push(limit.clone());
    }
    limits.sort_by(|a, b| a.name.cmp(&b.name));
    limits
}

/// Why nothing can be meant by a target.
fn problem(world: &World<'_>, target: &LimitTarget) -> Option<(Severity, String)> {
    match target {
        LimitTarget::Service(service) => world.service_problem(service, None),
        LimitTarget::Gateway(name, section) => {
            let gateway = find(world, name, |spec| match spec {
                Spec::Gateway(gateway) => Some(gateway),
                _ => None,
            });
            let Some(gateway) = gateway else { return Some(missing("Gateway", name)) };
            let section = section.as_deref()?;
            let known = gateway.listeners.iter().any(|listener| *listener.name == *section);
            (!known).then(|| (Severity::Error, format!("the Gateway {name} has no listener {section}")))
        }
        LimitTarget::Route(LimitedRoute::HttpRoute, name, rule) => {
            let route = find(world, name, |spec| match spec {
                Spec::HttpRoute(route) => Some(route),
                _ => None,
            });
            let Some(route) = route else { return Some(missing("HTTPRoute", name)) };
            no_rule("HTTPRoute", name, rule.as_deref(), route.rules.iter().map(|rule| &*rule.name))
        }
        LimitTarget::Route(LimitedRoute::VirtualService, name, rule) => {
            let route = find(world, name, |spec| match spec {
                Spec::VirtualService(route) => Some(route),
                _ => None,
            });
            let Some(route) = route else { return Some(missing("VirtualService", name)) };
            no_rule("VirtualService", name, rule.as_deref(), route.rules.iter().map(|(_, rule)| &*rule.name))
        }
    }
}

fn find<'a, T>(
    world: &World<'a>,
    name: &ObjectName,
    of: impl Fn(&'a Spec) -> Option<&'a T>,
) -> Option<&'a T> {
    world.objects.iter().filter(|object| object.name() == name).find_map(|object| of(&object.spec))
}

fn missing(kind: &str, name: &ObjectName) -> (Severity, String) {
    (Severity::Error, format!("there is no {kind} {name}"))
}

fn no_rule<'a>(
    kind: &str,
    name: &ObjectName,
    wanted: Option<&str>,
    mut rules: impl Iterator<Item = &'a str>,
) -> Option<(Severity, String)> {
    let wanted = wanted?;
    let known = rules.any(|rule| rule == wanted);
    (!known).then(|| (Severity::Error, format!("the {kind} {name} has no rule {wanted}")))
}
