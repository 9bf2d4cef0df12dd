//! Rules for HTTP on ports that are declared to be something else: such a port is opaque, and its rules have no effect.

use super::super::field::Field;
use super::super::report::{Code, Severity};
use super::{LinkNotes, World};
use crate::model::{AppProtocol, ObjectName};

/// Lists a field as not enforced where it leads to opaque ports alone: to one port of a service, or to all of them.
pub(super) fn check(
    world: &World<'_>,
    (service, port): (&ObjectName, Option<u16>),
    (position, field): (usize, &Field),
    notes: &mut LinkNotes<'_>,
) {
    let Some(found) = world.services.get(service) else { return };
    let ports = found.ports.iter().map(|(known, _)| known);
    let ports: Vec<_> = ports.filter(|known| port.is_none_or(|port| port == known.port)).collect();
    if ports.is_empty() || ports.iter().any(|known| known.protocol != AppProtocol::Tcp) {
        return;
    }
    let numbers: Vec<String> = ports.iter().map(|known| known.port.to_string()).collect();
    let text = format!(
        "port {} of the Service {service} is declared to be no HTTP: rules for HTTP have no effect there",
        numbers.join(", ")
    );
    notes.say(position, (Severity::Warning, Code::Ignored), field, text);
    notes.later(position, field);
}
