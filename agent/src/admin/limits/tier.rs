//! Which tier holds to a limit, and why it does: what of its document chose it.

use crate::compile::LimitCounter;
use crate::model::{ClusterMode, Limit, Quota};

/// As [`LimitDump::tier`](super::LimitDump::tier) has it.
pub(super) fn tier(counter: &LimitCounter) -> &'static str {
    match mode(&counter.limit, counter.is_shared()) {
        None => "node",
        Some(ClusterMode::Exact) => "cluster, exact",
        Some(ClusterMode::Leased) => "cluster, leased",
    }
}

/// As [`LimitDump::why`](super::LimitDump::why) has it.
pub(super) fn why(limit: &Limit, is_shared: bool) -> String {
    let why = match (mode(limit, is_shared), limit.quota) {
        (Some(ClusterMode::Exact), _) => "`cluster.mode` is `Exact`: Redis decides each request",
        (Some(ClusterMode::Leased), _) => {
            "`cluster.mode` is `Leased`: nodes decide by portions that Redis gives them"
        }
        (None, Quota::InFlight { .. }) => "`inFlight`: what is in flight is known to its node alone",
        (None, _) if limit.cluster.is_some() => "its numbers are too large for Redis to count",
        (None, _) => "the document asks for neither `cluster` nor `kernel`: each node counts for itself",
    };
    let pushed = if limit.push_down.is_some() {
        "; `pushDown`: sources that go on, the guard drops (xdp)"
    } else {
        ""
    };
    format!("{why}{pushed}")
}

/// The same of limits of the kernel, by whether they are about Services and about Gateways.
pub(super) fn why_of_kernel(services: bool, gateways: bool) -> &'static str {
    match (services, gateways) {
        (_, false) => "`kernel`, of Services: tc drops what is beyond it, on this node",
        (false, true) => "`kernel`, of Gateways: xdp drops what is beyond it, on this node",
        (true, true) => "`kernel`: on this node, tc drops what is beyond it of Services, xdp of Gateways",
    }
}

fn mode(limit: &Limit, is_shared: bool) -> Option<ClusterMode> {
    limit.cluster.map(|cluster| cluster.mode).filter(|_| is_shared)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ClusterCount, Cost, FailMode, Missing, PushDown};

    #[test]
    fn the_document_chooses_the_tier() {
        let window = Quota::Window { requests: 9, window_ns: 1000 };
        let check = |quota, mode: Option<ClusterMode>, is_shared, starts: &str| {
            let limit = Limit {
                name: "a".into(),
                key: Vec::new(),
                missing: Missing::default(),
                quota,
                cost: Cost::default(),
                overrides: Vec::new(),
                exempt: Vec::new(),
                exempt_principals: Vec::new(),
                max_keys: 8,
                cluster: mode.map(|mode| ClusterCount { mode, fail: FailMode::Share }),
                push_down: Some(PushDown { after: 1, within_ns: 1, lasts_ns: 1 }),
            };
            let said = why(&limit, is_shared);
            assert!(said.starts_with(starts) && said.ends_with("(xdp)"), "{said}");
            let said = why(&Limit { push_down: None, ..limit }, is_shared);
            assert!(said.starts_with(starts) && !said.contains("pushDown"), "{said}");
        };
        check(window, None, false, "the document asks for neither");
        check(Quota::InFlight { requests: 1 }, None, false, "`inFlight`");
        check(window, Some(ClusterMode::Exact), true, "`cluster.mode` is `Exact`");
        check(window, Some(ClusterMode::Leased), true, "`cluster.mode` is `Leased`");
        check(window, Some(ClusterMode::Leased), false, "its numbers are too large");
    }
}
