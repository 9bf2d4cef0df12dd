//! What the policies of the pods behind a destination say of a source: mutual TLS first, then who may do what.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Transport, View, inbound};
use agent_common::balance::Tier;

use crate::compile::{
    Denied, DeniedBy, Foreseen, Frontend, GatewayListener, Observed, PolicyClient, RoutingTable, Way,
};
use crate::model::{AppProtocol, Asked, MtlsMode};

/// The first refusal where all endpoints refuse the source, which comes to them as packets do, or as the agent brings it.
pub(super) fn judge(
    view: &View<'_>,
    endpoints: &[SocketAddr],
    step: &mut impl FnMut(&str, String),
) -> Option<Denied> {
    let carried = is_carried(view);
    let of = |endpoint: SocketAddr| {
        let direct = PolicyClient::direct(view.asked.source);
        let here = view.is_here(view.table.workloads.get(&endpoint.ip().to_canonical()));
        // A tunnel to another node is made of what the agent carries, and of nothing else.
        if carried || here { direct } else { PolicyClient { way: Way::Relayed, ..direct } }
    };
    let opaque = carried && view.frontend().is_some_and(|frontend| frontend.protocol == AppProtocol::Tcp);
    judge_as(view, endpoints, (of, Coming { carried, opaque }), step)
}

/// The same of what a Gateway brings, as whom it speaks.
pub(super) fn judge_relayed(
    view: &View<'_>,
    (listener, endpoints): (&GatewayListener, &[SocketAddr]),
    step: &mut impl FnMut(&str, String),
) -> Option<Denied> {
    let way = listener.speaker.as_ref().map_or(Way::Relayed, |speaker| Way::Gateway(speaker.key));
    let client = PolicyClient { way, ..PolicyClient::direct(view.asked.source) };
    let opaque = listener.is_opaque();
    judge_as(view, endpoints, (|_| client, Coming { carried: false, opaque }), step)
}

/// How connections come to the endpoints.
#[derive(Clone, Copy)]
struct Coming {
    /// The agent of the source's node takes them.
    carried: bool,
    /// It looks at no request.
    opaque: bool,
}

/// What an endpoint's policies say: of opaque connections what the proxy hears of them, else what there is to say before a request.
fn verdict(client: PolicyClient, endpoint: SocketAddr, opaque: bool, table: &RoutingTable) -> Foreseen {
    if !opaque {
        return table.foresee_access(client, endpoint);
    }
    table.check_access(client, endpoint, Asked::Opaque).map_or_else(Foreseen::Denied, |()| Foreseen::Allowed)
}

/// Whether the agent of the source's node takes the connection, and does not only lead its socket to an endpoint.
fn is_carried(view: &View<'_>) -> bool {
    let View { asked, status, .. } = *view;
    let led = status.capture.connect.cgroup.is_some();
    let is_balanced =
        |frontend: &Arc<Frontend>| frontend.tier(asked.destination.is_ipv4()).0 == Tier::Balance;
    asked.protocol == Transport::Tcp && view.frontend().is_some_and(|frontend| !led || !is_balanced(frontend))
}

fn judge_as(
    view: &View<'_>,
    endpoints: &[SocketAddr],
    (client_of, coming): (impl Fn(SocketAddr) -> PolicyClient, Coming),
    step: &mut impl FnMut(&str, String),
) -> Option<Denied> {
    let View { asked, table, status, .. } = *view;
    let own = status.capture.local_addresses.contains(&asked.source);
    let (mut refusing, mut silent) = (Vec::new(), true);
    for endpoint in endpoints {
        let client = client_of(*endpoint);
        if let Some(found) = mtls(*endpoint, table) {
            step("mtls", found);
        }
        for observed in table.observe_access(client, *endpoint, Asked::Opaque) {
            let Observed { policy, outcome, .. } = &observed;
            let (rule, outcome) = (observed.rule_label(), outcome.as_str());
            step("audit", format!("{endpoint}: {outcome} by rule {rule} of {policy}, which refuses nobody"));
        }
        let denied = match verdict(client, *endpoint, coming.opaque, table) {
            // What counts it is said by the limits.
            Foreseen::Allowed | Foreseen::Counted(_) | Foreseen::Watched => continue,
            _ if own && view.is_here(table.workloads.get(&endpoint.ip())) => {
                silent = false;
                step("guard_pod", format!("{endpoint} is open to the node's own sockets, as for probes"));
                continue;
            }
            Foreseen::Denied(denied) => denied,
            Foreseen::ByRequest(denied) if asked.protocol == Transport::Udp => denied,
            Foreseen::ByRequest(_) => {
                silent = false;
                let rules = inbound::rules(client, *endpoint, table).unwrap_or_default();
                let judges = "judges each request of the source, and takes nothing that is no HTTP";
                step("policies", format!("{endpoint} {judges}: {rules}"));
                continue;
            }
        };
        step("policies", format!("{endpoint} refuses the source: {}", cause(&denied, *endpoint, table)));
        if let Some(rules) = inbound::rules(client, *endpoint, table).filter(|_| coming.opaque) {
            step("policies", format!("{endpoint} would judge requests, and the port is opaque: {rules}"));
        }
        let by_tunnel = coming.carried && by_tunnel(client, *endpoint, coming.opaque, table);
        if by_tunnel {
            step("policies", format!("{endpoint} takes the source's connections that come by tunnel"));
        }
        // Only its own node knows by which way a pod comes; its label says that it is in the mesh.
        if !(by_tunnel && is_tunnelled(client.address, table)) {
            refusing.push(denied);
        }
    }
    if refusing.is_empty() && silent {
        step("policies", "none refuses the source".to_owned());
    }
    if refusing.len() == endpoints.len() { refusing.into_iter().next() } else { None }
}

/// The rule as it is named at the end.
pub(super) fn named(denied: &Denied) -> String {
    match denied.by {
        DeniedBy::Plaintext => format!("PeerAuthentication {}", denied.policy),
        DeniedBy::Uncounted => format!("RateLimit {}", denied.policy),
        DeniedBy::Rule(_) | DeniedBy::NoRule => {
            format!("policy {} rule {}", denied.policy, denied.rule_label())
        }
    }
}

fn cause(denied: &Denied, endpoint: SocketAddr, table: &RoutingTable) -> String {
    let pod = table.policies.of(endpoint.ip().to_canonical());
    let policy = pod.and_then(|pod| pod.policies().find(|policy| policy.name == denied.policy));
    match denied.by {
        DeniedBy::Rule(rule) => format!("rule {rule} of {}", denied.policy),
        DeniedBy::NoRule if policy.is_some_and(|policy| policy.rules.is_empty()) => {
            format!("{} lets nobody in, as it has no rule or could not be read", denied.policy)
        }
        DeniedBy::NoRule => format!("no rule of any ALLOW policy agrees, {} among them", denied.policy),
        DeniedBy::Uncounted => format!("the agent has to count it for RateLimit {}", denied.policy),
        DeniedBy::Plaintext => {
            format!("nobody proves who it is, and PeerAuthentication {} is STRICT", denied.policy)
        }
    }
}

/// What holds for an endpoint's port, where somebody says something.
fn mtls(endpoint: SocketAddr, table: &RoutingTable) -> Option<String> {
    let pod = table.policies.of(endpoint.ip().to_canonical())?;
    let mode = pod.mtls().on(Some(endpoint.port()))?;
    let taken = match mode.mode {
        MtlsMode::Strict => "mutual TLS alone",
        MtlsMode::Permissive | MtlsMode::Disable => "mutual TLS and plaintext",
    };
    Some(format!("{endpoint} takes {taken}: PeerAuthentication {} is {}", mode.by, mode.mode.as_str()))
}

fn is_tunnelled(pod: IpAddr, table: &RoutingTable) -> bool {
    table.workloads.get(&pod).is_some_and(|pod| pod.is_tunnelled())
}

/// Whether a pod of another node may come by tunnel.
fn by_tunnel(client: PolicyClient, endpoint: SocketAddr, opaque: bool, table: &RoutingTable) -> bool {
    let elsewhere = table.workloads.get(&client.address).is_some_and(|pod| !table.realm.runs(pod));
    let tunnelled = is_tunnelled(endpoint.ip().to_canonical(), table);
    let client = PolicyClient { way: Way::Tunnel, ..client };
    elsewhere && tunnelled && !matches!(verdict(client, endpoint, opaque, table), Foreseen::Denied(_))
}
