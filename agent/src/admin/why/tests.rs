//! What is said of connections that only the table and the settings decide.

use super::*;
use crate::admin::tests::{model, table};
use crate::admin::{CaptureStatus, WorkerStatus};
use crate::compile::{ACCESS_DENIED, MTLS_REQUIRED, Realm, TableVersion, compile};
use crate::model::{
    Cost, DirectResponse, Endpoints, KeyPart, Labels, Limit, LimitTarget, LimitedRoute, Missing, Model,
    MtlsMode, ObjectName, PeerAuthentication, PolicyAction, PolicyScope, Quota, RateLimit,
};

fn capturing() -> Status {
    Status {
        node: "node-a".to_owned(),
        capture: CaptureStatus {
            mode: "packet".to_owned(),
            attach: "tcx".to_owned(),
            local_addresses: vec!["192.0.2.1".parse().unwrap()],
            ..CaptureStatus::default()
        },
        workers: vec![WorkerStatus::default()],
        ..Status::default()
    }
}

fn asked(source: &str, destination: &str) -> Asked {
    Asked::read(source, destination, None, &table()).unwrap()
}

#[test]
fn every_verdict_has_its_reason_and_the_table_that_gave_it() {
    type Change = fn(&mut Status);
    /// Verdict, reason, and the table or hook that decided.
    type Expected = (&'static str, &'static str, &'static str);
    let pod = "10.0.0.1";
    let cases: [(&str, &str, Change, Expected); 8] = [
        (pod, "10.96.0.1:80", |_| {}, ("agent", "captured", "LISTENERS")),
        // No pod, so that no pod's hook sees its packets.
        ("10.9.9.9", "10.96.0.1:80", |_| {}, ("direct", "not_ours", "from_uplink")),
        (pod, "10.96.0.1:81", |_| {}, ("direct", "no_route", "DESTINATIONS")),
        (pod, "192.0.2.1:80", |_| {}, ("direct", "not_ours", "LOCAL_ADDRESSES")),
        (
            pod,
            "10.96.0.1:80",
            |s| s.capture.paused = Some("x".into()),
            ("direct", "no_route", "DESTINATIONS"),
        ),
        (pod, "10.96.0.1:80", |s| s.capture.outbound_released = true, ("direct", "no_listener", "LISTENERS")),
        (pod, "10.96.0.1:80", |s| s.capture.mode = "off".into(), ("direct", "not_ours", "capture")),
        (pod, "10.96.0.1:80", |s| s.node = "node-b".into(), ("elsewhere", "not_ours", "from_uplink")),
    ];
    for (source, destination, change, (verdict, reason, at)) in cases {
        let mut status = capturing();
        change(&mut status);
        let said = why(asked(source, destination), &table(), &status, Held::default());
        let what = format!("{source} to {destination}: {said:?}");
        assert_eq!((said.verdict.as_str(), said.reason.as_str()), (verdict, reason), "{what}");
        let last =
            said.steps.iter().rfind(|step| !["routes", "clusters", "upstream"].contains(&step.at.as_str()));
        assert_eq!(last.map(|step| step.at.as_str()), Some(at), "{what}");
    }
}

#[test]
fn a_captured_request_meets_named_rules() {
    let said = why(asked("10.0.0.1", "10.96.0.1:80"), &table(), &capturing(), Held::default());
    assert_eq!(said.tier, "agent L7");
    assert!(!said.rules.is_empty());
    let routes = said.steps.iter().find(|step| step.at == "routes").unwrap();
    assert!(routes.found.contains(&said.rules[0].rule), "{routes:?}");
}

#[test]
fn names_stand_for_addresses_and_what_cannot_be_read_is_named() {
    let expected = asked("10.0.0.1", "10.96.0.1:80");
    for (source, destination) in [
        ("order-1", "order:80"),
        ("default/order-1", "order.default.svc:80"),
        ("10.0.0.1", "default/order:80"),
    ] {
        assert_eq!(asked(source, destination), expected, "{source} {destination}");
    }
    let direct: SocketAddr = "10.0.0.1:8080".parse().unwrap();
    assert_eq!(asked("order-1", "order-1:8080").destination, direct);
    for (source, destination, word) in [
        ("nobody", "order:80", "source `nobody`"),
        ("order-1", "order", "no port"),
        ("order-1", "order:http", "destination `order:http`: the port is not a number from 1 to 65535"),
        ("order-1", "order:65536", "destination `order:65536`: the port is not a number"),
        ("order-1", "order:80x", "the port is not a number"),
        ("order-1", "order:", "the port is not a number"),
        ("order-1", "order:0", "the port is not a number"),
        ("order-1", "10.96.0.1:0", "destination `10.96.0.1:0`: the port is not a number"),
        ("order-1", "10.96.0.1:65536", "the port is not a number"),
        ("order-1", "10.96.0.1", "no port"),
        ("order-1", "fd00::1", "no port"),
        ("order-1", "[fd00::1]", "no port"),
        ("order-1:0", "order:80", "source `order-1:0`: the port is not a number from 1 to 65535"),
        ("10.0.0.1:65536", "order:80", "source `10.0.0.1:65536`: the port is not a number"),
        ("order-1:http", "order:80", "source `order-1:http`: the port is not a number"),
        ("order-1", "nothing:80", "neither an address nor a service"),
        ("order-1", "order:81", "the service has no TCP port 81; it has 80"),
        ("::1", "order:80", "no address of the source's family"),
        ("::1", "order-1:80", "no address of the source's family"),
    ] {
        let error = Asked::read(source, destination, None, &table()).unwrap_err().to_string();
        assert!(error.contains(word), "{source} {destination}: {error}");
    }
}

#[test]
fn an_address_in_disguise_is_the_address() {
    let expected = asked("10.0.0.1:4000", "10.96.0.1:80");
    for (source, destination) in [
        ("[::ffff:10.0.0.1]:4000", "10.96.0.1:80"),
        ("10.0.0.1:4000", "[::ffff:10.96.0.1]:80"),
        ("[::ffff:10.0.0.1]:4000", "[::ffff:a60:1]:80"),
    ] {
        assert_eq!(asked(source, destination), expected, "{source} {destination}");
    }
    for source in ["10.0.0.1", "::ffff:10.0.0.1", "[::ffff:10.0.0.1]"] {
        assert_eq!(asked(source, "order:80"), asked("10.0.0.1", "10.96.0.1:80"), "{source}");
    }
}

#[test]
fn a_service_without_endpoints_has_one_verdict_by_name_and_by_address() {
    let mut model = model();
    model.endpoints = Endpoints::default();
    // A rule would be served without endpoints too.
    model.mesh_routes.clear();
    let table = compile(&model, &RoutingTable::default(), TableVersion::default());
    let mut status = capturing();
    for released in [false, true] {
        status.capture.outbound_released = released;
        let said = |destination| {
            let asked = Asked::read("10.0.0.1", destination, None, &table).unwrap();
            why(asked, &table, &status, Held::default())
        };
        let (named, dialled) = (said("order:80"), said("10.96.0.1:80"));
        let verdict = |said: &Explanation| [said.verdict.clone(), said.tier.clone(), said.reason.clone()];
        assert_eq!(verdict(&named), ["direct", "kernel", "no_route"], "{named:?}");
        assert_eq!(verdict(&named), verdict(&dialled), "{named:?}, {dialled:?}");
        assert!(named.steps.iter().any(|step| step.found.contains("none of its endpoints")), "{named:?}");
    }
}

#[test]
fn a_service_without_an_address_is_told_from_one_without_the_port() {
    let mut model = model();
    for service in &mut model.services {
        service.cluster_ips.clear();
    }
    let table = compile(&model, &RoutingTable::default(), TableVersion::default());
    let asked = Asked::read("10.0.0.1", "order:80", None, &table).unwrap();
    let said = why(asked, &table, &capturing(), Held::default());
    assert!(said.steps.iter().any(|step| step.found.contains("the service has no clusterIP")), "{said:?}");
    let error = Asked::read("10.0.0.1", "order:81", None, &table).unwrap_err().to_string();
    assert!(error.contains("the service has no TCP port 81"), "{error}");
}

#[test]
fn a_service_goes_before_a_pod_of_its_name() {
    let mut model = model();
    let (name, addresses) = (ObjectName::new("default", "order"), vec!["10.0.0.3".parse().unwrap()]);
    let pod = Workload { name, addresses, ..model.workloads[0].clone() };
    model.workloads.push(pod);
    let table = compile(&model, &RoutingTable::default(), TableVersion::default());
    for (destination, expected) in [("order:80", "10.96.0.1:80"), ("order:81", "10.0.0.3:81")] {
        let asked = Asked::read("10.0.0.1", destination, None, &table).unwrap();
        assert_eq!(asked.destination.to_string(), expected, "{destination}");
    }
}

#[test]
fn a_policy_that_refuses_is_named() {
    let model = Model { authorization: vec![cases::denying_all()].into(), ..model() };
    let table = compile(&model, &RoutingTable::default(), TableVersion::default());
    let said = |destination| {
        let asked = Asked::read("10.9.9.9", destination, None, &table).unwrap();
        let said = why(asked, &table, &capturing(), Held::default());
        let policies = said.steps.into_iter().find(|step| step.at == "policies").unwrap();
        (said.verdict, said.reason, policies.found)
    };
    let refused = "10.0.0.1:8080 refuses the source: rule 0 of default/nobody";
    let direct = ("refused".to_owned(), ACCESS_DENIED.to_owned(), refused.to_owned());
    assert_eq!(said("10.0.0.1:8080"), direct);
    // Its only ready endpoint is that pod.
    assert_eq!(said("10.96.0.1:80"), direct);
}

#[test]
fn plaintext_that_is_refused_names_the_peer_authentication() {
    let strict = PeerAuthentication {
        name: ObjectName::new("istio-system", "default"),
        created: "".into(),
        scope: PolicyScope::Mesh,
        selector: Labels::default(),
        mode: Some(MtlsMode::Strict),
        ports: [(8080, None)].into(),
    };
    let mut model = Model { peers: vec![strict].into(), ..model() };
    let name = ObjectName::new("default", "order-2");
    let addresses = vec!["10.0.0.2".parse().unwrap()];
    let other = Workload { name, addresses, ..model.workloads[0].clone() };
    model.workloads.push(other);
    for pod in &mut model.workloads {
        let tunnel = ("networking.istio.io/tunnel".into(), "http".into());
        pod.labels = Arc::new([tunnel].into());
    }
    let said = |source: &str, destination: &str, node: &str| {
        let realm = Arc::new(Realm { node: node.into(), tunnels: true, ..Realm::default() });
        let before = RoutingTable { realm, ..RoutingTable::default() };
        let table = compile(&model, &before, TableVersion::default());
        let asked = Asked::read(source, destination, None, &table).unwrap();
        let said = why(asked, &table, &capturing(), Held::default());
        let takes = "10.0.0.1:8080 takes mutual TLS alone: PeerAuthentication istio-system/default is STRICT";
        assert!(said.steps.iter().any(|step| step.at == "mtls" && step.found == takes), "{said:?}");
        let by_tunnel = said.steps.iter().any(|step| step.found.contains("that come by tunnel"));
        (said.verdict == "refused", said.reason == MTLS_REQUIRED, said.rule, by_tunnel)
    };
    let rule = Some("PeerAuthentication istio-system/default".to_owned());
    let (pod, service) = ("10.0.0.1:8080", "10.96.0.1:80");
    assert_eq!(said("10.9.9.9", pod, "node-a"), (true, true, rule.clone(), false));
    // A pod of this node, and one of another, whose agent makes a tunnel of what it takes and of nothing else.
    assert_eq!(said("order-2", pod, "node-a"), (false, false, None, false));
    assert_eq!(said("order-2", service, "node-b"), (false, false, None, true));
    assert_eq!(said("order-2", pod, "node-b"), (true, true, rule, false));
}

#[test]
fn the_port_of_tunnels_is_the_agents_whatever_policies_say() {
    let mut model = Model { authorization: vec![cases::denying_all()].into(), ..cases::cluster() };
    for pod in &mut model.workloads {
        pod.labels = Arc::new([("networking.istio.io/tunnel".into(), "http".into())].into());
    }
    let refused = ["refused", "kernel", ACCESS_DENIED];
    for (tunnels, port, expected) in [
        (true, 15008, ["agent", "agent L4", "captured_inbound"]),
        (true, 8080, refused),
        (false, 15008, refused),
    ] {
        let realm = Realm { node: "node-a".into(), tunnels, ..Realm::default() };
        cases::Cluster::on(&model, realm).check(&format!("10.9.9.9 10.0.0.1:{port}"), expected, &[]);
    }
    // The pod is one of node-b, which asks neither the policy of what the client sends nor this node's.
    for (tunnels, ends, expected) in [
        (true, "10.0.0.5 10.0.1.1:15008", ["elsewhere", "node node-b", "no_route"]),
        (true, "10.9.9.9 10.0.1.1:15008", ["elsewhere", "node node-b", "not_ours"]),
        (true, "10.0.0.5 10.0.1.1:8080", refused),
        (false, "10.0.0.5 10.0.1.1:15008", refused),
    ] {
        let realm = Realm { node: "node-a".into(), tunnels, ..Realm::default() };
        cases::Cluster::on(&model, realm).check(ends, expected, &[]);
    }
}

#[test]
fn what_the_request_decides_is_told_with_its_rules() {
    let model = Model { authorization: vec![cases::readers(PolicyAction::Allow)].into(), ..model() };
    let table = compile(&model, &RoutingTable::default(), TableVersion::default());
    let asked = Asked::read("10.9.9.9", "10.0.0.1:8080", None, &table).unwrap();
    let mut status = capturing();
    let verdict = |status: &Status| {
        let said = why(asked, &table, status, Held::default());
        let rule = "10.0.0.1:8080 judges each request of the source, and takes nothing that is no HTTP: rule 0 of default/readers allows";
        assert!(said.steps.iter().any(|step| step.found == rule), "{said:?}");
        [said.verdict, said.tier, said.reason]
    };
    // The pod is another node's.
    assert_eq!(verdict(&status), ["direct", "kernel", "not_ours"]);
    status.capture.inbound = vec!["10.0.0.1".parse().unwrap()];
    assert_eq!(verdict(&status), ["agent", "agent L7", "captured_inbound"]);
    // What comes to pods is taken for as long as anything is.
    status.capture.outbound_released = true;
    assert_eq!(verdict(&status), ["agent", "agent L7", "captured_inbound"]);
    status.capture.inbound_released = true;
    assert_eq!(verdict(&status), ["refused", "kernel", "no_listener"]);
}

#[test]
fn sockets_that_are_balanced_are_told_of() {
    let mut status = capturing();
    status.capture.connect.cgroup = Some("/pods".to_owned());
    let said = why(asked("10.0.0.1", "10.96.0.1:80"), &table(), &status, Held::default());
    let step = said.steps.iter().find(|step| step.at == "connect").unwrap();
    assert_eq!(step.found, "left to what follows: agent_l7 (declared_http)");
}

#[test]
fn limits_of_what_is_dialled_are_named() {
    let limit = |name: &str, key, quota| Limit {
        name: name.into(),
        key,
        missing: Missing::default(),
        quota,
        cost: Cost::default(),
        overrides: Vec::new(),
        exempt: Vec::new(),
        exempt_principals: Vec::new(),
        max_keys: 8,
        cluster: None,
        push_down: None,
    };
    let by_address = vec![KeyPart::SourceAddress { v4: 32, v6: 128 }];
    let document = |name: &str, target, shadow| RateLimit {
        name: ObjectName::new("default", name),
        targets: vec![target],
        shadow,
        limits: vec![limit(
            "each",
            by_address.clone(),
            Quota::Window { requests: 9, window_ns: 1_000_000_000 },
        )],
        kernel: Vec::new(),
        connections: vec![limit("open", Vec::new(), Quota::InFlight { requests: 5 })],
        answer: DirectResponse { status: 429, body: b"".as_slice().into() },
        headers: Arc::default(),
        tells: false,
    };
    let order = ObjectName::new("default", "order");
    let edge = LimitTarget::Gateway(ObjectName::new("infra", "edge"), None);
    let route = LimitTarget::Route(LimitedRoute::VirtualService, order.clone(), None);
    let limits = vec![
        document("a", LimitTarget::Service(order), false),
        document("b", route, true),
        document("c", edge, false),
    ];
    let model = Model { limits: limits.into(), ..model() };
    let table = compile(&model, &RoutingTable::default(), TableVersion::default());
    let said = |destination: &str| {
        let asked = Asked::read("10.0.0.1", destination, None, &table).unwrap();
        let steps = why(asked, &table, &capturing(), Held::default()).steps;
        steps.into_iter().filter(|step| step.at == "limits").map(|step| step.found).collect::<Vec<_>>()
    };
    let each = "each (9 in any 1s, by source address";
    let expected = format!("requests are held to default/a {each}); default/b {each}, which only counts)");
    assert_eq!(said("10.96.0.1:80"), [expected]);
    assert_eq!(said("192.0.2.1:8080"), [format!("requests are held to default/c {each})")]);
    assert!(said("10.96.0.1:81").is_empty());
}
