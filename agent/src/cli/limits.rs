//! `sluice limits`.

use std::process::ExitCode;

use super::{ClientArgs, Format, ask, output};
use crate::admin::LimitsDump;

pub(super) fn run(args: &ClientArgs) -> anyhow::Result<ExitCode> {
    let dump: LimitsDump = ask(args, "/limits")?;
    match args.output.output {
        Format::Json => output::json(&dump)?,
        Format::Table => {
            let heads = ["policy", "limit", "about", "tier", "quota", "key", "admitted", "refused", "keys"];
            output::table(heads, &rows(&dump))?;
            if let Some(store) = &dump.store {
                output::text(&format!(
                    "\nlimits of the cluster: Redis is {}, {} nodes share; {} calls, {} failed",
                    store.state, store.nodes, store.calls, store.failures
                ))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn rows(dump: &LimitsDump) -> Vec<[String; 9]> {
    let row = |limit: &crate::admin::LimitDump| {
        let pushed = limit.push_down.as_ref().map(|_| format!(", {} pushed down", limit.pushed_down));
        let shadow = if limit.mode == "shadow" { ", shadow" } else { "" };
        let tier = format!("{}{}{shadow}", limit.tier, pushed.unwrap_or_default());
        [
            limit.policy.clone(),
            limit.limit.clone(),
            limit.targets.join(", "),
            tier,
            limit.quota.clone(),
            if limit.key.is_empty() { "all together".to_owned() } else { limit.key.join(", ") },
            limit.admitted.to_string(),
            limit.refused.to_string(),
            limit.keys.to_string(),
        ]
    };
    dump.limits.iter().map(row).collect()
}
