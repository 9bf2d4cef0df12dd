//! What can be seen of the agent from outside while pods' traffic passes: metrics and the access log, with the labels
//! that Istio's dashboards ask for.

mod common;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use common::{LIMIT, Mesh, TIMEOUT};
use lab::agent::METRICS;
use lab::http::get;
use lab::promtext::{Exposition, Labels, Sample};
use lab::{PodSpec, Program, ServiceSpec, Topology, exec, unprivileged, wait_for};
use serde_json::Value;

/// The labels of Istio's standard request metrics, as its dashboards ask for them, and those of its agents.
const REQUEST_LABELS: [&str; 25] = [
    "reporter",
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "source_canonical_service",
    "source_canonical_revision",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "request_protocol",
    "response_code",
    "grpc_response_status",
    "response_flags",
    "connection_security_policy",
];

fn topology() -> Topology {
    let pod = |name: &str, app: &str, version: &str| {
        PodSpec::new(name, "node1").label("app", app).label("version", version)
    };
    Topology::with_nodes(1)
        .pod(pod("client", "shopper", "v7"))
        .pod(pod("web-1", "web", "v1").runs(Program::Http { port: 8080 }))
        .pod(pod("deaf-1", "deaf", "v2"))
        .pod(pod("cache-1", "cache", "v3").runs(Program::Redis { port: 6379 }))
        .service(ServiceSpec::new("web").port("http", 80, 8080))
        .service(ServiceSpec::new("deaf").port("http", 80, 8080))
        .service(ServiceSpec::new("cache").port("tcp", 6379, 6379))
}

/// What every series of the client's traffic to a service says.
fn labels(service: &str, version: &str, more: &[(&str, &str)]) -> Labels {
    let (workload, host) = (format!("{service}-1"), format!("{service}.default.svc.cluster.local"));
    let common = [
        ("reporter", "source"),
        ("source_workload", "client"),
        ("source_workload_namespace", "default"),
        ("source_principal", "unknown"),
        ("source_app", "shopper"),
        ("source_version", "v7"),
        ("source_cluster", "Kubernetes"),
        ("source_canonical_service", "shopper"),
        ("source_canonical_revision", "v7"),
        ("destination_workload", &workload),
        ("destination_workload_namespace", "default"),
        ("destination_principal", "unknown"),
        ("destination_app", service),
        ("destination_version", version),
        ("destination_cluster", "Kubernetes"),
        ("destination_canonical_service", service),
        ("destination_canonical_revision", version),
        ("destination_service", &host),
        ("destination_service_name", service),
        ("destination_service_namespace", "default"),
        ("connection_security_policy", "none"),
    ];
    common.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn http_labels(service: &str, version: &str, code: &str, flags: &str) -> Labels {
    let more = [
        ("request_protocol", "http"),
        ("response_code", code),
        ("response_flags", flags),
        ("grpc_response_status", ""),
    ];
    labels(service, version, &more)
}

fn scrape(mesh: &Mesh) -> Result<Exposition> {
    let node = mesh.lab.node("node1")?;
    let response = node.in_netns(|| get(METRICS, "localhost", "/metrics", TIMEOUT))??;
    let content_type = response.header("content-type").unwrap_or_default();
    ensure!(content_type.starts_with("text/plain; version=0.0.4"), "{content_type}");
    Exposition::parse(&response.text())
}

/// The value of the one series with exactly these labels.
fn value(metrics: &Exposition, name: &str, labels: &Labels) -> Result<f64> {
    let all: Vec<&Sample> = metrics.samples.iter().filter(|sample| sample.name == name).collect();
    let found = all.iter().find(|sample| sample.labels == *labels);
    found.map(|sample| sample.value).with_context(|| format!("no {name} with {labels:?} in {all:#?}"))
}

fn expect(metrics: &Exposition, name: &str, labels: &Labels, expected: f64) -> Result<()> {
    let found = value(metrics, name, labels)?;
    ensure!((found - expected).abs() < 1e-6, "{name}: {found} and not {expected}");
    Ok(())
}

fn post(to: SocketAddr, body: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let length = body.len();
    let head = format!(
        "POST /upload HTTP/1.1\r\nHost: web\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    );
    // In one piece: an answer to the head alone would come before the body counts.
    stream.write_all((head + body).as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// One PING over an opaque connection of its own.
fn ping(to: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(b"PING\r\n")?;
    let mut pong = [0; 7];
    stream.read_exact(&mut pong)?;
    ensure!(&pong == b"+PONG\r\n", "{pong:?}");
    Ok(())
}

#[test]
fn the_metrics_and_the_log_tell_what_a_pod_did() -> Result<()> {
    if unprivileged("the_metrics_and_the_log_tell_what_a_pod_did") {
        return Ok(());
    }
    let mesh = Mesh::up("seen", topology(), &[])?;
    let (web, deaf, cache) =
        (mesh.service("web", 0, 80)?, mesh.service("deaf", 0, 80)?, mesh.service("cache", 0, 6379)?);
    let mut bytes = 0;
    for _ in 0..7 {
        bytes += mesh.get("client", web, "web", "/a?b=c")?.body.len();
    }
    for _ in 0..3 {
        ensure!(mesh.get("client", deaf, "deaf", "/")?.status == 503);
    }
    let client = mesh.lab.pod("client")?;
    for _ in 0..4 {
        client.in_netns(|| ping(cache))??;
    }
    let ok = http_labels("web", "v1", "200", "-");
    let tcp = labels("cache", "v3", &[("request_protocol", "tcp"), ("response_flags", "-")]);
    let closed = || scrape(&mesh).and_then(|seen| value(&seen, "istio_tcp_connections_closed_total", &tcp));
    wait_for("four connections to be closed", LIMIT, || closed().is_ok_and(|count| count > 3.5))?;
    let requests = || scrape(&mesh).map(|seen| seen.sum("istio_requests_total", &[]));
    wait_for("ten requests to be counted", LIMIT, || requests().is_ok_and(|count| count > 9.5))?;
    let seen = scrape(&mesh)?;
    expect(&seen, "istio_requests_total", &ok, 7.0)?;
    expect(&seen, "istio_requests_total", &http_labels("deaf", "v2", "503", "UF"), 3.0)?;
    let names: Vec<&str> = ok.keys().map(String::as_str).collect();
    let mut wanted = REQUEST_LABELS;
    wanted.sort_unstable();
    ensure!(names == wanted, "{names:?}");
    expect(&seen, "istio_request_duration_milliseconds_count", &ok, 7.0)?;
    let millis = value(&seen, "istio_request_duration_milliseconds_sum", &ok)?;
    ensure!(millis > 0.0 && millis < 7.0 * 5000.0, "seven requests took {millis} ms");
    expect(&seen, "istio_request_bytes_sum", &ok, 0.0)?;
    expect(&seen, "istio_response_bytes_sum", &ok, f64::from(u32::try_from(bytes)?))?;
    expect(&seen, "istio_tcp_connections_opened_total", &tcp, 4.0)?;
    expect(&seen, "istio_tcp_connections_closed_total", &tcp, 4.0)?;
    // From the server's side: received from clients, sent to them.
    expect(&seen, "istio_tcp_received_bytes_total", &tcp, 4.0 * 6.0)?;
    expect(&seen, "istio_tcp_sent_bytes_total", &tcp, 4.0 * 7.0)?;
    ensure!(seen.with("istio_build", &[("component", "sluice")]).count() == 1);
    ensure!((seen.sum("istio_requests_total", &[]) - 10.0).abs() < 0.5, "requests that nobody sent");
    let outbound = seen.sum("sluice_downstream_connections_total", &[("origin", "outbound")]);
    ensure!((outbound - 14.0).abs() < 0.5, "{outbound} connections");
    let families =
        ["istio_requests_total", "istio_request_duration_milliseconds", "istio_tcp_sent_bytes_total"];
    ensure!(families.map(|family| seen.types[family].as_str()) == ["counter", "histogram", "counter"]);
    // Bodies count too.
    let body = "x".repeat(1000);
    let answer = client.in_netns(|| post(web, &body))??;
    ensure!(answer.starts_with("HTTP/1.1 "), "{answer}");
    let code = &answer[9..12];
    let posted = http_labels("web", "v1", code, "-");
    let counted = || scrape(&mesh).and_then(|seen| value(&seen, "istio_request_bytes_sum", &posted));
    wait_for("the body to be counted", LIMIT, || counted().is_ok_and(|bytes| (bytes - 1000.0).abs() < 0.5))?;
    access_log(&mesh)
}

/// The access log has the same traffic, one JSON object a line.
fn access_log(mesh: &Mesh) -> Result<()> {
    let lines = || -> Result<Vec<Value>> {
        let log = mesh.agents[0].log();
        let lines = log.lines().filter(|line| line.contains("\"scope\":\"access\""));
        lines.map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    };
    wait_for("every line of the access log", LIMIT, || lines().is_ok_and(|lines| lines.len() >= 15))?;
    let lines = lines()?;
    ensure!(lines.len() == 15, "{} lines", lines.len());
    let by = |name: &str, value: &str| -> Result<&Value> {
        lines.iter().find(|line| line[name] == value).with_context(|| format!("no line with {name} {value}"))
    };
    let (client, web) = (mesh.pod_ip("client", 0)?.to_string(), mesh.pod_ip("web-1", 0)?);
    let check = |line: &Value, expected: &[(&str, Value)]| -> Result<()> {
        for (name, value) in expected {
            ensure!(line[*name] == *value, "{name} is {} and not {value} in {line}", line[*name]);
        }
        let peer = line["downstream_remote_address"].as_str().unwrap_or_default();
        ensure!(peer.starts_with(&format!("{client}:")), "{line}");
        let time = line["time"].as_str().unwrap_or_default();
        ensure!(time.len() == 24 && time.ends_with('Z') && &time[10..11] == "T", "{line}");
        ensure!(line["duration"].is_number() && line["level"] == "info", "{line}");
        Ok(())
    };
    let request = by("path", "/a?b=c")?;
    let expected = [
        ("message", Value::from("request")),
        ("method", "GET".into()),
        ("authority", "web".into()),
        ("protocol", "HTTP/1.1".into()),
        ("response_code", 200.into()),
        ("response_flags", "-".into()),
        ("bytes_received", 0.into()),
        ("direction", "outbound".into()),
        ("upstream_host", format!("{web}:8080").into()),
        ("upstream_cluster", "outbound|80||web.default.svc.cluster.local".into()),
        ("route_name", "Service/default/web/default".into()),
        ("downstream_local_address", mesh.service("web", 0, 80)?.to_string().into()),
        ("src.workload", "client".into()),
        ("src.namespace", "default".into()),
        ("dst.workload", "web-1".into()),
        ("dst.namespace", "default".into()),
    ];
    check(request, &expected)?;
    ensure!(request["request_id"].as_str().is_some_and(|id| id.len() == 36), "{request}");
    let failed = by("response_flags", "UF")?;
    let expected = [("response_code", Value::from(503)), ("response_code_details", "connect_refused".into())];
    check(failed, &expected)?;
    let opaque = by("message", "connection")?;
    let expected = [
        ("protocol", Value::from("TCP")),
        ("response_flags", "-".into()),
        ("bytes_received", 6.into()),
        ("bytes_sent", 7.into()),
        ("upstream_cluster", "outbound|6379||cache.default.svc.cluster.local".into()),
        ("dst.workload", "cache-1".into()),
    ];
    check(opaque, &expected)?;
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for line in &lines {
        *kinds.entry(line["message"].as_str().unwrap_or_default()).or_default() += 1;
    }
    ensure!(kinds == BTreeMap::from([("request", 11), ("connection", 4)]), "{kinds:?}");
    Ok(())
}

#[test]
fn the_verbs_tell_of_captured_pods() -> Result<()> {
    if unprivileged("the_verbs_tell_of_captured_pods") {
        return Ok(());
    }
    let mesh = Mesh::up("verbs", topology(), &[])?;
    let status = mesh.verb("node1", "status")?;
    ensure!(status["node"] == "node1" && status["capture"]["mode"] == "packet", "{status}");
    let interfaces = status["capture"]["interfaces"].as_array().context("interfaces")?;
    ensure!(interfaces.len() == 4 && interfaces.iter().all(|one| one["not_captured"].is_null()), "{status}");
    let node = mesh.lab.node("node1")?;
    let text = |arguments: &[&str]| -> Result<String> {
        exec::stdout(node.command(lab::agent::built_binary()?)?.args(arguments))
    };
    for (arguments, words) in [
        (
            &["status"][..],
            &["node         node1 (ready", "capture      packet", "pods: pod-", "uplinks: eth0"][..],
        ),
        (&["routes"], &["HOST ", "web.default.svc.cluster.local:80", "default/web:80"]),
        (&["endpoints"], &["CLUSTER ", "default/cache:6379", "web-1", "node1", "ready"]),
        (
            &["check", "--pod-interfaces", "pod-*", "--uplink", "eth0"],
            &["CHECK ", "kernel", "programs", "ok"],
        ),
    ] {
        let shown = text(arguments)?;
        ensure!(words.iter().all(|word| shown.contains(word)), "{arguments:?} shows no {words:?}:\n{shown}");
    }
    let endpoints = mesh.verb("node1", "endpoints")?;
    let endpoints = endpoints["endpoints"].as_array().context("endpoints")?;
    let address = format!("{}:8080", mesh.pod_ip("web-1", 0)?);
    let web = endpoints.iter().find(|one| one["address"] == *address).context("web is not there")?;
    ensure!(web["node"] == "node1" && web["ready"] == true, "{web}");
    let checks: Value = serde_json::from_str(&text(&["check", "-o", "json", "--pod-interfaces", "pod-*"])?)?;
    ensure!(checks.as_array().is_some_and(|checks| checks.len() >= 5), "{checks}");
    Ok(())
}
