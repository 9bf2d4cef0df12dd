//! Gateways with the HTTPRoutes that attach to their listeners.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::field::Field;
use super::super::kinds::{AllowedNamespaces, Gateway, GatewayListenerSpec, Parent, ParentKind, Spec};
use super::super::object::Object;
use super::super::report::{Code, Severity};
use super::http_route::{self, Route};
use super::{LinkNotes, World, certificate};
use crate::model::{HostPattern, Labels, Listener, ListenerProtocol, ObjectName, RouteKind, RouteTable};

/// The label that every namespace has in a cluster, whether or not a Namespace document says so.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// A listener that is served, with what decides who may attach.
struct Served<'a> {
    spec: &'a GatewayListenerSpec,
    listener: Listener,
}

/// The listeners in order of Gateways and within them as written, each with its routes.
pub(super) fn listeners(world: &World<'_>, notes: &mut LinkNotes<'_>) -> Vec<Listener> {
    let mut gateways = our_gateways(world, notes);
    for route in http_route::by_age(world) {
        attach(world, (route, RouteKind::HttpRoute), &mut gateways, notes);
    }
    for route in http_route::tls_by_age(world) {
        attach(world, (route, RouteKind::TlsRoute), &mut gateways, notes);
    }
    gateways.into_values().flatten().map(|served| served.listener).collect()
}

type Gateways<'a> = BTreeMap<&'a ObjectName, Vec<Served<'a>>>;

fn our_gateways<'a>(world: &World<'a>, notes: &mut LinkNotes<'_>) -> Gateways<'a> {
    let mut classes: BTreeMap<&str, bool> = BTreeMap::new();
    for object in world.objects {
        if let Spec::GatewayClass(class) = &object.spec {
            classes.insert(&object.name().name, class.ours);
        }
    }
    let mut gateways: Gateways<'a> = BTreeMap::new();
    let documents = world.by_age(|spec| match spec {
        Spec::Gateway(gateway) => Some(gateway),
        _ => None,
    });
    for (position, object, gateway) in documents {
        // Without any GatewayClass there is nobody else to serve a Gateway.
        if !classes.is_empty() && classes.get(&*gateway.class) != Some(&true) {
            let field = Field::spec().key("gatewayClassName");
            let text = format!("the class {} is not served by this agent", gateway.class);
            notes.say(position, (Severity::Info, Code::Ignored), &field, text);
            notes.not_enforced(position);
            continue;
        }
        let served = serve(world, (position, object, gateway), &gateways, notes);
        gateways.insert(object.name(), served);
    }
    gateways
}

fn serve<'a>(
    world: &World<'a>,
    (position, object, gateway): (usize, &'a Object, &'a Gateway),
    before: &Gateways<'a>,
    notes: &mut LinkNotes<'_>,
) -> Vec<Served<'a>> {
    let mut served: Vec<Served<'a>> = Vec::with_capacity(gateway.listeners.len());
    for spec in &gateway.listeners {
        let field = Field::spec().key("listeners");
        let shares = |other: &&Served<'_>| {
            other.spec.port == spec.port && share_address(&other.listener.addresses, &gateway.addresses)
        };
        let mut others = before.values().flatten().filter(shares);
        if let Some(other) = others.find(|other| other.spec.hostname == spec.hostname) {
            let text = format!(
                "listener {}: port {} for the same hosts belongs to the Gateway {}",
                spec.name, spec.port, other.listener.gateway
            );
            notes.say(position, (Severity::Error, Code::ListenerConflict), &field, text);
            continue;
        }
        let field = field.index(spec.index);
        let mut others = before.values().flatten().chain(&served).filter(shares);
        if let Some(other) = others.find(|other| in_tls(other.spec) != in_tls(spec)) {
            let Listener { gateway, name, .. } = &other.listener;
            let text = format!(
                "listener {}: port {} speaks another protocol for {gateway}/{name}",
                spec.name, spec.port
            );
            notes.say(position, (Severity::Error, Code::ListenerConflict), &field, text);
            continue;
        }
        let of = (position, object.name());
        let tls = spec.tls.as_ref().map(|tls| certificate::listener_tls(world, of, tls, &field, notes));
        let listener = Listener {
            gateway: object.name().clone(),
            name: Arc::clone(&spec.name),
            addresses: gateway.addresses.clone(),
            port: spec.port,
            protocol: spec.protocol,
            hostname: spec.hostname.clone(),
            tls,
            routes: Vec::new(),
        };
        served.push(Served { spec, listener });
    }
    served
}

/// Whether TLS is spoken on a listener; those that end it and those that pass it on may share a port.
fn in_tls(spec: &GatewayListenerSpec) -> bool {
    spec.protocol != ListenerProtocol::Http
}

/// Whether two lists of addresses, of which an empty one means all, have one in common.
fn share_address<T: PartialEq>(a: &[T], b: &[T]) -> bool {
    a.is_empty() || b.is_empty() || a.iter().any(|address| b.contains(address))
}

fn attach(
    world: &World<'_>,
    (route, kind): (Route<'_>, RouteKind),
    gateways: &mut Gateways<'_>,
    notes: &mut LinkNotes<'_>,
) {
    let (position, object, spec) = route;
    if spec.parents.is_empty() {
        let text = "the route has no parents and takes no traffic";
        notes.say(position, (Severity::Warning, Code::NoMatchingParent), &Field::spec(), text);
        return;
    }
    let rules = http_route::rules(world, route, notes);
    for (index, parent) in spec.parents.iter().enumerate() {
        let field = Field::spec().key("parentRefs").index(index);
        match parent.kind {
            ParentKind::Service if kind == RouteKind::HttpRoute => continue,
            ParentKind::Service | ParentKind::Other => {
                let text = match kind {
                    RouteKind::TlsRoute => "only a Gateway can be a parent",
                    _ => "only a Gateway or a Service can be a parent",
                };
                notes.say(position, (Severity::Warning, Code::InvalidKind), &field.key("kind"), text);
                continue;
            }
            ParentKind::Gateway => {}
        }
        let attached = match gateways.get_mut(&parent.name) {
            None => Err((Code::NoMatchingParent, format!("there is no Gateway {} here", parent.name))),
            Some(listeners) => attach_to(world, (object, kind), parent, listeners, |hostname| {
                let hosts = intersect(hostname, &spec.hostnames)?;
                let source = object.name().clone();
                let rules = rules.clone();
                Some(RouteTable { source, kind, services: Vec::new(), hosts, rules })
            }),
        };
        if let Err((code, text)) = attached {
            notes.say(position, (Severity::Warning, code), &field, text);
        }
    }
}

/// Attaches a route to the listeners of one parent that take it.
fn attach_to(
    world: &World<'_>,
    (route, kind): (&Object, RouteKind),
    parent: &Parent,
    listeners: &mut [Served<'_>],
    table: impl Fn(&HostPattern) -> Option<RouteTable>,
) -> Result<(), (Code, String)> {
    let named = |served: &Served<'_>| {
        parent.section.as_ref().is_none_or(|section| *section == served.spec.name)
            && parent.port.is_none_or(|port| port == served.spec.port)
    };
    let mut problem = (Code::NoMatchingParent, format!("the Gateway {} has no such listener", parent.name));
    let mut attached = false;
    for served in listeners.iter_mut().filter(|served| named(served)) {
        if !is_allowed(world, served, (route, kind)) {
            if problem.0 == Code::NoMatchingParent {
                let text =
                    format!("the listener {} does not take this route's namespace or kind", served.spec.name);
                problem = (Code::NotAllowedByListeners, text);
            }
            continue;
        }
        let Some(table) = table(&served.listener.hostname) else {
            let text = format!("no hostname of the route is one of the listener {}", served.spec.name);
            problem = (Code::NoMatchingListenerHostname, text);
            continue;
        };
        attached = true;
        // Two references of one route may name the same listener.
        if !served.listener.routes.iter().any(|known| known.source == table.source) {
            served.listener.routes.push(table);
        }
    }
    if attached { Ok(()) } else { Err(problem) }
}

fn is_allowed(world: &World<'_>, served: &Served<'_>, (route, kind): (&Object, RouteKind)) -> bool {
    let namespace = &route.name().namespace;
    let allowed = match &served.spec.namespaces {
        AllowedNamespaces::Same => *namespace == served.listener.gateway.namespace,
        AllowedNamespaces::All => true,
        AllowedNamespaces::None => false,
        AllowedNamespaces::Selector(selector) => {
            let mut labels: Labels =
                world.namespaces.get(&**namespace).map(|labels| (*labels).clone()).unwrap_or_default();
            labels.insert(NAMESPACE_NAME.into(), Arc::clone(namespace));
            selector.matches(&labels)
        }
    };
    let takes = match kind {
        RouteKind::TlsRoute => served.spec.takes_tls_routes,
        RouteKind::HttpRoute | RouteKind::VirtualService => served.spec.takes_http_routes,
    };
    allowed && takes
}

/// The hosts that a listener and a route have in common; `None`: none.
fn intersect(listener: &HostPattern, route: &[HostPattern]) -> Option<Vec<HostPattern>> {
    if route.is_empty() {
        return Some(if *listener == HostPattern::Any { Vec::new() } else { vec![listener.clone()] });
    }
    let common: Vec<HostPattern> = route.iter().filter_map(|host| common(listener, host)).collect();
    (!common.is_empty()).then_some(common)
}

/// The narrower of two patterns, where one holds the other.
fn common(a: &HostPattern, b: &HostPattern) -> Option<HostPattern> {
    match (a, b) {
        (HostPattern::Any, other) | (other, HostPattern::Any) => Some(other.clone()),
        (HostPattern::Exact(x), HostPattern::Exact(y)) => (x == y).then(|| a.clone()),
        (HostPattern::Suffix(suffix), HostPattern::Exact(name)) => {
            name.ends_with(&**suffix).then(|| b.clone())
        }
        (HostPattern::Exact(name), HostPattern::Suffix(suffix)) => {
            name.ends_with(&**suffix).then(|| a.clone())
        }
        (HostPattern::Suffix(x), HostPattern::Suffix(y)) if x.ends_with(&**y) => Some(a.clone()),
        (HostPattern::Suffix(x), HostPattern::Suffix(y)) if y.ends_with(&**x) => Some(b.clone()),
        (HostPattern::Suffix(_), HostPattern::Suffix(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::kinds::host_pattern;

    #[test]
    fn hostnames_of_listener_and_route_are_intersected() {
        let pattern = |text: &str| host_pattern(text).expect("a host pattern");
        let check = |listener: &str, route: &[&str], expected: Option<&[&str]>| {
            let route: Vec<_> = route.iter().map(|host| pattern(host)).collect();
            let expected = expected.map(|hosts| hosts.iter().map(|host| pattern(host)).collect::<Vec<_>>());
            assert_eq!(intersect(&pattern(listener), &route), expected, "{listener} {route:?}");
        };
        check("*", &[], Some(&[]));
        check("*", &["a.com", "*.b.com"], Some(&["a.com", "*.b.com"]));
        check("*.example.com", &[], Some(&["*.example.com"]));
        check("*.example.com", &["a.example.com", "b.com"], Some(&["a.example.com"]));
        check("*.example.com", &["*.a.example.com"], Some(&["*.a.example.com"]));
        check("*.a.example.com", &["*.example.com"], Some(&["*.a.example.com"]));
        check("a.example.com", &["*.example.com"], Some(&["a.example.com"]));
        check("a.example.com", &["a.example.com"], Some(&["a.example.com"]));
        check("*.example.com", &["example.com"], None);
        check("*.example.com", &["badexample.com"], None);
        check("a.com", &["b.com", "*.b.com"], None);
        check("*.a.com", &["*.b.com"], None);
    }
}
