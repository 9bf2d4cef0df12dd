//! The rate limits that what is dialled is held to.

use std::net::SocketAddr;
use std::sync::Arc;

use super::super::dump::RuleDump;
use super::super::limits::{describe_key, describe_quota, exempt};
use crate::compile::{Frontend, GatewayListener, LimitCounter, LimitPolicy, RoutingTable};
use crate::model::{AppProtocol, ObjectName, Workload};

/// Those of a service, and of the rules that its requests may meet.
pub(super) fn of_frontend(
    (table, source): (&RoutingTable, Option<&Workload>),
    frontend: &Frontend,
    rules: &[RuleDump],
    step: &mut impl FnMut(&str, String),
) {
    let service = table.limits.of_service(&frontend.service);
    let mut found = Vec::new();
    if frontend.protocol != AppProtocol::Tcp {
        found.extend(named(service.iter(), |policy| &policy.limits));
        found.extend(named(table.limits.of_sender(source, &table.realm.node), |policy| &policy.limits));
        found.extend(of_rules(table, rules.iter().map(|rule| (&*rule.kind, &*rule.source, &*rule.rule))));
        say("requests", &mut found, step);
    }
    if matches!(frontend.protocol, AppProtocol::Tcp | AppProtocol::Undeclared) {
        found.extend(named(service.iter(), |policy| &policy.connections));
        say("opaque connections", &mut found, step);
    }
}

/// Those of a Gateway's listeners, and of the rules that its requests may meet.
pub(super) fn of_listener(
    table: &RoutingTable,
    listener: &GatewayListener,
    step: &mut impl FnMut(&str, String),
) {
    let mut found = Vec::new();
    for (name, _) in &listener.listeners {
        found.extend(named(table.limits.of_listener(name), |policy| &policy.limits));
    }
    let rules = listener.hosts.iter().flat_map(|(_, host)| host.rules());
    let names: Vec<(&str, String, &str)> =
        rules.map(|(_, route)| (route.name.kind, route.name.source.to_string(), &*route.name.rule)).collect();
    found.extend(of_rules(table, names.iter().map(|(kind, source, rule)| (*kind, &**source, *rule))));
    say("requests", &mut found, step);
}

/// Those of what enters the pods behind it, each counted by its own node.
pub(super) fn of_pods(table: &RoutingTable, endpoints: &[SocketAddr], step: &mut impl FnMut(&str, String)) {
    for endpoint in endpoints {
        let pod = table.workloads.get(&endpoint.ip().to_canonical());
        let Some((pod, node)) = pod.and_then(|pod| Some((pod, pod.node.as_deref()?))) else { continue };
        let policies: Vec<_> = table.limits.of_receiver(pod, node).collect();
        let at = |what: &str| format!("{what} that enter pod {} on node {node}", pod.name);
        let mut found = named(policies.iter().copied(), |policy| &policy.limits);
        say(&at("requests"), &mut found, step);
        found.extend(named(policies.iter().copied(), |policy| &policy.connections));
        say(&at("opaque connections"), &mut found, step);
    }
}

fn of_rules<'r>(
    table: &RoutingTable,
    rules: impl Iterator<Item = (&'r str, &'r str, &'r str)>,
) -> Vec<String> {
    let of_rule = |(kind, source, rule): (&str, &str, &str)| {
        let source = source.split_once('/').map(|(namespace, name)| ObjectName::new(namespace, name));
        let policies = source.iter().flat_map(|source| table.limits.of_route(kind, source, rule));
        named(policies, |policy| &policy.limits)
    };
    rules.flat_map(of_rule).collect()
}

fn named<'t>(
    policies: impl Iterator<Item = &'t Arc<LimitPolicy>>,
    counting: fn(&LimitPolicy) -> &Vec<Arc<LimitCounter>>,
) -> Vec<String> {
    let each = |policy: &LimitPolicy| {
        let name = |counter: &Arc<LimitCounter>| {
            let limit = &counter.limit;
            let shadow = if policy.shadow { ", which only counts" } else { "" };
            let (quota, key) = (describe_quota(limit.quota), describe_key(&limit.key));
            let exempt = exempt(limit);
            let but =
                if exempt.is_empty() { String::new() } else { format!(", but for {}", exempt.join(", ")) };
            format!("{} {} ({quota}, {key}{but}{shadow})", policy.name, limit.name)
        };
        counting(policy).iter().map(name).collect::<Vec<_>>()
    };
    policies.flat_map(|policy| each(policy)).collect()
}

/// Each once, whatever it is about.
fn say(what: &str, found: &mut Vec<String>, step: &mut impl FnMut(&str, String)) {
    found.sort();
    found.dedup();
    if !found.is_empty() {
        step("limits", format!("{what} are held to {}", found.join("; ")));
    }
    found.clear();
}
