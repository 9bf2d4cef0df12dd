//! What the kernel says of a process: its processor time and its memory, with its children's.
//!
//! The time contains what the kernel does in the process's context: system calls, and the network's softirqs that run
//! at their end.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// What /proc counts time in, on every Linux (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// Seconds of processor time of a process and its children, over all threads.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let mut ticks = 0.0;
    for pid in family(pid)? {
        ticks += stat(pid)?.ticks;
    }
    Ok(ticks / TICKS_PER_SECOND)
}

/// Processor time of a process and its children over all threads, to the nanosecond: of short turns, for which ticks are too coarse.
/// A kernel thread is a process too. What a child that has ended took is not in it.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let own = clock_of(pid).with_context(|| format!("process {pid} is gone"))?;
    // A child may end while it is looked at.
    let children =
        family(pid)?.into_iter().filter(|one| *one != pid).filter_map(|child| clock_of(child).ok());
    Ok(own + children.sum::<Duration>())
}

fn clock_of(pid: u32) -> Result<Duration> {
    let number = i32::try_from(pid).context("a process number")?;
    Ok(clock_gettime(clock_getcpuclockid(Pid::from_raw(number))?)?.into())
}

/// Resident memory of a process and its children, in KiB. Pages that they share count in each.
pub fn rss_kib(pid: u32) -> Result<f64> {
    let mut kib = 0.0;
    for pid in family(pid)? {
        let status =
            fs::read_to_string(format!("/proc/{pid}/status")).context("reading a process's status")?;
        kib += resident(&status).context("a status without VmRSS")?;
    }
    Ok(kib)
}

/// Keeps a process or thread, and whatever it starts later, on one core.
pub fn bind(id: i32, core: usize) -> Result<()> {
    let mut one = CpuSet::new();
    one.set(core).context("a set of cores")?;
    sched_setaffinity(Pid::from_raw(id), &one).with_context(|| format!("binding {id} to core {core}"))
}

/// Keeps all threads of a process, and whatever they start later, on one core.
pub fn bind_threads(pid: u32, core: usize) -> Result<()> {
    for thread in fs::read_dir(format!("/proc/{pid}/task")).context("a process's threads")?.flatten() {
        let number = thread.file_name().to_str().and_then(|name| name.parse().ok());
        bind(number.context("a thread's number")?, core)?;
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Stat {
    parent: u32,
    ticks: f64,
}

fn stat(pid: u32) -> Result<Stat> {
    let text =
        fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid} is gone"))?;
    parse_stat(&text).with_context(|| format!("an unknown form of /proc/{pid}/stat"))
}

/// The fields after the name, which is in brackets and may hold anything; see proc(5).
fn parse_stat(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
    let ticks = |index: usize| fields.get(index)?.parse::<f64>().ok();
    Some(Stat { parent: fields.get(1)?.parse().ok()?, ticks: ticks(11)? + ticks(12)? })
}

fn resident(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// A process and its children; no program measured here has grandchildren.
fn family(pid: u32) -> Result<Vec<u32>> {
    let mut family = vec![pid];
    for entry in fs::read_dir("/proc").context("reading /proc")?.flatten() {
        let Some(other) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if stat(other).is_ok_and(|stat| stat.parent == pid) {
            family.push(other);
        }
    }
    Ok(family)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_look_like_fields() {
        let text = "7 (a) R 9 9) S 3 7 7 0 -1 4194560 1 0 0 0 21 4 0 0 20 0 1 0 5 6 7";
        assert_eq!(parse_stat(text), Some(Stat { parent: 3, ticks: 25.0 }));
        for bad in ["", "7 (a)", "7 (a) S 3", "7 (a) S x 7 7 0 -1 4194560 1 0 0 0 21 4 0"] {
            assert_eq!(parse_stat(bad), None, "{bad}");
        }
    }

    #[test]
    fn resident_memory_is_found_by_name() {
        assert_eq!(resident("VmHWM:\t9 kB\nVmRSS:\t  5120 kB\n"), Some(5120.0));
        assert_eq!(resident("VmHWM:\t9 kB\n"), None);
    }

    #[test]
    fn this_process_uses_time_and_memory() {
        assert!(rss_kib(std::process::id()).expect("it runs") > 0.0);
        assert!(cpu_seconds(std::process::id()).expect("it runs") >= 0.0);
        assert!(cpu_seconds(u32::MAX).is_err());
        assert!(cpu_time(std::process::id()).expect("it runs") > Duration::ZERO);
        assert!(cpu_time(u32::MAX).is_err());
    }
}
