//! Certificates and bundles that somebody else has made and vouches for, as a SPIFFE Workload API hands them out: read, and
//! looked at as a peer would.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use thiserror::Error;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::certificate::{Summary, Validity, WorkloadLeaf};
use super::error::Content;
use super::peer::{self, PeerRole};
use super::{Expected, PeerRefusal, SpiffeId, TrustBundle, WorkloadCertificate};

/// What is wrong with what was handed out.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages say what each variant is")]
pub enum HandedFault {
    #[error("{id}: {why}")]
    Svid { id: String, why: Box<HandedFault> },
    #[error("the id is none of SPIFFE")]
    Id,
    #[error("the certificates are not DER one after the other")]
    Certificates,
    #[error("the key is none that TLS signs with (PKCS #8, ECDSA P-256 or P-384)")]
    Key,
    #[error("the key is not that of the certificate")]
    KeyMismatch,
    #[error("a peer would not take it: {0}")]
    Refused(PeerRefusal),
    #[error("the bundle: {0}")]
    Bundle(#[from] Content),
    #[error("there is no bundle of {trust_domain}")]
    NoBundle { trust_domain: String },
}

impl WorkloadCertificate {
    /// What was handed out for an id: certificates in DER one after the other and a key in PKCS #8. A peer that believes the
    /// bundle must take it in both roles at `now`.
    pub fn attested(
        id: &str,
        (chain, key): (&[u8], &[u8]),
        bundle: &TrustBundle,
        now: SystemTime,
    ) -> Result<Self, HandedFault> {
        let id: SpiffeId = id.parse().map_err(|_| HandedFault::Id)?;
        let chain = certificates(chain).ok_or(HandedFault::Certificates)?;
        let (leaf, intermediates) = chain.split_first().ok_or(HandedFault::Certificates)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
        let key = rustls::crypto::ring::sign::any_ecdsa_type(&key).map_err(|_| HandedFault::Key)?;
        // Who issued it says where it belongs, so the node is nobody's to expect.
        let expected = Expected { id: id.clone(), node: "".into() };
        for role in [PeerRole::Server, PeerRole::Client] {
            peer::check(bundle, &expected, (leaf, intermediates), role, now).map_err(HandedFault::Refused)?;
        }
        let said = WorkloadLeaf::read(leaf).map_err(|why| HandedFault::Refused(why.into()))?;
        let key = CertifiedKey::new(chain, key);
        key.keys_match().map_err(|_| HandedFault::KeyMismatch)?;
        Ok(Self { id, validity: said.validity, key: Arc::new(key) })
    }
}

/// Certificates in DER one after the other.
pub(super) fn certificates(mut bytes: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let (rest, _) = X509Certificate::from_der(bytes).ok()?;
        found.push(CertificateDer::from(bytes[..bytes.len() - rest.len()].to_vec()));
        bytes = rest;
    }
    Some(found)
}

/// When all of these hold.
pub(super) fn common_validity(chain: &[CertificateDer<'_>]) -> Option<Validity> {
    let each = chain.iter().filter_map(|der| Summary::read(der).ok()).map(|said| said.validity);
    each.reduce(|all, one| Validity { from: all.from.max(one.from), until: all.until.min(one.until) })
}
