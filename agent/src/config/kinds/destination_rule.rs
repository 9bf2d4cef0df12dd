//! `networking.istio.io` DestinationRule.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use super::super::field::Field;
use super::super::node::{DecodeError, Extra, Known};
use super::super::object::Notes;
use super::client_tls::{self, ClientTlsSpec, ClientTlsText};
use super::{DOCUMENT, Source, decode_spec, host_pattern, meta, service_of_host};
use crate::model::{HostPattern, LbPolicy, ObjectName, Subset, TlsRules};

const OUTLIER_DETECTION: &[&str] = &[
    "baseEjectionTime",
    "consecutive5xxErrors",
    "consecutiveErrors",
    "consecutiveGatewayErrors",
    "consecutiveLocalOriginFailures",
    "interval",
    "maxEjectionPercent",
    "minHealthPercent",
    "splitExternalLocalOriginErrors",
];

const EXTRAS: &[&[Extra]] = &[
    DOCUMENT,
    &[
        Extra {
            of: "DestinationRuleSpec",
            fields: &[Known::Later("exportTo", &[]), Known::Later("workloadSelector", &["matchLabels"])],
        },
        Extra {
            of: "Policy",
            fields: &[
                Known::Later("connectionPool", &["http", "tcp"]),
                Known::Later("outlierDetection", OUTLIER_DETECTION),
                Known::Later("tunnel", &["protocol", "targetHost", "targetPort"]),
                Known::Later("proxyProtocol", &["version"]),
                Known::Later("retryBudget", &["minRetryConcurrency", "percent"]),
            ],
        },
        Extra {
            of: "LoadBalancer",
            fields: &[
                Known::Later("localityLbSetting", &["distribute", "enabled", "failover", "failoverPriority"]),
                Known::Later("warmup", &["aggression", "duration", "minimumPercent"]),
                Known::Later("warmupDurationSecs", &[]),
            ],
        },
        Extra {
            of: "ConsistentHash",
            fields: &[
                Known::Later("httpCookie", &["attributes", "name", "path", "ttl"]),
                Known::Later("httpHeaderName", &[]),
                Known::Later("httpQueryParameterName", &[]),
                Known::Later("maglev", &["tableSize"]),
                Known::Later("minimumRingSize", &[]),
                Known::Later("ringHash", &["minimumRingSize"]),
            ],
        },
        Extra { of: "PolicyPort", fields: &[] },
    ],
];

/// A checked DestinationRule.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DestinationRule {
    /// The service that the host names, if there is one of this name.
    pub service: Option<ObjectName>,
    /// The host as written.
    pub pattern: HostPattern,
    /// Balancing, where the rule says one.
    pub lb: Option<LbPolicy>,
    /// Balancing by service port.
    pub port_lb: Vec<(u16, LbPolicy)>,
    /// The TLS that clients speak.
    pub tls: TlsRules<ClientTlsSpec>,
    /// Subsets in written order.
    pub subsets: Vec<SubsetPolicy>,
}

/// A subset with its position in `spec.subsets` and the TLS that clients speak with it.
pub(crate) type SubsetPolicy = (usize, Subset, TlsRules<ClientTlsSpec>);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct DestinationRuleSpec {
    host: String,
    traffic_policy: Option<Policy>,
    #[serde(default)]
    subsets: Vec<SubsetSpec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Policy {
    load_balancer: Option<LoadBalancer>,
    tls: Option<ClientTlsText>,
    port_level_settings: Vec<Policy>,
    port: Option<PolicyPort>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct LoadBalancer {
    simple: Option<String>,
    consistent_hash: Option<ConsistentHash>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct ConsistentHash {
    use_source_ip: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyPort {
    number: u16,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct SubsetSpec {
    name: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    traffic_policy: Option<Policy>,
}

/// Decodes a DestinationRule.
pub(super) fn decode(source: &Source<'_>, notes: &mut Notes<'_>) -> Result<DestinationRule, DecodeError> {
    let spec: DestinationRuleSpec = decode_spec(source, EXTRAS, notes)?;
    let field = Field::spec();
    let pattern = host_pattern(&spec.host).unwrap_or_else(|| {
        notes.error(&field.key("host"), format!("`{}` is no host name or wildcard", spec.host));
        HostPattern::Any
    });
    let policy = spec.traffic_policy.unwrap_or_default();
    let policy_field = field.key("trafficPolicy");
    if policy.port.is_some() {
        notes.error(&policy_field.key("port"), "a port stands in portLevelSettings alone");
    }
    let ports_field = policy_field.key("portLevelSettings");
    let ports = ports(&policy, &ports_field, notes);
    Ok(DestinationRule {
        service: service_of_host(&spec.host, &source.name.namespace),
        pattern,
        lb: balancing(&policy, &policy_field, notes),
        port_lb: ports
            .iter()
            .filter_map(|(port, settings, field)| Some((*port, balancing(settings, field, notes)?)))
            .collect(),
        tls: tls(&policy, (&policy_field, &ports), notes),
        subsets: subsets(&spec.subsets, &field.key("subsets"), notes),
    })
}

fn balancing(policy: &Policy, field: &Field, notes: &mut Notes<'_>) -> Option<LbPolicy> {
    let balancer = policy.load_balancer.as_ref()?;
    let field = field.key("loadBalancer");
    if let Some(hash) = &balancer.consistent_hash {
        if balancer.simple.is_some() {
            notes.error(&field, "either simple or consistentHash, not both");
        }
        return hash.use_source_ip.then_some(LbPolicy::SourceIp);
    }
    let simple = balancer.simple.as_deref()?;
    let field = field.key("simple");
    match simple {
        "ROUND_ROBIN" => Some(LbPolicy::RoundRobin),
        "RANDOM" => Some(LbPolicy::Random),
        // LEAST_CONN is what LEAST_REQUEST was called before.
        "LEAST_REQUEST" | "LEAST_CONN" => Some(LbPolicy::LeastRequest),
        "UNSPECIFIED" => None,
        "PASSTHROUGH" => {
            notes.later(&field);
            None
        }
        other => {
            let text = format!("`{other}` is none of ROUND_ROBIN, RANDOM, LEAST_REQUEST, PASSTHROUGH");
            notes.error(&field, text);
            None
        }
    }
}

/// The settings of ports, each with where they stand.
fn ports<'a>(policy: &'a Policy, field: &Field, notes: &mut Notes<'_>) -> Vec<(u16, &'a Policy, Field)> {
    let mut ports: Vec<(u16, &Policy, Field)> = Vec::new();
    for (index, settings) in policy.port_level_settings.iter().enumerate() {
        let field = field.index(index);
        if !settings.port_level_settings.is_empty() {
            notes.error(&field.key("portLevelSettings"), "settings of a port have no ports of their own");
        }
        let Some(port) = settings.port.as_ref().map(|port| port.number).filter(|port| *port > 0) else {
            notes.error(&field.key("port"), "the number of the port is missing");
            continue;
        };
        if ports.iter().any(|(before, ..)| *before == port) {
            notes.error(&field.key("port").key("number"), format!("port {port} is given twice"));
        } else {
            ports.push((port, settings, field));
        }
    }
    ports
}

fn tls(
    policy: &Policy,
    (field, ports): (&Field, &[(u16, &Policy, Field)]),
    notes: &mut Notes<'_>,
) -> TlsRules<ClientTlsSpec> {
    let mut of = |policy: &Policy, field: &Field| {
        policy.tls.as_ref().and_then(|text| client_tls::check(text, &field.key("tls"), notes))
    };
    TlsRules {
        others: of(policy, field),
        ports: ports.iter().map(|(port, settings, field)| (*port, of(settings, field))).collect(),
    }
}

fn subsets(written: &[SubsetSpec], field: &Field, notes: &mut Notes<'_>) -> Vec<SubsetPolicy> {
    let mut subsets: Vec<SubsetPolicy> = Vec::new();
    let none = Policy::default();
    for (index, subset) in written.iter().enumerate() {
        let field = field.index(index);
        if subset.name.is_empty() {
            notes.error(&field.key("name"), "a subset needs a name");
        }
        if subsets.iter().any(|(_, before, _)| *before.name == *subset.name) {
            notes.error(&field.key("name"), format!("the subset {} is given twice", subset.name));
        }
        let field = field.key("trafficPolicy");
        let policy = subset.traffic_policy.as_ref().unwrap_or(&none);
        let ports = ports(policy, &field.key("portLevelSettings"), notes);
        for (_, settings, field) in &ports {
            if settings.load_balancer.is_some() {
                notes.later(&field.key("loadBalancer"));
            }
        }
        let (name, lb) = (Arc::from(subset.name.as_str()), balancing(policy, &field, notes));
        let tls = tls(policy, (&field, &ports), notes);
        let (labels, unlinked) = (meta::labels(&subset.labels), TlsRules::default());
        subsets.push((index, Subset { name, labels, lb, tls: unlinked }, tls));
    }
    subsets
}
