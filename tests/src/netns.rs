//! Named network namespaces: made and removed with `ip netns`, entered with `setns`.
//!
//! `ip netns exec` is never used: it remounts `/sys`, which hides cgroup v2 and bpffs from what it runs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::exec::{command, run, run_with_input, stdout};

const DIRECTORY: &str = "/run/netns";

/// A named network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// The namespace of that name, whether it exists or not.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// Makes the namespace.
    pub fn create(&self) -> Result<()> {
        run(&mut command("ip", ["netns", "add", &self.name])).map(drop)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }

    /// Opens the file that stands for it.
    pub fn open(&self) -> Result<File> {
        File::open(self.path()).with_context(|| format!("opening network namespace {}", self.name))
    }

    /// Runs an `ip -batch` script in it.
    pub fn ip_batch(&self, script: &str) -> Result<()> {
        run_with_input(&mut command("ip", ["-n", &self.name, "-batch", "-"]), script)
            .with_context(|| format!("wiring {} with\n{script}", self.name))
            .map(drop)
    }

    /// Runs an nft script in it, as one transaction.
    pub fn nft(&self, script: &str) -> Result<()> {
        let net = format!("--net={}", self.path().display());
        run_with_input(&mut command("nsenter", [net.as_str(), "nft", "-f", "-"]), script)
            .with_context(|| format!("loading nft rules into {}\n{script}", self.name))
            .map(drop)
    }

    /// Runs `work` on a thread of its own inside the namespace. Sockets made there stay in it.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file = self.open()?;
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| -> Result<T> {
                setns(&file, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {}", self.name))?;
                Ok(work())
            });
            inside.join().map_err(|panic| anyhow!("inside {}: {}", self.name, panic_text(&*panic)))?
        })
    }

    /// Writes settings below `/proc/sys/net`.
    pub fn sysctls(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.enter(|| {
            for (name, value) in settings {
                let path = Path::new("/proc/sys/net").join(name);
                fs::write(&path, value)
                    .with_context(|| format!("setting {} to {value} in {}", path.display(), self.name))?;
            }
            Ok(())
        })?
    }

    /// The names of its interfaces besides `lo`.
    pub fn links(&self) -> Result<Vec<String>> {
        let text = stdout(&mut command("ip", ["-n", &self.name, "-o", "link", "show"]))?;
        Ok(link_names(&text))
    }

    /// Removes the namespace with its interfaces; one that is gone is no error.
    ///
    /// The interfaces are deleted one by one first: those of a deleted namespace vanish later, at the kernel's
    /// leisure, with whatever programs are attached to them.
    pub fn remove(&self) -> Result<()> {
        if !self.path().exists() {
            return Ok(());
        }
        for link in self.links().unwrap_or_default() {
            // The other end's removal may have taken it along already.
            let _ = run(&mut command("ip", ["-n", &self.name, "link", "delete", &link]));
        }
        run(&mut command("ip", ["netns", "delete", &self.name])).map(drop)
    }

    /// The processes inside.
    pub fn pids(&self) -> Result<Vec<i32>> {
        let text = stdout(&mut command("ip", ["netns", "pids", &self.name]))?;
        Ok(text.lines().filter_map(|line| line.trim().parse().ok()).collect())
    }
}

/// The named namespaces whose name begins with `prefix`.
pub fn with_prefix(prefix: &str) -> Result<Vec<Netns>> {
    let entries = match fs::read_dir(DIRECTORY) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context(format!("reading {DIRECTORY}")),
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter(|name| name.starts_with(prefix)).map(Netns::named).collect())
}

fn link_names(ip_output: &str) -> Vec<String> {
    ip_output
        .lines()
        .filter_map(|line| line.split(": ").nth(1))
        .map(|name| name.split('@').next().unwrap_or(name).to_owned())
        .filter(|name| name != "lo")
        .collect()
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "panicked".to_owned())
}

/// Namespaces may only default to a congestion control that the machine allows to everyone.
pub fn allow_cubic() -> Result<()> {
    const ALLOWED: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";
    let allowed = fs::read_to_string(ALLOWED).with_context(|| format!("reading {ALLOWED}"))?;
    if allowed.split_whitespace().any(|name| name == "cubic") {
        return Ok(());
    }
    fs::write(ALLOWED, format!("{} cubic", allowed.trim())).context("allowing cubic in namespaces")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_names_lose_their_index_and_their_peer() {
        let text = "1: lo: <LOOPBACK> mtu 65536\n2: eth0@if5: <UP> mtu 1500\n7: br0: <UP> mtu 1500\n";
        assert_eq!(link_names(text), ["eth0", "br0"]);
        assert_eq!(link_names("nonsense\n\n"), Vec::<String>::new());
    }
}
