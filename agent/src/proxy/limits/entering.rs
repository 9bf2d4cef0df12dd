//! What enters a pod of this node past no inbound listener, as this agent sends it there itself: held to the limits of what enters the
//! pod once it is known which one that is. The agent of another node's pod does so where it takes it.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::time::Instant;

use super::connection::hold_connection;
use super::question::hold;
use super::{Asking, Held, Left, Limited, Policies, RefusedBy, client};
use crate::compile::{LimitPolicy, RoutingTable, limit_time};
use crate::http::h1::RequestHead;
use crate::model::Workload;
use crate::proxy::Context;
use crate::proxy::access::Client;
use crate::proxy::http::caller::Caller;
use crate::proxy::http::plan::Planned;
use crate::proxy::http::record::Trail;

/// A request that may be on its way to a pod under limits of what enters it.
#[derive(Debug)]
pub(in crate::proxy) struct Entering<'t> {
    table: &'t RoutingTable,
    /// The documents that it is counted by: another try is counted by those alone that were not asked.
    counted: Vec<&'t LimitPolicy>,
    /// What is left of the one that leaves least, where clients are told.
    left: Option<Left<'t>>,
}

impl Caller<'_> {
    /// Whether requests of the client may be held to limits of the pods that they are sent to. What was taken on its way into a pod is
    /// held to them with all others.
    pub fn entering<'t>(&self, table: &'t RoutingTable) -> Option<Entering<'t>> {
        let asks = table.limits.ask_for_receivers() && !self.origin.is_inbound();
        asks.then_some(Entering { table, counted: Vec::new(), left: None })
    }

    /// Holds a request to the limits of the pod that it is about to be sent to. Gives what is done then.
    pub async fn enter<'p, 't: 'p>(
        &self,
        head: &RequestHead,
        planned: &Planned<'p>,
        trail: &mut Trail<'t>,
    ) -> Result<Planned<'p>, Limited<'t>> {
        let (Some(entering), Some(endpoint)) = (&mut trail.entering, trail.upstream) else {
            return Ok(*planned);
        };
        let mut policies = receiving(entering.table, endpoint);
        policies.retain(|policy| !entering.counted.iter().any(|counted| std::ptr::eq(*counted, *policy)));
        if !policies.is_empty() {
            let asking = Asking {
                head: Some(head),
                client: client::forwarded(head, self.settings.trusted_hops)
                    .unwrap_or_else(|| self.peer.ip().to_canonical()),
                source: trail.source.map(|source| &**source),
                proof: (entering.table, self.client()),
                route: None,
                // It may have waited long for a connection.
                now: limit_time(Instant::now().into_std()),
            };
            let counters = self.ctx.counters.as_ref();
            let left = hold(&policies, &asking, |policy| &policy.limits, (counters, &mut trail.held)).await?;
            entering.left = left.map(|left| Left::least(entering.left, left)).or(entering.left);
            entering.counted.extend(policies);
        }
        Ok(entering.left.map_or(*planned, |left| planned.telling_too(left)))
    }
}

/// Holds a connection to the limits of the pod that was dialled for it. `Err`: a limit refuses it.
pub(in crate::proxy) async fn enter_connection(
    context: &Context,
    table: &RoutingTable,
    endpoint: SocketAddr,
    (client, source): (Client<'_>, Option<&Arc<Workload>>),
) -> Result<Held, RefusedBy> {
    hold_connection(context, table, receiving(table, endpoint), (client, source)).await
}

/// The documents about what enters the pod that has an address, where it is one of this node.
fn receiving(table: &RoutingTable, endpoint: SocketAddr) -> Policies<'_> {
    let mut found = Policies::new();
    if !table.limits.ask_for_receivers() {
        return found;
    }
    let Some(pod) = table.receiver(endpoint.ip()) else { return found };
    for policy in table.limits.of_receiver(pod, &table.realm.node) {
        if !found.iter().any(|other| std::ptr::eq(*other, &raw const **policy)) {
            found.push(policy);
        }
    }
    found
}
