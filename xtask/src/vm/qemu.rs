//! Runs a guest and learns from its console how it ended.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// What the guest's last line begins with; the exit code follows.
pub const EXIT_MARK: &str = "vm-guest-exit-code: ";

/// A virtual machine.
#[derive(Debug, Clone, Copy)]
pub struct Machine<'a> {
    /// Its kernel.
    pub kernel: &'a Path,
    /// Its file system.
    pub initramfs: &'a Path,
    /// MiB of memory.
    pub memory_mib: u32,
    /// How long it may run.
    pub limit: Duration,
}

/// Runs the machine, passing its console through, and returns the guest's exit code.
pub fn run(machine: &Machine<'_>) -> Result<i32> {
    let mut child = start(machine)?;
    let lines = console(&mut child)?;
    let outcome = follow(&lines, Instant::now() + machine.limit, machine.limit);
    // Whatever was learnt, the machine is of no further use, and one that hangs never ends by itself.
    let _ = child.kill();
    child.wait().context("waiting for the virtual machine")?;
    outcome
}

/// Emulation is forced: /dev/kvm may open and yet be unable to run a stock kernel, which then hangs.
fn start(machine: &Machine<'_>) -> Result<Child> {
    Command::new("qemu-system-x86_64")
        .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-machine", "pc", "-smp", "2"])
        .args(["-m", &machine.memory_mib.to_string(), "-nic", "none", "-display", "none", "-no-reboot"])
        .args(["-serial", "stdio", "-monitor", "none"])
        .arg("-kernel")
        .arg(machine.kernel)
        .arg("-initrd")
        .arg(machine.initramfs)
        .args(["-append", "console=ttyS0 panic=-1 quiet mitigations=off"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting qemu-system-x86_64: run 'scripts/setup --vm'")
}

fn console(child: &mut Child) -> Result<Receiver<String>> {
    let stdout = child.stdout.take().context("the console is piped")?;
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        let mut console = BufReader::new(stdout);
        let mut line = Vec::new();
        // A kernel's console is not always UTF-8.
        while console.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            if sender.send(text).is_err() {
                break;
            }
        }
    });
    Ok(lines)
}

fn follow(lines: &Receiver<String>, end: Instant, limit: Duration) -> Result<i32> {
    loop {
        match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                if let Some(code) = exit_code(&line) {
                    return Ok(code);
                }
                println!("  {line}");
            }
            Err(RecvTimeoutError::Timeout) => bail!("the guest did not end within {} s", limit.as_secs()),
            Err(RecvTimeoutError::Disconnected) => {
                bail!("the guest ended without an exit code (see its console)")
            }
        }
    }
}

fn exit_code(line: &str) -> Option<i32> {
    line.split_once(EXIT_MARK)?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_on_the_last_line() {
        assert_eq!(exit_code("vm-guest-exit-code: 101\r"), Some(101));
        assert_eq!(exit_code("[ 1.0] vm-guest-exit-code: 0"), Some(0));
        assert_eq!(exit_code("vm-guest-exit-code: $?"), None);
        assert_eq!(exit_code("test result: ok"), None);
    }

    #[test]
    fn a_guest_that_ends_early_or_never_is_an_error() {
        let (sender, lines) = mpsc::channel();
        sender.send("booting".to_owned()).expect("the receiver is there");
        let now = Instant::now();
        let error = follow(&lines, now, Duration::ZERO).expect_err("it never ends");
        assert!(error.to_string().contains("did not end"), "{error}");
        drop(sender);
        let error = follow(&lines, now + Duration::from_secs(5), Duration::ZERO).expect_err("it is gone");
        assert!(error.to_string().contains("without an exit code"), "{error}");
    }
}
