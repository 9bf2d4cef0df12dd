//! `cargo xtask release`: the agent's fastest build. The compiler learns from a run of the bench's loads which way branches
//! go and what is called together (profile-guided optimization), and lays the code out for it.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use lab::exec::{command, run as run_command, stdout};

use crate::bench;

/// How.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Seconds of each load that the compiler learns from
    #[arg(long, default_value_t = 2)]
    seconds: u32,
    /// Where the binary goes
    #[arg(long, default_value_os_t = crate::workspace().join("target/pgo/sluice"))]
    out: PathBuf,
}

/// Builds twice, with the loads in between.
pub fn run(options: &Options) -> Result<ExitCode> {
    ensure!(options.seconds > 0, "--seconds begins at 1");
    let compiler = stdout(command("rustc", ["-vV"]).current_dir(crate::workspace()))?;
    let tool = merger(&compiler)?;
    let host = value(&compiler, "host: ").context("rustc does not say its host")?;
    let directory = crate::workspace().join("target/pgo");
    let (raw, merged) = (directory.join("raw"), directory.join("merged.profdata"));
    if raw.exists() {
        fs::remove_dir_all(&raw).with_context(|| format!("clearing {}", raw.display()))?;
    }
    fs::create_dir_all(&raw).with_context(|| format!("creating {}", raw.display()))?;

    println!("release: building the agent that counts");
    let counting =
        build(host, &directory.join("counting"), &format!("-Cprofile-generate={}", raw.display()))?;
    println!("release: running the bench's loads through it");
    bench::train(&counting, options.seconds)?;
    let mut parts: Vec<OsString> = vec!["merge".into(), "-o".into(), merged.clone().into()];
    parts.extend(profiles(&raw)?.into_iter().map(Into::into));
    run_command(Command::new(&tool).args(&parts))?;
    println!("release: building the agent with what was learned");
    let fastest = build(host, &directory.join("learned"), &format!("-Cprofile-use={}", merged.display()))?;
    fs::copy(&fastest, &options.out).with_context(|| format!("writing {}", options.out.display()))?;
    println!("release: {}", options.out.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds the agent with a flag of the compiler's. With a target named, build scripts and macros are spared it.
fn build(host: &str, target: &Path, flag: &str) -> Result<PathBuf> {
    let mut cargo = command("cargo", ["build", "--release", "--locked", "--quiet", "--package", "agent"]);
    cargo.args(["--target", host, "--target-dir"]).arg(target);
    cargo.env("RUSTFLAGS", flag).current_dir(crate::workspace());
    run_command(&mut cargo)?;
    Ok(target.join(host).join("release/sluice"))
}

/// What the counting agent left.
fn profiles(raw: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(raw).with_context(|| format!("reading {}", raw.display()))?;
    let paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    ensure!(!paths.is_empty(), "the agent left no profile in {}: did it end by itself?", raw.display());
    Ok(paths)
}

/// The program that merges profiles: rustup's, else the system's of the compiler's own LLVM, whose format it reads.
fn merger(compiler: &str) -> Result<PathBuf> {
    let host = value(compiler, "host: ").unwrap_or_default();
    let sysroot = stdout(&mut command("rustc", ["--print", "sysroot"]))?;
    let rustup = Path::new(sysroot.trim()).join("lib/rustlib").join(host).join("bin/llvm-profdata");
    if rustup.is_file() {
        return Ok(rustup);
    }
    let version = value(compiler, "LLVM version: ").unwrap_or_default();
    let major = version.split('.').next().unwrap_or_default();
    let system = PathBuf::from(format!("/usr/bin/llvm-profdata-{major}"));
    if system.is_file() {
        return Ok(system);
    }
    bail!(
        "there is no llvm-profdata for LLVM {major}: run 'rustup component add llvm-tools', or install llvm-{major}"
    )
}

fn value<'t>(text: &'t str, key: &str) -> Option<&'t str> {
    text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compiler_is_read() {
        let text =
            "rustc 1.95.0 (59807616e 2026-04-14)\nhost: x86_64-unknown-linux-gnu\nLLVM version: 22.1.2\n";
        assert_eq!(value(text, "host: "), Some("x86_64-unknown-linux-gnu"));
        assert_eq!(value(text, "LLVM version: "), Some("22.1.2"));
        assert_eq!(value(text, "release: "), None);
    }
}
