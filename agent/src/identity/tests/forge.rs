//! Certificates as somebody would make them who wants to be believed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SignatureAlgorithm,
};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use time::OffsetDateTime;

use crate::identity::signature::{Signature, sealed_form, signed_form};
use crate::identity::trust::TrustBundle;

/// The trust domain of these tests.
pub const TD: &str = "mesh.test";
/// The message that is signed.
pub const MESSAGE: &[u8] = b"a table";
const START: u64 = 1_800_000_000;
const HOUR: u64 = 3600;

/// A moment, in hours from the tests' own present.
pub fn hours(hours: i64) -> SystemTime {
    let seconds = hours.unsigned_abs() * HOUR;
    let start = UNIX_EPOCH + Duration::from_secs(START);
    if hours < 0 { start - Duration::from_secs(seconds) } else { start + Duration::from_secs(seconds) }
}

/// Somebody with a key and a certificate.
pub struct Party {
    pub key: KeyPair,
    pub params: CertificateParams,
    pub der: Vec<u8>,
}

impl Party {
    /// A root of a trust domain. Its name is the same for all, as that of a forger would be.
    pub fn root(trust_domain: &str) -> Self {
        Self::root_with(trust_domain, &PKCS_ECDSA_P256_SHA256, |_| {})
    }

    pub fn root_with(
        trust_domain: &str,
        algorithm: &'static SignatureAlgorithm,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Self {
        let mut params = authority(trust_domain, BasicConstraints::Unconstrained);
        (params.not_before, params.not_after) = (at(-1000), at(1000));
        change(&mut params);
        let key = KeyPair::generate_for(algorithm).expect("a key");
        let der = params.self_signed(&key).expect("a certificate").der().to_vec();
        Self { key, params, der }
    }

    /// Lets this one issue a certificate.
    pub fn issue(&self, params: CertificateParams) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
        let der = self.certify(&params, &key);
        Self { key, params, der }
    }

    /// Lets this one issue a certificate over somebody's public key.
    pub fn certify(&self, params: &CertificateParams, key: &impl PublicKeyData) -> Vec<u8> {
        let issuer = Issuer::from_params(&self.params, &self.key);
        params.signed_by(key, &issuer).expect("a certificate").der().to_vec()
    }

    /// Signs a message with its own certificate.
    pub fn sign(&self, message: &[u8]) -> Signature {
        self.sign_as(&self.der, message)
    }

    /// Signs a message with any certificate.
    pub fn sign_as(&self, certificate: &[u8], message: &[u8]) -> Signature {
        self.sign_raw(certificate, &signed_form(message))
    }

    /// Seals a message as an operator does, with any certificate.
    pub fn seal_as(&self, certificate: &[u8], message: &[u8]) -> Signature {
        self.sign_raw(certificate, &sealed_form(message))
    }

    /// Signs bytes as they are.
    pub fn sign_raw(&self, certificate: &[u8], bytes: &[u8]) -> Signature {
        let random = SystemRandom::new();
        let der = self.key.serialized_der();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der, &random).expect("a key");
        let scalars = key.sign(&random, bytes).expect("a signature");
        Signature::new(certificate, scalars.as_ref()).expect("a small certificate")
    }

    pub fn pem(&self) -> String {
        pem("CERTIFICATE", &self.der)
    }
}

/// A bundle of roots.
pub fn bundle(roots: &[&Party]) -> TrustBundle {
    TrustBundle::from_pem(roots_text(roots).as_bytes()).expect("good roots")
}

pub fn roots_text(roots: &[&Party]) -> String {
    roots.iter().map(|root| root.pem()).collect()
}

pub fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
}

/// What a good certificate of a node has.
pub fn node(name: &str) -> CertificateParams {
    with_uris(&[&format!("spiffe://{TD}/node/{name}")])
}

/// What a good certificate of an operator has.
pub fn operator(name: &str) -> CertificateParams {
    let mut params = with_uris(&[&format!("spiffe://{TD}/operator/{name}")]);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(vec![1, 3, 6, 1, 5, 5, 7, 3, 36])];
    params
}

/// A certificate like that of a node, with any URIs.
pub fn with_uris(uris: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names = uris.iter().map(|uri| self::uri(uri)).collect();
    (params.not_before, params.not_after) = (at(-1), at(1));
    params
}

/// A CA below a root.
pub fn authority(trust_domain: &str, constraints: BasicConstraints) -> CertificateParams {
    let mut params = with_uris(&[&format!("spiffe://{trust_domain}")]);
    params.distinguished_name.push(DnType::CommonName, "authority");
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.extended_key_usages = Vec::new();
    params
}

pub fn uri(uri: &str) -> SanType {
    SanType::URI(uri.to_owned().try_into().expect("ASCII"))
}

/// A moment for a certificate, in hours from the tests' own present.
pub fn at(hours: i64) -> OffsetDateTime {
    OffsetDateTime::from(self::hours(hours))
}
