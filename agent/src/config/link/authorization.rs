//! AuthorizationPolicies -> who may reach which pods.

use super::super::kinds::Spec;
use super::World;
use crate::model::{AuthorizationPolicy, PolicyScope};

pub(super) use super::super::kinds::ROOT_NAMESPACE;

/// The policies that are enforced, sorted by name.
pub(super) fn policies(world: &World<'_>) -> Vec<AuthorizationPolicy> {
    let policies = world.objects.iter().filter_map(|object| {
        let Spec::AuthorizationPolicy(policy) = &object.spec else { return None };
        let name = object.name().clone();
        let mesh = *name.namespace == *ROOT_NAMESPACE;
        Some(AuthorizationPolicy {
            name,
            scope: if mesh { PolicyScope::Mesh } else { PolicyScope::Namespace },
            selector: policy.selector.clone(),
            action: policy.action?,
            dry_run: policy.dry_run,
            rules: policy.rules.clone(),
        })
    });
    let mut policies: Vec<_> = policies.collect();
    policies.sort_by(|a, b| a.name.cmp(&b.name));
    policies
}
