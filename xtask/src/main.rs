//! Developer chores: `cargo xtask lab|tidy|demo|bench|release|vm`.

mod bench;
mod demo;
mod lab_verbs;
mod release;
mod tidy;
mod vm;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Developer chores.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", version, about)]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Clusters made of network namespaces, to try things in
    Lab {
        #[command(subcommand)]
        verb: lab_verbs::Verb,
    },
    /// Check the source tree's own rules: sizes, names, order of imports
    Tidy {
        /// The root of the tree
        #[arg(default_value_os_t = workspace())]
        root: PathBuf,
    },
    /// Show the product end to end, and check what is shown
    Demo(demo::Options),
    /// Compare the agent with its peers
    Bench {
        #[command(subcommand)]
        verb: bench::Verb,
    },
    /// Build the agent optimized for the loads of the bench
    Release(release::Options),
    /// Run test binaries on other kernels, in virtual machines
    Vm(vm::Options),
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    match arguments.chore {
        Chore::Lab { verb } => lab_verbs::run(verb),
        Chore::Tidy { root } => tidy::run(&root),
        Chore::Demo(options) => demo::run(&options),
        Chore::Bench { verb } => bench::run(&verb),
        Chore::Release(options) => release::run(&options),
        Chore::Vm(options) => vm::run(&options),
    }
}

/// The root of the workspace that this was built in.
fn workspace() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}
