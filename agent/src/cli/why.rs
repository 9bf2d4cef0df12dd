//! `sluice why SRC DST:PORT`: what becomes of a connection, decision by decision; of one that is open or over, what became of
//! it.

use std::process::ExitCode;

use clap::Args;

use super::{ClientArgs, Format, ask, observe, output};
use crate::admin::Explanation;

#[derive(Debug, Args)]
pub(super) struct WhyArgs {
    /// Who dials: an address, POD or NAMESPACE/POD; with `:PORT`, one connection of theirs that is open or over.
    source: String,
    /// What is dialled: IP:PORT, SERVICE:PORT or NAMESPACE/SERVICE:PORT; a pod's name stands for its address. Of a
    /// service and a pod of one name it is the service, where that has the port.
    destination: String,
    /// By what it is dialled; UDP by itself where a service has the port for that alone.
    #[arg(long, value_parser = ["tcp", "udp"])]
    protocol: Option<String>,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) fn run(args: &WhyArgs) -> anyhow::Result<ExitCode> {
    for text in [&args.source, &args.destination] {
        anyhow::ensure!(readable(text), "`{text}` is neither an address nor a name");
    }
    let protocol = args.protocol.as_ref().map_or_else(String::new, |one| format!("&protocol={one}"));
    let path = format!("/why?source={}&destination={}{protocol}", args.source, args.destination);
    let explanation: Explanation = ask(&args.client, &path)?;
    match args.client.output.output {
        Format::Json => output::json(&explanation)?,
        Format::Table => output::text(&render(&explanation))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Names and addresses have no other characters; these need no escapes in a query.
fn readable(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:/[]".contains(&byte))
}

fn render(explanation: &Explanation) -> String {
    let Explanation { source, destination, verdict, tier, reason, state, rule, .. } = explanation;
    let rule = rule.as_ref().map_or_else(String::new, |rule| format!(" by {rule}"));
    let state = if matches!(state.as_str(), "live" | "past") { format!("{state}: ") } else { String::new() };
    let udp = if explanation.protocol == "udp" { " (udp)" } else { "" };
    let mut lines =
        vec![format!("{state}{source} -> {destination}{udp}: {verdict} ({tier}), {reason}{rule}")];
    for (number, step) in (1..).zip(&explanation.steps) {
        lines.push(format!("{number:>3}. {:<16} {}", step.at, step.found));
    }
    for rule in &explanation.rules {
        let matches = if rule.matches.is_empty() { "any".to_owned() } else { rule.matches.join(" | ") };
        lines.push(format!("     rule {} {} {}: {matches}", rule.kind, rule.source, rule.rule));
    }
    for endpoint in &explanation.endpoints {
        let pod = endpoint.pod.as_deref().unwrap_or("no pod");
        let ready = if endpoint.ready { "ready" } else { "not ready" };
        lines.push(format!("     endpoint {} {pod} ({ready})", endpoint.address));
    }
    for one in &explanation.live {
        let accelerated = if one.accelerated { ", accelerated" } else { "" };
        let endpoint = one.endpoint.as_ref().map_or_else(String::new, |to| format!(" => {to}"));
        let since = one.since.as_ref().map_or_else(String::new, |since| format!(" since {since}"));
        let (from, to, tier) = (&one.source, &one.destination, &one.tier);
        lines.push(format!("     open {from} -> {to}{endpoint} ({tier}{accelerated}){since}"));
    }
    lines.extend(explanation.past.iter().map(|flow| format!("     past {}", observe::render(flow))));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::Step;

    #[test]
    fn the_verdict_comes_first_and_the_decisions_in_order() {
        let step = |at: &str, found: &str| Step { at: at.to_owned(), found: found.to_owned() };
        let explanation = Explanation {
            source: "10.0.0.1".to_owned(),
            destination: "10.96.0.1:80".to_owned(),
            verdict: "direct".to_owned(),
            tier: "kernel".to_owned(),
            reason: "no_route".to_owned(),
            steps: vec![step("workloads", "a"), step("DESTINATIONS", "does not have it: no_route")],
            ..Explanation::default()
        };
        let text = render(&explanation);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "10.0.0.1 -> 10.96.0.1:80: direct (kernel), no_route");
        assert_eq!(lines[2], "  2. DESTINATIONS     does not have it: no_route");
    }

    #[test]
    fn what_no_query_can_hold_is_no_name() {
        for good in ["10.0.0.1", "[fd00::1]:80", "default/web-1", "web.default:80"] {
            assert!(readable(good), "{good}");
        }
        for bad in ["", "a b", "a&b=c", "a#b", "ä", "a%20"] {
            assert!(!readable(bad), "{bad}");
        }
    }
}
