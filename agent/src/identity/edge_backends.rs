//! TLS to backends of Gateways and of pods: whom they are believed to be, and what they are shown.

use std::io;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::ring::default_provider;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::sign::SingleCertAndKey;
use rustls::version::{TLS12, TLS13};
use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, Error, RootCertStore,
    SignatureScheme, WantsVerifier,
};
use rustls_pki_types::{CertificateDer, DnsName, ServerName, UnixTime};
use webpki::EndEntityCert;

use super::edge;
use super::edge_clients::add_roots;
use crate::model::{BackendName, BackendRoots, BackendTls};

/// What the library's own reasons are called, where they concern the backend's certificate.
const NOT_VALID: &str = "upstream_tls_certificate";

/// A backend that sends an alert.
pub const REFUSED: &str = "upstream_tls_refused";

/// How a backend is dialled, whose port speaks `alpn`, or what is told by no name; `None`: there is nobody to believe, or nothing
/// to show, and it can't be dialled.
pub fn client_config(terms: &BackendTls, alpn: Option<&[u8]>) -> Option<Arc<ClientConfig>> {
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_protocol_versions(&[&TLS13, &TLS12]).ok()?;
    let dangerous = |builder: ConfigBuilder<ClientConfig, WantsVerifier>,
                     verifier: Arc<dyn ServerCertVerifier>| {
        builder.dangerous().with_custom_certificate_verifier(verifier)
    };
    let builder = match &terms.roots {
        BackendRoots::Anybody => dangerous(builder, Arc::new(Anybody::default())),
        roots if terms.names.is_empty() => builder.with_root_certificates(believed(roots)?),
        roots => dangerous(builder, Arc::new(Named::new(believed(roots)?, terms)?)),
    };
    let mut config = match &terms.client {
        None => builder.with_no_client_auth(),
        Some(client) => {
            let key = edge::read(&client.chain, &client.key).ok()?;
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)))
        }
    };
    config.alpn_protocols = alpn.into_iter().map(<[u8]>::to_vec).collect();
    Some(Arc::new(config))
}

/// Whom to believe by name; `None`: nobody.
fn believed(roots: &BackendRoots) -> Option<Arc<RootCertStore>> {
    let roots = match roots {
        BackendRoots::Anybody => return None,
        BackendRoots::System => system()?,
        BackendRoots::Bundles(bundles) => {
            let mut roots = RootCertStore::empty();
            for pem in bundles {
                add_roots(&mut roots, pem).ok()?;
            }
            Arc::new(roots)
        }
    };
    (!roots.is_empty()).then_some(roots)
}

/// Takes any certificate whose key the backend has (`insecureSkipVerify`).
#[derive(Debug)]
struct Anybody(WebPkiSupportedAlgorithms);

impl Default for Anybody {
    fn default() -> Self {
        Self(default_provider().signature_verification_algorithms)
    }
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

/// Takes a certificate that leads to a root and has one of some names.
#[derive(Debug)]
struct Named {
    roots: Arc<RootCertStore>,
    dns: Vec<DnsName<'static>>,
    uris: Vec<Arc<str>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Named {
    /// `None`: a name is none.
    fn new(roots: Arc<RootCertStore>, terms: &BackendTls) -> Option<Self> {
        let algorithms = default_provider().signature_verification_algorithms;
        let mut named = Self { roots, dns: Vec::new(), uris: Vec::new(), algorithms };
        for name in &terms.names {
            match name {
                BackendName::Dns(name) => named.dns.push(DnsName::try_from(name.to_string()).ok()?),
                BackendName::Uri(uri) => named.uris.push(Arc::clone(uri)),
            }
        }
        Some(named)
    }

    fn has_name(&self, certificate: &EndEntityCert<'_>) -> bool {
        let is = |name: &DnsName<'static>| {
            certificate.verify_is_valid_for_subject_name(&ServerName::DnsName(name.clone())).is_ok()
        };
        self.dns.iter().any(is)
            || certificate.valid_uri_names().any(|uri| self.uris.iter().any(|own| **own == *uri))
    }
}

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        let certificate = EndEntityCert::try_from(end_entity)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        if self.has_name(&certificate) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Error::InvalidCertificate(CertificateError::NotValidForName))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The CAs that the machine believes, as they were when they were first asked for.
fn system() -> Option<Arc<RootCertStore>> {
    static SYSTEM: OnceLock<Option<Arc<RootCertStore>>> = OnceLock::new();
    let read = || {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        // What one program can't read of them another may.
        roots.add_parsable_certificates(found.certs);
        (!roots.is_empty()).then(|| Arc::new(roots))
    };
    SYSTEM.get_or_init(read).clone()
}

/// Why a handshake with a backend may fail.
pub const REFUSALS: [&str; 9] = [
    NOT_VALID,
    "upstream_not_tls",
    "upstream_tls_closed",
    "upstream_tls_expired",
    "upstream_tls_incompatible",
    "upstream_tls_not_yet_valid",
    "upstream_tls_refused",
    "upstream_tls_unknown_issuer",
    "upstream_tls_wrong_name",
];

/// Why a handshake with a backend failed, one of [`REFUSALS`].
pub fn refusal(error: &io::Error) -> &'static str {
    let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        return "upstream_tls_closed";
    };
    match error {
        Error::InvalidCertificate(problem) => match problem {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "upstream_tls_expired",
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "upstream_tls_not_yet_valid"
            }
            CertificateError::UnknownIssuer => "upstream_tls_unknown_issuer",
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "upstream_tls_wrong_name"
            }
            _ => NOT_VALID,
        },
        Error::AlertReceived(_) => REFUSED,
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => "upstream_tls_incompatible",
        _ => "upstream_not_tls",
    }
}
