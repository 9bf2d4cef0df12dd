//! What is decided before and beside the packet programs: at the edge, and between two sockets of this node.

use std::net::{IpAddr, SocketAddr};

use agent_common::guard::Reason;

use super::{Transport, View};
use crate::compile::RoutingTable;
use crate::model::Workload;

/// What the guard does with the frames of an address, its limits aside.
enum Judged<'a> {
    Allowed,
    /// Denied by this EdgeGuard for the sake of this network.
    Denied(&'a str, String),
    /// The same, but the kernel's map had no room for it.
    LeftOut(&'a str, String),
    PushedDown,
    Passes,
}

/// Why frames of either end are dropped where they come in, with the EdgeGuard that denies them. Limits depend on what a
/// source does: only events tell of them.
pub(super) fn guard(
    view: &View<'_>,
    step: &mut impl FnMut(&str, String),
) -> Option<(Reason, Option<String>)> {
    let View { asked, table, status, held, .. } = *view;
    let interfaces: Vec<_> = status.guard.as_ref()?.interfaces.iter().map(|one| one.name.as_str()).collect();
    let to = asked.destination.ip();
    let is_service =
        table.frontends.contains_key(&asked.destination) || table.datagrams.contains_key(&asked.destination);
    let own = status.capture.local_addresses.contains(&to);
    let (whose, judged) = if interfaces.is_empty() {
        return None;
    } else if !view.is_from_here() {
        ("", judge(asked.source, held.source, table))
    } else if is_service {
        return answers(view, &interfaces.join(", "), step);
    } else if !own && !view.is_here(table.workloads.get(&to)) {
        ("answers, ", judge(to, held.answers, table))
    } else {
        return None;
    };
    let by = format!("{whose}frames that come by {}", interfaces.join(", "));
    let (found, dropped) = match judged {
        Judged::Allowed => (format!("{by} pass: an EdgeGuard allows the sender"), None),
        Judged::Denied(rule, net) => {
            let guard = format!("EdgeGuard {rule}");
            (format!("{by} are dropped: {guard} denies {net}"), Some((Reason::Denied, Some(guard))))
        }
        Judged::LeftOut(rule, net) => {
            (format!("{by} pass: EdgeGuard {rule} denies {net}, which found no room in the kernel"), None)
        }
        Judged::PushedDown => (
            format!("{by} are dropped for a while: the sender was refused again and again"),
            Some((Reason::PushedDown, None)),
        ),
        Judged::Passes => (format!("{by} pass, as long as they keep to its limits"), None),
    };
    step("xdp_guard", found);
    dropped
}

/// Whether an EdgeGuard allows whoever asks, so that the guard holds it to nothing.
pub(super) fn allows_source(view: &View<'_>) -> bool {
    matches!(judge(view.asked.source, view.held.source, view.table), Judged::Allowed)
}

/// The same as [`guard`] for a service: why answers of all its endpoints are dropped, by the documents.
fn answers(
    view: &View<'_>,
    interfaces: &str,
    step: &mut impl FnMut(&str, String),
) -> Option<(Reason, Option<String>)> {
    let View { asked, table, .. } = *view;
    let stream = table.frontends.get(&asked.destination).filter(|_| asked.protocol == Transport::Tcp);
    let endpoints: Vec<SocketAddr> = match stream {
        Some(frontend) => frontend.tcp.endpoints.iter().map(|one| one.address).collect(),
        None => table.datagrams.get(&asked.destination)?.ready.clone(),
    };
    let mut dropped = Vec::new();
    for endpoint in &endpoints {
        let sender = endpoint.ip().to_canonical();
        if view.is_here(table.workloads.get(&sender)) {
            continue;
        }
        if let Judged::Denied(rule, net) = judge(sender, None, table) {
            let guard = format!("EdgeGuard {rule}");
            let found = format!(
                "answers of endpoint {endpoint} that come by {interfaces} are dropped: {guard} denies {net}"
            );
            step("xdp_guard", found);
            dropped.push(guard);
        }
    }
    let all = dropped.len() == endpoints.len();
    dropped.into_iter().next().filter(|_| all).map(|guard| (Reason::Denied, Some(guard)))
}

/// `held`: what the kernel says; without it the documents are believed.
fn judge(sender: IpAddr, held: Option<Reason>, table: &RoutingTable) -> Judged<'_> {
    let denying = table.guard.rules.iter().flat_map(|rule| rule.deny.iter().map(move |net| (rule, net)));
    // The narrowest network decides; of two rules with the same, the first by name.
    let denied = denying
        .filter(|(_, net)| net.contains(&sender))
        .reduce(|first, other| if other.1.prefix_len() > first.1.prefix_len() { other } else { first });
    let allowed = table.guard.allow.iter().flat_map(|list| list.iter()).any(|net| net.contains(&sender));
    match (denied, held) {
        (_, Some(Reason::Allowed)) => Judged::Allowed,
        (_, None) if allowed => Judged::Allowed,
        (_, Some(Reason::PushedDown)) => Judged::PushedDown,
        (Some((rule, net)), None | Some(Reason::Denied)) => Judged::Denied(&rule.name, net.to_string()),
        (Some((rule, net)), Some(_)) => Judged::LeftOut(&rule.name, net.to_string()),
        (None, _) => Judged::Passes,
    }
}

/// Whether a connection from socket to socket would skip TCP. `led`: the endpoints that the socket is led to one of.
pub(super) fn acceleration(view: &View<'_>, led: Option<&[SocketAddr]>, step: &mut impl FnMut(&str, String)) {
    let View { asked, table, status, held, .. } = *view;
    if !status.capture.acceleration.active {
        return;
    }
    let takes_part = |ip: IpAddr| {
        let here = |pod: &Workload| pod.node.as_deref().is_none_or(|node| *node == *status.node);
        table.workloads.get(&ip).is_some_and(|pod| here(pod) && pod.accelerated)
            && table.policies.of(ip).is_none()
    };
    let (from, to) = (takes_part(asked.source), takes_part(asked.destination.ip()));
    let taken = !status.capture.outbound_released
        && status.capture.paused.is_none()
        && held.destination != Some(false);
    let captured = led.is_none() && taken && table.frontends.contains_key(&asked.destination);
    let ends = led.map(|endpoints| endpoints.iter().filter(|to| takes_part(to.ip())).count());
    let found = match (from, ends, to || captured) {
        (false, ..) => "the source takes no part: TCP carries its bytes".to_owned(),
        (true, Some(0), _) => "no endpoint takes part: TCP carries the bytes".to_owned(),
        (true, Some(some), _) => {
            format!("bytes go from socket to socket where one of the {some} endpoints is met that take part")
        }
        (true, None, false) => "the destination takes no part: TCP carries the bytes".to_owned(),
        (true, None, true) if captured && !to => {
            "bytes to the agent skip TCP, and from there if the endpoint takes part".to_owned()
        }
        (true, None, true) => {
            "bytes go from socket to socket, unless the dialling end sends before the other one is there"
                .to_owned()
        }
    };
    step("acceleration", found);
}

#[cfg(test)]
mod tests {
    use super::super::{Asked, Held};
    use super::*;
    use crate::admin::tests::{model, table};
    use crate::admin::{AccelerationStatus, GuardStatus, GuardedInterface, Status};
    use crate::compile::{TableVersion, compile};
    use crate::model::{EdgeGuard, Model, ObjectName};

    fn edge_guard(name: &str, deny: &[&str], allow: &[&str]) -> EdgeGuard {
        let nets =
            |list: &[&str]| list.iter().map(|net| net.parse().expect("a network")).collect::<Vec<_>>().into();
        EdgeGuard {
            name: ObjectName::new("", name),
            deny: nets(deny),
            allow: nets(allow),
            packets: None,
            syns: None,
        }
    }

    fn asked(source: &str, destination: &str) -> Asked {
        Asked {
            source: source.parse().expect("an address"),
            port: None,
            destination: destination.parse().expect("an address"),
            unserved: false,
            protocol: Transport::Tcp,
        }
    }

    fn view<'a>(asked: Asked, table: &'a RoutingTable, status: &'a Status, held: Held) -> View<'a> {
        View { asked, source: table.workloads.get(&asked.source), table, status, held }
    }

    #[test]
    fn the_guard_that_denies_is_named() {
        let guards = vec![
            edge_guard("a", &["192.0.2.0/24"], &["192.0.2.7/32"]),
            edge_guard("b", &["192.0.2.128/25", "192.0.2.0/24", "10.0.0.0/8"], &[]),
        ];
        let table = compile(
            &Model { guards: guards.into(), ..model() },
            &RoutingTable::default(),
            TableVersion::default(),
        );
        let eth0 = GuardedInterface { name: "eth0".to_owned(), ..GuardedInterface::default() };
        let status = Status {
            node: "node-a".to_owned(),
            guard: Some(GuardStatus { interfaces: vec![eth0], ..GuardStatus::default() }),
            ..Status::default()
        };
        for (source, expected, word) in [
            ("192.0.2.1", Some("EdgeGuard a"), "denies 192.0.2.0/24"),
            ("192.0.2.200", Some("EdgeGuard b"), "denies 192.0.2.128/25"),
            ("192.0.2.7", None, "allows the sender"),
            ("198.51.100.1", None, "limits"),
        ] {
            let mut said = String::new();
            let asked = asked(source, "10.0.0.1:80");
            let found = guard(&view(asked, &table, &status, Held::default()), &mut |_, text| said = text);
            assert_eq!(found.and_then(|(_, by)| by).as_deref(), expected, "{source}");
            assert!(said.contains(word) && said.contains("eth0"), "{source}: {said}");
        }
        // A pod of this node does not come by the uplink, nor does what it dials in the cluster.
        for destination in ["10.0.0.1:80", "10.96.0.1:80"] {
            let asked = asked("10.0.0.1", destination);
            let found =
                guard(&view(asked, &table, &status, Held::default()), &mut |_, text| panic!("{text}"));
            assert_eq!(found, None);
        }
        // What it dials elsewhere answers by it.
        let asked = asked("10.0.0.1", "192.0.2.1:80");
        let found = guard(&view(asked, &table, &status, Held::default()), &mut |_, _| {});
        assert_eq!(found, Some((Reason::Denied, Some("EdgeGuard a".to_owned()))));
    }

    #[test]
    fn what_the_kernel_holds_counts_and_not_what_the_documents_say() {
        let guards = vec![edge_guard("a", &["192.0.2.0/24"], &["192.0.2.7/32"])];
        let table = compile(
            &Model { guards: guards.into(), ..model() },
            &RoutingTable::default(),
            TableVersion::default(),
        );
        let eth0 = GuardedInterface { name: "eth0".to_owned(), ..GuardedInterface::default() };
        let status = Status {
            guard: Some(GuardStatus { interfaces: vec![eth0], ..GuardStatus::default() }),
            ..Status::default()
        };
        for (source, holds, dropped, word) in [
            ("192.0.2.1", Reason::Passed, None, "EdgeGuard a denies 192.0.2.0/24, which found no room"),
            ("192.0.2.1", Reason::Denied, Some(Reason::Denied), "are dropped: EdgeGuard a"),
            ("192.0.2.7", Reason::Allowed, None, "allows the sender"),
            ("198.51.100.1", Reason::PushedDown, Some(Reason::PushedDown), "are dropped for a while"),
            ("198.51.100.1", Reason::Passed, None, "limits"),
        ] {
            let held = Held { source: Some(holds), ..Held::default() };
            let mut said = String::new();
            let asked = asked(source, "10.0.0.1:80");
            let found = guard(&view(asked, &table, &status, held), &mut |_, text| said = text);
            assert_eq!(found.map(|(reason, _)| reason), dropped, "{source}: {said}");
            assert!(said.contains(word), "{source}: {said}");
        }
    }

    #[test]
    fn acceleration_says_who_takes_no_part() {
        let mut status = Status { node: "node-a".to_owned(), ..Status::default() };
        let said = |source: &str, destination: &str, status: &Status| {
            let mut said = String::new();
            let table = table();
            let view = view(asked(source, destination), &table, status, Held::default());
            acceleration(&view, None, &mut |_, text| said = text);
            said
        };
        assert_eq!(said("10.0.0.1", "10.0.0.1:80", &status), "");
        status.capture.acceleration = AccelerationStatus { active: true, ..AccelerationStatus::default() };
        for (source, destination, word) in [
            ("10.0.0.1", "10.0.0.1:80", "from socket to socket"),
            ("10.0.0.1", "10.96.0.1:80", "to the agent"),
            ("10.9.9.9", "10.0.0.1:80", "the source"),
            ("10.0.0.1", "10.9.9.9:80", "the destination"),
        ] {
            let said = said(source, destination, &status);
            assert!(said.contains(word), "{source} {destination}: {said}");
        }
        // Nothing goes to an agent that takes nothing any more.
        status.capture.outbound_released = true;
        let drained = said("10.0.0.1", "10.96.0.1:80", &status);
        assert!(drained.contains("TCP carries the bytes"), "{drained}");
    }

    #[test]
    fn sockets_that_are_led_to_an_endpoint_are_judged_by_the_endpoints() {
        let (table, mut status) = (table(), Status { node: "node-a".to_owned(), ..Status::default() });
        status.capture.acceleration = AccelerationStatus { active: true, ..AccelerationStatus::default() };
        let view = view(asked("10.0.0.1", "10.96.0.1:80"), &table, &status, Held::default());
        for (endpoints, word) in [
            (["10.0.0.1:8080", "10.9.9.9:80"], "one of the 1 endpoints"),
            (["10.9.9.8:80", "10.9.9.9:80"], "no endpoint takes part"),
        ] {
            let endpoints = endpoints.map(|to| to.parse::<SocketAddr>().expect("an address"));
            let mut said = String::new();
            acceleration(&view, Some(&endpoints), &mut |_, text| said = text);
            assert!(said.contains(word), "{said}");
        }
    }
}
