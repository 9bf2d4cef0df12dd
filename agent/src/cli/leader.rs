//! `sluice leader`.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Args;
use serde_json::json;

use super::store::StoreArgs;
use super::{ClientArgs, Format, ask, output};
use crate::admin::{ClusterDump, DocumentsDump};
use crate::cluster::{LeaseState, RedisStore, Store as _};
use crate::telemetry::rfc3339;

/// How long the store may take.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(super) struct LeaderArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// With --redis the store is asked instead of an agent, and the terms before are shown too.
    #[command(flatten)]
    store: StoreArgs,
    /// The cluster's name, with --redis.
    #[arg(long, env = "SLUICE_CLUSTER", default_value = "Kubernetes")]
    cluster: String,
}

pub(super) fn run(args: &LeaderArgs) -> anyhow::Result<ExitCode> {
    match args.store.options(&args.cluster, PATIENCE) {
        Some(options) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let lease =
                runtime.block_on(async { anyhow::Ok(RedisStore::connect(options)?.lease().await?) })?;
            of_store(&lease, args.client.output.output)
        }
        None => of_agent(&ask(&args.client, "/cluster")?, args.client.output.output),
    }
}

fn of_agent(cluster: &ClusterDump, format: Format) -> anyhow::Result<ExitCode> {
    match format {
        Format::Json => output::json(cluster)?,
        Format::Table => output::text(&match &cluster.leader {
            _ if cluster.role == "standalone" => {
                format!("{} runs alone: there is nobody to lead", cluster.node)
            }
            None => "nobody leads, or nobody knows".to_owned(),
            Some(leader) => format!(
                "{} leads in epoch {} ({}), its lease was good for {} ms more",
                leader.node, leader.epoch, leader.nonce, leader.expires_in_ms
            ),
        })?,
    }
    let known = cluster.role == "standalone" || cluster.leader.is_some();
    Ok(if known { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn of_store(lease: &LeaseState, format: Format) -> anyhow::Result<ExitCode> {
    let since = |millis: u64| SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
    match format {
        Format::Json => {
            let held = lease.held.as_ref().map(|(lease, left)| {
                json!({"node": &*lease.node, "epoch": lease.token.epoch, "expires_in_ms": left.as_millis()})
            });
            let terms: Vec<_> = lease
                .history
                .iter()
                .map(|(term, at)| {
                    json!({"node": &*term.node, "epoch": term.token.epoch,
                           "nonce": format!("{:016x}", term.token.nonce), "since": rfc3339(since(*at)).to_string()})
                })
                .collect();
            output::json(&json!({"leader": held, "terms": terms}))?;
        }
        Format::Table => {
            let rows: Vec<_> = lease
                .history
                .iter()
                .map(|(term, at)| {
                    let holds = lease.held.as_ref().filter(|(held, _)| held == term);
                    let state = holds.map_or_else(
                        || "over".to_owned(),
                        |(_, left)| format!("leads, {} ms left", left.as_millis()),
                    );
                    let age = SystemTime::now().duration_since(since(*at)).unwrap_or_default();
                    [
                        term.node.to_string(),
                        term.token.epoch.to_string(),
                        rfc3339(since(*at)).to_string(),
                        format!("{} s", age.as_secs()),
                        state,
                    ]
                })
                .collect();
            output::table(["node", "epoch", "since", "age", "state"], &rows)?;
        }
    }
    Ok(if lease.held.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What `sluice status` shows of a cluster; nothing where there is none.
pub(super) fn cluster_lines(cluster: &ClusterDump) -> Vec<String> {
    if cluster.role.is_empty() || cluster.role == "standalone" {
        return Vec::new();
    }
    let leader = cluster.leader.as_ref();
    let leads = leader.map_or_else(
        || "nobody leads, or nobody knows".to_owned(),
        |leader| format!("{} leads in epoch {}", leader.node, leader.epoch),
    );
    let DocumentsDump { count, revision } = cluster.documents;
    let signed = if cluster.signed { "" } else { ", tables and documents are NOT SIGNED" };
    let mut lines = vec![format!(
        "cluster      {} ({}), {leads}, {count} documents at revision {revision}{signed}",
        cluster.cluster, cluster.role
    )];
    lines.extend(cluster.seal.iter().map(|seal| {
        format!(
            "             documents sealed by {} at {}, generation {}",
            seal.operator, seal.sealed_at, seal.generation
        )
    }));
    for node in &cluster.nodes {
        let table = if node.table.is_empty() { "no table" } else { &node.table };
        let since = node.applied_at.as_ref().map(|at| format!(" since {at}")).unwrap_or_default();
        let dead = if node.alive { "" } else { ", NO HEARTBEAT: its endpoints are withdrawn" };
        // Of a node without a record nothing is known but why.
        let version =
            if node.version.is_empty() { String::new() } else { format!(", version {}", node.version) };
        lines.push(format!("             {} {}: {table}{since}{version}{dead}", node.node, node.state));
        if !node.unhealthy.is_empty() {
            lines.push(format!("             {} UNHEALTHY {}", node.node, node.unhealthy.join(", ")));
        }
        let documents = node.documents_refused.iter();
        lines.extend(documents.map(|why| format!("             {} REFUSES DOCUMENTS {why}", node.node)));
        lines.extend(node.refused.iter().map(|why| format!("             {} REFUSES {why}", node.node)));
    }
    lines.extend(cluster.refused.iter().map(|refused| {
        let table = if refused.table.is_empty() { "of no known version" } else { &refused.table };
        format!("REFUSED      the published table {table}: {}: {}", refused.reason, refused.detail)
    }));
    lines.extend(cluster.documents_refused.iter().map(|refused| {
        let counts = if cluster.seal.is_some() {
            "the last that were sealed count"
        } else {
            "this node has no others"
        };
        format!("DOCUMENTS REFUSED {}: {}; {counts}", refused.reason, refused.detail)
    }));
    lines.extend(
        cluster
            .at_odds
            .iter()
            .map(|what| format!("DOCUMENTS AT ODDS {what}; it is written anew as it counts")),
    );
    lines.extend(cluster.unpublished.iter().map(|why| format!("NOT PUBLISHED {why}")));
    lines.extend(cluster.cannot_lead.iter().map(|why| format!("CANNOT LEAD  {why}")));
    let in_force =
        if cluster.in_force.is_some() { "the last good table is in force" } else { "no table is in force" };
    lines.extend(cluster.store_error.iter().map(|why| format!("STORE        {why}; {in_force}")));
    lines.extend(
        cluster.fault.iter().map(|what| format!("FAULT        {what}; the cluster's tasks began anew")),
    );
    lines.extend(cluster.disk_error.iter().map(|why| format!("DISK         {why}")));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::{InForceDump, RefusedDocumentsDump, SealDump};

    #[test]
    fn nothing_is_said_to_count_that_is_not_there() {
        let without = ClusterDump {
            role: "follower".to_owned(),
            store_error: Some("it is away".to_owned()),
            documents_refused: Some(RefusedDocumentsDump::default()),
            ..ClusterDump::default()
        };
        let with = ClusterDump {
            in_force: Some(InForceDump::default()),
            seal: Some(SealDump::default()),
            ..without.clone()
        };
        for (cluster, parts) in [
            (without, ["no table is in force", "this node has no others"]),
            (with, ["the last good table is in force", "the last that were sealed count"]),
        ] {
            let said = cluster_lines(&cluster).join("\n");
            assert!(parts.iter().all(|part| said.contains(part)), "{said}");
        }
    }
}
