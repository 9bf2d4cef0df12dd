//! TLS of clients of Gateways that is passed on as it is: the server name chooses the backend, and no byte is changed.

use std::sync::Arc;

use super::http::plan;
use super::tcp::{self, Dial};
use super::{Context, Downstream, access};
use crate::compile::{Action, Backend, Cluster, RoutingTable};
use crate::route::{RequestOrigin, RequestView};
use crate::telemetry::Origin;

/// Serves a connection to its end; `downstream.read` has the client's first message.
pub(super) async fn serve(context: &Context, downstream: Downstream, server_name: Option<&str>) {
    let table = context.tables.load_full();
    let host = server_name.unwrap_or_default();
    let Some(cluster) = backend(&table, &downstream, host) else {
        // Nothing can be said to a client within somebody else's TLS: it sees a reset.
        let _ = downstream.io.set_zero_linger();
        return tracing::debug!(peer = %downstream.peer, host, "no route for TLS that is passed on");
    };
    let Origin::Gateway(name) = &downstream.origin else { return };
    let source = access::gateway_source(&table, name);
    let to = Dial::gateway(&cluster, (downstream.original_destination, source));
    tcp::serve(context, downstream, table, to, None).await;
}

/// Where the route for the server name leads.
fn backend(table: &RoutingTable, downstream: &Downstream, host: &str) -> Option<Arc<Cluster>> {
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
