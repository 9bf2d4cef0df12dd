//! What is decided before and beside the packet programs: at the edge, and between two sockets of this node.

use std::net::IpAddr;
use std::sync::Arc;

use super::Asked;
use crate::admin::Status;
use crate::compile::RoutingTable;
use crate::model::Workload;

/// What the guard's lists say of a source that comes from elsewhere; the EdgeGuard that denies it. Limits and sources that
/// were pushed down depend on what the source does: only events tell of them.
pub(super) fn guard(
    source: IpAddr,
    pod: Option<&Arc<Workload>>,
    (table, status): (&RoutingTable, &Status),
    step: &mut impl FnMut(&str, String),
) -> Option<String> {
    let interfaces: Vec<_> = status.guard.as_ref()?.interfaces.iter().map(|one| one.name.as_str()).collect();
    let here = pod.is_some_and(|pod| pod.node.as_deref().is_none_or(|node| *node == *status.node));
    if interfaces.is_empty() || here {
        return None;
    }
    let by = interfaces.join(", ");
    let allowed = table.guard.allow.iter().flat_map(|list| list.iter()).any(|net| net.contains(&source));
    if allowed {
        step("xdp_guard", format!("frames that come by {by} pass: an EdgeGuard allows the source"));
        return None;
    }
    let denying = table.guard.rules.iter().flat_map(|rule| rule.deny.iter().map(move |net| (rule, net)));
    // The narrowest network decides; of two rules with the same, the first by name.
    let denied = denying
        .filter(|(_, net)| net.contains(&source))
        .reduce(|first, other| if other.1.prefix_len() > first.1.prefix_len() { other } else { first });
    let Some((rule, net)) = denied else {
        step("xdp_guard", format!("frames that come by {by} pass, as long as they keep to its limits"));
        return None;
    };
    let found = format!("frames that come by {by} are dropped: EdgeGuard {} denies {net}", rule.name);
    step("xdp_guard", found);
    Some(format!("EdgeGuard {}", rule.name))
}

/// Whether a connection from socket to socket would skip TCP.
pub(super) fn acceleration(
    asked: Asked,
    (table, status): (&RoutingTable, &Status),
    step: &mut impl FnMut(&str, String),
) {
    if !status.capture.acceleration.active {
        return;
    }
    let takes_part = |ip: IpAddr| {
        let here = |pod: &Workload| pod.node.as_deref().is_none_or(|node| *node == *status.node);
        table.workloads.get(&ip).is_some_and(|pod| here(pod) && pod.accelerated)
            && table.policies.of(ip).is_none()
    };
    let (from, to) = (takes_part(asked.source), takes_part(asked.destination.ip()));
    let captured = table.frontends.contains_key(&asked.destination);
    let found = match (from, to || captured) {
        (false, _) => "the source takes no part: TCP carries its bytes",
        (true, false) => "the destination takes no part: TCP carries the bytes",
        (true, true) if captured && !to => {
            "bytes to the agent skip TCP, and from there if the endpoint takes part"
        }
        (true, true) => {
            "bytes go from socket to socket, unless the dialling end sends before the other one is there"
        }
    };
    step("acceleration", found.to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::tests::{model, table};
    use crate::admin::{AccelerationStatus, GuardStatus, GuardedInterface};
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

    #[test]
    fn the_guard_that_denies_is_named() {
        let guards = vec![
            edge_guard("a", &["192.0.2.0/24"], &["192.0.2.7/32"]),
            edge_guard("b", &["192.0.2.128/25", "192.0.2.0/24", "10.0.0.0/8"], &[]),
        ];
        let table = compile(&Model { guards, ..model() }, &RoutingTable::default(), TableVersion::default());
        let eth0 = GuardedInterface { name: "eth0".to_owned(), ..GuardedInterface::default() };
        let status = Status {
            node: "node-a".to_owned(),
            guard: Some(GuardStatus { interfaces: vec![eth0], ..GuardStatus::default() }),
            ..Status::default()
        };
        for (source, expected, word) in [
            ("192.0.2.1", Some("EdgeGuard a"), "denies 192.0.2.0/24"),
            ("192.0.2.200", Some("EdgeGuard b"), "denies 192.0.2.128/25"),
            ("192.0.2.7", None, "allows the source"),
            ("198.51.100.1", None, "limits"),
        ] {
            let source: IpAddr = source.parse().expect("an address");
            let mut said = String::new();
            let found = guard(source, None, (&table, &status), &mut |_, text| said = text);
            assert_eq!(found.as_deref(), expected, "{source}");
            assert!(said.contains(word) && said.contains("eth0"), "{source}: {said}");
        }
        // A pod of this node does not come by the uplink.
        let pod: IpAddr = "10.0.0.1".parse().expect("an address");
        let found = guard(pod, table.workloads.get(&pod), (&table, &status), &mut |_, text| panic!("{text}"));
        assert_eq!(found, None);
    }

    #[test]
    fn acceleration_says_who_takes_no_part() {
        let mut status = Status { node: "node-a".to_owned(), ..Status::default() };
        let said = |source: &str, destination: &str, status: &Status| {
            let asked = Asked {
                source: source.parse().expect("an address"),
                port: None,
                destination: destination.parse().expect("an address"),
            };
            let mut said = String::new();
            acceleration(asked, (&table(), status), &mut |_, text| said = text);
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
    }
}
