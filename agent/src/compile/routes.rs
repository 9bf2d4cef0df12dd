//! Rules of the model -> routes of the table: destinations resolved, weights ready to draw.

use std::sync::Arc;

use super::clusters::Clusters;
use super::source::Source;
use super::{
    Action, Backend, Cluster, ClusterKey, Forward, HeaderOps, LimitMemo, Route, RouteName, WeightedBackend,
    Weights,
};
use crate::model::{
    Destination, HeaderOp, HttpRule, ObjectName, PathRewrite, RouteAction, RouteKind, RouteTable,
    WeightedDestination,
};

/// What destinations are resolved against.
pub(super) struct Scope<'a> {
    pub(super) source: &'a dyn Source,
    pub(super) clusters: &'a Clusters,
}

/// What the client of a route dials.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dialled<'a> {
    /// The port.
    pub(super) port: u16,
    /// The service, where clients dial its endpoints by their own addresses.
    pub(super) headless: Option<&'a ObjectName>,
}

impl Scope<'_> {
    /// Compiles a rule.
    pub(super) fn route(&self, table: &RouteTable, rule: &HttpRule, dialled: Dialled<'_>) -> Route {
        let action = match &rule.action {
            RouteAction::Forward { destinations, rewrite } => {
                Action::Forward(self.forward(table.kind, destinations, rewrite, dialled))
            }
            RouteAction::Redirect(redirect) => Action::Redirect(redirect.clone()),
            RouteAction::Respond(response) => Action::Respond(response.clone()),
        };
        Route {
            name: RouteName {
                kind: table.kind.as_str(),
                source: table.source.clone(),
                rule: Arc::clone(&rule.name),
            },
            action,
            timeout: rule.timeout,
            try_timeout: rule.try_timeout,
            request_headers: header_ops(&rule.request_headers),
            response_headers: header_ops(&rule.response_headers),
            limits: LimitMemo::default(),
        }
    }

    fn forward(
        &self,
        kind: RouteKind,
        destinations: &[WeightedDestination],
        rewrite: &PathRewrite,
        dialled: Dialled<'_>,
    ) -> Forward {
        let weights: Vec<u32> = destinations.iter().map(|destination| destination.weight).collect();
        let backends = destinations.iter().map(|weighted| WeightedBackend {
            backend: self.resolve(kind, &weighted.destination, dialled),
            weight: weighted.weight,
            request_headers: header_ops(&weighted.request_headers),
            response_headers: header_ops(&weighted.response_headers),
        });
        Forward { backends: backends.collect(), weights: Weights::new(&weights), rewrite: rewrite.clone() }
    }

    fn resolve(&self, kind: RouteKind, destination: &Destination, dialled: Dialled<'_>) -> Backend {
        let (service, port, subset) = match destination {
            Destination::Service { service, port, subset } => (service, *port, subset),
            Destination::Invalid { status } => return Backend::Invalid { status: *status },
        };
        let port = self.destination_port(service, port, dialled.port);
        // Who dials one of a headless service's pods means that pod, not any.
        if dialled.headless == Some(service) && subset.is_none() && port == Some(dialled.port) {
            return Backend::Original;
        }
        let cluster = port
            .map(|port| ClusterKey { service: service.clone(), port, subset: subset.clone() })
            .and_then(|key| self.clusters.get(&key));
        match cluster {
            Some(cluster) => Backend::Cluster(Arc::clone(cluster)),
            None => Backend::Invalid { status: unresolved_status(kind) },
        }
    }

    fn destination_port(&self, service: &ObjectName, port: Option<u16>, dialled: u16) -> Option<u16> {
        port.or_else(|| {
            let ports = &self.source.service(service)?.ports;
            if ports.iter().any(|candidate| candidate.port == dialled) {
                return Some(dialled);
            }
            match ports.as_slice() {
                [only] => Some(only.port),
                _ => None,
            }
        })
    }
}

/// The Gateway API asks for 500 where a backend reference doesn't resolve, Istio answers 503 (`NC`).
fn unresolved_status(kind: RouteKind) -> u16 {
    match kind {
        RouteKind::HttpRoute | RouteKind::TlsRoute => 500,
        RouteKind::VirtualService => 503,
    }
}

/// The route that a service has by itself.
pub(super) fn default_route(service: &ObjectName, headless: bool, cluster: &Arc<Cluster>) -> Route {
    let action = if headless {
        Action::Original
    } else {
        let backend = WeightedBackend {
            backend: Backend::Cluster(Arc::clone(cluster)),
            weight: 1,
            request_headers: header_ops(&[]),
            response_headers: header_ops(&[]),
        };
        let rewrite = PathRewrite::default();
        Action::Forward(Forward { backends: vec![backend], weights: Weights::new(&[1]), rewrite })
    };
    Route {
        name: RouteName { kind: "Service", source: service.clone(), rule: "default".into() },
        action,
        timeout: None,
        try_timeout: None,
        request_headers: header_ops(&[]),
        response_headers: header_ops(&[]),
        limits: LimitMemo::default(),
    }
}

fn header_ops(ops: &[HeaderOp]) -> HeaderOps {
    ops.into()
}

/// The route as it was, where nothing of it changed; else the new one, which goes on with its draws.
pub(super) fn share(route: Route, previous: Option<&Arc<Route>>) -> Arc<Route> {
    match previous {
        Some(before) if same(before, &route) => Arc::clone(before),
        Some(before) => Arc::new(resume(route, before)),
        None => Arc::new(route),
    }
}

fn resume(mut route: Route, before: &Route) -> Route {
    if let (Action::Forward(forward), Action::Forward(old)) = (&mut route.action, &before.action) {
        forward.weights.resume(&old.weights);
    }
    route
}

fn same(a: &Route, b: &Route) -> bool {
    a.name == b.name
        && a.timeout == b.timeout
        && a.try_timeout == b.try_timeout
        && a.request_headers == b.request_headers
        && a.response_headers == b.response_headers
        && same_action(&a.action, &b.action)
}

fn same_action(a: &Action, b: &Action) -> bool {
    match (a, b) {
        (Action::Forward(a), Action::Forward(b)) => {
            a.rewrite == b.rewrite
                && a.backends.len() == b.backends.len()
                && a.backends.iter().zip(&b.backends).all(|(a, b)| same_backend(a, b))
        }
        (Action::Redirect(a), Action::Redirect(b)) => a == b,
        (Action::Respond(a), Action::Respond(b)) => a == b,
        (Action::Original, Action::Original) => true,
        _ => false,
    }
}

fn same_backend(a: &WeightedBackend, b: &WeightedBackend) -> bool {
    let same_target = match (&a.backend, &b.backend) {
        (Backend::Cluster(a), Backend::Cluster(b)) => Arc::ptr_eq(a, b),
        (Backend::Original, Backend::Original) => true,
        (Backend::Invalid { status: a }, Backend::Invalid { status: b }) => a == b,
        _ => false,
    };
    same_target
        && a.weight == b.weight
        && a.request_headers == b.request_headers
        && a.response_headers == b.response_headers
}
