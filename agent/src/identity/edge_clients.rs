//! Certificates of clients of Gateways: whom a listener believes, and what its upstreams are told of a client.

use std::fmt::Write as _;
use std::io;
use std::sync::Arc;

use ring::digest::{SHA256, digest};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::extensions::GeneralName;
use x509_parser::objects::{oid_registry, oid2abbrev};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

use super::PeerRefusal;
use super::edge::UnusableMaterial;
use super::trust::reason;
use crate::model::{ClientMode, ClientValidation};

/// Reads a bundle of CA certificates.
pub fn check_roots(pem: &str) -> Result<(), UnusableMaterial> {
    add_roots(&mut RootCertStore::empty(), pem)
}

/// Adds the certificates of a bundle.
pub(super) fn add_roots(roots: &mut RootCertStore, pem: &str) -> Result<(), UnusableMaterial> {
    let before = roots.len();
    for (index, certificate) in CertificateDer::pem_slice_iter(pem.as_bytes()).enumerate() {
        let nth = index + 1;
        let certificate = certificate.map_err(|_| UnusableMaterial::Pem { nth })?;
        roots.add(certificate).map_err(|_| UnusableMaterial::Certificate { nth })?;
    }
    if roots.len() == before { Err(UnusableMaterial::NoCertificate) } else { Ok(()) }
}

/// Whose the certificates of a bundle are, by their subjects; those that can't be read are left out.
pub fn subjects(pem: &str) -> Vec<String> {
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(Result::ok);
    certificates
        .filter_map(|der| X509Certificate::from_der(&der).ok().map(|(_, read)| subject(read.subject())))
        .collect()
}

/// What asks clients for certificates and checks them; `None`: there is nobody to believe, and no client can be taken.
pub(super) fn verifier(
    validation: &ClientValidation,
    provider: &Arc<CryptoProvider>,
) -> Option<Arc<dyn ClientCertVerifier>> {
    let mut roots = RootCertStore::empty();
    for pem in &validation.roots {
        add_roots(&mut roots, pem).ok()?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    builder.build().ok()
}

/// The verifier as a handshake asks it.
pub(super) fn asked(mode: ClientMode, strict: &Arc<dyn ClientCertVerifier>) -> Arc<dyn ClientCertVerifier> {
    match mode {
        ClientMode::Required => Arc::clone(strict),
        ClientMode::Optional => Arc::new(Lenient(Arc::clone(strict))),
    }
}

/// Asks for a certificate and takes whatever comes, if only its key is the client's. Whether it is valid is asked afterwards.
#[derive(Debug)]
struct Lenient(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Lenient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// What upstreams and logs are told of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Its subject, as RFC 2253 writes it.
    pub subject: Box<str>,
    /// The element of `x-forwarded-client-cert`, as Envoy writes it: hash, subject, and names of the kinds URI and DNS.
    pub forwarded: Box<str>,
}

impl ClientCertificate {
    /// Of a certificate that was found valid.
    pub fn read(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let subject = subject(parsed.subject());
        let mut forwarded = String::from("Hash=");
        for byte in digest(&SHA256, certificate).as_ref() {
            // Writing to a String cannot fail.
            let _ = write!(forwarded, "{byte:02x}");
        }
        // Unlike names, a subject may hold what separates.
        let escaped = subject.replace('\\', "\\\\").replace('"', "\\\"");
        let _ = write!(forwarded, ";Subject=\"{escaped}\"");
        for (key, name) in names(&parsed) {
            let plain = name.bytes().all(|byte| byte.is_ascii_graphic() && !b",;=\"\\".contains(&byte));
            // A name that could be read as two is left out: what is passed on is what was proven.
            if plain {
                let _ = write!(forwarded, ";{key}={name}");
            }
        }
        Some(Self { subject: subject.into(), forwarded: forwarded.into() })
    }
}

fn names<'a>(certificate: &'a X509Certificate<'_>) -> Vec<(&'static str, &'a str)> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    let of_kind = |uri: bool| {
        extension.value.general_names.iter().filter_map(move |name| match name {
            GeneralName::URI(name) if uri => Some(("URI", *name)),
            GeneralName::DNSName(name) if !uri => Some(("DNS", *name)),
            _ => None,
        })
    };
    of_kind(true).chain(of_kind(false)).collect()
}

/// The last part first, without spaces (RFC 2253 section 2). Bytes that are no visible ASCII are written as `\XX`.
fn subject(name: &X509Name<'_>) -> String {
    let parts: Vec<String> =
        name.iter_rdn().map(|part| part.iter().map(attribute).collect::<Vec<_>>().join("+")).collect();
    parts.into_iter().rev().collect::<Vec<_>>().join(",")
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let oid = attribute.attr_type();
    let key = oid2abbrev(oid, oid_registry()).map_or_else(|_| oid.to_id_string(), str::to_owned);
    let value = attribute.as_str().unwrap_or_default();
    let mut text = key + "=";
    for (index, byte) in value.bytes().enumerate() {
        let at_edge =
            (index == 0 && (byte == b' ' || byte == b'#')) || (index + 1 == value.len() && byte == b' ');
        if at_edge || b",+\"\\<>;".contains(&byte) {
            text.push('\\');
        }
        if byte.is_ascii_graphic() || byte == b' ' {
            text.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(text, "\\{byte:02X}");
        }
    }
    text
}

/// What a failed handshake with a client of a Gateway means.
pub fn refusal(error: &io::Error) -> PeerRefusal {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    let problem = match inner {
        Some(Error::InvalidCertificate(problem)) => problem,
        // The library's word for a client that knows no signature, or no cipher, that goes with a certificate.
        Some(Error::General(_)) => return PeerRefusal::Incompatible,
        _ => return PeerRefusal::of(error),
    };
    match problem {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => PeerRefusal::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            PeerRefusal::NotYetValid
        }
        CertificateError::UnknownIssuer => PeerRefusal::UnknownIssuer,
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            PeerRefusal::WrongUsage
        }
        CertificateError::Revoked => PeerRefusal::Revoked,
        CertificateError::UnhandledCriticalExtension => PeerRefusal::Constrained,
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            PeerRefusal::UnsupportedAlgorithm
        }
        // What the TLS library has no word for it hands through.
        CertificateError::Other(other) => {
            let problem = other.0.downcast_ref::<webpki::Error>();
            problem.map_or(PeerRefusal::Malformed, |problem| reason(problem).into())
        }
        _ => PeerRefusal::of(error),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::string::Ia5String;
    use rcgen::{CertificateParams, DistinguishedName as Names, DnType, KeyPair, SanType};

    use super::*;

    fn made(names: &[(DnType, &str)], uris: &[&str], dns: &[&str]) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name = Names::new();
        for (kind, value) in names {
            params.distinguished_name.push(kind.clone(), *value);
        }
        let text = |text: &&str| Ia5String::try_from((*text).to_owned()).expect("ASCII");
        params.subject_alt_names.extend(dns.iter().map(|name| SanType::DnsName(text(name))));
        params.subject_alt_names.extend(uris.iter().map(|name| SanType::URI(text(name))));
        let key = KeyPair::generate().expect("a key");
        params.self_signed(&key).expect("signs").der().clone()
    }

    #[test]
    fn a_client_is_described_as_envoy_does() {
        let certificate = made(
            &[
                (DnType::CountryName, "DE"),
                (DnType::OrganizationName, "Shop, Inc."),
                (DnType::CommonName, "alice \"a\""),
            ],
            &["spiffe://shop/ns/a/sa/b"],
            &["a.test", "b.test"],
        );
        let told = ClientCertificate::read(&certificate).expect("it is one");
        assert_eq!(&*told.subject, r#"CN=alice \"a\",O=Shop\, Inc.,C=DE"#);
        let (hash, rest) = told.forwarded.split_once(';').expect("several parts");
        assert_eq!(hash.len(), "Hash=".len() + 64);
        assert_eq!(
            rest,
            r#"Subject="CN=alice \\\"a\\\",O=Shop\\, Inc.,C=DE";URI=spiffe://shop/ns/a/sa/b;DNS=a.test;DNS=b.test"#
        );
    }

    #[test]
    fn nothing_in_a_certificate_makes_two_of_one() {
        let certificate =
            made(&[(DnType::CommonName, "é,Hash=1;x")], &["spiffe://a;URI=spiffe://b", "x://a,b"], &[]);
        let told = ClientCertificate::read(&certificate).expect("it is one");
        assert_eq!(&*told.subject, r"CN=\C3\A9\,Hash=1\;x");
        assert!(
            !told.forwarded.contains("spiffe://b") && !told.forwarded.contains("x://"),
            "{}",
            told.forwarded
        );
        assert!(told.forwarded.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '));
    }

    #[test]
    fn bundles_hold_certificates() {
        assert_eq!(check_roots(""), Err(UnusableMaterial::NoCertificate));
        let broken = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
        assert_eq!(check_roots(broken), Err(UnusableMaterial::Certificate { nth: 1 }));
    }
}
