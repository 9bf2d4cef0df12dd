//! `sluice ca`: a CA that is a directory, and what it issues for nodes and operators. It asks no agent and needs no network.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::{Args, Subcommand};
use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;

use super::ca_upkeep::{self, RevokeArgs, RotateArgs, ShowArgs};
use super::{Format, OutputArgs, output};
use crate::identity::{
    Authority, NodeIdentity, NodeName, OperatorIdentity, OperatorName, Replace, Term, TrustDomain,
};
use crate::telemetry::rfc3339;

#[derive(Debug, Args)]
pub(super) struct CaArgs {
    #[command(subcommand)]
    verb: CaVerb,
}

#[derive(Debug, Subcommand)]
enum CaVerb {
    /// Makes the root of a trust domain: its key, its certificate, and the bundle that nodes get.
    Init(InitArgs),
    /// Makes what one node needs: the bundle, its own certificate, its intermediate, and their keys.
    Node(NodeArgs),
    /// Makes what somebody needs who applies documents: the bundle, a certificate that seals documents, and its key.
    Operator(OperatorArgs),
    /// Takes back what was issued: writes the list of revoked certificates, which then goes to every node.
    Revoke(RevokeArgs),
    /// Lets a new root follow the one that there is, in three steps with the files of nodes renewed between them.
    Rotate(RotateArgs),
    /// Shows what a directory of a CA, a node or an operator holds, and what a CA has issued.
    Show(ShowArgs),
}

#[derive(Debug, Args)]
struct InitArgs {
    /// The CA's directory. Its root.key never leaves this machine.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The trust domain: what stands behind spiffe:// in every identity.
    #[arg(long, env = "SLUICE_TRUST_DOMAIN", value_name = "TRUST-DOMAIN")]
    trust_domain: TrustDomain,
    /// How long the root holds: 12h, 90d.
    #[arg(long, default_value = "3650d", value_parser = life)]
    life: Duration,
    /// Replaces the CA that is there: nothing that it has issued is believed any more.
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
struct NodeArgs {
    /// The CA's directory.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The node's name, as `sluice agent --node` has it.
    #[arg(long, value_name = "NODE")]
    name: NodeName,
    /// Where the node's files go; all of them, and nothing else, belong on the node.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How long the node's certificates hold: 12h, 90d. They must end before the root does.
    #[arg(long, default_value = "90d", value_parser = life)]
    life: Duration,
    /// Replaces what the same node has there with new keys and certificates.
    #[arg(long)]
    renew: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
struct OperatorArgs {
    /// The CA's directory.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The operator's name: a person's, or that of what deploys.
    #[arg(long, value_name = "NAME")]
    name: OperatorName,
    /// Where the operator's files go: what `sluice apply --ca` is given. They belong on no node.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How long documents may be sealed with it: 12h, 90d. What was sealed by then goes on counting.
    #[arg(long, default_value = "90d", value_parser = life)]
    life: Duration,
    /// Replaces what the same operator has there with a new key and certificate.
    #[arg(long)]
    renew: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// What was made.
#[derive(Debug, Serialize)]
struct Made {
    /// The identity, or the trust domain's id.
    id: String,
    directory: PathBuf,
    /// The last second in which it holds.
    not_after: String,
}

pub(super) fn run(args: &CaArgs) -> anyhow::Result<ExitCode> {
    let changed = match &args.verb {
        CaVerb::Init(_) | CaVerb::Show(_) => None,
        CaVerb::Node(args) => Some(&args.dir),
        CaVerb::Operator(args) => Some(&args.dir),
        CaVerb::Rotate(args) => Some(&args.dir),
        CaVerb::Revoke(args) => Some(&args.dir),
    };
    let _alone = changed.map(|dir| alone(dir)).transpose()?;
    let (made, format) = match &args.verb {
        CaVerb::Init(args) => (init(args)?, args.output.output),
        CaVerb::Node(args) => (node(args)?, args.output.output),
        CaVerb::Operator(args) => (operator(args)?, args.output.output),
        CaVerb::Rotate(args) => (rotate(args)?, args.output.output),
        CaVerb::Revoke(args) => return ca_upkeep::revoke(args),
        CaVerb::Show(args) => return ca_upkeep::show(args),
    };
    match format {
        Format::Json => output::json(&made)?,
        Format::Table => {
            let row = [made.id, made.directory.display().to_string(), made.not_after];
            output::table(["id", "directory", "not after"], &[row])?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits until nobody else changes the CA: each writes upon what it has read. Where there is none, whoever reads it says so.
fn alone(dir: &Path) -> anyhow::Result<Option<Flock<File>>> {
    let Ok(directory) = File::open(dir) else { return Ok(None) };
    let locked = Flock::lock(directory, FlockArg::LockExclusive).map_err(|(_, errno)| errno);
    locked.map(Some).with_context(|| format!("waiting for others to be done with {}", dir.display()))
}

fn init(args: &InitArgs) -> anyhow::Result<Made> {
    let term = Term { now: SystemTime::now(), life: args.life };
    let replace = if args.replace { Replace::Asked } else { Replace::Never };
    let ca = Authority::create(&args.dir, &args.trust_domain, term, replace)?;
    let id = format!("spiffe://{}", ca.trust_domain());
    Ok(Made { id, directory: args.dir.clone(), not_after: rfc3339(ca.not_after()).to_string() })
}

fn rotate(args: &RotateArgs) -> anyhow::Result<Made> {
    let not_after = ca_upkeep::rotate(args)?;
    let id = format!("spiffe://{}", authority(&args.dir)?.trust_domain());
    Ok(Made { id, directory: args.dir.clone(), not_after: rfc3339(not_after).to_string() })
}

pub(super) fn authority(dir: &Path) -> anyhow::Result<Authority> {
    Authority::load(dir).with_context(|| format!("{} is no CA that `sluice ca init` made", dir.display()))
}

fn operator(args: &OperatorArgs) -> anyhow::Result<Made> {
    let ca = authority(&args.dir)?;
    let now = SystemTime::now();
    let replace = if args.renew { Replace::Asked } else { Replace::Never };
    ca.issue_operator(&args.name, &args.out, Term { now, life: args.life }, replace)?;
    let identity = OperatorIdentity::load(&args.out, now).context("what was written does not verify")?;
    Ok(Made {
        id: identity.id().to_string(),
        directory: args.out.clone(),
        not_after: rfc3339(identity.not_after()).to_string(),
    })
}

fn node(args: &NodeArgs) -> anyhow::Result<Made> {
    let ca = authority(&args.dir)?;
    let now = SystemTime::now();
    let replace = if args.renew { Replace::Asked } else { Replace::Never };
    ca.issue_node(&args.name, &args.out, Term { now, life: args.life }, replace)?;
    // What an agent would not take is found here rather than on the node.
    let identity = NodeIdentity::load(&args.out, now).context("what was written does not verify")?;
    Ok(Made {
        id: identity.id().to_string(),
        directory: args.out.clone(),
        not_after: rfc3339(identity.not_after()).to_string(),
    })
}

/// A life: whole seconds, minutes, hours or days.
pub(super) fn life(text: &str) -> Result<Duration, String> {
    const UNITS: [(char, u64); 4] = [('s', 1), ('m', 60), ('h', 3600), ('d', 24 * 3600)];
    let unit = UNITS.iter().find(|(unit, _)| text.ends_with(*unit));
    let seconds = unit.and_then(|(unit, seconds)| {
        let digits = text.strip_suffix(*unit)?;
        let number =
            digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<u64>().ok())??;
        number.checked_mul(*seconds)
    });
    match seconds {
        Some(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
        _ => Err("a life is a number above 0 with s, m, h or d behind it: 60s, 12h, 90d".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives() {
        let check = |text: &str, expected: Option<u64>| {
            assert_eq!(life(text).ok(), expected.map(Duration::from_secs), "{text}");
        };
        check("60s", Some(60));
        check("5m", Some(300));
        check("24h", Some(86_400));
        check("90d", Some(7_776_000));
        for bad in [
            "",
            "s",
            "0d",
            "1",
            "+1d",
            "-1d",
            "1.5d",
            "1w",
            "1 d",
            "1d1h",
            "99999999999999999999s",
            "ä",
            "1ä",
        ] {
            check(bad, None);
        }
        check(&format!("{}d", u64::MAX), None);
    }
}
