//! `sluice cleanup`: removes what an agent that is gone has left in the kernel.

use std::process::ExitCode;

use clap::Args;

use super::agent::{number, table};
use super::{Format, OutputArgs, output};
use crate::capture::{Bpffs, CaptureError, Claim, Cleaned, Marks, Under, clean};

#[derive(Debug, Args)]
pub(super) struct CleanupArgs {
    /// The directory of pins that the agent was given.
    #[arg(long, env = "SLUICE_BPFFS", value_name = "DIR|off")]
    bpffs: Option<Bpffs>,
    /// The packet mark that the agent was given.
    #[arg(long, env = "SLUICE_DELIVER_MARK", value_parser = number, default_value = "0x1510")]
    deliver_mark: u32,
    /// The routing table that the agent was given.
    #[arg(long, env = "SLUICE_ROUTE_TABLE", value_parser = table, default_value_t = 1510)]
    route_table: u32,
    /// Cleans up under a running agent, which keeps its programs and within 5 s puts back its pins, rules, routes and nft
    /// table; killed before that, its policies end with it.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn run(args: &CleanupArgs) -> anyhow::Result<ExitCode> {
    // Held to the end, so that no agent starts meanwhile.
    let (_claim, under) = match Claim::take() {
        Err(CaptureError::Claimed) if args.force => (None, Under::Agent),
        Err(CaptureError::Claimed) => {
            anyhow::bail!(
                "an agent captures on this node; stop it first, or clean up all the same with --force"
            )
        }
        claim => (Some(claim?), Under::Nobody),
    };
    let marks = Marks { deliver: args.deliver_mark, table: args.route_table, ..Marks::default() };
    let bpffs = args.bpffs.clone().unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let cleaned = runtime.block_on(clean(marks, &bpffs, under))?;
    match args.output.output {
        Format::Json => output::json(&cleaned)?,
        Format::Table => output::text(&render(&cleaned))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn render(cleaned: &[Cleaned]) -> String {
    if cleaned.is_empty() {
        return "nothing of an agent is here".to_owned();
    }
    cleaned.iter().map(|one| format!("removed {one}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_removed_thing_has_a_line() {
        let pin = Cleaned { kind: "pin", name: "links/tc-ingress-3".to_owned() };
        let rule = Cleaned { kind: "rule", name: "fwmark 0x1510".to_owned() };
        assert_eq!(render(&[]), "nothing of an agent is here");
        assert_eq!(render(&[pin, rule]), "removed pin links/tc-ingress-3\nremoved rule fwmark 0x1510");
    }
}
