//! What the documents ask for and this agent, as it was started and on this node, does not do.

use std::sync::Arc;

use crate::capture::CaptureStatus;
use crate::compile::{GuardPolicy, PodPolicy, RoutingTable};

/// One sentence for each. `capture`: what is captured; `None` where nothing is.
pub(super) fn unmet(table: &RoutingTable, node: &str, capture: Option<&CaptureStatus>) -> Vec<String> {
    let mut unmet = Vec::new();
    if *table.guard != GuardPolicy::default() && capture.is_none_or(|capture| capture.guard.is_none()) {
        unmet.push("EdgeGuards: no interface is guarded (--guard IFACE)".to_owned());
    }
    if capture.is_none_or(|capture| capture.guard.as_ref().is_none_or(|guard| guard.interfaces.is_empty())) {
        let policies = table.limits.of_kernel().filter(|policy| policy.is_about_gateways());
        unmet.extend(policies.map(|policy| {
            format!(
                "limits of the kernel for Gateways, RateLimit {}: no interface is guarded (--guard IFACE)",
                policy.name
            )
        }));
    }
    let Some(capture) = capture else {
        if table.limits.ask_for_receivers() {
            unmet
                .push("limits of what enters pods, but by a Gateway of this node: capture is off".to_owned());
        }
        let judges = |pod: &Arc<PodPolicy>| pod.policies().next().is_some() || pod.mtls().is_strict();
        if table.policies.iter().any(|(_, pod)| judges(pod)) {
            unmet.push("policies for what does not come by a Gateway: capture is off".to_owned());
        }
        return unmet;
    };
    if table.workloads.is_empty() {
        return unmet;
    }
    if !table.workloads.values().any(|workload| workload.node.as_deref() == Some(node)) {
        unmet.push(format!("pods of this node: no Pod document has nodeName {node} (--node)"));
    } else if capture.pod_interfaces.is_empty() {
        unmet.push("capture of pods: no interface matches --pod-interfaces".to_owned());
    }
    unmet
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::GuardStatus;
    use crate::compile::{TableVersion, compile};
    use crate::config::{InputFile, State, load};

    fn table(documents: &str) -> RoutingTable {
        let file = InputFile { path: "a.yaml".into(), text: Ok(documents.to_owned()) };
        let state = load(&State::default(), vec![file]);
        assert!(!state.report.has_errors(), "{:?}", state.report);
        compile(&state.model, &RoutingTable::default(), TableVersion::default())
    }

    const POD: &str =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {nodeName: n1}\nstatus: {podIP: 10.0.0.1}\n";
    const DENY: &str =
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: d}\nspec: {}\n";
    const GUARD: &str = "---\napiVersion: sluice.dev/v1alpha1\nkind: EdgeGuard\nmetadata: {name: g}\nspec: {deny: [192.0.2.0/24]}\n";

    const LIMITED: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: edge}\nspec:\n  \
        gatewayClassName: sluice\n  listeners: [{name: http, port: 80, protocol: HTTP}]\n---\n\
        apiVersion: sluice.dev/v1alpha1\nkind: RateLimit\nmetadata: {name: calm}\nspec:\n  \
        targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: edge}]\n  \
        limits: [{name: dials, kernel: {count: Connections}, rate: {requests: 1, per: 1s}}]\n";

    const ENTERED: &str = "---\napiVersion: sluice.dev/v1alpha1\nkind: RateLimit\nmetadata: {name: calm}\nspec:\n  \
        selector: {}\n  direction: Inbound\n  limits: [{name: all, inFlight: 1}]\n";

    #[test]
    fn what_is_not_done_is_named() {
        let capture = |interfaces: &[&str], guarded: bool| CaptureStatus {
            pod_interfaces: interfaces.iter().map(|&name| name.to_owned()).collect(),
            guard: guarded.then(|| GuardStatus {
                interfaces: vec![("eth0".to_owned(), "native")],
                ..GuardStatus::default()
            }),
            ..CaptureStatus::default()
        };
        let all = table(&format!("{POD}{DENY}{GUARD}"));
        let check = |table: &RoutingTable, node: &str, capture: Option<&CaptureStatus>, parts: &[&str]| {
            let found = unmet(table, node, capture);
            assert_eq!(found.len(), parts.len(), "{found:?}");
            for (text, part) in found.iter().zip(parts) {
                assert!(text.contains(part), "{found:?}");
            }
        };
        check(&all, "n1", Some(&capture(&["veth0"], true)), &[]);
        check(&all, "n1", Some(&capture(&["veth0"], false)), &["--guard"]);
        check(&all, "n1", Some(&capture(&[], true)), &["--pod-interfaces"]);
        check(&all, "n2", Some(&capture(&["veth0"], true)), &["nodeName n2"]);
        check(&all, "n1", None, &["--guard", "capture is off"]);
        let limited = table(LIMITED);
        check(&limited, "n1", Some(&capture(&[], true)), &[]);
        check(
            &limited,
            "n1",
            Some(&capture(&[], false)),
            &["RateLimit default/calm: no interface is guarded"],
        );
        check(&limited, "n1", None, &["RateLimit default/calm: no interface is guarded"]);
        let entered = table(&format!("{POD}{ENTERED}"));
        check(&entered, "n1", Some(&capture(&["veth0"], false)), &[]);
        check(&entered, "n1", None, &["limits of what enters pods"]);
        check(&table(POD), "n1", None, &[]);
        check(&RoutingTable::default(), "n1", Some(&capture(&[], false)), &[]);
    }
}
