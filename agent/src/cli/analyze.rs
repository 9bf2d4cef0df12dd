//! `sluice analyze`: the checks of documents, offline.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{Format, OutputArgs, output};
use crate::config::{ObjectReport, ObjectState, Report, Severity, analyze};

#[derive(Debug, Args)]
pub(super) struct AnalyzeArgs {
    /// Files, or directories of files; `-` reads the standard input
    #[arg(required = true, value_name = "FILES")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn run(args: &AnalyzeArgs) -> anyhow::Result<ExitCode> {
    let report = analyze(&args.files);
    match args.output.output {
        Format::Json => output::json(&report)?,
        Format::Table => output::text(&render(&report))?,
    }
    Ok(if report.has_errors() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The messages, worst first, then what is not enforced yet, and a summary.
fn render(report: &Report) -> String {
    let mut lines: Vec<(Severity, String)> = report.lines().collect();
    lines.sort_by_key(|(severity, _)| std::cmp::Reverse(*severity));
    let (errors, warnings) = (report.count(Severity::Error), report.count(Severity::Warning));
    let summary = format!("{} objects: {errors} errors, {warnings} warnings", report.objects.len());
    let messages = lines.into_iter().map(|(_, line)| line);
    messages
        .chain(report.objects.iter().filter_map(not_enforced))
        .chain([summary])
        .collect::<Vec<_>>()
        .join("\n")
}

fn not_enforced(object: &ObjectReport) -> Option<String> {
    let ObjectState::NotEnforced { fields } = &object.state else { return None };
    let what = if fields.is_empty() { "all of it".to_owned() } else { fields.join(", ") };
    Some(format!("{}:{}: not yet enforced: {}: {what}", object.file, object.line, object.title()))
}
