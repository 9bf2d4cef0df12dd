//! `tls` of a Gateway's listener.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::super::field::Field;
use super::super::object::Notes;
use super::super::report::Code;
use super::gateway_clients::{GatewayClients, ValidationSpec};
use crate::model::{ObjectName, TlsVersion};

/// The option that says which version of TLS is the oldest.
const MIN_VERSION: &str = "sluice.dev/min-tls-version";
/// As many certificates as one listener may name (Gateway API).
const MAX_CERTIFICATES: usize = 64;

/// How a listener ends TLS, as far as the Gateway alone says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GatewayTls {
    /// What it shows, in written order.
    pub certificates: Vec<CertificateRef>,
    /// The oldest version.
    pub min_version: TlsVersion,
    /// Whether it asks its clients for certificates.
    pub clients: Option<GatewayClients>,
}

/// A reference to a certificate.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CertificateRef {
    /// Whether it is to a Secret, the one kind that is taken.
    pub is_secret: bool,
    /// The object.
    pub name: ObjectName,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct TlsSpec {
    #[serde(default)]
    mode: Mode,
    #[serde(default)]
    certificate_refs: Vec<RefSpec>,
    #[serde(default)]
    options: BTreeMap<String, String>,
    frontend_validation: Option<ValidationSpec>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Mode {
    #[default]
    Terminate,
    Passthrough,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RefSpec {
    group: Option<String>,
    kind: Option<String>,
    name: String,
    namespace: Option<String>,
}

/// Decodes `tls` of a listener that ends it, of a Gateway in `namespace`, which has its Gateway's word on clients where it has none of
/// its own; `None`: it is not served.
pub(super) fn decode(
    written: Option<&TlsSpec>,
    of_gateway: Option<(&ValidationSpec, Field)>,
    namespace: &str,
    field: &Field,
    notes: &mut Notes<'_>,
) -> Option<GatewayTls> {
    let field = field.key("tls");
    let Some(written) = written else {
        notes.error(&field, "a listener of the protocol HTTPS or TLS needs tls");
        return None;
    };
    if written.mode == Mode::Passthrough {
        notes.error(&field.key("mode"), "HTTPS ends TLS: Passthrough is for listeners of the protocol TLS");
        return None;
    }
    let list = field.key("certificateRefs");
    if written.certificate_refs.is_empty() {
        notes.error(&list, "a listener that ends TLS needs a certificate");
    }
    if written.certificate_refs.len() > MAX_CERTIFICATES {
        notes.error(&list, format!("more than {MAX_CERTIFICATES} certificates"));
    }
    let certificate = |one: &RefSpec| {
        let (is_secret, name) = one.read("Secret", namespace);
        CertificateRef { is_secret, name }
    };
    let certificates = written.certificate_refs.iter().map(certificate).collect();
    let own = written.frontend_validation.as_ref();
    let own = own.map(|validation| (validation, field.key("frontendValidation")));
    let clients = own.or(of_gateway).map(|(validation, field)| validation.read(namespace, &field, notes));
    Some(GatewayTls { certificates, min_version: min_version(&written.options, &field, notes), clients })
}

/// Whether a listener of the protocol TLS passes it on as it is, and does not end it; it needs nothing else then.
pub(super) fn passes_on(written: Option<&TlsSpec>, field: &Field, notes: &mut Notes<'_>) -> bool {
    let Some(written) = written.filter(|written| written.mode == Mode::Passthrough) else { return false };
    let field = field.key("tls");
    if !written.certificate_refs.is_empty() {
        notes.warning(
            Code::Ignored,
            &field.key("certificateRefs"),
            "TLS that is passed on shows none of them",
        );
    }
    if written.frontend_validation.is_some() {
        let text = "clients of TLS that is passed on are for the backend to check";
        notes.error(&field.key("frontendValidation"), text);
    }
    true
}

impl RefSpec {
    /// Whether it is to a core object of the one kind that is taken, and its name, where it stands in `namespace`.
    pub fn read(&self, taken: &str, namespace: &str) -> (bool, ObjectName) {
        let is_core = self.group.as_deref().is_none_or(|group| matches!(group, "" | "core"));
        let is_taken = is_core && self.kind.as_deref().is_none_or(|kind| kind == taken);
        let namespace = self.namespace.as_deref().filter(|name| !name.is_empty()).unwrap_or(namespace);
        (is_taken, ObjectName::new(namespace, &self.name))
    }
}

/// Options are each implementation's own: those of others are passed over.
fn min_version(options: &BTreeMap<String, String>, field: &Field, notes: &mut Notes<'_>) -> TlsVersion {
    let field = field.key("options");
    let mut version = TlsVersion::default();
    for (name, value) in options {
        let field = field.key(name);
        match (name.as_str(), value.as_str()) {
            (MIN_VERSION, "1.2") => version = TlsVersion::Tls12,
            (MIN_VERSION, "1.3") => version = TlsVersion::Tls13,
            (MIN_VERSION, other) => notes.error(&field, format!("`{other}` is none of 1.2, 1.3")),
            (other, _) if other.starts_with("sluice.dev/") => {
                notes.error(&field, format!("no such option; there is {MIN_VERSION}"));
            }
            _ => notes.info(Code::Ignored, &field, "an option of another implementation"),
        }
    }
    version
}
