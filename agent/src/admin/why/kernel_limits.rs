//! Limits that the kernel holds to where the agent takes a connection, where it enters its pod, or where it comes to a Gateway. They
//! depend on what a source does: only events tell of what is refused.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::{Transport, View, edge};
use crate::admin::limits::said_of_kernel;
use crate::compile::{GatewayListener, LimitPolicy};
use crate::model::KernelLimit;

/// Says which limits are about a connection to one of these endpoints.
pub(super) fn describe(view: &View<'_>, endpoints: &[SocketAddr], step: &mut impl FnMut(&str, String)) {
    let View { asked, table, .. } = *view;
    let protocol = match asked.protocol {
        Transport::Tcp => 6,
        Transport::Udp => 17,
    };
    for policy in table.limits.of_kernel() {
        for limit in &policy.kernel {
            let ends = table.limited_ends(policy, limit);
            let all: BTreeSet<SocketAddr> = endpoints.iter().copied().chain([asked.destination]).collect();
            let about = all.iter().filter(|end| ends.contains(&(protocol, **end)));
            let about: Vec<String> = about.map(ToString::to_string).collect();
            if about.is_empty() {
                continue;
            }
            let holds = holds(view, (policy, limit));
            let found = format!(
                "RateLimit {} limit {} ({}), where the agent takes it or it enters a pod, to {}: {holds}",
                policy.name,
                limit.name,
                said_of_kernel(limit),
                about.join(", ")
            );
            step("limit_pod", found);
        }
    }
}

/// Says which limits are about a connection to a Gateway's listener.
pub(super) fn of_listener(view: &View<'_>, listener: &GatewayListener, step: &mut impl FnMut(&str, String)) {
    let View { asked, table, status, .. } = *view;
    let interfaces = status.guard.iter().flat_map(|guard| &guard.interfaces);
    let guarded: Vec<&str> =
        interfaces.filter(|one| one.not_guarded.is_none()).map(|one| one.name.as_str()).collect();
    let by = if guarded.is_empty() { String::new() } else { format!(" by {}", guarded.join(", ")) };
    let from_here = view.is_from_here() || status.capture.local_addresses.contains(&asked.source);
    let allowed = edge::allows_source(view);
    for policy in table.limits.of_kernel().filter(|policy| policy.is_about(listener)) {
        for limit in &policy.kernel {
            let holds = match holds(view, (policy, limit)) {
                off if status.capture.is_off() => off,
                _ if guarded.is_empty() => "is not held to: no interface is guarded (--guard)".to_owned(),
                _ if from_here => "does not count what this node and its pods send".to_owned(),
                _ if allowed => "does not hold for the source, which an EdgeGuard allows".to_owned(),
                holds => holds,
            };
            let said = said_of_kernel(limit);
            let found =
                format!("RateLimit {} limit {} ({said}), where frames come in{by}", policy.name, limit.name);
            step("xdp_guard", format!("{found}: {holds}"));
        }
    }
}

/// What a limit does with a source's connection.
fn holds(view: &View<'_>, (policy, limit): (&LimitPolicy, &KernelLimit)) -> String {
    match limit.exempt.iter().find(|net| net.contains(&view.asked.source)) {
        _ if view.status.capture.is_off() => "is not held to: there are no programs in the kernel".to_owned(),
        Some(net) => format!("does not hold for the source, which is in {net}"),
        None if policy.shadow => "only counts".to_owned(),
        None => "drops what is beyond it, without an answer".to_owned(),
    }
}
