//! What balancing at `connect()` needs of a kernel: the programs load, attach, lead and tell, and go with their agent. Small
//! enough for an emulated machine: `cargo xtask vm --test connect_kernel`.

mod common;

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use common::{LIMIT, Mesh};
use lab::{AgentOptions, Lab, PodSpec, Program, ServiceSpec, Topology, exec, unprivileged, wait_for};
use serde_json::Value;

const NODE: &str = "node1";
const BALANCED: &str = "sluice_connect_decisions_total{reason=\"balanced\"}";
/// Either backend answers at random; so many requests miss one of them once in 2^19 runs.
const REQUESTS_MAX: usize = 20;

#[test]
fn loads_leads_tells_and_goes() -> Result<()> {
    if unprivileged("loads_leads_tells_and_goes") {
        return Ok(());
    }
    let backend =
        |name: &str| PodSpec::new(name, NODE).label("app", "web").runs(Program::Http { port: 8080 });
    let topology = Topology::with_nodes(1)
        .pod(PodSpec::new("client", NODE))
        .pod(backend("one"))
        .pod(backend("two"))
        .service(ServiceSpec::new("web").port("tcp", 81, 8080));
    let lab = Lab::for_test("connect_kernel", topology)?;
    let config = lab.directory().join("config");
    lab.write_documents(&config)?;
    let mut mesh = Mesh { agents: Vec::new(), lab, config };
    let cgroup = mesh.lab.node(NODE)?.cgroup().path().display().to_string();
    let options = AgentOptions::new(&mesh.config)?.with(["--cgroup", &cgroup]);
    preflight(&mesh, &options, &cgroup)?;

    let agent = mesh.lab.node(NODE)?.start_agent(&options)?;
    mesh.agents.push(agent);
    for family in 0..2 {
        let own = mesh.pod_ip("client", family)?.to_string();
        let before = mesh.metric(NODE, BALANCED)?;
        let (mut answered, mut sent) = (BTreeSet::new(), 0);
        while answered.len() < 2 && sent < REQUESTS_MAX {
            let (peer, pod, saw) = ask(&mesh, family)?;
            ensure!(
                peer == mesh.service("web", family, 81)?.ip().to_string(),
                "the peer is said to be {peer}"
            );
            ensure!(saw == own, "the backend saw {saw}, not {own}");
            answered.insert(pod);
            sent += 1;
        }
        ensure!(answered.len() == 2, "family {family}: only {answered:?} answered");
        let grown = mesh.metric(NODE, BALANCED)? - before;
        ensure!(grown >= f64::from(u32::try_from(sent)?), "{grown} of {sent} were balanced");
    }

    // Eight that balance, and the one that tells of sockets.
    ensure!(attached(&cgroup)? == 9, "{} programs are attached", attached(&cgroup)?);
    mesh.agents.remove(0).kill9()?;
    wait_for("the programs to go with their agent", LIMIT, || {
        attached(&cgroup).is_ok_and(|count| count == 0)
    })?;
    ask(&mesh, 0).map(drop)
}

/// `sluice check` finds that the kernel takes the programs.
fn preflight(mesh: &Mesh, options: &AgentOptions, cgroup: &str) -> Result<()> {
    let mut check = mesh.lab.node(NODE)?.command(&options.binary)?;
    check.args(["check", "-o", "json", "--pod-interfaces", "pod-*", "--cgroup", cgroup]);
    let checks: Value = serde_json::from_str(&exec::stdout(&mut check)?).context("the answer of check")?;
    let checks = checks.as_array().context("check answers with a list")?;
    let found = checks.iter().find(|check| check["name"] == "balancing").context("no check of balancing")?;
    ensure!(found["outcome"] == "ok", "{found}");
    Ok(())
}

/// Whom the client's socket calls its peer, which pod answered, and whom that saw.
fn ask(mesh: &Mesh, family: usize) -> Result<(String, String, String)> {
    let url = format!("http://{}/", mesh.service("web", family, 81)?);
    let said = mesh.curl("client", &["-g", "-w", "%{remote_ip}", &url])?;
    let words: Vec<&str> = said.split_whitespace().collect();
    let [_, pod, saw, _, peer] = words[..] else { anyhow::bail!("the client said {said:?}") };
    Ok((peer.to_owned(), pod.to_owned(), saw.to_owned()))
}

/// How many programs are attached to the cgroup.
fn attached(cgroup: &str) -> Result<usize> {
    let mut bpftool = exec::command("bpftool", ["-j", "cgroup", "show", cgroup]);
    let said = exec::stdout(&mut bpftool)?;
    if said.trim().is_empty() {
        return Ok(0);
    }
    let said: Value = serde_json::from_str(&said).context("bpftool cgroup show")?;
    Ok(said.as_array().map_or(0, Vec::len))
}
