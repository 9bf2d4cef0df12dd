//! A node's signature over a message, and its one form as bytes.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Untrusted;
use super::certificate::{Serial, readable};

/// The first byte of the one form that there is.
const FORM: u8 = 1;
/// Form and length.
const HEAD_BYTES: usize = 3;
/// Two scalars of P-256: unlike their ASN.1, they have one encoding.
const SCALARS_BYTES: usize = 64;
/// Longest certificate. One with a name of 63 and a trust domain of 63 bytes has fewer than 700.
pub(super) const CERTIFICATE_MAX_BYTES: usize = 1216;
/// What is signed begins with this, then comes the message's SHA-256. The length of 64 bytes is that of what TLS 1.2
/// servers sign of both sides' random numbers, so that no handshake can be led to sign a table (as TLS 1.3 does
/// itself, RFC 8446, section 4.4.3).
const TABLE: &[u8; CONTEXT_BYTES] = b"sluice table v1\0................................................";
/// Likewise, of a seal over documents: neither is ever the other.
const DOCUMENTS: &[u8; CONTEXT_BYTES] = b"sluice documents v1\0............................................";
const CONTEXT_BYTES: usize = 64;

/// A signature with the certificate of whoever signed.
#[derive(Clone, PartialEq, Eq)]
pub struct Signature {
    certificate: Box<[u8]>,
    scalars: [u8; SCALARS_BYTES],
}

impl Signature {
    /// The longest that one is, in bytes.
    pub const MAX_BYTES: usize = HEAD_BYTES + CERTIFICATE_MAX_BYTES + SCALARS_BYTES;

    /// Puts a signature together; `None` where a part has not the size that it should.
    pub(super) fn new(certificate: &[u8], scalars: &[u8]) -> Option<Self> {
        let fits = !certificate.is_empty() && certificate.len() <= CERTIFICATE_MAX_BYTES;
        let scalars = scalars.try_into().ok()?;
        fits.then(|| Self { certificate: certificate.into(), scalars })
    }

    /// The signer's certificate, as it claims to be.
    pub(super) fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// The name of whoever issued the signer's certificate, as that claims; empty where it can't be read.
    pub fn issuer(&self) -> String {
        Serial::read(&self.certificate).map(|serial| readable(&serial.issuer)).unwrap_or_default()
    }

    /// Both scalars, big-endian.
    pub(super) fn scalars(&self) -> &[u8; SCALARS_BYTES] {
        &self.scalars
    }

    /// The form that travels: form, length of the certificate, certificate, scalars. At most [`Self::MAX_BYTES`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let length = u16::try_from(self.certificate.len()).expect("bounded when it was made");
        let mut bytes = Vec::with_capacity(HEAD_BYTES + self.certificate.len() + SCALARS_BYTES);
        bytes.push(FORM);
        bytes.extend(length.to_be_bytes());
        bytes.extend(&self.certificate);
        bytes.extend(self.scalars);
        bytes
    }

    /// Reads what [`Self::to_bytes`] wrote, and nothing else: [`Untrusted::Malformed`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Untrusted> {
        let malformed = Untrusted::Malformed;
        let (&[form, high, low], rest) = bytes.split_first_chunk().ok_or(malformed)?;
        let length = usize::from(u16::from_be_bytes([high, low]));
        if form != FORM {
            return Err(malformed);
        }
        let (certificate, scalars) = rest.split_at_checked(length).ok_or(malformed)?;
        Self::new(certificate, scalars).ok_or(malformed)
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Signature({} bytes of certificate)", self.certificate.len())
    }
}

/// Bytes; text (base64) in formats for people.
impl Serialize for Signature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes = self.to_bytes();
        if serializer.is_human_readable() {
            serializer.serialize_str(&STANDARD.encode(bytes))
        } else {
            serializer.serialize_bytes(&bytes)
        }
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            deserializer.deserialize_str(SignatureVisitor)
        } else {
            deserializer.deserialize_bytes(SignatureVisitor)
        }
    }
}

struct SignatureVisitor;

impl Visitor<'_> for SignatureVisitor {
    type Value = Signature;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a signature")
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Signature, E> {
        Signature::from_bytes(bytes).map_err(E::custom)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Signature, E> {
        let bytes = STANDARD.decode(text).map_err(|_| E::custom(Untrusted::Malformed))?;
        self.visit_bytes(&bytes)
    }
}

/// What is signed of a message: it has one size, and is nothing that is signed for another purpose.
pub(super) fn signed_form(message: &[u8]) -> SignedForm {
    form(TABLE, message)
}

/// Likewise, where an operator seals documents.
pub(super) fn sealed_form(message: &[u8]) -> SignedForm {
    form(DOCUMENTS, message)
}

type SignedForm = [u8; CONTEXT_BYTES + digest::SHA256_OUTPUT_LEN];

fn form(purpose: &[u8; CONTEXT_BYTES], message: &[u8]) -> SignedForm {
    let mut form = [0; CONTEXT_BYTES + digest::SHA256_OUTPUT_LEN];
    let (context, hash) = form.split_at_mut(CONTEXT_BYTES);
    context.copy_from_slice(purpose);
    hash.copy_from_slice(digest::digest(&digest::SHA256, message).as_ref());
    form
}
