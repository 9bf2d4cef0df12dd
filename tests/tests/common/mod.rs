//! What the agent's tests share: a lab with an agent on every node, and the words to ask them.
#![allow(dead_code, reason = "every test binary uses its own part of this")]

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::agent::{Agent, AgentOptions, METRICS};
use lab::documents::replace_file;
use lab::emulated::patience;
use lab::http::{Response, get};
use lab::{Lab, Topology, exec, wait_for};
use serde_json::Value;

pub const TIMEOUT: Duration = Duration::from_secs(5);
pub const LIMIT: Duration = Duration::from_secs(20);

/// A lab whose nodes all run the agent.
pub struct Mesh {
    // Agents first: they stop before the lab goes.
    pub agents: Vec<Agent>,
    pub lab: Lab,
    pub config: PathBuf,
}

impl Mesh {
    /// A lab with its documents and `extra` ones (name, text), and without agents.
    fn laid(name: &str, topology: Topology, extra: &[(&str, &str)]) -> Result<Self> {
        let lab = Lab::for_test(name, topology)?;
        let config = lab.directory().join("config");
        lab.write_documents(&config)?;
        for (file, text) in extra {
            replace_file(&config.join(file), text)?;
        }
        Ok(Self { agents: Vec::new(), lab, config })
    }

    /// A lab with an agent on one node that accelerates within the node's cgroup.
    pub fn accelerated(name: &str, topology: Topology, node: &str) -> Result<Self> {
        let mut mesh = Self::laid(name, topology, &[])?;
        let node = mesh.lab.node(node)?;
        let cgroup = node.cgroup().path().display().to_string();
        let options = AgentOptions::new(&mesh.config)?.with(["--cgroup", &cgroup, "--acceleration", "on"]);
        let agent = node.start_agent(&options)?;
        mesh.agents.push(agent);
        Ok(mesh)
    }

    /// Brings the lab up, writes its documents and `extra` ones (name, text), and starts an agent on every node.
    pub fn up(name: &str, topology: Topology, extra: &[(&str, &str)]) -> Result<Self> {
        let mut mesh = Self::laid(name, topology, extra)?;
        for node in mesh.lab.topology().nodes.clone() {
            let agent = mesh.start_agent(&node)?;
            mesh.agents.push(agent);
        }
        Ok(mesh)
    }

    /// A lab with `extra` documents (name, text), a CA in its directory `ca`, and an agent with certificates, whose files are
    /// in `ca-NODE`, on its first two nodes; `arguments` are further ones of both.
    pub fn secured(
        name: &str,
        topology: Topology,
        extra: &[(&str, &str)],
        arguments: &[&str],
    ) -> Result<Self> {
        let mut mesh = Self::laid(name, topology, extra)?;
        mesh.ca(&["init", "--dir", "ca", "--trust-domain", "mesh.test"])?;
        for node in ["node1", "node2"] {
            mesh.ca(&["node", "--dir", "ca", "--name", node, "--out", &format!("ca-{node}")])?;
            let agent = mesh.start_secured(node, arguments)?;
            mesh.agents.push(agent);
        }
        Ok(mesh)
    }

    /// `sluice ca` in the lab's directory.
    pub fn ca(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new(lab::agent::built_binary()?);
        exec::stdout(command.arg("ca").args(words).current_dir(self.lab.directory()))
    }

    /// An agent with the node's certificates.
    pub fn start_secured(&self, node: &str, arguments: &[&str]) -> Result<Agent> {
        let files = self.lab.directory().join(format!("ca-{node}")).display().to_string();
        let options = AgentOptions::new(&self.config)?.with(["--ca", &files]).with(arguments.iter().copied());
        self.lab.node(node)?.start_agent(&options)
    }

    pub fn start_agent(&self, node: &str) -> Result<Agent> {
        self.lab.node(node)?.start_agent(&AgentOptions::new(&self.config)?)
    }

    /// The service's address in family 0 (IPv4) or 1 (IPv6).
    pub fn service(&self, name: &str, family: usize, port: u16) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.lab.cluster_ip(name)?.both()[family], port))
    }

    /// The pod's address in a family.
    pub fn pod_ip(&self, name: &str, family: usize) -> Result<IpAddr> {
        Ok(self.lab.pod(name)?.address().both()[family])
    }

    /// A GET from a pod over a connection of its own.
    pub fn get(&self, pod: &str, to: SocketAddr, host: &str, path: &str) -> Result<Response> {
        Ok(self.lab.pod(pod)?.in_netns(|| get(to, host, path, TIMEOUT))??)
    }

    /// curl from a pod.
    pub fn curl(&self, pod: &str, arguments: &[&str]) -> Result<String> {
        let most = patience(TIMEOUT).as_secs().to_string();
        exec::stdout(self.lab.pod(pod)?.command("curl")?.args(["-sS", "--max-time", &most]).args(arguments))
    }

    /// A verb of the command line in a node, with JSON output.
    pub fn verb(&self, node: &str, verb: &str) -> Result<Value> {
        let binary = lab::agent::built_binary()?;
        let text = exec::stdout(self.lab.node(node)?.command(binary)?.args([verb, "-o", "json"]))?;
        serde_json::from_str(&text).with_context(|| format!("sluice {verb}: {text}"))
    }

    /// Replaces a document in the directory that all agents watch.
    pub fn write(&self, file: &str, text: &str) -> Result<()> {
        replace_file(&self.config.join(file), text)
    }

    /// One metric's value in a node: the sum over all series whose line starts with `prefix`.
    pub fn metric(&self, node: &str, prefix: &str) -> Result<f64> {
        let text = self.lab.node(node)?.in_netns(|| get(METRICS, "localhost", "/metrics", TIMEOUT))??.text();
        let values =
            text.lines().filter(|line| line.starts_with(prefix)).filter_map(|line| line.rsplit(' ').next());
        Ok(values.filter_map(|value| value.parse::<f64>().ok()).sum())
    }

    /// The lines of a node's metrics that start with `prefix`.
    pub fn metrics(&self, node: &str, prefix: &str) -> Result<Vec<String>> {
        let text = self.lab.node(node)?.in_netns(|| get(METRICS, "localhost", "/metrics", TIMEOUT))??.text();
        Ok(text.lines().filter(|line| line.starts_with(prefix)).map(str::to_owned).collect())
    }

    /// Waits until a node's agent says that it captures (or does not).
    pub fn wait_version_above(&self, node: &str, version: u64) -> Result<()> {
        wait_for("a newer table", LIMIT, || self.version(node).is_ok_and(|now| now > version))
    }

    /// The version of the table in force.
    pub fn version(&self, node: &str) -> Result<u64> {
        self.verb(node, "status")?["table"]["version"].as_u64().context("status has no table.version")
    }
}

/// What a node's namespace holds of ours: rules, routes, tables, programs.
pub fn leftovers(lab: &Lab, node: &str) -> Result<String> {
    let netns = lab.node(node)?.netns();
    let name = netns.name();
    let ask = |arguments: &[&str]| {
        let mut command = Command::new("ip");
        exec::stdout(command.args(["netns", "exec", name]).args(arguments))
    };
    let mut found = String::new();
    for family in ["-4", "-6"] {
        let rules = ask(&["ip", family, "rule"])?;
        found.extend(
            rules.lines().filter(|line| line.contains("fwmark")).map(|line| format!("rule {line}\n")),
        );
        let routes = ask(&["ip", family, "route", "show", "table", "all", "type", "local", "dev", "lo"])?;
        found.extend(
            routes.lines().filter(|line| line.contains("default")).map(|line| format!("route {line}\n")),
        );
    }
    found.extend(
        ask(&["nft", "list", "tables"])?.lines().filter(|l| l.contains("sluice")).map(|l| format!("{l}\n")),
    );
    let programs = ask(&["bpftool", "net", "-j"])?;
    let programs: Value = serde_json::from_str(&programs).context("bpftool net")?;
    let attached = programs[0]["tc"].as_array().context("bpftool net has no tc")?;
    found.extend(attached.iter().map(|program| format!("program {program}\n")));
    Ok(found)
}

/// Fails unless `v2` has its tenth of the answers, and is spread evenly over them.
pub fn check_canary(versions: &[String]) -> Result<()> {
    let v2 = |part: &[String]| part.iter().filter(|version| *version == "v2").count();
    let share = v2(versions);
    let expected = f64::from(u32::try_from(versions.len())?) * 0.1;
    let sigma = (expected * 0.9).sqrt();
    let off = (f64::from(u32::try_from(share)?) - expected).abs();
    ensure!(off <= 5.0 * sigma, "{share} of {} were v2", versions.len());
    for (start, window) in versions.windows(100).enumerate() {
        ensure!((2..=25).contains(&v2(window)), "{} of the 100 from {start} on were v2", v2(window));
    }
    Ok(())
}

/// Forgets a process's peak, which loading the kernel programs has set, and returns what it holds now.
pub fn reset_peak(pid: u32) -> Result<u64> {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").context("resetting the agent's peak")?;
    peak(pid)
}

/// The most memory that a process has held since, in bytes.
pub fn peak(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("the agent's status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().with_context(|| line.to_owned())?;
    Ok(kib * 1024)
}
