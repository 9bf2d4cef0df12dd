//! BackendTLSPolicies and the ports of Services that they are for.

use std::sync::Arc;

use super::super::field::Field;
use super::super::kinds::{BackendTlsPolicy, Spec};
use super::super::object::Object;
use super::super::report::{Code, Severity};
use super::{LinkNotes, World, bundle};
use crate::model::{BackendRoots, BackendTls, Service};

type Policy<'a> = (usize, &'a Object, &'a BackendTlsPolicy);

/// Gives ports what policies say of them: one that names the port before one for the whole Service, of equals the oldest.
pub(super) fn apply(world: &World<'_>, services: &mut [Service], notes: &mut LinkNotes<'_>) {
    let policies = world.by_age(|spec| match spec {
        Spec::BackendTlsPolicy(policy) => Some(policy),
        _ => None,
    });
    for by_port in [true, false] {
        for policy in &policies {
            for (index, (name, section)) in policy.2.targets.iter().enumerate() {
                if section.is_some() != by_port {
                    continue;
                }
                let field = Field::spec().key("targetRefs").index(index);
                let Some(service) = services.iter_mut().find(|service| service.name == *name) else {
                    let text = format!("there is no Service {name}");
                    notes.say(policy.0, (Severity::Warning, Code::BackendNotFound), &field, text);
                    continue;
                };
                target(world, policy, (service, section.as_deref()), &field, notes);
            }
        }
    }
}

fn target(
    world: &World<'_>,
    policy: &Policy<'_>,
    (service, section): (&mut Service, Option<&str>),
    field: &Field,
    notes: &mut LinkNotes<'_>,
) {
    let position = policy.0;
    let terms = Arc::new(terms(world, policy, notes));
    let ports = service.ports.iter_mut();
    let mut ports: Vec<_> = ports.filter(|port| section.is_none_or(|name| *port.name == *name)).collect();
    if ports.is_empty() {
        let text = format!("the Service {} has no such TCP port", service.name);
        notes.say(position, (Severity::Warning, Code::BackendNotFound), field, text);
        return;
    }
    let mut taken = false;
    for port in &mut ports {
        // One that names a port has taken it from one for the whole.
        if port.tls.is_none() {
            port.tls = Some(Arc::clone(&terms));
            taken = true;
        }
    }
    if !taken {
        let text = format!("an older policy is for the Service {}", service.name);
        notes.say(position, (Severity::Warning, Code::Conflicted), field, text);
    }
}

/// Whom a policy believes. Where one reference can't be followed nobody is believed, and backends can't be reached.
fn terms(
    world: &World<'_>,
    (position, object, policy): &Policy<'_>,
    notes: &mut LinkNotes<'_>,
) -> BackendTls {
    let terms = |roots| {
        let (hostname, names) = (Arc::clone(&policy.hostname), policy.names.clone());
        BackendTls { hostname, names, roots, client: None }
    };
    let Some(bundles) = &policy.bundles else { return terms(BackendRoots::System) };
    let list = Field::spec().key("validation").key("caCertificateRefs");
    let mut roots = Vec::with_capacity(bundles.len());
    let mut failed = false;
    for (index, reference) in bundles.iter().enumerate() {
        match bundle::find(world, object.name(), reference) {
            Ok(found) => roots.push(Arc::clone(found)),
            Err((code, text)) => {
                failed = true;
                let text = format!("{text}: backends can't be reached");
                notes.say(*position, (Severity::Error, code), &list.index(index), text);
            }
        }
    }
    if failed {
        roots.clear();
    }
    terms(BackendRoots::Bundles(roots))
}
