//! `gateway.networking.k8s.io` BackendTLSPolicy: Services whose backends Gateways speak TLS with.

use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;

use super::super::field::Field;
use super::super::node::{DecodeError, Extra};
use super::super::object::Notes;
use super::gateway_clients::BundleRef;
use super::gateway_tls::RefSpec;
use super::name::{host_pattern, is_uri};
use super::{DOCUMENT, Source, decode_spec};
use crate::model::{BackendName, HostPattern, ObjectName};

const EXTRAS: &[&[Extra]] = &[DOCUMENT];
/// As many names as one policy may ask for (Gateway API).
const MAX_NAMES: usize = 5;
/// As many bundles as one policy may name (Gateway API).
const MAX_BUNDLES: usize = 8;

/// A checked BackendTLSPolicy.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct BackendTlsPolicy {
    /// The Services, each with the name of one of its ports or as a whole.
    pub targets: Vec<(ObjectName, Option<Arc<str>>)>,
    /// The name that backends are asked for; they have to prove it where `names` is empty.
    pub hostname: Arc<str>,
    /// The names of which they have to prove one.
    pub names: Vec<BackendName>,
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
    #[serde(default)]
    subject_alt_names: Vec<NameSpec>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NameSpec {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    uri: String,
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
    let field = field.key("validation");
    let (hostname, bundles) = validation(&spec.validation, namespace, &field, notes);
    let names = names(&spec.validation.subject_alt_names, &field.key("subjectAltNames"), notes);
    Ok(BackendTlsPolicy { targets, hostname, names, bundles })
}

/// The names of which one has to be proven.
fn names(written: &[NameSpec], field: &Field, notes: &mut Notes<'_>) -> Vec<BackendName> {
    if written.len() > MAX_NAMES {
        notes.error(field, format!("more than {MAX_NAMES} names"));
    }
    let mut names = Vec::with_capacity(written.len());
    for (index, one) in written.iter().enumerate() {
        let field = field.index(index);
        match (one.kind.as_str(), one.hostname.as_str(), one.uri.as_str()) {
            ("Hostname", text, "") => match exact_host(text) {
                Some(name) => names.push(BackendName::Dns(name)),
                None => notes.error(&field.key("hostname"), format!("`{text}` is no host name")),
            },
            ("URI", "", uri) if is_uri(uri) => names.push(BackendName::Uri(uri.into())),
            ("URI", "", uri) => notes.error(&field.key("uri"), format!("`{uri}` is no URI")),
            ("Hostname" | "URI", ..) => notes.error(&field, "either hostname or uri, as the type says"),
            (other, ..) => {
                notes.error(&field.key("type"), format!("`{other}` is none of Hostname, URI"));
            }
        }
    }
    names
}

fn exact_host(text: &str) -> Option<Arc<str>> {
    match host_pattern(text) {
        Some(HostPattern::Exact(name)) if name.parse::<IpAddr>().is_err() => Some(name),
        _ => None,
    }
}

fn validation(
    written: &ValidationSpec,
    namespace: &str,
    field: &Field,
    notes: &mut Notes<'_>,
) -> (Arc<str>, Option<Vec<BundleRef>>) {
    let name = exact_host(&written.hostname).unwrap_or_else(|| {
        notes.error(&field.key("hostname"), format!("`{}` is no host name", written.hostname));
        "".into()
    });
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
