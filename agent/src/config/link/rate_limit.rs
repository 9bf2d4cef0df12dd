//! RateLimits: what they target is looked up, so that one that selects nothing is told.

use std::collections::HashMap;
use std::sync::Arc;

use agent_common::limit::LIMITS_PER_END;

use super::super::field::Field;
use super::super::kinds::{Gateway, Spec};
use super::super::report::{Code, Severity};
use super::{LinkNotes, World};
use crate::model::{LimitTarget, LimitedRoute, ObjectName, RateLimit, Workload};

pub(super) fn limits<'w>(
    world: &World<'_>,
    workloads: &(impl Iterator<Item = &'w Workload> + Clone),
    notes: &mut LinkNotes<'_>,
) -> Vec<RateLimit> {
    let mut limits = Vec::new();
    let mut of_kernel: HashMap<(&str, &ObjectName), usize> = HashMap::new();
    for (position, object) in world.objects.iter().enumerate() {
        let Spec::RateLimit(limit) = &object.spec else { continue };
        for (index, target) in limit.targets.iter().enumerate() {
            let field = place(limit, index);
            if let Some(text) = nobody(workloads.clone(), target) {
                // Pods come and go, so that it may mean some tomorrow.
                notes.say(position, (Severity::Warning, Code::ReferencedResourceNotFound), &field, text);
            }
            if let Some(text) = problem(world, target) {
                let missing = (Severity::Error, Code::ReferencedResourceNotFound);
                notes.say(position, missing, &field, text);
            }
            let error = (Severity::Error, Code::SchemaValidationError);
            if let Some(text) = shares_port(world, limit, target) {
                notes.say(position, error, &field.key("sectionName"), text);
            }
            let Some((kind, name)) = counted_for(target) else { continue };
            if limit.targets[..index].iter().any(|other| counted_for(other) == Some((kind, name))) {
                continue;
            }
            let before = of_kernel.entry((kind, name)).or_default();
            if *before + limit.kernel.len() > LIMITS_PER_END {
                let text = format!(
                    "{before} limits of the kernel are about the {kind} {name} already, and it holds to \
                     {LIMITS_PER_END} at most"
                );
                notes.say(position, error, &field, text);
            }
            *before += limit.kernel.len();
        }
        limits.push(limit.clone());
    }
    limits.sort_by(|a, b| a.name.cmp(&b.name));
    limits
}

/// Where a document names a target: a selector comes before the others.
fn place(limit: &RateLimit, index: usize) -> Field {
    let selects = matches!(limit.targets.first(), Some(LimitTarget::SentBy(_) | LimitTarget::Enters(_)));
    match index.checked_sub(usize::from(selects)) {
        Some(index) => Field::spec().key("targetRefs").index(index),
        None => Field::spec().key("selector"),
    }
}

/// Whose limits of the kernel are counted together: those of a Service, or of a Gateway whichever of its listeners they are about.
fn counted_for(target: &LimitTarget) -> Option<(&'static str, &ObjectName)> {
    match target {
        LimitTarget::Service(name) => Some(("Service", name)),
        LimitTarget::Gateway(name, _) => Some(("Gateway", name)),
        LimitTarget::Route(..)
        | LimitTarget::SentBy(_)
        | LimitTarget::SentFrom(_)
        | LimitTarget::Enters(_)
        | LimitTarget::EntersNode(_) => None,
    }
}

/// Why no pod is meant by what is about what pods send or get.
fn nobody<'w>(mut workloads: impl Iterator<Item = &'w Workload>, target: &LimitTarget) -> Option<String> {
    match target {
        LimitTarget::Enters(pods) => {
            let (mut some, mut placed) = (false, true);
            for pod in workloads.filter(|pod| pods.select(pod)) {
                (some, placed) = (true, placed && pod.node.is_some());
            }
            if some && !placed {
                return Some(format!(
                    "no node is named of some pod of {pods}: what enters it is not counted"
                ));
            }
            (!some).then(|| format!("no pod is one of {pods}"))
        }
        LimitTarget::SentBy(pods) => {
            let some = workloads.any(|pod| pods.select(pod));
            (!some).then(|| format!("no pod is one of {pods}"))
        }
        LimitTarget::SentFrom(Some(node)) | LimitTarget::EntersNode(Some(node)) => {
            let some = workloads.any(|pod| pod.node.as_ref() == Some(node));
            (!some).then(|| format!("no pod is on a node {node}"))
        }
        _ => None,
    }
}

/// Why the kernel can't count for a listener alone: another of the same Gateway, which the document is not about, has its port.
fn shares_port(world: &World<'_>, limit: &RateLimit, target: &LimitTarget) -> Option<String> {
    let LimitTarget::Gateway(name, Some(section)) = target else { return None };
    if limit.kernel.is_empty() {
        return None;
    }
    let listeners = &gateway(world, name)?.listeners;
    let own = listeners.iter().find(|listener| *listener.name == **section)?;
    let is_meant = |listener: &Arc<str>| {
        limit.targets.iter().any(|target| match target {
            LimitTarget::Gateway(other, part) => {
                other == name && part.as_ref().is_none_or(|part| part == listener)
            }
            _ => false,
        })
    };
    let other = listeners.iter().find(|listener| listener.port == own.port && !is_meant(&listener.name))?;
    Some(format!(
        "the kernel can't tell the listener {section} from {}, which has the same port {}",
        other.name, own.port
    ))
}

fn gateway<'a>(world: &World<'a>, name: &ObjectName) -> Option<&'a Gateway> {
    find(world, name, |spec| match spec {
        Spec::Gateway(gateway) => Some(gateway),
        _ => None,
    })
}

/// Why nothing can be meant by a target.
fn problem(world: &World<'_>, target: &LimitTarget) -> Option<String> {
    match target {
        // It limits nothing without its Service, however few documents there are: as of the other kinds, an error.
        LimitTarget::Service(service) => world.service_problem(service, None).map(|(_, text)| text),
        LimitTarget::Gateway(name, section) => {
            let Some(gateway) = gateway(world, name) else { return Some(missing("Gateway", name)) };
            let section = section.as_deref()?;
            let known = gateway.listeners.iter().any(|listener| *listener.name == *section);
            (!known).then(|| format!("the Gateway {name} has no listener {section}"))
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
        LimitTarget::SentBy(_)
        | LimitTarget::SentFrom(_)
        | LimitTarget::Enters(_)
        | LimitTarget::EntersNode(_) => None,
    }
}

fn find<'a, T>(
    world: &World<'a>,
    name: &ObjectName,
    of: impl Fn(&'a Spec) -> Option<&'a T>,
) -> Option<&'a T> {
    world.objects.iter().filter(|object| object.name() == name).find_map(|object| of(&object.spec))
}

fn missing(kind: &str, name: &ObjectName) -> String {
    format!("there is no {kind} {name}")
}

fn no_rule<'a>(
    kind: &str,
    name: &ObjectName,
    wanted: Option<&str>,
    mut rules: impl Iterator<Item = &'a str>,
) -> Option<String> {
    let wanted = wanted?;
    let known = rules.any(|rule| rule == wanted);
    (!known).then(|| format!("the {kind} {name} has no rule {wanted}"))
}
