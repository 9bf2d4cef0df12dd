//! The command line: parses and dispatches; one file per verb.
//!
//! Data goes to standard output, diagnostics to standard error. Exit codes: 0 done, 1 failed, 2 usage, 3 done and held back.

mod agent;
mod analyze;
mod apply;
mod ca;
mod ca_upkeep;
mod check;
mod cleanup;
mod connections;
mod counted;
mod end;
mod endpoints;
mod get;
mod leader;
mod limits;
mod observe;
mod outcome;
mod output;
mod routes;
mod sealing;
mod settings;
mod status;
mod store;
mod verdict;
mod why;

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::de::DeserializeOwned;

use crate::admin::client;
use crate::capture::{TRIALS_VERB, run_trials};

/// An eBPF-accelerated L4/L7 dataplane agent: one process per node replaces every sidecar on it.
#[derive(Debug, Parser)]
#[command(name = "sluice", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Runs the agent.
    Agent(Box<agent::AgentArgs>),
    /// Looks at everything that capture needs of this node, and says what to do about what is missing.
    Check(check::CheckArgs),
    /// Removes what an agent that is gone has left in the kernel; done twice, the second time finds nothing.
    Cleanup(cleanup::CleanupArgs),
    /// Shows what a running agent does: capture, table, documents and their errors.
    Status(ClientArgs),
    /// Shows the routing table of a running agent.
    Routes(ClientArgs),
    /// Shows the endpoints that a running agent balances over.
    Endpoints(ClientArgs),
    /// Shows the rate limits of a running agent: what they are about, what they let through and refused.
    Limits(limits::LimitsArgs),
    /// Shows the connections that are open: who serves them, why, and where their bytes go.
    Connections(connections::ConnectionsArgs),
    /// Shows what becomes of connections: verdicts, drops with the rule that decided, balancing, and how they ended.
    Observe(observe::ObserveArgs),
    /// Says what becomes of a connection, open, over or only thought of: the decision hook by hook and table by table.
    Why(why::WhyArgs),
    /// Checks documents offline; exits 1 where one has an error.
    Analyze(analyze::AnalyzeArgs),
    /// Writes documents to the cluster's store, once all of them have been checked.
    Apply(apply::ApplyArgs),
    /// Shows the documents of the cluster's store.
    Get(get::GetArgs),
    /// Deletes documents of the cluster's store.
    Delete(apply::DeleteArgs),
    /// Shows what `apply` would change; exits 1 where it is anything.
    Diff(apply::FilesArgs),
    /// Shows which node leads the cluster; exits 1 where none does.
    Leader(leader::LeaderArgs),
    /// Makes a CA that is a directory, and the identities that nodes sign with and make their workloads' from.
    Ca(ca::CaArgs),
    /// Lists what `sluice agent --set NAME=VALUE` can set: limits and timeouts, with their defaults.
    Settings(settings::SettingsArgs),
    /// The self-test of same-node acceleration, which `agent` and `check` start in a process of its own.
    #[command(name = TRIALS_VERB, hide = true)]
    AccelerationTrials,
}

/// What every verb that asks a running agent needs.
#[derive(Debug, Args)]
struct ClientArgs {
    /// The agent's admin address.
    #[arg(long, env = "SLUICE_ADMIN", default_value = "127.0.0.1:15000")]
    admin: SocketAddr,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
struct OutputArgs {
    /// How the answer is printed.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Runs the verb that the arguments name.
pub fn run() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Agent(args) => agent::run(*args),
        Verb::Check(args) => check::run(&args),
        Verb::Cleanup(args) => cleanup::run(&args),
        Verb::Status(args) => status::run(&args),
        Verb::Routes(args) => routes::run(&args),
        Verb::Endpoints(args) => endpoints::run(&args),
        Verb::Limits(args) => limits::run(&args),
        Verb::Connections(args) => connections::run(&args),
        Verb::Observe(args) => observe::run(&args),
        Verb::Why(args) => why::run(&args),
        Verb::Analyze(args) => analyze::run(&args),
        Verb::Apply(args) => apply::apply(&args),
        Verb::Get(args) => get::run(&args),
        Verb::Delete(args) => apply::delete(&args),
        Verb::Diff(args) => apply::diff(&args),
        Verb::Leader(args) => leader::run(&args),
        Verb::Ca(args) => ca::run(&args),
        Verb::Settings(args) => settings::run(&args),
        Verb::AccelerationTrials => run_trials().map(|()| ExitCode::SUCCESS).map_err(Into::into),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("sluice: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error with what led to it. Many errors say their cause in their own words already, and then it is not said twice.
fn told(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    let mut last = text.clone();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !last.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
        last = cause;
    }
    text
}

/// Asks a running agent for a document.
fn ask<T: DeserializeOwned>(args: &ClientArgs, path: &str) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(client::get(args.admin, path))?;
    serde_json::from_slice(&answer)
        .with_context(|| format!("the answer to {path} is not what this version expects"))
}

#[cfg(test)]
mod tests {
    use std::io;

    use anyhow::anyhow;

    use super::*;
    use crate::identity::IdentityError;

    #[test]
    fn no_cause_is_said_twice() {
        let read = || IdentityError::Read { file: "a.pem".into(), source: io::Error::other("no such file") };
        for (error, expected) in [
            (anyhow!("plain"), "plain"),
            (anyhow!("cause").context("while"), "while: cause"),
            (read().into(), "reading a.pem: no such file"),
            (anyhow::Error::new(read()).context("--ca"), "--ca: reading a.pem: no such file"),
            (anyhow!("x").context("x").context("y"), "y: x"),
        ] {
            assert_eq!(told(&error), expected);
        }
    }
}
