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
    /// A test binary (see `cargo test --no-run`) and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Runs it on every kernel; fails when it fails on one.
pub fn run(options: &Options) -> Result<ExitCode> {
    let (binary, arguments) = options.command.split_first().context("a command has a first word")?;
    let mut failed = Vec::new();
    for kernel in &options.kernel {
        let directory = crate::workspace().join("target/vm").join(kernel);
        if !directory.join("vmlinuz").is_file() {
            bail!("no kernel {kernel} in {}: run 'scripts/setup --vm'", directory.display());
        }
        let guest = Guest { directory: &directory, binary: binary.as_ref(), with: &options.with };
        let initramfs = initramfs::build(&guest, arguments)?;
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
