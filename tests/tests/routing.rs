//! Routing by the user's documents, seen from a pod.

mod common;

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use common::{LIMIT, Mesh, check_canary};
use lab::http::{Connection, Response};
use lab::load::{Load, Plan};
use lab::{PodSpec, Program, ServiceSpec, Topology, unprivileged, wait_for};

const CANARY: &str = include_str!("../../examples/order-service.yaml");

fn shop() -> Topology {
    let backend = |name: &str, app: &str, version: &str, node: &str| {
        PodSpec::new(name, node)
            .label("app", app)
            .label("version", version)
            .runs(Program::Http { port: 8080 })
    };
    Topology::with_nodes(2)
        .pod(PodSpec::new("client", "node1").label("app", "client"))
        .pod(backend("order-v1-a", "order-service", "v1", "node1"))
        .pod(backend("order-v1-b", "order-service", "v1", "node2"))
        .pod(backend("order-v2", "order-service", "v2", "node2"))
        .pod(backend("monolith", "monolith", "v1", "node2"))
        .pod(backend("product", "product-service", "v1", "node1"))
        .service(ServiceSpec::new("order-service").port("http", 80, 8080))
        .service(ServiceSpec::new("monolith").port("http", 8080, 8080))
        .service(ServiceSpec::new("product-service").port("http", 3001, 8080))
}

fn version(response: &Response) -> String {
    response.header("x-version").unwrap_or_default().to_owned()
}

#[test]
fn the_canary_takes_a_tenth_evenly_and_beta_users_always_get_v2() -> Result<()> {
    if unprivileged("the_canary_takes_a_tenth_evenly_and_beta_users_always_get_v2") {
        return Ok(());
    }
    let mesh = Mesh::up("canary", shop(), &[("order.yaml", CANARY)])?;
    for family in 0..2 {
        let to = mesh.service("order-service", family, 80)?;
        let pod = mesh.lab.pod("client")?;
        let mut versions = Vec::new();
        let mut pods = std::collections::BTreeSet::new();
        for _ in 0..1000 {
            let response = mesh.get("client", to, "order-service", "/")?;
            let text = response.text();
            let peer = text.split_whitespace().nth(2).unwrap_or_default();
            ensure!(peer == mesh.pod_ip("client", family)?.to_string(), "the peer was {peer}");
            pods.insert(response.header("x-pod").unwrap_or_default().to_owned());
            versions.push(version(&response));
        }
        check_canary(&versions)?;
        ensure!(pods.len() == 3, "only {pods:?} answered");
        let beta = pod.in_netns(|| {
            let mut connection = Connection::open(to, common::TIMEOUT)?;
            (0..50)
                .map(|_| {
                    connection.get("order-service", "/", &[("X-User-Group", "beta")]).map(|r| version(&r))
                })
                .collect::<std::io::Result<Vec<_>>>()
        })??;
        ensure!(beta.iter().all(|version| version == "v2"), "a beta user saw {beta:?}");
    }
    Ok(())
}

fn monolith(rules: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: monolith\nspec:\n  hosts: [monolith]\n  http:\n{rules}"
    )
}

const LEGACY: &str = "  - route:\n    - destination:\n        host: monolith\n";
const PRODUCTS: &str = "  - match:\n    - uri:\n        prefix: /api/products/\n    route:\n    - destination:\n        host: product-service\n        port:\n          number: 3001\n";

#[test]
fn edits_move_live_traffic_and_lose_none_of_it() -> Result<()> {
    if unprivileged("edits_move_live_traffic_and_lose_none_of_it") {
        return Ok(());
    }
    let mesh = Mesh::up("edits", shop(), &[("monolith.yaml", &monolith(LEGACY))])?;
    let plan = Plan {
        address: mesh.service("monolith", 0, 8080)?,
        host: "monolith:8080".to_owned(),
        paths: vec!["/api/products/1".to_owned(), "/api/orders/1".to_owned()],
        rate: 200,
    };
    let load = Load::start(&mesh.lab.pod("client")?.netns(), &plan)?;
    load.wait_requests(100, LIMIT)?;
    for (rules, products) in [
        (format!("{PRODUCTS}{LEGACY}"), "product"),
        (LEGACY.to_owned(), "monolith"),
        (format!("{PRODUCTS}{LEGACY}"), "product"),
    ] {
        let before = mesh.version("node1")?;
        mesh.write("monolith.yaml", &monolith(&rules))?;
        mesh.wait_version_above("node1", before)?;
        let since = Instant::now();
        load.wait_requests(100, LIMIT)?;
        let seen = load.so_far();
        let pods = seen.pods("/api/products/1", since);
        ensure!(pods.keys().collect::<Vec<_>>() == [products], "products were answered by {pods:?}");
        let pods = seen.pods("/api/orders/1", since);
        ensure!(pods.keys().collect::<Vec<_>>() == ["monolith"], "orders were answered by {pods:?}");
    }
    let report = load.stop()?;
    ensure!(report.failures().next().is_none(), "failed: {:?}", report.failure_kinds());
    Ok(())
}

#[test]
fn a_broken_edit_changes_nothing_and_is_reported_with_its_line() -> Result<()> {
    if unprivileged("a_broken_edit_changes_nothing_and_is_reported_with_its_line") {
        return Ok(());
    }
    let mesh = Mesh::up("broken", shop(), &[("monolith.yaml", &monolith(&format!("{PRODUCTS}{LEGACY}")))])?;
    let to = mesh.service("monolith", 0, 8080)?;
    let product = || {
        mesh.get("client", to, "monolith", "/api/products/1").map(|r| r.header("x-pod") == Some("product"))
    };
    ensure!(product()?, "the route is not there to begin with");
    let broken = [
        ("unknown field", monolith(&PRODUCTS.replace("    route:", "    rout:")), Some(11)),
        (
            "no YAML",
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: [\n".to_owned(),
            None,
        ),
        ("cut short", monolith(PRODUCTS)[..60].to_owned(), None),
    ];
    for (what, text, line) in broken {
        mesh.write("monolith.yaml", &text)?;
        let reported =
            || mesh.verb("node1", "status").is_ok_and(|status| report_of(&status, "monolith.yaml").is_some());
        wait_for(&format!("the report of {what}"), LIMIT, reported)?;
        let status = mesh.verb("node1", "status")?;
        let report = report_of(&status, "monolith.yaml").context("reported")?;
        if let Some(line) = line {
            ensure!(report.contains(&format!("\"line\":{line}")), "{what}: no line {line} in {report}");
        }
        for _ in 0..8 {
            ensure!(product()?, "{what}: the last good route is gone");
        }
        mesh.write("monolith.yaml", &monolith(&format!("{PRODUCTS}{LEGACY}")))?;
        let clean =
            || mesh.verb("node1", "status").is_ok_and(|status| report_of(&status, "monolith.yaml").is_none());
        wait_for("the report to go", LIMIT, clean)?;
    }
    ensure!(mesh.agents[0].log().contains("monolith.yaml"), "the log does not name the file");
    Ok(())
}

/// What a status says against a file: its own errors and those of its objects, as text.
fn report_of(status: &serde_json::Value, file: &str) -> Option<String> {
    let config = &status["config"];
    let owners = ["files", "objects"].iter().filter_map(|list| config[list].as_array()).flatten();
    let wrong = owners
        .filter(|owner| owner["file"].as_str().is_some_and(|path| path.ends_with(file)))
        .filter(|owner| owner["messages"].to_string().contains("\"error\""));
    let text: Vec<String> = wrong.map(ToString::to_string).collect();
    (!text.is_empty()).then(|| text.join("\n"))
}
