//! Pods by address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::RoutingTable;
use crate::model::{Endpoint, Model, ObjectName, Workload};

/// The table's workloads with their names.
pub(super) struct Workloads<'a> {
    pub(super) by_address: HashMap<IpAddr, Arc<Workload>>,
    by_name: HashMap<&'a ObjectName, Arc<Workload>>,
}

impl Workloads<'_> {
    /// The pod behind an endpoint: the one that it names, else the one that has its address.
    pub(super) fn of(&self, endpoint: &Endpoint) -> Option<&Arc<Workload>> {
        let named = endpoint.pod.as_ref().and_then(|pod| self.by_name.get(pod));
        named.or_else(|| self.by_address.get(&endpoint.address.ip()))
    }
}

/// Of two pods with one address (both on the host's network) the first by name is kept.
pub(super) fn compile<'a>(model: &'a Model, previous: &RoutingTable) -> Workloads<'a> {
    let mut workloads = Workloads {
        by_address: HashMap::with_capacity(model.workloads.len()),
        by_name: HashMap::with_capacity(model.workloads.len()),
    };
    for workload in &model.workloads {
        let shared = workload
            .addresses
            .iter()
            .filter_map(|address| previous.workloads.get(address))
            .find(|before| ***before == *workload)
            .map_or_else(|| Arc::new(workload.clone()), Arc::clone);
        for address in &workload.addresses {
            workloads.by_address.entry(*address).or_insert_with(|| Arc::clone(&shared));
        }
        workloads.by_name.insert(&workload.name, shared);
    }
    workloads
}
