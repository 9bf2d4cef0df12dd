//! TLS of clients of Gateways with anything in it: the server name chooses the backend. It is passed on as it is, and no byte is
//! changed, or ends here, and the backend gets what was in it.

use std::sync::Arc;

use super::carrier::Carrier;
use super::http::plan;
use super::tcp::{self, Dial};
use super::{Context, Downstream, access};
use crate::compile::{Action, Backend, Cluster, RoutingTable};
use crate::route::{RequestOrigin, RequestView};
use crate::telemetry::Origin;

/// Serves a connection to its end; where TLS does not end here, `downstream.read` has the client's first message.
pub(super) async fn serve<Io: Carrier>(
    context: &Context,
    downstream: Downstream<Io>,
    server_name: Option<&str>,
) {
    let table = context.tables.load_full();
    let host = server_name.unwrap_or_default();
    let Some(cluster) = backend(&table, &downstream, host) else {
        // Nothing can be said to a client whose protocol is not known: it sees a reset.
        downstream.io.reset();
        return tracing::debug!(peer = %downstream.peer, host, "no route for a server name");
    };
    let Origin::Gateway(name) = &downstream.origin else { return };
    let source = access::gateway_source(&table, name);
    let to = Dial::gateway(&cluster, (downstream.original_destination, source), Io::IS_RAW);
    tcp::serve(context, downstream, table, to, None).await;
}

/// Where the route for the server name leads.
fn backend<Io>(table: &RoutingTable, downstream: &Downstream<Io>, host: &str) -> Option<Arc<Cluster>> {
    let Origin::Gateway(name) = &downstream.origin else { return None };
    let gateway = plan::gateway(table, name, downstream.original_destination)?;
    let rules = gateway.hosts.find(host)?;
    let origin = RequestOrigin { source: None, port: downstream.original_destination.port() };
    let Action::Forward(forward) = &rules.find(&Opened(host), &origin)?.route.action else { return None };
    match &forward.draw()?.backend {
        Backend::Cluster(cluster) => Some(Arc::clone(cluster)),
        Backend::Original | Backend::Invalid { .. } => None,
    }
}

/// A connection as rules see it, which ask nothing of it.
struct Opened<'a>(&'a str);

impl RequestView for Opened<'_> {
    fn method(&self) -> &'static str {
        ""
    }

    fn path(&self) -> &'static str {
        "/"
    }

    fn query(&self) -> Option<&str> {
        None
    }

    fn host(&self) -> &str {
        self.0
    }

    fn scheme(&self) -> &'static str {
        "https"
    }

    fn header(&self, _: &str) -> Option<&[u8]> {
        None
    }
}
