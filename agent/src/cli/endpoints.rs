//! `sluice endpoints`.

use std::process::ExitCode;

use super::{ClientArgs, Format, ask, output};
use crate::admin::EndpointsDump;

pub(super) fn run(args: &ClientArgs) -> anyhow::Result<ExitCode> {
    let dump: EndpointsDump = ask(args, "/endpoints")?;
    match args.output.output {
        Format::Json => output::json(&dump)?,
        Format::Table => {
            output::table(["cluster", "address", "pod", "node", "state", "active", "policy"], &rows(&dump))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn rows(dump: &EndpointsDump) -> Vec<[String; 7]> {
    let known = |name: &Option<String>| name.clone().unwrap_or_else(|| "-".to_owned());
    let endpoints = dump.endpoints.iter().map(|endpoint| {
        [
            endpoint.cluster.clone(),
            endpoint.address.clone(),
            known(&endpoint.pod),
            known(&endpoint.node),
            match &endpoint.out {
                _ if endpoint.ready => "ready".to_owned(),
                Some(why) => format!("out: {why}"),
                None => "not ready".to_owned(),
            },
            endpoint.active.to_string(),
            endpoint.policy.clone(),
        ]
    });
    let none = |cluster: &String| [cluster.as_str(), "none", "-", "-", "-", "-", "-"].map(str::to_owned);
    endpoints.chain(dump.empty.iter().map(none)).collect()
}
