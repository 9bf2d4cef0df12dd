//! `sluice routes`.

use std::process::ExitCode;

use super::{ClientArgs, Format, ask, output};
use crate::admin::{RoutesDump, RuleDump};

pub(super) fn run(args: &ClientArgs) -> anyhow::Result<ExitCode> {
    let dump: RoutesDump = ask(args, "/routes")?;
    match args.output.output {
        Format::Json => output::json(&dump)?,
        Format::Table => output::table(["host", "match", "to", "options", "from"], &rows(&dump))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// One row for each rule; the host is named on its first one.
fn rows(dump: &RoutesDump) -> Vec<[String; 5]> {
    let mut rows = Vec::new();
    for host in &dump.hosts {
        let name = host
            .listener
            .as_ref()
            .map_or(host.name.clone(), |listener| format!("{} ({listener})", host.name));
        for (index, rule) in host.rules.iter().enumerate() {
            rows.push([
                if index == 0 { name.clone() } else { String::new() },
                if rule.matches.is_empty() { "*".to_owned() } else { rule.matches.join(" | ") },
                target(rule),
                options(rule).join("; "),
                format!("{} {} {}", rule.kind, rule.source, rule.rule),
            ]);
        }
    }
    rows
}

fn target(rule: &RuleDump) -> String {
    if let Some(redirect) = &rule.redirect {
        return format!("redirect {redirect}");
    }
    if let Some(status) = rule.respond {
        return format!("respond {status}");
    }
    if rule.original {
        return "where it was sent".to_owned();
    }
    let one = |cluster: String, weight: u32| match rule.destinations.len() {
        1 => cluster,
        _ => format!("{cluster}={weight}"),
    };
    let names = rule.destinations.iter().map(|to| {
        let cluster = match &to.cluster {
            Some(cluster) => cluster.clone(),
            None if to.original => "where it was sent".to_owned(),
            None => format!("unresolved ({})", to.status.unwrap_or_default()),
        };
        one(cluster, to.weight)
    });
    names.collect::<Vec<_>>().join(", ")
}

fn options(rule: &RuleDump) -> Vec<String> {
    let mut options: Vec<String> = rule.rewrite.iter().map(|rewrite| format!("rewrite {rewrite}")).collect();
    options.extend(rule.timeout_ms.map(|ms| format!("timeout {ms} ms")));
    options.extend(rule.try_timeout_ms.map(|ms| format!("try timeout {ms} ms")));
    options.extend(rule.request_headers.iter().map(|op| format!("request {op}")));
    options.extend(rule.response_headers.iter().map(|op| format!("response {op}")));
    options
}
