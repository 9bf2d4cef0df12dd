//! Redis servers of a test, each on a loopback address of its own, so that ports of several never meet.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::documents::replace_file;
use crate::wait::{PATIENCE, wait_for, wait_until};

/// Where every server listens, at its own address.
pub const PORT: u16 = 6379;
/// Where every Sentinel listens, at its own address.
pub const SENTINEL_PORT: u16 = 26379;

/// How far the clock is ahead.
const CLOCK: &str = "clock";
/// A line of the configuration that says that the clock can be moved.
const CLOCK_MARK: &str = "# with a clock of its own";

/// A server with its directory. Dropping it kills it.
#[derive(Debug)]
pub struct Redis {
    child: Child,
    directory: tempfile::TempDir,
    /// Where it listens.
    pub address: SocketAddr,
    sentinel: bool,
}

impl Redis {
    /// Starts a server that keeps nothing on disk; `config` is added to its configuration, `DIR` and `IP` in it stand
    /// for its directory and its address.
    pub fn start(config: &str) -> Result<Self> {
        let common = "protected-mode no\nsave \"\"\nappendonly no\nrepl-diskless-sync-delay 0\n";
        Self::prepare(&format!("port {PORT}\n{common}{config}"), PORT, false)
    }

    /// Starts a server whose clock can be moved, by [`Redis::set_clock_ahead`]; its timers go on as ever.
    pub fn start_with_clock() -> Result<Self> {
        let common = "protected-mode no\nsave \"\"\nappendonly no\n";
        Self::prepare(&format!("port {PORT}\n{common}{CLOCK_MARK}\n"), PORT, false)
    }

    /// Sets its clock so far ahead of the machine's.
    pub fn set_clock_ahead(&self, ahead: Duration) -> Result<()> {
        replace_file(&self.file(CLOCK), &ahead.as_secs().to_string())
    }

    /// Starts three servers that are a Redis Cluster, with `config` added to each one's.
    pub fn start_cluster(config: &str) -> Result<Vec<Self>> {
        let own = "cluster-enabled yes\ncluster-config-file DIR/nodes.conf\ncluster-announce-ip IP\n";
        let servers: Vec<_> =
            (0..3).map(|_| Self::start(&format!("{own}{config}"))).collect::<Result<_>>()?;
        let addresses: Vec<_> = servers.iter().map(|server| server.address.to_string()).collect();
        let mut words = vec!["--cluster", "create"];
        words.extend(addresses.iter().map(String::as_str));
        words.push("--cluster-yes");
        servers[0].ask(&words)?;
        wait_for("the cluster to be whole", PATIENCE, || {
            servers.iter().all(|server| {
                server.ask(&["CLUSTER", "INFO"]).is_ok_and(|info| info.contains("cluster_state:ok"))
            })
        })?;
        Ok(servers)
    }

    /// Starts a Sentinel for a server, which it calls `sluice`.
    pub fn start_sentinel(master: SocketAddr) -> Result<Self> {
        let (ip, port) = (master.ip(), master.port());
        let config = format!(
            "port {SENTINEL_PORT}\nprotected-mode no\nsentinel monitor sluice {ip} {port} 1\n\
             sentinel down-after-milliseconds sluice 500\nsentinel failover-timeout sluice 5000\n"
        );
        Self::prepare(&config, SENTINEL_PORT, true)
    }

    fn prepare(config: &str, port: u16, sentinel: bool) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // 127.1.0.0 to 127.254.255.255, by process and count.
        let number = std::process::id().wrapping_mul(16) + COUNT.fetch_add(1, Ordering::Relaxed) % 16;
        let ip = Ipv4Addr::from_bits(0x7f01_0000 + number % 0x00fe_0000);
        let directory = tempfile::Builder::new().prefix("sluice-redis-").tempdir()?;
        let root = directory.path().display().to_string();
        let config = config.replace("IP", &ip.to_string()).replace("DIR", &root);
        fs::write(directory.path().join(CLOCK), "0")?;
        fs::write(directory.path().join("redis.conf"), format!("bind {ip}\ndir {root}\n{config}"))?;
        let address = SocketAddr::new(IpAddr::V4(ip), port);
        let child = spawn(directory.path(), sentinel)?;
        let mut redis = Self { child, directory, address, sentinel };
        redis.wait_ready()?;
        Ok(redis)
    }

    /// Kills it and starts it again at the same address.
    pub fn restart(&mut self) -> Result<()> {
        self.stop();
        self.child = spawn(self.directory.path(), self.sentinel)?;
        self.wait_ready()
    }

    /// Kills it.
    pub fn stop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)
            .context("sending a signal to redis-server")
    }

    /// A file in its directory.
    pub fn file(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    /// Asks it something as its default user; what it answers is as `redis-cli` prints it. An error is one.
    pub fn ask(&self, words: &[&str]) -> Result<String> {
        let (ip, port) = (self.address.ip().to_string(), self.address.port().to_string());
        let output = Command::new("redis-cli").args(["-e", "-h", &ip, "-p", &port]).args(words).output()?;
        let text = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "redis-cli {words:?}: {text} {error}");
        Ok(text)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let address = self.address;
        let ready = wait_until("redis-server to listen", PATIENCE, || match self.child.try_wait() {
            Ok(None) => TcpStream::connect(address).is_ok().then_some(true),
            _ => Some(false),
        })?;
        if !ready {
            let log = fs::read_to_string(self.directory.path().join("redis.log")).unwrap_or_default();
            bail!("redis-server has ended; its log:\n{log}");
        }
        Ok(())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Builds what gives a server a clock of its own.
fn build_clock(directory: &Path) -> Result<PathBuf> {
    let (source, library) = (directory.join("clock.c"), directory.join("clock.so"));
    fs::write(&source, include_str!("redis/clock.c"))?;
    let mut compiler = Command::new("gcc");
    let built = compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).output();
    let built = built.context("gcc, which scripts/setup installs")?;
    ensure!(built.status.success(), "gcc: {}", String::from_utf8_lossy(&built.stderr));
    Ok(library)
}

fn spawn(directory: &Path, sentinel: bool) -> Result<Child> {
    let log = File::create(directory.join("redis.log"))?;
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", "redis-server"]).arg(directory.join("redis.conf"));
    if sentinel {
        command.arg("--sentinel");
    }
    if fs::read_to_string(directory.join("redis.conf"))?.contains(CLOCK_MARK) {
        command.env("LD_PRELOAD", build_clock(directory)?).env("CLOCK_AHEAD_FILE", directory.join(CLOCK));
    }
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().context("starting redis-server")
}
