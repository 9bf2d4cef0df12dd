//! `sluice observe`: what becomes of connections, as it is told: verdicts, drops, balancing, and how connections ended.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::end::{EndFilter, Ends};
use super::{ClientArgs, Format, ask, end, verdict};
use crate::admin::client::ClientError;
use crate::admin::{FlowDump, FlowsDump, RATE_LIMITED, Status};
use crate::telemetry::rfc3339;

/// How often a running agent is asked for more.
const POLL: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(super) struct ObserveArgs {
    #[command(flatten)]
    filter: Filter,
    /// How many of the last events are shown, at the most.
    #[arg(long, value_name = "N", default_value_t = 20)]
    last: usize,
    /// Only events that are no older (`30s`, `5m`, `2h`).
    #[arg(long, value_name = "DURATION", value_parser = age)]
    since: Option<Duration>,
    /// Goes on with events as they are told, until interrupted.
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// A pod's first packet, and who takes it.
    Verdict,
    /// A packet, request or connection that is refused.
    Drop,
    /// A socket that is led to an endpoint.
    Connect,
    /// A connection that stands.
    Open,
    /// A connection that is over.
    Close,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Verdict => "verdict",
            Self::Drop => "drop",
            Self::Connect => "connect",
            Self::Open => "open",
            Self::Close => "close",
        }
    }
}

/// Which events are shown; what is not given fits all.
#[derive(Debug, Default, Args)]
struct Filter {
    #[command(flatten)]
    ends: EndFilter,
    /// Only those with this verdict (`agent`, `direct`, `balanced`, `dropped`, `refused`, ...) or reason (`captured`,
    /// `no_route`, `rbac_access_denied`, ...).
    #[arg(long, value_parser = verdict::parse)]
    verdict: Option<String>,
    /// Only events of these kinds.
    #[arg(long, value_enum, value_delimiter = ',', visible_alias = "type")]
    kind: Vec<Kind>,
    /// Only what this tier tells: `guard`, `kernel`, `agent` (of all its kinds), `agent L4`, `agent L7`.
    #[arg(long, value_parser = verdict::TIERS)]
    tier: Option<String>,
    /// Only what this policy, EdgeGuard or RateLimit refuses.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    policy: Option<String>,
    /// Only those of this protocol: `tcp`, `udp`, `icmp`, or a number.
    #[arg(long, value_parser = verdict::protocol)]
    protocol: Option<String>,
}

impl Filter {
    fn fits(&self, flow: &FlowDump) -> bool {
        let word = |wanted: &Option<String>, text: &str| wanted.as_ref().is_none_or(|wanted| wanted == text);
        let tier = flow.tier.split(' ').next().unwrap_or_default();
        self.ends.fits(&Ends {
            source: (&flow.source, flow.source_pod.as_deref()),
            destination: (&flow.destination, flow.destination_name.as_deref()),
            endpoint: flow.endpoint.as_deref().map(|endpoint| (endpoint, flow.endpoint_pod.as_deref())),
        }) && (word(&self.verdict, &flow.verdict) || word(&self.verdict, &flow.reason))
            && (self.kind.is_empty() || self.kind.iter().any(|kind| kind.as_str() == flow.kind))
            && (word(&self.tier, &flow.tier) || word(&self.tier, tier))
            && self.policy.as_ref().is_none_or(|policy| flow.policy.as_ref() == Some(policy))
            && word(&self.protocol, &flow.protocol)
    }
}

/// An age: a number of seconds, or one with a unit.
fn age(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let seconds = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err("use s, m, h or d, as in 5m".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "a number is missing, as in 5m".to_owned())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(|| "too long".to_owned())
}

pub(super) fn run(args: &ObserveArgs) -> anyhow::Result<ExitCode> {
    let since = |number: u64| ask::<FlowsDump>(&args.client, &format!("/flows?since={number}"));
    let oldest = args.since.and_then(|age| SystemTime::now().checked_sub(age));
    // Times of this form are in order as their letters are.
    let oldest = oldest.map(|time| rfc3339(time).to_string());
    let young = |flow: &FlowDump| oldest.as_ref().is_none_or(|oldest| flow.time >= *oldest);
    let dump = since(0)?;
    let seen =
        dump.flows.iter().flat_map(|flow| [&flow.source_pod, &flow.destination_name, &flow.endpoint_pod]);
    let unknown = match end::unknown(&args.client, &args.filter.ends, seen.flatten())? {
        None => unknown_policy(args, &dump)?,
        unknown => unknown,
    };
    match unknown {
        // It may come yet.
        Some(unknown) if args.follow => eprintln!("sluice: {unknown}"),
        Some(unknown) => anyhow::bail!(unknown),
        None => {}
    }
    let fitting: Vec<_> = dump.flows.iter().filter(|flow| young(flow) && args.filter.fits(flow)).collect();
    let newest = &fitting[fitting.len().saturating_sub(args.last)..];
    let mut out = io::stdout().lock();
    let mut shown = show(&mut out, newest.iter().copied(), args)?;
    let mut place = Place::after(&dump);
    let mut waits = false;
    while args.follow && shown {
        std::thread::sleep(POLL);
        let later = since(place.next);
        let dump = match later.and_then(|dump| if place.is_of(&dump) { Ok(dump) } else { since(0) }) {
            Ok(dump) => dump,
            // The agent is being replaced: the next one is waited for.
            Err(error) if is_absence(&error) => {
                if !waits {
                    eprintln!("sluice: {}; waiting for an agent", super::told(&error));
                }
                waits = true;
                continue;
            }
            Err(error) => return Err(error),
        };
        waits = false;
        for notice in place.go_on(&dump) {
            eprintln!("sluice: {notice}");
        }
        shown = show(&mut out, dump.flows.iter().filter(|flow| args.filter.fits(flow)), args)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What is wrong with the name of a policy that neither the documents have nor an event names.
fn unknown_policy(args: &ObserveArgs, dump: &FlowsDump) -> anyhow::Result<Option<String>> {
    let Some(wanted) = &args.filter.policy else { return Ok(None) };
    if dump.flows.iter().any(|flow| flow.policy.as_ref() == Some(wanted)) {
        return Ok(None);
    }
    let status: Status = ask(&args.client, "/status")?;
    Ok(is_unknown(wanted, &status.config).then(|| {
        format!(
            "`{wanted}`: no AuthorizationPolicy or EdgeGuard of this name; say NAMESPACE/NAME, or EDGEGUARD"
        )
    }))
}

/// `report`: on the documents. A follower of a cluster has none, and knows of no name that it is wrong.
fn is_unknown(wanted: &str, report: &Value) -> bool {
    let Some(objects) = report["objects"].as_array().filter(|objects| !objects.is_empty()) else {
        return false;
    };
    !objects.iter().any(|object| match object["kind"].as_str() {
        Some("AuthorizationPolicy") => {
            let part = |name: &str| object[name].as_str().unwrap_or_default().to_owned();
            format!("{}/{}", part("namespace"), part("name")) == wanted
        }
        Some("EdgeGuard") => object["name"] == wanted,
        _ => false,
    })
}

/// Whether nobody answers, or the answer broke off, as when an agent ends.
fn is_absence(error: &anyhow::Error) -> bool {
    use ClientError::{Broken, Connect, Timeout};
    matches!(error.downcast_ref(), Some(Connect { .. } | Timeout { .. } | Broken { .. }))
}

/// How far an agent's events have been read.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    agent: String,
    next: u64,
    lost: u64,
}

impl Place {
    fn after(dump: &FlowsDump) -> Self {
        Self { agent: dump.agent.clone(), next: dump.next, lost: dump.lost }
    }

    /// Whether the same agent tells.
    fn is_of(&self, dump: &FlowsDump) -> bool {
        self.agent == dump.agent
    }

    /// Goes on behind these; says what is missing before them.
    fn go_on(&mut self, dump: &FlowsDump) -> Vec<String> {
        let mut notices = Vec::new();
        if self.is_of(dump) {
            let lost = dump.lost.saturating_sub(self.lost);
            notices.extend((lost > 0).then(|| format!("{lost} events were not told")));
        } else {
            notices.push("another agent tells from here on".to_owned());
            self.next = 0;
        }
        let gone = dump.flows.first().map_or(0, |first| first.number.saturating_sub(self.next));
        notices.extend((gone > 0).then(|| format!("{gone} events were gone before they could be read")));
        *self = Self::after(dump);
        notices
    }
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

/// One event in one line; also what `why` says of a past connection.
pub(super) fn render(flow: &FlowDump) -> String {
    let named = |address: &str, name: &Option<String>| match name {
        Some(name) => format!("{address} ({name})"),
        None => address.to_owned(),
    };
    let source = match flow.process {
        Some(process) => format!("process {process}"),
        None => named(flow.source.strip_suffix(":0").unwrap_or(&flow.source), &flow.source_pod),
    };
    let FlowDump { time, kind, tier, verdict, reason, .. } = flow;
    let mut line = format!(
        "{time} {kind:<7} {tier:<8} {verdict:<8} {reason:<18} {source} -> {}",
        named(&flow.destination, &flow.destination_name)
    );
    if let Some(endpoint) = flow.endpoint.as_ref().filter(|endpoint| **endpoint != flow.destination) {
        line += " => ";
        line += &named(endpoint, &flow.endpoint_pod);
    }
    for detail in details(flow) {
        line += ", ";
        line += &detail;
    }
    line
}

fn details(flow: &FlowDump) -> Vec<String> {
    let mut details = Vec::new();
    if flow.protocol != "tcp" {
        details.push(flow.protocol.clone());
    }
    match (&flow.policy, &flow.rule) {
        (Some(policy), Some(limit)) if flow.reason == RATE_LIMITED => {
            details.push(format!("RateLimit {policy} limit {limit}"));
        }
        (Some(policy), Some(rule)) => details.push(format!("policy {policy} rule {rule}")),
        (Some(guard), None) => details.push(format!("EdgeGuard {guard}")),
        _ => {}
    }
    match (flow.sent_bytes, flow.received_bytes) {
        (Some(sent), Some(received)) => details.push(format!("{sent} bytes sent, {received} received")),
        _ if flow.kind == "close" => details.push("bytes unknown".to_owned()),
        _ => {}
    }
    details.extend(flow.rtt_us.map(|rtt| format!("rtt {rtt} us")));
    details.extend(flow.lasted_us.map(|us| format!("after {}.{:03} ms", us / 1000, us % 1000)));
    if flow.by_server {
        details.push("told by the dialled end".to_owned());
    }
    details
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
            kind: "verdict".to_owned(),
            tier: "agent L7".to_owned(),
            verdict: "agent".to_owned(),
            reason: "captured".to_owned(),
            protocol: "tcp".to_owned(),
            endpoint: Some("10.0.0.9:8080".to_owned()),
            endpoint_pod: Some("shop/web-1".to_owned()),
            interface: 3,
            ..FlowDump::default()
        }
    }

    #[test]
    fn every_filter_can_fit_and_not_fit() {
        let text = |text: &str| Some(text.to_owned());
        let cases = [
            (Filter::default(), true),
            (
                Filter {
                    ends: EndFilter { from: text("client"), ..EndFilter::default() },
                    ..Filter::default()
                },
                true,
            ),
            (
                Filter { ends: EndFilter { port: Some(81), ..EndFilter::default() }, ..Filter::default() },
                false,
            ),
            (Filter { verdict: text("agent"), ..Filter::default() }, true),
            (Filter { verdict: text("captured"), ..Filter::default() }, true),
            (Filter { verdict: text("direct"), ..Filter::default() }, false),
            (Filter { kind: vec![Kind::Drop, Kind::Verdict], ..Filter::default() }, true),
            (Filter { kind: vec![Kind::Drop, Kind::Close], ..Filter::default() }, false),
            (Filter { tier: text("agent"), ..Filter::default() }, true),
            (Filter { tier: text("agent L7"), ..Filter::default() }, true),
            (Filter { tier: text("agent L4"), ..Filter::default() }, false),
            (Filter { policy: text("default/p"), ..Filter::default() }, false),
            (Filter { protocol: text("tcp"), ..Filter::default() }, true),
            (Filter { protocol: text("udp"), ..Filter::default() }, false),
        ];
        for (filter, expected) in cases {
            assert_eq!(filter.fits(&flow()), expected, "{filter:?}");
        }
    }

    #[test]
    fn a_line_names_both_ends_and_what_decided() {
        let seen = flow();
        assert_eq!(
            render(&seen),
            "2026-11-21T22:44:05.123Z verdict agent L7 agent    captured           10.0.0.1:40000 (default/client) -> \
             [fd00::1]:80 (shop/web) => 10.0.0.9:8080 (shop/web-1)"
        );
        let refused = FlowDump {
            kind: "drop".to_owned(),
            source: "10.0.0.1:0".to_owned(),
            policy: Some("shop/deny".to_owned()),
            rule: Some("2".to_owned()),
            endpoint: None,
            ..flow()
        };
        let line = render(&refused);
        assert!(line.contains(" 10.0.0.1 (default/client) -> "), "{line}");
        assert!(line.ends_with("(shop/web), policy shop/deny rule 2"), "{line}");
        let closed = FlowDump {
            kind: "close".to_owned(),
            endpoint: None,
            sent_bytes: Some(5),
            received_bytes: Some(6),
            rtt_us: Some(90),
            lasted_us: Some(1500),
            ..flow()
        };
        let line = render(&closed);
        assert!(line.ends_with("(shop/web), 5 bytes sent, 6 received, rtt 90 us, after 1.500 ms"), "{line}");
        let joined = FlowDump { kind: "close".to_owned(), endpoint: None, by_server: true, ..flow() };
        assert!(render(&joined).ends_with("(shop/web), bytes unknown, told by the dialled end"));
        let datagrams = FlowDump { protocol: "udp".to_owned(), process: Some(42), ..flow() };
        assert!(render(&datagrams).contains(" process 42 -> "));
    }

    #[test]
    fn what_is_missing_is_said() {
        let dump = |agent: &str, numbers: std::ops::Range<u64>, lost| FlowsDump {
            agent: agent.to_owned(),
            next: numbers.end,
            lost,
            flows: numbers.map(|number| FlowDump { number, ..flow() }).collect(),
        };
        let mut place = Place::after(&dump("a", 0..5, 1));
        assert_eq!(place.go_on(&dump("a", 5..9, 1)), Vec::<String>::new());
        assert_eq!(place.go_on(&dump("a", 9..9, 4)), ["3 events were not told"]);
        assert_eq!(place.go_on(&dump("a", 12..14, 4)), ["3 events were gone before they could be read"]);
        // Another agent counts anew, and what it has lost is not what the first one lost.
        let other = dump("b", 0..20, 2);
        assert!(!place.is_of(&other));
        assert_eq!(place.go_on(&other), ["another agent tells from here on"]);
        assert_eq!(place, Place { agent: "b".to_owned(), next: 20, lost: 2 });
    }

    #[test]
    fn policies_that_no_document_has_are_told() {
        let object = |kind: &str, namespace: &str, name: &str| serde_json::json!({"kind": kind, "namespace": namespace, "name": name});
        let objects = [
            object("AuthorizationPolicy", "shop", "p"),
            object("EdgeGuard", "", "edge"),
            object("Pod", "a", "b"),
        ];
        let report = serde_json::json!({ "objects": objects });
        for (wanted, unknown) in
            [("shop/p", false), ("edge", false), ("nope", true), ("p", true), ("a/b", true)]
        {
            assert_eq!(is_unknown(wanted, &report), unknown, "{wanted}");
        }
        assert!(!is_unknown("shop/p", &Value::Null));
    }

    #[test]
    fn an_agent_that_is_away_is_waited_for() {
        let address = "127.0.0.1:9".parse().expect("an address");
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        assert!(is_absence(&ClientError::Connect { address, source: refused }.into()));
        assert!(is_absence(&ClientError::Timeout { address }.into()));
        assert!(!is_absence(&anyhow::anyhow!("the answer is not what this version expects")));
    }

    #[test]
    fn ages_have_units() {
        for (text, seconds) in [
            ("5m", Some(300)),
            ("30s", Some(30)),
            ("30", Some(30)),
            ("2h", Some(7200)),
            ("1d", Some(86_400)),
            ("m", None),
            ("5x", None),
            ("", None),
            ("99999999999999999999s", None),
        ] {
            assert_eq!(age(text).ok(), seconds.map(Duration::from_secs), "{text}");
        }
    }
}
