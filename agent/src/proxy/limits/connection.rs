//! Opaque connections to a service, held to the limits that count them.

use std::sync::Arc;

use super::question::hold;
use super::{Asking, Held, Limited, Policies};
use crate::compile::{RoutingTable, limit_time};
use crate::model::{ObjectName, Workload};
use crate::proxy::Context;
use crate::proxy::access::Client;
use crate::telemetry::LimitedBy;

/// The reason of a connection that a limit closes.
pub(in crate::proxy) const RATE_LIMITED: &str = "rate_limited";

/// The names of a limit that refuses a connection, for longer than the table is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::proxy) struct RefusedBy {
    policy: ObjectName,
    limit: Arc<str>,
}

impl RefusedBy {
    pub(super) fn new(limited: &Limited<'_>) -> Self {
        let LimitedBy { policy, limit } = limited.by();
        Self { policy: policy.clone(), limit: Arc::clone(limit) }
    }

    /// What refuses, as records have it.
    pub fn by(&self) -> LimitedBy<'_> {
        LimitedBy { policy: &self.policy, limit: &self.limit }
    }
}

/// Holds a connection to the limits of its service. What it then holds until it is over; `Err`: a limit refuses it.
pub(in crate::proxy) async fn admit_connection(
    context: &Context,
    table: &RoutingTable,
    service: &ObjectName,
    (client, source): (Client<'_>, Option<&Arc<Workload>>),
) -> Result<Held, RefusedBy> {
    let policies = table.limits.of_service(service).iter().map(|policy| &**policy);
    hold_connection(context, table, policies.collect(), (client, source)).await
}

/// Holds a connection to what these documents say of connections.
pub(super) async fn hold_connection(
    context: &Context,
    table: &RoutingTable,
    mut policies: Policies<'_>,
    (client, source): (Client<'_>, Option<&Arc<Workload>>),
) -> Result<Held, RefusedBy> {
    let mut held = Held::default();
    policies.retain(|policy| !policy.connections.is_empty());
    if policies.is_empty() {
        return Ok(held);
    }
    let asking = Asking::of_connection(table, (client, source));
    let counters = context.counters.as_ref();
    let held_to = hold(&policies, &asking, |policy| &policy.connections, (counters, &mut held)).await;
    held_to.map_err(|limited| RefusedBy::new(&limited)).map(|_| held)
}

impl<'a> Asking<'a> {
    /// A connection that comes now.
    pub(super) fn of_connection(
        table: &'a RoutingTable,
        (client, source): (Client<'a>, Option<&'a Arc<Workload>>),
    ) -> Self {
        Self {
            head: None,
            client: client.peer.ip().to_canonical(),
            source: source.map(|source| &**source),
            proof: (table, client),
            route: None,
            now: limit_time(tokio::time::Instant::now().into_std()),
        }
    }
}
