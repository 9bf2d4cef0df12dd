//! PEM: certificates by the field's parser, keys by a small one of our own that leaves no copy of a key behind.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::{self, PemObject};
use zeroize::Zeroizing;

use super::error::Content;

const KEY_BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const KEY_END: &str = "-----END PRIVATE KEY-----";
const CERTIFICATE_BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const CERTIFICATE_END: &str = "-----END CERTIFICATE-----";
/// What an encoder puts on a line (RFC 7468, section 2).
const LINE_BYTES: usize = 64;

/// What is wrong with a text, with its lines as text.
pub(super) fn said(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { end_marker } => {
            format!("a block {} has no end", String::from_utf8_lossy(end_marker).trim_end())
        }
        pem::Error::IllegalSectionStart { line } => {
            format!("a block begins with '{}'", String::from_utf8_lossy(line).trim_end())
        }
        other => other.to_string(),
    }
}

/// All certificates of a text, in their order; text around the blocks is skipped.
pub(super) fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, Content> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(text)
        .collect::<Result<_, _>>()
        .map_err(|error| Content::Pem(said(&error)))?;
    if certificates.is_empty() {
        return Err(Content::NoCertificate);
    }
    Ok(certificates)
}

/// The one certificate of a text.
pub(super) fn certificate(text: &[u8]) -> Result<CertificateDer<'static>, Content> {
    let mut certificates = certificates(text)?;
    match certificates.len() {
        1 => Ok(certificates.remove(0)),
        count => Err(Content::SeveralCertificates { count }),
    }
}

/// The first PKCS #8 key of a text. Every buffer that held a part of it is wiped.
pub(super) fn private_key(text: &[u8]) -> Result<Zeroizing<Vec<u8>>, Content> {
    let text = str::from_utf8(text).map_err(|_| Content::NoKey)?;
    let (_, rest) = text.split_once(KEY_BEGIN).ok_or(Content::NoKey)?;
    let (body, _) = rest.split_once(KEY_END).ok_or_else(|| Content::Pem("the key has no end".to_owned()))?;
    let mut packed = Zeroizing::new(Vec::with_capacity(body.len()));
    packed.extend(body.bytes().filter(|byte| !byte.is_ascii_whitespace()));
    let mut der = Zeroizing::new(vec![0; packed.len()]);
    // The decoder's error would quote a byte of the key.
    let length = STANDARD
        .decode_slice(&packed[..], &mut der)
        .map_err(|_| Content::Pem("the key is not base64".to_owned()))?;
    der.truncate(length);
    Ok(der)
}

/// A certificate as text.
pub(super) fn certificate_text(der: &[u8]) -> String {
    text(der, (CERTIFICATE_BEGIN, CERTIFICATE_END)).to_string()
}

/// A PKCS #8 key as text.
pub(super) fn private_key_text(der: &[u8]) -> Zeroizing<String> {
    text(der, (KEY_BEGIN, KEY_END))
}

fn text(der: &[u8], (begin, end): (&str, &str)) -> Zeroizing<String> {
    let encoded_bytes = der.len().div_ceil(3) * 4;
    let mut encoded = Zeroizing::new(vec![0; encoded_bytes]);
    let length = STANDARD.encode_slice(der, &mut encoded).expect("the buffer has the size of the encoding");
    // Growing would leave a copy in the memory that is given back.
    let capacity = encoded_bytes + encoded_bytes / LINE_BYTES + begin.len() + end.len() + 8;
    let mut text = Zeroizing::new(String::with_capacity(capacity));
    let _ = writeln!(text, "{begin}");
    for line in encoded[..length].chunks(LINE_BYTES) {
        text.push_str(str::from_utf8(line).expect("base64 is ASCII"));
        text.push('\n');
    }
    let _ = writeln!(text, "{end}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_back() {
        for length in [1, 47, 48, 49, 138, 300] {
            let der: Vec<u8> =
                (0..length).map(|index| u8::try_from(index % 251).expect("below 251")).collect();
            let text = private_key_text(&der);
            assert_eq!(*private_key(text.as_bytes()).expect("a key"), der);
            assert!(text.lines().all(|line| line.len() <= LINE_BYTES), "{}", *text);
        }
    }

    #[test]
    fn broken_blocks_are_named_in_words() {
        for (text, expected) in [
            (format!("{CERTIFICATE_BEGIN}\nAAAA\n"), "a block CERTIFICATE has no end"),
            ("-----BEGIN CERT\nAAAA\n".to_owned(), "a block begins with '-----BEGIN CERT'"),
        ] {
            assert_eq!(certificates(text.as_bytes()), Err(Content::Pem(expected.to_owned())), "{text}");
        }
    }

    #[test]
    fn what_is_no_key_says_so() {
        let check = |text: &str, expected: Content| {
            assert_eq!(private_key(text.as_bytes()).err(), Some(expected), "{text}");
        };
        check("", Content::NoKey);
        check("-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n", Content::NoKey);
        check("-----BEGIN PRIVATE KEY-----\nAAAA\n", Content::Pem("the key has no end".to_owned()));
        let broken = format!("{KEY_BEGIN}\nA*A\n{KEY_END}\n");
        check(&broken, Content::Pem("the key is not base64".to_owned()));
    }
}
