//! How full the kernel's maps are, as the metrics tell: every map that the agent fills, and what found no room.

mod common;

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use common::{LIMIT, Mesh};
use lab::{AgentOptions, Lab, PodSpec, ServiceSpec, Topology, unprivileged, wait_for};

const NODE: &str = "node1";
const ENTRIES: &str = "sluice_bpf_map_entries";
const CAPACITY: &str = "sluice_bpf_map_capacity";
const LEFT_OUT: &str = "sluice_bpf_map_left_out";
/// Two rules of which one names a range: sources and verdicts are written for it.
const POLICY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec:\n  \
                      selector: {matchLabels: {app: echo}}\n  action: DENY\n  \
                      rules: [{from: [{source: {ipBlocks: [192.0.2.0/24]}}]}]\n";

/// One series of a node, by map.
fn by_map(mesh: &Mesh, series: &str) -> Result<BTreeMap<String, usize>> {
    let lines = mesh.metrics(NODE, &format!("{series}{{"))?;
    let read = |line: &String| -> Option<(String, usize)> {
        let (labels, value) = line.rsplit_once(' ')?;
        let map = labels.split_once("map=\"")?.1.split_once('"')?.0;
        Some((map.to_owned(), value.parse().ok()?))
    };
    lines.iter().map(|line| read(line).with_context(|| line.clone())).collect()
}

#[test]
fn every_map_that_the_agent_fills_tells_how_full_it_is() -> Result<()> {
    if unprivileged("every_map_that_the_agent_fills_tells_how_full_it_is") {
        return Ok(());
    }
    let topology = Topology::with_nodes(1)
        .pod(PodSpec::new("client", NODE))
        .pod(PodSpec::new("backend", NODE).label("app", "echo"))
        .service(ServiceSpec::new("echo").port("tcp", 81, 7000).port("http", 80, 7001));
    let lab = Lab::for_test("map_use", topology)?;
    let config = lab.directory().join("config");
    lab.write_documents(&config)?;
    let mut mesh = Mesh { agents: Vec::new(), lab, config };
    mesh.write("policy.yaml", POLICY)?;
    let node = mesh.lab.node(NODE)?;
    let cgroup = node.cgroup().path().display().to_string();
    let arguments = ["--cgroup", &cgroup, "--acceleration", "on", "--destinations-max", "3"];
    let agent = node.start_agent(&AgentOptions::new(&mesh.config)?.with(arguments))?;
    mesh.agents.push(agent);

    // Two ports in two families, and one of them finds no room.
    wait_for("the destinations to be told", LIMIT, || {
        by_map(&mesh, ENTRIES).is_ok_and(|entries| entries.get("DESTINATIONS") == Some(&3))
    })?;
    // Namespaces of pods are looked for after that.
    wait_for("acceleration's pods to be told", LIMIT, || {
        by_map(&mesh, ENTRIES).is_ok_and(|entries| entries.get("ACCELERATION_PODS") == Some(&4))
    })?;
    let (entries, capacity, left_out) =
        (by_map(&mesh, ENTRIES)?, by_map(&mesh, CAPACITY)?, by_map(&mesh, LEFT_OUT)?);
    for (map, room, held) in [
        ("DESTINATIONS", 3, 3..=3),
        ("LOCAL_ADDRESSES", 16_384, 1..=64),
        ("POLICY_PODS", 65_536, 2..=2),
        ("POLICY_SOURCES", 131_072, 1..=64),
        ("POLICY_RULES", 131_072, 1..=64),
        ("FRONTENDS", 65_536, 4..=4),
        ("SLOTS", 262_144, 1..=262_144),
        ("MEMBERS", 65_536, 0..=0),
        ("ACCELERATION_PODS", 16_384, 4..=4),
    ] {
        ensure!(capacity.get(map) == Some(&room), "{map} has room for {:?}", capacity.get(map));
        let entries = entries.get(map).with_context(|| format!("{map} has no entries"))?;
        ensure!(held.contains(entries), "{map} holds {entries}");
        let expected = usize::from(map == "DESTINATIONS");
        ensure!(left_out.get(map) == Some(&expected), "{map} left out {:?}", left_out.get(map));
    }

    std::fs::remove_file(mesh.config.join("policy.yaml"))?;
    wait_for("the policy's entries to go", LIMIT, || {
        by_map(&mesh, ENTRIES).is_ok_and(|entries| {
            ["POLICY_PODS", "POLICY_SOURCES", "POLICY_RULES"].iter().all(|map| entries.get(*map) == Some(&0))
        })
    })
}
