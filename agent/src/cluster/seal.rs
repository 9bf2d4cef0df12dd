//! A published table as bytes: what it is, the records, and a signature over both.
//!
//! ```text
//! "SLT1" │ length of the header, u32 LE │ header, JSON │ length of the body, u32 LE │ body │ signature to the end
//! ```
//!
//! Deltas follow each other by digests: each names the digest before it, and its own is taken over all of it. So whoever holds
//! one digest holds the same table as everybody else who does, and a snapshot says where in the chain it stands.

use std::fmt;
use std::sync::Arc;

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use crate::compile::TableVersion;

const MAGIC: &[u8; 4] = b"SLT1";
/// A header is short: names and numbers.
const HEADER_MAX: usize = 4096;
/// A signature with the signer's certificates.
const SIGNATURE_MAX: usize = 16 << 10;
/// The largest body, compressed.
pub const BODY_MAX: usize = 64 << 20;

/// A point in the chain of tables of one term.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(super) fn of(parts: &[&[u8]]) -> Self {
        let mut context = Context::new(&SHA256);
        for part in parts {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part);
        }
        let mut bytes = [0; 32];
        bytes.copy_from_slice(context.finish().as_ref());
        Self(bytes)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let mut bytes = [0; 32];
        let digits = text.as_bytes().chunks_exact(2);
        if text.len() != 64 || !text.is_ascii() {
            return Err("no digest of 64 hexadecimal digits");
        }
        for (byte, pair) in bytes.iter_mut().zip(digits) {
            let pair = std::str::from_utf8(pair).map_err(|_| "no text")?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| "no hexadecimal digits")?;
        }
        Ok(Self(bytes))
    }
}

/// Where in the chain the records are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    /// Which table they are.
    pub version: TableVersion,
    /// Its digest.
    pub chain: Digest,
    /// The revision of the documents that it is made of.
    pub revision: u64,
    /// Tables of documents up to this revision may lose most of what they have on the way to this one; 0: none may.
    pub shrinks_from: u64,
}

/// Whether the records are all or those that changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// All of them; `chain` is where this stands.
    Snapshot {
        /// The digest that deltas after this follow.
        chain: Digest,
    },
    /// Those that changed since `previous`.
    Delta {
        /// The digest that this follows.
        previous: Digest,
    },
}

/// What a published table says of itself. Fields that this version does not know are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The form of the records; see `compile::wire`.
    pub schema: u32,
    /// The cluster's name: a table of another one is none.
    pub cluster: Arc<str>,
    /// The leader's node.
    pub leader: Arc<str>,
    /// Which table it is.
    #[serde(flatten)]
    pub version: Version,
    /// All records or some.
    pub form: Form,
    /// Somebody said that most of the table may go.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_shrink: bool,
    /// Who had a table of documents up to this revision may lose most of it, as that was said, or had come so, on the way from
    /// there to here; 0: nothing was.
    #[serde(default, skip_serializing_if = "is_none")]
    pub shrinks_from: u64,
    /// The revision of the documents that it is made of.
    pub revision: u64,
    /// The generation of their seal; 0: they have none.
    #[serde(default, skip_serializing_if = "is_none")]
    pub generation: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_none(number: &u64) -> bool {
    *number == 0
}

/// [`TableVersion`] as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    epoch: u64,
    nonce: u64,
    #[serde(rename = "version")]
    number: u64,
}

impl From<TableVersion> for Version {
    fn from(at: TableVersion) -> Self {
        Self { epoch: at.token.epoch, nonce: at.token.nonce, number: at.version }
    }
}

impl From<Version> for TableVersion {
    fn from(at: Version) -> Self {
        Self { token: crate::compile::Token { epoch: at.epoch, nonce: at.nonce }, version: at.number }
    }
}

/// What is wrong with bytes that should be a table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// They are something else, or end early.
    #[error("these bytes are no table")]
    Foreign,
    /// A part is larger than any of ours.
    #[error("its {0} is too large")]
    TooLarge(&'static str),
    /// The header can't be read.
    #[error("its header can't be read: {0}")]
    Header(String),
}

/// A table as it lies in the store, taken apart and not yet believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed<'a> {
    /// What it says of itself.
    pub header: Header,
    /// The records, compressed.
    pub body: &'a [u8],
    /// What the signature is over.
    pub signed: &'a [u8],
    /// Empty: there is none.
    pub signature: &'a [u8],
}

impl<'a> Sealed<'a> {
    /// Takes bytes apart.
    pub fn open(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(Malformed::Foreign)?;
        let (header, rest) = take(rest, HEADER_MAX, "header")?;
        let (body, signature) = take(rest, BODY_MAX, "body")?;
        if signature.len() > SIGNATURE_MAX {
            return Err(Malformed::TooLarge("signature"));
        }
        let signed = &bytes[..bytes.len() - signature.len()];
        let header = serde_json::from_slice(header).map_err(|error| Malformed::Header(error.to_string()))?;
        Ok(Self { header, body, signed, signature })
    }

    /// Where the records stand once this is applied.
    pub fn position(&self) -> Position {
        let Header { revision, shrinks_from, .. } = self.header;
        Position { version: self.header.version.into(), chain: self.digest(), revision, shrinks_from }
    }

    /// Where in the chain the table stands once this is applied.
    pub fn digest(&self) -> Digest {
        match self.header.form {
            Form::Snapshot { chain } => chain,
            Form::Delta { .. } => Digest::of(&[b"delta", self.signed]),
        }
    }
}

/// The digest at which a term's chain begins: that of its first snapshot.
pub fn first_digest(version: TableVersion, body: &[u8]) -> Digest {
    Digest::of(&[b"first", version.to_string().as_bytes(), body])
}

/// Puts a table together. `sign` gives a signature over what it is shown, or nothing where tables are not signed.
pub fn seal(header: &Header, body: &[u8], sign: impl FnOnce(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let header = serde_json::to_vec(header).expect("names and numbers are JSON");
    let mut bytes = Vec::with_capacity(MAGIC.len() + header.len() + body.len() + 2048);
    bytes.extend_from_slice(MAGIC);
    for part in [&header[..], body] {
        let length = u32::try_from(part.len()).expect("a table is smaller than 4 GiB");
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(part);
    }
    let signature = sign(&bytes);
    bytes.extend_from_slice(&signature);
    bytes
}

fn take<'a>(bytes: &'a [u8], most: usize, what: &'static str) -> Result<(&'a [u8], &'a [u8]), Malformed> {
    let (length, rest) = bytes.split_first_chunk().ok_or(Malformed::Foreign)?;
    let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| Malformed::TooLarge(what))?;
    if length > most {
        return Err(Malformed::TooLarge(what));
    }
    rest.split_at_checked(length).ok_or(Malformed::Foreign)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::Token;

    fn header(form: Form) -> Header {
        Header {
            schema: 1,
            cluster: "c".into(),
            leader: "node1".into(),
            version: TableVersion { token: Token { epoch: 3, nonce: u64::MAX }, version: 9 }.into(),
            form,
            allow_shrink: false,
            shrinks_from: 0,
            revision: 4,
            generation: 0,
        }
    }

    #[test]
    fn what_is_sealed_is_read_as_it_was() {
        let chain = first_digest(TableVersion::alone(1), b"body");
        for form in [Form::Snapshot { chain }, Form::Delta { previous: chain }] {
            let header = header(form);
            let bytes = seal(&header, b"body", |signed| [&b"sig"[..], &signed.len().to_le_bytes()].concat());
            let sealed = Sealed::open(&bytes).expect("is sealed");
            assert_eq!((&sealed.header, sealed.body), (&header, &b"body"[..]));
            assert_eq!(&sealed.signature[..3], b"sig");
            assert_eq!(sealed.digest() == chain, matches!(form, Form::Snapshot { .. }));
        }
    }

    #[test]
    fn what_is_no_table_is_told() {
        let chain = first_digest(TableVersion::alone(1), b"body");
        let good = seal(&header(Form::Snapshot { chain }), b"body", |_| Vec::new());
        for length in 0..good.len() {
            assert!(Sealed::open(&good[..length]).is_err(), "cut at {length}");
        }
        let large = [&good[..4], &u32::MAX.to_le_bytes()].concat();
        assert_eq!(Sealed::open(&large), Err(Malformed::TooLarge("header")));
        assert!(matches!(Sealed::open(b"SLT1\x02\0\0\0{}\0\0\0\0"), Err(Malformed::Header(_))));
        let signed = [&good[..], &vec![0; SIGNATURE_MAX + 1]].concat();
        assert_eq!(Sealed::open(&signed), Err(Malformed::TooLarge("signature")));
        assert!(Digest::try_from("é".repeat(32)).is_err() && Digest::try_from("0g".repeat(32)).is_err());
    }

    #[test]
    fn a_delta_that_differs_in_anything_leads_elsewhere() {
        let previous = first_digest(TableVersion::alone(1), b"body");
        let one = seal(&header(Form::Delta { previous }), b"a", |_| Vec::new());
        let other = seal(&header(Form::Delta { previous }), b"b", |_| Vec::new());
        let later = seal(&Header { revision: 5, ..header(Form::Delta { previous }) }, b"a", |_| Vec::new());
        let digest = |bytes: &[u8]| Sealed::open(bytes).expect("is sealed").digest();
        assert!(digest(&one) != digest(&other) && digest(&one) != digest(&later));
    }
}
