//! Certificates that listeners of Gateways refer to.

use std::sync::Arc;

use super::super::field::Field;
use super::super::kinds::{CertificateRef, GatewayTls};
use super::super::report::{Code, Severity};
use super::{LinkNotes, World, bundle};
use crate::model::{ListenerTls, ObjectName, ServerCertificate};

/// What a listener shows. A reference that can't be followed is said and left out; without any the listener refuses
/// handshakes, as it must never speak in plaintext instead.
pub(super) fn listener_tls(
    world: &World<'_>,
    (position, gateway): (usize, &ObjectName),
    tls: &GatewayTls,
    field: &Field,
    notes: &mut LinkNotes<'_>,
) -> ListenerTls {
    let list = field.key("tls").key("certificateRefs");
    let mut certificates = Vec::with_capacity(tls.certificates.len());
    for (index, reference) in tls.certificates.iter().enumerate() {
        match find(world, gateway, reference) {
            Ok(certificate) => certificates.push(Arc::clone(certificate)),
            Err((code, text)) => notes.say(position, (Severity::Error, code), &list.index(index), text),
        }
    }
    if certificates.is_empty() {
        let text = "no certificate can be shown: the listener refuses every handshake";
        notes.say(position, (Severity::Error, Code::InvalidCertificateRef), &list, text);
    }
    let clients = tls.clients.as_ref();
    let clients = clients.map(|clients| bundle::clients(world, (position, gateway), clients, notes));
    ListenerTls { certificates, min_version: tls.min_version, clients }
}

fn find<'a>(
    world: &World<'a>,
    gateway: &ObjectName,
    reference: &CertificateRef,
) -> Result<&'a Arc<ServerCertificate>, (Code, String)> {
    let CertificateRef { is_secret, name } = reference;
    let invalid = |text: String| (Code::InvalidCertificateRef, text);
    if !is_secret {
        return Err(invalid("only a Secret can be a certificate".to_owned()));
    }
    // Before it is looked for: who may not refer to a Secret shall not learn whether there is one.
    if name.namespace != gateway.namespace && !is_granted(world, gateway, name) {
        let text = format!("no ReferenceGrant lets Gateways of {} refer to {name}", gateway.namespace);
        return Err((Code::RefNotPermitted, text));
    }
    let secret =
        world.secrets.get(name).ok_or_else(|| invalid(format!("there is no valid Secret {name}")))?;
    let of_type = secret.certificate.as_ref();
    of_type.ok_or_else(|| invalid(format!("the Secret {name} is not of the type kubernetes.io/tls")))
}

fn is_granted(world: &World<'_>, gateway: &ObjectName, secret: &ObjectName) -> bool {
    let mut grants = world.grants.iter().filter(|(namespace, _)| **namespace == *secret.namespace);
    grants.any(|(_, grant)| grant.allows(("Gateway", &gateway.namespace), ("Secret", &secret.name)))
}
