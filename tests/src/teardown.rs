//! Takes a lab down by its id alone, whatever state it is in.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroup::Cgroup;
use crate::netns::{self, Netns};
use crate::state::Names;
use crate::wait::{PATIENCE, wait_for};

/// Removes every trace of a lab: processes, namespaces with their interfaces, cgroups, mounts, files. It looks for
/// what is there instead of trusting a record, so it works after a crash at any point, and twice.
///
/// Goes on past a failure, so that one stuck part does not keep the rest, and returns the first.
pub(crate) fn clear(names: &Names) -> Result<()> {
    let mut outcome = Cgroup::of_lab(names.id()).and_then(|group| group.remove());
    for netns in netns::with_prefix(&names.prefix())? {
        outcome = outcome.and(clear_netns(&netns));
    }
    for mount in mounts_below(&names.directory())? {
        let result = umount2(&mount, MntFlags::MNT_DETACH);
        outcome = outcome.and(result.with_context(|| format!("unmounting {}", mount.display())));
    }
    outcome.and(remove_tree(&names.directory()))
}

/// The directory that gives `ip netns exec` users the lab's names.
pub(crate) fn etc_directory(netns: &Netns) -> PathBuf {
    Path::new("/etc/netns").join(netns.name())
}

fn clear_netns(netns: &Netns) -> Result<()> {
    // What the lab started is in its cgroups and gone by now; this is for shells that a user left inside.
    let own = i32::try_from(std::process::id()).context("a process number")?;
    let what = format!("the processes in {} to end", netns.name());
    wait_for(&what, PATIENCE, || {
        let pids = netns.pids().unwrap_or_default();
        let others: Vec<i32> = pids.into_iter().filter(|pid| *pid != own).collect();
        for pid in &others {
            // It may have ended since.
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        others.is_empty()
    })?;
    netns.remove()?;
    remove_tree(&etc_directory(netns))
}

fn mounts_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/mounts").context("reading /proc/mounts")?;
    let mut below: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(PathBuf::from)
        .filter(|path| path.starts_with(directory))
        .collect();
    // Deepest first.
    below.reverse();
    Ok(below)
}

fn remove_tree(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", directory.display()))
        }
        _ => Ok(()),
    }
}
