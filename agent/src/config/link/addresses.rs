//! Addresses that two Services claim.

use std::collections::HashMap;
use std::net::IpAddr;

use super::super::field::Field;
use super::super::kinds::Spec;
use super::super::report::{Code, Severity};
use super::{LinkNotes, World};
use crate::model::ObjectName;

/// Says which Services have an address and port that another one has: of two the first by name is served.
pub(super) fn report_shared(world: &World<'_>, notes: &mut LinkNotes<'_>) {
    let mut services: Vec<_> = world.objects.iter().enumerate().collect();
    services.sort_by_key(|(_, object)| object.name());
    let mut taken: HashMap<(IpAddr, u16), &ObjectName> = HashMap::new();
    for (position, object) in services {
        let Spec::Service(service) = &object.spec else { continue };
        for (index, ip) in service.cluster_ips.iter().enumerate() {
            for (port, _) in &service.ports {
                let winner = *taken.entry((*ip, port.port)).or_insert(object.name());
                if winner != object.name() {
                    let field = Field::root().key("spec").key("clusterIPs").index(index);
                    let text =
                        format!("{ip}:{} is the Service {winner}'s already, which is served", port.port);
                    notes.say(position, (Severity::Warning, Code::DuplicateAddress), &field, text);
                }
            }
        }
    }
}
