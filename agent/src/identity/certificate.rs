//! What a certificate says, read strictly: the certificate of a node, and that of a root.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::num_bigint::BigUint;
use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Name;

use super::error::RootFault;
use super::{NodeName, OperatorName, SpiffeId, Untrusted};

/// What precedes the 65 bytes of an uncompressed point in the DER of a P-256 key (RFC 5480, sections 2.1.1 and 2.2).
const P256_SPKI_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// The shortest modulus of RSA with which signatures of TLS 1.3 are checked here (ring).
const RSA_BITS_MIN: usize = 2048;

/// A P-256 public key: an uncompressed point.
pub(super) type PublicKey = [u8; 65];

/// From when to when something holds, in seconds since 1970, both ends included (RFC 5280, section 4.1.2.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) from: i64,
    pub(super) until: i64,
}

impl Validity {
    pub(super) fn of(certificate: &X509Certificate<'_>) -> Self {
        let validity = certificate.validity();
        Self { from: validity.not_before.timestamp(), until: validity.not_after.timestamp() }
    }

    /// Refuses what does not hold at `now`.
    pub(super) fn check(self, now: SystemTime) -> Result<(), Untrusted> {
        let now = seconds(now);
        if now < self.from {
            Err(Untrusted::NotYetValid)
        } else if now > self.until {
            Err(Untrusted::Expired)
        } else {
            Ok(())
        }
    }

    /// The last moment, to the second.
    pub(super) fn end(self) -> SystemTime {
        moment(self.until)
    }

    /// The first moment.
    pub(super) fn begin(self) -> SystemTime {
        moment(self.from)
    }
}

/// Which certificate it is among all: its issuer's name as DER has it, and the number that the issuer gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Serial {
    pub(super) issuer: Box<[u8]>,
    pub(super) number: Box<[u8]>,
}

impl Serial {
    fn of(certificate: &X509Certificate<'_>) -> Self {
        Self { issuer: certificate.issuer().as_raw().into(), number: certificate.raw_serial().into() }
    }

    /// Reads it of any certificate.
    pub(super) fn read(der: &[u8]) -> Result<Self, Untrusted> {
        parse(der).map(|certificate| Self::of(&certificate)).ok_or(Untrusted::Malformed)
    }

    /// The number in decimal digits.
    pub(super) fn decimal(&self) -> String {
        BigUint::from_bytes_be(&self.number).to_string()
    }
}

/// Seconds since 1970, rounded down.
pub(super) fn seconds(time: SystemTime) -> i64 {
    let whole = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => whole(after),
        Err(before) => -whole(before.duration()) - 1,
    }
}

/// The moment so many seconds from 1970.
pub(super) fn moment(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }
}

/// What a certificate says that signs and issues nothing, whoever's it is.
struct Leaf {
    id: SpiffeId,
    public_key: PublicKey,
    validity: Validity,
}

impl Leaf {
    fn read(der: &[u8]) -> Result<Self, Untrusted> {
        let certificate = parse(der).ok_or(Untrusted::Malformed)?;
        let constraints = certificate.basic_constraints().map_err(|_| Untrusted::Malformed)?;
        if constraints.is_some_and(|constraints| constraints.value.ca) {
            return Err(Untrusted::CaCertificate);
        }
        let usage =
            certificate.key_usage().map_err(|_| Untrusted::Malformed)?.ok_or(Untrusted::WrongUsage)?;
        if usage.value.key_cert_sign() || usage.value.crl_sign() || !usage.value.digital_signature() {
            return Err(Untrusted::WrongUsage);
        }
        let public_key = public_key(&certificate).ok_or(Untrusted::UnsupportedKey)?;
        Ok(Self { id: id(&certificate)?, public_key, validity: Validity::of(&certificate) })
    }
}

/// What the certificate of an operator says; see [`NodeCertificate`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OperatorCertificate {
    pub(super) id: SpiffeId,
    pub(super) operator: OperatorName,
    pub(super) public_key: PublicKey,
    pub(super) validity: Validity,
}

impl OperatorCertificate {
    /// Reads the certificate of an operator. Its extended key usage is for [`super::TrustBundle`] to look at.
    pub(super) fn read(der: &[u8]) -> Result<Self, Untrusted> {
        let Leaf { id, public_key, validity } = Leaf::read(der)?;
        let operator = id.operator().ok_or(Untrusted::NotAnOperator)?;
        Ok(Self { id, operator, public_key, validity })
    }
}

/// What the certificate of a node says. Whether a root says so too is for [`super::TrustBundle`] to find out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NodeCertificate {
    pub(super) id: SpiffeId,
    pub(super) node: NodeName,
    pub(super) public_key: PublicKey,
    pub(super) validity: Validity,
}

impl NodeCertificate {
    /// Reads the certificate of a node, which signs and issues nothing.
    pub(super) fn read(der: &[u8]) -> Result<Self, Untrusted> {
        let Leaf { id, public_key, validity } = Leaf::read(der)?;
        let node = id.node().ok_or(Untrusted::NotANode)?;
        Ok(Self { id, node, public_key, validity })
    }
}

/// What the certificate of a root says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RootCertificate {
    /// Has no path.
    pub(super) id: SpiffeId,
    /// Its name as DER has it, by which what it issued names it.
    pub(super) subject: Box<[u8]>,
    pub(super) public_key: PublicKey,
    pub(super) validity: Validity,
}

impl RootCertificate {
    /// Reads a certificate that may issue others and names its trust domain.
    pub(super) fn read(der: &[u8]) -> Result<Self, RootFault> {
        let certificate = parse(der).ok_or(RootFault::Der)?;
        let constraints = certificate.basic_constraints().map_err(|_| RootFault::Der)?;
        let usage = certificate.key_usage().map_err(|_| RootFault::Der)?;
        let is_ca = constraints.is_some_and(|constraints| constraints.value.ca);
        if !is_ca || !usage.is_some_and(|usage| usage.value.key_cert_sign()) {
            return Err(RootFault::NotCa);
        }
        let public_key = public_key(&certificate).ok_or(RootFault::Key)?;
        let id = id(&certificate).map_err(|_| RootFault::NoTrustDomain)?;
        if !id.path().is_empty() {
            return Err(RootFault::NoTrustDomain);
        }
        let subject = certificate.subject().as_raw().into();
        Ok(Self { id, subject, public_key, validity: Validity::of(&certificate) })
    }
}

/// What the certificate of a workload says. Whether somebody who may says so too is for [`super::peer`] to find out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WorkloadLeaf {
    pub(super) id: SpiffeId,
    pub(super) validity: Validity,
}

impl WorkloadLeaf {
    /// Reads a certificate that issues nothing and has exactly one URI, a SPIFFE id.
    pub(super) fn read(der: &[u8]) -> Result<Self, Untrusted> {
        let certificate = parse(der).ok_or(Untrusted::Malformed)?;
        let constraints = certificate.basic_constraints().map_err(|_| Untrusted::Malformed)?;
        if constraints.is_some_and(|constraints| constraints.value.ca) {
            return Err(Untrusted::CaCertificate);
        }
        let usage =
            certificate.key_usage().map_err(|_| Untrusted::Malformed)?.ok_or(Untrusted::WrongUsage)?;
        if usage.value.key_cert_sign() || usage.value.crl_sign() || !usage.value.digital_signature() {
            return Err(Untrusted::WrongUsage);
        }
        if is_weak(&certificate) {
            return Err(Untrusted::UnsupportedAlgorithm);
        }
        Ok(Self { id: id(&certificate)?, validity: Validity::of(&certificate) })
    }
}

/// The identity that a certificate names, whatever else is wrong with it.
pub(super) fn presented(der: &[u8]) -> Option<SpiffeId> {
    id(&parse(der)?).ok()
}

/// What the certificate of a node's intermediate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IntermediateCertificate {
    /// Of its trust domain, without a path.
    pub(super) id: SpiffeId,
    /// The one DNS name: the node whose workloads it may make certificates of.
    pub(super) node: Box<str>,
    pub(super) serial: Serial,
    pub(super) public_key: PublicKey,
    pub(super) validity: Validity,
}

impl IntermediateCertificate {
    /// Reads the certificate of a CA that names its node.
    pub(super) fn read(der: &[u8]) -> Result<Self, Untrusted> {
        let certificate = parse(der).ok_or(Untrusted::Malformed)?;
        let constraints = certificate.basic_constraints().map_err(|_| Untrusted::Malformed)?;
        let usage = certificate.key_usage().map_err(|_| Untrusted::Malformed)?;
        let is_ca = constraints.is_some_and(|constraints| constraints.value.ca);
        if !is_ca || !usage.is_some_and(|usage| usage.value.key_cert_sign()) {
            return Err(Untrusted::WrongUsage);
        }
        let id = id(&certificate)?;
        if !id.path().is_empty() {
            return Err(Untrusted::NoIdentity);
        }
        let names = certificate.subject_alternative_name().map_err(|_| Untrusted::Malformed)?;
        let names = names.map(|names| &names.value.general_names[..]).unwrap_or_default();
        let mut nodes = names.iter().filter_map(|name| match name {
            GeneralName::DNSName(node) => Some(*node),
            _ => None,
        });
        let (Some(node), None) = (nodes.next(), nodes.next()) else { return Err(Untrusted::NotANode) };
        let public_key = public_key(&certificate).ok_or(Untrusted::UnsupportedKey)?;
        let (node, serial) = (node.into(), Serial::of(&certificate));
        Ok(Self { id, node, serial, public_key, validity: Validity::of(&certificate) })
    }
}

/// What any certificate says of itself, for people to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Summary {
    /// Its URIs and DNS names.
    pub(super) names: Vec<String>,
    pub(super) serial: Serial,
    /// Its own name as DER has it.
    pub(super) subject: Box<[u8]>,
    /// Whether it may issue others.
    pub(super) is_ca: bool,
    /// Where it is one of P-256.
    pub(super) public_key: Option<PublicKey>,
    pub(super) validity: Validity,
}

impl Summary {
    /// Reads it of any certificate.
    pub(super) fn read(der: &[u8]) -> Result<Self, Untrusted> {
        let certificate = parse(der).ok_or(Untrusted::Malformed)?;
        let names = certificate.subject_alternative_name().map_err(|_| Untrusted::Malformed)?;
        let names = names.map(|names| &names.value.general_names[..]).unwrap_or_default();
        let names = names.iter().filter_map(|name| match name {
            GeneralName::URI(name) | GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        });
        let constraints = certificate.basic_constraints().map_err(|_| Untrusted::Malformed)?;
        Ok(Self {
            names: names.collect(),
            serial: Serial::of(&certificate),
            subject: certificate.subject().as_raw().into(),
            is_ca: constraints.is_some_and(|constraints| constraints.value.ca),
            public_key: public_key(&certificate),
            validity: Validity::of(&certificate),
        })
    }
}

/// A name as people read it; empty for what is none.
pub(super) fn readable(name: &[u8]) -> String {
    X509Name::from_der(name).map(|(_, name)| name.to_string()).unwrap_or_default()
}

/// The certificate, with nothing behind it.
fn parse(der: &[u8]) -> Option<X509Certificate<'_>> {
    let (rest, certificate) = X509Certificate::from_der(der).ok()?;
    rest.is_empty().then_some(certificate)
}

/// Whether its key is one of RSA that is too short for TLS 1.3's signatures to be checked, which else looks as if another had signed.
fn is_weak(certificate: &X509Certificate<'_>) -> bool {
    let key = certificate.public_key().parsed();
    matches!(key, Ok(x509_parser::public_key::PublicKey::RSA(key)) if key.key_size() < RSA_BITS_MIN)
}

fn public_key(certificate: &X509Certificate<'_>) -> Option<PublicKey> {
    certificate.public_key().raw.strip_prefix(&P256_SPKI_PREFIX)?.try_into().ok()
}

/// The one URI of a certificate (X509-SVID, section 2). Names of other kinds say nothing about who it is.
fn id(certificate: &X509Certificate<'_>) -> Result<SpiffeId, Untrusted> {
    let names = certificate.subject_alternative_name().map_err(|_| Untrusted::Malformed)?;
    let names = names.map(|names| &names.value.general_names[..]).unwrap_or_default();
    let mut found = None;
    for name in names {
        match name {
            GeneralName::URI(uri) if found.is_none() => found = Some(*uri),
            GeneralName::URI(_) => return Err(Untrusted::SeveralIdentities),
            GeneralName::Invalid(..) => return Err(Untrusted::Malformed),
            _ => {}
        }
    }
    found.and_then(|uri| uri.parse().ok()).ok_or(Untrusted::NoIdentity)
}

#[cfg(test)]
mod tests {
    use super::super::pem::certificates;
    use super::*;

    #[test]
    fn a_key_that_is_too_short_is_told_as_that() {
        for (pem, expected) in [
            (&include_bytes!("tests/rsa1024.pem")[..], Err(Untrusted::UnsupportedAlgorithm)),
            (include_bytes!("tests/rsa2048.pem"), Ok("spiffe://mesh.test/ns/shop/sa/cart".to_owned())),
        ] {
            let leaf = &certificates(pem).expect("PEM")[0];
            assert_eq!(WorkloadLeaf::read(leaf).map(|read| read.id.to_string()), expected);
        }
    }
}
