//! The store of a cluster in a lab: a Redis with a password on a node of its own, and certificates for the other nodes.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::agent::built_binary;
use crate::exec;
use crate::lab::Lab;
use crate::redis::PORT;
use crate::wait::{PATIENCE, wait_for};

/// What Redis asks for.
pub const PASSWORD: &str = "correct-horse";

/// A Redis that keeps nothing on disk by itself. Dropping it kills it, unless the lab stays.
#[derive(Debug)]
pub struct ClusterStore {
    node: String,
    url: String,
    log: PathBuf,
    server: Option<Child>,
    stays: bool,
}

impl ClusterStore {
    /// Starts it on a node and waits until it answers.
    pub fn start(lab: &Lab, node: &str) -> Result<Self> {
        let mut store = Self {
            node: node.to_owned(),
            url: url(lab, node)?,
            log: lab.directory().join("redis.log"),
            server: None,
            stays: lab.lifetime() == crate::sandbox::Lifetime::Detached,
        };
        store.start_again(lab)?;
        Ok(store)
    }

    /// Starts it where it was stopped. It is empty then, unless somebody let it write a dump.
    pub fn start_again(&mut self, lab: &Lab) -> Result<()> {
        let log = File::create(&self.log).context("Redis' log")?;
        let mut command = lab.node(&self.node)?.command("redis-server")?;
        command
            .args(["--port", &PORT.to_string(), "--bind", "0.0.0.0", "--requirepass", PASSWORD])
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(lab.directory())
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("Redis' log")?)
            .stderr(log);
        self.server = Some(command.spawn().context("starting redis-server")?);
        wait_for("Redis to answer", PATIENCE, || {
            self.ask(lab, &["PING"]).is_ok_and(|said| said.starts_with(b"PONG"))
        })
    }

    /// Kills it; it has kept nothing.
    pub fn stop(&mut self) -> Result<()> {
        let mut server = self.server.take().context("Redis does not run")?;
        server.kill().context("killing Redis")?;
        server.wait().map(drop).context("waiting for Redis")
    }

    /// Where agents find it, with its password.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A `redis-cli` on its node.
    pub fn cli(&self, lab: &Lab) -> Result<Command> {
        let mut command = lab.node(&self.node)?.command("redis-cli")?;
        command.args(["--no-auth-warning", "-a", PASSWORD, "--raw"]);
        Ok(command)
    }

    /// What it answers.
    pub fn ask(&self, lab: &Lab, words: &[&str]) -> Result<Vec<u8>> {
        let output = self.cli(lab)?.args(words).stdin(Stdio::null()).output().context("redis-cli")?;
        ensure!(output.status.success(), "redis-cli {words:?}: {output:?}");
        Ok(output.stdout)
    }
}

impl Drop for ClusterStore {
    fn drop(&mut self) {
        if let (Some(server), false) = (&mut self.server, self.stays) {
            // It may have ended by itself.
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// Where agents find the Redis of a node, with its password.
pub fn url(lab: &Lab, node: &str) -> Result<String> {
    Ok(format!("redis://:{PASSWORD}@{}:{PORT}", lab.node(node)?.address().v4))
}

/// Where [`certify`] puts a node's certificates.
pub fn certificates(lab: &Lab, node: &str) -> PathBuf {
    lab.directory().join(format!("ca-{node}"))
}

/// Where [`certify`] puts what documents are sealed with.
pub fn operator(lab: &Lab) -> PathBuf {
    lab.directory().join("ca-operator")
}

/// Makes an authority, certificates for these nodes, and an operator, by `sluice ca`.
pub fn certify(lab: &Lab, nodes: &[&str]) -> Result<()> {
    let by = lab.nodes().next().context("a lab has a node")?;
    let authority = lab.directory().join("ca");
    let ca = |verb: &str| -> Result<Command> {
        let mut command = by.command(built_binary()?)?;
        command.args(["ca", verb, "--dir"]).arg(&authority);
        Ok(command)
    };
    exec::run(ca("init")?.args(["--trust-domain", "shop.example"]))?;
    for node in nodes {
        exec::run(ca("node")?.args(["--name", node, "--out"]).arg(certificates(lab, node)))?;
    }
    exec::run(ca("operator")?.args(["--name", "alice", "--out"]).arg(operator(lab))).map(drop)
}
