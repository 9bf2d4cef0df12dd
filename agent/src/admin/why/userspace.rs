//! What a worker does with what the kernel gives it: the rules that requests meet, and where bytes go.

use super::super::dump::{RuleDump, cluster_name, of_cluster, rule};
use super::Explanation;
use crate::compile::{Cluster, Frontend};
use crate::model::AppProtocol;
use crate::route::RequestOrigin;

/// What a worker does with it.
pub(super) fn describe(
    frontend: &Frontend,
    origin: &RequestOrigin<'_>,
    explanation: &mut Explanation,
    step: &mut impl FnMut(&str, String),
) {
    if frontend.protocol != AppProtocol::Tcp {
        explanation.rules = rules(frontend, origin);
        let names: Vec<_> = explanation
            .rules
            .iter()
            .map(|rule| format!("{} {} {}", rule.kind, rule.source, rule.rule))
            .collect();
        step(
            "routes",
            format!("requests to {} meet, in this order: {}", frontend.http.name, names.join("; ")),
        );
        if frontend.protocol != AppProtocol::Undeclared && frontend.tcp.endpoints.is_empty() {
            let name = cluster_name(&frontend.tcp.key);
            step("clusters", format!("no endpoint of {name} is ready: what is led to it is answered 503"));
        }
    }
    if matches!(frontend.protocol, AppProtocol::Tcp | AppProtocol::Undeclared) {
        let cluster: &Cluster = &frontend.tcp;
        explanation.endpoints = of_cluster(cluster).collect();
        let ready = explanation.endpoints.iter().filter(|endpoint| endpoint.ready).count();
        let name = cluster_name(&cluster.key);
        step("clusters", format!("bytes go to {name}, to one of {ready} ready endpoints"));
        explanation.cluster = Some(name);
    }
}

/// The rules of the one layer that concerns the caller, the default where none does.
fn rules(frontend: &Frontend, origin: &RequestOrigin<'_>) -> Vec<RuleDump> {
    let host = &frontend.http;
    match host.layers.iter().find(|layer| layer.concerns(origin)) {
        Some(layer) => layer.rules().iter().map(|(matches, route)| rule(matches, route)).collect(),
        None => host.default.iter().map(|route| rule(&[], route)).collect(),
    }
}
