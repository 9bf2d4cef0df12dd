//! Questions and answers, and the three servers on port 0.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use super::answer::{Answer, Question, answer};
use super::client::{self, ClientError};
use super::{DrainStatus, EndpointsDump, Role, RoutesDump, Source, Status, TableStatus, serve};
use crate::compile::{RoutingTable, TableVersion, Token, compile};
use crate::model::{
    AppProtocol, Destination, DirectResponse, Endpoint, HeaderChange, HeaderOp, HostPattern, HttpRule,
    Listener, ListenerProtocol, MatchPath, MatchValue, Model, ObjectName, PathRewrite, Redirect,
    RedirectPath, RequestMatch, RouteAction, RouteKind, RouteTable, Service, ServicePort,
    WeightedDestination, Workload,
};
use crate::telemetry::log::{LogFormat, build};
use crate::telemetry::{AccessLog, BuildInfo, Metrics};

pub(super) fn model() -> Model {
    let order = ObjectName::new("default", "order");
    let port = ServicePort { name: "http".into(), port: 80, protocol: AppProtocol::Http, tls: None };
    let endpoint = |address: &str, ready| Endpoint {
        service: order.clone(),
        service_port: 80,
        address: address.parse().expect("is an address"),
        ready,
        pod: None,
        uid: address.into(),
        node: None,
        labels: Arc::default(),
    };
    let workload = Workload {
        name: ObjectName::new("default", "order-1"),
        uid: "10.0.0.1:8080".into(),
        workload: "order".into(),
        node: Some("node-a".into()),
        service_account: "default".into(),
        addresses: vec!["10.0.0.1".parse().expect("is an address")],
        labels: Arc::default(),
        accelerated: true,
        ready: true,
        probes: Vec::new(),
    };
    let listener = Listener {
        gateway: ObjectName::new("infra", "edge"),
        name: "http".into(),
        addresses: Vec::new(),
        port: 8080,
        protocol: ListenerProtocol::Http,
        hostname: HostPattern::Suffix(".example.com".into()),
        tls: None,
        routes: Vec::new(),
    };
    Model {
        services: vec![Service {
            name: order.clone(),
            cluster_ips: vec!["10.96.0.1".parse().expect("is an address")],
            headless: false,
            ports: vec![port],
            datagram_ports: Vec::new(),
            affinity: None,
        }]
        .into(),
        endpoints: vec![endpoint("10.0.0.1:8080", true), endpoint("10.0.0.2:8080", false)].into(),
        workloads: vec![workload].into(),
        mesh_routes: vec![RouteTable {
            source: order.clone(),
            kind: RouteKind::VirtualService,
            services: vec![(order.clone(), None)],
            hosts: Vec::new(),
            rules: rules(&order),
        }]
        .into(),
        listeners: vec![listener].into(),
        ..Model::default()
    }
}

pub(super) fn table() -> RoutingTable {
    compile(
        &model(),
        &RoutingTable::default(),
        TableVersion { token: Token { epoch: 3, nonce: 0 }, version: 7 },
    )
}

fn rules(order: &ObjectName) -> Vec<HttpRule> {
    let share = |subset: Option<&str>, weight| WeightedDestination {
        destination: Destination::Service {
            service: order.clone(),
            port: None,
            subset: subset.map(Into::into),
        },
        weight,
        request_headers: vec![HeaderOp { name: "x-share".into(), change: HeaderChange::Remove }],
        response_headers: Vec::new(),
    };
    let conditions = RequestMatch {
        path: Some(MatchPath::Prefix("/api".into())),
        headers: vec![("x-user-group".into(), MatchValue::Exact("beta".into()))],
        ..RequestMatch::default()
    };
    let rewrite = PathRewrite { authority: None, path: Some(RedirectPath::Prefix("/v2".into())) };
    let forward = HttpRule {
        name: "canary".into(),
        matches: vec![conditions],
        action: RouteAction::Forward { destinations: vec![share(None, 90), share(Some("v9"), 10)], rewrite },
        timeout: Some(Duration::from_secs(10)),
        try_timeout: None,
        request_headers: vec![HeaderOp { name: "x-a".into(), change: HeaderChange::Set("1".into()) }],
        response_headers: Vec::new(),
    };
    let other = |name: &str, action| HttpRule {
        name: name.into(),
        matches: Vec::new(),
        action,
        timeout: None,
        request_headers: Vec::new(),
        ..forward.clone()
    };
    let redirect = Redirect {
        status: 301,
        scheme: Some("https".into()),
        authority: None,
        port: Some(8443.into()),
        path: None,
    };
    let body = b"gone".as_slice().into();
    vec![
        other("moved", RouteAction::Redirect(redirect)),
        other("gone", RouteAction::Respond(DirectResponse { status: 410, body })),
        forward,
    ]
}

struct Fixture {
    /// The log's handle works as long as there is one.
    _subscriber: Box<dyn tracing::Subscriber + Send + Sync>,
    source: Arc<Source>,
    ready: watch::Sender<bool>,
}

fn certificate() -> super::CertificateDump {
    super::CertificateDump {
        identity: "spiffe://mesh.test/ns/default/sa/order".to_owned(),
        state: "Available".to_owned(),
        cert_chain: vec![super::CertDump {
            pem: "LS0t".to_owned(),
            serial_number: "1208925819614629174706176".to_owned(),
            valid_from: "2026-01-01T00:00:00.000Z".to_owned(),
            expiration_time: "2026-01-02T00:00:00.000Z".to_owned(),
        }],
    }
}

fn fixture() -> Fixture {
    let (subscriber, log) = build("info", LogFormat::Text, io::sink()).expect("is a filter");
    let (ready, of_source) = watch::channel(false);
    let table = Arc::new(table());
    let status = Status {
        node: "node-a".to_owned(),
        version: "1.2.3".to_owned(),
        uptime_seconds: 5,
        table: TableStatus::new(&table, None),
        drain: DrainStatus { draining: true, connections: 1 },
        ..Status::default()
    };
    let source = Source {
        tables: Arc::new(ArcSwap::new(Arc::clone(&table))),
        metrics: Metrics::new(BuildInfo { version: "1.2.3", cluster: "east" }).expect("registers"),
        log,
        access: AccessLog::disabled(),
        ready: of_source,
        status: Box::new(move || status.clone()),
        endpoints: {
            let table = Arc::clone(&table);
            Box::new(move || super::endpoints(&table, &super::OutReasons::default()))
        },
        connections: Box::new(super::ConnectionsDump::default),
        cluster: Box::new(super::ClusterDump::default),
        limits: {
            let table = Arc::clone(&table);
            Box::new(move |top| super::limits(&table, top, &[], |_, _| None))
        },
        held: Box::new(|_, _| super::Held::default()),
        certificates: Box::new(|| vec![certificate()]),
        flows: Box::new(|since| super::FlowsDump { next: since + 1, ..super::FlowsDump::default() }),
    };
    Fixture { _subscriber: Box::new(subscriber), source: Arc::new(source), ready }
}

fn ask(source: &Source, post: bool, target: &str) -> Answer {
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    answer(Role::Admin, Question { post, path, query }, source)
}

fn body(source: &Source, target: &str) -> Value {
    serde_json::from_str(&ask(source, false, target).body).expect("is JSON")
}

#[test]
fn which_listener_serves_what() {
    let Fixture { source, ready, _subscriber } = fixture();
    let check = |role, path, expected| {
        let shown = answer(role, Question { post: false, path, query: None }, &source).status;
        assert_eq!(shown, expected, "{role:?} {path}");
    };
    for path in ["/", "/help", "/clusters", "/config_dump", "/endpoints", "/logging", "/routes", "/status"] {
        check(Role::Admin, path, 200);
        check(Role::Metrics, path, 404);
        check(Role::Health, path, 404);
    }
    for path in ["/metrics", "/stats/prometheus"] {
        check(Role::Admin, path, 200);
        check(Role::Metrics, path, 200);
        check(Role::Health, path, 404);
    }
    for path in ["/healthz/ready", "/readyz"] {
        check(Role::Health, path, 503);
        check(Role::Admin, path, 503);
        check(Role::Metrics, path, 404);
    }
    check(Role::Health, "/healthz", 200);
    ready.send_replace(true);
    check(Role::Health, "/healthz/ready", 200);
    check(Role::Admin, "/ready", 200);
    for path in ["/nothing", "", "/routes/", "/../status"] {
        check(Role::Admin, path, 404);
    }
}

#[test]
fn routes_show_rules_in_words() {
    let Fixture { source, _subscriber, .. } = fixture();
    let dump = body(&source, "/routes");
    assert_eq!((&dump["epoch"], &dump["version"]), (&json!(3), &json!(7)));
    let service = &dump["hosts"][0];
    assert_eq!(service["name"], "order.default.svc.cluster.local:80");
    assert_eq!(service["addresses"], json!(["10.96.0.1:80"]));
    assert_eq!(service["rules"][0]["redirect"], "301, scheme https, port 8443");
    assert_eq!(service["rules"][1]["respond"], 410);
    let expected = json!({
        "kind": "VirtualService", "source": "default/order", "rule": "canary",
        "matches": ["path starts with /api, header x-user-group = beta"],
        "destinations": [
            { "cluster": "default/order:80", "weight": 90, "headers": ["remove x-share"] },
            { "cluster": null, "status": 503, "weight": 10, "headers": ["remove x-share"] },
        ],
        "rewrite": "prefix /v2", "timeout_ms": 10_000, "request_headers": ["set x-a: 1"],
    });
    assert_eq!(service["rules"][2], expected);
    assert_eq!(dump["hosts"][1]["listener"], "infra/edge/http");
    assert_eq!(dump["hosts"][1]["name"], "*.example.com");
    let read: RoutesDump = serde_json::from_value(dump).expect("reads back");
    assert_eq!(read, super::routes(&source.tables.load()));
}

#[test]
fn endpoints_show_pods_readiness_and_load() {
    let Fixture { source, _subscriber, .. } = fixture();
    let table = source.tables.load_full();
    let pick = table
        .clusters
        .values()
        .next()
        .and_then(|cluster| cluster.pick(std::net::Ipv4Addr::LOCALHOST.into(), 0, &[]));
    let dump = body(&source, "/endpoints");
    let first = json!({
        "cluster": "default/order:80", "policy": "LEAST_REQUEST", "address": "10.0.0.1:8080",
        "pod": "default/order-1", "node": "node-a", "ready": true, "active": 1,
    });
    assert_eq!(dump["endpoints"][0], first);
    assert_eq!((&dump["endpoints"][1]["ready"], &dump["endpoints"][1]["pod"]), (&json!(false), &Value::Null));
    assert!(serde_json::from_value::<EndpointsDump>(dump).is_ok());
    drop(pick);
    let text = ask(&source, false, "/clusters").body;
    assert!(
        text.contains("outbound|80||order.default.svc.cluster.local::10.0.0.1:8080::rq_active::0\n"),
        "{text}"
    );
    assert!(text.contains("::10.0.0.2:8080::health_flags::/failed_eds_health\n"), "{text}");
}

#[test]
fn the_config_dump_has_ztunnels_shape() {
    let Fixture { source, _subscriber, .. } = fixture();
    let dump = body(&source, "/config_dump");
    let keys: Vec<&str> = dump.as_object().expect("is an object").keys().map(String::as_str).collect();
    assert_eq!(keys, ["certificates", "policies", "services", "workloadState", "workloads"]);
    let workload = &dump["workloads"][0];
    assert_eq!(
        (&workload["workloadIps"], &workload["workloadName"]),
        (&json!(["10.0.0.1"]), &json!("order"))
    );
    assert_eq!((&workload["node"], &workload["status"]), (&json!("node-a"), &json!("Healthy")));
    let service = &dump["services"][0];
    assert_eq!((&service["vips"], &service["ports"]), (&json!(["/10.96.0.1"]), &json!({ "80": 8080 })));
    assert_eq!(service["endpoints"]["10.0.0.1:8080"]["port"], json!({ "80": 8080 }));
    let expected = json!([{
        "identity": "spiffe://mesh.test/ns/default/sa/order", "state": "Available",
        "certChain": [{
            "pem": "LS0t", "serialNumber": "1208925819614629174706176",
            "validFrom": "2026-01-01T00:00:00.000Z", "expirationTime": "2026-01-02T00:00:00.000Z",
        }],
    }]);
    assert_eq!(dump["certificates"], expected);
}

#[test]
fn status_counts_the_table() {
    let Fixture { source, _subscriber, .. } = fixture();
    let status = body(&source, "/status");
    let expected = json!({
        "epoch": 3, "version": 7, "applied_at": null, "services": 1, "routes": 3, "endpoints": 1, "clusters": 1,
    });
    assert_eq!(status["table"], expected);
    assert_eq!(serde_json::from_value::<Status>(status).expect("reads back"), (source.status)());
    assert_eq!(body(&source, "/server_info")["state"], "DRAINING");
}

#[test]
fn the_log_changes_by_post_alone() {
    let Fixture { source, _subscriber, .. } = fixture();
    let check = |post, target: &str, status, filter: &str| {
        let shown = ask(&source, post, target);
        assert_eq!(shown.status, status, "{target}: {}", shown.body);
        assert_eq!(source.log.filter(), filter, "{target}");
    };
    check(false, "/logging", 200, "info");
    check(true, "/logging", 200, "info");
    check(false, "/logging?level=debug", 405, "info");
    check(true, "/logging?level=debug", 200, "debug");
    check(true, "/logging?level=loud", 400, "debug");
    check(true, "/logging?agent::config:trace", 200, "agent::config=trace,debug");
    check(true, "/logging?agent::config=warn", 200, "agent::config=warn,debug");
    check(true, "/logging?agent::config:loud", 400, "agent::config=warn,debug");
    check(true, "/logging?agent::config", 400, "agent::config=warn,debug");
    check(true, "/logging?level=agent::proxy:debug,info", 200, "agent::proxy=debug,info");
    check(true, "/logging?access=off", 200, "agent::proxy=debug,info");
}

#[test]
fn stats_are_filtered() {
    let Fixture { source, _subscriber, .. } = fixture();
    let all = ask(&source, false, "/stats").body;
    assert!(all.contains("sluice_workers: 0\n") && !all.contains('#') && !all.contains("_bucket"), "{all}");
    let some = ask(&source, false, "/stats?filter=^istio_build&usedonly").body;
    assert_eq!(some, "istio_build{component=\"sluice\",tag=\"1.2.3\"}: 1\n");
    assert!(!ask(&source, false, "/stats?usedonly").body.contains("sluice_workers"));
    assert_eq!(ask(&source, false, "/stats?filter=(").status, 400);
    assert_eq!(ask(&source, false, "/stats?what").status, 400);
}

struct Running {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<io::Result<()>>,
}

fn start(role: Role, source: &Arc<Source>) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = listener.local_addr().expect("is bound");
    let (stop, stopped) = watch::channel(false);
    let task = tokio::spawn(serve(listener, role, Arc::clone(source), stopped));
    Running { address, stop, task }
}

#[tokio::test]
async fn the_client_gets_what_the_servers_say() {
    let Fixture { source, _subscriber, .. } = fixture();
    let admin = start(Role::Admin, &source);
    let health = start(Role::Health, &source);
    let routes = client::get(admin.address, "/routes").await.expect("answers");
    assert!(serde_json::from_slice::<RoutesDump>(&routes).is_ok());
    client::post(admin.address, "/logging?level=debug").await.expect("answers");
    assert_eq!(source.log.filter(), "debug");
    let refused = client::get(admin.address, "/logging?level=info").await.expect_err("needs a POST");
    assert!(matches!(refused, ClientError::Refused { status, .. } if status == 405), "{refused}");
    let not_ready = client::get(health.address, "/readyz").await.expect_err("is not ready");
    assert!(matches!(not_ready, ClientError::Refused { status, .. } if status == 503), "{not_ready}");
    assert!(matches!(client::get(admin.address, "no path").await, Err(ClientError::Path { .. })));
    for running in [admin, health] {
        running.stop.send_replace(true);
        running.task.await.expect("does not panic").expect("ends well");
        let gone = client::get(running.address, "/help").await.expect_err("has stopped");
        assert!(matches!(gone, ClientError::Connect { .. }), "{gone}");
    }
}

#[tokio::test]
async fn raw_requests() {
    let Fixture { source, _subscriber, .. } = fixture();
    let admin = start(Role::Admin, &source);
    for (request, expected) in [
        ("GET /ready HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 503 "),
        ("HEAD /help HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200 "),
        ("DELETE /routes HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 405 "),
        ("POST /logging?level=debug HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", "HTTP/1.1 200 "),
        ("garbage\r\n\r\n", "HTTP/1.1 400 "),
    ] {
        let mut stream = tokio::net::TcpStream::connect(admin.address).await.expect("connects");
        stream.write_all(request.as_bytes()).await.expect("takes the request");
        let mut text = Vec::new();
        stream.read_to_end(&mut text).await.expect("answers and closes");
        let text = String::from_utf8_lossy(&text);
        assert!(text.starts_with(expected), "{request}: {text}");
    }
}
