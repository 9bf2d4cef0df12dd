//! `sluice observe`: connections as the kernel judges them.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::{ClientArgs, Format, ask};
use crate::admin::{FlowDump, FlowsDump};

/// How often a running agent is asked for more.
const POLL: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(super) struct ObserveArgs {
    #[command(flatten)]
    filter: Filter,
    /// How many of the last connections are shown, at the most.
    #[arg(long, value_name = "N", default_value_t = 20)]
    last: usize,
    /// Goes on with connections as they are made, until interrupted.
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// Which connections are shown; what is not given fits all.
#[derive(Debug, Default, Args)]
struct Filter {
    /// Only those of this address, pod or namespace (`NAMESPACE/`).
    #[arg(long, value_name = "IP|POD|NAMESPACE/")]
    from: Option<String>,
    /// Only those to this address, service, pod or namespace (`NAMESPACE/`).
    #[arg(long, value_name = "IP|NAME|NAMESPACE/")]
    to: Option<String>,
    /// Only those with this verdict (`agent`, `direct`) or reason (`captured`, `no_route`, `no_listener`, `assign_failed`).
    #[arg(long)]
    verdict: Option<String>,
    /// Only those to this port.
    #[arg(long)]
    port: Option<u16>,
}

impl Filter {
    fn fits(&self, flow: &FlowDump) -> bool {
        let end = |wanted: &Option<String>, address: &str, name: Option<&String>| {
            wanted.as_ref().is_none_or(|wanted| is(wanted, address, name.map(String::as_str)))
        };
        let port = |flow: &FlowDump| flow.destination.parse().ok().map(|to: SocketAddr| to.port());
        end(&self.from, &flow.source, flow.source_pod.as_ref())
            && end(&self.to, &flow.destination, flow.destination_name.as_ref())
            && self.verdict.as_ref().is_none_or(|word| *word == flow.verdict || *word == flow.reason)
            && self.port.is_none_or(|wanted| port(flow) == Some(wanted))
    }
}

/// Whether an end is meant by its address, its name, its name in the namespace `default`, or its namespace.
fn is(wanted: &str, address: &str, name: Option<&str>) -> bool {
    let ip = address.parse().ok().map(|end: SocketAddr| end.ip().to_string());
    let named = name.is_some_and(|name| {
        name == wanted
            || name.strip_prefix("default/") == Some(wanted)
            || wanted.ends_with('/') && name.starts_with(wanted)
    });
    address == wanted || ip.as_deref() == Some(wanted) || named
}

pub(super) fn run(args: &ObserveArgs) -> anyhow::Result<ExitCode> {
    let since = |number: u64| ask::<FlowsDump>(&args.client, &format!("/flows?since={number}"));
    let dump = since(0)?;
    let fitting: Vec<_> = dump.flows.iter().filter(|flow| args.filter.fits(flow)).collect();
    let newest = &fitting[fitting.len().saturating_sub(args.last)..];
    let mut out = io::stdout().lock();
    let mut shown = show(&mut out, newest.iter().copied(), args)?;
    let (mut next, mut lost) = (dump.next, dump.lost);
    while args.follow && shown {
        std::thread::sleep(POLL);
        let dump = since(next)?;
        // Numbers that go back are those of another agent.
        let dump = if dump.next < next { since(0)? } else { dump };
        shown = show(&mut out, dump.flows.iter().filter(|flow| args.filter.fits(flow)), args)?;
        if dump.lost > lost {
            eprintln!("sluice: {} connections were not told", dump.lost - lost);
        }
        (next, lost) = (dump.next, dump.lost);
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints one line for each; false where the reader has gone away (`| head`).
fn show<'a>(
    out: &mut impl Write,
    flows: impl Iterator<Item = &'a FlowDump>,
    args: &ObserveArgs,
) -> anyhow::Result<bool> {
    for flow in flows {
        let line = match args.client.output.output {
            Format::Json => serde_json::to_string(flow)?,
            Format::Table => render(flow),
        };
        match writeln!(out, "{line}").and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(false),
            result => result?,
        }
    }
    Ok(true)
}

fn render(flow: &FlowDump) -> String {
    let end = |address: &str, name: &Option<String>| match name {
        Some(name) => format!("{address} ({name})"),
        None => address.to_owned(),
    };
    format!(
        "{} {:<6} {:<13} {} -> {}",
        flow.time,
        flow.verdict,
        flow.reason,
        end(&flow.source, &flow.source_pod),
        end(&flow.destination, &flow.destination_name)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow() -> FlowDump {
        FlowDump {
            number: 7,
            time: "2026-11-21T22:44:05.123Z".to_owned(),
            source: "10.0.0.1:40000".to_owned(),
            source_pod: Some("default/client".to_owned()),
            destination: "[fd00::1]:80".to_owned(),
            destination_name: Some("shop/web".to_owned()),
            verdict: "agent".to_owned(),
            reason: "captured".to_owned(),
            interface: 3,
        }
    }

    #[test]
    fn every_filter_can_fit_and_not_fit() {
        let text = |text: &str| Some(text.to_owned());
        let cases = [
            (Filter::default(), true),
            (Filter { from: text("10.0.0.1"), ..Filter::default() }, true),
            (Filter { from: text("client"), ..Filter::default() }, true),
            (Filter { from: text("default/"), ..Filter::default() }, true),
            (Filter { from: text("default/clien"), ..Filter::default() }, false),
            (Filter { from: text("10.0.0.11"), ..Filter::default() }, false),
            (Filter { to: text("shop/web"), ..Filter::default() }, true),
            (Filter { to: text("web"), ..Filter::default() }, false),
            (Filter { to: text("fd00::1"), ..Filter::default() }, true),
            (Filter { verdict: text("agent"), ..Filter::default() }, true),
            (Filter { verdict: text("captured"), ..Filter::default() }, true),
            (Filter { verdict: text("direct"), ..Filter::default() }, false),
            (Filter { port: Some(80), ..Filter::default() }, true),
            (Filter { port: Some(81), ..Filter::default() }, false),
            (Filter { from: text("client"), port: Some(81), ..Filter::default() }, false),
        ];
        for (filter, expected) in cases {
            assert_eq!(filter.fits(&flow()), expected, "{filter:?}");
        }
    }

    #[test]
    fn a_line_names_both_ends() {
        assert_eq!(
            render(&flow()),
            "2026-11-21T22:44:05.123Z agent  captured      10.0.0.1:40000 (default/client) -> [fd00::1]:80 (shop/web)"
        );
    }
}
