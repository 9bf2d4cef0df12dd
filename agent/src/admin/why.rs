//! What would become of a connection: the decision hook by hook and table by table, in the order in which it is made.
//!
//! A pure function of the routing table and of the agent's state; the kernel's own verdict function decides what the
//! kernel would, and its reasons have the kernel's names.

mod asked;
mod balancing;
#[cfg(test)]
mod cases;
mod datagrams;
mod edge;
mod gateway;
mod held;
mod inbound;
mod kernel_limits;
mod limits;
mod policies;
mod seen;
mod upstream;
mod userspace;

use std::net::SocketAddr;
use std::sync::Arc;

use agent_common::capture::{Owner, Reason, Verdict, decide};
use serde::{Deserialize, Serialize};

use super::connections::ConnectionDump;
use super::dump::{EndpointDump, RuleDump};
use super::flows::FlowDump;
use super::status::Status;
use crate::compile::{Denied, Frontend, PolicyClient, RoutingTable};
use crate::model::{AppProtocol, Workload};
use crate::route::RequestOrigin;

pub use asked::{Asked, Transport, Unreadable};
pub use held::Held;
pub use seen::add_seen;
pub use upstream::UpstreamDump;

/// The answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Who dials: its address.
    pub source: String,
    /// What is dialled.
    pub destination: String,
    /// `tcp` or `udp`.
    #[serde(default)]
    pub protocol: String,
    /// `live`, `past` (the events tell of it), or `hypothetical`.
    #[serde(default)]
    pub state: String,
    /// `agent`, `direct`, `balanced`, `refused`; `dropped` where an event or the guard's lists say so; `elsewhere` where
    /// another node decides.
    pub verdict: String,
    /// Who decides about it in the end: `guard`, `kernel`, `agent L4`, `agent L7`, `agent, by the first bytes`, or
    /// `node NAME`.
    pub tier: String,
    /// The reason, as metrics name it.
    pub reason: String,
    /// The rule that refuses it: a policy's, or an EdgeGuard.
    #[serde(default)]
    pub rule: Option<String>,
    /// The decisions, in order.
    pub steps: Vec<Step>,
    /// Rules that a request may meet, in order of precedence.
    #[serde(default)]
    pub rules: Vec<RuleDump>,
    /// Where bytes that are not requests go, `namespace/service:port`.
    #[serde(default)]
    pub cluster: Option<String>,
    /// What connections to endpoints are kept within, for each cluster that they may be led to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub upstream: Vec<UpstreamDump>,
    /// The endpoints of that cluster.
    #[serde(default)]
    pub endpoints: Vec<EndpointDump>,
    /// Connections between the two that are open.
    #[serde(default)]
    pub live: Vec<ConnectionDump>,
    /// What was told of connections between the two, oldest first.
    #[serde(default)]
    pub past: Vec<FlowDump>,
}

/// One decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The hook or table.
    pub at: String,
    /// What is found there.
    pub found: String,
}

/// What a question is answered from.
#[derive(Clone, Copy)]
struct View<'a> {
    asked: Asked,
    /// The pod that has the source's address.
    source: Option<&'a Arc<Workload>>,
    table: &'a RoutingTable,
    status: &'a Status,
    held: Held,
}

impl<'a> View<'a> {
    /// The service's port that is dialled.
    fn frontend(&self) -> Option<&'a Arc<Frontend>> {
        self.table.frontends.get(&self.asked.destination)
    }

    /// Whether the source is a pod of this node. One whose node is not known may well be.
    fn is_from_here(&self) -> bool {
        self.is_here(self.source)
    }

    fn is_here(&self, pod: Option<&Arc<Workload>>) -> bool {
        pod.is_some_and(|pod| pod.node.as_deref().is_none_or(|node| *node == *self.status.node))
    }

    /// The node that the source is a pod of, where it is another one.
    fn elsewhere(&self) -> Option<&str> {
        self.source.and_then(|pod| pod.node.as_deref()).filter(|node| **node != *self.status.node)
    }
}

/// Decides as the kernel and the agent would. `held`: what the kernel's maps hold of the two ends.
pub fn why(asked: Asked, table: &RoutingTable, status: &Status, held: Held) -> Explanation {
    let mut steps = Vec::new();
    let mut step = |at: &str, found: String| steps.push(Step { at: at.to_owned(), found });
    let view = View { asked, source: table.workloads.get(&asked.source), table, status, held };
    let mut said = Explanation {
        state: "hypothetical".to_owned(),
        source: asked
            .port
            .map_or_else(|| asked.source.to_string(), |port| SocketAddr::new(asked.source, port).to_string()),
        destination: asked.destination.to_string(),
        protocol: asked.protocol.as_str().to_owned(),
        ..Explanation::default()
    };
    step("workloads", describe_source(view.source, status));
    if asked.source == asked.destination.ip() && gateway::listener(&view).is_none() {
        step(
            "loopback",
            "both ends have one address: nothing of it leaves them, and no hook sees it".to_owned(),
        );
        said.judged(("direct", "kernel", Reason::NotOurs.as_str()), None);
    } else {
        match asked.protocol {
            Transport::Tcp => stream(&view, &mut said, &mut step),
            Transport::Udp => datagrams::decide(&view, &mut said, &mut step),
        }
    }
    said.steps = steps;
    said
}

/// What becomes of a TCP connection.
fn stream(view: &View<'_>, said: &mut Explanation, step: &mut impl FnMut(&str, String)) {
    let View { asked, table, .. } = *view;
    let frontend = view.frontend();
    step("frontends", describe_destination(asked, frontend, table));
    let dropped = edge::guard(view, step);
    if let Some(listener) = gateway::listener(view) {
        step("gateway", gateway::describe(listener));
        kernel_limits::of_listener(view, listener, step);
        limits::of_listener(table, listener, step);
        said.judged(("agent", "agent L7", "gateway"), None);
        upstream::of_listener(view, listener, said, step);
        let endpoints = gateway::endpoints(listener);
        limits::of_pods(table, &endpoints, step);
        if !endpoints.is_empty()
            && let Some(denied) = policies::judge_relayed(view, (listener, &endpoints), step)
        {
            said.refused(&denied);
        }
    } else if inbound::tunnel(view, step) {
        said.judged(("agent", "agent L4", Reason::CapturedInbound.as_str()), None);
    } else if let Some(node) = inbound::tunnel_elsewhere(view, step) {
        packets(view, frontend, said, step);
        if said.verdict == "direct" {
            let reason = said.reason.clone();
            said.judged(("elsewhere", &format!("node {node}"), &reason), None);
        }
    } else {
        let endpoints = match frontend {
            Some(frontend) if !frontend.headless => {
                frontend.tcp.endpoints.iter().map(|one| one.address).collect()
            }
            _ => vec![asked.destination],
        };
        let refused = policies::judge(view, &endpoints, step);
        limits::of_pods(table, &endpoints, step);
        kernel_limits::describe(view, &endpoints, step);
        match balancing::led(view, frontend, step) {
            Some(reason) => {
                edge::acceleration(view, Some(&endpoints), step);
                said.judged(("balanced", "kernel", reason), None);
                upstream::led(view, said, step);
            }
            None => packets(view, frontend, said, step),
        }
        if let Some(denied) = refused {
            said.refused(&denied);
            said.dropped_here(view);
        }
    }
    inbound::failing_tunnels(view, step);
    if let Some((reason, guard)) = dropped {
        said.judged(("dropped", "guard", reason.as_str()), guard);
    }
}

/// What becomes of a connection of which the hooks see the first packet.
fn packets(
    view: &View<'_>,
    frontend: Option<&Arc<Frontend>>,
    said: &mut Explanation,
    step: &mut impl FnMut(&str, String),
) {
    let View { asked, source, table, .. } = *view;
    edge::acceleration(view, None, step);
    let reason = kernel(view, frontend, step);
    let agent = frontend.filter(|_| reason == Reason::Captured);
    let inbound = reason == Reason::CapturedInbound;
    let decided_here = reason != Reason::NotOurs || view.status.capture.is_off();
    let elsewhere = view.elsewhere().filter(|_| !decided_here);
    match (agent, elsewhere) {
        (Some(frontend), _) => {
            said.judged(("agent", tier(frontend.protocol), reason.as_str()), None);
            let origin = RequestOrigin { source: source.map(|pod| &**pod), port: asked.destination.port() };
            userspace::describe(frontend, &origin, said, step);
            upstream::of_frontend(view, (&**frontend, &origin), said, step);
            limits::of_frontend((table, source.map(|pod| &**pod)), frontend, &said.rules, step);
        }
        (None, _) if inbound => said.judged(("agent", "agent L7", reason.as_str()), None),
        (None, Some(node)) => said.judged(("elsewhere", &format!("node {node}"), reason.as_str()), None),
        (None, None) => said.judged(("direct", "kernel", reason.as_str()), None),
    }
    let client = PolicyClient::direct(asked.source);
    if reason == Reason::NoListener && inbound::judged(client, asked.destination, table).is_some() {
        "refused".clone_into(&mut said.verdict);
    }
}

impl Explanation {
    fn judged(&mut self, (verdict, tier, reason): (&str, &str, &str), rule: Option<String>) {
        verdict.clone_into(&mut self.verdict);
        tier.clone_into(&mut self.tier);
        reason.clone_into(&mut self.reason);
        self.rule = rule;
    }

    /// By a policy of the pods behind the destination.
    fn refused(&mut self, denied: &Denied) {
        let tier = self.tier.clone();
        self.judged(("refused", &tier, denied.reason()), Some(policies::named(denied)));
    }

    /// What comes from another node's pod to a pod of this one by its own address is refused by the hook at its interface.
    fn dropped_here(&mut self, view: &View<'_>) {
        let to = view.asked.destination;
        let is_pods = view.table.workloads.get(&to.ip()).is_some_and(|pod| view.is_here(Some(pod)));
        if view.elsewhere().is_some() && is_pods && !view.table.frontends.contains_key(&to) {
            "kernel".clone_into(&mut self.tier);
        }
    }
}

fn describe_source(source: Option<&Arc<Workload>>, status: &Status) -> String {
    match source {
        None => "no pod of the table has the source's address".to_owned(),
        Some(pod) => {
            let node = match pod.node.as_deref() {
                Some(node) if *node == *status.node => "this node".to_owned(),
                Some(node) => format!("node {node}"),
                None => "a node that is not known".to_owned(),
            };
            format!("the source is pod {} ({}) on {node}", pod.name, pod.workload)
        }
    }
}

/// Of a service that the table has no address of.
const UNSERVED: &str = "the agent does nothing for this port: the service has no clusterIP, or none of its endpoints is \
                        in the documents, so that it is left to whoever else serves it";

fn describe_destination(asked: Asked, frontend: Option<&Arc<Frontend>>, table: &RoutingTable) -> String {
    let to = asked.destination;
    if asked.unserved {
        return UNSERVED.to_owned();
    }
    match (frontend, table.workloads.get(&to.ip())) {
        (Some(frontend), _) => {
            let headless = if frontend.headless { ", headless" } else { "" };
            format!(
                "{to} is service {} port {} ({}{headless})",
                frontend.service,
                frontend.port,
                frontend.protocol.as_str()
            )
        }
        (None, Some(pod)) => format!("{to} is pod {}, dialled by its own address", pod.name),
        (None, None) => format!("{to} is no service of the table"),
    }
}

/// What the programs do with the connection's first packet, in the order in which they look.
fn kernel(view: &View<'_>, frontend: Option<&Arc<Frontend>>, step: &mut impl FnMut(&str, String)) -> Reason {
    let View { asked, table, status, held, .. } = *view;
    let capture = &status.capture;
    if capture.is_off() {
        step("capture", format!("{}: the kernel forwards everything", capture.mode));
        return Reason::NotOurs;
    }
    let ends = (asked.source, asked.destination);
    if !view.is_from_here() {
        step("from_pod", "the source is no pod of this node: its packets meet no pod's hook".to_owned());
        if let Some(reason) = inbound::kernel(ends, table, status, step) {
            return reason;
        }
        let found = match view.elsewhere() {
            Some(node) => format!("what its pods dial is node {node}'s to decide: ask there"),
            None => "of what comes from elsewhere only connections to pods that judge requests are taken: \
                     not_ours"
                .to_owned(),
        };
        step("from_uplink", found);
        return Reason::NotOurs;
    }
    step("from_pod", format!("{} at the ingress of the pod's interface", capture.attach));
    let local = capture.local_addresses.contains(&asked.destination.ip());
    if decide(true, Owner::None, local, 0) != Verdict::Open {
        step("LOCAL_ADDRESSES", "the destination is the node's own: not_ours".to_owned());
        return Reason::NotOurs;
    }
    step("LOCAL_ADDRESSES", "the destination is not the node's own".to_owned());
    if let Some(paused) = &capture.paused {
        step("DESTINATIONS", format!("empty, as captured packets would be lost ({paused}): no_route"));
        return Reason::NoRoute;
    }
    let left_out = capture.destinations_over_capacity;
    let (taken, found) = match (frontend.is_some(), held.destination) {
        (false, _) => (false, "does not have it: no_route".to_owned()),
        (true, Some(false)) => {
            (false, format!("does not have it, one of {left_out} that found no room: no_route"))
        }
        (true, None) if left_out > 0 => {
            let unless = format!("unless it is one of the {left_out} that found no room and go direct");
            (true, format!("the agent takes it, {unless}"))
        }
        (true, _) => (true, "the agent takes it".to_owned()),
    };
    step("DESTINATIONS", found);
    if !taken {
        return inbound::kernel(ends, table, status, step).unwrap_or(Reason::NoRoute);
    }
    if status.capture.outbound_released {
        step("LISTENERS", "the agent is draining, none is left: no_listener".to_owned());
        return Reason::NoListener;
    }
    step("LISTENERS", format!("one of {} workers gets it: captured", status.workers.len()));
    Reason::Captured
}

fn tier(protocol: AppProtocol) -> &'static str {
    match protocol {
        AppProtocol::Http | AppProtocol::Http2 | AppProtocol::Grpc => "agent L7",
        AppProtocol::Tcp => "agent L4",
        AppProtocol::Undeclared => "agent, by the first bytes",
    }
}

#[cfg(test)]
mod tests;
