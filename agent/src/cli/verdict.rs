//! The verdicts and reasons that connections and their events have, for the verbs that filter by them.

use agent_common::balance::{ConnectReason, TierReason};
use agent_common::{capture, guard};

use crate::admin::protocol_name;
use crate::compile::{NO_CA, OUTSIDE_MESH};
use crate::identity::PeerRefusal;
use crate::identity::edge_backends;

const VERDICTS: [&str; 7] = ["accelerated", "agent", "balanced", "direct", "dropped", "plain", "refused"];

/// Reasons beside those of the kernel's verdicts.
const OTHERS: [&str; 19] = [
    "closed",
    "connections",
    "connections_per_source",
    "connect_failed",
    "connect_no_source_port",
    "connect_refused",
    "connect_timeout",
    "connect_unreachable",
    "downstream_reset",
    "established",
    "gateway",
    "joined",
    "mtls_required",
    "no_healthy_upstream",
    "rate_limit_uncounted",
    "rate_limited",
    "rbac_access_denied",
    "reset",
    "upstream_reset",
];

fn reasons() -> Vec<&'static str> {
    let captured = capture::Reason::ALL.into_iter().map(capture::Reason::as_str);
    let guarded = guard::Reason::ALL.into_iter().map(guard::Reason::as_str);
    let balanced = ConnectReason::ALL.into_iter().map(ConnectReason::as_str);
    let taken = TierReason::ALL.into_iter().map(TierReason::as_str);
    let handshakes = PeerRefusal::ALL.into_iter().map(PeerRefusal::name);
    let upstream = edge_backends::REFUSALS.into_iter().chain([NO_CA, OUTSIDE_MESH]);
    let kernel = captured.chain(guarded).chain(balanced).chain(taken);
    let mut reasons: Vec<_> = kernel.chain(handshakes).chain(upstream).chain(OTHERS).collect();
    reasons.sort_unstable();
    reasons.dedup();
    reasons
}

/// Takes a verdict or a reason; what is neither would fit nothing.
pub(super) fn parse(text: &str) -> Result<String, String> {
    let reasons = reasons();
    if VERDICTS.contains(&text) || reasons.contains(&text) {
        return Ok(text.to_owned());
    }
    Err(format!("neither a verdict ({}) nor a reason ({})", VERDICTS.join(", "), reasons.join(", ")))
}

/// Who tells of a connection.
pub(super) const TIERS: [&str; 5] = ["guard", "kernel", "agent", "agent L4", "agent L7"];
/// What open connections speak.
pub(super) const SPOKEN: [&str; 7] = ["http/1", "http/2", "opaque", "tunnel", "undecided", "tcp", "udp"];

/// Takes the protocol of an event.
pub(super) fn protocol(text: &str) -> Result<String, String> {
    match text.parse::<u8>() {
        Ok(number) => Ok(protocol_name(number)),
        Err(_) if ["tcp", "udp", "icmp"].contains(&text) => Ok(text.to_owned()),
        Err(_) => Err("say tcp, udp, icmp, or the IP protocol's number".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_have_names_or_numbers() {
        for known in ["tcp", "udp", "icmp", "132"] {
            assert_eq!(protocol(known).as_deref(), Ok(known));
        }
        for unknown in ["foo", "", "256", "TCP"] {
            assert!(protocol(unknown).is_err(), "{unknown}");
        }
    }

    #[test]
    fn what_is_neither_is_refused_with_what_there_is() {
        for known in [
            "agent",
            "direct",
            "captured_inbound",
            "no_route",
            "headless",
            "denied",
            "affinity",
            "upstream_reset",
            "other_identity",
            "upstream_tls_no_ca",
            "upstream_tls_unknown_issuer",
            "upstream_outside_mesh",
        ] {
            assert_eq!(parse(known).as_deref(), Ok(known));
        }
        for unknown in ["bogus", "", "Agent"] {
            let error = parse(unknown).expect_err(unknown);
            assert!(error.contains("balanced") && error.contains("captured_inbound"), "{error}");
        }
    }
}
