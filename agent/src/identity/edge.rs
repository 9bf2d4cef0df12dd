//! Certificates of Gateways: read as their Secrets hold them, and shown to clients by the server name that they ask for.

use std::sync::Arc;

use rustls::crypto::ring::{Ticketer, default_provider, sign::any_supported_type};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, SupportedProtocolVersion};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;
use webpki::EndEntityCert;
use zeroize::Zeroizing;

use super::alert::Ending;
use super::certificate::Validity;
use super::edge_clients;
use crate::compile::MadeTls;
use crate::model::{ClientMode, ListenerTls, PrivateKey, ServerCertificate, TlsVersion};

/// What is spoken within TLS, the preferred one first.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// The versions that a client may choose from.
const SINCE_12: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];
const SINCE_13: &[&SupportedProtocolVersion] = &[&TLS13];

/// Why a certificate and a key can't be used. No message holds anything of either.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages say what each variant is")]
pub enum UnusableMaterial {
    #[error("holds no certificate in PEM")]
    NoCertificate,
    #[error("certificate {nth} of the chain is no PEM that can be read")]
    Pem { nth: usize },
    #[error("certificate {nth} of the chain is malformed, or of a form that is not taken")]
    Certificate { nth: usize },
    #[error("holds no private key in PEM")]
    NoKey,
    #[error(
        "the key is malformed, or of a kind that is not taken: RSA of 2048 to 4096 bits, ECDSA on P-256 or P-384, Ed25519"
    )]
    Key,
    #[error("the key is not that of the certificate in `tls.crt`")]
    Mismatch,
}

/// A part of a Secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// `tls.crt`
    Certificate,
    /// `tls.key`
    Key,
}

/// Reads a chain and its key, and asks whether they fit.
pub fn check(chain: &str, key: &PrivateKey) -> Result<(), (Part, UnusableMaterial)> {
    read(chain, key).map(drop)
}

/// The chain in the TLS library's form.
pub(super) fn read(chain: &str, key: &PrivateKey) -> Result<CertifiedKey, (Part, UnusableMaterial)> {
    let of_chain = |problem| (Part::Certificate, problem);
    let mut certificates = Vec::new();
    for (index, certificate) in CertificateDer::pem_slice_iter(chain.as_bytes()).enumerate() {
        let certificate = certificate.map_err(|_| of_chain(UnusableMaterial::Pem { nth: index + 1 }))?;
        EndEntityCert::try_from(&certificate)
            .map_err(|_| of_chain(UnusableMaterial::Certificate { nth: index + 1 }))?;
        certificates.push(certificate);
    }
    if certificates.is_empty() {
        return Err(of_chain(UnusableMaterial::NoCertificate));
    }
    let of_key = |problem| (Part::Key, problem);
    // The first key of the text; what else it holds (the parameters of a curve) is skipped.
    let key = PrivateKeyDer::from_pem_slice(key.pem().as_bytes());
    let key = Zeroizing::new(key.map_err(|_| of_key(UnusableMaterial::NoKey))?);
    let signing = any_supported_type(&key).map_err(|_| of_key(UnusableMaterial::Key))?;
    let certified = CertifiedKey::new(certificates, signing);
    certified.keys_match().map_err(|_| of_key(UnusableMaterial::Mismatch))?;
    Ok(certified)
}

/// How a listener answers TLS; `None` where it has nothing to show, or nobody to believe. Sessions are resumed by tickets alone,
/// whose keys are made here: no other listener, and no other certificate, takes them. Where clients show certificates
/// nothing is resumed: each is checked as a whole.
/// What is within is not told where that is no HTTP.
pub fn server_config(terms: &ListenerTls, is_opaque: bool) -> Option<MadeTls> {
    let shown: Vec<Shown> = terms.certificates.iter().filter_map(|one| Shown::new(one)).collect();
    if shown.is_empty() {
        return None;
    }
    let versions = match terms.min_version {
        TlsVersion::Tls12 => SINCE_12,
        TlsVersion::Tls13 => SINCE_13,
    };
    let provider = Arc::new(default_provider());
    let mut clients = None;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_protocol_versions(versions).ok()?;
    let builder = match &terms.clients {
        None => builder.with_no_client_auth(),
        Some(validation) => {
            let strict = clients.insert(edge_clients::verifier(validation, &provider)?);
            builder.with_client_cert_verifier(edge_clients::asked(validation.mode, strict))
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(ByName(shown)));
    if !is_opaque {
        config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
    }
    config.session_storage = Arc::new(NoServerSessionStorage {});
    match Ticketer::new() {
        Ok(ticketer) if clients.is_none() => config.ticketer = ticketer,
        // Without chance there are no tickets either, and each handshake is a full one.
        _ => config.send_tls13_tickets = 0,
    }
    let only_valid = terms.clients.as_ref().is_some_and(|clients| clients.mode == ClientMode::Required);
    Some(MadeTls { server: Arc::new(config), clients, only_valid })
}

/// When a certificate of a Secret ends.
pub fn ending(certificate: &ServerCertificate) -> Option<Ending> {
    let leaf = CertificateDer::from_pem_slice(certificate.chain.as_bytes()).ok()?;
    let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).ok()?;
    Some(Ending::new(format!("the certificate of Secret {}", certificate.secret), Validity::of(&leaf)))
}

/// A certificate with the names that it is for.
#[derive(Debug)]
struct Shown {
    names: Vec<Box<str>>,
    key: Arc<CertifiedKey>,
}

impl Shown {
    fn new(certificate: &ServerCertificate) -> Option<Self> {
        let key = read(&certificate.chain, &certificate.key).ok()?;
        let leaf = EndEntityCert::try_from(key.end_entity_cert().ok()?).ok()?;
        let names = leaf.valid_dns_names().map(|name| name.to_ascii_lowercase().into()).collect();
        Some(Self { names, key: Arc::new(key) })
    }

    fn is_for(&self, host: &str) -> bool {
        self.names.iter().any(|name| covers(name, host))
    }
}

/// Whether a name of a certificate is for a host; a wildcard stands for one label (RFC 6125 section 6.4.3).
fn covers(name: &str, host: &str) -> bool {
    match name.strip_prefix("*.") {
        Some(domain) => host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == domain),
        None => name == host,
    }
}

/// Chooses among certificates: one for the name that the client asks for, whose signatures it knows; else the first whose
/// signatures it knows, as the client may be content with it.
#[derive(Debug)]
struct ByName(Vec<Shown>);

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let host = hello.server_name().map(str::to_ascii_lowercase).unwrap_or_default();
        let known = |shown: &&Shown| shown.key.key.choose_scheme(hello.signature_schemes()).is_some();
        let named = self.0.iter().filter(|shown| shown.is_for(&host)).find(known);
        named.or_else(|| self.0.iter().find(known)).map(|shown| Arc::clone(&shown.key))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};

    use super::*;

    fn made(names: &[&str]) -> (String, PrivateKey) {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let certificate = CertificateParams::new(names).expect("names").self_signed(&key).expect("signs");
        (certificate.pem(), PrivateKey::new(Zeroizing::new(key.serialize_pem())))
    }

    #[test]
    fn names_of_certificates_cover_hosts() {
        for (name, host, expected) in [
            ("a.example", "a.example", true),
            ("a.example", "b.example", false),
            ("*.example", "a.example", true),
            ("*.example", "a.b.example", false),
            ("*.example", "example", false),
            ("*.example", ".example", false),
            ("*.b.example", "a.b.example", true),
            ("a.example", "", false),
        ] {
            assert_eq!(covers(name, host), expected, "{name} {host}");
        }
    }

    #[test]
    fn bad_material_is_named_with_its_part() {
        let (chain, key) = made(&["a.example"]);
        let (_, other) = made(&["a.example"]);
        let text = |pem: &str| PrivateKey::new(Zeroizing::new(pem.to_owned()));
        let ed25519 = KeyPair::generate_for(&PKCS_ED25519).expect("a key").serialize_pem();
        let cut = chain.replacen("MII", "M!I", 1);
        let broken = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
        let cases = [
            ("", key.clone(), Part::Certificate, UnusableMaterial::NoCertificate),
            ("no pem", key.clone(), Part::Certificate, UnusableMaterial::NoCertificate),
            (&cut, key.clone(), Part::Certificate, UnusableMaterial::Pem { nth: 1 }),
            (broken, key.clone(), Part::Certificate, UnusableMaterial::Certificate { nth: 1 }),
            (
                &format!("{chain}{broken}"),
                key.clone(),
                Part::Certificate,
                UnusableMaterial::Certificate { nth: 2 },
            ),
            (&chain, text(""), Part::Key, UnusableMaterial::NoKey),
            (&chain, text(&chain), Part::Key, UnusableMaterial::NoKey),
            (
                &chain,
                text("-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n"),
                Part::Key,
                UnusableMaterial::Key,
            ),
            (&chain, other, Part::Key, UnusableMaterial::Mismatch),
            (&chain, text(&ed25519), Part::Key, UnusableMaterial::Mismatch),
        ];
        for (chain, key, part, problem) in cases {
            assert_eq!(check(chain, &key), Err((part, problem)));
        }
        assert_eq!(check(&chain, &key), Ok(()));
        // As `openssl ecparam -genkey` writes it: parameters first.
        let with_parameters = format!(
            "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n{}",
            key.pem()
        );
        assert_eq!(check(&chain, &text(&with_parameters)), Ok(()));
    }

    #[test]
    fn nothing_to_show_is_no_configuration() {
        let terms = ListenerTls { certificates: vec![], min_version: TlsVersion::Tls12, clients: None };
        assert!(server_config(&terms, false).is_none());
        let (chain, key) = made(&["a.example", "*.b.example"]);
        let certificate = ServerCertificate {
            secret: crate::model::ObjectName::new("infra", "a"),
            chain: chain.into(),
            key,
        };
        let end = ending(&certificate).expect("it ends").not_after();
        assert!(end > SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000));
        let shown = Shown::new(&certificate).expect("can be shown");
        assert!(shown.is_for("a.example") && shown.is_for("x.b.example") && !shown.is_for("b.example"));
        let terms = ListenerTls {
            certificates: vec![Arc::new(certificate)],
            min_version: TlsVersion::Tls13,
            clients: None,
        };
        let config = server_config(&terms, false).expect("can be shown").server;
        assert_eq!(config.alpn_protocols, [b"h2".to_vec(), b"http/1.1".to_vec()]);
        assert!(config.ticketer.enabled());
    }
}
