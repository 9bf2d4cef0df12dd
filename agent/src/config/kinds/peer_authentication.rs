//! `security.istio.io` PeerAuthentication: which pods take plaintext.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::super::field::Field;
use super::super::node::{DecodeError, Extra};
use super::super::object::Notes;
use super::super::report::Code;
use super::{DOCUMENT, Source, decode_spec, meta};
use crate::model::{Labels, MtlsMode};

const EXTRAS: &[&[Extra]] = &[DOCUMENT];

/// A checked PeerAuthentication.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PeerAuthentication {
    /// Labels of the pods that it is about.
    pub selector: Labels,
    /// What holds for their ports.
    pub mode: Option<MtlsMode>,
    /// What holds for single ports.
    pub ports: BTreeMap<u16, Option<MtlsMode>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct PeerSpec {
    selector: Option<Selector>,
    mtls: Option<Mtls>,
    port_level_mtls: Option<BTreeMap<String, Mtls>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Selector {
    match_labels: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Mtls {
    mode: Option<String>,
}

/// Decodes a PeerAuthentication.
pub(super) fn decode(source: &Source<'_>, notes: &mut Notes<'_>) -> Result<PeerAuthentication, DecodeError> {
    let spec: PeerSpec = decode_spec(source, EXTRAS, notes)?;
    let field = Field::spec();
    let selector = spec.selector.map(|selector| selector.match_labels).unwrap_or_default();
    for (key, value) in &selector {
        if key.contains('*') || value.contains('*') {
            let field = field.key("selector").key("matchLabels").key(key);
            notes.error(&field, "labels are compared as they are: `*` stands for nothing else");
        }
    }
    let mode = mode(spec.mtls.as_ref(), &field.key("mtls"), notes);
    let of_ports = field.key("portLevelMtls");
    if spec.port_level_mtls.is_some() && selector.is_empty() {
        notes.error(
            &of_ports,
            "only a PeerAuthentication with a selector has ports: those of the pods that it selects",
        );
    }
    let mut ports = BTreeMap::new();
    for (port, mtls) in spec.port_level_mtls.unwrap_or_default() {
        let field = of_ports.key(&port);
        let mode = self::mode(Some(&mtls), &field, notes);
        match port.parse::<u16>() {
            Ok(number) if number > 0 => drop(ports.insert(number, mode)),
            _ => notes.error(&field, format!("`{port}` is no port from 1 to 65535")),
        }
    }
    Ok(PeerAuthentication { selector: meta::labels(&selector), mode, ports })
}

/// `None`: unset, as what is not there.
fn mode(written: Option<&Mtls>, field: &Field, notes: &mut Notes<'_>) -> Option<MtlsMode> {
    let field = field.key("mode");
    match written?.mode.as_deref()? {
        "UNSET" => None,
        "STRICT" => Some(MtlsMode::Strict),
        "PERMISSIVE" => Some(MtlsMode::Permissive),
        "DISABLE" => {
            let text = "DISABLE is taken as PERMISSIVE: what comes by tunnel is taken all the same";
            notes.warning(Code::Ignored, &field, text);
            Some(MtlsMode::Disable)
        }
        other => {
            notes.error(&field, format!("`{other}` is none of UNSET, DISABLE, PERMISSIVE, STRICT"));
            None
        }
    }
}
