//! Gateway listeners: one bound port, the hosts behind it, and which listener each host belongs to.

use std::borrow::Borrow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::ptr::from_ref;
use std::sync::Arc;

use super::edge_tls::InTls;
use super::hosts::{HostCompiler, sort_by_precedence};
use super::routes::{Dialled, Scope};
use super::{GatewayListener, RoutingTable, VirtualHost, edge_tls};
use crate::model::{
    Destination, HostPattern, Listener, ListenerProtocol, ObjectName, RouteAction, RouteKind, RouteTable,
    Speaker,
};
use crate::route::{HostTable, Rule, RuleSet};

/// Route tables by the host that leads to them.
type TablesByHost<T> = HashMap<HostPattern, Vec<T>>;

/// What listeners that are bound as one have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Binding {
    port: u16,
    addresses: Vec<IpAddr>,
    protocol: ListenerProtocol,
}

/// One bound port: whose it is, and which route tables serve which of its hosts.
#[derive(Debug, Clone)]
pub(super) struct Plan<T> {
    name: Arc<str>,
    listeners: Vec<(Arc<str>, HostPattern)>,
    binding: Binding,
    hosts: Vec<(HostPattern, Vec<Vec<T>>)>,
    tls: Vec<InTls>,
    speaker: Option<Arc<Speaker>>,
}

/// A listener with the routes on it.
type WithRoutes<'m, T> = (&'m Listener, Vec<T>);

/// Plans one entry for each port and set of addresses, in the order of the listeners. Each comes with its own routes.
pub(super) fn plan<T: Borrow<RouteTable> + Clone>(listeners: &[WithRoutes<'_, T>]) -> Vec<Plan<T>> {
    let mut groups: Vec<(Binding, Vec<&WithRoutes<'_, T>>)> = Vec::new();
    for with_routes in listeners {
        let (listener, _) = with_routes;
        let mut addresses = listener.addresses.clone();
        addresses.sort_unstable();
        addresses.dedup();
        let binding = Binding { port: listener.port, addresses, protocol: bound(listener.protocol) };
        match groups.iter_mut().find(|(known, _)| *known == binding) {
            Some((_, group)) => group.push(with_routes),
            None => groups.push((binding, vec![with_routes])),
        }
    }
    groups.into_iter().filter_map(|(binding, group)| Plan::new(binding, &group)).collect()
}

/// What tells ports apart: listeners that end TLS and those that pass it on share one.
fn bound(protocol: ListenerProtocol) -> ListenerProtocol {
    match protocol {
        ListenerProtocol::Tls => ListenerProtocol::Https,
        other => other,
    }
}

/// Compiles what was planned.
pub(super) fn compile<'p, T: Borrow<RouteTable> + 'p>(
    plans: impl Iterator<Item = &'p Plan<T>>,
    previous: &RoutingTable,
    scope: &Scope<'_>,
) -> Vec<Arc<GatewayListener>> {
    let named = |name: &str| previous.gateways.iter().find(|gateway| *gateway.name == *name);
    plans.map(|plan| plan.compile(named(&plan.name), scope, |_| true)).collect()
}

impl<T: Borrow<RouteTable> + Clone> Plan<T> {
    fn new(binding: Binding, listeners: &[&WithRoutes<'_, T>]) -> Option<Self> {
        let (first, _) = listeners.first()?;
        let name_of =
            |listener: &Listener| -> Arc<str> { format!("{}/{}", listener.gateway, listener.name).into() };
        let names =
            listeners.iter().map(|(listener, _)| (name_of(listener), listener.hostname.clone())).collect();
        let ends = |listener: &Listener| {
            let in_tls = listener.protocol != ListenerProtocol::Http;
            in_tls.then(|| InTls {
                name: name_of(listener),
                hostname: listener.hostname.clone(),
                terms: listener.tls.clone(),
                is_opaque: listener.protocol == ListenerProtocol::Tls,
            })
        };
        let tls = listeners.iter().filter_map(|(listener, _)| ends(listener)).collect();
        let is_one = listeners.iter().all(|(listener, _)| listener.gateway == first.gateway);
        let speaker = is_one.then(|| Arc::new(Speaker::new(&first.gateway)));
        Some(Self { name: name_of(first), listeners: names, binding, hosts: hosts(listeners), tls, speaker })
    }
}

impl<T: Borrow<RouteTable>> Plan<T> {
    /// Compiles the hosts at the positions that `changed` names; the others are taken from the entry before, which was
    /// compiled of the same plan.
    pub(super) fn compile(
        &self,
        before: Option<&Arc<GatewayListener>>,
        scope: &Scope<'_>,
        changed: impl Fn(usize) -> bool,
    ) -> Arc<GatewayListener> {
        let dialled = Dialled { port: self.binding.port, headless: None };
        let hosts = self.hosts.iter().enumerate().map(|(position, (pattern, tables))| {
            let before = before.and_then(|gateway| gateway.hosts.get(pattern));
            let host = match before {
                Some(before) if !changed(position) => Arc::clone(before),
                _ => virtual_host(pattern, tables, &HostCompiler::new(scope, dialled, before)),
            };
            (pattern.clone(), host)
        });
        let Binding { port, addresses, protocol } = self.binding.clone();
        let gateway = GatewayListener {
            name: Arc::clone(&self.name),
            listeners: self.listeners.clone(),
            addresses,
            port,
            protocol,
            tls: edge_tls::compile(&self.tls, before.map(|gateway| &**gateway)),
            speaker: self.speaker.clone(),
            hosts: HostTable::new(hosts),
        };
        match before {
            Some(before) if same(before, &gateway) => Arc::clone(before),
            _ => Arc::new(gateway),
        }
    }

    /// The positions of the hosts whose routes lead to a service.
    pub(super) fn towards(&self) -> HashMap<ObjectName, BTreeSet<usize>> {
        let mut towards: HashMap<ObjectName, BTreeSet<usize>> = HashMap::new();
        for (position, (_, groups)) in self.hosts.iter().enumerate() {
            for service in groups.iter().flatten().flat_map(|table| destinations(table.borrow())) {
                towards.entry(service.clone()).or_default().insert(position);
            }
        }
        towards
    }
}

/// The services that the rules of a table lead to.
pub(super) fn destinations(table: &RouteTable) -> impl Iterator<Item = &ObjectName> {
    let weighted = table.rules.iter().flat_map(|rule| match &rule.action {
        RouteAction::Forward { destinations, .. } => destinations.as_slice(),
        RouteAction::Redirect(_) | RouteAction::Respond(_) => &[],
    });
    weighted.filter_map(|weighted| match &weighted.destination {
        Destination::Service { service, .. } => Some(service),
        Destination::Invalid { .. } => None,
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
fn hosts<T: Borrow<RouteTable> + Clone>(listeners: &[&WithRoutes<'_, T>]) -> Vec<(HostPattern, Vec<Vec<T>>)> {
    let mut by_hostname: HashMap<&HostPattern, TablesByHost<T>> = HashMap::new();
    let mut patterns = BTreeSet::new();
    for (listener, routes) in listeners {
        patterns.insert(listener.hostname.clone());
        let tables = by_hostname.entry(&listener.hostname).or_default();
        for table in routes {
            for host in route_hosts(table.borrow(), listener) {
                patterns.insert(host.clone());
                tables.entry(host.clone()).or_default().push(table.clone());
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
fn first_mentions<T: Borrow<RouteTable>>(mut groups: Vec<Vec<T>>) -> Vec<Vec<T>> {
    let mut seen: HashSet<*const RouteTable> = HashSet::new();
    for group in &mut groups {
        group.retain(|table| seen.insert(from_ref(table.borrow())));
    }
    groups
}

/// Tables with equally specific hosts are ranked by their matches.
fn virtual_host<T: Borrow<RouteTable>>(
    pattern: &HostPattern,
    groups: &[Vec<T>],
    compiler: &HostCompiler<'_>,
) -> Arc<VirtualHost> {
    let mut rules: Vec<Rule> = Vec::new();
    let kind = |table: &T| table.borrow().kind;
    for group in groups.iter().flat_map(|group| group.chunk_by(|a, b| kind(a) == kind(b))) {
        let mut of_group: Vec<Rule> = group.iter().flat_map(|table| compiler.table(table.borrow())).collect();
        if group.iter().all(|table| kind(table) == RouteKind::HttpRoute) {
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
        && edge_tls::is_same(before.tls.as_ref(), after.tls.as_ref())
        && before.hosts.iter().count() == after.hosts.iter().count()
        && before.hosts.iter().zip(after.hosts.iter()).all(|(a, b)| a.0 == b.0 && Arc::ptr_eq(a.1, b.1))
}
