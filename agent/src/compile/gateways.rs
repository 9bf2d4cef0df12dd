//! Gateway listeners: one bound port, the hosts behind it, and which listener each host belongs to.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::hosts::{HostCompiler, sort_by_precedence};
use super::routes::{Dialled, Scope};
use super::{GatewayListener, RoutingTable, VirtualHost};
use crate::model::{HostPattern, Listener, ListenerProtocol, RouteKind, RouteTable};
use crate::route::{HostTable, Rule, RuleSet};

/// Route tables by the host that leads to them.
type TablesByHost<'a> = HashMap<HostPattern, Vec<&'a RouteTable>>;

/// What listeners that are bound as one have in common.
#[derive(PartialEq, Eq)]
struct Binding {
    port: u16,
    addresses: Vec<IpAddr>,
    protocol: ListenerProtocol,
}

/// One entry for each port and set of addresses, in the order of the listeners.
pub(super) fn compile(
    listeners: &[Listener],
    previous: &RoutingTable,
    scope: &Scope<'_>,
) -> Vec<Arc<GatewayListener>> {
    let mut groups: Vec<(Binding, Vec<&Listener>)> = Vec::new();
    for listener in listeners {
        let mut addresses = listener.addresses.clone();
        addresses.sort_unstable();
        addresses.dedup();
        let binding = Binding { port: listener.port, addresses, protocol: listener.protocol };
        match groups.iter_mut().find(|(known, _)| *known == binding) {
            Some((_, group)) => group.push(listener),
            None => groups.push((binding, vec![listener])),
        }
    }
    let merged = groups.into_iter().filter_map(|(binding, group)| merge(binding, &group, previous, scope));
    merged.collect()
}

fn merge(
    binding: Binding,
    listeners: &[&Listener],
    previous: &RoutingTable,
    scope: &Scope<'_>,
) -> Option<Arc<GatewayListener>> {
    let first = listeners.first()?;
    let name_of = |listener: &Listener| format!("{}/{}", listener.gateway, listener.name).into();
    let name: Arc<str> = name_of(first);
    let names = listeners.iter().map(|listener| (name_of(listener), listener.hostname.clone())).collect();
    let before = previous.gateways.iter().find(|gateway| gateway.name == name);
    let dialled = Dialled { port: binding.port, headless: None };
    let hosts = hosts(listeners).into_iter().map(|(pattern, tables)| {
        let before = before.and_then(|gateway| gateway.hosts.get(&pattern));
        let host = virtual_host(&pattern, &tables, &HostCompiler::new(scope, dialled, before));
        (pattern, host)
    });
    let Binding { port, addresses, protocol } = binding;
    let gateway =
        GatewayListener { name, listeners: names, addresses, port, protocol, hosts: HostTable::new(hosts) };
    Some(match before {
        Some(before) if same(before, &gateway) => Arc::clone(before),
        _ => Arc::new(gateway),
    })
}

impl GatewayListener {
    /// The name of the listener that a host belongs to: that with the most specific hostname that covers it.
    pub fn owner(&self, host: &HostPattern) -> &Arc<str> {
        let with = |hostname: &HostPattern| self.listeners.iter().find(|(_, own)| own == hostname);
        wider(host).iter().find_map(with).map_or(&self.name, |(name, _)| name)
    }
}

/// Every pattern that listeners or their routes name, with the route tables that serve it: groups of equally specific
/// hosts, the most specific first.
///
/// A host belongs to the listener with the most specific hostname that covers it, and to that one alone, also where
/// that one has no route for it. Within a listener the rules of a more specific route hostname come first, and those of
/// the less specific ones that cover it after them.
fn hosts<'a>(listeners: &[&'a Listener]) -> Vec<(HostPattern, Vec<Vec<&'a RouteTable>>)> {
    let mut by_hostname: HashMap<&HostPattern, TablesByHost<'a>> = HashMap::new();
    let mut patterns = BTreeSet::new();
    for listener in listeners {
        patterns.insert(listener.hostname.clone());
        let tables = by_hostname.entry(&listener.hostname).or_default();
        for table in &listener.routes {
            for host in route_hosts(table, listener) {
                patterns.insert(host.clone());
                tables.entry(host.clone()).or_default().push(table);
            }
        }
    }
    let with_tables = |pattern: HostPattern| {
        let wider = wider(&pattern);
        let tables = wider.iter().find_map(|hostname| by_hostname.get(hostname))?;
        let groups = wider.iter().filter_map(|host| tables.get(host).cloned()).collect();
        Some((pattern, first_mentions(groups)))
    };
    patterns.into_iter().filter_map(with_tables).collect()
}

/// The hosts of a route on a listener; a route without any is for all of the listener's.
fn route_hosts<'a>(table: &'a RouteTable, listener: &'a Listener) -> &'a [HostPattern] {
    if table.hosts.is_empty() { std::slice::from_ref(&listener.hostname) } else { &table.hosts }
}

/// A pattern and all that cover it, the most specific first.
fn wider(pattern: &HostPattern) -> Vec<HostPattern> {
    let name = match pattern {
        HostPattern::Exact(name) | HostPattern::Suffix(name) => name,
        HostPattern::Any => return vec![HostPattern::Any],
    };
    // A wildcard stands for one label at least, and a suffix begins with a dot of its own.
    let dots = name.match_indices('.').map(|(at, _)| at).filter(|at| *at > 0);
    let suffixes = dots.map(|at| HostPattern::Suffix(name[at..].into()));
    [pattern.clone()].into_iter().chain(suffixes).chain([HostPattern::Any]).collect()
}

/// A table that is met by several hosts counts where it is first.
fn first_mentions(mut groups: Vec<Vec<&RouteTable>>) -> Vec<Vec<&RouteTable>> {
    let mut seen: HashSet<*const RouteTable> = HashSet::new();
    for group in &mut groups {
        group.retain(|table| seen.insert(std::ptr::from_ref(*table)));
    }
    groups
}

/// Tables with equally specific hosts are ranked by their matches.
fn virtual_host(
    pattern: &HostPattern,
    groups: &[Vec<&RouteTable>],
    compiler: &HostCompiler<'_>,
) -> Arc<VirtualHost> {
    let mut rules: Vec<Rule> = Vec::new();
    for group in groups.iter().flat_map(|group| group.chunk_by(|a, b| a.kind == b.kind)) {
        let mut of_group: Vec<Rule> = group.iter().flat_map(|table| compiler.table(table)).collect();
        if group.iter().all(|table| table.kind == RouteKind::HttpRoute) {
            sort_by_precedence(&mut of_group);
        }
        rules.append(&mut of_group);
    }
    compiler.finish(pattern.to_string(), vec![RuleSet::new(rules)], None)
}

fn same(before: &GatewayListener, after: &GatewayListener) -> bool {
    before.listeners == after.listeners
        && before.addresses == after.addresses
        && before.port == after.port
        && before.protocol == after.protocol
        && before.hosts.iter().count() == after.hosts.iter().count()
        && before.hosts.iter().zip(after.hosts.iter()).all(|(a, b)| a.0 == b.0 && Arc::ptr_eq(a.1, b.1))
}
