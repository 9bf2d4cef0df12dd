//! Whose word is taken: the roots of a trust domain, and the check of a signature against them.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::ring::ECDSA_P256_SHA256;
use webpki::{EndEntityCert, KeyUsage, VerifiedPath, anchor_from_trusted_cert};

use super::certificate::{
    NodeCertificate, OperatorCertificate, PublicKey, RootCertificate, Serial, Summary, Validity, readable,
    seconds,
};
use super::error::{Content, RootFault};
use super::revocation::{Revocations, Signer};
use super::signature::{sealed_form, signed_form};
use super::{Ending, IdentityError, Signature, TrustDomain, Untrusted, files, handed, pem};

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

/// Who says which workload a certificate may be of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Issuers {
    /// Intermediates are nodes': each makes certificates of the workloads that run there.
    Nodes,
    /// Whoever issues has attested the workload itself.
    Attesting,
}

/// The roots that are trusted, all of one trust domain.
pub struct TrustBundle {
    issuers: Issuers,
    trust_domain: TrustDomain,
    roots: Vec<Root>,
    revocations: Revocations,
    /// What certificates said that a root has issued.
    remembered: Mutex<HashMap<Box<[u8]>, Verified>>,
}

struct Root {
    anchor: TrustAnchor<'static>,
    subject: Box<[u8]>,
    /// Where it is one of P-256: what lists are signed with.
    public_key: Option<PublicKey>,
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
    /// Reads one or more roots in PEM, and what they have taken back, where `revoked.crl` is beside them.
    pub fn load(file: &Path) -> Result<Self, IdentityError> {
        let content = |file: &Path, what| IdentityError::Content { file: file.to_owned(), what };
        let text = files::read(file)?;
        files::refuse_replaceable(file)?;
        let bundle = Self::from_pem(&text).map_err(|what| content(file, what))?;
        let revoked = file.with_file_name(files::REVOKED);
        match files::read_optional(&revoked)? {
            None => Ok(bundle),
            Some(text) => bundle.revoking(&text).map_err(|what| content(&revoked, what)),
        }
    }

    /// The same roots, and the lists of a PEM text.
    pub(super) fn revoking(mut self, text: &[u8]) -> Result<Self, Content> {
        self.revocations = Revocations::from_pem(text, &self.signers())?;
        Ok(self)
    }

    fn signers(&self) -> Vec<Signer<'_>> {
        self.roots.iter().map(|root| (&*root.subject, root.public_key.as_ref())).collect()
    }

    /// A bundle that somebody vouches for who attests workloads himself: roots in DER one after the other, and lists of what
    /// they have taken back. Unlike those of a directory they need not name the trust domain.
    pub fn attested(trust_domain: TrustDomain, roots: &[u8], lists: &[Vec<u8>]) -> Result<Self, Content> {
        let certificates = handed::certificates(roots).ok_or(Content::NoCertificate)?;
        if certificates.is_empty() {
            return Err(Content::NoCertificate);
        }
        if certificates.len() > ROOTS_MAX {
            return Err(Content::TooManyRoots { count: certificates.len(), max: ROOTS_MAX });
        }
        let roots = certificates
            .iter()
            .enumerate()
            .map(|(index, der)| Root::attested(der).map_err(|fault| Content::Root(index + 1, fault)));
        let mut bundle = Self { roots: roots.collect::<Result<_, _>>()?, ..Self::nobody(trust_domain) };
        bundle.revocations = Revocations::from_der(lists.iter().map(Vec::as_slice), &bundle.signers())?;
        Ok(bundle)
    }

    /// Roots of nobody, until somebody hands some out.
    pub fn nobody(trust_domain: TrustDomain) -> Self {
        let (revocations, remembered) = (Revocations::default(), Mutex::default());
        Self { issuers: Issuers::Attesting, trust_domain, roots: Vec::new(), revocations, remembered }
    }

    /// Who says which workload a certificate may be of.
    pub(super) fn issuers(&self) -> Issuers {
        self.issuers
    }

    /// When the last of its roots ends; `None`: it has none.
    pub fn ending(&self, what: &str) -> Option<Ending> {
        (!self.roots.is_empty()).then(|| Ending::new(what, self.validity()))
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
        let (revocations, remembered) = (Revocations::default(), Mutex::default());
        Ok(Self { issuers: Issuers::Nodes, trust_domain, roots, revocations, remembered })
    }

    /// The trust domain whose nodes are believed.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The roots' names. Those that `sluice ca` makes have their key's number in it.
    pub fn names(&self) -> Vec<String> {
        self.roots.iter().map(|root| readable(&root.subject)).collect()
    }

    /// When the last of the roots ends.
    pub fn not_after(&self) -> SystemTime {
        let ends = self.roots.iter().map(|root| root.validity.end());
        ends.max().unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// From when to when the root holds that ends last.
    pub(super) fn validity(&self) -> Validity {
        let last = self.roots.iter().map(|root| root.validity).max_by_key(|validity| validity.until);
        last.unwrap_or(Validity { from: 0, until: 0 })
    }

    /// The roots that hold at a time.
    pub(super) fn anchors(&self, now: SystemTime) -> Vec<TrustAnchor<'static>> {
        let valid = self.roots.iter().filter(|root| root.validity.check(now).is_ok());
        valid.map(|root| root.anchor.clone()).collect()
    }

    /// How many certificates the roots have taken back.
    #[cfg(test)]
    pub(super) fn revoked_count(&self) -> usize {
        self.revocations.len()
    }

    /// Whether a certificate says that one of the roots has issued it.
    pub(super) fn names_issuer_of(&self, certificate: &Serial) -> bool {
        self.roots.iter().any(|root| *root.subject == *certificate.issuer)
    }

    /// Whether a root has taken a certificate back.
    pub(super) fn has_revoked(&self, certificate: &Serial) -> bool {
        self.revocations.names(&certificate.issuer, &certificate.number)
    }

    /// Whether nothing is forgotten that `earlier` says of roots that are still trusted.
    pub(super) fn remembers(&self, earlier: &Self) -> bool {
        self.revocations.follows(&earlier.revocations, self.roots.iter().map(|root| &*root.subject))
    }

    /// The root behind a chain that was verified; refuses what it has taken back. A root speaks of what it issued itself: the
    /// certificate that is next to it in the chain.
    pub(super) fn root_of(&self, path: &VerifiedPath<'_>) -> Result<Validity, Untrusted> {
        let anchor = path.anchor();
        let behind = self.roots.iter().filter(|root| {
            root.anchor.subject == anchor.subject
                && root.anchor.subject_public_key_info == anchor.subject_public_key_info
        });
        // A root that was renewed with the same key is one root.
        let root = behind.max_by_key(|root| root.validity.until).ok_or(Untrusted::UnknownIssuer)?;
        let next = path.intermediate_certificates().next_back();
        let serial = next.map_or_else(|| path.end_entity().serial(), |issuer| issuer.serial());
        if self.revocations.names(&root.subject, serial) {
            Err(Untrusted::Revoked)
        } else {
            Ok(root.validity)
        }
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
        let verified = self.certified(role, now, signature)?;
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &verified.public_key);
        key.verify(form, signature.scalars()).map_err(|_| Untrusted::BadSignature)?;
        Ok(verified.name)
    }

    /// Whether a node's signature is of a certificate that holds at a time. Nothing is said of what it has signed.
    pub fn holds(&self, at: SystemTime, signature: &Signature) -> Result<(), Untrusted> {
        self.certified(Role::Node, at, signature).map(drop)
    }

    fn certified(&self, role: Role, now: SystemTime, signature: &Signature) -> Result<Verified, Untrusted> {
        let known = self.recall(signature.certificate()).filter(|known| known.role == role);
        let verified = match known {
            Some(verified) => verified,
            None => self.examine(role, now, signature.certificate())?,
        };
        verified.check(now)?;
        Ok(verified)
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
                Ok(path) => return self.root_of(&path),
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
        let RootCertificate { id, subject, public_key, validity } = RootCertificate::read(der)?;
        let anchor = anchor_from_trusted_cert(der).map_err(|_| RootFault::Der)?.to_owned();
        let public_key = Some(public_key);
        Ok((Self { anchor, subject, public_key, validity }, id.trust_domain().clone()))
    }

    fn attested(der: &CertificateDer<'_>) -> Result<Self, RootFault> {
        let said = Summary::read(der).map_err(|_| RootFault::Der)?;
        if !said.is_ca {
            return Err(RootFault::NotCa);
        }
        let anchor = anchor_from_trusted_cert(der).map_err(|_| RootFault::Der)?.to_owned();
        let Summary { subject, public_key, validity, .. } = said;
        Ok(Self { anchor, subject, public_key, validity })
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
