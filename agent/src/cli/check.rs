//! `sluice check`: preflight.

use std::process::ExitCode;

use clap::Args;

use super::agent::CaptureArgs;
use super::{Format, OutputArgs, output};
use crate::capture::{CaptureSettings, Outcome, checks};

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    capture: CaptureArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let Some(options) = args.capture.options()? else {
        output::text("capture is off: nothing is asked of this node")?;
        return Ok(ExitCode::SUCCESS);
    };
    let settings = CaptureSettings {
        pod_interfaces: options.pod_interfaces,
        uplinks: options.uplinks,
        marks: options.marks,
        workers: 1,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let checks = runtime.block_on(checks(&settings));
    match args.output.output {
        Format::Json => output::json(&checks)?,
        Format::Table => {
            let mut table = output::table(&["check", "result", "detail"]);
            for check in &checks {
                let result = match check.outcome {
                    Outcome::Ok => "ok",
                    Outcome::Warning => "warning",
                    Outcome::Failed => "FAILED",
                };
                table.add_row([check.name, result, &check.detail]);
            }
            output::rows(&table)?;
        }
    }
    let failed = checks.iter().any(|check| check.outcome == Outcome::Failed);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
