//! HTTP/2 and gRPC with the programs that users run: curl, h2load, nghttpd, nginx, grpcio.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use common::{LIMIT, Mesh, TIMEOUT};
use lab::agent::METRICS;
use lab::http::get;
use lab::{PodSpec, Program, ServiceSpec, Topology, exec, unprivileged, wait_for};
use serde_json::Value;

const NGHTTPD: &str =
    "echo hello > www/index.html; truncate -s 64M www/big; exec nghttpd --no-tls --echo-upload -d www 8081";
const PEER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/grpc_peer.py");
const EDGE: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: edge
spec:
  gatewayClassName: sluice
  listeners:
  - name: http
    port: 8888
    protocol: HTTP
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: edge
spec:
  parentRefs:
  - name: edge
  rules:
  - backendRefs:
    - name: BACKEND
      port: 80
";

fn web() -> Topology {
    let argv = ["sh", "-c", NGHTTPD].map(str::to_owned).to_vec();
    Topology::with_nodes(2)
        .pod(PodSpec::new("client", "node1"))
        .pod(PodSpec::new("h1", "node2").label("app", "h1").runs(Program::Http { port: 8080 }))
        .pod(PodSpec::new("h2", "node2").label("app", "h2").runs(Program::Server { argv, port: 8081 }))
        .service(ServiceSpec::new("h1").port("http", 80, 8080).undeclared_port(82, 8080))
        .service(ServiceSpec::new("h2").port("http2", 80, 8081).undeclared_port(82, 8081))
}

/// The Python with grpcio that `scripts/setup` makes; made here where it is missing.
fn python() -> Result<PathBuf> {
    let target = lab::agent::built_binary()?;
    let target = target.parent().and_then(Path::parent).context("the binary lies in target/PROFILE")?;
    let python = target.join("grpc/bin/python");
    let has_grpc = |python: &PathBuf| exec::run(Command::new(python).args(["-c", "import grpc"])).is_ok();
    if !has_grpc(&python) {
        exec::run(Command::new("python3").args(["-m", "venv"]).arg(target.join("grpc")))?;
        exec::run(Command::new(&python).args(["-m", "pip", "install", "-q", "grpcio"]))?;
    }
    Ok(python)
}

/// Whether a test is to be skipped for want of grpcio. Says so; CI, which has it, fails instead.
fn without_grpc(test: &str) -> Result<Option<PathBuf>> {
    match python() {
        Ok(python) => Ok(Some(python)),
        Err(error) if std::env::var_os("CI").is_none() => {
            eprintln!("SKIPPED {test}: grpcio can't be installed: {error:#}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// curl's body, then its status and the version that it spoke.
fn curl(mesh: &Mesh, version: &str, arguments: &[&str]) -> Result<String> {
    let format = ["-w", "%{http_code} %{http_version}", version];
    mesh.curl("client", &[&format[..], arguments].concat())
}

#[test]
fn curl_and_h2load_reach_both_kinds_of_upstream_in_both_versions() -> Result<()> {
    if unprivileged("curl_and_h2load_reach_both_kinds_of_upstream_in_both_versions") {
        return Ok(());
    }
    let mesh = Mesh::up("h2_curl", web(), &[])?;
    for (service, port, version, spoken) in [
        ("h1", 80, "--http2-prior-knowledge", "2"),
        ("h1", 80, "--http1.1", "1.1"),
        ("h1", 82, "--http1.1", "1.1"),
        ("h2", 80, "--http2-prior-knowledge", "2"),
        ("h2", 80, "--http1.1", "1.1"),
        ("h2", 82, "--http2-prior-knowledge", "2"),
    ] {
        for family in 0..2 {
            if service == "h2" && family == 1 {
                // nghttpd's readiness is only waited for on IPv4.
                continue;
            }
            let url = format!("http://{}/", mesh.service(service, family, port)?);
            let text = curl(&mesh, version, &[&url])?;
            let expected = format!("200 {spoken}");
            ensure!(text.ends_with(&expected), "{service}:{port} {version}: {text}");
            let body =
                if service == "h1" { mesh.pod_ip("client", family)?.to_string() } else { "hello".to_owned() };
            ensure!(text.contains(&body), "{service}:{port} {version}: {text}");
        }
    }
    bodies(&mesh)?;
    for service in ["h1", "h2"] {
        let url = format!("http://{}/", mesh.service(service, 0, 80)?);
        let text = exec::stdout(
            mesh.lab.pod("client")?.command("h2load")?.args(["-n5000", "-c4", "-m32", "-t1", &url]),
        )?;
        ensure!(text.contains("5000 succeeded, 0 failed, 0 errored"), "{service}: {text}");
    }
    // Every request, in either version, was seen as HTTP and none as an opaque connection.
    ensure!(series(&mesh, "istio_tcp_connections_opened_total", &[])? == 0.0, "some traffic passed opaquely");
    ensure!(
        series(&mesh, "istio_requests_total", &["request_protocol=\"http\"", "response_code=\"200\""])?
            >= 10_000.0
    );
    Ok(())
}

/// Large bodies in both directions, in both versions.
fn bodies(mesh: &Mesh) -> Result<()> {
    let upload = mesh.lab.directory().join("upload");
    std::fs::File::create(&upload).and_then(|file| file.set_len(16 << 20)).context("a file to upload")?;
    let data = format!("@{}", upload.display());
    let base = mesh.service("h2", 0, 80)?;
    for version in ["--http2-prior-knowledge", "--http1.1"] {
        let measure = ["-o", "/dev/null", "-w", "%{http_code} %{size_download}", "--max-time", "60", version];
        let url = format!("http://{base}/big");
        let text = mesh.curl("client", &[&measure[..], &[&url]].concat())?;
        ensure!(text == format!("200 {}", 64 << 20), "{version}: a download gave {text}");
        let text = mesh.curl("client", &[&measure[..], &["--data-binary", &data, &url]].concat())?;
        ensure!(text == format!("200 {}", 16 << 20), "{version}: an echoed upload gave {text}");
    }
    Ok(())
}

/// The sum of a metric's series in node1 whose labels contain all of these.
fn series(mesh: &Mesh, name: &str, labels: &[&str]) -> Result<f64> {
    let text = mesh.lab.node("node1")?.in_netns(|| get(METRICS, "localhost", "/metrics", TIMEOUT))??.text();
    let found = text.lines().filter(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|label| line.contains(label))
    });
    Ok(found.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
}

fn echo(python: &Path) -> Topology {
    let server = |name: &str, node: &str| {
        let argv = [&*python.to_string_lossy(), PEER, "serve", "50051", name].map(str::to_owned);
        PodSpec::new(name, node)
            .label("app", "echo")
            .runs(Program::Server { argv: argv.to_vec(), port: 50051 })
    };
    Topology::with_nodes(2)
        .pod(PodSpec::new("client", "node1"))
        .pod(server("echo-a", "node1"))
        .pod(server("echo-b", "node2"))
        .service(ServiceSpec::new("echo").port("grpc", 80, 50051).undeclared_port(82, 50051))
}

fn check_calls(result: &Value) -> Result<()> {
    let text = |name: &str| result[name].as_str().unwrap_or_default();
    ensure!(text("unary").ends_with(":hello:5"), "{result}");
    ensure!(text("big").ends_with(&format!(":{}", 16 << 20)), "{result}");
    ensure!(text("client") == "1000000", "{result}");
    let numbers = result["server"].as_array().context("a list")?;
    ensure!(numbers.len() == 1000 && numbers[999] == "999", "{} messages came", numbers.len());
    let replies = result["both"].as_array().context("a list")?;
    ensure!(replies.len() == 20 && replies[19] == "re:19", "{replies:?}");
    ensure!(
        result["fail"] == serde_json::json!(["NOT_FOUND", "nothing at 100% here", "in the trailers"]),
        "{result}"
    );
    ensure!(result["unknown"][0] == "UNIMPLEMENTED", "{result}");
    ensure!(text("slow") == "DEADLINE_EXCEEDED", "{result}");
    ensure!(result["slow_seconds"].as_f64().is_some_and(|seconds| seconds < 2.0), "{result}");
    Ok(())
}

#[test]
fn grpc_passes_in_all_four_shapes_and_is_balanced_by_request() -> Result<()> {
    const NAME: &str = "grpc_passes_in_all_four_shapes_and_is_balanced_by_request";
    if unprivileged(NAME) {
        return Ok(());
    }
    let Some(python) = without_grpc(NAME)? else { return Ok(()) };
    let mesh = Mesh::up("h2_grpc", echo(&python), &[("edge.yaml", &EDGE.replace("BACKEND", "echo"))])?;
    let at_gateway = |arguments: &[&str]| {
        exec::stdout(mesh.lab.node("node1")?.command(&python)?.arg(PEER).args(arguments))
    };
    let captured = |arguments: &[&str]| {
        exec::stdout(mesh.lab.pod("client")?.command(&python)?.arg(PEER).args(arguments))
    };
    let listening = || {
        mesh.lab.node("node1").is_ok_and(|node| {
            node.in_netns(|| std::net::TcpStream::connect(("127.0.0.1", 8888)).is_ok()).unwrap_or(false)
        })
    };
    wait_for("the Gateway's listener", LIMIT, listening)?;
    for port in [80, 82] {
        let target = mesh.service("echo", 0, port)?.to_string();
        check_calls(&serde_json::from_str(&captured(&["call", &target])?)?).context(target)?;
    }
    check_calls(&serde_json::from_str(&at_gateway(&["call", "127.0.0.1:8888"])?)?).context("the gateway")?;
    let target = mesh.service("echo", 0, 80)?.to_string();
    for names in [captured(&["many", &target, "40"])?, at_gateway(&["many", "127.0.0.1:8888", "40"])?] {
        let names: Vec<String> = serde_json::from_str(&names)?;
        let at_a = names.iter().filter(|name| *name == "echo-a").count();
        ensure!((5..=35).contains(&at_a), "{at_a} of 40 requests of one connection went to echo-a");
    }
    for (status, least) in [("0", 80.0), ("5", 3.0), ("12", 3.0)] {
        let labels = ["request_protocol=\"grpc\"".to_owned(), format!("grpc_response_status=\"{status}\"")];
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let count = || series(&mesh, "istio_requests_total", &labels);
        wait_for("the records", LIMIT, || count().is_ok_and(|count| count >= least))
            .with_context(|| format!("status {status}: {:?} counted", count()))?;
    }
    Ok(())
}
