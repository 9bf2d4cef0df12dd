//! An agent with `--capture off` on loopback, without namespaces and without privilege: started by root it runs as
//! nobody. Each has a loopback address of its own, so that fixed Gateway ports of several never meet.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::agent::built_binary;
use crate::documents::replace_file;
use crate::http::{self, Response};
use crate::privilege::is_root;
use crate::promtext::Exposition;
use crate::wait::{PATIENCE, wait_for, wait_until};

/// The user and group without rights (`nobody`, `nogroup`).
const NOBODY: &str = "65534";
/// How long one question to the agent may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// A directory of documents and an address, for one agent.
#[derive(Debug)]
pub struct Site {
    directory: tempfile::TempDir,
    ip: Ipv4Addr,
    binary: PathBuf,
}

/// An agent that runs on a site. Dropping it kills it.
#[derive(Debug)]
pub struct LoopbackAgent<'a> {
    site: &'a Site,
    child: Child,
    /// Where it answers dumps.
    pub admin: SocketAddr,
    /// Where it answers metrics.
    pub metrics: SocketAddr,
    /// Where it answers probes.
    pub health: SocketAddr,
}

impl Site {
    /// A site with documents, in which `GATEWAY_IP` stands for its address.
    pub fn new(documents: &[(&str, &str)]) -> Result<Self> {
        Self::with_binary(built_binary()?, documents)
    }

    /// The same with a binary of the caller's.
    pub fn with_binary(binary: PathBuf, documents: &[(&str, &str)]) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // 127.1.0.0 to 127.254.255.255, by process and count.
        let number = std::process::id().wrapping_mul(16) + COUNT.fetch_add(1, Ordering::Relaxed) % 16;
        let ip = Ipv4Addr::from_bits(0x7f01_0000 + number % 0x00fe_0000);
        let directory = tempfile::Builder::new().prefix("sluice-loopback-").tempdir()?;
        let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755));
        let config = directory.path().join("config");
        fs::create_dir(&config)?;
        open(directory.path())?;
        open(&config)?;
        let binary = reachable(binary, directory.path())?;
        let site = Self { directory, ip, binary };
        for (file, text) in documents {
            site.write(file, text)?;
        }
        Ok(site)
    }

    /// Replaces a document.
    pub fn write(&self, file: &str, text: &str) -> Result<()> {
        replace_file(&self.config().join(file), &text.replace("GATEWAY_IP", &self.ip.to_string()))
    }

    /// The directory of documents.
    pub fn config(&self) -> PathBuf {
        self.directory.path().join("config")
    }

    /// A port at the site's address.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.ip), port)
    }

    /// A command that runs the binary without privilege and dies with its starter.
    pub fn command(&self) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--no-new-privs"]);
        if is_root() {
            command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]);
        }
        command.arg("--").arg(&self.binary).stdin(Stdio::null());
        command
    }

    /// The arguments of an agent here, on free ports.
    pub fn arguments(&self) -> Vec<String> {
        let free = self.at(0).to_string();
        let config = self.config().display().to_string();
        ["agent", "--capture", "off", "--node", "edge", "--workers", "2", "--log-format", "json", "--config"]
            .into_iter()
            .chain([config.as_str(), "--admin", &free, "--metrics", &free, "--health", &free])
            .map(str::to_owned)
            .collect()
    }

    /// Starts an agent and waits until it is ready.
    pub fn start(&self, further: &[&str]) -> Result<LoopbackAgent<'_>> {
        let log = |name: &str| File::create(self.directory.path().join(name));
        let mut child = self
            .command()
            .args(self.arguments())
            .args(further)
            .stdout(log("access.log")?)
            .stderr(log("agent.log")?)
            .spawn()
            .context("starting the agent")?;
        let ready = wait_until("the agent to say that it is ready", PATIENCE, || match child.try_wait() {
            Ok(None) => self.ready_line().map(Ok),
            ended => Some(Err(ended)),
        });
        let Ok(Ok(ready)) = ready else {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
            bail!("the agent is not ready: {ready:?}; its log:\n{}", self.log());
        };
        let address = |name: &str| {
            let text = ready.get(format!("addresses.{name}")).and_then(Value::as_str);
            text.and_then(|text| text.parse().ok()).with_context(|| format!("no {name} address in {ready}"))
        };
        let (admin, metrics, health) = (address("admin")?, address("metrics")?, address("health")?);
        Ok(LoopbackAgent { site: self, child, admin, metrics, health })
    }

    /// What the agent logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("agent.log")).unwrap_or_default()
    }

    /// The lines of the access log so far, each of which must be JSON.
    pub fn access(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(self.directory.path().join("access.log"))?;
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    }

    fn ready_line(&self) -> Option<Value> {
        let log = self.log();
        let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.find(|line| line["message"] == "ready")
    }
}

impl LoopbackAgent<'_> {
    /// The number of its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The memory that it holds, in KiB.
    pub fn resident_kib(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let words = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = words.and_then(|words| words.split_whitespace().next()?.parse().ok());
        kib.context("a status without VmRSS")
    }

    /// A GET on one of its own addresses.
    pub fn ask(&self, address: SocketAddr, path: &str) -> Result<Response> {
        http::get(address, "localhost", path, ASK_TIMEOUT).with_context(|| format!("asking for {path}"))
    }

    /// Runs a verb of the command line against it.
    pub fn verb(&self, arguments: &[&str]) -> Result<Output> {
        let (verb, rest) = arguments.split_first().context("no verb")?;
        let admin = self.admin.to_string();
        let output = self.site.command().arg(verb).args(["--admin", &admin]).args(rest).output()?;
        Ok(output)
    }

    /// What `sluice status -o json` says.
    pub fn status(&self) -> Result<Value> {
        let output = self.verb(&["status", "-o", "json"])?;
        ensure!(output.status.success(), "status: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Its metrics, read strictly.
    pub fn scrape(&self) -> Result<Exposition> {
        Exposition::parse(&self.ask(self.metrics, "/metrics")?.text())
    }

    /// Replaces a document and waits until a newer table is in force.
    pub fn apply(&self, file: &str, text: &str) -> Result<()> {
        let before = self.version()?;
        self.site.write(file, text)?;
        wait_for("a newer table", PATIENCE, || self.version().is_ok_and(|now| now > before))
    }

    fn version(&self) -> Result<u64> {
        let status: Value = serde_json::from_slice(&self.ask(self.admin, "/status")?.body)?;
        status["table"]["version"].as_u64().context("status has no table.version")
    }

    /// Asks it to stop.
    pub fn signal(&self) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, Signal::SIGTERM).context("sending SIGTERM")
    }

    /// Waits until it has ended.
    pub fn wait_end(mut self) -> Result<ExitStatus> {
        wait_until("the agent to end", PATIENCE, || self.child.try_wait().ok().flatten())
    }
}

impl Drop for LoopbackAgent<'_> {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The binary, or a copy of it where its directory is closed to others.
fn reachable(binary: PathBuf, directory: &Path) -> Result<PathBuf> {
    let open =
        |path: &Path| fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o005 == 0o005);
    if !is_root() || binary.ancestors().filter(|path| !path.as_os_str().is_empty()).all(open) {
        return Ok(binary);
    }
    let copy = directory.join("sluice");
    fs::copy(&binary, &copy).context("copying the binary")?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    Ok(copy)
}

/// A Service with one EndpointSlice for each backend, as documents.
pub fn service(namespace: &str, name: &str, port: u16, backends: &[SocketAddr]) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  \
         clusterIP: {ip}\n  selector: {{app: {name}}}\n  ports:\n  - {{name: http, port: {port}, appProtocol: http}}\n",
        ip = cluster_ip(namespace, name),
    );
    for (index, backend) in backends.iter().enumerate() {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-{index}\n  \
             namespace: {namespace}\n  labels: {{kubernetes.io/service-name: {name}}}\naddressType: IPv4\n\
             ports:\n- {{name: http, port: {}}}\nendpoints:\n- addresses: [\"{}\"]\n  conditions: {{ready: true}}\n",
            backend.port(),
            backend.ip()
        );
    }
    text + "---\n"
}

/// An address that tells services apart.
fn cluster_ip(namespace: &str, name: &str) -> Ipv4Addr {
    let hash = namespace
        .bytes()
        .chain(name.bytes())
        .fold(7_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
    Ipv4Addr::from_bits(0x0a60_0000 + hash % 0xfffe + 1)
}
