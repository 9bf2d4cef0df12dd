//! `gateway.networking.k8s.io` BackendTLSPolicy: Services whose backends Gateways speak TLS with.

use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;

use super::super::field::Field;
use super::super::node::{DecodeError, Extra, Known};
use super::super::object::Notes;
use super::gateway_clients::BundleRef;
use super::gateway_tls::RefSpec;
use super::name::host_pattern;
use super::{DOCUMENT, Source, decode_spec};
use crate::model::{HostPattern, ObjectName};

const EXTRAS: &[&[Extra]] = &[
    DOCUMENT,
    &[Extra {
        of: "ValidationSpec",
        fields: &[Known::Later("subjectAltNames", &["hostname", "type", "uri"])],
    }],
];
/// As many bundles as one policy may name (Gateway API).
const MAX_BUNDLES: usize = 8;

/// A checked BackendTLSPolicy.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct BackendTlsPolicy {
    /// The Services, each with the name of one of its ports or as a whole.
    pub targets: Vec<(ObjectName, Option<Arc<str>>)>,
    /// The name that backends are asked for, and have to prove.
    pub hostname: Arc<str>,
    /// Whom to believe; `None`: the CAs that the machine believes.
    pub bundles: Option<Vec<BundleRef>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PolicySpec {
    target_refs: Vec<TargetSpec>,
    validation: ValidationSpec,
    #[serde(default)]
    options: std::collections::BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct TargetSpec {
    group: String,
    kind: String,
    name: String,
    section_name: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ValidationSpec {
    hostname: String,
    #[serde(default)]
    ca_certificate_refs: Vec<RefSpec>,
    #[serde(rename = "wellKnownCACertificates")]
    well_known: Option<String>,
}

/// Decodes a BackendTLSPolicy.
pub(super) fn decode(source: &Source<'_>, notes: &mut Notes<'_>) -> Result<BackendTlsPolicy, DecodeError> {
    let spec: PolicySpec = decode_spec(source, EXTRAS, notes)?;
    let field = Field::spec();
    let namespace = &*source.name.namespace;
    let mut targets = Vec::new();
    for (index, target) in spec.target_refs.iter().enumerate() {
        if !matches!((target.group.as_str(), target.kind.as_str()), ("" | "core", "Service")) {
            notes.error(&field.key("targetRefs").index(index), "only a Service can be a target");
        }
        let section = target.section_name.as_deref().filter(|name| !name.is_empty());
        targets.push((ObjectName::new(namespace, &target.name), section.map(Into::into)));
    }
    if targets.is_empty() {
        notes.error(&field.key("targetRefs"), "a policy needs a target");
    }
    if let Some(name) = spec.options.keys().find(|name| name.starts_with("sluice.dev/")) {
        notes.error(&field.key("options").key(name), "no such option");
    }
    let (hostname, bundles) = validation(&spec.validation, namespace, &field.key("validation"), notes);
    Ok(BackendTlsPolicy { targets, hostname, bundles })
}

fn validation(
    written: &ValidationSpec,
    namespace: &str,
    field: &Field,
    notes: &mut Notes<'_>,
) -> (Arc<str>, Option<Vec<BundleRef>>) {
    let name = match host_pattern(&written.hostname) {
        Some(HostPattern::Exact(name)) if name.parse::<IpAddr>().is_err() => name,
        _ => {
            let text = format!("`{}` is no host name", written.hostname);
            notes.error(&field.key("hostname"), text);
            "".into()
        }
    };
    let list = field.key("caCertificateRefs");
    let mut bundles = Vec::new();
    for (index, one) in written.ca_certificate_refs.iter().enumerate() {
        let (is_config_map, name) = one.read("ConfigMap", namespace);
        if *name.namespace != *namespace {
            notes.error(&list.index(index).key("namespace"), "these are of the policy's own namespace");
        }
        bundles.push(BundleRef { is_config_map, name });
    }
    match (written.well_known.as_deref(), written.ca_certificate_refs.len()) {
        (Some("System"), 0) => return (name, None),
        (Some("System"), _) => notes.error(&list, "either these or wellKnownCACertificates, not both"),
        (Some(other), _) => {
            let text = format!("`{other}` is not known: System");
            notes.error(&field.key("wellKnownCACertificates"), text);
        }
        (None, 0) => notes.error(&list, "caCertificateRefs or wellKnownCACertificates are needed"),
        (None, 1..=MAX_BUNDLES) => {}
        (None, _) => notes.error(&list, format!("more than {MAX_BUNDLES} references")),
    }
    (name, Some(bundles))
}
