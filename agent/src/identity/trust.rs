//! Whose word is taken: the roots of a trust domain, and the check of a signature against them.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::ring::ECDSA_P256_SHA256;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::certificate::{
    NodeCertificate, OperatorCertificate, PublicKey, RootCertificate, Validity, seconds,
};
use super::error::{Content, RootFault};
use super::signature::{sealed_form, signed_form};
use super::{IdentityError, Signature, TrustDomain, Untrusted, files, pem};

/// Most roots of a bundle. Two overlap while one follows the other.
const ROOTS_MAX: usize = 16;
/// Most certificates whose check is remembered. Only what a root has issued is, so strangers can fill nothing.
const REMEMBERED_MAX: usize = 4096;

/// id-kp-documentSigning (RFC 9336) as DER has it.
const DOCUMENT_SIGNING: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 36];

/// As whom somebody signs. Certificates of one role are none of the other, and neither is what they sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Node,
    Operator,
}

/// Who signed a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedBy {
    /// The node's name.
    pub node: Arc<str>,
    /// Its trust domain, which is the bundle's.
    pub trust_domain: TrustDomain,
}

/// The roots that are trusted, all of one trust domain.
pub struct TrustBundle {
    trust_domain: TrustDomain,
    roots: Vec<Root>,
    /// What certificates said that a root has issued.
    remembered: Mutex<HashMap<Box<[u8]>, Verified>>,
}

struct Root {
    anchor: TrustAnchor<'static>,
    validity: Validity,
}

/// A certificate that a root has issued.
#[derive(Clone)]
struct Verified {
    role: Role,
    name: Arc<str>,
    public_key: PublicKey,
    validity: Validity,
    root_validity: Validity,
}

impl Verified {
    /// Time goes on, so what was checked once is looked at again whenever it is used.
    fn check(&self, now: SystemTime) -> Result<(), Untrusted> {
        self.validity.check(now)?;
        self.root_validity.check(now).map_err(|_| Untrusted::RootNotValid)
    }
}

impl TrustBundle {
    /// Reads one or more roots in PEM.
    pub fn load(file: &Path) -> Result<Self, IdentityError> {
        let text = files::read(file)?;
        Self::from_pem(&text).map_err(|what| IdentityError::Content { file: file.to_owned(), what })
    }

    /// The bundle of a PEM text. Every certificate in it must be a root of the same trust domain.
    pub(super) fn from_pem(text: &[u8]) -> Result<Self, Content> {
        let certificates = pem::certificates(text)?;
        if certificates.len() > ROOTS_MAX {
            return Err(Content::TooManyRoots { count: certificates.len(), max: ROOTS_MAX });
        }
        let mut trust_domain: Option<TrustDomain> = None;
        let mut roots = Vec::with_capacity(certificates.len());
        for (index, der) in certificates.iter().enumerate() {
            let (root, own) = Root::read(der).map_err(|fault| Content::Root(index + 1, fault))?;
            match &trust_domain {
                Some(first) if *first != own => {
                    return Err(Content::MixedTrustDomains(first.to_string(), own.to_string()));
                }
                _ => trust_domain = Some(own),
            }
            roots.push(root);
        }
        let trust_domain = trust_domain.ok_or(Content::NoCertificate)?;
        Ok(Self { trust_domain, roots, remembered: Mutex::default() })
    }

    /// The trust domain whose nodes are believed.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// When the last of the roots ends.
    pub fn not_after(&self) -> SystemTime {
        let ends = self.roots.iter().map(|root| root.validity.end());
        ends.max().unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// The roots that hold at a time.
    pub(super) fn anchors(&self, now: SystemTime) -> Vec<TrustAnchor<'static>> {
        let valid = self.roots.iter().filter(|root| root.validity.check(now).is_ok());
        valid.map(|root| root.anchor.clone()).collect()
    }

    /// Says who signed `message`, or why nobody is believed to have. A certificate is checked once and then
    /// remembered: from there on a message costs one signature.
    pub fn verify(
        &self,
        now: SystemTime,
        message: &[u8],
        signature: &Signature,
    ) -> Result<SignedBy, Untrusted> {
        let node = self.signer(Role::Node, now, &signed_form(message), signature)?;
        Ok(SignedBy { node, trust_domain: self.trust_domain.clone() })
    }

    /// Says which operator sealed `message`, or why nobody is believed to have. The certificate has to hold at `at`, when it
    /// was sealed.
    pub fn verify_seal(
        &self,
        at: SystemTime,
        message: &[u8],
        signature: &Signature,
    ) -> Result<Arc<str>, Untrusted> {
        self.signer(Role::Operator, at, &sealed_form(message), signature)
    }

    fn signer(
        &self,
        role: Role,
        now: SystemTime,
        form: &[u8],
        signature: &Signature,
    ) -> Result<Arc<str>, Untrusted> {
        let known = self.recall(signature.certificate()).filter(|known| known.role == role);
        let verified = match known {
            Some(verified) => verified,
            None => self.examine(role, now, signature.certificate())?,
        };
        verified.check(now)?;
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &verified.public_key);
        key.verify(form, signature.scalars()).map_err(|_| Untrusted::BadSignature)?;
        Ok(verified.name)
    }

    fn recall(&self, certificate: &[u8]) -> Option<Verified> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner).get(certificate).cloned()
    }

    /// Checks a certificate that is not known yet, and remembers it where a root has issued it.
    fn examine(&self, role: Role, now: SystemTime, certificate: &[u8]) -> Result<Verified, Untrusted> {
        let root_validity = self.issuer_of(role, now, certificate)?;
        let (id, name, public_key, validity) = match role {
            Role::Node => {
                let read = NodeCertificate::read(certificate)?;
                (read.id, read.node.shared(), read.public_key, read.validity)
            }
            Role::Operator => {
                let read = OperatorCertificate::read(certificate)?;
                (read.id, read.operator.shared(), read.public_key, read.validity)
            }
        };
        if *id.trust_domain() != self.trust_domain {
            return Err(Untrusted::WrongTrustDomain);
        }
        let verified = Verified { role, name, public_key, validity, root_validity };
        self.remember(now, certificate, &verified);
        Ok(verified)
    }

    fn remember(&self, now: SystemTime, certificate: &[u8], verified: &Verified) {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= REMEMBERED_MAX {
            remembered.retain(|_, known| known.check(now).is_ok());
        }
        // A cluster of more nodes than that pays for the chain again and again, and is served all the same.
        if remembered.len() < REMEMBERED_MAX {
            remembered.insert(certificate.into(), verified.clone());
        }
    }

    /// When the root holds that has issued a certificate. No intermediates are looked at: only a root makes nodes and operators.
    fn issuer_of(&self, role: Role, now: SystemTime, certificate: &[u8]) -> Result<Validity, Untrusted> {
        let der = CertificateDer::from(certificate);
        let leaf = EndEntityCert::try_from(&der).map_err(|error| reason(&error))?;
        let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds(now).try_into().unwrap_or(0)));
        // A root that is not valid now is asked last, so that it hides none of the same name that is.
        let (valid, other): (Vec<&Root>, Vec<&Root>) =
            self.roots.iter().partition(|root| root.validity.check(now).is_ok());
        let mut refused = Untrusted::UnknownIssuer;
        for root in valid.into_iter().chain(other) {
            let anchors = std::slice::from_ref(&root.anchor);
            let usage = match role {
                Role::Node => KeyUsage::client_auth(),
                Role::Operator => KeyUsage::required(DOCUMENT_SIGNING),
            };
            match leaf.verify_for_usage(&[ECDSA_P256_SHA256], anchors, &[], time, usage, None, None) {
                Ok(_) => return Ok(root.validity),
                Err(error) if refused == Untrusted::UnknownIssuer => refused = reason(&error),
                Err(_) => {}
            }
        }
        Err(refused)
    }
}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "TrustBundle({}, {} roots)", self.trust_domain, self.roots.len())
    }
}

impl Root {
    fn read(der: &CertificateDer<'_>) -> Result<(Self, TrustDomain), RootFault> {
        let RootCertificate { id, validity, .. } = RootCertificate::read(der)?;
        let anchor = anchor_from_trusted_cert(der).map_err(|_| RootFault::Der)?.to_owned();
        Ok((Self { anchor, validity }, id.trust_domain().clone()))
    }
}

/// Our name for why a chain is refused.
pub(super) fn reason(error: &webpki::Error) -> Untrusted {
    use webpki::Error;
    match error {
        Error::CertExpired { .. } => Untrusted::Expired,
        Error::CertNotValidYet { .. } => Untrusted::NotYetValid,
        Error::CaUsedAsEndEntity => Untrusted::CaCertificate,
        // A root of the right name and another key has not issued it.
        Error::UnknownIssuer | Error::InvalidSignatureForPublicKey => Untrusted::UnknownIssuer,
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => Untrusted::WrongUsage,
        Error::UnsupportedSignatureAlgorithmContext(_)
        | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => Untrusted::UnsupportedAlgorithm,
        Error::UnsupportedCriticalExtension | Error::NameConstraintViolation => Untrusted::Constrained,
        _ => Untrusted::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::tests::forge::{MESSAGE, Party, TD, at, bundle, hours, node, with_uris};

    fn remembered(bundle: &TrustBundle) -> usize {
        bundle.remembered.lock().expect("no test panicked").len()
    }

    #[test]
    fn only_what_a_root_has_issued_is_remembered_and_once() {
        let (root, stranger) = (Party::root(TD), Party::root(TD));
        let bundle = bundle(&[&root]);
        let good = root.issue(node("node1"));
        for _ in 0..3 {
            assert!(bundle.verify(hours(0), MESSAGE, &good.sign(MESSAGE)).is_ok());
            assert!(bundle.verify(hours(0), b"other", &good.sign(MESSAGE)).is_err());
        }
        assert_eq!(remembered(&bundle), 1);
        for bad in [stranger.issue(node("node2")), root.issue(with_uris(&[]))] {
            assert!(bundle.verify(hours(0), MESSAGE, &bad.sign(MESSAGE)).is_err());
        }
        assert_eq!(remembered(&bundle), 1);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let root = Party::root(TD);
        let bundle = bundle(&[&root]);
        let signer = root.issue(node("node1"));
        let verify = |hour: i64, name: &str, until: i64| {
            let mut params = node(name);
            params.not_after = at(until);
            let signature = signer.sign_as(&root.certify(&params, &signer.key), MESSAGE);
            assert!(bundle.verify(hours(hour), MESSAGE, &signature).is_ok(), "{name}");
        };
        for number in 0..REMEMBERED_MAX - 1 {
            verify(0, &format!("node{number}"), 1);
        }
        verify(0, "long", 10);
        assert_eq!(remembered(&bundle), REMEMBERED_MAX);
        verify(0, "beyond", 1);
        assert_eq!(remembered(&bundle), REMEMBERED_MAX);
        verify(5, "later", 10);
        assert_eq!(remembered(&bundle), 2, "what has expired makes room");
    }
}
