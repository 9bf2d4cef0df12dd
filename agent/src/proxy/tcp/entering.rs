//! An opaque connection whose endpoint is known, before anything is sent to it.

use std::sync::Arc;

use super::{Dialled, Undialled};
use crate::compile::RoutingTable;
use crate::model::Workload;
use crate::proxy::Context;
use crate::proxy::access::Client;
use crate::proxy::limits::{Held, RATE_LIMITED, RefusedBy, enter_connection};
use crate::telemetry::Flag;

/// Holds a connection to the limits of what enters the pod that was dialled for it, where it is one of this node: nothing has been sent there.
pub(super) async fn enter<Io>(
    context: &Context,
    table: &RoutingTable,
    client: (Client<'_>, Option<&Arc<Workload>>),
    dialled: Result<Dialled<Io>, Undialled>,
    held: &mut Result<Held, RefusedBy>,
) -> Result<Dialled<Io>, Undialled> {
    let (Ok(Dialled { address, .. }), Ok(kept)) = (&dialled, &mut *held) else { return dialled };
    match enter_connection(context, table, *address, client).await {
        Ok(more) => kept.extend(more),
        Err(by) => {
            let last = Some(*address);
            *held = Err(by);
            return Err(Undialled { flag: Flag::RateLimited, details: RATE_LIMITED, last });
        }
    }
    dialled
}
