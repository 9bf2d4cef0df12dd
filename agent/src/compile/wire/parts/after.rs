//! How much a model would hold after a change that is not made.

use super::super::WireError;
use super::super::change::Change;
use super::super::edit::{Edit, Edits};
use super::super::key::EndpointKey;
use super::{Counts, Endpoints, Parts};
use crate::model::Endpoint;

impl Parts {
    /// How much it would hold after a change.
    pub fn counts_after(&self, change: &Change) -> Result<Counts, WireError> {
        let edit = Edit::of(change)?;
        let mut counts = self.counts();
        for (key, service) in &edit.services {
            step(&mut counts.services, self.services.contains_key(key), service.is_some());
        }
        (counts.endpoints, counts.ready) = self.held_after(&edit.endpoints, &edit.datagrams);
        for (key, _) in &edit.routes.puts {
            step(&mut counts.routes, self.routes.get(key).is_some(), true);
        }
        for key in &edit.routes.removals {
            step(&mut counts.routes, self.routes.get(key).is_some(), false);
        }
        for (listener, routes) in &edit.attached {
            let before = |key| self.attached.get(listener).is_some_and(|routes| routes.get(key).is_some());
            for (key, _) in &routes.puts {
                step(&mut counts.routes, before(key), true);
            }
            for key in &routes.removals {
                step(&mut counts.routes, before(key), false);
            }
        }
        Ok(counts)
    }

    /// How many endpoints it would hold, and how many that are ready.
    pub(super) fn held_after(
        &self,
        streams: &Edits<EndpointKey, Endpoint>,
        datagrams: &Edits<EndpointKey, Endpoint>,
    ) -> (usize, usize) {
        let mut held = self.held;
        count_endpoints(&mut held, &self.endpoints, streams);
        count_endpoints(&mut held, &self.datagrams, datagrams);
        held
    }
}

fn count_endpoints(
    (all, available): &mut (usize, usize),
    endpoints: &Endpoints,
    edits: &Edits<EndpointKey, Endpoint>,
) {
    for (EndpointKey { service, place }, after) in edits {
        let before = endpoints.get(service).and_then(|places| places.get(place));
        step(all, before.is_some(), after.is_some());
        let ready = |endpoint: Option<&Endpoint>| endpoint.is_some_and(|endpoint| endpoint.ready);
        step(available, ready(before), ready(after.as_ref()));
    }
}

/// Counts one that was there or not, and will be there or not.
fn step(count: &mut usize, before: bool, after: bool) {
    *count = *count + usize::from(after) - usize::from(before);
}
