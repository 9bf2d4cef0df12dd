//! The cluster that the demonstration runs: a Redis, certificates, and the verbs of `sluice` that a user would type.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::agent::{ADMIN, built_binary};
use lab::http::get;
use lab::store::{ClusterStore, certificates, certify, operator};
use lab::{AgentOptions, Lab, exec};
use serde_json::Value;

use super::{limits, shop};

/// The name of the cluster, and the life of its leader's lease.
pub const CLUSTER: &str = "shop";
const LEASE: &str = "2s";
/// How long one look may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// A lab with a store, and certificates for its nodes.
#[derive(Debug)]
pub struct Site<'a> {
    /// Where it is.
    pub lab: &'a Lab,
    /// Its Redis.
    pub store: ClusterStore,
}

impl<'a> Site<'a> {
    /// Starts the store and makes the certificates.
    pub fn start(lab: &'a Lab) -> Result<Self> {
        certify(lab, &shop::NODES)?;
        Ok(Self { lab, store: ClusterStore::start(lab, shop::STORE)? })
    }

    /// How each node's agent is started.
    pub fn agents(&self) -> Result<BTreeMap<String, AgentOptions>> {
        let options = |node: &str| -> Result<AgentOptions> {
            let (ca, state) =
                (certificates(self.lab, node), self.lab.directory().join(format!("state-{node}")));
            let (ca, state) = (ca.display().to_string(), state.display().to_string());
            let options = AgentOptions::clustered(self.store.url())?;
            let arguments = ["--cluster", CLUSTER, "--lease-ttl", LEASE, "--ca", &ca, "--state", &state];
            let guard: &[&str] = if node == limits::GUARDED { &["--guard", "eth0"] } else { &[] };
            Ok(options.with(arguments).with(guard.iter().copied()))
        };
        shop::NODES.into_iter().map(|node| Ok((node.to_owned(), options(node)?))).collect()
    }

    /// `sluice` on a node, told where the store is.
    fn sluice(&self, node: &str) -> Result<Command> {
        let mut command = self.lab.node(node)?.command(built_binary()?)?;
        command.env("SLUICE_REDIS", self.store.url()).env("SLUICE_CLUSTER", CLUSTER);
        command.env("SLUICE_CA", operator(self.lab));
        Ok(command)
    }

    /// `sluice apply -f FILE` on a node.
    pub fn apply(&self, node: &str, file: &Path) -> Result<()> {
        exec::run(self.sluice(node)?.args(["apply", "-f"]).arg(file)).map(drop)
    }

    /// `sluice apply -f -` on a node.
    pub fn apply_text(&self, node: &str, text: &str) -> Result<()> {
        exec::run_with_input(self.sluice(node)?.args(["apply", "-f", "-"]), text).map(drop)
    }

    /// `sluice delete NAME` on a node.
    pub fn delete(&self, node: &str, name: &str) -> Result<()> {
        exec::run(self.sluice(node)?.args(["delete", name])).map(drop)
    }

    /// `sluice get` on a node: the documents' names.
    pub fn documents(&self, node: &str) -> Result<Vec<String>> {
        let text = exec::stdout(self.sluice(node)?.args(["get", "-o", "json"]))?;
        let all: Vec<Value> = serde_json::from_str(&text).with_context(|| text.clone())?;
        Ok(all.iter().filter_map(|one| Some(one["id"].as_str()?.to_owned())).collect())
    }

    /// What a node's agent knows of the cluster.
    pub fn view(&self, node: &str) -> Result<Value> {
        self.look(node, "/cluster")
    }

    /// The term of the table that a node has in force.
    pub fn epoch(&self, node: &str) -> Result<u64> {
        self.look(node, "/status")?["table"]["epoch"].as_u64().context("status names no epoch")
    }

    /// What a node's agent answers at a path.
    pub fn look(&self, node: &str, path: &str) -> Result<Value> {
        let text = self.lab.node(node)?.in_netns(|| get(ADMIN, "localhost", path, LOOK_TIMEOUT))??.text();
        serde_json::from_str(&text).with_context(|| text.clone())
    }

    /// The version of the cart that answers a pod of a node.
    pub fn cart(&self, node: &str) -> Result<String> {
        let to = self.cart_address()?;
        let pod = self.lab.pod(shop::client_of(node))?;
        let response = pod.in_netns(|| get(to, shop::CART, "/", LOOK_TIMEOUT))??;
        anyhow::ensure!(response.status == 200, "status {}", response.status);
        Ok(response.header("x-version").unwrap_or_default().to_owned())
    }

    /// Where the cart is dialled.
    pub fn cart_address(&self) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.lab.cluster_ip(shop::CART)?.v4.into(), 80))
    }
}
