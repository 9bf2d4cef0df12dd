//! What a request's route asks for. Pure but for the draw of a weight.

use std::net::SocketAddr;
use std::sync::Arc;

use super::changes::Changes;
use crate::compile::{Action, Backend, Cluster, GatewayListener, RoutingTable, VirtualHost, WeightedBackend};
use crate::http::Refusal;
use crate::http::h1::RequestHead;
use crate::model::{AppProtocol, DirectResponse, PathRewrite, Redirect, Workload};
use crate::proxy::Handshaken;
use crate::proxy::answer::Problem;
use crate::proxy::limits::{Left, Limited};
use crate::route::{RequestOrigin, RequestView, RouteMatch, rewrite_climbs};
use crate::telemetry::Origin;

/// What is done with a request.
#[derive(Debug, Clone, Copy)]
pub(in crate::proxy) enum Plan<'t> {
    /// Sent to an endpoint of a cluster.
    Forward {
        /// The cluster that was drawn.
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
    /// Answered with what a rate limit has for requests beyond it.
    Limited(Limited<'t>),
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
    /// The destination that was drawn, where it was one.
    share: Option<&'t WeightedBackend>,
    /// What is left of a limit, where the client is told.
    left: Option<Left<'t>>,
}

impl<'t> Planned<'t> {
    /// The changes to the request's fields.
    pub fn request_changes(&self) -> Changes<'t> {
        let route = self.route.map(|matched| &*matched.route.request_headers);
        let backend = self.share.map(|backend| &*backend.request_headers);
        Changes { ops: [route.unwrap_or_default(), backend.unwrap_or_default()], left: None }
    }

    /// The changes to the response's fields.
    pub fn response_changes(&self) -> Changes<'t> {
        let route = self.route.map(|matched| &*matched.route.response_headers);
        let backend = self.share.map(|backend| &*backend.response_headers);
        Changes { ops: [route.unwrap_or_default(), backend.unwrap_or_default()], left: self.left }
    }

    /// What the upstream's port declares.
    pub fn protocol(&self) -> AppProtocol {
        match self.plan {
            Plan::Forward { cluster, .. } => cluster.protocol,
            Plan::Original { protocol } => protocol,
            Plan::Redirect(_) | Plan::Respond(_) | Plan::Limited(_) | Plan::Fail(_) => {
                AppProtocol::Undeclared
            }
        }
    }

    /// What the upstream sees as path and host.
    pub fn rewrite(&self) -> Option<&'t PathRewrite> {
        match &self.route?.route.action {
            Action::Forward(forward) => Some(&forward.rewrite),
            Action::Redirect(_) | Action::Respond(_) | Action::Original => None,
        }
    }

    /// A request that is not taken.
    pub fn refused(refusal: Refusal) -> Self {
        Self::unrouted(Plan::Fail(Problem::Refused(refusal)))
    }

    /// The same, but that the request is refused where the rewritten path would have `.` or `..` in it.
    pub fn unless_it_climbs(self, path: &str) -> Self {
        let rewrite = self.rewrite().and_then(|rewrite| rewrite.path.as_ref());
        match (rewrite, self.route) {
            (Some(rewrite), Some(matched)) if rewrite_climbs(&matched, rewrite, path) => {
                Self { plan: Plan::Fail(Problem::Refused(Refusal::bad("path_rewrite_dots"))), ..self }
            }
            _ => self,
        }
    }

    /// The same, but that a limit refuses it.
    pub fn limited(self, limited: Limited<'t>) -> Self {
        Self { plan: Plan::Limited(limited), ..self }
    }

    /// The client is told what is left of a limit.
    pub fn telling(self, left: Option<Left<'t>>) -> Self {
        Self { left, ..self }
    }

    /// The same, of another limit that may leave less.
    pub fn telling_too(self, left: Left<'t>) -> Self {
        Self { left: Some(Left::least(self.left, left)), ..self }
    }

    /// What is done without a route.
    pub fn unrouted(plan: Plan<'t>) -> Self {
        Self { route: None, plan, share: None, left: None }
    }

    fn routed(route: RouteMatch<'t>, protocol: AppProtocol) -> Self {
        let (plan, share) = follow(route, protocol);
        Self { route: Some(route), plan, share, left: None }
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
    /// What the connection's TLS handshake told, where it had one.
    pub tls: Option<&'a Handshaken>,
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
            None => return Planned::unrouted(Plan::Original { protocol }),
        },
        // Whoever sent it has routed it; it is for the pod that it is on its way into.
        Origin::Inbound | Origin::Tunnel(_) => return Planned::unrouted(Plan::Original { protocol }),
        Origin::Gateway(name) => {
            let gateway = gateway(table, name, entry.original_destination);
            match gateway
                .ok_or(Problem::NoListener)
                .and_then(|gateway| host_of(gateway, head.host(), entry.tls))
            {
                Ok(host) => host,
                Err(problem) => return Planned::unrouted(Plan::Fail(problem)),
            }
        }
    };
    let origin = RequestOrigin { source: entry.source, port: entry.original_destination.port() };
    match host.find(head, &origin) {
        Some(route) => Planned::routed(route, protocol),
        None => Planned::unrouted(Plan::Fail(Problem::NoRoute)),
    }
}

/// The rules for a host on a Gateway's port. A connection that was made before the port's protocol changed has no listener any
/// more: what is to be sent in TLS alone is not sent by it.
fn host_of<'t>(
    gateway: &'t GatewayListener,
    host: &str,
    tls: Option<&Handshaken>,
) -> Result<&'t Arc<VirtualHost>, Problem> {
    if gateway.tls.is_some() != tls.is_some() {
        return Err(Problem::NoListener);
    }
    if tls.is_some_and(|tls| !tls.takes(gateway, host)) {
        return Err(Problem::Refused(Refusal::with(421, "host_of_another_listener")));
    }
    gateway.hosts.find(host).ok_or(Problem::NoHost)
}

/// The Gateway's listener that a connection came in by: by its name, or by its address where the listener has been given
/// another name since, or the name to another port.
pub(in crate::proxy) fn gateway<'t>(
    table: &'t RoutingTable,
    name: &str,
    dialled: SocketAddr,
) -> Option<&'t Arc<GatewayListener>> {
    let ip = dialled.ip().to_canonical();
    let named =
        table.gateways.iter().find(|gateway| &*gateway.name == name && gateway.port == dialled.port());
    let on = |addressed: bool| {
        table.gateways.iter().find(move |gateway| {
            gateway.port == dialled.port()
                && if addressed { gateway.addresses.contains(&ip) } else { gateway.addresses.is_empty() }
        })
    };
    named.or_else(|| on(true)).or_else(|| on(false))
}

/// What a route asks for, with the destination that was drawn. `protocol`: what is spoken at the address that the client
/// dialled.
fn follow(matched: RouteMatch<'_>, protocol: AppProtocol) -> (Plan<'_>, Option<&WeightedBackend>) {
    let plan = match &matched.route.action {
        Action::Forward(forward) => {
            let drawn = forward.draw();
            let plan = match drawn.map(|share| &share.backend) {
                Some(Backend::Cluster(cluster)) => Plan::Forward { cluster },
                Some(Backend::Original) => Plan::Original { protocol },
                Some(Backend::Invalid { status }) => Plan::Fail(Problem::NoCluster { status: *status }),
                None => Plan::Fail(Problem::NoWeight),
            };
            return (plan, drawn);
        }
        Action::Redirect(redirect) => Plan::Redirect(redirect),
        Action::Respond(response) => Plan::Respond(response),
        Action::Original => Plan::Original { protocol },
    };
    (plan, None)
}
