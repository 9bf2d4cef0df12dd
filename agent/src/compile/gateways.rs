//! Gateway listeners: one bound port, the hosts behind it, and which listener each host belongs to.

use std::net::IpAddr;
use std::sync::Arc;

use super::hosts::{HostCompiler, sort_by_precedence};
use super::routes::Scope;
use super::{GatewayListener, RoutingTable, VirtualHost};
use crate::model::{HostPattern, Listener, ListenerProtocol, RouteKind, RouteTable};
use crate::route::{HostTable, Rule};

/// How specific a host is; see [`specificity`].
type Rank = (u8, usize);

/// Route tables with the specificity of the host by which they are met, most specific first.
type RankedTables<'a> = Vec<(Rank, &'a RouteTable)>;

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
    let name: Arc<str> = format!("{}/{}", first.gateway, first.name).into();
    let before = previous.gateways.iter().find(|gateway| gateway.name == name);
    let hosts = hosts(listeners).into_iter().map(|(pattern, tables)| {
        let before = before.and_then(|gateway| gateway.hosts.get(&pattern));
        let host = virtual_host(&pattern, &tables, &HostCompiler::new(scope, binding.port, before));
        (pattern, host)
    });
    let Binding { port, addresses, protocol } = binding;
    let gateway = GatewayListener { name, addresses, port, protocol, hosts: HostTable::new(hosts) };
    Some(match before {
        Some(before) if same(before, &gateway) => Arc::clone(before),
        _ => Arc::new(gateway),
    })
}

/// Every pattern that listeners or their routes name, with the route tables that serve it.
///
/// A host belongs to the listener with the most specific hostname that covers it, and to that one alone, also where
/// that one has no route for it. Within a listener the rules of a more specific route hostname come first, and those of
/// the less specific ones that cover it after them.
fn hosts<'a>(listeners: &[&'a Listener]) -> Vec<(HostPattern, RankedTables<'a>)> {
    let mut patterns: Vec<&HostPattern> = Vec::new();
    for listener in listeners {
        patterns.push(&listener.hostname);
        patterns.extend(listener.routes.iter().flat_map(|table| route_hosts(table, listener)));
    }
    patterns.sort();
    patterns.dedup();
    let with_tables = |pattern: &HostPattern| {
        let owner = listeners
            .iter()
            .map(|listener| &listener.hostname)
            .filter(|hostname| covers(hostname, pattern))
            .max_by_key(|hostname| specificity(hostname))?;
        let of_owner = listeners.iter().filter(|listener| listener.hostname == *owner);
        let mut tables: RankedTables<'_> = of_owner
            .flat_map(|listener| {
                listener.routes.iter().map(move |table| (table, route_hosts(table, listener)))
            })
            .filter_map(|(table, hosts)| {
                let hosts = hosts.into_iter().filter(|host| covers(host, pattern));
                hosts.map(specificity).max().map(|rank| (rank, table))
            })
            .collect();
        tables.sort_by_key(|(rank, _)| std::cmp::Reverse(*rank));
        Some((pattern.clone(), tables))
    };
    patterns.into_iter().filter_map(with_tables).collect()
}

/// The hosts of a route on a listener; a route without any is for all of the listener's.
fn route_hosts<'a>(table: &'a RouteTable, listener: &'a Listener) -> Vec<&'a HostPattern> {
    if table.hosts.is_empty() { vec![&listener.hostname] } else { table.hosts.iter().collect() }
}

/// Whether every host of `inner` is one of `outer`.
fn covers(outer: &HostPattern, inner: &HostPattern) -> bool {
    match (outer, inner) {
        (HostPattern::Any, _) => true,
        (HostPattern::Exact(a), HostPattern::Exact(b)) => a == b,
        (HostPattern::Suffix(a), HostPattern::Suffix(b)) => b.ends_with(&**a),
        (HostPattern::Suffix(a), HostPattern::Exact(b)) => b.len() > a.len() && b.ends_with(&**a),
        (HostPattern::Exact(_) | HostPattern::Suffix(_), _) => false,
    }
}

/// Exact names before wildcards, longer wildcards before shorter ones.
fn specificity(pattern: &HostPattern) -> Rank {
    match pattern {
        HostPattern::Exact(name) => (2, name.len()),
        HostPattern::Suffix(suffix) => (1, suffix.len()),
        HostPattern::Any => (0, 0),
    }
}

/// Tables with equally specific hosts are ranked by their matches.
fn virtual_host(
    pattern: &HostPattern,
    tables: &[(Rank, &RouteTable)],
    compiler: &HostCompiler<'_>,
) -> Arc<VirtualHost> {
    let mut rules: Vec<Rule> = Vec::new();
    for group in tables.chunk_by(|(a, left), (b, right)| a == b && left.kind == right.kind) {
        let mut of_group: Vec<Rule> = group.iter().flat_map(|(_, table)| compiler.table(table)).collect();
        if group[0].1.kind == RouteKind::HttpRoute {
            sort_by_precedence(&mut of_group);
        }
        rules.append(&mut of_group);
    }
    compiler.finish(pattern.to_string(), rules)
}

fn same(before: &GatewayListener, after: &GatewayListener) -> bool {
    before.addresses == after.addresses
        && before.port == after.port
        && before.protocol == after.protocol
        && before.hosts.iter().count() == after.hosts.iter().count()
        && before.hosts.iter().zip(after.hosts.iter()).all(|(a, b)| a.0 == b.0 && Arc::ptr_eq(a.1, b.1))
}
