//! Models and the tables they become.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Action, Backend, ClusterKey, Frontend, Route, RoutingTable, TableVersion, compile};
use crate::model::{
    AppProtocol, Destination, DirectResponse, Endpoint, HostPattern, HttpRule, LbPolicy, Listener,
    ListenerProtocol, MatchPath, Model, ObjectName, PathRewrite, RequestMatch, RouteAction, RouteKind,
    RouteTable, Service, ServicePort, Subset, TrafficPolicy, WeightedDestination, Workload,
};
use crate::route::{RequestOrigin, RequestView};

mod incremental;
mod listeners;
pub(super) mod made;
mod origins;
mod peers;
mod sharing;

struct Get<'a>(&'a str, &'a str);

impl RequestView for Get<'_> {
    fn method(&self) -> &'static str {
        "GET"
    }
    fn path(&self) -> &str {
        self.1
    }
    fn query(&self) -> Option<&str> {
        None
    }
    fn host(&self) -> &str {
        self.0
    }
    fn scheme(&self) -> &'static str {
        "http"
    }
    fn header(&self, _name: &str) -> Option<&[u8]> {
        None
    }
}

fn name(text: &str) -> ObjectName {
    ObjectName::new("default", text)
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("is an address")
}

fn socket(text: &str) -> SocketAddr {
    text.parse().expect("is an address")
}

fn service(service: &str, cluster_ips: &[&str], ports: &[u16]) -> Service {
    let port =
        |port: &u16| ServicePort { name: "".into(), port: *port, protocol: AppProtocol::Http, tls: None };
    Service {
        name: name(service),
        cluster_ips: cluster_ips.iter().map(|text| ip(text)).collect(),
        headless: cluster_ips.is_empty(),
        ports: ports.iter().map(port).collect(),
        datagram_ports: Vec::new(),
        affinity: None,
    }
}

fn endpoint(service: &str, port: u16, address: &str, version: &str) -> Endpoint {
    Endpoint {
        service: name(service),
        service_port: port,
        address: socket(address),
        ready: true,
        pod: None,
        uid: address.into(),
        node: None,
        labels: Arc::new(BTreeMap::from([("version".into(), version.into())])),
    }
}

fn pod(pod: &str, address: &str) -> Workload {
    Workload {
        name: name(pod),
        uid: pod.into(),
        workload: pod.into(),
        node: None,
        service_account: "default".into(),
        addresses: vec![ip(address)],
        labels: Arc::default(),
        accelerated: true,
        ready: true,
        probes: Vec::new(),
    }
}

fn to(service: &str, port: Option<u16>, subset: Option<&str>, weight: u32) -> WeightedDestination {
    let subset = subset.map(Into::into);
    WeightedDestination {
        destination: Destination::Service { service: name(service), port, subset },
        weight,
        request_headers: Vec::new(),
        response_headers: Vec::new(),
    }
}

fn rule(rule: &str, matches: Vec<RequestMatch>, destinations: Vec<WeightedDestination>) -> HttpRule {
    HttpRule {
        name: rule.into(),
        matches,
        action: RouteAction::Forward { destinations, rewrite: PathRewrite::default() },
        timeout: None,
        try_timeout: None,
        request_headers: Vec::new(),
        response_headers: Vec::new(),
    }
}

/// A rule that answers with its own name.
fn says(text: &str, matches: Vec<RequestMatch>) -> HttpRule {
    let action = RouteAction::Respond(DirectResponse { status: 200, body: text.as_bytes().into() });
    HttpRule { action, ..rule(text, matches, Vec::new()) }
}

fn under(prefix: &str) -> RequestMatch {
    RequestMatch { path: Some(MatchPath::PathPrefix(prefix.into())), ..RequestMatch::default() }
}

fn routes(kind: RouteKind, source: &str, service: &str, rules: Vec<HttpRule>) -> RouteTable {
    RouteTable { source: name(source), kind, services: vec![(name(service), None)], hosts: Vec::new(), rules }
}

fn host(text: &str) -> HostPattern {
    match text.strip_prefix('*') {
        Some("") => HostPattern::Any,
        Some(suffix) => HostPattern::Suffix(suffix.into()),
        None => HostPattern::Exact(text.into()),
    }
}

/// Two versions of a service, split 90/10, and a second service without rules.
fn canary() -> Model {
    let subset = |version: &str| Subset {
        name: version.into(),
        labels: BTreeMap::from([("version".into(), version.into())]),
        lb: None,
        tls: crate::model::TlsRules::default(),
    };
    let shares = vec![to("order", None, Some("v1"), 90), to("order", None, Some("v2"), 10)];
    Model {
        services: vec![
            service("order", &["10.96.0.1", "fd00::1"], &[80]),
            service("user", &["10.96.0.2"], &[80]),
        ]
        .into(),
        datagram_endpoints: Vec::new().into(),
        endpoints: vec![
            endpoint("order", 80, "10.0.0.1:8080", "v1"),
            endpoint("order", 80, "10.0.0.2:8080", "v1"),
            endpoint("order", 80, "10.0.0.3:8080", "v2"),
            endpoint("user", 80, "10.0.1.1:8080", "v1"),
        ]
        .into(),
        workloads: vec![pod("order-1", "10.0.0.1"), pod("user-1", "10.0.1.1")].into(),
        authorization: Vec::new().into(),
        peers: Vec::new().into(),
        policies: vec![TrafficPolicy {
            source: name("order"),
            service: name("order"),
            lb: LbPolicy::RoundRobin,
            port_lb: Vec::new(),
            tls: crate::model::TlsRules::default(),
            subsets: vec![subset("v1"), subset("v2")],
        }]
        .into(),
        mesh_routes: vec![routes(
            RouteKind::VirtualService,
            "order",
            "order",
            vec![rule("canary", vec![], shares)],
        )]
        .into(),
        ..Model::default()
    }
}

fn fresh(model: &Model) -> RoutingTable {
    compile(model, &RoutingTable::default(), TableVersion::alone(1))
}

fn frontend<'a>(table: &'a RoutingTable, address: &str) -> &'a Arc<Frontend> {
    table.frontends.get(&socket(address)).expect("is a frontend")
}

fn key(service: &str, port: u16, subset: Option<&str>) -> ClusterKey {
    ClusterKey { service: name(service), port, subset: subset.map(Into::into) }
}

fn found<'a>(frontend: &'a Frontend, path: &str) -> Option<&'a Arc<Route>> {
    let origin = RequestOrigin { source: None, port: frontend.port };
    frontend.http.find(&Get("", path), &origin).map(|matched| matched.route)
}

fn rule_name(route: Option<&Arc<Route>>) -> Option<&str> {
    route.map(|route| &*route.name.rule)
}

/// The clusters that a route forwards to, or the status of those that don't resolve.
fn backends(route: &Route) -> Vec<Result<String, u16>> {
    let Action::Forward(forward) = &route.action else { panic!("{route:?} does not forward") };
    let text = |backend: &Backend| match backend {
        Backend::Cluster(cluster) => {
            let ClusterKey { service, port, subset } = &cluster.key;
            Ok(format!("{}:{port}/{}", service.name, subset.as_deref().unwrap_or("")))
        }
        Backend::Original => Ok("original".to_owned()),
        Backend::Invalid { status } => Err(*status),
    };
    forward.backends.iter().map(|weighted| text(&weighted.backend)).collect()
}

fn listener(name: &str, hostname: &str, attached: &[(&str, &[&str])]) -> Listener {
    let table = |(source, hosts): &(&str, &[&str])| RouteTable {
        hosts: hosts.iter().map(|text| host(text)).collect(),
        ..routes(
            RouteKind::HttpRoute,
            source,
            "order",
            vec![says(source, vec![under(&format!("/{source}"))])],
        )
    };
    Listener {
        gateway: ObjectName::new("infra", "edge"),
        name: name.into(),
        addresses: Vec::new(),
        port: 8080,
        protocol: ListenerProtocol::Http,
        hostname: host(hostname),
        tls: None,
        routes: attached.iter().map(table).collect(),
    }
}

#[test]
fn a_canary_becomes_two_weighted_clusters() {
    let table = fresh(&canary());
    let entry = frontend(&table, "10.96.0.1:80");
    assert!(Arc::ptr_eq(entry, frontend(&table, "[fd00::1]:80")));
    assert_eq!(&*entry.http.name, "order.default.svc.cluster.local:80");
    let route = found(entry, "/").expect("fits");
    assert_eq!(backends(route), [Ok("order:80/v1".to_owned()), Ok("order:80/v2".to_owned())]);
    let sizes = |subset| table.clusters[&key("order", 80, subset)].endpoints.len();
    assert_eq!((sizes(None), sizes(Some("v1")), sizes(Some("v2"))), (3, 2, 1));
    let Action::Forward(forward) = &route.action else { panic!("forwards") };
    let second = forward.backends.get(1).map(std::ptr::from_ref);
    let drawn = (0..100).filter(|_| forward.draw().map(std::ptr::from_ref) == second).count();
    assert_eq!(drawn, 10);
}

#[test]
fn endpoints_know_their_pods() {
    let mut model = canary();
    model.endpoints.edit(|all| all[1].pod = Some(name("user-1")));
    let table = fresh(&model);
    let pods: Vec<_> = table.clusters[&key("order", 80, None)]
        .endpoints
        .iter()
        .map(|upstream| upstream.workload.as_ref().map(|workload| workload.name.name.to_string()))
        .collect();
    assert_eq!(pods, [Some("order-1".to_owned()), Some("user-1".to_owned()), None]);
    assert_eq!(&*table.workloads[&ip("10.0.0.1")].name.name, "order-1");
}

#[test]
fn a_service_without_rules_goes_to_itself() {
    let table = fresh(&canary());
    let route = found(frontend(&table, "10.96.0.2:80"), "/any").expect("fits");
    assert_eq!((route.name.kind, backends(route)), ("Service", vec![Ok("user:80/".to_owned())]));
}

#[test]
fn a_headless_service_is_met_at_its_endpoints() {
    let mut model = canary();
    model.services[0].cluster_ips.clear();
    model.services[0].headless = true;
    model.mesh_routes.clear();
    model.endpoints.edit(|all| all[2].ready = false);
    let table = fresh(&model);
    // One that is not ready keeps its own address, and gets nothing by balancing.
    for address in ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080"] {
        let entry = frontend(&table, address);
        assert!(entry.headless);
        assert!(matches!(found(entry, "/").expect("fits").action, Action::Original));
    }
    let cluster = &table.clusters[&key("order", 80, None)];
    assert_eq!((cluster.endpoints.len(), cluster.unready.len()), (2, 1));
}

#[test]
fn a_rule_of_a_headless_service_for_itself_keeps_the_pod_that_was_dialled() {
    let mut model = canary();
    model.services[0].cluster_ips.clear();
    model.services[0].headless = true;
    model.services[0].ports.push(ServicePort {
        name: "b".into(),
        port: 81,
        protocol: AppProtocol::Http,
        tls: None,
    });
    for (destination, expected) in [
        (to("order", None, None, 1), "original"),
        (to("order", Some(80), None, 1), "original"),
        (to("order", Some(81), None, 1), "order:81/"),
        (to("order", None, Some("v2"), 1), "order:80/v2"),
        (to("user", None, None, 1), "user:80/"),
    ] {
        let rules = vec![rule("r", vec![], vec![destination])];
        let mesh_routes = vec![routes(RouteKind::VirtualService, "v", "order", rules)];
        let table = fresh(&Model { mesh_routes: mesh_routes.into(), ..model.clone() });
        let route = found(frontend(&table, "10.0.0.1:8080"), "/").expect("fits");
        assert_eq!(backends(route), [Ok(expected.to_owned())]);
    }
}

#[test]
fn a_service_of_which_nothing_is_known_is_not_captured() {
    let captured = |change: fn(&mut Model)| {
        let mut model = canary();
        model.mesh_routes.clear();
        change(&mut model);
        fresh(&model).frontends.contains_key(&socket("10.96.0.1:80"))
    };
    let unknown: fn(&mut Model) =
        |model| model.endpoints.edit(|all| all.retain(|one| one.service != name("order")));
    assert!(captured(|_| {}));
    assert!(!captured(unknown));
    assert!(captured(|model| model.endpoints.take_out(|_| true)));
    let with_rules = |model: &mut Model| {
        model.endpoints.edit(Vec::clear);
        model.mesh_routes = canary().mesh_routes;
    };
    assert!(captured(with_rules));
    assert!(!captured(|model| {
        model.endpoints.edit(Vec::clear);
        model.mesh_routes = canary().mesh_routes;
        model.services[0].ports[0].protocol = AppProtocol::Tcp;
    }));
}

#[test]
fn of_two_services_with_one_address_the_first_by_name_is_kept() {
    let mut model = canary();
    model.services[1].cluster_ips = vec![ip("10.96.0.1")];
    assert_eq!(frontend(&fresh(&model), "10.96.0.1:80").service, name("order"));
}

#[test]
fn balancing_is_the_subsets_then_the_ports_then_the_services() {
    let mut model = canary();
    model.policies[0].port_lb = vec![(80, LbPolicy::Random)];
    model.policies[0].subsets[1].lb = Some(LbPolicy::LeastRequest);
    let table = fresh(&model);
    for (cluster, expected) in [
        (key("order", 80, None), LbPolicy::Random),
        (key("order", 80, Some("v1")), LbPolicy::Random),
        (key("order", 80, Some("v2")), LbPolicy::LeastRequest),
        (key("user", 80, None), LbPolicy::LeastRequest),
    ] {
        assert_eq!(table.clusters[&cluster].policy, expected, "{cluster:?}");
    }
}

#[test]
fn tls_is_the_subsets_then_the_ports_then_the_services() {
    use crate::compile::Security;
    use crate::model::{ClientTls, TlsRules};
    let mut model = canary();
    model.policies[0].tls = TlsRules { others: Some(ClientTls::Mesh), ports: vec![(81, None)] };
    model.policies[0].subsets[1].tls = TlsRules { others: Some(ClientTls::Disable), ports: Vec::new() };
    let other = ServicePort { port: 81, ..model.services[0].ports[0].clone() };
    model.services[0].ports.push(other);
    let table = fresh(&model);
    for (cluster, expected) in [
        (key("order", 80, None), Security::Mesh),
        (key("order", 80, Some("v1")), Security::Mesh),
        (key("order", 80, Some("v2")), Security::Way),
        (key("order", 81, None), Security::Way),
        (key("user", 80, None), Security::Way),
    ] {
        let found = &table.clusters[&cluster];
        assert_eq!((&found.from_pods, &found.from_gateways), (&expected, &expected), "{cluster:?}");
    }
}

#[test]
fn destination_ports_are_resolved() {
    let mut model = canary();
    model.services[0].ports.push(ServicePort {
        name: "admin".into(),
        port: 81,
        protocol: AppProtocol::Http,
        tls: None,
    });
    model.services[1].ports[0].port = 3001;
    let check = |kind, destination: WeightedDestination, dialled: &str, expected: Result<&str, u16>| {
        let table = routes(kind, "r", "order", vec![rule("r", vec![], vec![destination.clone()])]);
        let model = Model { mesh_routes: vec![table].into(), ..model.clone() };
        let table = fresh(&model);
        let shown = backends(found(frontend(&table, dialled), "/").expect("fits"));
        assert_eq!(shown, [expected.map(str::to_owned)], "{destination:?}");
    };
    let service = RouteKind::VirtualService;
    check(service, to("order", None, None, 1), "10.96.0.1:80", Ok("order:80/"));
    check(service, to("order", None, None, 1), "10.96.0.1:81", Ok("order:81/"));
    check(service, to("order", Some(81), None, 1), "10.96.0.1:80", Ok("order:81/"));
    check(service, to("user", None, None, 1), "10.96.0.1:80", Ok("user:3001/"));
    check(service, to("user", Some(80), None, 1), "10.96.0.1:80", Err(503));
    check(service, to("nobody", None, None, 1), "10.96.0.1:80", Err(503));
    check(service, to("nobody", Some(80), None, 1), "10.96.0.1:80", Err(503));
    check(service, to("order", None, Some("v9"), 1), "10.96.0.1:80", Err(503));
    check(RouteKind::HttpRoute, to("nobody", Some(80), None, 1), "10.96.0.1:80", Err(500));
    let mut invalid = to("order", None, None, 1);
    invalid.destination = Destination::Invalid { status: 500 };
    check(service, invalid, "10.96.0.1:80", Err(500));
}

#[test]
fn a_port_that_neither_fits_nor_is_alone_is_unresolved() {
    let mut model = canary();
    model.services[0].ports[0].port = 8000;
    model.services[0].ports.push(ServicePort {
        name: "b".into(),
        port: 8001,
        protocol: AppProtocol::Http,
        tls: None,
    });
    model.mesh_routes = vec![routes(
        RouteKind::VirtualService,
        "r",
        "user",
        vec![rule("r", vec![], vec![to("order", None, None, 1)])],
    )]
    .into();
    let table = fresh(&model);
    assert_eq!(backends(found(frontend(&table, "10.96.0.2:80"), "/").expect("fits")), [Err(503)]);
}

#[test]
fn http_routes_win_over_virtual_services_and_are_merged_by_precedence() {
    let mut model = canary();
    let both = vec![under("/a"), under("/a/b/c")];
    model.mesh_routes.push(routes(RouteKind::HttpRoute, "one", "order", vec![says("one", both)]));
    model.mesh_routes.push(routes(
        RouteKind::HttpRoute,
        "two",
        "order",
        vec![says("two", vec![under("/a/b")])],
    ));
    let table = fresh(&model);
    let entry = frontend(&table, "10.96.0.1:80");
    for (path, expected) in
        [("/a", Some("one")), ("/a/b", Some("two")), ("/a/b/c", Some("one")), ("/z", None), ("/ab", None)]
    {
        assert_eq!(rule_name(found(entry, path)), expected, "{path}");
    }
}

#[test]
fn precedence_of_the_gateway_api() {
    let header = |count: usize| vec![("x".into(), crate::model::MatchValue::Present); count];
    let get = || Some(crate::model::MatchValue::Exact("GET".into()));
    let regex = MatchPath::Regex(regex_automata::meta::Regex::new("/.*").expect("is one"), "/.*".into());
    // From the most specific to the least.
    let matches = [
        RequestMatch { path: Some(MatchPath::Exact("/a".into())), ..RequestMatch::default() },
        under("/a/b"),
        RequestMatch { method: get(), ..under("/a") },
        RequestMatch { headers: header(2), ..under("/a") },
        RequestMatch { headers: header(1), query: header(3), ..under("/a") },
        RequestMatch { headers: header(1), ..under("/a") },
        RequestMatch { query: header(1), ..under("/a") },
        under("/a"),
        RequestMatch { path: Some(regex), ..RequestMatch::default() },
        RequestMatch { headers: header(1), ..RequestMatch::default() },
        under("/"),
    ];
    let rules =
        matches.iter().enumerate().rev().map(|(index, one)| says(&index.to_string(), vec![one.clone()]));
    let mut model = canary();
    model.mesh_routes = vec![routes(RouteKind::HttpRoute, "r", "order", rules.collect())].into();
    let table = fresh(&model);
    let order: Vec<usize> = frontend(&table, "10.96.0.1:80")
        .http
        .rules()
        .map(|(_, route)| route.name.rule.parse().expect("is a number"))
        .collect();
    assert_eq!(order, (0..matches.len()).collect::<Vec<_>>());
}

#[test]
fn only_the_first_virtual_service_of_a_host_counts() {
    let mut model = canary();
    model.mesh_routes = vec![
        routes(RouteKind::VirtualService, "first", "order", vec![says("first", vec![under("/a")])]),
        routes(RouteKind::VirtualService, "second", "order", vec![says("second", vec![])]),
    ]
    .into();
    let table = fresh(&model);
    let entry = frontend(&table, "10.96.0.1:80");
    assert_eq!(rule_name(found(entry, "/a")), Some("first"));
    assert_eq!(rule_name(found(entry, "/b")), None);
}

#[test]
fn rules_for_other_ports_are_left_out() {
    let on_port = |port| RequestMatch { port: Some(port), ..RequestMatch::default() };
    let mut model = canary();
    model.endpoints.edit(|all| all.push(endpoint("order", 81, "10.0.0.1:8081", "v1")));
    model.services[0].ports.push(ServicePort {
        name: "b".into(),
        port: 81,
        protocol: AppProtocol::Http,
        tls: None,
    });
    model.mesh_routes = vec![routes(
        RouteKind::VirtualService,
        "r",
        "order",
        vec![says("here", vec![on_port(80), on_port(90)])],
    )]
    .into();
    let table = fresh(&model);
    assert_eq!(rule_name(found(frontend(&table, "10.96.0.1:80"), "/")), Some("here"));
    assert_eq!(rule_name(found(frontend(&table, "10.96.0.1:81"), "/")), Some("default"));
}

#[test]
fn a_parent_reference_with_a_port_is_for_that_port() {
    let mut model = canary();
    model.endpoints.edit(|all| all.push(endpoint("order", 81, "10.0.0.1:8081", "v1")));
    model.services[0].ports.push(ServicePort {
        name: "b".into(),
        port: 81,
        protocol: AppProtocol::Http,
        tls: None,
    });
    let mut table = routes(RouteKind::HttpRoute, "r", "order", vec![says("here", vec![])]);
    table.services[0].1 = Some(81);
    model.mesh_routes = vec![table].into();
    let table = fresh(&model);
    assert_eq!(rule_name(found(frontend(&table, "10.96.0.1:80"), "/")), Some("default"));
    assert_eq!(rule_name(found(frontend(&table, "10.96.0.1:81"), "/")), Some("here"));
}

#[test]
fn hosts_of_a_mesh_route_are_conditions() {
    let mut model = canary();
    let mut table = routes(RouteKind::HttpRoute, "r", "order", vec![says("here", vec![under("/")])]);
    table.hosts = vec![host("a.example"), host("*.wild.example")];
    model.mesh_routes = vec![table].into();
    let table = fresh(&model);
    let rules = &frontend(&table, "10.96.0.1:80").http;
    for (name, expected) in [
        ("a.example", true),
        ("b.example", false),
        ("x.wild.example", true),
        ("x.y.wild.example", true),
        ("wild.example", false),
        ("xwildxexample", false),
    ] {
        assert_eq!(rules.find(&Get(name, "/"), &RequestOrigin::default()).is_some(), expected, "{name}");
    }
}

#[test]
fn an_empty_model_is_an_empty_table() {
    let table = fresh(&Model::default());
    assert!(table.frontends.is_empty() && table.clusters.is_empty() && table.gateways.is_empty());
}
