//! Which processors what runs on, where requests are measured: they, their pods and the agent of their node have the first one to
//! themselves, so that what a change costs them is that agent's doing; Redis, the other nodes and whoever measures share the others.

use std::fs;

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// A part of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cores {
    /// The first processor.
    First,
    /// All others; the first, where there is no other.
    Others,
}

/// The processors that this process was given.
pub struct Machine(Vec<usize>);

impl Machine {
    /// Looks at what the calling thread may use.
    pub fn look() -> Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0)).context("this thread's processors")?;
        Ok(Self((0..CpuSet::count()).filter(|core| allowed.is_set(*core).unwrap_or(false)).collect()))
    }

    /// Keeps the calling thread there, with all that it starts from now on.
    pub fn enter(&self, cores: Cores) -> Result<()> {
        self.bind(0, cores)
    }

    /// Keeps a process there, with all its threads.
    pub fn give(&self, process: u32, cores: Cores) -> Result<()> {
        let threads = fs::read_dir(format!("/proc/{process}/task")).context("the threads of a process")?;
        for thread in threads {
            let id = thread?.file_name().into_string().ok().and_then(|name| name.parse().ok());
            self.bind(id.context("a thread's number")?, cores)?;
        }
        Ok(())
    }

    fn bind(&self, thread: i32, cores: Cores) -> Result<()> {
        let (first, others) = self.0.split_at(1.min(self.0.len()));
        bind(thread, if cores == Cores::First || others.is_empty() { first } else { others })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Whoever measures next looks again.
        let _ = bind(0, &self.0);
    }
}

fn bind(thread: i32, cores: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    cores.iter().try_for_each(|core| set.set(*core)).context("a set of processors")?;
    sched_setaffinity(Pid::from_raw(thread), &set)
        .with_context(|| format!("binding the thread {thread} to the processors {cores:?}"))
}
