//! The boot self-test: the trials run in a process of their own, in a cgroup below the one that acceleration is for, with the
//! programs on that cgroup alone. A kernel that fails one is not trusted with anybody's sockets.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use agent_common::acceleration::{AccelerationConfig, AccelerationReason};
use nix::sched::{CloneFlags, unshare};
use rtnetlink::LinkUnspec;
use serde::{Deserialize, Serialize};

use super::trials::{BACKPRESSURE, SPLICE_FROM, TRIALS, WAITING_RECV};
use super::{Acceleration, AccelerationMode, CaptureError};

/// The hidden verb that the self-test's process runs.
pub const VERB: &str = "acceleration-trials";
/// All trials together; they take a few hundred milliseconds.
const LIMIT: Duration = Duration::from_secs(10);
/// What `--acceleration on` does without: pods that need these opt out.
const FORGIVABLE: [&str; 3] = [SPLICE_FROM, BACKPRESSURE, WAITING_RECV];
/// The index of loopback in a new network namespace.
const LOOPBACK: u32 = 1;

/// How a trial came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrialReport {
    /// Its name.
    pub name: String,
    /// What went wrong; `None`: nothing.
    pub fault: Option<String>,
}

/// Why acceleration stays off.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    /// The directory is no cgroup v2.
    #[error("{path} is no cgroup v2 directory that a group can be made in: {source}")]
    Cgroup {
        /// The directory.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// The kernel refused the programs.
    #[error(transparent)]
    Programs(#[from] CaptureError),
    /// The self-test's process could not be run.
    #[error("the self-test's process: {0}")]
    Process(#[source] io::Error),
    /// Trials failed.
    #[error("this kernel fails the self-test: {0}")]
    Failed(String),
    /// Only trials failed that the operator may do without.
    #[error("this kernel fails the self-test: {0}; `--acceleration on` takes it as it is")]
    Forgivable(String),
    /// The trials passed, and no message was handed over: they say nothing.
    #[error("the self-test's sockets were not seen; is {0} a cgroup v2 that this process may use?")]
    Unseen(PathBuf),
}

/// The cgroup of one self-test; removed when dropped.
struct Group(PathBuf);

impl Group {
    fn below(cgroup: &Path) -> Result<Self, SelfTestError> {
        let path = cgroup.join(format!("sluice-self-test-{}", std::process::id()));
        let failed = |source| SelfTestError::Cgroup { path: cgroup.to_owned(), source };
        // Anywhere else a directory could be made, too.
        fs::metadata(cgroup.join("cgroup.procs")).map_err(failed)?;
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed(error)),
            _ => Ok(Self(path)),
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The process has been waited for, so that the group is empty.
        if let Err(error) = fs::remove_dir(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "the self-test's cgroup stays behind");
        }
    }
}

/// Runs the trials below `cgroup`, and judges them. Blocks for [`LIMIT`] at most.
pub fn self_test(cgroup: &Path, mode: AccelerationMode) -> Result<Vec<TrialReport>, SelfTestError> {
    let group = Group::below(cgroup)?;
    let config = AccelerationConfig { node_cookie: 0, own_mark: 0, everyone: 1 };
    let (acceleration, _ebpf) = Acceleration::alone(&group.0, config)?;
    let reports = run_trials_in(&group.0).map_err(SelfTestError::Process)?;
    judge(&reports, mode)?;
    if acceleration.counters().of(AccelerationReason::Redirected) == 0 {
        return Err(SelfTestError::Unseen(cgroup.to_owned()));
    }
    Ok(reports)
}

/// Whether a kernel with these reports may have acceleration.
fn judge(reports: &[TrialReport], mode: AccelerationMode) -> Result<(), SelfTestError> {
    let failed = |spared: bool| {
        let faults = reports.iter().filter(|report| FORGIVABLE.contains(&&*report.name) == spared);
        let faults = faults.filter_map(|report| Some(format!("{}: {}", report.name, report.fault.as_ref()?)));
        faults.collect::<Vec<_>>().join("; ")
    };
    let (faults, forgivable) = (failed(false), failed(true));
    if !faults.is_empty() {
        return Err(SelfTestError::Failed(faults));
    }
    match mode {
        AccelerationMode::On => Ok(()),
        AccelerationMode::Auto | AccelerationMode::Off if forgivable.is_empty() => Ok(()),
        AccelerationMode::Auto | AccelerationMode::Off => Err(SelfTestError::Forgivable(forgivable)),
    }
}

fn run_trials_in(group: &Path) -> io::Result<Vec<TrialReport>> {
    let mut process = Command::new("/proc/self/exe")
        .arg(VERB)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let lines = admit(&mut process, group).map(|()| read_reports(&mut process));
    // It may have ended by itself.
    let _ = process.kill();
    process.wait()?;
    let mut reports = lines?;
    for trial in &TRIALS[reports.len().min(TRIALS.len())..] {
        let fault = Some("it did not end".to_owned());
        reports.push(TrialReport { name: trial.name.to_owned(), fault });
    }
    Ok(reports)
}

/// Puts the process into the group, and lets it begin: sockets belong to the group in which they are made.
fn admit(process: &mut Child, group: &Path) -> io::Result<()> {
    fs::write(group.join("cgroup.procs"), process.id().to_string())?;
    let mut stdin = process.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
    stdin.write_all(b"\n")
}

fn read_reports(process: &mut Child) -> Vec<TrialReport> {
    let Some(stdout) = process.stdout.take() else { return Vec::new() };
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            // A report that nobody waits for any more is of no use.
            let _ = sender.send(line);
        }
    });
    let deadline = Instant::now() + LIMIT;
    let next = || receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok();
    std::iter::from_fn(next).map_while(|line| serde_json::from_str(&line).ok()).collect()
}

/// The self-test's process: waits to be admitted, runs the trials in a network namespace of its own, and reports each on a
/// line of standard output.
pub fn run_trials() -> io::Result<()> {
    io::stdin().read_line(&mut String::new())?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    raise_loopback().map_err(io::Error::other)?;
    for trial in TRIALS {
        let fault = (trial.run)().err().map(|fault| fault.to_string());
        let report = TrialReport { name: trial.name.to_owned(), fault };
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{}", serde_json::to_string(&report)?)?;
        stdout.flush()?;
    }
    Ok(())
}

fn raise_loopback() -> Result<(), rtnetlink::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let failed = |error: io::Error| rtnetlink::Error::NamespaceError(error.to_string());
    runtime.map_err(failed)?.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(failed)?;
        tokio::spawn(connection);
        handle.link().set(LinkUnspec::new_with_index(LOOPBACK).up().build()).execute().await
    })
}

/// Opens a directory that programs are attached to.
pub(super) fn open(cgroup: &Path) -> Result<File, CaptureError> {
    File::open(cgroup)
        .map_err(|source| CaptureError::Cgroup { path: cgroup.to_owned(), reason: source.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reports(failing: &[&str]) -> Vec<TrialReport> {
        let fault = |name: &str| failing.contains(&name).then(|| "broken".to_owned());
        TRIALS.map(|trial| TrialReport { name: trial.name.to_owned(), fault: fault(trial.name) }).into()
    }

    #[test]
    fn a_kernel_is_judged_by_its_faults() {
        use AccelerationMode::{Auto, On};
        // (failing trials, mode) -> what is said; none: acceleration is on.
        let cases: [(&[&str], _, Option<&str>); 7] = [
            (&[], Auto, None),
            (&[], On, None),
            (&[SPLICE_FROM], Auto, Some("splice from a socket: broken; `--acceleration on`")),
            (&[SPLICE_FROM], On, None),
            (&[SPLICE_FROM, BACKPRESSURE, WAITING_RECV], On, None),
            (&["FIONREAD"], On, Some("self-test: FIONREAD: broken")),
            (&["FIONREAD", "RST", SPLICE_FROM], Auto, Some("FIONREAD: broken; RST: broken")),
        ];
        for (failing, mode, expected) in cases {
            let said = judge(&reports(failing), mode).err().map(|error| error.to_string());
            match (expected, &said) {
                (None, None) => {}
                (Some(part), Some(text)) if text.contains(part) => {}
                _ => panic!("{failing:?} under {mode:?}: {said:?} instead of {expected:?}"),
            }
        }
    }

    #[test]
    fn plain_tcp_passes_every_trial() {
        for trial in TRIALS {
            if let Err(fault) = (trial.run)() {
                panic!("{}: {fault}", trial.name);
            }
        }
    }
}
