//! The track: a client, a proxy and a backend as three network namespaces in a row, joined by veth, and the programs
//! that run in them, each bound to a core.
//!
//! The client and the backend share a core; the proxy has the other one for itself. What is measured beside a proxy as
//! `direct` goes the same way and is routed by the kernel in the proxy's place.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lab::exec::command;
use lab::netns::{self, Netns};
use lab::wait::wait_until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The core of the proxy.
pub const PROXY_CORE: usize = 0;
/// The core that the client and the backend share.
pub const CLIENT_CORE: usize = 1;
/// Where the proxies listen.
pub const PROXY: Ipv4Addr = Ipv4Addr::new(10, 99, 1, 2);
/// Where the backend listens.
pub const BACKEND: Ipv4Addr = Ipv4Addr::new(10, 99, 2, 1);

const PREFIX: &str = "slbench-";
/// How long a program may take to end once it was told to.
const END_LIMIT: Duration = Duration::from_secs(20);

/// Three namespaces and a directory, gone when this is dropped.
#[derive(Debug)]
pub struct Track {
    /// Where the load comes from.
    pub client: Netns,
    proxy: Netns,
    backend: Netns,
    directory: PathBuf,
}

/// A namespace and the core that its programs are bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The load generators.
    Client,
    /// The proxy under test.
    Proxy,
    /// The server behind it.
    Backend,
}

impl Track {
    /// Lays the track. What an earlier run left when it was killed goes first.
    pub fn lay() -> Result<Self> {
        clear_stale()?;
        let own = std::process::id();
        let named = |name: &str| Netns::named(format!("{PREFIX}{own}-{name}"));
        let track = Self {
            client: named("client"),
            proxy: named("proxy"),
            backend: named("backend"),
            directory: std::env::temp_dir().join(format!("{PREFIX}{own}")),
        };
        fs::create_dir_all(track.directory.join("www")).context("creating the bench's directory")?;
        netns::allow_cubic()?;
        for netns in [&track.client, &track.proxy, &track.backend] {
            netns.create()?;
            // The machine may default to bbr, whose pacing stalls short transfers between namespaces.
            netns.sysctls(&[
                ("ipv4/tcp_congestion_control", "cubic"),
                ("ipv4/ip_local_port_range", "1024 65000"),
            ])?;
        }
        track.proxy.sysctls(&[("ipv4/ip_forward", "1")])?;
        track.proxy.ip_batch(&format!(
            "link set lo up\n\
             link add front type veth peer name eth0 netns {}\nlink add back type veth peer name eth0 netns {}\n\
             addr add {PROXY}/24 dev front\naddr add 10.99.2.2/24 dev back\nlink set front up\nlink set back up\n",
            track.client.name(),
            track.backend.name()
        ))?;
        track.client.ip_batch(&format!(
            "link set lo up\nlink set eth0 up\naddr add 10.99.1.1/24 dev eth0\nroute add default via {PROXY}\n"
        ))?;
        track.backend.ip_batch(&format!(
            "link set lo up\nlink set eth0 up\naddr add {BACKEND}/24 dev eth0\nroute add default via 10.99.2.2\n"
        ))?;
        Ok(track)
    }

    /// Where programs keep their files; it begins with `www`, the backend's pages.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A command that runs in a place, on its core, and is told to end when this process does.
    pub fn command(&self, place: Place, argv: &[String]) -> Command {
        let (netns, core) = match place {
            Place::Client => (&self.client, CLIENT_CORE),
            Place::Proxy => (&self.proxy, PROXY_CORE),
            Place::Backend => (&self.backend, CLIENT_CORE),
        };
        let net = format!("--net={}", netns.path().display());
        let core = core.to_string();
        let mut words = vec![net.as_str(), "taskset", "-c", &core, "setpriv", "--pdeathsig", "TERM", "--"];
        words.extend(argv.iter().map(String::as_str));
        let mut command = command("nsenter", words);
        command.stdin(Stdio::null());
        command
    }

    /// Starts a program that stays, its output in a file named after it.
    pub fn start(&self, place: Place, name: &str, argv: &[String]) -> Result<Server> {
        Server::start(self.command(place, argv), name, &self.directory)
    }
}

impl Drop for Track {
    fn drop(&mut self) {
        for netns in [&self.client, &self.proxy, &self.backend] {
            if let Err(error) = clear(netns) {
                eprintln!("bench: {error:#}");
            }
        }
        // Only logs and pages are in it.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A running server. Dropping it tells it to end.
#[derive(Debug)]
pub struct Server {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Server {
    /// Starts a program that stays, its output in a file named after it in a directory.
    pub fn start(mut command: Command, name: &str, directory: &Path) -> Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let output = fs::File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        command.stdout(output.try_clone().context("sharing a log")?).stderr(output);
        let child = command.spawn().with_context(|| format!("starting {name}"))?;
        Ok(Self { child, name: name.to_owned(), log })
    }

    /// The number of its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Fails with its last words when it has ended.
    pub fn check(&mut self) -> Result<()> {
        let Some(status) = self.child.try_wait().context("looking at a server")? else { return Ok(()) };
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(10)..].join("\n");
        bail!("{} ended with {status}:\n{last}", self.name)
    }

    fn end(&mut self) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).context("a process number")?);
        // It may have ended before.
        let _ = kill(pid, Signal::SIGTERM);
        let ended = wait_until("a server to end", END_LIMIT, || self.child.try_wait().ok().flatten());
        if ended.is_err() {
            self.child.kill().context("killing a server")?;
            self.child.wait().context("waiting for a killed server")?;
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("bench: {}: {error:#}", self.name);
        }
    }
}

/// Ends what is still inside and removes the namespace.
fn clear(netns: &Netns) -> Result<()> {
    for pid in netns.pids().unwrap_or_default() {
        // It may have ended since.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    netns.remove()
}

fn clear_stale() -> Result<()> {
    for netns in netns::with_prefix(PREFIX)? {
        let owner = netns.name().trim_start_matches(PREFIX).split('-').next().unwrap_or_default();
        if !Path::new("/proc").join(owner).exists() {
            clear(&netns)?;
        }
    }
    Ok(())
}
