//! `cargo xtask vm`: runs a test binary on other kernels, each in a virtual machine of its own.
//!
//! The guest is a busybox initramfs that holds the binary, the tools that the lab uses, their libraries and the
//! kernel modules that they need. It has no disk and no network. `scripts/setup --vm` fetches the kernels.

mod initramfs;
mod qemu;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use initramfs::Guest;
use lab::exec::{command, stdout};

/// What to run where.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The kernels, as named by `scripts/setup --vm`
    #[arg(long, value_delimiter = ',', default_value = "6.1,6.12")]
    kernel: Vec<String>,
    /// Seconds after which a guest is killed: an emulated kernel that hangs, hangs for ever
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// MiB of memory
    #[arg(long, default_value_t = 2048)]
    memory: u32,
    /// Further programs for the guest, found in /test; one named `sluice` is the binary under test
    #[arg(long)]
    with: Vec<PathBuf>,
    /// The integration test to run (a file of tests/tests, without its ending); built first
    #[arg(long, default_value = "lab")]
    test: String,
    /// Arguments of the test binary
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Runs it on every kernel; fails when it fails on one.
pub fn run(options: &Options) -> Result<ExitCode> {
    let binary = build_test(&options.test)?;
    let mut failed = Vec::new();
    for kernel in &options.kernel {
        let directory = crate::workspace().join("target/vm").join(kernel);
        if !directory.join("vmlinuz").is_file() {
            bail!("no kernel {kernel} in {}: run 'scripts/setup --vm'", directory.display());
        }
        let guest = Guest { directory: &directory, binary: &binary, with: &options.with };
        let initramfs = initramfs::build(&guest, &options.arguments)?;
        let machine = qemu::Machine {
            kernel: &directory.join("vmlinuz"),
            initramfs: &initramfs,
            memory_mib: options.memory,
            limit: Duration::from_secs(options.timeout),
        };
        println!("vm: kernel {kernel}");
        match qemu::run(&machine) {
            Ok(0) => println!("vm: kernel {kernel}: passed"),
            Ok(code) => failed.push(format!("kernel {kernel}: exit code {code}")),
            Err(error) => failed.push(format!("kernel {kernel}: {error:#}")),
        }
    }
    for failure in &failed {
        eprintln!("vm: {failure}");
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds an integration test and returns its binary.
fn build_test(name: &str) -> Result<PathBuf> {
    // The whole workspace, so that what its build has compiled serves here too.
    let arguments = ["test", "--workspace", "--locked", "--test", name, "--no-run", "--message-format=json"];
    let mut cargo = command("cargo", arguments);
    let messages = stdout(cargo.current_dir(crate::workspace()))?;
    let binary = messages.lines().find_map(|line| executable_of(name, line));
    binary.with_context(|| format!("cargo built no test '{name}'"))
}

/// The executable that a line of cargo's messages announces for a target.
fn executable_of(name: &str, line: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    let matches = message["target"]["name"] == name && message["target"]["kind"][0] == "test";
    matches.then(|| message["executable"].as_str().map(PathBuf::from))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_that_of_the_test_and_not_of_the_library() {
        let line = |kind: &str, executable: &str| {
            format!(r#"{{"target":{{"name":"lab","kind":["{kind}"]}},"executable":{executable}}}"#)
        };
        assert_eq!(executable_of("lab", &line("test", r#""/t/lab-1""#)), Some(PathBuf::from("/t/lab-1")));
        for other in
            [line("lib", r#""/t/lab-2""#), line("test", "null"), "not json".to_owned(), String::new()]
        {
            assert_eq!(executable_of("lab", &other), None, "{other}");
        }
    }
}
