//! The routing table in readable form: `/routes` and `/endpoints`, which feed the tables of `sluice routes` and
//! `sluice endpoints`.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::compile::{
    Action, Backend, Cluster, ClusterKey, Forward, HeaderOps, Route, RoutingTable, Upstream, VirtualHost,
    WeightedBackend,
};
use crate::model::{
    AppProtocol, HeaderChange, LbPolicy, MatchPath, MatchValue, PathRewrite, Redirect, RedirectPath,
    RedirectPort, RequestMatch,
};

/// All virtual hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutesDump {
    /// The table's epoch.
    pub epoch: u64,
    /// The table's version.
    pub version: u64,
    /// Virtual hosts: those of services, sorted by name, then those of gateways.
    pub hosts: Vec<HostDump>,
}

/// One virtual host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostDump {
    /// Its name, e.g. `order-service.default.svc.cluster.local:80` or `*.example.com`.
    pub name: String,
    /// The Gateway listener, `namespace/gateway/listener`; `None`: a service's.
    pub listener: Option<String>,
    /// What clients dial, sorted.
    pub addresses: Vec<String>,
    /// What is spoken: `http`, `http2`, `grpc`, `tcp`, `auto`.
    pub protocol: String,
    /// Its rules, in order of precedence.
    pub rules: Vec<RuleDump>,
}

/// One rule. Exactly one of `destinations`, `redirect`, `respond` and `original` says what is done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleDump {
    /// `VirtualService`, `HTTPRoute` or `Service`.
    pub kind: String,
    /// The document, `namespace/name`.
    pub source: String,
    /// The rule's name within it.
    pub rule: String,
    /// Alternatives in readable form; empty: every request.
    pub matches: Vec<String>,
    /// Where requests go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub destinations: Vec<DestinationDump>,
    /// Where clients are sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect: Option<String>,
    /// The status of the agent's own answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub respond: Option<u16>,
    /// Whether requests go to the address that the client dialled.
    #[serde(default, skip_serializing_if = "is_false")]
    pub original: bool,
    /// What the upstream sees instead of the request's path and host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewrite: Option<String>,
    /// Milliseconds for the whole request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Milliseconds for one try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub try_timeout_ms: Option<u64>,
    /// Changes to the request's header fields.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub request_headers: Vec<String>,
    /// Changes to the response's header fields.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub response_headers: Vec<String>,
}

/// One weighted destination.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationDump {
    /// The cluster, `namespace/service:port[/subset]`; `None`: unresolved, or the address that the client dialled.
    pub cluster: Option<String>,
    /// Whether it is the address that the client dialled.
    #[serde(default, skip_serializing_if = "is_false")]
    pub original: bool,
    /// The status that requests get where it is unresolved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Its weight.
    pub weight: u32,
    /// Changes to header fields on this share alone: the request's, then the response's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<String>,
}

/// All endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointsDump {
    /// The table's epoch.
    pub epoch: u64,
    /// The table's version.
    pub version: u64,
    /// One entry for each endpoint of each cluster, sorted by cluster; an endpoint of a subset is there twice.
    pub endpoints: Vec<EndpointDump>,
    /// Clusters without any endpoint.
    pub empty: Vec<String>,
}

/// One endpoint of one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointDump {
    /// The cluster, `namespace/service:port[/subset]`.
    pub cluster: String,
    /// How one of the cluster's is chosen.
    pub policy: String,
    /// Where to connect.
    pub address: String,
    /// The pod, `namespace/name`, where known.
    pub pod: Option<String>,
    /// Its node, where known.
    pub node: Option<String>,
    /// Whether it is given new work.
    pub ready: bool,
    /// Why it is not, where the documents do not say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out: Option<String>,
    /// Requests and connections in flight.
    pub active: u32,
}

/// A virtual host of a table with what leads to it.
pub(super) struct TableHost<'a> {
    listener: Option<&'a Arc<str>>,
    addresses: Vec<SocketAddr>,
    protocol: &'static str,
    pub(super) host: &'a VirtualHost,
    /// Where everything goes that is declared to be no HTTP; rules for requests are then of no use.
    opaque: Option<&'a Cluster>,
}

/// Virtual hosts of services, by name, and then of gateways.
pub(super) fn virtual_hosts(table: &RoutingTable) -> Vec<TableHost<'_>> {
    let mut services: BTreeMap<&str, TableHost<'_>> = BTreeMap::new();
    for (address, frontend) in table.frontends.iter() {
        let entry = services.entry(&frontend.http.name).or_insert_with(|| TableHost {
            listener: None,
            addresses: Vec::new(),
            protocol: frontend.protocol.as_str(),
            host: &frontend.http,
            opaque: (frontend.protocol == AppProtocol::Tcp).then_some(&*frontend.tcp),
        });
        entry.addresses.push(*address);
    }
    let gateways = table.gateways.iter().flat_map(|gateway| {
        let addresses: Vec<SocketAddr> =
            gateway.addresses.iter().map(|address| SocketAddr::new(*address, gateway.port)).collect();
        let any = addresses.is_empty().then(|| SocketAddr::from(([0, 0, 0, 0], gateway.port)));
        let addresses: Vec<_> = addresses.into_iter().chain(any).collect();
        gateway.hosts.iter().map(move |(pattern, host)| TableHost {
            listener: Some(gateway.owner(&pattern)),
            addresses: addresses.clone(),
            protocol: "http",
            host,
            opaque: None,
        })
    });
    services.into_values().chain(gateways).collect()
}

/// The table's virtual hosts.
pub fn routes(table: &RoutingTable) -> RoutesDump {
    let dump = |mut entry: TableHost<'_>| {
        entry.addresses.sort_unstable();
        HostDump {
            name: entry.host.name.to_string(),
            listener: entry.listener.map(ToString::to_string),
            addresses: entry.addresses.iter().map(ToString::to_string).collect(),
            protocol: entry.protocol.to_owned(),
            rules: match entry.opaque {
                Some(cluster) => vec![opaque_rule(cluster)],
                None => entry.host.rules().map(|(matches, route)| rule(matches, route)).collect(),
            },
        }
    };
    RoutesDump {
        epoch: table.version.token.epoch,
        version: table.version.version,
        hosts: virtual_hosts(table).into_iter().map(dump).collect(),
    }
}

/// What becomes of connections to a port that is declared to be no HTTP.
fn opaque_rule(cluster: &Cluster) -> RuleDump {
    RuleDump {
        kind: "Service".to_owned(),
        source: cluster.key.service.to_string(),
        destinations: vec![DestinationDump {
            cluster: Some(cluster_name(&cluster.key)),
            weight: 1,
            ..DestinationDump::default()
        }],
        ..RuleDump::default()
    }
}

/// Why endpoints get no work.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OutReasons {
    /// By the pod, `namespace/name`.
    pub pods: HashMap<String, String>,
    /// By the node.
    pub nodes: HashMap<String, String>,
}

impl OutReasons {
    fn of(&self, endpoint: &EndpointDump) -> Option<String> {
        let by_pod = endpoint.pod.as_ref().and_then(|pod| self.pods.get(pod));
        by_pod.or_else(|| self.nodes.get(endpoint.node.as_ref()?)).cloned()
    }
}

/// The table's endpoints.
pub fn endpoints(table: &RoutingTable, reasons: &OutReasons) -> EndpointsDump {
    let told = |mut endpoint: EndpointDump| {
        endpoint.out = reasons.of(&endpoint).filter(|_| !endpoint.ready);
        endpoint
    };
    let empty =
        table.clusters.values().filter(|cluster| cluster.endpoints.is_empty() && cluster.unready.is_empty());
    EndpointsDump {
        epoch: table.version.token.epoch,
        version: table.version.version,
        endpoints: table.clusters.values().flat_map(|cluster| of_cluster(cluster)).map(told).collect(),
        empty: empty.map(|cluster| cluster_name(&cluster.key)).collect(),
    }
}

pub(super) fn of_cluster(cluster: &Cluster) -> impl Iterator<Item = EndpointDump> {
    let ready = cluster.endpoints.iter().map(|upstream| (upstream, true));
    let unready = cluster.unready.iter().map(|upstream| (upstream, false));
    ready.chain(unready).map(|(upstream, ready)| endpoint(cluster, upstream, ready))
}

fn endpoint(cluster: &Cluster, upstream: &Upstream, ready: bool) -> EndpointDump {
    let workload = upstream.workload.as_ref();
    EndpointDump {
        cluster: cluster_name(&cluster.key),
        policy: policy_name(cluster.policy).to_owned(),
        address: upstream.address.to_string(),
        pod: workload.map(|workload| workload.name.to_string()),
        node: workload.and_then(|workload| workload.node.as_deref().map(str::to_owned)),
        ready,
        out: None,
        active: upstream.active(),
    }
}

/// `namespace/service:port[/subset]`.
pub(super) fn cluster_name(key: &ClusterKey) -> String {
    let subset = key.subset.as_ref().map(|subset| format!("/{subset}")).unwrap_or_default();
    format!("{}:{}{subset}", key.service, key.port)
}

fn policy_name(policy: LbPolicy) -> &'static str {
    match policy {
        LbPolicy::RoundRobin => "ROUND_ROBIN",
        LbPolicy::Random => "RANDOM",
        LbPolicy::LeastRequest => "LEAST_REQUEST",
        LbPolicy::SourceIp => "SOURCE_IP",
    }
}

pub(super) fn rule(matches: &[RequestMatch], route: &Route) -> RuleDump {
    let dump = RuleDump {
        kind: route.name.kind.to_owned(),
        source: route.name.source.to_string(),
        rule: route.name.rule.to_string(),
        matches: matches.iter().map(conditions).collect(),
        timeout_ms: route.timeout.map(millis),
        try_timeout_ms: route.try_timeout.map(millis),
        request_headers: headers(&route.request_headers),
        response_headers: headers(&route.response_headers),
        ..RuleDump::default()
    };
    match &route.action {
        Action::Forward(Forward { backends, rewrite, .. }) => RuleDump {
            destinations: backends.iter().map(destination).collect(),
            rewrite: rewrite_text(rewrite),
            ..dump
        },
        Action::Redirect(redirect) => RuleDump { redirect: Some(redirect_text(redirect)), ..dump },
        Action::Respond(response) => RuleDump { respond: Some(response.status), ..dump },
        Action::Original => RuleDump { original: true, ..dump },
    }
}

fn destination(weighted: &WeightedBackend) -> DestinationDump {
    let (cluster, status) = match &weighted.backend {
        Backend::Cluster(cluster) => (Some(cluster_name(&cluster.key)), None),
        Backend::Original => (None, None),
        Backend::Invalid { status } => (None, Some(*status)),
    };
    let original = matches!(weighted.backend, Backend::Original);
    let mut changes = headers(&weighted.request_headers);
    changes.extend(headers(&weighted.response_headers));
    DestinationDump { cluster, status, original, weight: weighted.weight, headers: changes }
}

/// Conditions in words, e.g. `path prefix /api, header x-user-group = beta`.
fn conditions(conditions: &RequestMatch) -> String {
    let mut words: Vec<String> = Vec::new();
    words.extend(conditions.path.as_ref().map(path_text));
    for (name, value) in
        [("method", &conditions.method), ("host", &conditions.authority), ("scheme", &conditions.scheme)]
    {
        words.extend(value.as_ref().map(|value| value_text(name, value)));
    }
    words.extend(conditions.headers.iter().map(|(name, value)| value_text(&format!("header {name}"), value)));
    let without = conditions.without_headers.iter();
    words
        .extend(without.map(|(name, value)| format!("not {}", value_text(&format!("header {name}"), value))));
    words.extend(conditions.query.iter().map(|(name, value)| value_text(&format!("query {name}"), value)));
    words.extend(
        conditions.source_labels.iter().map(|(name, value)| format!("source label {name} = {value}")),
    );
    words.extend(
        conditions.source_namespace.iter().map(|namespace| format!("source namespace = {namespace}")),
    );
    words.extend(conditions.port.iter().map(|port| format!("port = {port}")));
    if words.is_empty() { "any".to_owned() } else { words.join(", ") }
}

fn path_text(path: &MatchPath) -> String {
    match path {
        MatchPath::Exact(path) => format!("path = {path}"),
        MatchPath::Prefix(prefix) => format!("path starts with {prefix}"),
        MatchPath::PathPrefix(prefix) => format!("path under {prefix}"),
        MatchPath::Regex(_, text) => format!("path ~ {text}"),
        MatchPath::ExactIgnoreCase(path) => format!("path = {path} (any case)"),
        MatchPath::PrefixIgnoreCase(prefix) => format!("path starts with {prefix} (any case)"),
    }
}

fn value_text(what: &str, value: &MatchValue) -> String {
    match value {
        MatchValue::Exact(exact) => format!("{what} = {exact}"),
        MatchValue::Prefix(prefix) => format!("{what} starts with {prefix}"),
        MatchValue::Regex(_, text) => format!("{what} ~ {text}"),
        MatchValue::Present => format!("{what} present"),
    }
}

fn rewrite_text(rewrite: &PathRewrite) -> Option<String> {
    let host = rewrite.authority.as_ref().map(|authority| format!("host {authority}"));
    let words: Vec<String> = host.into_iter().chain(rewrite.path.as_ref().map(new_path_text)).collect();
    (!words.is_empty()).then(|| words.join(", "))
}

fn redirect_text(redirect: &Redirect) -> String {
    let mut words = vec![redirect.status.to_string()];
    words.extend(redirect.scheme.iter().map(|scheme| format!("scheme {scheme}")));
    words.extend(redirect.authority.iter().map(|authority| format!("host {authority}")));
    words.extend(redirect.port.iter().map(|port| match port {
        RedirectPort::Number(port) => format!("port {port}"),
        RedirectPort::Request => "the request's port".to_owned(),
    }));
    words.extend(redirect.path.as_ref().map(new_path_text));
    words.join(", ")
}

fn new_path_text(path: &RedirectPath) -> String {
    match path {
        RedirectPath::Full(path) => format!("path {path}"),
        RedirectPath::Prefix(prefix) => format!("prefix {prefix}"),
        RedirectPath::Regex(regex, substitution) => format!("{} -> {substitution}", regex.1),
    }
}

fn headers(ops: &HeaderOps) -> Vec<String> {
    let text = |op: &crate::model::HeaderOp| match &op.change {
        HeaderChange::Set(value) => format!("set {}: {value}", op.name),
        HeaderChange::Add(value) => format!("add {}: {value}", op.name),
        HeaderChange::Remove => format!("remove {}", op.name),
    };
    ops.iter().map(text).collect()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over references")]
fn is_false(value: &bool) -> bool {
    !value
}
