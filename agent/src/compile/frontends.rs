//! What captured connections meet: one frontend for each address that clients of a service dial.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use regex_automata::meta::Regex;

use super::hosts::{HostCompiler, sort_by_precedence};
use super::routes::{Dialled, Scope, default_route};
use super::source::Source;
use super::{Cluster, ClusterKey, Frontend, RoutingTable, VirtualHost};
use crate::model::{
    AppProtocol, HostPattern, MatchValue, ObjectName, RequestMatch, RouteKind, RouteTable, Service,
    ServicePort, SharedIndex,
};
use crate::route::{Rule, RuleSet};

/// Frontends that a table had, by service and port.
pub(super) type Known<'a> = HashMap<(&'a ObjectName, u16), &'a Arc<Frontend>>;

/// Frontends of all services. Of two services with one address the first by name is kept.
pub(super) fn compile(
    services: &[Service],
    previous: &RoutingTable,
    scope: &Scope<'_>,
) -> SharedIndex<SocketAddr, Arc<Frontend>> {
    let known = known(previous.frontends.values());
    let mut frontends = HashMap::new();
    for service in services {
        for frontend in of_service(service, scope, &known) {
            for address in addresses(service, frontend.port, scope.source) {
                frontends.entry(address).or_insert_with(|| Arc::clone(&frontend));
            }
        }
    }
    frontends.into_iter().collect()
}

/// Frontends by what they are the frontends of.
pub(super) fn known<'a>(frontends: impl Iterator<Item = &'a Arc<Frontend>>) -> Known<'a> {
    frontends.map(|frontend| ((&frontend.service, frontend.port), frontend)).collect()
}

/// The frontends of a service's ports, in their order; an equal one that is known is kept.
pub(super) fn of_service(service: &Service, scope: &Scope<'_>, known: &Known<'_>) -> Vec<Arc<Frontend>> {
    let routes = scope.source.routes(&service.name);
    let of_port = |port: &ServicePort| {
        let key = ClusterKey { service: service.name.clone(), port: port.port, subset: None };
        let cluster = scope.clusters.get(&key)?;
        let before = known.get(&(&service.name, port.port)).copied();
        let http = virtual_host(service, port, cluster, &Lookup { scope, routes: &routes, before });
        if !is_known(port, cluster, &http) {
            return None;
        }
        let frontend = Frontend {
            service: service.name.clone(),
            port: port.port,
            protocol: port.protocol,
            headless: service.headless,
            http,
            tcp: Arc::clone(cluster),
            affinity: service.affinity,
        };
        Some(share(frontend, before))
    };
    service.ports.iter().filter_map(of_port).collect()
}

/// Whether there is anything that the agent could serve. The documents may be a part of the cluster's: a service whose
/// endpoints they don't have, and that no rule is about, is left to whoever serves it without the agent.
fn is_known(port: &ServicePort, cluster: &Cluster, host: &VirtualHost) -> bool {
    let has_rules = port.protocol != AppProtocol::Tcp && !host.layers.is_empty();
    has_rules || !cluster.endpoints.is_empty() || !cluster.unready.is_empty()
}

/// The addresses that clients of a service's port dial. Endpoints that are not ready are among those of a headless one: a
/// client that dials one by its own address gets what it would get without the agent, routed by the same rules.
pub(super) fn addresses(service: &Service, port: u16, source: &dyn Source) -> Vec<SocketAddr> {
    if !service.headless {
        return service.cluster_ips.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
    }
    source.endpoints(&service.name, port).into_iter().map(|endpoint| endpoint.address).collect()
}

fn share(frontend: Frontend, previous: Option<&Arc<Frontend>>) -> Arc<Frontend> {
    match previous {
        Some(before)
            if before.protocol == frontend.protocol
                && before.headless == frontend.headless
                && before.affinity == frontend.affinity
                && Arc::ptr_eq(&before.http, &frontend.http)
                && Arc::ptr_eq(&before.tcp, &frontend.tcp) =>
        {
            Arc::clone(before)
        }
        _ => Arc::new(frontend),
    }
}

struct Lookup<'a> {
    scope: &'a Scope<'a>,
    routes: &'a [(&'a RouteTable, Option<u16>)],
    before: Option<&'a Arc<Frontend>>,
}

fn virtual_host(
    service: &Service,
    port: &ServicePort,
    cluster: &Arc<Cluster>,
    lookup: &Lookup<'_>,
) -> Arc<VirtualHost> {
    let dialled = Dialled { port: port.port, headless: service.headless.then_some(&service.name) };
    let compiler = HostCompiler::new(lookup.scope, dialled, lookup.before.map(|frontend| &frontend.http));
    let layers = mesh_layers(&compiler, &service.name, lookup.routes, port.port);
    // Callers that no rule can concern are served as if there were none, as in Istio, where each client compiles its
    // own rules. The same goes for a port of which no rule speaks.
    let default = (!layers.iter().any(RuleSet::concerns_everyone))
        .then(|| compiler.share(default_route(&service.name, service.headless, cluster)));
    compiler.finish(format!("{}:{}", service.name.fqdn(), port.port), layers, default)
}

/// The rules that the documents give to one port: those of consumers in their own namespaces first (GEP-1426), then the
/// service's own.
fn mesh_layers(
    compiler: &HostCompiler<'_>,
    service: &ObjectName,
    tables: &[(&RouteTable, Option<u16>)],
    port: u16,
) -> Vec<RuleSet> {
    let here =
        tables.iter().filter(|(_, only)| only.is_none_or(|only| only == port)).map(|(table, _)| *table);
    let (http_routes, virtual_services): (Vec<_>, Vec<_>) =
        here.partition(|table| table.kind == RouteKind::HttpRoute);
    let (producers, consumers): (Vec<_>, Vec<_>) =
        http_routes.into_iter().partition(|table| table.source.namespace == service.namespace);
    let own = match virtual_services.first() {
        Some(table) if producers.is_empty() => compiler.table(table),
        _ => merged(compiler, &producers),
    };
    let layers = [merged(compiler, &consumers), own];
    layers.into_iter().filter(|rules| !rules.is_empty()).map(RuleSet::new).collect()
}

/// The rules of HTTPRoutes, by the Gateway API's precedence.
fn merged(compiler: &HostCompiler<'_>, tables: &[&RouteTable]) -> Vec<Rule> {
    let of_table = |table: &&RouteTable| {
        let hosts = host_conditions(&table.hosts);
        compiler.table(table).into_iter().map(move |rule| with_hosts(rule, &hosts)).collect::<Vec<_>>()
    };
    let mut rules: Vec<Rule> = tables.iter().flat_map(of_table).collect();
    sort_by_precedence(&mut rules);
    rules
}

/// An HTTPRoute's host names as conditions on the authority; empty: any.
fn host_conditions(hosts: &[HostPattern]) -> Vec<MatchValue> {
    let condition = |pattern: &HostPattern| match pattern {
        HostPattern::Exact(name) => MatchValue::Exact(Arc::clone(name)),
        HostPattern::Suffix(suffix) => {
            let text = format!("(?s:.+){}", escape(suffix));
            // An escaped name always builds; should one not, no host that a client can mean is let in by it.
            Regex::new(&text).map_or_else(
                |_| MatchValue::Exact(pattern.to_string().into()),
                |regex| MatchValue::Regex(regex, text.clone().into()),
            )
        }
        HostPattern::Any => MatchValue::Prefix("".into()),
    };
    hosts.iter().map(condition).collect()
}

fn escape(literal: &str) -> String {
    literal.chars().flat_map(|c| (!c.is_alphanumeric()).then_some('\\').into_iter().chain([c])).collect()
}

/// The rule under each of the hosts.
fn with_hosts((matches, route): Rule, hosts: &[MatchValue]) -> Rule {
    if hosts.is_empty() {
        return (matches, route);
    }
    let matches = if matches.is_empty() { vec![RequestMatch::default()] } else { matches };
    let under = |conditions: &RequestMatch| {
        let conditions = conditions.clone();
        hosts.iter().map(move |host| RequestMatch { authority: Some(host.clone()), ..conditions.clone() })
    };
    (matches.iter().flat_map(under).collect(), route)
}
