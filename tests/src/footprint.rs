//! What an agent could leave in a node: rules, routes, nft tables, queueing disciplines, programs, pins.
//!
//! Taken before and after, the difference shows what was left behind.

use std::collections::BTreeSet;
use std::fs;

use anyhow::Result;
use aya::programs::tc::{SchedClassifier, TcAttachType};

use crate::exec::stdout;
use crate::lab::Node;

/// The state of one node, as lines to compare.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Footprint {
    lines: BTreeSet<String>,
}

/// What is listed by a tool: a name for the lines, and the command.
const LISTINGS: &[(&str, &[&str])] = &[
    ("nft", &["nft", "list", "tables"]),
    ("rule", &["ip", "rule", "show"]),
    ("rule6", &["ip", "-6", "rule", "show"]),
    ("route", &["ip", "-o", "route", "show", "table", "all"]),
    ("route6", &["ip", "-6", "-o", "route", "show", "table", "all"]),
    ("qdisc", &["tc", "qdisc", "show"]),
    ("net", &["bpftool", "net", "list"]),
];

/// What the kernel itself puts into every BPF file system.
const PRELOADED: &[&str] = &["maps.debug", "progs.debug"];

impl Footprint {
    /// Looks at a node.
    pub fn of(node: &Node<'_>) -> Result<Self> {
        let mut lines = BTreeSet::new();
        for (kind, words) in LISTINGS {
            let listed = stdout(node.command(words[0])?.args(&words[1..]))?;
            lines.extend(listed.lines().map(|line| format!("{kind}: {}", line.trim())));
        }
        let group = node.cgroup();
        let programs = stdout(node.command("bpftool")?.args(["cgroup", "tree"]).arg(group.path()))?;
        lines.extend(programs.lines().skip(1).map(|line| format!("cgroup: {}", line.trim())));
        lines.extend(tcx_programs(node)?);
        let pins = node.lab().directory().join("agents").join(node.name()).join("bpf");
        let pins = fs::read_dir(pins).into_iter().flatten().flatten();
        let made = pins.filter(|pin| !PRELOADED.iter().any(|name| pin.file_name() == *name));
        lines.extend(made.map(|pin| format!("pin: {}", pin.path().display())));
        Ok(Self { lines })
    }

    /// Every line, in order.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }

    /// What is here and was not in `before`.
    pub fn since<'a>(&'a self, before: &'a Self) -> Vec<&'a str> {
        self.lines.difference(&before.lines).map(String::as_str).collect()
    }
}

/// The programs attached by tcx, which this machine's tools may be too old to list.
fn tcx_programs(node: &Node<'_>) -> Result<Vec<String>> {
    let interfaces = node.netns().links()?;
    node.in_netns(|| {
        let mut lines = Vec::new();
        for interface in &interfaces {
            for attach in [TcAttachType::Ingress, TcAttachType::Egress] {
                // A kernel older than 6.6 has no tcx to ask for; its filters are among the queueing disciplines.
                let Ok((_, programs)) = SchedClassifier::query_tcx(interface, attach) else { continue };
                lines.extend(programs.iter().map(|program| {
                    format!("tcx: {interface} {attach:?}: {}", program.name_as_str().unwrap_or("unnamed"))
                }));
            }
        }
        lines
    })
}
