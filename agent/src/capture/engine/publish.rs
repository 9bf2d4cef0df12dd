//! What is shown of the engine.

use super::Engine;
use crate::capture::guard::Guard;
use crate::capture::interfaces::Hooked;
use crate::capture::{CaptureStatus, PolicyStatus};

impl Engine {
    /// Publishes the state as it is now.
    pub(super) fn publish(&self) {
        let names = |pods: bool| {
            let hooked = self.programs.attached().filter(|(.., hook)| (*hook == Hooked::Pod) == pods);
            hooked.map(|(_, name, _)| name.to_owned()).collect()
        };
        let policy = self.parts.pod_guard.status();
        self.status.send_replace(CaptureStatus {
            attach: self.programs.attach_kind().as_str(),
            pins: match (self.programs.pins().directory(), self.upkeep.unpinned()) {
                (Ok(_), Some(reason)) => format!("NOT PINNED any more: {reason}"),
                (Ok(directory), None) => directory.display().to_string(),
                (Err(reason), _) => format!("not pinned: {reason}"),
            },
            pod_interfaces: names(true),
            uplinks: names(false),
            paused: self.upkeep.broken().map(ToOwned::to_owned),
            failed: self
                .failed
                .values()
                .chain(self.parts.pod_guard.failed())
                .chain(self.parts.limits.failed())
                .cloned()
                .collect(),
            local_addresses: self.local.load().to_vec(),
            foreign: self.foreign.clone(),
            maps: self.programs.map_use().into_iter().chain(self.parts.map_use()).collect(),
            destinations: self.captured.destinations,
            destinations_over_capacity: self.captured.over_capacity,
            connect: self.parts.connect_status(),
            policy: PolicyStatus { outlives: policy.outlives && self.upkeep.unpinned().is_none(), ..policy },
            inbound: self.parts.pod_guard.captured(),
            acceleration: self.parts.acceleration_status(),
            released: self.released,
            socket_events_off: self.parts.socket_events_off(),
            guard: self.parts.guard.as_ref().map(Guard::status),
        });
    }
}
