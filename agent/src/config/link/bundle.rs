//! CA certificates that Gateways refer to.

use std::sync::Arc;

use super::super::kinds::{BundleRef, GatewayClients};
use super::super::report::{Code, Severity};
use super::{LinkNotes, World};
use crate::model::{ClientValidation, ObjectName};

/// Whom a listener believes. Where one reference can't be followed nobody is believed, and every client refused: the others
/// alone would let fewer in than the document says, silently.
pub(super) fn clients(
    world: &World<'_>,
    (position, gateway): (usize, &ObjectName),
    clients: &GatewayClients,
    notes: &mut LinkNotes<'_>,
) -> ClientValidation {
    let mut roots = Vec::with_capacity(clients.bundles.len());
    let mut failed = false;
    for (index, reference) in clients.bundles.iter().enumerate() {
        match find(world, gateway, reference) {
            Ok(found) => roots.push(Arc::clone(found)),
            Err((code, text)) => {
                failed = true;
                let text = format!("{text}: every client is refused");
                notes.say(position, (Severity::Error, code), &clients.field.index(index), text);
            }
        }
    }
    if failed {
        roots.clear();
    }
    ClientValidation { roots, mode: clients.mode }
}

/// The certificates of a reference that an object, by its name and kind, makes.
pub(super) fn find<'a>(
    world: &World<'a>,
    gateway: &ObjectName,
    reference: &BundleRef,
) -> Result<&'a Arc<str>, (Code, String)> {
    let BundleRef { is_config_map, name } = reference;
    if !is_config_map {
        return Err((Code::InvalidCaCertificateKind, "only a ConfigMap can hold CA certificates".to_owned()));
    }
    let mut grants = world.grants.iter().filter(|(namespace, _)| **namespace == *name.namespace);
    let (from, to) = (("Gateway", &*gateway.namespace), ("ConfigMap", &*name.name));
    if name.namespace != gateway.namespace && !grants.any(|(_, grant)| grant.allows(from, to)) {
        let text = format!("no ReferenceGrant lets Gateways of {} refer to {name}", gateway.namespace);
        return Err((Code::RefNotPermitted, text));
    }
    let found = world.config_maps.get(name).map(|found| &found.roots);
    let missing = || format!("there is no valid ConfigMap {name} with ca.crt");
    found.ok_or_else(|| (Code::InvalidCaCertificateRef, missing()))
}
