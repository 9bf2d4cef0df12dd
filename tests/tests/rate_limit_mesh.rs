//! Limits of pods' requests, through capture: whom they hold for.

mod common;

use anyhow::{Result, ensure};
use common::{LIMIT, Mesh};
use lab::{PodSpec, Program, ServiceSpec, Topology, exec, unprivileged, wait_for};
use serde_json::Value;

const PORT: u16 = 80;
const TARGET: u16 = 8080;

fn topology() -> Topology {
    let client = |name: &str, namespace: &str| PodSpec {
        namespace: namespace.to_owned(),
        ..PodSpec::new(name, "node1")
    };
    Topology::with_nodes(1)
        .pod(client("friend", "good"))
        .pod(client("foe", "bad"))
        .pod(PodSpec::new("web-1", "node1").label("app", "web").runs(Program::Http { port: TARGET }))
        .service(ServiceSpec::new("web").port("http", PORT, TARGET))
}

/// A RateLimit; `selects` is what it is about.
fn document(selects: &str, limits: &str) -> String {
    format!(
        "apiVersion: sluice.dev/v1alpha1\nkind: RateLimit\nmetadata: {{name: calm, namespace: default}}\nspec:\n\
         {selects}  limits: {limits}\n"
    )
}

const ON_SERVICE: &str = "  targetRefs: [{kind: Service, name: web}]\n";

/// How many of so many requests are answered; all others must get the limit's answer.
fn admitted(mesh: &Mesh, pod: &str, times: usize) -> Result<usize> {
    let mut count = 0;
    for _ in 0..times {
        match mesh.get(pod, mesh.service("web", 0, PORT)?, "web", "/x")?.status {
            200 => count += 1,
            429 => {}
            status => anyhow::bail!("{pod}: {status}"),
        }
    }
    Ok(count)
}

fn limits(mesh: &Mesh, node: &str) -> Result<Value> {
    Ok(mesh.verb(node, "limits")?["limits"].clone())
}

fn why(mesh: &Mesh, node: &str, words: &[&str]) -> Result<String> {
    exec::stdout(mesh.lab.node(node)?.command(lab::agent::built_binary()?)?.arg("why").args(words))
}

#[test]
fn proven_senders_are_exempt_by_name() -> Result<()> {
    if unprivileged("proven_senders_are_exempt_by_name") {
        return Ok(());
    }
    let of = |principal: &str| {
        let limit =
            format!("[{{name: two, window: {{requests: 2, per: 15m}}, exemptPrincipals: ['{principal}']}}]");
        document(ON_SERVICE, &limit)
    };
    let mesh =
        Mesh::up("limit_exempt", topology(), &[("limit.yaml", &of("cluster.local/ns/good/sa/default"))])?;
    ensure!(admitted(&mesh, "foe", 5)? == 2, "who is not named");
    ensure!(admitted(&mesh, "friend", 9)? == 9, "who is");
    let shown = limits(&mesh, "node1")?;
    ensure!(shown[0]["admitted"] == 2 && shown[0]["refused"] == 3, "it is not counted: {shown}");
    ensure!(shown[0]["exempt"][0] == "cluster.local/ns/good/sa/default", "{shown}");
    let said = why(&mesh, "node1", &["bad/foe", &mesh.service("web", 0, PORT)?.to_string()])?;
    ensure!(said.contains("but for cluster.local/ns/good/sa/default"), "{said}");
    // Another name takes it back, and what was counted goes on counting.
    mesh.write("limit.yaml", &of("*/ns/bad/sa/default"))?;
    wait_for("the other's exemption", LIMIT, || admitted(&mesh, "foe", 1).is_ok_and(|count| count == 1))?;
    ensure!(admitted(&mesh, "friend", 3)? == 0, "two were let through before");
    Ok(())
}

#[test]
fn what_pods_and_nodes_send_is_limited() -> Result<()> {
    if unprivileged("what_pods_and_nodes_send_is_limited") {
        return Ok(());
    }
    let sent = |namespace: &str, labels: &str| {
        let selects = format!("  direction: Outbound\n  selector: {{matchLabels: {labels}}}\n");
        let text = document(
            &selects,
            "[{name: each, key: [{type: SourceAddress}], window: {requests: 3, per: 15m}}]",
        );
        text.replace("namespace: default", &format!("namespace: {namespace}"))
    };
    let mesh = Mesh::up("limit_sent", topology(), &[("limit.yaml", &sent("good", "{}"))])?;
    ensure!(admitted(&mesh, "friend", 5)? == 3, "the pod that is selected");
    ensure!(admitted(&mesh, "foe", 5)? == 5, "another namespace's");
    let shown = limits(&mesh, "node1")?;
    ensure!(shown[0]["targets"][0] == "sent by pods good/*", "{shown}");
    ensure!(shown[0]["admitted"] == 3 && shown[0]["refused"] == 2, "{shown}");
    let to = mesh.service("web", 0, PORT)?.to_string();
    let named = "good/calm each (3 in any 900s, by source address)";
    let said = why(&mesh, "node1", &["good/friend", &to])?;
    ensure!(said.contains(named), "{said}");
    let said = why(&mesh, "node1", &["bad/foe", &to])?;
    ensure!(!said.contains("calm"), "{said}");

    // Labels that no pod has: nobody is held to it.
    let version = mesh.version("node1")?;
    mesh.write("limit.yaml", &sent("good", "{app: nobody}"))?;
    mesh.wait_version_above("node1", version)?;
    ensure!(admitted(&mesh, "friend", 4)? == 4, "no pod has the label");

    // Everything on the node, and on another.
    let nodes = |name: &str| {
        let selects = format!("  direction: Outbound\n  targetRefs: [{{kind: Node, name: '{name}'}}]\n");
        let text = document(&selects, "[{name: all, window: {requests: 4, per: 15m}}]");
        text.replace("namespace: default", "namespace: istio-system")
    };
    let version = mesh.version("node1")?;
    mesh.write("limit.yaml", &nodes("node1"))?;
    mesh.wait_version_above("node1", version)?;
    ensure!(admitted(&mesh, "friend", 3)? + admitted(&mesh, "foe", 3)? == 4, "both together");
    mesh.write("limit.yaml", &nodes("node9"))?;
    wait_for("another node's limit", LIMIT, || admitted(&mesh, "foe", 1).is_ok_and(|count| count == 1))?;
    ensure!(admitted(&mesh, "foe", 6)? == 6, "it is none of this node's");
    Ok(())
}
