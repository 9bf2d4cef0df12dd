//! Certificates that have ended by the time at which their Secrets are read. Pure: the time is passed in.

use std::time::SystemTime;

use super::kinds::{Secret, Spec};
use super::object::Object;
use super::report::{Code, Message, Severity};
use crate::identity::edge;

/// What there is to say of an object that was read: an error where what was in force before is better, as it still holds.
pub(super) fn message(object: &Object, before: Option<&Object>, now: SystemTime) -> Option<Message> {
    let Spec::Secret(secret) = &object.spec else { return None };
    let text = ended(secret, now)?;
    let holds = |before: &Object| match &before.spec {
        Spec::Secret(secret) => secret.certificate.is_some() && ended(secret, now).is_none(),
        _ => false,
    };
    let severity = if before.is_some_and(holds) { Severity::Error } else { Severity::Warning };
    let (field, line) = &secret.chain_at;
    let code = Code::InvalidCertificateRef;
    Some(Message { severity, code, line: *line, field: field.to_string(), text })
}

fn ended(secret: &Secret, now: SystemTime) -> Option<String> {
    let ending = edge::ending(secret.certificate.as_ref()?)?;
    ending.has_ended(now).then(|| format!("tls.crt: the certificate has ended at {}", ending.shown()))
}
