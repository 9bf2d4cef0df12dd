//! What connections to endpoints are kept within, and which document says so: what the proxy goes by, asked before it connects.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::super::dump::cluster_name;
use super::{Explanation, View};
use crate::compile::{
    Action, Backend, Cluster, Frontend, GatewayListener, NO_CA, OUTSIDE_MESH, Route, Security, UpstreamTls,
    VirtualHost, Within,
};
use crate::identity::{edge_backends, edge_clients};
use crate::model::{AppProtocol, BackendRoots};
use crate::route::RequestOrigin;

/// Clusters that are told of; a Gateway may have very many.
const CLUSTERS_MAX: usize = 32;

/// What a way has of itself that is no tunnel.
const PLAINTEXT: &str = "plaintext";

/// What connections to the endpoints of a cluster are kept within.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamDump {
    /// The cluster, `namespace/service:port`, with `/subset` where it is one.
    pub cluster: String,
    /// `plaintext`, `mesh` (a tunnel, or the node that both ends are on), `mesh or plaintext` (by endpoint), `tls`.
    pub security: String,
    /// The document that decides, such as `DestinationRule shop/orders`; `None`: none speaks of it.
    #[serde(default)]
    pub rule: Option<String>,
    /// What it asks for, in Istio's words; `none` where it names the port and asks for nothing.
    #[serde(default)]
    pub mode: Option<String>,
    /// The name that endpoints are asked for in TLS; `None`: the host that the request asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// Whom TLS believes: `system`, `anybody`, `nobody`, or the subjects of CA certificates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// The Secret whose certificate is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// What TLS goes within: `mesh`, or `mesh or plaintext` (by endpoint); `None`: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<String>,
    /// Why nothing is sent to some endpoints, or to any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// The endpoints that nothing is sent to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused_endpoints: Vec<String>,
}

/// Who dials, and what for.
#[derive(Clone, Copy)]
struct Dialling<'a, 'v> {
    view: &'v View<'a>,
    /// Where clients of a Gateway come in.
    gateway: Option<&'v GatewayListener>,
    /// Whether the mesh knows who it is.
    known: bool,
    /// Nobody looks at requests.
    opaque: bool,
}

impl Dialling<'_, '_> {
    /// Whether the client's bytes are TLS already, and get no other.
    fn is_tls(self) -> bool {
        self.opaque && self.gateway.is_some_and(GatewayListener::passes_on)
    }

    /// The endpoints of a cluster that may be dialled: of a headless Service the one that the client names.
    fn endpoints(self, cluster: &Cluster) -> Vec<SocketAddr> {
        let named = self.view.frontend().filter(|frontend| frontend.headless);
        let to = named.map(|_| self.view.asked.destination);
        let all = cluster.endpoints.iter().map(|one| one.address);
        all.filter(|address| to.is_none_or(|to| *address == to)).collect()
    }
}

/// Of what a pod of this node sends to a Service by the agent.
pub(super) fn of_frontend(
    view: &View<'_>,
    (frontend, origin): (&Frontend, &RequestOrigin<'_>),
    said: &mut Explanation,
    step: &mut impl FnMut(&str, String),
) {
    let opaque = frontend.protocol == AppProtocol::Tcp;
    let dialling = Dialling { view, gateway: None, known: is_own(view), opaque };
    let mut clusters = Vec::new();
    if !opaque {
        let host: &VirtualHost = &frontend.http;
        match host.layers.iter().find(|layer| layer.concerns(origin)) {
            Some(layer) => led_to(layer.rules().iter().map(|(_, route)| route), &mut clusters),
            None => led_to(host.default.iter(), &mut clusters),
        }
    }
    // Bytes that are no requests, and requests to the address that was dialled.
    if clusters.is_empty() || frontend.protocol == AppProtocol::Undeclared {
        add(&frontend.tcp, &mut clusters);
    }
    describe(dialling, &clusters, said, step);
}

/// Of what the kernel sends to a Service's endpoints.
pub(super) fn led(view: &View<'_>, said: &mut Explanation, step: &mut impl FnMut(&str, String)) {
    let Some(frontend) = view.frontend() else { return };
    // No tunnel is made of it.
    let dialling = Dialling { view, gateway: None, known: false, opaque: true };
    describe(dialling, &[Arc::clone(&frontend.tcp)], said, step);
}

/// Of what a Gateway's listener sends on.
pub(super) fn of_listener(
    view: &View<'_>,
    listener: &GatewayListener,
    said: &mut Explanation,
    step: &mut impl FnMut(&str, String),
) {
    let opaque = listener.is_opaque();
    let known = view.table.realm.tunnels && listener.speaker.is_some();
    let mut clusters = Vec::new();
    for (_, host) in listener.hosts.iter() {
        led_to(host.rules().map(|(_, route)| route), &mut clusters);
    }
    describe(Dialling { view, gateway: Some(listener), known, opaque }, &clusters, said, step);
}

fn is_own(view: &View<'_>) -> bool {
    view.source.is_some_and(|pod| view.table.realm.runs(pod))
}

fn led_to<'r>(routes: impl Iterator<Item = &'r Arc<Route>>, clusters: &mut Vec<Arc<Cluster>>) {
    let forwards = routes.filter_map(|route| match &route.action {
        Action::Forward(forward) => Some(forward),
        Action::Redirect(_) | Action::Respond(_) | Action::Original => None,
    });
    for weighted in forwards.flat_map(|forward| &forward.backends) {
        if let Backend::Cluster(cluster) = &weighted.backend {
            add(cluster, clusters);
        }
    }
}

fn add(cluster: &Arc<Cluster>, clusters: &mut Vec<Arc<Cluster>>) {
    if clusters.len() < CLUSTERS_MAX && !clusters.iter().any(|one| one.key == cluster.key) {
        clusters.push(Arc::clone(cluster));
    }
}

/// Says it, and refuses opaque connections that can be led to one cluster alone, to which nothing is sent.
fn describe(
    dialling: Dialling<'_, '_>,
    clusters: &[Arc<Cluster>],
    said: &mut Explanation,
    step: &mut impl FnMut(&str, String),
) {
    for cluster in clusters {
        let dump = dump(dialling, cluster);
        step("upstream", text(&dump, dialling.opaque));
        failing_tunnels(dialling, cluster, step);
        let (refused, all) = (dump.refused_endpoints.len(), dialling.endpoints(cluster).len());
        let is_refused = dialling.opaque && clusters.len() == 1 && refused > 0 && refused == all;
        if let Some(reason) = dump.refused.as_deref().filter(|_| is_refused) {
            let tier = said.tier.clone();
            said.judged(("refused", &tier, reason), dump.rule.clone());
        }
        said.upstream.push(dump);
    }
}

/// Tunnels to its endpoints that came to nothing lately.
fn failing_tunnels(dialling: Dialling<'_, '_>, cluster: &Cluster, step: &mut impl FnMut(&str, String)) {
    let View { asked, table, status, .. } = *dialling.view;
    // Gateways dial from the node's address.
    let is_own = |source: &IpAddr| match dialling.gateway {
        Some(_) => !table.workloads.contains_key(source),
        None => *source == asked.source,
    };
    let dialled = status.refused_tunnels.iter().filter(|one| one.is_dialled() && is_own(&one.source));
    let mut dialled = dialled.filter(|_| dialling.known).peekable();
    if dialled.peek().is_none() {
        return;
    }
    let endpoints = dialling.endpoints(cluster).into_iter().map(|to| to.ip().to_canonical());
    let by_tunnel: BTreeSet<IpAddr> = endpoints.filter(|to| table.reaches_by_tunnel(*to)).collect();
    for refused in dialled.filter(|one| by_tunnel.contains(&one.destination)) {
        step("tunnels", format!("lately none was made {refused}"));
    }
}

fn dump(dialling: Dialling<'_, '_>, cluster: &Cluster) -> UpstreamDump {
    let is_gateway = dialling.gateway.is_some();
    let security = if is_gateway { &cluster.from_gateways } else { &cluster.from_pods };
    // Gateways may have terms of their own, which no DestinationRule has said.
    let by_rule = !is_gateway || cluster.from_gateways == cluster.from_pods;
    let by = cluster.secured_by.as_ref().filter(|_| by_rule);
    let dump = UpstreamDump {
        cluster: cluster_name(&cluster.key),
        rule: by.map(|by| format!("DestinationRule {}", by.rule)),
        mode: by.map(|by| by.mode.to_owned()),
        ..UpstreamDump::default()
    };
    match security {
        Security::Tls(tls) if !dialling.is_tls() => {
            let rule = dump.rule.or_else(|| is_gateway.then(|| "BackendTLSPolicy".to_owned()));
            of_tls(UpstreamDump { rule, ..dump }, tls, (dialling, cluster))
        }
        Security::Mesh => UpstreamDump { security: "mesh".to_owned(), ..outside(dump, dialling, cluster) },
        Security::Way | Security::Tls(_) => {
            UpstreamDump { security: way(dialling, cluster).to_owned(), ..dump }
        }
    }
}

fn of_tls(
    dump: UpstreamDump,
    tls: &UpstreamTls,
    (dialling, cluster): (Dialling<'_, '_>, &Cluster),
) -> UpstreamDump {
    let terms = &tls.terms;
    let of_service = || dialling.opaque.then(|| cluster.key.service.fqdn());
    let hostname = Some(terms.hostname.to_string()).filter(|name| !name.is_empty());
    let ca = match &terms.roots {
        BackendRoots::System => "system".to_owned(),
        BackendRoots::Anybody => "anybody".to_owned(),
        BackendRoots::Bundles(bundles) if bundles.is_empty() => "nobody".to_owned(),
        BackendRoots::Bundles(bundles) => {
            bundles.iter().flat_map(|pem| edge_clients::subjects(pem)).collect::<Vec<_>>().join("; ")
        }
    };
    let within = if dialling.opaque { Within::Opaque } else { Within::Http1 };
    let made = tls.config(within, |terms| edge_backends::client_config(terms, within.alpn()));
    let all = || dialling.endpoints(cluster).iter().map(ToString::to_string).collect();
    UpstreamDump {
        security: "tls".to_owned(),
        server_name: hostname.or_else(of_service),
        ca: Some(ca),
        within: Some(way(dialling, cluster)).filter(|way| *way != PLAINTEXT).map(str::to_owned),
        certificate: terms.client.as_ref().map(|client| client.secret.to_string()),
        refused: made.is_none().then(|| NO_CA.to_owned()),
        refused_endpoints: if made.is_none() { all() } else { Vec::new() },
        ..dump
    }
}

/// With the endpoints that the mesh does not lead to.
fn outside(dump: UpstreamDump, dialling: Dialling<'_, '_>, cluster: &Cluster) -> UpstreamDump {
    let table = dialling.view.table;
    let is_outside = |to: &SocketAddr| !dialling.known || !table.reaches_in_mesh(to.ip());
    let endpoints = dialling.endpoints(cluster).into_iter().filter(is_outside);
    let refused_endpoints: Vec<_> = endpoints.map(|address| address.to_string()).collect();
    let refused = (!refused_endpoints.is_empty()).then(|| OUTSIDE_MESH.to_owned());
    UpstreamDump { refused, refused_endpoints, ..dump }
}

/// What the way has of itself.
fn way(dialling: Dialling<'_, '_>, cluster: &Cluster) -> &'static str {
    let is_by_tunnel = |to: &&SocketAddr| dialling.known && dialling.view.table.reaches_by_tunnel(to.ip());
    let endpoints = dialling.endpoints(cluster);
    match endpoints.iter().filter(is_by_tunnel).count() {
        0 => PLAINTEXT,
        all if all == endpoints.len() => "mesh",
        _ => "mesh or plaintext",
    }
}

fn text(dump: &UpstreamDump, opaque: bool) -> String {
    let how = match dump.security.as_str() {
        "tls" => {
            let name = dump.server_name.as_deref().unwrap_or("the host that the request asks for");
            let certificate = dump.certificate.as_ref();
            let shown = certificate.map_or_else(String::new, |secret| format!(", showing Secret {secret}"));
            let within = match dump.within.as_deref() {
                None => "",
                Some("mesh") => ", all of it within the mesh's mutual TLS",
                Some(_) => ", to some endpoints all of it within the mesh's mutual TLS",
            };
            let ca = dump.ca.as_deref().unwrap_or("nobody");
            format!("TLS, asking for {name}, believing {ca}{shown}{within}")
        }
        "mesh" => "the mesh's mutual TLS".to_owned(),
        "mesh or plaintext" => "the mesh's mutual TLS to some endpoints, plaintext to others".to_owned(),
        other => other.to_owned(),
    };
    let by = match (&dump.rule, &dump.mode) {
        (Some(rule), Some(mode)) => format!("by {rule}, mode {mode}"),
        (Some(rule), None) => format!("by {rule}"),
        (None, _) => "no DestinationRule speaks of TLS".to_owned(),
    };
    let what = if opaque { "connections are reset" } else { "requests are answered 503" };
    let refused = dump.refused.as_ref().map_or_else(String::new, |reason| {
        format!("; nothing is sent to {}, {what}: {reason}", dump.refused_endpoints.join(", "))
    });
    format!("{}: {how} ({by}){refused}", dump.cluster)
}

#[cfg(test)]
mod tests {
    use super::super::cases::{Cluster, cluster};
    use super::*;
    use crate::compile::Realm;
    use crate::model::{BackendTls, ClientTls, LbPolicy, Model, ObjectName, TlsRules, TrafficPolicy};

    /// What a DestinationRule asks for of `remote` alone, whose endpoint is on another node.
    fn asking(tls: Option<ClientTls>) -> Model {
        let policy = |tls| TrafficPolicy {
            source: ObjectName::new("default", "rule"),
            service: ObjectName::new("default", "remote"),
            lb: LbPolicy::default(),
            port_lb: Vec::new(),
            tls: TlsRules { others: Some(tls), ports: Vec::new() },
            subsets: Vec::new(),
        };
        Model { policies: tls.map(policy).into_iter().collect::<Vec<_>>().into(), ..cluster() }
    }

    fn realm() -> Realm {
        Realm { node: "node-a".into(), tunnels: true, ..Realm::default() }
    }

    /// What the proxy refuses for want of TLS is refused here, by the same rule.
    #[test]
    fn what_upstream_connections_are_kept_within_is_told_with_the_rule() {
        let own = |hostname: &str, roots| {
            let (hostname, names) = (hostname.into(), Vec::new());
            Some(ClientTls::Own(Arc::new(BackendTls { hostname, names, roots, client: None })))
        };
        let (balanced, captured) = (["balanced", "kernel", "balanced"], ["agent", "agent L4", "captured"]);
        let refused = |reason| ["refused", "agent L4", reason];
        let rule = Some("DestinationRule default/rule");
        for (tls, expected, by, words) in [
            (None, balanced, None, "default/remote:82: plaintext (no DestinationRule speaks of TLS)"),
            (
                Some(ClientTls::Disable),
                balanced,
                rule,
                "plaintext (by DestinationRule default/rule, mode DISABLE)",
            ),
            (
                Some(ClientTls::Mesh),
                refused(OUTSIDE_MESH),
                rule,
                "mode ISTIO_MUTUAL); nothing is sent to 10.0.1.1:8082, connections are reset: upstream_outside_mesh",
            ),
            (
                own("db.internal", BackendRoots::Anybody),
                captured,
                rule,
                "TLS, asking for db.internal, believing anybody (by DestinationRule default/rule, mode SIMPLE)",
            ),
            (
                own("", BackendRoots::Bundles(Vec::new())),
                refused(NO_CA),
                rule,
                "TLS, asking for remote.default.svc.cluster.local, believing nobody",
            ),
        ] {
            let said = Cluster::on(&asking(tls), realm()).check("client remote:82", expected, &[words]);
            let [upstream] = &said.upstream[..] else { panic!("{said:#?}") };
            assert_eq!(upstream.rule.as_deref(), by, "{said:#?}");
            assert_eq!(said.rule.is_some(), expected[0] == "refused", "{said:#?}");
        }
        // The pod's label is the word for a tunnel, whatever is spoken within.
        for (tls, words) in [
            (Some(ClientTls::Mesh), "remote:82: the mesh's mutual TLS (by DestinationRule default/rule"),
            (
                own("", BackendRoots::Anybody),
                "believing anybody, all of it within the mesh's mutual TLS (by DestinationRule default/rule, mode SIMPLE)",
            ),
        ] {
            let mut model = asking(tls);
            for pod in &mut model.workloads {
                pod.labels = Arc::new([("networking.istio.io/tunnel".into(), "http".into())].into());
            }
            Cluster::on(&model, realm()).check("client remote:82", captured, &[words]);
        }
    }
}
