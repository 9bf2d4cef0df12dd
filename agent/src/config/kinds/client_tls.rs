//! `tls` of a DestinationRule's traffic policies, as Istio validates it.

use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;

use super::super::field::Field;
use super::super::object::Notes;
use super::name::{host_pattern, is_object_name, is_uri};
use crate::model::{BackendName, HostPattern};

/// A checked `tls`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ClientTlsSpec {
    /// What it asks for.
    pub mode: ClientTlsMode,
    /// Where it stands.
    pub field: Field,
}

/// What a `tls` asks for, as far as it alone says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ClientTlsMode {
    /// `DISABLE`
    Disable,
    /// `ISTIO_MUTUAL`
    IstioMutual,
    /// `SIMPLE` and `MUTUAL`
    Own(OwnTls),
}

/// TLS that is not the mesh's.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct OwnTls {
    /// The server name; empty where none is given.
    pub sni: Arc<str>,
    /// The names of which endpoints have to prove one.
    pub names: Vec<BackendName>,
    /// The Secret with CA certificates, and for `MUTUAL` the certificate that is shown.
    pub credential: Option<Arc<str>>,
    /// Whether a certificate is shown.
    pub mutual: bool,
    /// Whether anybody is believed.
    pub anybody: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct ClientTlsText {
    mode: Option<String>,
    sni: Option<String>,
    subject_alt_names: Vec<String>,
    credential_name: Option<String>,
    ca_certificates: String,
    ca_crl: String,
    client_certificate: String,
    private_key: String,
    insecure_skip_verify: bool,
}

impl ClientTlsText {
    /// What it says beside its mode.
    fn beside(&self) -> Vec<&'static str> {
        let said = [
            ("sni", self.sni.is_some()),
            ("subjectAltNames", !self.subject_alt_names.is_empty()),
            ("credentialName", self.credential_name.is_some()),
            ("insecureSkipVerify", self.insecure_skip_verify),
        ];
        said.into_iter().filter(|(_, is)| *is).map(|(name, _)| name).collect()
    }
}

/// Checks a `tls`; `None`: it is wrong, which is said.
pub(super) fn check(text: &ClientTlsText, field: &Field, notes: &mut Notes<'_>) -> Option<ClientTlsSpec> {
    check_files(text, field, notes);
    let mut alone = |why: &str| {
        for name in text.beside() {
            notes.error(&field.key(name), format!("{why}: this can't be said beside it"));
        }
    };
    let mode = match text.mode.as_deref() {
        // Istio passes over what is said beside it. Whoever writes that means another mode, and would have plaintext.
        None => {
            alone("without a mode no TLS is spoken");
            ClientTlsMode::Disable
        }
        Some("DISABLE") => {
            alone("with DISABLE no TLS is spoken");
            ClientTlsMode::Disable
        }
        Some("ISTIO_MUTUAL") => {
            alone("ISTIO_MUTUAL shows and expects the pods' own identities");
            ClientTlsMode::IstioMutual
        }
        Some("SIMPLE") => ClientTlsMode::Own(own(text, false, field, notes)),
        Some("MUTUAL") => ClientTlsMode::Own(own(text, true, field, notes)),
        Some(other) => {
            let text = format!("`{other}` is none of DISABLE, SIMPLE, MUTUAL, ISTIO_MUTUAL");
            notes.error(&field.key("mode"), text);
            return None;
        }
    };
    Some(ClientTlsSpec { mode, field: field.clone() })
}

/// One agent serves all pods of its node: whoever may write a rule could name any key that it can read.
fn check_files(text: &ClientTlsText, field: &Field, notes: &mut Notes<'_>) {
    for (name, path) in [
        ("caCertificates", &text.ca_certificates),
        ("clientCertificate", &text.client_certificate),
        ("privateKey", &text.private_key),
    ] {
        if !path.is_empty() {
            let text =
                "files of the node are not read for a DestinationRule: name a Secret in credentialName";
            notes.error(&field.key(name), text);
        }
    }
    if !text.ca_crl.is_empty() {
        notes.error(&field.key("caCrl"), "lists of revoked certificates of others are not looked at");
    }
}

fn own(text: &ClientTlsText, mutual: bool, field: &Field, notes: &mut Notes<'_>) -> OwnTls {
    let sni = match text.sni.as_deref() {
        None => "".into(),
        Some(name) => exact_host(name).unwrap_or_else(|| {
            notes.error(&field.key("sni"), format!("`{name}` is no host name"));
            "".into()
        }),
    };
    let list = field.key("subjectAltNames");
    let mut names = Vec::with_capacity(text.subject_alt_names.len());
    for (index, name) in text.subject_alt_names.iter().enumerate() {
        match exact_host(name) {
            _ if is_uri(name) => names.push(BackendName::Uri(name.as_str().into())),
            Some(name) => names.push(BackendName::Dns(name)),
            None => notes.error(&list.index(index), format!("`{name}` is neither a host name nor a URI")),
        }
    }
    if text.insecure_skip_verify && !names.is_empty() {
        notes.error(&list, "insecureSkipVerify looks at no names");
    }
    let credential = text.credential_name.as_deref();
    match (credential, mutual) {
        (None, true) => notes.error(&field.key("credentialName"), "MUTUAL needs a certificate to show"),
        (Some(name), _) if !is_object_name(name) => {
            let text = format!("`{name}` is no name of a Secret of the rule's namespace");
            notes.error(&field.key("credentialName"), text);
        }
        (Some(_), false) if text.insecure_skip_verify => {
            notes.error(&field.key("credentialName"), "insecureSkipVerify looks at no certificates");
        }
        _ => {}
    }
    OwnTls { sni, names, credential: credential.map(Into::into), mutual, anybody: text.insecure_skip_verify }
}

fn exact_host(text: &str) -> Option<Arc<str>> {
    match host_pattern(text) {
        Some(HostPattern::Exact(name)) if name.parse::<IpAddr>().is_err() => Some(name),
        _ => None,
    }
}
