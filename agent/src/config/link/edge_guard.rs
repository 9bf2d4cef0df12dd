//! EdgeGuards refer to nothing: they are taken as they are, sorted by name.

use super::super::kinds::Spec;
use super::World;
use crate::model::EdgeGuard;

pub(super) fn guards(world: &World<'_>) -> Vec<EdgeGuard> {
    let mut guards: Vec<EdgeGuard> = world
        .objects
        .iter()
        .filter_map(|object| match &object.spec {
            Spec::EdgeGuard(guard) => Some(guard.clone()),
            _ => None,
        })
        .collect();
    guards.sort_by(|a, b| a.name.cmp(&b.name));
    guards
}
