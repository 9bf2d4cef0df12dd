//! Gateways as workloads: what comes through one reaches STRICT pods of its own node and of others, policies know it by its own
//! identity, and nobody else gets by that way.

mod common;

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use common::{LIMIT, Mesh, TIMEOUT};
use lab::ethernet::Wire;
use lab::http::{Response, get};
use lab::{PodSpec, Program, ServiceSpec, Topology, unprivileged, wait_for};

const EDGE: u16 = 8888;
/// A port that two Gateways share.
const SHARED: u16 = 8889;
const MARKER: &[u8] = b"PLAINTEXT-MARKER";
const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: istio-system}\nspec: {mtls: {mode: STRICT}}\n";

/// `far` is of another node than the Gateway that is asked, `near` of the same.
fn topology() -> Topology {
    let meshed = |name: &str, node: &str| {
        let pod = PodSpec::new(name, node).label("app", name).label("networking.istio.io/tunnel", "http");
        pod.runs(Program::Http { port: 8080 })
    };
    Topology::with_nodes(2)
        .pod(meshed("near", "node1"))
        .pod(meshed("far", "node2"))
        .service(ServiceSpec::new("near").port("http", 80, 8080))
        .service(ServiceSpec::new("far").port("http", 80, 8080))
}

fn gateways() -> String {
    let gateway = |name: &str, listeners: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: infra}}\n\
             spec:\n  gatewayClassName: sluice\n  listeners: [{listeners}]\n---\n"
        )
    };
    let listener = |name: &str, port: u16, host: &str| {
        format!(
            "{{name: {name}, port: {port}, protocol: HTTP{host}, allowedRoutes: {{namespaces: {{from: All}}}}}}"
        )
    };
    let route = |host: &str, gateway: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {host}-{gateway}, namespace: default}}\n\
             spec:\n  parentRefs: [{{name: {gateway}, namespace: infra}}]\n  hostnames: [{host}.test]\n  \
             rules: [{{backendRefs: [{{name: {host}, port: 80}}]}}]\n---\n"
        )
    };
    let edge = [listener("http", EDGE, ""), listener("shared", SHARED, ", hostname: far.test")].join(", ");
    gateway("edge", &edge)
        + &gateway("other", &listener("shared", SHARED, ", hostname: near.test"))
        + &route("near", "edge")
        + &route("far", "edge")
        + &route("near", "other")
}

fn up(name: &str, policies: &str) -> Result<Mesh> {
    Mesh::secured(name, topology(), &[("gateways.yaml", &gateways()), ("policies.yaml", policies)], &[])
}

/// What the Gateway of node1 answers to a client beyond the cluster.
fn asked(mesh: &Mesh, family: usize, port: u16, host: &str, path: &str) -> Result<Response> {
    let to = SocketAddr::new(mesh.lab.node("node1")?.address().both()[family], port);
    Ok(mesh.lab.underlay().enter(|| get(to, &format!("{host}.test"), path, TIMEOUT))??)
}

#[test]
fn what_comes_through_a_gateway_reaches_strict_pods_by_mutual_tls() -> Result<()> {
    if unprivileged("what_comes_through_a_gateway_reaches_strict_pods_by_mutual_tls") {
        return Ok(());
    }
    let mesh = up("gateway_mesh", STRICT)?;
    let wire = mesh.lab.node("node2")?.in_netns(|| Wire::open("eth0"))??;
    for family in 0..2 {
        for pod in ["near", "far"] {
            let answer = asked(&mesh, family, EDGE, pod, "/PLAINTEXT-MARKER")?;
            ensure!(answer.status == 200, "{pod}, family {family}: {} {}", answer.status, answer.text());
            ensure!(answer.text().contains(pod), "{pod}: {}", answer.text());
        }
    }
    let (frames, holding) = wire.holding(MARKER)?;
    ensure!(frames > 0 && holding == 0, "{holding} of {frames} frames between the nodes hold the marker");
    for (node, role) in [("node1", "client"), ("node2", "server")] {
        let series = format!("sluice_tls_handshakes_total{{outcome=\"ok\",role=\"{role}\"}}");
        let tunnels = mesh.metric(node, &series)?;
        ensure!(tunnels >= 1.0, "{tunnels} handshakes as {role} on {node}");
    }
    let held = mesh.verb("node1", "status")?["certificates"].to_string();
    ensure!(held.contains("spiffe://mesh.test/ns/infra/sa/edge-sluice"), "{held}");

    // Nobody may say that it is a Gateway: the node's own processes come in plaintext, and are refused.
    let far = SocketAddr::new(mesh.pod_ip("far", 0)?, 8080);
    let plain =
        mesh.lab.node("node1")?.in_netns(|| get(far, "far", "/", std::time::Duration::from_secs(1)))?;
    ensure!(plain.is_err(), "a STRICT pod took plaintext: {plain:?}");
    let tunnel = SocketAddr::new(mesh.pod_ip("far", 0)?, 15008);
    let told = mesh.lab.node("node1")?.in_netns(|| get(tunnel, "far", "/", TIMEOUT))?;
    ensure!(told.is_err(), "the tunnels' port answered plaintext: {told:?}");
    wait_for("the refusal of plaintext", LIMIT, || {
        let series = "sluice_tls_handshakes_total{outcome=\"not_tls\",role=\"server\"}";
        mesh.metric("node2", series).is_ok_and(|count| count >= 1.0)
    })?;

    // A port of two Gateways speaks as neither.
    for pod in ["near", "far"] {
        let answer = asked(&mesh, 0, SHARED, pod, "/")?;
        ensure!(answer.status == 403, "{pod} by a shared port: {} {}", answer.status, answer.text());
    }
    Ok(())
}

#[test]
fn policies_know_a_gateway_by_its_own_identity() -> Result<()> {
    if unprivileged("policies_know_a_gateway_by_its_own_identity") {
        return Ok(());
    }
    let policy = |pod: &str, from: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {pod}}}\nspec:\n  \
             selector: {{matchLabels: {{app: {pod}}}}}\n  rules:\n  - from: [{{source: {{{from}}}}}]\n    \
             to: [{{operation: {{paths: [/ok]}}}}]\n---\n"
        )
    };
    let edge = "principals: [mesh.test/ns/infra/sa/edge-sluice]";
    let mesh = up("gateway_known", &(policy("near", edge) + &policy("far", edge)))?;
    for pod in ["near", "far"] {
        for (path, expected) in [("/ok", 200), ("/no", 403)] {
            let answer = asked(&mesh, 0, EDGE, pod, path)?;
            ensure!(answer.status == expected, "{pod}{path}: {} {}", answer.status, answer.text());
        }
    }
    for (from, expected) in [
        ("namespaces: [infra]", 200),
        ("namespaces: [shop]", 403),
        ("serviceAccounts: [infra/edge-sluice]", 200),
        ("principals: [mesh.test/ns/infra/sa/other-sluice]", 403),
    ] {
        mesh.write("policies.yaml", &(policy("near", from) + &policy("far", from)))?;
        for pod in ["near", "far"] {
            let mut last = None;
            wait_for(&format!("{from} to hold for {pod}"), LIMIT, || {
                last = asked(&mesh, 0, EDGE, pod, "/ok").ok().map(|answer| answer.status);
                last == Some(expected)
            })
            .with_context(|| format!("{pod} answered {last:?} last"))?;
        }
    }
    Ok(())
}

#[test]
fn where_no_gateway_is_known_nobody_comes_as_one() -> Result<()> {
    if unprivileged("where_no_gateway_is_known_nobody_comes_as_one") {
        return Ok(());
    }
    let mesh = up("gateway_gone", STRICT)?;
    ensure!(asked(&mesh, 0, EDGE, "far", "/")?.status == 200, "it did not begin well");
    let node: IpAddr = mesh.lab.node("node1")?.address().both()[0];
    mesh.write("gateways.yaml", "# nothing is here\n")?;
    wait_for("the Gateway to be gone", LIMIT, || {
        let to = SocketAddr::new(node, EDGE);
        let gone = mesh.lab.underlay().enter(|| get(to, "far.test", "/", TIMEOUT));
        matches!(gone, Ok(Err(_)))
    })?;
    let tunnel = SocketAddr::new(mesh.pod_ip("far", 0)?, 15008);
    let stranger = mesh.lab.node("node1")?;
    let mut answered = 0;
    // The other node may learn a little later that there is no Gateway.
    wait_for("the refusal of a stranger", LIMIT, || {
        let told = stranger.in_netns(|| get(tunnel, "far", "/", TIMEOUT));
        answered += usize::from(matches!(told, Ok(Ok(_))));
        let series = "sluice_tls_handshakes_total{outcome=\"unknown_peer\",role=\"server\"}";
        mesh.metric("node2", series).is_ok_and(|count| count >= 1.0)
    })?;
    ensure!(answered == 0, "the tunnels' port answered {answered} times");
    Ok(())
}
