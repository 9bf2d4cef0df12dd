//! `cargo xtask demo`: the product end to end, in a lab, with real curl and nginx. Everything that is shown is
//! checked.

mod canary;
mod ledger;
mod lifecycle;
pub mod shop;
mod strangler;
mod traffic;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lab::{AgentOptions, Lab, is_root};

use ledger::{Ledger, headline};
use lifecycle::Agents;

/// What to show.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The id of the lab that is brought up
    #[arg(long, default_value = "demo")]
    id: String,
    /// Stay up at the end, and say where to look
    #[arg(long)]
    keep: bool,
    /// Only what works without an agent: proves the lab
    #[arg(long, conflicts_with = "keep")]
    direct: bool,
}

/// Shows it.
pub fn run(options: &Options) -> Result<ExitCode> {
    ensure!(is_root(), "the demo makes network namespaces and loads eBPF programs: run it as root");
    let begin = Instant::now();
    let mut ledger = Ledger::default();
    headline("Bringing up two nodes, a client, a monolith and six backends (network namespaces, nginx)");
    let bring_up = if options.keep { Lab::up } else { Lab::owned };
    let lab = bring_up(&options.id, shop::topology(2))?;
    let outcome = show(&lab, options, &mut ledger);
    println!("\n{}", ledger.table());
    if let Err(error) = &outcome {
        println!("stopped early: {error:#}");
    }
    let failed = ledger.failed() + usize::from(outcome.is_err());
    println!("in {:.0} s", begin.elapsed().as_secs_f64());
    println!("{} passed, {failed} failed", ledger.passed());
    if options.keep {
        say_where_to_look(&lab);
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show(lab: &Lab, options: &Options, ledger: &mut Ledger) -> Result<()> {
    canary::show_direct(lab, ledger)?;
    if options.direct {
        return Ok(());
    }
    let config = lab.directory().join("config");
    let examples = crate::workspace().join("examples");
    lab.write_documents(&config)?;
    copy(&examples.join("order-service.yaml"), &config.join("order-service.yaml"))?;

    headline("Starting an agent on every node");
    let mut agents = Agents::start(lab, AgentOptions::new(&config)?)?;
    for (node, agent) in agents.running() {
        println!("   {node}: pid {}, log {}", agent.pid(), agent.log_path().display());
    }
    canary::show(lab, ledger)?;
    strangler::show(lab, &config, &examples, ledger)?;
    agents.show_kill(lab, ledger)?;
    agents.show_stop(lab, ledger)?;
    if options.keep {
        agents.start_missing(lab)?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).with_context(|| format!("copying {} to {}", from.display(), to.display()))
}

fn say_where_to_look(lab: &Lab) {
    let exec = format!("cargo xtask lab exec --id {}", lab.id());
    let config = lab.directory().join("config");
    println!("\nThe lab stays up. To look around:");
    println!("  {exec} client -- curl -s http://order-service/");
    println!("  {exec} client -- curl -s http://monolith:8080/api/orders/7");
    println!("  {exec} node1 -- curl -s http://{}/routes", lab::agent::ADMIN);
    println!("  {exec} node1 -- curl -s http://{}/metrics", lab::agent::METRICS);
    println!("  edit the documents in {} and ask again", config.display());
    println!("To take it down:");
    println!("  cargo xtask lab down --id {}", lab.id());
}
