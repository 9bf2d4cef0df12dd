//! What the fields of a head say of its body and of the connection (RFC 9112 sections 6 and 9). Strict: whatever two
//! recipients could read differently is refused.

use super::fields::{Fields, Known};
use super::head::Version;
use crate::http::Refusal;

/// The options of the `Connection` fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option that a peer may or may not give")]
pub struct ConnectionOptions {
    /// `close`.
    pub close: bool,
    /// `keep-alive`.
    pub keep_alive: bool,
    /// `upgrade`.
    pub upgrade: bool,
    /// Fields beyond those that are always removed are named, so that each field must be compared with the list.
    pub names_fields: bool,
}

impl ConnectionOptions {
    /// Reads all `Connection` fields.
    pub(super) fn read(fields: &Fields) -> Self {
        let mut options = Self::default();
        for value in fields.all(Known::Connection) {
            // Most hold one option.
            if !options.take(value) {
                let others = list_items(value).filter(|option| !options.take(option)).count();
                options.names_fields |= others > 0;
            }
        }
        options
    }

    /// Whether `option` is one of those that are known.
    fn take(&mut self, option: &[u8]) -> bool {
        let (known, name): (_, &[u8]) = match option.len() {
            5 => (&mut self.close, b"close"),
            10 => (&mut self.keep_alive, b"keep-alive"),
            7 => (&mut self.upgrade, b"upgrade"),
            _ => return false,
        };
        let taken = option.eq_ignore_ascii_case(name);
        *known |= taken;
        taken
    }

    /// Whether the `Connection` fields name a field.
    pub fn names(fields: &Fields, name: &[u8]) -> bool {
        fields.all(Known::Connection).flat_map(list_items).any(|option| option.eq_ignore_ascii_case(name))
    }

    /// Whether the connection outlives the message (RFC 9112 section 9.3).
    pub fn persistent(self, version: Version) -> bool {
        !self.close && (version != Version::Http10 || self.keep_alive)
    }
}

/// The items of a comma-separated list, without the space around them; empty ones are left out.
pub(crate) fn list_items(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|item| !item.is_empty())
}

/// The length that a message declares for its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeclaredLength {
    Nothing,
    Length(u64),
    Chunked,
}

/// Reads `Content-Length` and `Transfer-Encoding` together.
pub(super) fn declared_length(fields: &Fields, version: Version) -> Result<DeclaredLength, Refusal> {
    let coding = fields.has(Known::TransferEncoding);
    let length = fields.has(Known::ContentLength);
    match (coding, length) {
        (false, false) => Ok(DeclaredLength::Nothing),
        (true, true) => Err(Refusal::bad("transfer_encoding_with_content_length")),
        (true, false) if version == Version::Http10 => Err(Refusal::bad("transfer_encoding_in_http10")),
        (true, false) => transfer_encoding(fields).map(|()| DeclaredLength::Chunked),
        (false, true) => content_length(fields).map(DeclaredLength::Length),
    }
}

fn content_length(fields: &Fields) -> Result<u64, Refusal> {
    let mut values = fields.all(Known::ContentLength);
    let value = values.next().unwrap_or_default();
    if values.next().is_some() || value.contains(&b',') {
        return Err(Refusal::bad("content_length_repeated"));
    }
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::bad("content_length_malformed"));
    }
    value
        .iter()
        .try_fold(0_u64, |sum, digit| sum.checked_mul(10)?.checked_add(u64::from(digit - b'0')))
        .filter(|length| i64::try_from(*length).is_ok())
        .ok_or(Refusal::bad("content_length_overflow"))
}

/// Exactly one field with exactly `chunked`. A well-formed list that ends in `chunked` is a coding that we lack (501);
/// everything else is ambiguous.
fn transfer_encoding(fields: &Fields) -> Result<(), Refusal> {
    let mut values = fields.all(Known::TransferEncoding);
    let value = values.next().unwrap_or_default();
    if values.next().is_some() {
        return Err(Refusal::bad("transfer_encoding_repeated"));
    }
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    let mut codings = value.rsplit(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    let ends_chunked = codings.next().is_some_and(|last| last.eq_ignore_ascii_case(b"chunked"));
    let known = |coding: &[u8]| {
        [&b"gzip"[..], b"x-gzip", b"deflate", b"compress", b"x-compress", b"br", b"zstd"]
            .iter()
            .any(|name| coding.eq_ignore_ascii_case(name))
    };
    if ends_chunked && codings.all(known) {
        return Err(Refusal::with(501, "transfer_encoding_unsupported"));
    }
    Err(Refusal::bad("transfer_encoding_not_chunked"))
}
