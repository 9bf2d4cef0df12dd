//! Builds the kernel programs and hands their object to the agent, which embeds it.
//!
//! Either of two toolchains will do: a rustup nightly with `rust-src`, or Debian's `rustc-web` with `rust-web-src`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Debian's compiler, and the library source that belongs to it.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
/// Names an object that another build has made, so that builds with other flags (the fuzz targets') need not make it too.
const READY_OBJECT: &str = "SLUICE_EBPF_OBJECT";

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("..");
    for watched in ["agent-ebpf/src", "agent-ebpf/Cargo.toml", "agent-ebpf/Cargo.lock", "agent-common/src"] {
        println!("cargo::rerun-if-changed={}", root.join(watched).display());
    }
    println!("cargo::rerun-if-env-changed=PATH");
    println!("cargo::rerun-if-env-changed={READY_OBJECT}");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let built = match env::var_os(READY_OBJECT) {
        Some(object) => take(Path::new(&object), &out),
        None => build(&root.join("agent-ebpf"), &out),
    };
    if let Err(what) = built {
        // One line: what is missing and what brings it.
        println!("cargo::error={what}");
    }
}

fn build(source: &Path, out: &Path) -> Result<(), String> {
    if !runs("bpf-linker", &["--version"]) {
        return Err("bpf-linker is missing: run scripts/setup, or `cargo install bpf-linker`".into());
    }
    let target = out.join("ebpf");
    let mut cargo = toolchain()?;
    cargo
        .current_dir(source)
        .args([
            "build",
            "--release",
            "--locked",
            "-Z",
            "build-std=core",
            "--target",
            "bpfel-unknown-none",
            "--target-dir",
        ])
        .arg(&target)
        .env("RUSTFLAGS", "-C linker=bpf-linker -C target-cpu=v3 -C debuginfo=2 -C link-arg=--btf");
    let output = cargo.output().map_err(|error| format!("cannot run the eBPF toolchain's cargo: {error}"))?;
    if !output.status.success() {
        let log = String::from_utf8_lossy(&output.stderr);
        for line in log.lines() {
            println!("cargo::warning={line}");
        }
        return Err("the kernel programs in agent-ebpf do not build (see the lines above)".into());
    }
    take(&target.join("bpfel-unknown-none/release/sluice-ebpf"), out)
}

/// Puts the object where the agent's source expects it.
fn take(object: &Path, out: &Path) -> Result<(), String> {
    std::fs::copy(object, out.join("sluice-ebpf.o"))
        .map_err(|error| format!("{}: {error}", object.display()))?;
    Ok(())
}

/// A cargo that can compile `core` for the kernel, without the variables that the outer cargo sets for itself.
fn toolchain() -> Result<Command, String> {
    let mut cargo = if nightly_has_source() {
        let mut rustup = Command::new("rustup");
        rustup.args(["run", "nightly", "cargo"]);
        rustup
    } else if Path::new(DEBIAN_CARGO).exists() && has_source(DEBIAN_RUSTC, &[]) {
        let mut debian = Command::new(DEBIAN_CARGO);
        debian.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
        debian
    } else {
        return Err("no compiler for the kernel programs: run scripts/setup, or \
                    `rustup toolchain install nightly --component rust-src`"
            .into());
    };
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let set_here = matches!(name.as_str(), "RUSTC" | "RUSTC_BOOTSTRAP")
            && cargo.get_envs().any(|(k, _)| *k == *name);
        if !set_here && is_outer_cargo(&name) {
            cargo.env_remove(&name);
        }
    }
    Ok(cargo)
}

fn is_outer_cargo(name: &str) -> bool {
    name.starts_with("CARGO_") && name != "CARGO_HOME"
        || matches!(
            name,
            "CARGO"
                | "RUSTC"
                | "RUSTC_WRAPPER"
                | "RUSTC_WORKSPACE_WRAPPER"
                | "RUSTUP_TOOLCHAIN"
                | "TARGET"
                | "HOST"
        )
}

fn nightly_has_source() -> bool {
    has_source("rustup", &["run", "nightly", "rustc"])
}

/// Whether the compiler that `program args` runs has the source of `core` beside it.
fn has_source(program: &str, args: &[&str]) -> bool {
    let output =
        Command::new(program).args(args).args(["--print", "sysroot"]).env_remove("RUSTUP_TOOLCHAIN").output();
    output.is_ok_and(|output| {
        let sysroot = String::from_utf8_lossy(&output.stdout);
        output.status.success()
            && Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml").exists()
    })
}

fn runs(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
}
