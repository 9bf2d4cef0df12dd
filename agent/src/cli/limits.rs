//! `sluice limits`.

use std::process::ExitCode;

use clap::Args;

use super::{ClientArgs, Format, ask, output};
use crate::admin::{LimitDump, LimitsDump, NodeLeasedDump, OverrideDump, TopKeyDump};

#[derive(Debug, Args)]
pub(super) struct LimitsArgs {
    /// Shows so many keys of each limit, those first that were refused most often within the last five to ten minutes.
    #[arg(long, value_name = "N", default_value_t = 0)]
    top: usize,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) fn run(args: &LimitsArgs) -> anyhow::Result<ExitCode> {
    let dump: LimitsDump = ask(&args.client, &format!("/limits?top={}", args.top))?;
    match args.client.output.output {
        Format::Json => output::json(&dump)?,
        Format::Table => print(&dump)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn print(dump: &LimitsDump) -> anyhow::Result<()> {
    let heads =
        ["policy", "limit", "about", "tier", "quota", "key", "admitted", "refused", "keys", "why there"];
    output::table(heads, &rows(dump))?;
    let others = others(dump);
    if !others.is_empty() {
        output::text("")?;
        output::table(["policy", "limit", "other numbers for", "quota"], &others)?;
    }
    let leased = leased(dump);
    if !leased.is_empty() {
        output::text("")?;
        output::table(["policy", "limit", "leased by node"], &leased)?;
    }
    let top = top(dump);
    if !top.is_empty() {
        output::text("")?;
        output::table(["policy", "limit", "key", "admitted", "refused"], &top)?;
    }
    if let Some(store) = &dump.store {
        output::text(&format!(
            "\nlimits of the cluster: Redis is {}, {} nodes share; {} calls, {} failed",
            store.state, store.nodes, store.calls, store.failures
        ))?;
    }
    Ok(())
}

/// What is let through, and what of it is counted where that is no request of one unit.
fn quota(limit: &LimitDump) -> String {
    match &limit.cost {
        Some(cost) => format!("{}; a request costs {cost}", limit.quota),
        None if matches!(&*limit.counts, "" | "requests") => limit.quota.clone(),
        None => format!("{}: {}", limit.counts, limit.quota),
    }
}

/// Where it is kept, and what of it this node alone has.
fn tier(limit: &LimitDump) -> String {
    let held = limit.held.as_ref().map_or_else(String::new, |held| format!(": {held}"));
    let leased = limit.cluster.as_ref().filter(|_| limit.tier.ends_with("leased"));
    let leased = leased.map(|cluster| format!(" ({} on this node)", cluster.leased_on_this_node));
    let pushed = limit.push_down.as_ref().map(|_| format!(", {} pushed down", limit.pushed_down));
    let shadow = if limit.mode == "shadow" { ", shadow" } else { "" };
    [&*limit.tier, &held, &leased.unwrap_or_default(), &pushed.unwrap_or_default(), shadow].concat()
}

fn rows(dump: &LimitsDump) -> Vec<[String; 10]> {
    let row = |limit: &LimitDump| {
        [
            limit.policy.clone(),
            limit.limit.clone(),
            limit.targets.join(", "),
            tier(limit),
            quota(limit),
            if limit.key.is_empty() { "all together".to_owned() } else { limit.key.join(", ") },
            limit.admitted.to_string(),
            limit.refused.to_string(),
            limit.keys.to_string(),
            limit.why.clone(),
        ]
    };
    dump.limits.iter().map(row).collect()
}

fn others(dump: &LimitsDump) -> Vec<[String; 4]> {
    let of_limit = |limit: &LimitDump| {
        let row = |other: &OverrideDump| {
            [limit.policy.clone(), limit.limit.clone(), other.values.join(", "), other.quota.clone()]
        };
        limit.overrides.iter().map(row).collect::<Vec<_>>()
    };
    dump.limits.iter().flat_map(of_limit).collect()
}

fn leased(dump: &LimitsDump) -> Vec<[String; 3]> {
    let row = |limit: &LimitDump| {
        let nodes = limit.cluster.iter().flat_map(|cluster| &cluster.leased_by_node);
        let nodes: Vec<String> = nodes.map(leased_by).collect();
        (!nodes.is_empty()).then(|| [limit.policy.clone(), limit.limit.clone(), nodes.join(", ")])
    };
    dump.limits.iter().filter_map(row).collect()
}

/// What a node has leased, and how long ago that was so; or why that is not known.
fn leased_by(node: &NodeLeasedDump) -> String {
    let name = &node.node;
    match (node.leased, node.age_ms) {
        (Some(units), None | Some(0)) => format!("{name} {units}"),
        (Some(units), Some(age)) => {
            // To the next tenth of a second.
            let tenths = age.div_ceil(100);
            format!("{name} {units} ({}.{} s ago)", tenths / 10, tenths % 10)
        }
        (None, _) => format!("{name} - ({})", node.unknown.as_deref().unwrap_or("not known")),
    }
}

fn top(dump: &LimitsDump) -> Vec<[String; 5]> {
    let of_limit = |limit: &LimitDump| {
        let row = |key: &TopKeyDump| {
            let (admitted, refused) = (key.admitted.to_string(), key.refused.to_string());
            [limit.policy.clone(), limit.limit.clone(), key.key.clone(), admitted, refused]
        };
        limit.top.iter().map(row).collect::<Vec<_>>()
    };
    dump.limits.iter().flat_map(of_limit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_has_leased_is_told_with_its_age_or_why_it_is_unknown() {
        let node = |leased, age_ms, unknown: Option<&str>| {
            leased_by(&NodeLeasedDump {
                node: "a".to_owned(),
                leased,
                age_ms,
                unknown: unknown.map(str::to_owned),
            })
        };
        assert_eq!(node(Some(12), Some(0), None), "a 12");
        assert_eq!(node(Some(0), Some(1), None), "a 0 (0.1 s ago)");
        assert_eq!(node(Some(3), Some(12_340), None), "a 3 (12.4 s ago)");
        assert_eq!(node(None, None, Some("Redis does not answer")), "a - (Redis does not answer)");
        assert_eq!(node(None, None, None), "a - (not known)");
    }
}
