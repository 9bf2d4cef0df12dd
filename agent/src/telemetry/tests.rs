//! Records in, series and lines out.

mod lines;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::log::{LogFormat, build};
use super::{
    AccessLog, BuildInfo, ConfigState, ConnectionRecord, Flag, FlowEvent, FlowLog, FlowRule, LimitedBy,
    Metrics, Origin, Recorder, RequestRecord, ResponseFlags,
};
use crate::compile::{Cluster, ClusterKey, Denied, DeniedBy, Realm, RouteName, RoutingTable, Upstream};
use crate::model::{AppProtocol, LbPolicy, ObjectName, Workload};

const LIMIT: Duration = Duration::from_secs(20);

/// A sink that keeps what it gets.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Sink {
    fn lines(&self) -> Vec<serde_json::Value> {
        let bytes = self.0.lock().expect("nothing panics while writing").clone();
        let lines = bytes.split_inclusive(|byte| *byte == b'\n');
        lines.map(|line| serde_json::from_slice(line).expect("is JSON")).collect()
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("nothing panics while writing").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn metrics() -> Metrics {
    Metrics::new(BuildInfo { version: "1.2.3", cluster: "east" }).expect("registers")
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("is an address")
}

fn pod(name: &str) -> Arc<Workload> {
    let labels = [("app".into(), name.into()), ("version".into(), "v1".into())];
    Arc::new(Workload {
        name: ObjectName::new("shop", &format!("{name}-1")),
        uid: "u".into(),
        workload: name.into(),
        node: None,
        service_account: "default".into(),
        addresses: Vec::new(),
        labels: Arc::new(labels.into_iter().collect()),
        accelerated: true,
        ready: true,
        probes: Vec::new(),
    })
}

struct Ends {
    origin: Origin,
    source: Option<Arc<Workload>>,
    destination: Option<Arc<Workload>>,
    cluster: Option<ClusterKey>,
    route: RouteName,
}

impl Ends {
    fn known() -> Self {
        let service = ObjectName::new("shop", "order");
        Self {
            origin: Origin::Outbound,
            source: Some(pod("cart")),
            destination: Some(pod("order")),
            cluster: Some(ClusterKey { service: service.clone(), port: 80, subset: Some("v1".into()) }),
            route: RouteName { kind: "VirtualService", source: service, rule: "rule-0".into() },
        }
    }

    fn unknown() -> Self {
        Self { source: None, destination: None, cluster: None, ..Self::known() }
    }

    fn request<'a>(&'a self, path: &'a str, status: u16) -> RequestRecord<'a> {
        RequestRecord {
            duration: Duration::from_micros(7_250),
            origin: &self.origin,
            peer: address("10.0.0.9:1234"),
            original_destination: address("10.96.0.1:80"),
            tls: None,
            source: self.source.as_ref(),
            cluster: self.cluster.as_ref(),
            upstream: self.cluster.as_ref().map(|_| address("[fd00::1]:8080")),
            destination: self.destination.as_ref(),
            route: self.cluster.as_ref().map(|_| &self.route),
            method: "GET",
            authority: "order",
            path,
            protocol: "HTTP/1.1",
            status,
            grpc: false,
            grpc_status: None,
            flags: ResponseFlags::default(),
            details: "",
            denied: None,
            limited: None,
            request_bytes: 3,
            response_bytes: 2_000,
            request_id: "id",
            user_agent: b"curl",
        }
    }

    fn connection(&self) -> ConnectionRecord<'_> {
        ConnectionRecord {
            start: SystemTime::UNIX_EPOCH,
            duration: Duration::from_secs(2),
            origin: &self.origin,
            peer: address("10.0.0.9:1234"),
            original_destination: address("10.96.0.1:6379"),
            source: self.source.as_ref(),
            identity: None,
            cluster: self.cluster.as_ref(),
            upstream: None,
            destination: self.destination.as_ref(),
            flags: Flag::UpstreamConnectFailure.into(),
            details: "connect_refused",
            limited: None,
            sent_bytes: 11,
            received_bytes: 22,
            rtt: None,
        }
    }
}

/// The value of the one series of this name whose labels contain all of these.
fn value(text: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let mut found = text.lines().filter(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|label| line.contains(label))
    });
    let line = found.next()?;
    assert!(found.next().is_none(), "{name} {labels:?} is there twice");
    line.rsplit(' ').next().and_then(|value| value.parse().ok())
}

#[test]
fn a_request_counts_with_istios_labels() {
    let metrics = metrics();
    let recorder = metrics.recorder(AccessLog::disabled(), FlowLog::default());
    let ends = Ends::known();
    recorder.request(&ends.request("/", 200));
    recorder.request(&ends.request("/other", 200));
    recorder.request(&ends.request("/", 503));
    let text = metrics.render().expect("renders");
    let labels = [
        r#"reporter="source""#,
        r#"source_workload="cart""#,
        r#"source_workload_namespace="shop""#,
        r#"source_app="cart""#,
        r#"source_version="v1""#,
        r#"source_cluster="east""#,
        r#"source_canonical_service="cart""#,
        r#"source_canonical_revision="v1""#,
        r#"destination_workload="order""#,
        r#"destination_service="order.shop.svc.cluster.local""#,
        r#"destination_service_name="order""#,
        r#"destination_service_namespace="shop""#,
        r#"request_protocol="http""#,
        r#"response_code="200""#,
        r#"response_flags="-""#,
        r#"connection_security_policy="none""#,
        r#"grpc_response_status="""#,
    ];
    assert_eq!(value(&text, "istio_requests_total", &labels), Some(2.0));
    assert_eq!(value(&text, "istio_requests_total", &[r#"response_code="503""#]), Some(1.0));
    let of_200 = &[r#"response_code="200""#][..];
    assert_eq!(value(&text, "istio_request_duration_milliseconds_sum", of_200), Some(14.5));
    let bucket = [r#"response_code="200""#, r#"le="10""#];
    assert_eq!(value(&text, "istio_request_duration_milliseconds_bucket", &bucket), Some(2.0));
    assert_eq!(value(&text, "istio_request_bytes_sum", of_200), Some(6.0));
    assert_eq!(value(&text, "istio_response_bytes_sum", of_200), Some(4000.0));
}

#[test]
fn what_is_not_known_says_so_and_a_gateway_stands_for_its_clients() {
    let metrics = metrics();
    let recorder = metrics.recorder(AccessLog::disabled(), FlowLog::default());
    let mut ends = Ends::unknown();
    recorder.request(&ends.request("/", 404));
    ends.origin = Origin::Gateway("infra/edge/http".into());
    recorder.request(&ends.request("/", 302));
    let text = metrics.render().expect("renders");
    let unknown =
        [r#"source_workload="unknown""#, r#"destination_service="unknown""#, r#"response_code="404""#];
    assert_eq!(value(&text, "istio_requests_total", &unknown), Some(1.0));
    let gateway = [
        r#"reporter="source""#,
        r#"source_workload="edge""#,
        r#"source_workload_namespace="infra""#,
        r#"="302""#,
    ];
    assert_eq!(value(&text, "istio_requests_total", &gateway), Some(1.0));
}

/// Either end says of what goes by tunnel that it is proven, and as whom; nobody says it of anything else.
#[test]
fn what_a_tunnel_has_proven_is_said_on_both_sides() {
    let on = |name: &str, node: &str, is_labelled: bool| {
        let label = ("networking.istio.io/tunnel".into(), "http".into());
        let labels = Arc::new(is_labelled.then_some(label).into_iter().collect());
        Some(Arc::new(Workload { node: Some(node.into()), labels, ..(*pod(name)).clone() }))
    };
    let (here, there) = (("cart", "node-a", false), ("order", "node-b", true));
    let plain = ("order", "node-b", false);
    for (origin, (source, destination), tunnels, expected) in [
        (Origin::Outbound, (here, there), true, "mutual_tls"),
        (Origin::Outbound, (here, there), false, "none"),
        (Origin::Outbound, (here, plain), true, "none"),
        (Origin::Outbound, (here, ("order", "node-a", true)), true, "none"),
        (Origin::Tunnel(None), (plain, here), true, "mutual_tls"),
        (Origin::Inbound, (plain, here), true, "none"),
    ] {
        let metrics = metrics();
        metrics.settle(Realm { node: "node-a".into(), trust_domain: "mesh.test".into(), tunnels });
        let recorder = metrics.recorder(AccessLog::disabled(), FlowLog::default());
        let [source, destination] = [source, destination].map(|(name, node, label)| on(name, node, label));
        let ends = Ends { origin: origin.clone(), source, destination, ..Ends::known() };
        recorder.request(&ends.request("/", 200));
        recorder
            .connection_opened(&ConnectionRecord { flags: ResponseFlags::default(), ..ends.connection() });
        let text = metrics.render().expect("renders");
        let principal = if expected == "none" { "unknown" } else { "spiffe://mesh.test/ns/shop/sa/default" };
        let [from, to] = ["source", "destination"].map(|side| format!("{side}_principal=\"{principal}\""));
        let security = format!("connection_security_policy=\"{expected}\"");
        let labels = [&*from, &*to, &*security];
        for name in ["istio_requests_total", "istio_tcp_connections_opened_total"] {
            assert_eq!(value(&text, name, &labels), Some(1.0), "{origin:?} {tunnels}: {text}");
        }
        // Where no tunnel came about it has proven nothing.
        recorder.connection_opened(&ConnectionRecord {
            flags: Flag::UpstreamConnectFailure.into(),
            ..ends.connection()
        });
        let labels = [r#"response_flags="UF""#, r#"connection_security_policy="mutual_tls""#];
        let text = metrics.render().expect("renders");
        let failed = value(&text, "istio_tcp_connections_opened_total", &labels);
        assert_eq!(
            failed,
            matches!(origin, Origin::Tunnel(_)).then_some(1.0),
            "{origin:?} {tunnels}: {text}"
        );
    }
}

#[test]
fn connections_count_when_they_open_and_when_they_end() {
    let metrics = metrics();
    let recorder = metrics.recorder(AccessLog::disabled(), FlowLog::default());
    let ends = Ends::known();
    let opened = ConnectionRecord { flags: ResponseFlags::default(), ..ends.connection() };
    recorder.connection_opened(&opened);
    recorder.connection_opened(&opened);
    recorder.connection(&ends.connection());
    let text = metrics.render().expect("renders");
    let fine = [r#"response_flags="-""#, r#"request_protocol="tcp""#];
    let failed = [r#"response_flags="UF""#];
    assert_eq!(value(&text, "istio_tcp_connections_opened_total", &fine), Some(2.0));
    assert_eq!(value(&text, "istio_tcp_connections_closed_total", &failed), Some(1.0));
    assert_eq!(value(&text, "istio_tcp_sent_bytes_total", &failed), Some(22.0));
    assert_eq!(value(&text, "istio_tcp_received_bytes_total", &failed), Some(11.0));
}

#[test]
fn limits_that_connections_meet_count_as_those_of_requests() {
    let metrics = metrics();
    let recorder = metrics.recorder(AccessLog::disabled(), FlowLog::default());
    let (ends, flags) = (Ends::known(), Flag::UpstreamConnectFailure.into());
    for details in ["connect_no_source_port", "connect_refused"] {
        recorder.request(&RequestRecord { flags, details, ..ends.request("/", 503) });
        recorder.connection(&ConnectionRecord { flags, details, ..ends.connection() });
    }
    let text = metrics.render().expect("renders");
    let hits = |limit: &str| value(&text, "sluice_limit_hits_total", &[&format!(r#"limit="{limit}""#)]);
    assert_eq!(hits("connect_no_source_port"), Some(2.0));
    assert_eq!((hits("connect_refused"), hits("upstream_full")), (None, Some(0.0)));
}

#[test]
fn recorders_of_two_workers_count_together() {
    let metrics = metrics();
    let ends = Ends::known();
    for _ in 0..2 {
        let recorder = metrics.recorder(AccessLog::disabled(), FlowLog::default());
        recorder.request(&ends.request("/", 200));
        recorder.downstream(&ends.origin, true);
    }
    let text = metrics.render().expect("renders");
    assert_eq!(value(&text, "istio_requests_total", &[]), Some(2.0));
    assert_eq!(value(&text, "sluice_downstream_connections", &[r#"origin="outbound""#]), Some(2.0));
}

#[test]
fn a_pod_that_changed_its_labels_counts_under_the_new_ones() {
    let metrics = metrics();
    let recorder = metrics.recorder(AccessLog::disabled(), FlowLog::default());
    for version in 0..200 {
        let mut workload = (*pod("cart")).clone();
        workload.labels = Arc::new([("version".into(), format!("v{version}").into())].into_iter().collect());
        let ends = Ends { source: Some(Arc::new(workload)), ..Ends::known() };
        recorder.request(&ends.request("/", 200));
    }
    let text = metrics.render().expect("renders");
    for version in 0..200 {
        let label = format!(r#"source_version="v{version}""#);
        assert_eq!(value(&text, "istio_requests_total", &[&label]), Some(1.0), "{label}");
    }
}

#[test]
fn series_are_bounded_and_the_total_stays_right() {
    let metrics = metrics();
    let recorder = metrics.recorder(AccessLog::disabled(), FlowLog::default());
    let mut ends = Ends::known();
    for index in 0..5_100 {
        ends.cluster = Some(ClusterKey {
            service: ObjectName::new("shop", &format!("s{index}")),
            port: 80,
            subset: None,
        });
        recorder.request(&ends.request("/", 200));
    }
    let text = metrics.render().expect("renders");
    assert_eq!(value(&text, "istio_requests_total", &[r#"reporter="overflow""#]), Some(100.0));
    assert_eq!(text.lines().filter(|line| line.starts_with("istio_requests_total{")).count(), 5_001);
}

#[test]
fn own_series() {
    let metrics = metrics();
    let recorder = metrics.recorder(AccessLog::disabled(), FlowLog::default());
    recorder.downstream(&Origin::Outbound, true);
    recorder.downstream(&Origin::Outbound, true);
    recorder.downstream(&Origin::Outbound, false);
    let ends = Ends::unknown();
    let broken =
        |flag: Flag, details| RequestRecord { flags: flag.into(), details, ..ends.request("-", 400) };
    recorder.request(&broken(Flag::DownstreamProtocol, "header_obs_fold"));
    recorder.request(&broken(Flag::UpstreamProtocol, "chunk_size"));
    recorder.request(&broken(Flag::NoRoute, "no_route"));
    metrics.config_objects(ConfigState::Accepted, 7);
    metrics.config_rejected(2);
    metrics.table_applied(&RoutingTable::default(), Duration::from_millis(3));
    metrics.interfaces(4, 1);
    metrics.workers(2);
    metrics.ready(true);
    let text = metrics.render().expect("renders");
    for (name, label, expected) in [
        ("sluice_downstream_connections", r#"origin="outbound""#, 1.0),
        ("sluice_downstream_connections_total", r#"origin="outbound""#, 2.0),
        ("sluice_protocol_errors_total", r#"reason="header_obs_fold",side="downstream""#, 1.0),
        ("sluice_protocol_errors_total", r#"reason="chunk_size",side="upstream""#, 1.0),
        ("sluice_config_objects", r#"state="accepted""#, 7.0),
        ("sluice_config_rejected_total", "", 2.0),
        ("sluice_table", r#"part="version""#, 0.0),
        ("sluice_table_entries", r#"kind="frontends""#, 0.0),
        ("sluice_table_apply_seconds_count", "", 1.0),
        ("sluice_captured_interfaces", r#"state="failed""#, 1.0),
        ("sluice_workers", "", 2.0),
        ("sluice_ready", "", 1.0),
        ("istio_build", r#"component="sluice",tag="1.2.3""#, 1.0),
    ] {
        assert_eq!(value(&text, name, &[label]), Some(expected), "{name} {label}");
    }
    assert!(value(&text, "process_open_fds", &[]).is_some());
    assert!(!text.contains("no_route"));
}

#[test]
fn the_text_is_well_formed() {
    let metrics = metrics();
    let recorder = metrics.recorder(AccessLog::disabled(), FlowLog::default());
    let mut ends = Ends::known();
    ends.origin = Origin::Gateway("a\"\\\n/b".into());
    recorder.request(&ends.request("/", 200));
    let text = metrics.render().expect("renders");
    let series = regex_automata::meta::Regex::new(
        r#"\A[a-z_]+(\{([a-z_]+="(\\["\\n]|[^"\\\n])*",?)+\})? (-?[0-9.e+-]+|\+Inf|NaN)\z"#,
    )
    .expect("is an expression");
    for line in text.lines().filter(|line| !line.starts_with("# HELP ") && !line.starts_with("# TYPE ")) {
        assert!(series.is_match(line), "{line}");
    }
}

#[test]
fn grpc_counts_by_its_status() {
    let metrics = metrics();
    let recorder = metrics.recorder(AccessLog::disabled(), FlowLog::default());
    let ends = Ends::known();
    for status in [0, 0, 14] {
        let grpc_status = Some(crate::http::grpc::GrpcStatus(status));
        recorder.request(&RequestRecord { grpc: true, grpc_status, ..ends.request("/a.B/C", 200) });
    }
    recorder.request(&RequestRecord { grpc: true, ..ends.request("/a.B/C", 200) });
    let text = metrics.render().expect("renders");
    let count = |status: &str| {
        let status = format!(r#"grpc_response_status="{status}""#);
        value(&text, "istio_requests_total", &[r#"request_protocol="grpc""#, &status])
    };
    assert_eq!((count("0"), count("14"), count("")), (Some(2.0), Some(1.0), Some(1.0)));
}

#[test]
fn refusals_beyond_their_budget_are_counted_and_not_told() {
    let (flows, metrics) = (FlowLog::default(), metrics());
    metrics.watch_flows(flows.clone());
    let recorder = metrics.recorder(AccessLog::disabled(), flows.clone());
    let denied = Denied { policy: ObjectName::new("default", "p"), by: DeniedBy::Rule(3) };
    for _ in 0..1000 {
        recorder.denied(&denied, address("10.0.0.1:40000"), address("10.0.0.2:80"));
    }
    let (told, _) = flows.since(0);
    assert!((64..1000).contains(&told.len()), "{} were told", told.len());
    assert_eq!(told.len() as u64 + flows.lost(), 1000);
    for _ in 0..2 {
        let text = metrics.render().expect("text");
        let line = format!("sluice_flow_events_lost_total {}\n", flows.lost());
        assert!(text.contains(&line), "no {line:?} in\n{text}");
    }
    assert_eq!(told[0].event.rule, Some(FlowRule::Policy(denied)));
    assert_eq!(told[0].event.source.to_string(), "10.0.0.1:40000");
    // Limits spend the same budget.
    let (policy, limit) = (ObjectName::new("default", "calm"), Arc::from("each"));
    let limited = Some(LimitedBy { policy: &policy, limit: &limit });
    let ends = Ends::known();
    for _ in 0..1000 {
        recorder.request(&RequestRecord { details: "rate_limited", limited, ..ends.request("/", 429) });
    }
    let (more, _) = flows.since(told.len() as u64);
    assert!(more.len() < 1000, "{} were told", more.len());
    assert_eq!((told.len() + more.len()) as u64 + flows.lost(), 2000);
}

#[test]
fn endpoints_are_counted_from_table_to_table_and_once_for_a_service() {
    let metrics = metrics();
    let cluster = |name: &str, subset: Option<&str>, endpoints: u8| {
        let service = ObjectName::new("default", name);
        let key = ClusterKey { service, port: 80, subset: subset.map(Into::into) };
        let upstream = |number| Upstream::new(([10, 0, 0, number], 80).into(), "uid".into(), None);
        let endpoints = (0..endpoints).map(|number| Arc::new(upstream(number))).collect();
        let cluster = Cluster::new(key.clone(), AppProtocol::Http, LbPolicy::RoundRobin, endpoints);
        (key, Arc::new(cluster))
    };
    let (web, blue, api) =
        (cluster("web", None, 5), cluster("web", Some("blue"), 3), cluster("api", None, 2));
    for (clusters, expected) in [
        (vec![web.clone(), blue.clone()], 5.0),
        (vec![web.clone(), blue, api], 7.0),
        (vec![cluster("web", None, 1)], 1.0),
        (vec![web], 5.0),
        (vec![], 0.0),
    ] {
        let table = RoutingTable { clusters: clusters.into_iter().collect(), ..RoutingTable::default() };
        metrics.table_applied(&table, Duration::ZERO);
        let text = metrics.render().expect("renders");
        assert_eq!(value(&text, "sluice_table_entries", &[r#"kind="endpoints""#]), Some(expected));
    }
}
