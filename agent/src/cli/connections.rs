//! `sluice connections`: the connections that are open, who serves them, and why.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Args;

use super::end::{EndFilter, Ends};
use super::{ClientArgs, Format, ask, end, output, verdict};
use crate::admin::{ConnectionDump, ConnectionsDump};
use crate::telemetry::rfc3339;

#[derive(Debug, Args)]
pub(super) struct ConnectionsArgs {
    #[command(flatten)]
    ends: EndFilter,
    /// Only those of this tier: `kernel`, `agent` (of all its kinds), `agent L4`, `agent L7`.
    #[arg(long, value_parser = verdict::TIERS)]
    tier: Option<String>,
    /// Only those that go this way (`agent`, `balanced`, `direct`), or for this reason.
    #[arg(long, value_parser = verdict::parse)]
    verdict: Option<String>,
    /// Only those of this protocol: `http/1`, `http/2`, `opaque`, `tunnel`, `tcp`, `udp`.
    #[arg(long, value_parser = verdict::SPOKEN)]
    protocol: Option<String>,
    /// Only those whose bytes skip TCP.
    #[arg(long)]
    accelerated: bool,
    /// Only those that are at least this old, in seconds.
    #[arg(long, value_name = "SECONDS")]
    older_than: Option<u64>,
    #[command(flatten)]
    client: ClientArgs,
}

impl ConnectionsArgs {
    /// `oldest`: those that came later are too young.
    fn fits(&self, one: &ConnectionDump, oldest: Option<&str>) -> bool {
        let word = |wanted: &Option<String>, text: &str| wanted.as_ref().is_none_or(|wanted| wanted == text);
        let tier = one.tier.split(' ').next().unwrap_or_default();
        self.ends.fits(&Ends {
            source: (&one.source, one.source_pod.as_deref()),
            destination: (&one.destination, one.destination_name.as_deref()),
            endpoint: one.endpoint.as_deref().map(|endpoint| (endpoint, one.endpoint_pod.as_deref())),
        }) && (word(&self.tier, &one.tier) || word(&self.tier, tier))
            && (word(&self.verdict, &one.verdict) || word(&self.verdict, &one.reason))
            && word(&self.protocol, &one.protocol)
            && (!self.accelerated || one.accelerated)
            && oldest.is_none_or(|oldest| one.since.as_deref().is_some_and(|since| since <= oldest))
    }
}

pub(super) fn run(args: &ConnectionsArgs) -> anyhow::Result<ExitCode> {
    let mut dump: ConnectionsDump = ask(&args.client, "/connections")?;
    let seen =
        dump.connections.iter().flat_map(|one| [&one.source_pod, &one.destination_name, &one.endpoint_pod]);
    if let Some(unknown) = end::unknown(&args.client, &args.ends, seen.flatten())? {
        anyhow::bail!(unknown);
    }
    let age = args.older_than.map(Duration::from_secs);
    // Times of this form are in order as their letters are.
    let oldest = age.and_then(|age| SystemTime::now().checked_sub(age)).map(|time| rfc3339(time).to_string());
    dump.connections.retain(|one| args.fits(one, oldest.as_deref()));
    match args.client.output.output {
        Format::Json => output::json(&dump)?,
        Format::Table => output::table(
            [
                "source",
                "destination",
                "endpoint",
                "tier",
                "why",
                "protocol",
                "since",
                "sent",
                "received",
                "rtt",
            ],
            &dump.connections.iter().map(row).collect::<Vec<_>>(),
        )?,
    }
    Ok(ExitCode::SUCCESS)
}

fn row(one: &ConnectionDump) -> [String; 10] {
    let named = |address: &str, name: Option<&String>| match name {
        Some(name) => format!("{address} ({name})"),
        None => address.to_owned(),
    };
    let known = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    let tier = if one.accelerated { format!("{}, accelerated", one.tier) } else { one.tier.clone() };
    [
        named(&one.source, one.source_pod.as_ref()),
        named(&one.destination, one.destination_name.as_ref()),
        one.endpoint.as_ref().map_or_else(|| "-".to_owned(), |to| named(to, one.endpoint_pod.as_ref())),
        tier,
        format!("{}: {}", one.verdict, one.reason),
        one.protocol.clone(),
        one.since.clone().unwrap_or_else(|| "-".to_owned()),
        known(one.sent_bytes),
        known(one.received_bytes),
        one.rtt_us.map_or_else(|| "-".to_owned(), |rtt| format!("{rtt} us")),
    ]
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: ConnectionsArgs,
    }

    fn seen() -> ConnectionDump {
        ConnectionDump {
            source: "10.0.0.1:40000".to_owned(),
            source_pod: Some("default/client".to_owned()),
            destination: "10.96.0.1:81".to_owned(),
            destination_name: Some("default/echo".to_owned()),
            endpoint: Some("10.0.0.2:7000".to_owned()),
            tier: "agent L4".to_owned(),
            verdict: "agent".to_owned(),
            reason: "headless".to_owned(),
            protocol: "opaque".to_owned(),
            since: Some("2026-11-21T22:44:05.123Z".to_owned()),
            sent_bytes: Some(5),
            ..ConnectionDump::default()
        }
    }

    #[test]
    fn every_filter_can_fit_and_not_fit() {
        let cases: [(&[&str], bool); 17] = [
            (&[], true),
            (&["--from", "client"], true),
            (&["--from", "nobody"], false),
            (&["--to", "echo"], true),
            (&["--to", "10.0.0.2"], true),
            (&["--pod", "client"], true),
            (&["--port", "81"], true),
            (&["--port", "82"], false),
            (&["--tier", "agent"], true),
            (&["--tier", "agent L4"], true),
            (&["--tier", "agent L7"], false),
            (&["--verdict", "agent"], true),
            (&["--verdict", "headless"], true),
            (&["--verdict", "balanced"], false),
            (&["--protocol", "opaque"], true),
            (&["--protocol", "udp"], false),
            (&["--accelerated"], false),
        ];
        for (line, expected) in cases {
            let args = Line::parse_from(["x"].iter().chain(line)).args;
            assert_eq!(args.fits(&seen(), None), expected, "{line:?}");
        }
        let args = Line::parse_from(["x"]).args;
        assert!(args.fits(&seen(), Some("2026-11-21T22:44:06.000Z")));
        assert!(!args.fits(&seen(), Some("2026-11-21T22:44:05.000Z")));
    }

    #[test]
    fn no_connection_has_port_0() {
        let refused = Line::try_parse_from(["x", "--port", "0"]).unwrap_err().to_string();
        assert!(refused.contains("--port"), "{refused}");
        assert!(Line::try_parse_from(["x", "--port", "65535"]).is_ok());
    }

    #[test]
    fn what_is_not_known_is_a_dash() {
        let row = row(&ConnectionDump { accelerated: true, ..seen() });
        assert_eq!(row[0], "10.0.0.1:40000 (default/client)");
        assert_eq!(row[2..5], ["10.0.0.2:7000", "agent L4, accelerated", "agent: headless"]);
        assert_eq!(row[6..], ["2026-11-21T22:44:05.123Z", "5", "-", "-"]);
    }
}
