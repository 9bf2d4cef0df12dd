//! The agent under test, as a process in its node.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::http;
use crate::lab::Node;
use crate::sandbox::Lifetime;
use crate::wait::{PATIENCE, wait_until};

/// The agent's admin address in its node.
pub const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15000);
/// The agent's metrics address in its node.
pub const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15020);
/// The agent's health address in its node.
pub const HEALTH: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15021);
/// How long the agent may drain after SIGTERM before a test calls it stuck.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);
/// How long one look at an address of the agent may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// How an agent is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentOptions {
    /// The binary `sluice`.
    pub binary: PathBuf,
    /// The directory of its documents; `None`: the arguments say where they come from.
    pub config: Option<PathBuf>,
    /// The interfaces of pods.
    pub pod_interfaces: String,
    /// The one interface by which replies come back; `None`: what the agent takes by default.
    pub uplink: Option<String>,
    /// Further arguments.
    pub arguments: Vec<String>,
}

impl AgentOptions {
    /// An agent on the built binary that reads `config` and captures every pod of its node.
    pub fn new(config: impl Into<PathBuf>) -> Result<Self> {
        Ok(Self {
            binary: built_binary()?,
            config: Some(config.into()),
            pod_interfaces: "pod-*".to_owned(),
            uplink: Some("eth0".to_owned()),
            arguments: Vec::new(),
        })
    }

    /// An agent that takes part in the cluster of this Redis.
    pub fn clustered(redis: &str) -> Result<Self> {
        let alone = Self::new("")?;
        Ok(Self { config: None, ..alone }.with(["--redis", redis]))
    }

    /// Adds arguments.
    #[must_use]
    pub fn with<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }
}

/// A running agent. Dropping the handle kills the agent of an owned lab; that of a detached lab stays.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    log: PathBuf,
    node: String,
    lifetime: Lifetime,
}

/// Starts an agent in a node and waits until it is ready.
pub(crate) fn start(node: &Node<'_>, options: &AgentOptions) -> Result<Agent> {
    let lab = node.lab();
    let directory = lab.directory().join("agents").join(node.name());
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    let log = directory.join("agent.log");
    let output = File::options()
        .create(true)
        .append(true)
        .open(&log)
        .with_context(|| format!("opening {}", log.display()))?;
    let mut command = node.agent_command(&options.binary)?;
    command
        .args(["agent", "--node", node.name()])
        .args(options.uplink.iter().flat_map(|uplink| ["--uplink", uplink]))
        .args(["--pod-interfaces", &options.pod_interfaces])
        .args(options.config.iter().flat_map(|dir| [Path::new("--config"), dir]))
        .args(&options.arguments)
        .stdin(std::process::Stdio::null())
        .stdout(output.try_clone().context("sharing the agent's log")?)
        .stderr(output);
    let child = command.spawn().with_context(|| format!("starting {}", options.binary.display()))?;
    let mut agent = Agent { child, log, node: node.name().to_owned(), lifetime: lab.lifetime() };
    agent.wait_ready(node)?;
    Ok(agent)
}

impl Agent {
    /// The number of its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it logs.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Kills it as an out-of-memory kill would: it cannot clean up.
    pub fn kill9(mut self) -> Result<()> {
        self.child.kill().context("killing the agent")?;
        self.child.wait().map(drop).context("waiting for the killed agent")
    }

    /// Asks it to stop and waits until it has.
    pub fn terminate(mut self) -> Result<ExitStatus> {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).context("a process number")?);
        kill(pid, Signal::SIGTERM).context("sending SIGTERM to the agent")?;
        let what = format!("the agent of {} to stop after SIGTERM", self.node);
        let mut failed = None;
        let status = wait_until(&what, DRAIN_LIMIT, || match self.child.try_wait() {
            Ok(status) => status.map(Some),
            Err(error) => {
                failed = Some(error);
                Some(None)
            }
        })?;
        status.with_context(|| format!("waiting for the agent: {failed:?}"))
    }

    fn wait_ready(&mut self, node: &Node<'_>) -> Result<()> {
        let what = format!("the agent of {} to be ready", self.node);
        let outcome = wait_until(&what, PATIENCE, || {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(Err(status));
            }
            let looked = node.in_netns(|| http::get(HEALTH, "localhost", "/healthz/ready", LOOK_TIMEOUT));
            matches!(looked, Ok(Ok(response)) if response.status == 200).then_some(Ok(()))
        });
        match outcome {
            Ok(Ok(())) => Ok(()),
            Ok(Err(status)) => {
                bail!("the agent of {} ended with {status}:\n{}", self.node, self.last_lines())
            }
            Err(error) => Err(error.context(format!("its log ends with:\n{}", self.last_lines()))),
        }
    }

    fn last_lines(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.lifetime == Lifetime::Owned {
            // It may have ended before.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Finds the binary: `SLUICE_BIN`, else beside the running one (tests run from `target/PROFILE/deps`).
pub fn built_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("SLUICE_BIN") {
        return Ok(path.into());
    }
    let own = std::env::current_exe().context("finding the running binary")?;
    match own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join("sluice"))
        .find(|path| path.is_file())
    {
        Some(path) => Ok(path),
        None => bail!("no binary 'sluice' beside {}: run 'cargo build', or set SLUICE_BIN", own.display()),
    }
}
