//! `cargo xtask demo`: the product end to end, in a lab, with real curl and nginx. Everything that is shown is
//! checked.

mod canary;
mod cluster;
mod ledger;
mod lifecycle;
mod limits;
pub mod shop;
mod site;
mod strangler;
mod traffic;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};
use lab::{Lab, is_root};

use ledger::{Ledger, headline};
use lifecycle::Agents;
use site::Site;

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
    headline("Bringing up three nodes with clients, a monolith and ten backends (network namespaces, nginx)");
    let bring_up = if options.keep { Lab::up } else { Lab::owned };
    let lab = bring_up(&options.id, shop::cluster())?;
    let outcome = show(&lab, options, &mut ledger);
    println!("\n{}", ledger.table());
    if let Err(error) = &outcome {
        println!("stopped early: {error:#}");
    }
    let failed = ledger.failed() + usize::from(outcome.is_err());
    println!("in {:.0} s", begin.elapsed().as_secs_f64());
    println!("{} passed, {failed} failed", ledger.passed());
    if options.keep {
        say_where_to_look(&lab)?;
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show(lab: &Lab, options: &Options, ledger: &mut Ledger) -> Result<()> {
    canary::show_direct(lab, ledger)?;
    if options.direct {
        return Ok(());
    }
    headline("Redis on a node of its own, certificates by sluice ca, documents by sluice apply");
    let mut site = Site::start(lab)?;
    let examples = crate::workspace().join("examples");
    let documents = lab.directory().join("config");
    lab.write_documents(&documents)?;
    for path in [documents, examples.join("order-service.yaml")] {
        println!("   sluice apply -f {}", path.display());
        site.apply("node1", &path)?;
    }

    headline("Starting an agent on every node");
    let mut agents = Agents::start(lab, site.agents()?)?;
    for (node, agent) in agents.running() {
        println!("   {node}: pid {}, log {}", agent.pid(), agent.log_path().display());
    }
    cluster::show_registered(&site, ledger)?;
    canary::show(lab, ledger)?;
    strangler::show(&site, &examples, ledger)?;
    limits::show(&site, ledger)?;
    cluster::show(&mut site, &mut agents, ledger)?;
    agents.show_kill(lab, ledger)?;
    agents.show_stop(lab, ledger)?;
    if options.keep {
        agents.start_missing(lab)?;
    }
    Ok(())
}

fn say_where_to_look(lab: &Lab) -> Result<()> {
    let exec = format!("cargo xtask lab exec --id {}", lab.id());
    let sluice = lab::agent::built_binary()?.display().to_string();
    println!("\nThe lab stays up. To look around:");
    println!("  {exec} client -- curl -s http://order-service/");
    println!("  {exec} client -- curl -s http://monolith:8080/api/orders/7");
    println!("  {exec} node1 -- {sluice} status");
    println!("  {exec} node1 -- curl -s http://{}/cluster", lab::agent::ADMIN);
    println!("  {exec} node1 -- curl -s http://{}/metrics", lab::agent::METRICS);
    println!("To see and change its documents:");
    println!("  export SLUICE_REDIS={} SLUICE_CLUSTER={}", lab::store::url(lab, shop::STORE)?, site::CLUSTER);
    println!("  export SLUICE_CA={}", lab::store::operator(lab).display());
    println!("  {exec} node2 -- {sluice} leader");
    println!("  {exec} node2 -- {sluice} get");
    println!(
        "  {exec} node2 -- {sluice} apply -f {}",
        crate::workspace().join("examples/strangler/step-3.yaml").display()
    );
    println!("To take it down:");
    println!("  cargo xtask lab down --id {}", lab.id());
    Ok(())
}
