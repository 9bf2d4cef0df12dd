//! Pods by address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::RoutingTable;
use crate::model::{Model, ObjectName, Workload};

/// The table's workloads with their names.
pub(super) struct Workloads<'a> {
    pub(super) by_address: HashMap<IpAddr, Arc<Workload>>,
    pub(super) by_name: HashMap<&'a ObjectName, Arc<Workload>>,
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
