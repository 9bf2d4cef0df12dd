//! `sluice check`: preflight.

use std::process::ExitCode;

use clap::Args;

use super::agent::CaptureArgs;
use super::{Format, OutputArgs, output};
use crate::capture::{CaptureSettings, Check, Outcome, checks};
use crate::telemetry::FlowLog;

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    capture: CaptureArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let Some(options) = args.capture.options()? else {
        match args.output.output {
            Format::Json => output::json(&[(); 0])?,
            Format::Table => output::text("capture is off: nothing is asked of this node")?,
        }
        return Ok(ExitCode::SUCCESS);
    };
    let settings = CaptureSettings {
        pod_interfaces: options.pod_interfaces,
        uplinks: options.uplinks,
        marks: options.marks,
        workers: 1,
        bpffs: options.bpffs,
        on_stop: options.on_stop,
        destinations_max: options.destinations_max,
        limit_sources: options.limit_sources,
        cgroup: options.cgroup,
        acceleration: options.acceleration,
        node: String::new(),
        tunnels: false,
        guard: options.guard,
        socket_events: options.socket_events,
        flows: FlowLog::default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let checks = runtime.block_on(checks(&settings));
    match args.output.output {
        Format::Json => output::json(&checks)?,
        Format::Table => {
            let row = |check: &Check| {
                [check.name.to_owned(), result(check.outcome).to_owned(), check.detail.clone()]
            };
            output::table(["check", "result", "detail"], &checks.iter().map(row).collect::<Vec<_>>())?;
        }
    }
    let failed = checks.iter().any(|check| check.outcome == Outcome::Failed);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn result(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Ok => "ok",
        Outcome::Warning => "warning",
        Outcome::Failed => "FAILED",
    }
}
