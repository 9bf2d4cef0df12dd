//! Starts processes inside a node or a pod: its network namespace, its cgroup, its hosts file.
//!
//! This is `ip netns exec` without its remount of `/sys`, which would hide cgroup v2 and bpffs from the process.

use std::ffi::{CString, OsStr};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::Signal;

use crate::cgroup::Cgroup;
use crate::netns::Netns;

/// What becomes of the lab's processes when whoever started them ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// They die with the thread that started them, and dropping the lab takes it down. For tests.
    Owned,
    /// They and the lab stay until `Lab::down`. For `cargo xtask lab up`.
    Detached,
}

/// Where a process is put.
#[derive(Debug)]
pub struct Sandbox<'a> {
    /// Its network namespace.
    pub netns: &'a Netns,
    /// Its cgroup.
    pub cgroup: &'a Cgroup,
    /// The file that it sees as `/etc/hosts`.
    pub hosts: &'a Path,
    /// What happens to it when its starter ends.
    pub lifetime: Lifetime,
}

/// Everything that the child needs, opened and converted before the fork: between fork and exec it must not
/// allocate or take a lock.
struct Entry {
    netns: File,
    cgroup_procs: File,
    hosts: CString,
    die_with_starter: bool,
}

impl Sandbox<'_> {
    /// A command that runs `program` inside. The program and its files are those of the machine.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let entry = self.entry()?;
        let mut command = Command::new(program);
        #[expect(unsafe_code, reason = "the only way to enter namespaces between fork and exec")]
        // SAFETY: `Entry::enter` makes system calls on values prepared before the fork; it neither allocates nor
        // takes locks that another thread could have held at the fork.
        unsafe {
            command.pre_exec(move || entry.enter());
        }
        Ok(command)
    }

    fn entry(&self) -> Result<Entry> {
        let procs = self.cgroup.path().join("cgroup.procs");
        Ok(Entry {
            netns: self.netns.open()?,
            cgroup_procs: OpenOptions::new()
                .write(true)
                .open(&procs)
                .with_context(|| format!("opening {}", procs.display()))?,
            hosts: CString::new(self.hosts.as_os_str().as_bytes()).context("the path of the hosts file")?,
            die_with_starter: self.lifetime == Lifetime::Owned,
        })
    }
}

impl Entry {
    fn enter(&self) -> io::Result<()> {
        if self.die_with_starter {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        } else {
            nix::unistd::setsid()?;
        }
        // The kernel reads 0 as the writing process.
        (&self.cgroup_procs).write_all(b"0")?;
        setns(&self.netns, CloneFlags::CLONE_NEWNET)?;
        unshare(CloneFlags::CLONE_NEWNS)?;
        // As a slave this mount namespace hears of the machine's mounts and unmounts, and tells none of its own.
        let none: Option<&std::ffi::CStr> = None;
        mount(none, c"/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
        mount(Some(self.hosts.as_c_str()), c"/etc/hosts", none, MsFlags::MS_BIND, none)?;
        Ok(())
    }
}
