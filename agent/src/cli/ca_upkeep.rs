//! `sluice ca revoke`, `rotate` and `show`: what is done with a CA after it was made.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::ca::{authority, life};
use super::{Format, OutputArgs, output};
use crate::identity::{
    Authority, Holding, LeftBehind, NodeName, OperatorName, Target, Term, inventory, next_step,
};

#[derive(Debug, Args)]
#[group(id = "target", required = true, multiple = false, args = ["node", "operator", "certificate", "serial"])]
pub(super) struct RevokeArgs {
    /// The CA's directory.
    #[arg(long, value_name = "DIR")]
    pub(super) dir: PathBuf,
    /// All that this node was given and whose time is not over.
    #[arg(long, value_name = "NODE")]
    node: Option<NodeName>,
    /// All that this operator was ever given: what it sealed counts after its certificates' time.
    #[arg(long, value_name = "NAME")]
    operator: Option<OperatorName>,
    /// The certificates in a file.
    #[arg(long, value_name = "FILE")]
    certificate: Option<PathBuf>,
    /// The certificate of this serial number, in hexadecimal digits.
    #[arg(long, value_name = "HEX")]
    serial: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct RotateArgs {
    /// `prepare` makes the next root and puts it into the bundle; `sign` lets it issue; `finish` lets the old one go.
    step: RotateStep,
    /// The CA's directory.
    #[arg(long, value_name = "DIR")]
    pub(super) dir: PathBuf,
    /// How long the next root holds: 12h, 90d.
    #[arg(long, default_value = "3650d", value_parser = life)]
    life: Duration,
    /// Finishes although the old root has issued the only certificates of somebody.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RotateStep {
    Prepare,
    Sign,
    Finish,
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// The directory of a CA, a node or an operator.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

/// What is on the list of revoked certificates now.
#[derive(Debug, Serialize)]
struct Revoked {
    /// The serial numbers that were not on it before.
    added: Vec<String>,
    /// How many are on it.
    count: usize,
    file: PathBuf,
}

/// What a directory holds.
#[derive(Debug, Serialize)]
struct Shown {
    holdings: Vec<Holding>,
    /// The step of a rotation that comes next.
    next_step: Option<&'static str>,
}

pub(super) fn revoke(args: &RevokeArgs) -> anyhow::Result<ExitCode> {
    let target = match (&args.node, &args.operator, &args.certificate, &args.serial) {
        (Some(node), ..) => Target::Node(node.clone()),
        (_, Some(operator), ..) => Target::Operator(operator.clone()),
        (_, _, Some(file), _) => Target::Certificate(file.clone()),
        (.., Some(serial)) => Target::Serial(serial.clone()),
        _ => anyhow::bail!("nothing was named that shall be revoked"),
    };
    let ca = authority(&args.dir)?;
    let listed = ca.revoke(&target, SystemTime::now())?;
    if let Some(serial) = &args.serial {
        match ca.has_issued(serial) {
            Ok(true) => {}
            Ok(false) => {
                eprintln!(
                    "{serial}: this CA has not written down that it issued it; it is on the list all the same"
                );
            }
            Err(error) => {
                eprintln!("{serial}: it is on the list, but whether it was issued can't be told: {error}");
            }
        }
    }
    let file = args.dir.join("revoked.crl");
    let revoked = Revoked { added: listed.added, count: listed.count, file };
    match args.output.output {
        Format::Json => output::json(&revoked)?,
        Format::Table => {
            let added = if revoked.added.is_empty() { "-".to_owned() } else { revoked.added.join(" ") };
            let row = [added, revoked.count.to_string(), revoked.file.display().to_string()];
            output::table(["added", "on the list", "file, for every node"], &[row])?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Answers when the root ends that the step was about.
pub(super) fn rotate(args: &RotateArgs) -> anyhow::Result<SystemTime> {
    let ca = authority(&args.dir)?;
    let now = SystemTime::now();
    match args.step {
        RotateStep::Prepare => Ok(ca.prepare_next(Term { now, life: args.life })?),
        RotateStep::Sign => Ok(ca.promote_next()?.not_after()),
        RotateStep::Finish => {
            let left = if args.force { LeftBehind::Asked } else { LeftBehind::Nobody };
            ca.retire_old(now, left)?;
            Ok(Authority::load(&args.dir)?.not_after())
        }
    }
}

/// Fails where something is not as it should be, which stands in the row.
pub(super) fn show(args: &ShowArgs) -> anyhow::Result<ExitCode> {
    let holdings = inventory(&args.dir, SystemTime::now())?;
    let shown = Shown { holdings, next_step: next_step(&args.dir) };
    match args.output.output {
        Format::Json => output::json(&shown)?,
        Format::Table => {
            let row = |held: &Holding| {
                [&held.file, &held.who, &held.serial, &held.not_before, &held.not_after, &held.state]
                    .map(Clone::clone)
            };
            let rows: Vec<_> = shown.holdings.iter().map(row).collect();
            output::table(["file", "who", "serial", "not before", "not after", "state"], &rows)?;
            if let Some(step) = shown.next_step {
                output::text(&format!("the next step of the rotation: sluice ca rotate {step}"))?;
            }
        }
    }
    Ok(if shown.holdings.iter().all(Holding::is_good) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
