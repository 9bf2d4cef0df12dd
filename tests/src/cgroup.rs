//! Control groups (v2) of the lab: one subtree per node, in it one group per pod and one for the agent.
//!
//! They are also the lab's record of its processes: whatever a lab starts, and whatever that forks, is in one of
//! them, so a crash of the lab's owner loses nothing and no number of an ended process is ever signalled.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::{PATIENCE, wait_for};

/// A cgroup v2 directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The top group of a lab.
    pub fn of_lab(id: &str) -> Result<Self> {
        Ok(Self { path: mount_point()?.join(format!("sluice-lab-{id}")) })
    }

    /// The group `name` within this one.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        Self { path: self.path.join(name) }
    }

    /// Makes the group and those above it.
    pub fn create(&self) -> Result<()> {
        fs::create_dir_all(&self.path).with_context(|| format!("creating cgroup {}", self.path.display()))
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The processes in it and below.
    pub fn pids(&self) -> Vec<i32> {
        let mut pids = read_pids(&self.path);
        for child in self.children() {
            pids.extend(child.pids());
        }
        pids
    }

    /// Kills every process in it and below, and waits until they are gone.
    pub fn kill(&self) -> Result<()> {
        let what = format!("the processes in {} to end", self.path.display());
        wait_for(&what, PATIENCE, || {
            // A process may fork while the list is read, so the list is read until it is empty.
            let pids = self.pids();
            for pid in &pids {
                // It may have ended since.
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            pids.is_empty()
        })
    }

    /// Kills what is inside and removes the group and those below; one that is gone is no error.
    pub fn remove(&self) -> Result<()> {
        if !self.path.exists() {
            return Ok(());
        }
        self.kill()?;
        for child in self.children() {
            child.remove()?;
        }
        let what = format!("cgroup {} to be free", self.path.display());
        // The kernel calls a group busy until its last process has been reaped.
        wait_for(&what, PATIENCE, || match fs::remove_dir(&self.path) {
            Ok(()) => true,
            Err(error) => error.kind() == ErrorKind::NotFound,
        })
    }

    fn children(&self) -> Vec<Self> {
        let Ok(entries) = fs::read_dir(&self.path) else { return Vec::new() };
        entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| Self { path: entry.path() })
            .collect()
    }
}

/// Where cgroup v2 is mounted. Hybrid machines have it beside v1, so the path is looked up, never assumed.
pub fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").context("reading /proc/mounts")?;
    match find_mount(&mounts) {
        Some(path) => Ok(path),
        None => bail!("no cgroup v2 is mounted: run 'mount -t cgroup2 none /sys/fs/cgroup/unified'"),
    }
}

fn find_mount(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    })
}

fn read_pids(group: &Path) -> Vec<i32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_wherever_it_is() {
        let check = |mounts: &str, expected: Option<&str>| {
            assert_eq!(find_mount(mounts), expected.map(PathBuf::from), "{mounts}");
        };
        check("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", Some("/sys/fs/cgroup"));
        check(
            "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\nnone /sys/fs/cgroup/unified cgroup2 rw 0 0\n",
            Some("/sys/fs/cgroup/unified"),
        );
        check("cgroup2 /trap tmpfs rw 0 0\n", None);
        check("", None);
        check("cgroup2\n", None);
    }
}
