//! The values of records: everything of a model's objects that their keys don't say.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::WireError;
use super::key::{EndpointKey, ListenerKey, RouteKey};
use crate::model::serial::nanoseconds;
use crate::model::{
    AnswerHeader, AuthorizationPolicy, ClientTls, DirectResponse, EdgeGuard, Endpoint, HostPattern, HttpRule,
    KernelLimit, Labels, LbPolicy, Limit, LimitTarget, Listener, ListenerProtocol, ListenerTls, MtlsMode,
    ObjectName, PeerAuthentication, PolicyAction, PolicyRule, PolicyScope, Probe, RateLimit, RouteTable,
    Service, ServicePort, SourceRate, Subset, TlsRules, TrafficPolicy, Workload,
};

#[derive(Serialize, Deserialize)]
pub(super) struct ServiceRecord {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    cluster_ips: Vec<IpAddr>,
    #[serde(default, skip_serializing_if = "is_false")]
    headless: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ports: Vec<ServicePort>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    datagram_ports: Vec<ServicePort>,
    #[serde(default, rename = "affinity_ns", with = "nanoseconds", skip_serializing_if = "Option::is_none")]
    affinity: Option<Duration>,
}

impl From<&Service> for ServiceRecord {
    fn from(service: &Service) -> Self {
        Self {
            cluster_ips: service.cluster_ips.clone(),
            headless: service.headless,
            ports: service.ports.clone(),
            datagram_ports: service.datagram_ports.clone(),
            affinity: service.affinity,
        }
    }
}

impl ServiceRecord {
    pub(super) fn named(self, name: ObjectName) -> Service {
        let Self { cluster_ips, headless, ports, datagram_ports, affinity } = self;
        Service { name, cluster_ips, headless, ports, datagram_ports, affinity }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct EndpointRecord {
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    ready: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<ObjectName>,
    uid: Arc<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "has_none")]
    labels: Arc<Labels>,
}

impl From<&Endpoint> for EndpointRecord {
    fn from(endpoint: &Endpoint) -> Self {
        Self {
            ready: endpoint.ready,
            pod: endpoint.pod.clone(),
            uid: Arc::clone(&endpoint.uid),
            node: endpoint.node.clone(),
            labels: Arc::clone(&endpoint.labels),
        }
    }
}

impl EndpointRecord {
    pub(super) fn at(self, key: EndpointKey) -> Endpoint {
        let Self { ready, pod, uid, node, labels } = self;
        Endpoint {
            service: key.service,
            service_port: key.place.port,
            address: key.place.address,
            ready,
            pod,
            uid,
            node,
            labels,
        }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct WorkloadRecord {
    uid: Arc<str>,
    workload: Arc<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<Arc<str>>,
    service_account: Arc<str>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    addresses: Vec<IpAddr>,
    #[serde(default, skip_serializing_if = "has_none")]
    labels: Arc<Labels>,
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    accelerated: bool,
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    ready: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    probes: Vec<Probe>,
}

impl From<&Workload> for WorkloadRecord {
    fn from(workload: &Workload) -> Self {
        Self {
            uid: Arc::clone(&workload.uid),
            workload: Arc::clone(&workload.workload),
            node: workload.node.clone(),
            service_account: Arc::clone(&workload.service_account),
            addresses: workload.addresses.clone(),
            labels: Arc::clone(&workload.labels),
            accelerated: workload.accelerated,
            ready: workload.ready,
            probes: workload.probes.clone(),
        }
    }
}

impl WorkloadRecord {
    pub(super) fn named(self, name: ObjectName) -> Workload {
        let Self { uid, workload, node, service_account, addresses, labels, accelerated, ready, probes } =
            self;
        Workload { name, uid, workload, node, service_account, addresses, labels, accelerated, ready, probes }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct PolicyRecord {
    source: ObjectName,
    lb: LbPolicy,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    port_lb: Vec<(u16, LbPolicy)>,
    #[serde(default, skip_serializing_if = "TlsRules::is_empty")]
    tls: TlsRules<ClientTls>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    subsets: Vec<Subset>,
}

impl From<&TrafficPolicy> for PolicyRecord {
    fn from(policy: &TrafficPolicy) -> Self {
        Self {
            source: policy.source.clone(),
            lb: policy.lb,
            port_lb: policy.port_lb.clone(),
            tls: policy.tls.clone(),
            subsets: policy.subsets.clone(),
        }
    }
}

impl PolicyRecord {
    pub(super) fn of(self, service: ObjectName) -> TrafficPolicy {
        let Self { source, lb, port_lb, tls, subsets } = self;
        TrafficPolicy { source, service, lb, port_lb, tls, subsets }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct AuthorizationRecord {
    scope: PolicyScope,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    selector: Labels,
    action: PolicyAction,
    #[serde(default, skip_serializing_if = "is_false")]
    dry_run: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    rules: Vec<PolicyRule>,
}

impl From<&AuthorizationPolicy> for AuthorizationRecord {
    fn from(policy: &AuthorizationPolicy) -> Self {
        Self {
            scope: policy.scope.clone(),
            selector: policy.selector.clone(),
            action: policy.action,
            dry_run: policy.dry_run,
            rules: policy.rules.clone(),
        }
    }
}

impl AuthorizationRecord {
    pub(super) fn named(self, name: ObjectName) -> AuthorizationPolicy {
        let Self { scope, selector, action, dry_run, rules } = self;
        AuthorizationPolicy { name, scope, selector, action, dry_run, rules }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct PeerRecord {
    #[serde(default, skip_serializing_if = "str_is_empty")]
    created: Arc<str>,
    scope: PolicyScope,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    selector: Labels,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mode: Option<MtlsMode>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    ports: BTreeMap<u16, Option<MtlsMode>>,
}

impl From<&PeerAuthentication> for PeerRecord {
    fn from(peer: &PeerAuthentication) -> Self {
        Self {
            created: Arc::clone(&peer.created),
            scope: peer.scope.clone(),
            selector: peer.selector.clone(),
            mode: peer.mode,
            ports: peer.ports.clone(),
        }
    }
}

impl PeerRecord {
    pub(super) fn named(self, name: ObjectName) -> PeerAuthentication {
        let Self { created, scope, selector, mode, ports } = self;
        PeerAuthentication { name, created, scope, selector, mode, ports }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct GuardRecord {
    #[serde(default, skip_serializing_if = "is_empty")]
    deny: Arc<[IpNet]>,
    #[serde(default, skip_serializing_if = "is_empty")]
    allow: Arc<[IpNet]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    packets: Option<SourceRate>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    syns: Option<SourceRate>,
}

impl From<&EdgeGuard> for GuardRecord {
    fn from(guard: &EdgeGuard) -> Self {
        Self {
            deny: Arc::clone(&guard.deny),
            allow: Arc::clone(&guard.allow),
            packets: guard.packets,
            syns: guard.syns,
        }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct LimitRecord {
    targets: Vec<LimitTarget>,
    #[serde(default)]
    shadow: bool,
    limits: Vec<Limit>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    connections: Vec<Limit>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    kernel: Vec<KernelLimit>,
    answer: DirectResponse,
    #[serde(default, skip_serializing_if = "is_empty")]
    headers: Arc<[AnswerHeader]>,
    #[serde(default)]
    tells: bool,
}

impl From<&RateLimit> for LimitRecord {
    fn from(limit: &RateLimit) -> Self {
        Self {
            targets: limit.targets.clone(),
            shadow: limit.shadow,
            limits: limit.limits.clone(),
            kernel: limit.kernel.clone(),
            connections: limit.connections.clone(),
            answer: limit.answer.clone(),
            headers: Arc::clone(&limit.headers),
            tells: limit.tells,
        }
    }
}

impl LimitRecord {
    pub(super) fn named(self, name: ObjectName) -> RateLimit {
        let Self { targets, shadow, limits, connections, kernel, answer, headers, tells } = self;
        RateLimit { name, targets, shadow, limits, connections, kernel, answer, headers, tells }
    }
}

impl GuardRecord {
    pub(super) fn named(self, name: ObjectName) -> EdgeGuard {
        let Self { deny, allow, packets, syns } = self;
        EdgeGuard { name, deny, allow, packets, syns }
    }
}

/// `Rules`: as they are in a model where it is read, and not copied where it is written.
#[derive(Serialize, Deserialize)]
pub(super) struct RouteRecord<Rules> {
    /// The route before it in order of precedence; none: it is the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    after: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    services: Vec<(ObjectName, Option<u16>)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    hosts: Vec<HostPattern>,
    rules: Rules,
}

impl<'m> RouteRecord<&'m [HttpRule]> {
    pub(super) fn new(table: &'m RouteTable, after: Option<&RouteKey>) -> Self {
        Self {
            after: after.map(ToString::to_string),
            services: table.services.clone(),
            hosts: table.hosts.clone(),
            rules: &table.rules,
        }
    }
}

impl RouteRecord<Vec<HttpRule>> {
    pub(super) fn keyed(self, key: &RouteKey) -> (Option<String>, RouteTable) {
        let Self { after, services, hosts, rules } = self;
        (after, RouteTable { source: key.source.clone(), kind: key.kind, services, hosts, rules })
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct ListenerRecord {
    /// The listener before it; none: it is the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    after: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    addresses: Vec<IpAddr>,
    port: u16,
    protocol: ListenerProtocol,
    hostname: HostPattern,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tls: Option<ListenerTls>,
}

impl ListenerRecord {
    pub(super) fn new(listener: &Listener, after: Option<&ListenerKey>) -> Self {
        Self {
            after: after.map(ToString::to_string),
            addresses: listener.addresses.clone(),
            port: listener.port,
            protocol: listener.protocol,
            hostname: listener.hostname.clone(),
            tls: listener.tls.clone(),
        }
    }

    /// Without its routes, which have records of their own.
    pub(super) fn keyed(self, key: &ListenerKey) -> (Option<String>, Listener) {
        let Self { after, addresses, port, protocol, hostname, tls } = self;
        let listener = Listener {
            gateway: key.gateway.clone(),
            name: Arc::clone(&key.name),
            addresses,
            port,
            protocol,
            hostname,
            tls,
            routes: Vec::new(),
        };
        (after, listener)
    }
}

/// Writes a record.
pub(super) fn write(record: &impl Serialize) -> Box<[u8]> {
    serde_json::to_vec(record).expect("records have string keys alone, and a vector takes all writes").into()
}

/// Reads a record; what is wrong with it is told with its field.
pub(super) fn read<T: DeserializeOwned>(key: &str, json: &[u8]) -> Result<T, WireError> {
    serde_json::from_slice(json).map_err(|plain| {
        // Paths are kept track of where there is an error alone.
        let found = serde_path_to_error::deserialize::<_, T>(&mut serde_json::Deserializer::from_slice(json));
        let (field, problem) = match found {
            Err(error) => (error.path().to_string(), error.inner().to_string()),
            Ok(_) => (".".to_owned(), plain.to_string()),
        };
        WireError::Record { key: key.to_owned(), field, problem }
    })
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over references")]
fn is_true(value: &bool) -> bool {
    *value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over references")]
fn is_false(value: &bool) -> bool {
    !*value
}

fn str_is_empty(text: &Arc<str>) -> bool {
    text.is_empty()
}

fn has_none(labels: &Arc<Labels>) -> bool {
    labels.is_empty()
}

fn is_empty<T>(list: &Arc<[T]>) -> bool {
    list.is_empty()
}
