//! The kinds of documents, one file each: the only place that knows their spelling. Each turns a tree of values into
//! a checked value; what needs other objects to be told is left to [`super::link`].

mod authorization_policy;
mod backend_tls_policy;
mod client_tls;
mod config_map;
mod destination_rule;
mod duration;
mod edge_guard;
mod endpoint_slice;
mod gateway;
mod gateway_clients;
mod gateway_tls;
mod header;
mod http_route;
mod later;
mod meta;
mod name;
mod peer_authentication;
mod pod;
mod probe;
mod rate_limit;
mod reference_grant;
mod secret;
mod service;
mod tls_route;
mod virtual_service;

pub(crate) use authorization_policy::AuthorizationPolicy;
pub(in crate::config) use authorization_policy::DRY_RUN;
pub(crate) use backend_tls_policy::BackendTlsPolicy;
pub(crate) use client_tls::{ClientTlsMode, ClientTlsSpec, OwnTls};
pub(crate) use config_map::{ConfigMap, has_roots};
pub(crate) use destination_rule::{DestinationRule, SubsetPolicy};
pub(crate) use endpoint_slice::{EndpointSlice, SliceEndpoint};
pub(crate) use gateway::{AllowedNamespaces, Gateway, GatewayClass, GatewayListenerSpec};
pub(crate) use gateway_clients::{BundleRef, GatewayClients};
pub(crate) use gateway_tls::{CertificateRef, GatewayTls};
pub(crate) use http_route::{BackendRef, HttpRoute, Parent, ParentKind, RouteRule, RuleAction};
pub(crate) use meta::{ObjectMeta, object_name, read_meta, written_name};
pub(crate) use name::{host_pattern, service_of_host};
pub(crate) use peer_authentication::PeerAuthentication;
pub(crate) use pod::Pod;
pub(crate) use reference_grant::ReferenceGrant;
pub(crate) use secret::Secret;
pub(crate) use service::{Service, TargetPort};
pub(crate) use virtual_service::VirtualService;

use super::node::{DecodeError, Decoded, Extra, Known, Node, decode as decode_node};
use super::object::Notes;
use super::report::Code;
use crate::model::{EdgeGuard, Labels, ObjectName, RateLimit, expression as regex};

/// The namespace whose policies are about the whole cluster, as Istio has it by default.
pub(super) const ROOT_NAMESPACE: &str = "istio-system";

/// The checked content of an object.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Spec {
    Service(Service),
    EndpointSlice(EndpointSlice),
    Pod(Pod),
    Namespace(Labels),
    VirtualService(VirtualService),
    DestinationRule(DestinationRule),
    GatewayClass(GatewayClass),
    Gateway(Gateway),
    HttpRoute(HttpRoute),
    /// A TLSRoute, in the form of an HTTPRoute.
    TlsRoute(HttpRoute),
    ReferenceGrant(ReferenceGrant),
    Secret(Secret),
    ConfigMap(ConfigMap),
    BackendTlsPolicy(BackendTlsPolicy),
    AuthorizationPolicy(AuthorizationPolicy),
    PeerAuthentication(PeerAuthentication),
    EdgeGuard(EdgeGuard),
    RateLimit(RateLimit),
    /// A kind that is accepted and not enforced yet.
    Later,
}

/// A kind that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Service,
    EndpointSlice,
    Pod,
    Namespace,
    VirtualService,
    DestinationRule,
    GatewayClass,
    Gateway,
    HttpRoute,
    TlsRoute,
    ReferenceGrant,
    Secret,
    ConfigMap,
    BackendTlsPolicy,
    AuthorizationPolicy,
    PeerAuthentication,
    EdgeGuard,
    RateLimit,
    Later,
}

const ISTIO: &str = "networking.istio.io";
const ISTIO_SECURITY: &str = "security.istio.io";
const GATEWAY_API: &str = "gateway.networking.k8s.io";
const ISTIO_VERSIONS: &[&str] = &["v1", "v1beta1", "v1alpha3"];
const GATEWAY_VERSIONS: &[&str] = &["v1", "v1beta1"];

/// Group, versions, name and kind of everything that is known.
const KINDS: &[(&str, &[&str], &str, Kind)] = &[
    ("", &["v1"], "Service", Kind::Service),
    ("", &["v1"], "Pod", Kind::Pod),
    ("", &["v1"], "Namespace", Kind::Namespace),
    ("", &["v1"], "Secret", Kind::Secret),
    ("", &["v1"], "ConfigMap", Kind::ConfigMap),
    ("networking.k8s.io", &["v1"], "Ingress", Kind::Later),
    ("networking.k8s.io", &["v1"], "NetworkPolicy", Kind::Later),
    ("discovery.k8s.io", &["v1", "v1beta1"], "EndpointSlice", Kind::EndpointSlice),
    (ISTIO, ISTIO_VERSIONS, "VirtualService", Kind::VirtualService),
    (ISTIO, ISTIO_VERSIONS, "DestinationRule", Kind::DestinationRule),
    (ISTIO, ISTIO_VERSIONS, "ServiceEntry", Kind::Later),
    (ISTIO, ISTIO_VERSIONS, "WorkloadEntry", Kind::Later),
    (ISTIO_SECURITY, &["v1", "v1beta1"], "PeerAuthentication", Kind::PeerAuthentication),
    (ISTIO_SECURITY, &["v1", "v1beta1"], "AuthorizationPolicy", Kind::AuthorizationPolicy),
    (ISTIO_SECURITY, &["v1", "v1beta1"], "RequestAuthentication", Kind::Later),
    (GATEWAY_API, GATEWAY_VERSIONS, "GatewayClass", Kind::GatewayClass),
    (GATEWAY_API, GATEWAY_VERSIONS, "Gateway", Kind::Gateway),
    (GATEWAY_API, GATEWAY_VERSIONS, "HTTPRoute", Kind::HttpRoute),
    (GATEWAY_API, GATEWAY_VERSIONS, "ReferenceGrant", Kind::ReferenceGrant),
    (GATEWAY_API, &["v1", "v1alpha2"], "GRPCRoute", Kind::Later),
    (GATEWAY_API, &["v1", "v1alpha3", "v1alpha2"], "TLSRoute", Kind::TlsRoute),
    (GATEWAY_API, &["v1", "v1alpha2"], "TCPRoute", Kind::Later),
    (GATEWAY_API, &["v1", "v1alpha3"], "BackendTLSPolicy", Kind::BackendTlsPolicy),
    ("sluice.dev", &["v1alpha1"], "EdgeGuard", Kind::EdgeGuard),
    ("sluice.dev", &["v1alpha1"], "RateLimit", Kind::RateLimit),
    ("sluice.dev", &["v1alpha1"], "Migration", Kind::Later),
    ("sluice.dev", &["v1alpha1"], "Aggregate", Kind::Later),
    ("sluice.dev", &["v1alpha1"], "Cache", Kind::Later),
    ("sluice.dev", &["v1alpha1"], "Fallback", Kind::Later),
    ("sluice.dev", &["v1alpha1"], "Transcode", Kind::Later),
];

/// Groups whose kinds say nothing about traffic. Others' groups are told by their dot, as those of custom resources.
const GROUPS_ELSEWHERE: &[&str] = &["apps", "autoscaling", "batch", "extensions", "policy"];
/// Kinds of the group that ours share with the rest of Kubernetes.
const CORE_ELSEWHERE: &[&str] = &[
    "Binding",
    "ComponentStatus",
    "ConfigMap",
    "Endpoints",
    "Event",
    "LimitRange",
    "Node",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "PodTemplate",
    "ReplicationController",
    "ResourceQuota",
    "ServiceAccount",
];

fn split_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

impl Kind {
    /// The kind of this API version and name.
    pub fn find(api_version: &str, name: &str) -> Option<Self> {
        let (group, version) = split_version(api_version);
        let found =
            KINDS.iter().find(|(g, versions, n, _)| *g == group && *n == name && versions.contains(&version));
        found.map(|(.., kind)| *kind)
    }

    /// Whether messages on single fields can arise after the object is read. Pods and endpoints come by the thousand
    /// and are named by their first line alone.
    pub fn keeps_lines(self) -> bool {
        !matches!(
            self,
            Self::Pod
                | Self::EndpointSlice
                | Self::Namespace
                | Self::EdgeGuard
                | Self::Secret
                | Self::ConfigMap
                | Self::Later
        )
    }
}

/// Whether an object of this API version and name is no business of ours: a kind that nobody could mean one of ours by.
pub(crate) fn is_elsewhere(api_version: &str, name: &str) -> bool {
    let (group, _) = split_version(api_version);
    if group.is_empty() {
        return CORE_ELSEWHERE.contains(&name);
    }
    let is_ours = |text: &str| KINDS.iter().any(|(group, _, kind, _)| *group == text || *kind == text);
    !name.is_empty()
        && !is_ours(name)
        && !is_ours(group)
        && (group.contains('.') || GROUPS_ELSEWHERE.contains(&group))
}

/// Whether this is the list of a known kind, such as `networking.istio.io/v1` `VirtualServiceList`.
pub(crate) fn is_list(api_version: &str, name: &str) -> bool {
    name.strip_suffix("List").is_some_and(|item| Kind::find(api_version, item).is_some())
}

/// The API versions in which a kind of this name is known.
pub(crate) fn versions_of(name: &str) -> Vec<String> {
    let versions = KINDS.iter().filter(|(_, _, kind, _)| *kind == name).flat_map(|(group, versions, ..)| {
        versions.iter().map(move |version| match *group {
            "" => (*version).to_owned(),
            group => format!("{group}/{version}"),
        })
    });
    versions.collect()
}

/// Whether a kind has this name, in whatever API version.
pub fn is_kind(name: &str) -> bool {
    KINDS.iter().any(|(_, _, kind, _)| *kind == name)
}

/// Whether objects of this kind have no namespace.
fn is_cluster_scoped(kind: &str) -> bool {
    matches!(kind, "Namespace" | "GatewayClass" | "EdgeGuard")
}

/// An object to decode.
pub(crate) struct Source<'a> {
    /// The whole object.
    pub node: &'a Node,
    /// Its name.
    pub name: &'a ObjectName,
    /// Its metadata.
    pub meta: &'a ObjectMeta,
}

/// Decodes an object of a kind. Problems of a single field that leave the rest readable are put in `notes`, so that one
/// report names them all; the object is valid if `notes` has no error.
pub(crate) fn decode(kind: Kind, source: &Source<'_>, notes: &mut Notes<'_>) -> Result<Spec, DecodeError> {
    Ok(match kind {
        Kind::Service => Spec::Service(service::decode(source, notes)?),
        Kind::EndpointSlice => Spec::EndpointSlice(endpoint_slice::decode(source, notes)?),
        Kind::Pod => Spec::Pod(pod::decode(source, notes)?),
        Kind::Namespace => {
            later::check_namespace(source)?;
            Spec::Namespace(source.meta.labels())
        }
        Kind::VirtualService => Spec::VirtualService(virtual_service::decode(source, notes)?),
        Kind::DestinationRule => Spec::DestinationRule(destination_rule::decode(source, notes)?),
        Kind::GatewayClass => Spec::GatewayClass(gateway::decode_class(source, notes)?),
        Kind::Gateway => Spec::Gateway(gateway::decode(source, notes)?),
        Kind::HttpRoute => Spec::HttpRoute(http_route::decode(source, notes)?),
        Kind::TlsRoute => Spec::TlsRoute(tls_route::decode(source, notes)?),
        Kind::ReferenceGrant => Spec::ReferenceGrant(reference_grant::decode(source, notes)?),
        Kind::Secret => Spec::Secret(secret::decode(source, notes)?),
        Kind::BackendTlsPolicy => Spec::BackendTlsPolicy(backend_tls_policy::decode(source, notes)?),
        Kind::ConfigMap => Spec::ConfigMap(config_map::decode(source, notes)?),
        Kind::AuthorizationPolicy => Spec::AuthorizationPolicy(authorization_policy::decode(source, notes)?),
        Kind::PeerAuthentication => Spec::PeerAuthentication(peer_authentication::decode(source, notes)?),
        Kind::EdgeGuard => Spec::EdgeGuard(edge_guard::decode(source, notes)?),
        Kind::RateLimit => Spec::RateLimit(rate_limit::decode(source, notes)?),
        Kind::Later => {
            later::check(source)?;
            Spec::Later
        }
    })
}

/// An object whose content is under `spec`.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Document<S> {
    spec: S,
}

/// What every document accepts beside its `spec`; `metadata` is read by [`read_meta`].
const DOCUMENT: &[Extra] =
    &[Extra { of: "Document", fields: &[Known::Ignored(&["apiVersion", "kind", "metadata", "status"])] }];

/// Decodes an object that the control plane writes: fields that are not known here are told, and no reason to lose it.
fn decode_machine_written<'de, T: serde::Deserialize<'de>>(
    source: &Source<'de>,
    extras: &'static [&'static [Extra]],
    notes: &mut Notes<'_>,
) -> Result<T, DecodeError> {
    let Decoded { value, passed_over, .. } = decode_node(source.node, extras)?;
    for field in &passed_over {
        notes.warning(Code::Ignored, field, "the field is not known here and is passed over");
    }
    Ok(value)
}

/// Decodes the `spec` of an object and lists its fields that are not enforced yet.
fn decode_spec<'de, S: serde::Deserialize<'de>>(
    source: &Source<'de>,
    extras: &'static [&'static [Extra]],
    notes: &mut Notes<'_>,
) -> Result<S, DecodeError> {
    let Decoded { value, later, .. } = decode_node::<Document<S>>(source.node, extras)?;
    for field in &later {
        notes.later(field);
    }
    Ok(value.spec)
}
