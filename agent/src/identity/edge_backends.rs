//! TLS to backends of Gateways: whom they are believed to be.

use std::io;
use std::sync::{Arc, OnceLock};

use rustls::crypto::ring::default_provider;
use rustls::version::{TLS12, TLS13};
use rustls::{CertificateError, ClientConfig, Error, RootCertStore};

use super::edge_clients::add_roots;
use crate::model::{BackendRoots, BackendTls};

/// What the library's own reasons are called, where they concern the backend's certificate.
const NOT_VALID: &str = "upstream_tls_certificate";

/// How a backend is dialled, whose port speaks `alpn`; `None`: there is nobody to believe, and it can't be dialled.
pub fn client_config(terms: &BackendTls, alpn: &[u8]) -> Option<Arc<ClientConfig>> {
    let roots = match &terms.roots {
        BackendRoots::System => system()?,
        BackendRoots::Bundles(bundles) => {
            let mut roots = RootCertStore::empty();
            for pem in bundles {
                add_roots(&mut roots, pem).ok()?;
            }
            Arc::new(roots)
        }
    };
    if roots.is_empty() {
        return None;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_protocol_versions(&[&TLS13, &TLS12]).ok()?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    Some(Arc::new(config))
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

/// Why a handshake with a backend failed.
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
        Error::AlertReceived(_) => "upstream_tls_refused",
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => "upstream_tls_incompatible",
        _ => "upstream_not_tls",
    }
}
