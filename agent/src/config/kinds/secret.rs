//! Core Secret: of type `kubernetes.io/tls`, a certificate with its key; of any, CA certificates. No message quotes what one
//! holds.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::super::field::Field;
use super::super::node::{DecodeError, Decoded, Extra, Known, decode as decode_node};
use super::super::object::Notes;
use super::Source;
use crate::identity::edge::{self, Part};
use crate::identity::edge_clients;
use crate::model::{ObjectName, PrivateKey, ServerCertificate};

const EXTRAS: &[&[Extra]] = &[&[Extra {
    of: "SecretDocument",
    fields: &[Known::Ignored(&["apiVersion", "kind", "metadata", "immutable"])],
}]];
/// The type of Secrets that hold a certificate.
const TLS_TYPE: &str = "kubernetes.io/tls";
/// The key of a certificate with those that issued it.
const CHAIN: &str = "tls.crt";
/// The keys of CA certificates, the first one before the second.
const ROOTS: [&str; 2] = ["ca.crt", "cacert"];
const BASE64: GeneralPurpose = GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new());

/// A checked Secret.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Secret {
    /// Its certificate; `None`: it is of another type.
    pub certificate: Option<Arc<ServerCertificate>>,
    /// Its CA certificates, in PEM (`ca.crt`, or `cacert` as Istio has it); `None`: it has none that can be used.
    pub roots: Option<Arc<str>>,
    /// Where the certificate stands: its field, and the line.
    pub chain_at: (Field, u32),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct SecretDocument {
    #[serde(rename = "type")]
    secret_type: Option<String>,
    #[serde(default)]
    data: BTreeMap<String, Text>,
    #[serde(default)]
    string_data: BTreeMap<String, Text>,
}

/// A text that is wiped.
#[derive(Deserialize)]
#[serde(from = "String")]
struct Text(Zeroizing<String>);

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

/// Decodes a Secret.
pub(super) fn decode(source: &Source<'_>, notes: &mut Notes<'_>) -> Result<Secret, DecodeError> {
    let Decoded { value: document, .. } = decode_node::<SecretDocument>(source.node, EXTRAS)?;
    if document.secret_type.as_deref() != Some(TLS_TYPE) {
        let chain_at = (Field::root(), source.node.line);
        return Ok(Secret { certificate: None, roots: roots(&document), chain_at });
    }
    let written = if document.string_data.contains_key(CHAIN) { "stringData" } else { "data" };
    let chain = Field::root().key(written).key(CHAIN);
    let chain_at = (chain.clone(), source.node.line_at(&chain));
    let certificate = certificate(&document, source.name, notes).map(Arc::new);
    Ok(Secret { certificate, roots: roots(&document), chain_at })
}

fn certificate(
    document: &SecretDocument,
    name: &ObjectName,
    notes: &mut Notes<'_>,
) -> Option<ServerCertificate> {
    let (chain, key) = (entry(document, CHAIN, notes), entry(document, "tls.key", notes));
    let ((chain, chain_field), (key, key_field)) = (chain?, key?);
    let key = PrivateKey::new(key);
    if let Err((part, problem)) = edge::check(&chain, &key) {
        let (field, name) = match part {
            Part::Certificate => (chain_field, CHAIN),
            Part::Key => (key_field, "tls.key"),
        };
        notes.error(&field, format!("{name}: {problem}"));
        return None;
    }
    Some(ServerCertificate { secret: name.clone(), chain: chain.as_str().into(), key })
}

/// CA certificates. Many Secrets have an entry of this name that is empty, or is none of this kind: what can't be used is as if it
/// were not there, and whoever refers to it is told so.
fn roots(document: &SecretDocument) -> Option<Arc<str>> {
    let text = |key: &str| match (document.string_data.get(key), document.data.get(key)) {
        (Some(Text(text)), _) => Some(text.clone()),
        (None, Some(Text(encoded))) => decoded(encoded),
        (None, None) => None,
    };
    let found = ROOTS.iter().find_map(|key| text(key))?;
    edge_clients::check_roots(&found).ok()?;
    Some(found.as_str().into())
}

/// A text that was packed; `None`: it is no base64, or no text.
fn decoded(packed: &Zeroizing<String>) -> Option<Zeroizing<String>> {
    let packed: Zeroizing<Vec<u8>> =
        Zeroizing::new(packed.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect());
    let mut decoded = Zeroizing::new(vec![0; packed.len()]);
    let length = BASE64.decode_slice(&packed[..], &mut decoded).ok()?;
    std::str::from_utf8(&decoded[..length]).ok().map(|text| Zeroizing::new(text.to_owned()))
}

/// An entry with its field; `stringData` wins, as the API server has it.
fn entry(document: &SecretDocument, key: &str, notes: &mut Notes<'_>) -> Option<(Zeroizing<String>, Field)> {
    if let Some(Text(text)) = document.string_data.get(key) {
        return Some((text.clone(), Field::root().key("stringData").key(key)));
    }
    let field = Field::root().key("data").key(key);
    let Some(Text(encoded)) = document.data.get(key) else {
        notes.error(&field, format!("a Secret of the type {TLS_TYPE} needs {key}"));
        return None;
    };
    let packed: Zeroizing<Vec<u8>> =
        Zeroizing::new(encoded.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect());
    let mut decoded = Zeroizing::new(vec![0; packed.len()]);
    // The decoder's own words would quote a byte.
    let Ok(length) = BASE64.decode_slice(&packed[..], &mut decoded) else {
        notes.error(&field, format!("{key}: no base64"));
        return None;
    };
    let Ok(text) = std::str::from_utf8(&decoded[..length]) else {
        notes.error(&field, format!("{key}: no PEM, which is text"));
        return None;
    };
    Some((Zeroizing::new(text.to_owned()), field))
}
