//! What is known of a connection beside what the tables say: that it is open, or what was told of it.

use std::net::{IpAddr, SocketAddr};

use super::{Asked, Explanation, Step, Transport, gateway};
use crate::admin::{ConnectionDump, FlowDump, RATE_LIMITED};
use crate::compile::{ACCESS_DENIED, MTLS_REQUIRED, RoutingTable};

/// Connections and events that are shown at the most.
const SHOWN_MAX: usize = 10;

/// Adds what is known. Where one connection is meant that is open or over, what really became of it is the verdict.
pub fn add_seen(
    said: &mut Explanation,
    asked: Asked,
    table: &RoutingTable,
    (open, told): (Vec<ConnectionDump>, Vec<FlowDump>),
) {
    let endpoints: Vec<SocketAddr> = match asked.protocol {
        Transport::Tcp => table
            .frontends
            .get(&asked.destination)
            .map_or_else(Vec::new, |frontend| frontend.tcp.endpoints.iter().map(|one| one.address).collect()),
        Transport::Udp => {
            table.datagrams.get(&asked.destination).map_or_else(Vec::new, |frontend| frontend.ready.clone())
        }
    };
    let by_gateway = table.gateways.iter().filter(|one| one.port == asked.destination.port());
    let behind = by_gateway.flat_map(|listener| gateway::endpoints(listener));
    let to = [asked.destination].into_iter().chain(endpoints).chain(behind).collect::<Vec<_>>();
    said.live = open.into_iter().filter(|one| is_meant(one, asked)).take(SHOWN_MAX).collect();
    let mut past: Vec<_> = told.into_iter().filter(|flow| tells_of(flow, asked, &to)).collect();
    // Judged before it is cut: the beginning tells what belongs together.
    let last = last(&past).to_vec();
    let decisive = last.iter().max_by_key(|flow| weight(flow)).cloned();
    said.past = past.split_off(past.len().saturating_sub(SHOWN_MAX));
    if asked.port.is_none() {
        return;
    }
    if let Some(one) = said.live.first() {
        let way = (one.verdict.clone(), one.tier.clone(), one.reason.clone());
        "live".clone_into(&mut said.state);
        said.judged((&way.0, &way.1, &way.2), None);
    } else if let Some(flow) = decisive {
        let rule = rule_of(&flow);
        // Whoever tells of a beginning tells of the end, unless it was lost.
        let is_open = last.iter().any(|flow| flow.kind == "open")
            && !last.iter().any(|flow| matches!(flow.kind.as_str(), "close" | "drop"));
        if is_open { "live" } else { "past" }.clone_into(&mut said.state);
        said.judged((&flow.verdict, &flow.tier, &flow.reason), rule);
    }
    let steps = said.past.iter().map(|flow| Step { at: "events".to_owned(), found: describe(flow) });
    let steps: Vec<_> = steps.collect();
    said.steps.extend(steps);
}

/// What was told of the last one of all the connections that had these ends in turn.
///
/// The kernel's events are heard a little later than the agent's own: how a connection began may be told after its end, but
/// it is before the end of the next one.
fn last(told: &[FlowDump]) -> &[FlowDump] {
    let ends = told.iter().rposition(|flow| !begins(flow)).map_or(0, |last| last + 1);
    let ending = told[..ends].iter().rposition(begins).map_or(0, |last| last + 1);
    let first = told[..ending].iter().rposition(|flow| !begins(flow)).map_or(0, |last| last + 1);
    &told[told_before(told, first).unwrap_or(first)..]
}

/// Where the agent's own events of the last connection begin, if it told all of them before the kernel told any.
fn told_before(told: &[FlowDump], first: usize) -> Option<usize> {
    let by_agent = |flow: &FlowDump| !begins(flow) && flow.tier.starts_with("agent");
    let (before, last) = told.split_at(first);
    let awaited = last.iter().any(|flow| flow.kind == "verdict" && flow.verdict == "agent");
    // Its end names no rule: the refusal was told before.
    let shut = |flow: &FlowDump| {
        flow.kind == "close" && [ACCESS_DENIED, MTLS_REQUIRED, RATE_LIMITED].contains(&flow.reason.as_str())
    };
    if !awaited || last.iter().any(|flow| by_agent(flow) && !shut(flow)) {
        return None;
    }
    let end = before.iter().rposition(by_agent)?;
    if before[end..].iter().any(begins) {
        return None;
    }
    let other = |flow: &FlowDump| begins(flow) || flow.kind == "close" && by_agent(flow);
    let start = before[..end].iter().rposition(other).map_or(0, |other| other + 1);
    // With a beginning of its own before it, it is another connection's.
    let owned = start > 0 && begins(&before[start - 1]);
    (!owned).then_some(start)
}

fn begins(flow: &FlowDump) -> bool {
    matches!(flow.kind.as_str(), "verdict" | "connect" | "open")
}

/// Which event says most of what became of a connection: a refusal before all, then who served it, then what was decided of
/// its first packet.
fn weight(flow: &FlowDump) -> u8 {
    match (flow.kind.as_str(), flow.tier.as_str()) {
        ("drop", _) => 5,
        ("close", "agent L4" | "agent L7") => 4,
        ("connect", _) => 3,
        ("verdict", _) => 2,
        ("close", _) => 1,
        _ => 0,
    }
}

/// The rule that refuses, in the words of `why`.
fn rule_of(flow: &FlowDump) -> Option<String> {
    match (&flow.policy, &flow.rule) {
        (Some(policy), Some(limit)) if flow.reason == RATE_LIMITED => {
            Some(format!("RateLimit {policy} limit {limit}"))
        }
        (Some(policy), Some(rule)) => Some(format!("policy {policy} rule {rule}")),
        (Some(guard), None) => Some(format!("EdgeGuard {guard}")),
        _ => None,
    }
}

fn describe(flow: &FlowDump) -> String {
    let FlowDump { time, kind, tier, verdict, reason, .. } = flow;
    let rule = rule_of(flow).map_or_else(String::new, |rule| format!(" by {rule}"));
    let bytes = match flow.sent_bytes.zip(flow.received_bytes) {
        Some((sent, received)) => format!(", {sent} bytes sent, {received} received"),
        None => String::new(),
    };
    let endpoint =
        flow.endpoint.as_ref().map_or_else(String::new, |endpoint| format!(", endpoint {endpoint}"));
    format!("{time} {kind}: {verdict} ({tier}), {reason}{rule}{endpoint}{bytes}")
}

fn is_meant(one: &ConnectionDump, asked: Asked) -> bool {
    let to = |text: &String| address(text) == Some(asked.destination);
    is_by(&one.protocol, asked)
        && is_source(&one.source, asked)
        && (to(&one.destination) || one.endpoint.as_ref().is_some_and(to))
}

/// Refusals of the agent name the endpoint; the guard's, where answers are dropped, have the ends the other way round.
fn tells_of(flow: &FlowDump, asked: Asked, to: &[SocketAddr]) -> bool {
    let drop = flow.kind == "drop";
    let exact = |text: &String| address(text) == Some(asked.destination);
    if flow.tier == "guard" && exact(&flow.source) {
        return is_by(&flow.protocol, asked) && is_source(&flow.destination, asked);
    }
    let end = exact(&flow.destination)
        || flow.endpoint.as_ref().is_some_and(exact)
        || drop && address(&flow.destination).is_some_and(|end| to.contains(&end));
    is_by(&flow.protocol, asked) && is_source(&flow.source, asked) && end
}

/// Whatever is not UDP has a connection: `tcp`, or what is spoken on it.
fn is_by(protocol: &str, asked: Asked) -> bool {
    (protocol == "udp") == (asked.protocol == Transport::Udp)
}

fn is_source(text: &str, asked: Asked) -> bool {
    let Some(end) = address(text) else { return false };
    let ip: IpAddr = asked.source;
    end.ip() == ip && asked.port.is_none_or(|port| port == end.port())
}

/// Dual-stack listeners see IPv4 clients as IPv6 ones in disguise.
fn address(text: &str) -> Option<SocketAddr> {
    let end: SocketAddr = text.parse().ok()?;
    Some(SocketAddr::new(end.ip().to_canonical(), end.port()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::tests::table;

    fn asked(port: Option<u16>) -> Asked {
        Asked {
            source: "10.0.0.1".parse().expect("an address"),
            port,
            destination: "10.96.0.1:80".parse().expect("an address"),
            unserved: false,
            protocol: Transport::Tcp,
        }
    }

    fn event(
        kind: &str,
        source: &str,
        destination: &str,
        (tier, verdict, reason): (&str, &str, &str),
    ) -> FlowDump {
        FlowDump {
            time: "2026-11-21T22:44:05.123Z".to_owned(),
            kind: kind.to_owned(),
            source: source.to_owned(),
            destination: destination.to_owned(),
            tier: tier.to_owned(),
            verdict: verdict.to_owned(),
            reason: reason.to_owned(),
            ..FlowDump::default()
        }
    }

    fn told() -> Vec<FlowDump> {
        vec![
            event("verdict", "10.0.0.1:1", "10.96.0.1:80", ("agent L7", "agent", "captured")),
            event("close", "10.0.0.1:1", "10.96.0.1:80", ("agent L7", "agent", "closed")),
            event("verdict", "10.0.0.1:2", "10.96.0.1:80", ("kernel", "direct", "no_listener")),
            event("close", "10.0.0.1:2", "10.96.0.1:80", ("kernel", "plain", "reset")),
            event("verdict", "10.0.0.9:1", "10.96.0.1:80", ("agent L7", "agent", "captured")),
            event("verdict", "10.0.0.1:1", "10.96.0.2:80", ("agent L7", "agent", "captured")),
        ]
    }

    fn said(port: Option<u16>, open: Vec<ConnectionDump>, told: Vec<FlowDump>) -> Explanation {
        let mut said = Explanation {
            verdict: "agent".to_owned(),
            state: "hypothetical".to_owned(),
            ..Explanation::default()
        };
        add_seen(&mut said, asked(port), &table(), (open, told));
        said
    }

    fn judgement(said: &Explanation) -> (&str, &str, &str, &str) {
        (&said.state, &said.verdict, &said.tier, &said.reason)
    }

    #[test]
    fn a_past_connection_is_told_by_its_events() {
        let first = said(Some(1), vec![], told());
        assert_eq!(judgement(&first), ("past", "agent", "agent L7", "closed"));
        assert_eq!(first.past.len(), 2);
        assert!(first.steps[1].found.contains("close: agent (agent L7), closed"), "{:?}", first.steps);
        let second = said(Some(2), vec![], told());
        assert_eq!(judgement(&second), ("past", "direct", "kernel", "no_listener"));
        let other = said(Some(3), vec![], told());
        assert_eq!((other.state.as_str(), other.past.len()), ("hypothetical", 0));
        // Without a port no one connection is meant; what was told of all is shown.
        let any = said(None, vec![], told());
        assert_eq!((any.state.as_str(), any.past.len()), ("hypothetical", 4));
    }

    #[test]
    fn a_refusal_says_most_and_names_its_rule() {
        let policy = (Some("default/p".to_owned()), Some("0".to_owned()));
        let refused =
            event("drop", "10.0.0.1:1", "10.0.0.1:8080", ("agent", "refused", "rbac_access_denied"));
        let refused = FlowDump { policy: policy.0, rule: policy.1, ..refused };
        let mut events = told();
        events.insert(1, refused);
        let first = said(Some(1), vec![], events.clone());
        assert_eq!(judgement(&first), ("past", "refused", "agent", "rbac_access_denied"));
        assert_eq!(first.rule.as_deref(), Some("policy default/p rule 0"));
        // Another connection of the client has nothing to do with it,
        let other = said(Some(2), vec![], events.clone());
        assert_eq!(judgement(&other), ("past", "direct", "kernel", "no_listener"));
        // nor has a later one from the same port.
        events.extend(told());
        let later = said(Some(1), vec![], events);
        assert_eq!((judgement(&later), &later.rule), (("past", "agent", "agent L7", "closed"), &None));
    }

    #[test]
    fn the_last_connection_is_judged_however_late_its_beginning_was_told() {
        let kinds = |text: &str| {
            let event = |kind| event(kind, "10.0.0.1:1", "10.96.0.1:80", ("", "", ""));
            text.split_whitespace().map(event).collect::<Vec<_>>()
        };
        for (told, judged) in [
            ("", 0),
            ("verdict open", 2),
            ("verdict open close", 3),
            ("drop close verdict", 3),
            ("verdict drop close verdict close", 2),
            ("drop close verdict close verdict", 3),
            ("verdict close verdict drop drop close", 4),
        ] {
            assert_eq!(last(&kinds(told)).len(), judged, "{told}");
        }
    }

    #[test]
    fn a_refusal_that_the_agent_told_first_belongs_to_what_the_kernel_tells_after_it() {
        let event = |word: &str| {
            let (kind, tier, verdict) = match word {
                "verdict" => ("verdict", "agent L4", "agent"),
                "direct" => ("verdict", "kernel", "direct"),
                "drop" => ("drop", "agent", "refused"),
                "served" | "shut" => ("close", "agent L4", "agent"),
                kind => (kind, "kernel", "plain"),
            };
            let reason = if word == "shut" { ACCESS_DENIED } else { "" };
            event(kind, "10.0.0.1:1", "10.96.0.1:80", (tier, verdict, reason))
        };
        for (told, judged) in [
            ("drop served verdict open close", "refused"),
            ("drop verdict shut", "refused"),
            ("drop verdict open shut close", "refused"),
            ("verdict served close drop verdict shut", "refused"),
            ("verdict open served close drop served verdict open close", "refused"),
            ("verdict open served drop served close verdict open close", "refused"),
            // What was refused before, with a beginning of its own, is another connection.
            ("verdict open drop served verdict open close", "agent"),
            ("verdict drop served close direct open close", "direct"),
            ("drop served direct open close", "direct"),
        ] {
            let events: Vec<_> = told.split_whitespace().map(event).collect();
            let found = last(&events).iter().max_by_key(|flow| weight(flow)).expect("an event");
            assert_eq!(found.verdict, judged, "{told}");
        }
    }

    #[test]
    fn what_was_opened_and_not_closed_is_live() {
        let ends = ("10.0.0.1:5", "10.96.0.1:80");
        let verdict = event("verdict", ends.0, ends.1, ("kernel", "direct", "no_route"));
        let open = event("open", ends.0, ends.1, ("kernel", "plain", "established"));
        let close = event("close", ends.0, ends.1, ("kernel", "plain", "closed"));
        let state = |told| said(Some(5), vec![], told).state;
        assert_eq!(state(vec![verdict.clone(), open.clone()]), "live");
        assert_eq!(state(vec![verdict.clone(), open, close]), "past");
        assert_eq!(state(vec![verdict]), "past");
    }

    #[test]
    fn answers_that_the_guard_drops_are_the_connections() {
        let verdict = event("verdict", "10.0.0.1:5", "10.96.0.1:80", ("kernel", "direct", "no_route"));
        let dropped = event("drop", "10.96.0.1:80", "10.0.0.1:5", ("guard", "dropped", "denied"));
        let dropped = FlowDump { policy: Some("edge".to_owned()), ..dropped };
        let found = said(Some(5), vec![], vec![verdict, dropped]);
        assert_eq!(judgement(&found), ("past", "dropped", "guard", "denied"));
        assert_eq!(found.rule.as_deref(), Some("EdgeGuard edge"));
    }

    #[test]
    fn an_open_connection_is_live() {
        let open = ConnectionDump {
            source: "[::ffff:10.0.0.1]:1".to_owned(),
            destination: "10.96.0.1:80".to_owned(),
            tier: "agent L7".to_owned(),
            verdict: "agent".to_owned(),
            reason: "declared_http".to_owned(),
            ..ConnectionDump::default()
        };
        let live = said(Some(1), vec![open.clone()], told());
        assert_eq!(judgement(&live), ("live", "agent", "agent L7", "declared_http"));
        let other = said(Some(2), vec![open], vec![]);
        assert_eq!((other.state.as_str(), other.live.len()), ("hypothetical", 0));
    }
}
