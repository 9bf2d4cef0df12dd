//! `/config_dump` in ztunnel's shape, which `istioctl ztunnel-config` reads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::compile::{Cluster, RoutingTable};
use crate::model::{
    AuthorizationPolicy, NamespacePattern, ObjectName, PolicyAction, PolicyMatch, PolicyRule, PolicyScope,
    TextPattern, Workload,
};

/// A certificate that a workload of this node shows, as it is dumped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateDump {
    /// The SPIFFE id.
    pub identity: String,
    /// `Available`.
    pub state: String,
    /// The certificate, then what stands between it and a root.
    pub cert_chain: Vec<CertDump>,
}

/// One certificate of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertDump {
    /// PEM, in base64.
    pub pem: String,
    /// In decimal digits.
    pub serial_number: String,
    /// As RFC 3339 has it.
    pub valid_from: String,
    /// Likewise.
    pub expiration_time: String,
}

/// The dump.
pub(super) fn config_dump(table: &RoutingTable, certificates: &[CertificateDump]) -> Value {
    let workloads: BTreeMap<&ObjectName, &Arc<Workload>> =
        table.workloads.values().map(|workload| (&workload.name, workload)).collect();
    let policies: BTreeMap<&ObjectName, &Arc<AuthorizationPolicy>> = table
        .policies
        .iter()
        .flat_map(|(_, pod)| pod.policies())
        .map(|policy| (&policy.name, policy))
        .collect();
    json!({
        "workloads": workloads.values().map(|found| workload(table, found)).collect::<Vec<_>>(),
        "services": services(table),
        "policies": policies.values().filter_map(|found| policy(found)).collect::<Vec<_>>(),
        "certificates": certificates,
        "workloadState": {},
    })
}

fn workload(table: &RoutingTable, workload: &Workload) -> Value {
    let policies = workload.addresses.iter().find_map(|address| table.policies.of(*address));
    let policies = policies.into_iter().flat_map(|pod| pod.policies());
    json!({
        "uid": &*workload.uid,
        "workloadIps": workload.addresses,
        "protocol": if workload.is_tunnelled() { "HBONE" } else { "TCP" },
        "name": &*workload.name.name,
        "namespace": &*workload.name.namespace,
        "serviceAccount": &*workload.service_account,
        "workloadName": &*workload.workload,
        "workloadType": workload.workload_type(),
        "canonicalName": workload.canonical_name(),
        "canonicalRevision": workload.canonical_revision(),
        "node": workload.node.as_deref().unwrap_or_default(),
        "status": if workload.ready { "Healthy" } else { "Unhealthy" },
        "authorizationPolicies": policies.map(|policy| policy.name.to_string()).collect::<Vec<_>>(),
    })
}

/// A policy in the form that has only connections, as ztunnel's: `None` where its rules ask of requests, which that form can't
/// say, so that a tool would show another policy than there is.
fn policy(policy: &AuthorizationPolicy) -> Option<Value> {
    if policy.dry_run {
        return None;
    }
    let said = |rule: &PolicyRule| rule.clauses.iter().flatten().all(is_sayable);
    if policy.rules.iter().any(PolicyRule::asks_of_requests) || !policy.rules.iter().all(said) {
        return None;
    }
    let action = match policy.action {
        PolicyAction::Allow => "Allow",
        PolicyAction::Deny => "Deny",
        // ztunnel has none of these.
        PolicyAction::Audit => return None,
    };
    let scope = match policy.scope {
        _ if !policy.selector.is_empty() => "WorkloadSelector",
        PolicyScope::Mesh => "Global",
        PolicyScope::Namespace => "Namespace",
    };
    let rule = |rule: &PolicyRule| -> Vec<Vec<Value>> {
        rule.clauses.iter().map(|clause| clause.iter().map(alternative).collect()).collect()
    };
    Some(json!({
        "name": &*policy.name.name,
        "namespace": &*policy.name.namespace,
        "scope": scope,
        "action": action,
        "rules": policy.rules.iter().map(rule).collect::<Vec<_>>(),
    }))
}

fn alternative(alternative: &PolicyMatch) -> Value {
    let names = |patterns: &[NamespacePattern]| patterns.iter().map(pattern).collect::<Vec<_>>();
    let identities = |patterns: &[TextPattern]| patterns.iter().map(text_pattern).collect::<Vec<_>>();
    json!({
        "namespaces": names(&alternative.namespaces),
        "notNamespaces": names(&alternative.not_namespaces),
        "principals": identities(&alternative.principals),
        "notPrincipals": identities(&alternative.not_principals),
        "sourceIps": alternative.cidrs,
        "notSourceIps": alternative.not_cidrs,
        "destinationPorts": alternative.ports,
        "notDestinationPorts": alternative.not_ports,
    })
}

/// Whether the form has words for all of it.
fn is_sayable(alternative: &PolicyMatch) -> bool {
    alternative.accounts.is_empty()
        && alternative.not_accounts.is_empty()
        && alternative.remote_cidrs.is_empty()
        && alternative.destinations.is_empty()
        && alternative.not_destinations.is_empty()
}

fn text_pattern(pattern: &TextPattern) -> Value {
    match pattern {
        TextPattern::Present => json!({ "Presence": null }),
        TextPattern::Exact(text) => json!({ "Exact": &**text }),
        TextPattern::Prefix(start) => json!({ "Prefix": &**start }),
        TextPattern::Suffix(end) => json!({ "Suffix": &**end }),
    }
}

fn pattern(pattern: &NamespacePattern) -> Value {
    match pattern {
        NamespacePattern::Any => json!({ "Presence": null }),
        NamespacePattern::Exact(name) => json!({ "Exact": &**name }),
        NamespacePattern::Prefix(start) => json!({ "Prefix": &**start }),
        NamespacePattern::Suffix(end) => json!({ "Suffix": &**end }),
    }
}

fn services(table: &RoutingTable) -> Vec<Value> {
    let mut by_name: BTreeMap<&ObjectName, Vec<&Arc<Cluster>>> = BTreeMap::new();
    for cluster in table.clusters.values().filter(|cluster| cluster.key.subset.is_none()) {
        by_name.entry(&cluster.key.service).or_default().push(cluster);
    }
    let mut vips: BTreeMap<&ObjectName, BTreeSet<String>> = BTreeMap::new();
    for (address, frontend) in table.frontends.iter().filter(|(_, frontend)| !frontend.headless) {
        // The part before the slash is the network, of which there is one without a name.
        vips.entry(&frontend.service).or_default().insert(format!("/{}", address.ip()));
    }
    let service = |(name, clusters): (&ObjectName, Vec<&Arc<Cluster>>)| {
        json!({
            "name": &*name.name,
            "namespace": &*name.namespace,
            "hostname": name.fqdn(),
            "vips": vips.get(name).cloned().unwrap_or_default(),
            "ports": ports(&clusters),
            "endpoints": endpoints(name, &clusters),
            "subjectAltNames": [],
        })
    };
    by_name.into_iter().map(service).collect()
}

/// Service port to target port; the port itself where no endpoint says.
fn ports(clusters: &[&Arc<Cluster>]) -> Map<String, Value> {
    let target =
        |cluster: &Cluster| cluster.endpoints.first().map_or(cluster.key.port, |first| first.address.port());
    clusters.iter().map(|cluster| (cluster.key.port.to_string(), json!(target(cluster)))).collect()
}

fn endpoints(service: &ObjectName, clusters: &[&Arc<Cluster>]) -> BTreeMap<String, Value> {
    let mut ports: BTreeMap<&Arc<str>, Map<String, Value>> = BTreeMap::new();
    for cluster in clusters {
        for upstream in &cluster.endpoints {
            let target = json!(upstream.address.port());
            ports.entry(&upstream.uid).or_default().insert(cluster.key.port.to_string(), target);
        }
    }
    let endpoint = |(uid, port): (&Arc<str>, _)| {
        let service = format!("{}/{}", service.namespace, service.fqdn());
        let value = json!({ "workloadUid": &**uid, "service": service, "port": Value::Object(port) });
        (uid.to_string(), value)
    };
    ports.into_iter().map(endpoint).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Cidr, Labels};

    fn made(selector: &[(&str, &str)], alternative: PolicyMatch) -> AuthorizationPolicy {
        AuthorizationPolicy {
            name: ObjectName::new("shop", "p"),
            scope: PolicyScope::Namespace,
            selector: selector
                .iter()
                .map(|(key, value)| ((*key).into(), (*value).into()))
                .collect::<Labels>(),
            action: PolicyAction::Deny,
            dry_run: false,
            rules: vec![PolicyRule { index: 0, clauses: vec![vec![alternative]] }],
        }
    }

    #[test]
    fn policies_are_shown_as_ztunnel_has_them() {
        let address = "10.0.0.9".parse().expect("an address");
        let alternative = PolicyMatch {
            namespaces: vec![NamespacePattern::Prefix("a".into()), NamespacePattern::Exact("b".into())],
            cidrs: vec![Cidr::host(address)],
            ports: vec![80],
            ..PolicyMatch::default()
        };
        let made = made(&[("app", "cart")], alternative);
        let expected = json!({
            "name": "p", "namespace": "shop", "scope": "WorkloadSelector", "action": "Deny",
            "rules": [[[{
                "namespaces": [{ "Prefix": "a" }, { "Exact": "b" }], "notNamespaces": [],
                "sourceIps": ["10.0.0.9/32"], "notSourceIps": [], "principals": [], "notPrincipals": [],
                "destinationPorts": [80], "notDestinationPorts": [],
            }]]],
        });
        assert_eq!(policy(&made), Some(expected));
    }
}
