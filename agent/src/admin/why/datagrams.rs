//! Datagrams: the agent relays none, so sockets are led to an endpoint, or nothing is decided about them here.

use std::net::SocketAddr;

use agent_common::balance::{ConnectReason, Tier};
use agent_common::capture::Reason;

use super::{Explanation, UNSERVED, View, edge, kernel_limits, policies};
use crate::compile::DatagramFrontend;

/// What becomes of what a UDP socket sends.
pub(super) fn decide(view: &View<'_>, said: &mut Explanation, step: &mut impl FnMut(&str, String)) {
    let to = view.asked.destination;
    let frontend = view.table.datagrams.get(&to);
    step("frontends", describe(view, frontend.map(|frontend| &**frontend)));
    let dropped = edge::guard(view, step);
    let of_family = |one: &&SocketAddr| one.is_ipv4() == to.is_ipv4();
    let ready: Vec<SocketAddr> =
        frontend.iter().flat_map(|frontend| &frontend.ready).filter(of_family).copied().collect();
    let endpoints = if frontend.is_some() { &ready[..] } else { &[to] };
    let refused = policies::judge(view, endpoints, step);
    kernel_limits::describe(view, endpoints, step);
    match frontend.and_then(|frontend| balanced(view, frontend, &ready, step)) {
        Some(reason) => said.judged(("balanced", "kernel", reason), None),
        None => packets(view, said, step),
    }
    if let Some(denied) = refused {
        said.refused(&denied);
        said.dropped_here(view);
    }
    if let Some((reason, guard)) = dropped {
        said.judged(("dropped", "guard", reason.as_str()), guard);
    }
}

fn describe(view: &View<'_>, frontend: Option<&DatagramFrontend>) -> String {
    let to = view.asked.destination;
    if view.asked.unserved {
        return UNSERVED.to_owned();
    }
    match (frontend, view.table.workloads.get(&to.ip())) {
        (Some(frontend), _) => format!("{to} is service {} port {} (UDP)", frontend.service, frontend.port),
        (None, Some(pod)) => format!("{to} is pod {}, dialled by its own address", pod.name),
        (None, None) => format!("{to} is no UDP port of a service of the table"),
    }
}

/// The reason where sockets of the source are led to an endpoint.
fn balanced(
    view: &View<'_>,
    frontend: &DatagramFrontend,
    ready: &[SocketAddr],
    step: &mut impl FnMut(&str, String),
) -> Option<&'static str> {
    let cgroup = view.status.capture.connect.cgroup.as_ref().filter(|_| view.elsewhere().is_none())?;
    let (tier, why) = frontend.tier(view.asked.destination.is_ipv4());
    if tier != Tier::Balance {
        step("connect", format!("nothing is done: {} ({})", tier.as_str(), why.as_str()));
        return None;
    }
    let ready: Vec<String> = ready.iter().map(ToString::to_string).collect();
    let found = format!(
        "sockets below {cgroup} go straight to one of {} ready endpoints ({}): {}",
        ready.len(),
        why.as_str(),
        ready.join(", ")
    );
    step("connect", found);
    let reason = if frontend.affinity.is_some() { ConnectReason::Affinity } else { ConnectReason::Balanced };
    view.is_from_here().then_some(reason.as_str())
}

/// What the hooks do with datagrams that nobody has led anywhere.
fn packets(view: &View<'_>, said: &mut Explanation, step: &mut impl FnMut(&str, String)) {
    if let Some(node) = view.elsewhere() {
        step("from_uplink", format!("what its pods send is node {node}'s to decide: ask there"));
        said.judged(("elsewhere", &format!("node {node}"), Reason::NotOurs.as_str()), None);
        return;
    }
    let reason = if view.is_from_here() && !view.status.capture.is_off() {
        step("from_pod", "datagrams are not taken: not_tcp".to_owned());
        Reason::NotTcp
    } else {
        Reason::NotOurs
    };
    said.judged(("direct", "kernel", reason.as_str()), None);
}
