//! What a request's route asks for. Pure but for the draw of a weight.

use std::net::SocketAddr;
use std::sync::Arc;

use super::changes::Changes;
use crate::compile::{Action, Backend, Cluster, Forward, RoutingTable, VirtualHost, WeightedBackend};
use crate::http::h1::RequestHead;
use crate::model::{AppProtocol, DirectResponse, Redirect, Workload};
use crate::proxy::answer::Problem;
use crate::route::{RequestOrigin, RequestView, RouteMatch};
use crate::telemetry::Origin;

/// What is done with a request.
#[derive(Debug, Clone, Copy)]
pub(in crate::proxy) enum Plan<'t> {
    /// Sent to an endpoint of a cluster.
    Forward {
        /// The route's destinations.
        forward: &'t Forward,
        /// The one that was drawn.
        backend: &'t WeightedBackend,
        /// Its cluster.
        cluster: &'t Arc<Cluster>,
    },
    /// Sent to the address that the client dialled.
    Original {
        /// What is spoken there.
        protocol: AppProtocol,
    },
    /// Answered with a redirect.
    Redirect(&'t Redirect),
    /// Answered with a fixed response.
    Respond(&'t DirectResponse),
    /// Answered with an error.
    Fail(Problem),
}

/// The route that took a request, if one did, and what it asks for.
#[derive(Debug, Clone, Copy)]
pub(in crate::proxy) struct Planned<'t> {
    /// The route.
    pub route: Option<RouteMatch<'t>>,
    /// What it asks for.
    pub plan: Plan<'t>,
}

impl<'t> Planned<'t> {
    /// The changes to the request's fields.
    pub fn request_changes(&self) -> Changes<'t> {
        let route = self.route.map(|matched| &*matched.route.request_headers);
        let backend = self.backend().map(|backend| &*backend.request_headers);
        Changes([route.unwrap_or_default(), backend.unwrap_or_default()])
    }

    /// The changes to the response's fields.
    pub fn response_changes(&self) -> Changes<'t> {
        let route = self.route.map(|matched| &*matched.route.response_headers);
        let backend = self.backend().map(|backend| &*backend.response_headers);
        Changes([route.unwrap_or_default(), backend.unwrap_or_default()])
    }

    /// What the upstream's port declares.
    pub fn protocol(&self) -> AppProtocol {
        match self.plan {
            Plan::Forward { cluster, .. } => cluster.protocol,
            Plan::Original { protocol } => protocol,
            Plan::Redirect(_) | Plan::Respond(_) | Plan::Fail(_) => AppProtocol::Undeclared,
        }
    }

    fn backend(&self) -> Option<&'t WeightedBackend> {
        if let Plan::Forward { backend, .. } = self.plan { Some(backend) } else { None }
    }
}

/// Where a request entered and by whom.
#[derive(Debug, Clone, Copy)]
pub(in crate::proxy) struct Entry<'a> {
    /// Where the connection entered.
    pub origin: &'a Origin,
    /// What the client dialled.
    pub original_destination: SocketAddr,
    /// The client's pod, where known.
    pub source: Option<&'a Workload>,
}

/// Finds what `table` asks for.
pub(in crate::proxy) fn plan<'t>(
    table: &'t RoutingTable,
    head: &RequestHead,
    entry: Entry<'_>,
) -> Planned<'t> {
    let mut protocol = AppProtocol::Undeclared;
    let host = match entry.origin {
        Origin::Outbound => match table.frontends.get(&entry.original_destination) {
            Some(frontend) => {
                protocol = frontend.protocol;
                &frontend.http
            }
            // The table no longer knows the address: the traffic goes where it would go without us.
            None => return Planned { route: None, plan: Plan::Original { protocol } },
        },
        Origin::Gateway(name) => match gateway_host(table, name, head.host()) {
            Some(host) => host,
            None => return Planned { route: None, plan: Plan::Fail(Problem::NoHost) },
        },
    };
    let origin = RequestOrigin { source: entry.source, port: entry.original_destination.port() };
    match host.rules.find(head, &origin) {
        Some(route) => Planned { route: Some(route), plan: follow(route, protocol) },
        None => Planned { route: None, plan: Plan::Fail(Problem::NoRoute) },
    }
}

fn gateway_host<'t>(table: &'t RoutingTable, name: &str, host: &str) -> Option<&'t Arc<VirtualHost>> {
    table.gateways.iter().find(|gateway| &*gateway.name == name)?.hosts.find(host)
}

/// `protocol`: what is spoken at the address that the client dialled.
fn follow(matched: RouteMatch<'_>, protocol: AppProtocol) -> Plan<'_> {
    match &matched.route.action {
        Action::Forward(forward) => match forward.draw().map(|backend| (backend, &backend.backend)) {
            Some((backend, Backend::Cluster(cluster))) => Plan::Forward { forward, backend, cluster },
            Some((_, Backend::Invalid { status })) => Plan::Fail(Problem::NoCluster { status: *status }),
            None => Plan::Fail(Problem::NoWeight),
        },
        Action::Redirect(redirect) => Plan::Redirect(redirect),
        Action::Respond(response) => Plan::Respond(response),
        Action::Original => Plan::Original { protocol },
    }
}
