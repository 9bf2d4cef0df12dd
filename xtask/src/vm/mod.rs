//! `cargo xtask vm`: runs test binaries on other kernels, each in a virtual machine of its own.
//!
//! The guest is a busybox initramfs that holds the binaries, the tools that the lab uses, their libraries and the
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
    /// The integration tests to run (files of tests/tests, without their ending); built first
    #[arg(long, value_delimiter = ',', default_value = "lab")]
    test: Vec<String>,
    /// Arguments of each test binary
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Runs it on every kernel; fails when it fails on one.
pub fn run(options: &Options) -> Result<ExitCode> {
    let binaries = build_tests(&options.test)?;
    let mut failed = Vec::new();
    for kernel in &options.kernel {
        let directory = crate::workspace().join("target/vm").join(kernel);
        if !directory.join("vmlinuz").is_file() {
            bail!("no kernel {kernel} in {}: run 'scripts/setup --vm'", directory.display());
        }
        let guest = Guest {
            directory: &directory,
            binaries: &binaries,
            with: &options.with,
            memory_mib: options.memory,
        };
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

/// Builds integration tests and returns their binaries.
fn build_tests(names: &[String]) -> Result<Vec<PathBuf>> {
    // The whole workspace, so that what its build has compiled serves here too.
    let mut cargo =
        command("cargo", ["test", "--workspace", "--locked", "--no-run", "--message-format=json"]);
    cargo.args(names.iter().flat_map(|name| ["--test", name.as_str()])).current_dir(crate::workspace());
    let messages = stdout(&mut cargo)?;
    let binary = |name: &String| {
        let found = messages.lines().find_map(|line| executable_of(name, line));
        found.with_context(|| format!("cargo built no test '{name}'"))
    };
    names.iter().map(binary).collect()
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
