//! Questions about one small cluster, with their verdicts and what must be among the steps.

use std::sync::Arc;

use super::*;
use crate::admin::tests::model;
use crate::admin::{
    AccelerationStatus, CaptureStatus, GuardStatus, GuardedInterface, ListenerStatus, WorkerStatus,
};
use crate::compile::{Realm, TableVersion, compile};
use crate::model::{
    AppProtocol, AuthorizationPolicy, DirectResponse, EdgeGuard, Endpoint, KernelCount, KernelKey,
    KernelLimit, Labels, LimitTarget, ListenerProtocol, Missing, Model, MtlsMode, ObjectName,
    PeerAuthentication, PolicyAction, PolicyMatch, PolicyRule, PolicyScope, RateLimit, RequestTerms, Service,
    ServicePort, TextPattern,
};

const NODE: &str = "192.0.2.1";

/// A service `db` whose endpoint headless service `all` names too, name service `dns`, a client and a pod of node-b, which
/// alone is behind service `remote` (TCP and UDP).
pub(super) fn cluster() -> Model {
    let port = |port| ServicePort { name: "x".into(), port, protocol: AppProtocol::Tcp, tls: None };
    let service = |name: &str, ip: Option<&str>, ports: &[u16], datagrams: &[u16]| Service {
        name: ObjectName::new("default", name),
        cluster_ips: ip.into_iter().map(|ip| ip.parse().expect("an address")).collect(),
        headless: ip.is_none(),
        ports: ports.iter().copied().map(port).collect(),
        datagram_ports: datagrams.iter().copied().map(port).collect(),
        affinity: None,
    };
    let endpoint = |name: &str, port: u16, address: &str| Endpoint {
        service: ObjectName::new("default", name),
        service_port: port,
        address: address.parse().expect("an address"),
        ready: true,
        pod: None,
        uid: address.into(),
        node: None,
        labels: Arc::default(),
    };
    let mut model = model();
    let pod = |name: &str, ip: &str, node: &str| Workload {
        name: ObjectName::new("default", name),
        uid: name.into(),
        node: Some(node.into()),
        addresses: vec![ip.parse().expect("an address")],
        ..model.workloads[0].clone()
    };
    let pods = [pod("client", "10.0.0.5", "node-a"), pod("far", "10.0.1.1", "node-b")];
    model.workloads.extend(pods);
    model.services.extend([
        service("db", Some("10.96.0.2"), &[81], &[]),
        service("all", None, &[8081], &[]),
        service("dns", Some("10.96.0.3"), &[], &[53]),
        service("remote", Some("10.96.0.4"), &[82], &[54]),
    ]);
    let streams = [
        endpoint("db", 81, "10.0.0.1:8081"),
        endpoint("all", 8081, "10.0.0.1:8081"),
        endpoint("remote", 82, "10.0.1.1:8082"),
    ];
    model.endpoints.edit(|all| all.extend(streams));
    let datagrams = [endpoint("dns", 53, "10.0.0.1:5353"), endpoint("remote", 54, "10.0.1.1:5353")];
    model.datagram_endpoints.edit(|all| all.extend(datagrams));
    model
}

fn status() -> Status {
    let mut status = Status {
        node: "node-a".to_owned(),
        capture: CaptureStatus {
            mode: "packet".to_owned(),
            attach: "tcx".to_owned(),
            local_addresses: vec![NODE.parse().expect("an address")],
            ..CaptureStatus::default()
        },
        workers: vec![WorkerStatus::default()],
        ..Status::default()
    };
    status.capture.connect.cgroup = Some("/pods".to_owned());
    status.capture.acceleration = AccelerationStatus { active: true, ..AccelerationStatus::default() };
    status
}

pub(super) struct Cluster {
    table: RoutingTable,
    status: Status,
    held: Held,
}

impl Cluster {
    fn of(model: &Model) -> Self {
        Self::on(model, Realm::default())
    }

    pub(super) fn on(model: &Model, realm: Realm) -> Self {
        let before = RoutingTable { realm: Arc::new(realm), ..RoutingTable::default() };
        Self {
            table: compile(model, &before, TableVersion::default()),
            status: status(),
            held: Held::default(),
        }
    }

    /// Checks verdict, tier and reason, and that every word is among the steps.
    pub(super) fn check(&self, ends: &str, expected: [&str; 3], words: &[&str]) -> Explanation {
        let (source, destination) = ends.split_once(' ').expect("two ends");
        let asked = Asked::read(source, destination, None, &self.table).expect("it can be read");
        let said = why(asked, &self.table, &self.status, self.held);
        assert_eq!([&*said.verdict, &*said.tier, &*said.reason], expected, "{ends}: {said:#?}");
        let steps: Vec<_> = said.steps.iter().map(|step| format!("{}: {}", step.at, step.found)).collect();
        for word in words {
            assert!(steps.iter().any(|step| step.contains(word)), "{ends}: no {word:?} in {steps:#?}");
        }
        said
    }
}

pub(super) fn denying_all() -> AuthorizationPolicy {
    AuthorizationPolicy {
        name: ObjectName::new("default", "nobody"),
        scope: PolicyScope::Namespace,
        selector: Labels::default(),
        action: PolicyAction::Deny,
        dry_run: false,
        rules: vec![PolicyRule { index: 0, clauses: Vec::new() }],
    }
}

/// Requests with the method GET, and with no other.
pub(super) fn readers(action: PolicyAction) -> AuthorizationPolicy {
    let request = RequestTerms { methods: vec![TextPattern::Exact("GET".into())], ..RequestTerms::default() };
    let clauses = vec![vec![PolicyMatch { request, ..PolicyMatch::default() }]];
    AuthorizationPolicy {
        name: ObjectName::new("default", "readers"),
        action,
        rules: vec![PolicyRule { index: 0, clauses }],
        ..denying_all()
    }
}

#[test]
fn datagrams_are_told_by_their_own_frontends() {
    let mut cluster = Cluster::of(&cluster());
    let balanced = ["balanced", "kernel", "balanced"];
    let said =
        cluster.check("client dns:53", balanced, &["service default/dns port 53 (UDP)", "10.0.0.1:5353"]);
    assert_eq!((said.destination.as_str(), said.protocol.as_str()), ("10.96.0.3:53", "udp"));
    cluster.check("10.0.0.5 10.96.0.3:53", balanced, &[]);
    cluster.check("far dns:53", ["elsewhere", "node node-b", "not_ours"], &["ask there"]);
    cluster.status.capture.connect.cgroup = None;
    cluster.check("client dns:53", ["direct", "kernel", "not_tcp"], &["datagrams are not taken"]);
    let asked = |protocol| Asked::read("client", "dns:53", Some(protocol), &cluster.table);
    assert_eq!(asked(Transport::Udp).expect("it has it").protocol, Transport::Udp);
    let error = asked(Transport::Tcp).expect_err("it has none").to_string();
    assert!(error.contains("no TCP port 53; it has 53/udp"), "{error}");
    assert!(Transport::read("sctp").is_err());
    let mixed = Asked::read("fd00::1", "10.96.0.3:53", None, &cluster.table);
    assert!(matches!(mixed, Err(Unreadable::Family(_))), "{mixed:?}");
}

#[test]
fn a_balanced_connection_meets_what_knows_its_endpoint_alone() {
    let mut model = cluster();
    let balanced = ["balanced", "kernel", "balanced"];
    let words = ["10.0.0.1:8081 is an endpoint of headless service default/all too", "socket to socket"];
    let said = Cluster::of(&model).check("client db:81", balanced, &words);
    assert!(!said.steps.iter().any(|step| ["from_pod", "LISTENERS"].contains(&&*step.at)), "{said:#?}");
    model.services.retain(|service| !service.headless);
    let said = Cluster::of(&model).check("client db:81", balanced, &[]);
    assert!(!said.steps.iter().any(|step| step.at == "DESTINATIONS"), "{said:#?}");
}

#[test]
fn another_nodes_pod_is_asked_of_there() {
    let cluster = Cluster::of(&cluster());
    for ends in ["far order:80", "far db:81"] {
        let said =
            cluster.check(ends, ["elsewhere", "node node-b", "not_ours"], &["node node-b's to decide"]);
        assert!(!said.steps.iter().any(|step| step.at == "connect"), "{said:#?}");
    }
}

#[test]
fn the_nodes_own_sockets_and_a_pods_own_address_pass_policy() {
    let cluster = Cluster::of(&Model { authorization: vec![denying_all()].into(), ..cluster() });
    let refused = ["refused", "kernel", "rbac_access_denied"];
    cluster.check("client order-1:9000", refused, &["10.0.0.1:9000 refuses the source"]);
    cluster.check(&format!("{NODE} order-1:9000"), ["direct", "kernel", "not_ours"], &["as for probes"]);
    // To another node's pod it is a stranger.
    cluster.check(&format!("{NODE} far:9000"), refused, &["10.0.1.1:9000 refuses the source"]);
    cluster.check("client client:9000", ["direct", "kernel", "not_ours"], &["loopback"]);
}

#[test]
fn limits_of_the_kernel_at_a_gateway_are_told() {
    let dials = KernelLimit {
        name: "dials".into(),
        count: KernelCount::Connections,
        key: KernelKey::Together,
        missing: Missing::default(),
        amount: 5,
        window_ns: 1_000_000_000,
        burst: 5,
        exempt: vec!["198.51.100.7/32".parse().expect("a network")],
    };
    let calm = RateLimit {
        name: ObjectName::new("infra", "calm"),
        targets: vec![LimitTarget::Gateway(ObjectName::new("infra", "edge"), None)],
        shadow: false,
        limits: Vec::new(),
        connections: Vec::new(),
        kernel: vec![dials],
        answer: DirectResponse { status: 429, body: b"".as_slice().into() },
        headers: Arc::default(),
        tells: false,
    };
    let guard = EdgeGuard {
        name: ObjectName::new("", "edge"),
        deny: vec![].into(),
        allow: vec!["198.51.100.8/32".parse().expect("a network")].into(),
        packets: None,
        syns: None,
    };
    let model = Model { limits: vec![calm].into(), guards: vec![guard].into(), ..cluster() };
    let mut cluster = Cluster::of(&model);
    let ours = ["agent", "agent L7", "gateway"];
    let check = |cluster: &Cluster, source: &str, word: &str| {
        let what = "RateLimit infra/calm limit dials (connections, 5 in 1s, 5 at once, all together)";
        let said = cluster.check(&format!("{source} {NODE}:8080"), ours, &[what]);
        let step = said.steps.iter().find(|step| step.found.contains(what)).expect("was checked");
        assert!(step.at == "xdp_guard" && step.found.contains(word), "{source}: {step:?}");
    };
    check(&cluster, "198.51.100.1", "is not held to: no interface is guarded (--guard)");
    let eth0 = GuardedInterface { name: "eth0".to_owned(), ..GuardedInterface::default() };
    cluster.status.guard = Some(GuardStatus { interfaces: vec![eth0], ..GuardStatus::default() });
    check(&cluster, "198.51.100.1", "come in by eth0: drops what is beyond it");
    check(&cluster, "198.51.100.7", "in 198.51.100.7/32");
    check(&cluster, "198.51.100.8", "the source, which an EdgeGuard allows");
    check(&cluster, "client", "does not count what this node and its pods send");
}

#[test]
fn a_gateways_listener_is_the_agents() {
    let mut cluster = Cluster::of(&cluster());
    let ours = ["agent", "agent L7", "gateway"];
    let to = format!("{NODE}:8080");
    for source in ["client", "198.51.100.1", NODE] {
        cluster.check(&format!("{source} {to}"), ours, &["infra/edge/http for *.example.com"]);
    }
    cluster.check(&format!("client {NODE}:8081"), ["direct", "kernel", "not_ours"], &[]);
    cluster.check("198.51.100.1 203.0.113.1:8080", ["direct", "kernel", "not_ours"], &[]);
    cluster.status.listeners = vec![ListenerStatus {
        name: "infra/edge/http".to_owned(),
        error: Some("taken".to_owned()),
        ..ListenerStatus::default()
    }];
    cluster.check(&format!("client {to}"), ["direct", "kernel", "not_ours"], &[]);
}

#[test]
fn what_found_no_room_in_the_kernel_goes_direct() {
    let mut cluster = Cluster::of(&cluster());
    cluster.status.capture.destinations_over_capacity = 3;
    let taken = ["agent", "agent L7", "captured"];
    cluster.check("client order:80", taken, &["unless it is one of the 3 that found no room"]);
    cluster.held.destination = Some(true);
    let said = cluster.check("client order:80", taken, &["DESTINATIONS: the agent takes it"]);
    assert!(!said.steps.iter().any(|step| step.found.contains("unless")), "{said:#?}");
    cluster.held.destination = Some(false);
    let said =
        cluster.check("client order:80", ["direct", "kernel", "no_route"], &["one of 3 that found no room"]);
    assert!(said.rules.is_empty(), "{said:#?}");
}

/// Who is proven by tunnels is so where the agent carries the connection, and nowhere else.
#[test]
fn what_goes_past_the_agent_proves_nobody() {
    let strict = PeerAuthentication {
        name: ObjectName::new("default", "strict"),
        created: "".into(),
        scope: PolicyScope::Namespace,
        selector: Labels::default(),
        mode: Some(MtlsMode::Strict),
        ports: [].into(),
    };
    let mut model = Model { peers: vec![strict].into(), ..cluster() };
    for pod in &mut model.workloads {
        pod.labels = Arc::new([("networking.istio.io/tunnel".into(), "http".into())].into());
    }
    let realm = Realm { node: "node-a".into(), tunnels: true, ..Realm::default() };
    let mut cluster = Cluster::on(&model, realm);
    let refused = ["refused", "kernel", "mtls_required"];
    for ends in ["client far:9000", "client remote:54"] {
        let said = cluster.check(ends, refused, &["strict is STRICT"]);
        assert_eq!(said.rule.as_deref(), Some("PeerAuthentication default/strict"), "{ends}");
    }
    cluster.check("far client:9000", refused, &[]);
    // On one node the kernel knows who it is.
    cluster.check("client order-1:9000", ["direct", "kernel", "no_route"], &[]);
    // Without balancing the agent takes what is dialled by the service's address.
    cluster.status.capture.connect.cgroup = None;
    cluster.check("client remote:82", ["agent", "agent L4", "captured"], &[]);
}

#[test]
fn another_nodes_pod_is_refused_by_the_hook_of_the_pod_that_it_dials() {
    let cluster = Cluster::of(&Model { authorization: vec![denying_all()].into(), ..cluster() });
    cluster.check("far order-1:9000", ["refused", "kernel", "rbac_access_denied"], &[]);
    cluster.check("far order:80", ["refused", "node node-b", "rbac_access_denied"], &[]);
}

/// Where nobody reads requests, rules that ask of them are what they are to the proxy: never met by ALLOW, by DENY as if they asked nothing.
#[test]
fn an_opaque_port_is_refused_by_rules_that_ask_of_requests() {
    use PolicyAction::{Allow, Audit, Deny};
    let (refused, captured) =
        (["refused", "agent L4", "rbac_access_denied"], ["agent", "agent L4", "captured"]);
    for (action, expected, rule) in [
        (Allow, refused, Some("policy default/readers rule none")),
        (Deny, refused, Some("policy default/readers rule 0")),
        (Audit, captured, None),
    ] {
        let mut model = Model { authorization: vec![readers(action)].into(), ..cluster() };
        model.listeners[0].routes = vec![model.mesh_routes[0].clone()];
        model.listeners[0].protocol = ListenerProtocol::Tls;
        let mut cluster = Cluster::of(&model);
        let judged = rule.is_some();
        let words = ["the port is opaque: rule 0 of default/readers"];
        let words = if judged { &words[..] } else { &[] };
        // What is led past the agent comes to it again at its endpoint, which waits for the first bytes.
        let balanced = ["balanced", "kernel", "balanced"];
        let waits = ["judges each request of the source, and takes nothing that is no HTTP"];
        cluster.check("client db:81", balanced, if judged { &waits } else { &[] });
        cluster.check(
            "client order:80",
            ["agent", "agent L7", "captured"],
            if judged { &waits } else { &[] },
        );
        let from_outside = cluster.check(
            &format!("198.51.100.1 {NODE}:8080"),
            if judged {
                ["refused", "agent L7", "rbac_access_denied"]
            } else {
                ["agent", "agent L7", "gateway"]
            },
            words,
        );
        cluster.status.capture.connect.cgroup = None;
        let said = cluster.check("client db:81", expected, words);
        assert_eq!((said.rule.as_deref(), from_outside.rule.as_deref()), (rule, rule));
    }
}

#[test]
fn a_gateway_is_asked_the_policies_of_what_it_leads_to() {
    let mut model = Model { authorization: vec![denying_all()].into(), ..cluster() };
    model.listeners[0].routes = vec![model.mesh_routes[0].clone()];
    let cluster = Cluster::of(&model);
    let to = format!("198.51.100.1 {NODE}:8080");
    let said = cluster.check(&to, ["refused", "agent L7", "rbac_access_denied"], &["refuses the source"]);
    assert_eq!(said.rule.as_deref(), Some("policy default/nobody rule 0"));
}

#[test]
fn the_nodes_own_sockets_are_led_too() {
    let cluster = Cluster::of(&cluster());
    cluster.check(&format!("{NODE} db:81"), ["balanced", "kernel", "balanced"], &["sockets below /pods"]);
}

#[test]
fn endpoints_whose_answers_are_dropped_make_a_service_silent() {
    let guard = EdgeGuard {
        name: ObjectName::new("", "edge"),
        deny: vec!["10.0.1.0/24".parse().expect("a network")].into(),
        allow: vec![].into(),
        packets: None,
        syns: None,
    };
    let mut cluster = Cluster::of(&Model { guards: vec![guard].into(), ..cluster() });
    let eth0 = GuardedInterface { name: "eth0".to_owned(), ..GuardedInterface::default() };
    cluster.status.guard = Some(GuardStatus { interfaces: vec![eth0], ..GuardStatus::default() });
    for ends in ["client remote:82", "client remote:54"] {
        let said =
            cluster.check(ends, ["dropped", "guard", "denied"], &["EdgeGuard edge denies 10.0.1.0/24"]);
        assert_eq!(said.rule.as_deref(), Some("EdgeGuard edge"), "{ends}");
    }
    cluster.check("client db:81", ["balanced", "kernel", "balanced"], &[]);
}
