//! Names and values of header fields in documents.

use std::sync::Arc;

use super::super::field::Field;
use super::super::object::Notes;
use crate::model::{HeaderChange, HeaderOp};

/// Fields that belong to the connection or the framing of a message: a proxy sets them itself.
const RESERVED: &[&str] = &[
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// A header field's name in lower case; notes an error where it is none (RFC 9110, 5.1).
pub(super) fn name(text: &str, field: &Field, notes: &mut Notes<'_>) -> Option<Arc<str>> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if text.is_empty() || !text.bytes().all(is_token) {
        notes.error(field, format!("`{text}` is no header name"));
        return None;
    }
    Some(text.to_ascii_lowercase().into())
}

/// Whether a field belongs to the connection or the framing; by its name in lower case.
pub(super) fn is_reserved(name: &str) -> bool {
    RESERVED.contains(&name)
}

/// Whether a value may stand in a header field (RFC 9110, 5.5): no control characters but the tab.
pub(super) fn is_value(text: &str) -> bool {
    text.bytes().all(|byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f))
}

/// A change of one field; notes an error where it can't be made.
pub(super) fn change(
    text: &str,
    change: HeaderChange,
    field: &Field,
    notes: &mut Notes<'_>,
) -> Option<HeaderOp> {
    let name = name(text, field, notes)?;
    if is_reserved(&name) {
        notes.error(field, format!("`{name}` belongs to the connection or the framing and can't be changed"));
        return None;
    }
    if let HeaderChange::Set(value) | HeaderChange::Add(value) = &change
        && !is_value(value)
    {
        notes.error(field, format!("the value of `{name}` has control characters"));
        return None;
    }
    Some(HeaderOp { name, change })
}
