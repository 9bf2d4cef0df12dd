//! The labels of Istio's standard metrics.

use std::sync::Arc;

use super::{Flag, Origin, ResponseFlags};
use crate::compile::Realm;
use crate::http::grpc::GrpcStatus;
use crate::model::{ObjectName, Workload};

/// What Istio writes where it does not know.
pub(super) const UNKNOWN: &str = "unknown";

/// What makes two records count in the same series.
#[derive(Debug, Clone, Copy)]
pub(super) struct Traffic<'a> {
    pub(super) origin: &'a Origin,
    pub(super) source: Option<&'a Arc<Workload>>,
    pub(super) destination: Option<&'a Arc<Workload>>,
    pub(super) service: Option<&'a ObjectName>,
    /// `None` for opaque connections.
    pub(super) status: Option<u16>,
    pub(super) grpc: bool,
    pub(super) grpc_status: Option<GrpcStatus>,
    pub(super) flags: ResponseFlags,
}

/// Names of the labels, in the order of [`values`].
pub(super) const NAMES: [&str; 22] = [
    "reporter",
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "source_canonical_service",
    "source_canonical_revision",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "request_protocol",
    "response_flags",
];

/// Labels that follow for requests.
pub(super) const REQUEST_NAMES: [&str; 3] =
    ["connection_security_policy", "response_code", "grpc_response_status"];

/// The label that follows for connections.
pub(super) const TCP_NAMES: [&str; 1] = ["connection_security_policy"];

/// The values of all labels of a record. `cluster` is the cluster's name, `realm` where the agent is.
pub(super) fn values(traffic: &Traffic<'_>, cluster: &str, realm: &Realm) -> Vec<String> {
    let is_proven = is_proven(traffic, realm);
    let side = |pod: Option<&Arc<Workload>>| side(pod, cluster, realm, is_proven);
    // A gateway is the client of what it forwards to.
    let reporter = match traffic.origin {
        Origin::Outbound | Origin::Gateway(_) => "source",
        Origin::Inbound | Origin::Tunnel(_) => "destination",
    };
    let mut values = vec![reporter.to_owned()];
    match (traffic.origin, traffic.source) {
        (Origin::Gateway(listener), _) => values.extend(gateway(listener, cluster)),
        (Origin::Outbound | Origin::Inbound | Origin::Tunnel(_), source) => {
            values.extend(side(source));
        }
    }
    values.extend(side(traffic.destination));
    let service = traffic.service.map(|service| (service.fqdn(), &*service.name, &*service.namespace));
    let (host, name, namespace) = service.unwrap_or_else(|| (UNKNOWN.to_owned(), UNKNOWN, UNKNOWN));
    values.extend([host, name.to_owned(), namespace.to_owned()]);
    let protocol = match (traffic.status, traffic.grpc) {
        (None, _) => "tcp",
        (Some(_), false) => "http",
        (Some(_), true) => "grpc",
    };
    let security = if is_proven { "mutual_tls" } else { "none" };
    values.extend([protocol.to_owned(), traffic.flags.to_string(), security.to_owned()]);
    if let Some(status) = traffic.status {
        let grpc_status = traffic.grpc_status.map(|status| status.0.to_string()).unwrap_or_default();
        values.extend([status.to_string(), grpc_status]);
    }
    values
}

/// Whether a tunnel has proven both ends, as ztunnel says it of either side. Whether one is made for a Gateway is not told by its
/// listener's name: several that share a port speak as nobody.
fn is_proven(traffic: &Traffic<'_>, realm: &Realm) -> bool {
    match (traffic.origin, traffic.source, traffic.destination) {
        (Origin::Tunnel(_), ..) => true,
        (Origin::Outbound, Some(source), Some(destination)) => {
            // Where none came about nobody has proven anything.
            let made = ![Flag::UpstreamConnectFailure, Flag::AccessDenied]
                .into_iter()
                .any(|flag| traffic.flags.contains(flag));
            made && realm.is_tunnelled(source, destination)
        }
        (Origin::Outbound | Origin::Inbound | Origin::Gateway(_), ..) => false,
    }
}

/// Workload, namespace, principal, app, version, cluster, canonical service and revision.
fn side(workload: Option<&Arc<Workload>>, cluster: &str, realm: &Realm, is_proven: bool) -> [String; 8] {
    let Some(workload) = workload else { return std::array::from_fn(|_| UNKNOWN.to_owned()) };
    let label = |name: &str| workload.labels.get(name).map(|value| &**value);
    let principal = if is_proven { realm.identity(workload).uri() } else { UNKNOWN.to_owned() };
    [
        &*workload.workload,
        &*workload.name.namespace,
        &principal,
        label("app").unwrap_or(UNKNOWN),
        label("version").unwrap_or(UNKNOWN),
        cluster,
        workload.canonical_name(),
        workload.canonical_revision(),
    ]
    .map(str::to_owned)
}

/// A gateway stands for its clients; `listener` is `namespace/gateway/listener`.
fn gateway(listener: &str, cluster: &str) -> [String; 8] {
    let mut parts = listener.split('/');
    let namespace = parts.next().unwrap_or(UNKNOWN);
    let name = parts.next().unwrap_or(UNKNOWN);
    [name, namespace, UNKNOWN, name, UNKNOWN, cluster, name, "latest"].map(str::to_owned)
}
