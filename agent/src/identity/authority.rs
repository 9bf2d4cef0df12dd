//! The CA that is a directory: a root made once and kept offline, and what it issues for each node.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::certificate::{
    NodeCertificate, OperatorCertificate, PublicKey, RootCertificate, Validity, seconds,
};
use super::error::Content;
use super::files::{self, Existing, Writing};
use super::ledger::{self, Issued, IssuedKind};
use super::{IdentityError, NodeName, OperatorName, SpiffeId, TrustBundle, TrustDomain, pem};

/// How far clocks of nodes may be behind that of the CA: certificates begin to hold that much earlier.
const SKEW: Duration = Duration::from_mins(5);
/// The last second that a certificate can name (RFC 5280, section 4.1.2.5): the end of the year 9999.
const LAST_SECOND: i64 = 253_402_300_799;
const REPLACE_CA: &str = "with --replace a new CA takes its place, and every node needs new certificates";
const RENEW_NODE: &str = "with --renew the same node gets new keys and certificates";
const RENEW_OPERATOR: &str = "with --renew the same operator gets a new key and certificate";

const NOT_A_NODE: &str = "that is the key of a CA or of an operator: give the node a directory of its own";
const NOT_AN_OPERATOR: &str =
    "that is the key of a CA or of a node: give the operator a directory of its own, on no node";
/// The usage of keys that sign documents (RFC 9336): id-kp-documentSigning.
const DOCUMENT_SIGNING: [u64; 9] = [1, 3, 6, 1, 5, 5, 7, 3, 36];
const NOT_A_CA: &str = "that is of a node: give the CA a directory of its own";

const ROTATING: &str = "a rotation of the root is under way: `sluice ca rotate` finishes it";

/// A root and its key.
pub struct Authority {
    pub(super) directory: PathBuf,
    trust_domain: TrustDomain,
    validity: Validity,
    /// Its name as DER has it.
    pub(super) subject: Box<[u8]>,
    pub(super) public_key: PublicKey,
    pub(super) certificate: CertificateDer<'static>,
    pub(super) key: Zeroizing<KeyPair>,
}

/// How long a certificate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Term {
    /// The moment it is made. It holds from a little earlier on, for nodes whose clocks are behind.
    pub now: SystemTime,
    /// How long from then on.
    pub life: Duration,
}

impl Term {
    /// The last second.
    pub(super) fn until(self) -> Result<i64, IdentityError> {
        let until =
            i64::try_from(self.life.as_secs()).ok().and_then(|life| seconds(self.now).checked_add(life));
        let too_long = IdentityError::LifeTooLong { seconds: self.life.as_secs() };
        until.filter(|until| *until <= LAST_SECOND).ok_or(too_long)
    }

    /// A certificate of that term without a name.
    pub(super) fn params(self) -> Result<CertificateParams, IdentityError> {
        let too_long = || IdentityError::LifeTooLong { seconds: self.life.as_secs() };
        let moment = |seconds| OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| too_long());
        let mut params = CertificateParams::default();
        params.not_before = moment(seconds(self.now - SKEW))?;
        params.not_after = moment(self.until()?)?;
        params.distinguished_name = DistinguishedName::new();
        Ok(params)
    }
}

/// Whether what is there may be replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replace {
    /// It is left alone, and its being there is an error.
    Never,
    /// It was asked for.
    Asked,
}

impl Replace {
    fn existing(self, advice: &'static str) -> Existing {
        match self {
            Self::Never => Existing::Refuse(advice),
            Self::Asked => Existing::Replace,
        }
    }
}

impl Authority {
    /// Makes a root that holds for a term, and writes it into `directory`: `root.key`, `root.pem`, and the
    /// bundle that nodes get.
    pub fn create(
        directory: &Path,
        trust_domain: &TrustDomain,
        term: Term,
        replace: Replace,
    ) -> Result<Self, IdentityError> {
        files::refuse_existing(directory, &[files::NODE, files::NODE_KEY], NOT_A_CA)?;
        files::refuse_existing(directory, &[files::NEXT_ROOT_KEY, files::OLD_ROOT_KEY], ROTATING)?;
        let (key, text) = new_root(trust_domain, term)?;
        let contents = [
            Writing::secret(files::ROOT_KEY, key),
            Writing::public(files::ROOT, text.clone()),
            Writing::public(files::BUNDLE, text),
        ];
        files::write_all(directory, &contents, replace.existing(REPLACE_CA))?;
        Self::load(directory)
    }

    /// Reads `root.pem` and `root.key` of a CA's directory.
    pub fn load(directory: &Path) -> Result<Self, IdentityError> {
        Self::load_named(directory, (files::ROOT, files::ROOT_KEY))
    }

    /// Reads a root and its key from files of these names.
    pub(super) fn load_named(directory: &Path, (root, key): (&str, &str)) -> Result<Self, IdentityError> {
        let (certificate_file, key_file) = (directory.join(root), directory.join(key));
        let content = |file: &Path, what| IdentityError::Content { file: file.to_owned(), what };
        let text = files::read(&certificate_file)?;
        files::refuse_replaceable(&certificate_file)?;
        let certificate = pem::certificate(&text).map_err(|what| content(&certificate_file, what))?;
        let said = RootCertificate::read(&certificate)
            .map_err(|fault| content(&certificate_file, Content::Root(1, fault)))?;
        let der =
            pem::private_key(&files::read_secret(&key_file)?).map_err(|what| content(&key_file, what))?;
        let der = Zeroizing::new(PrivatePkcs8KeyDer::from(der.to_vec()));
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256);
        let key = key.map(Zeroizing::new).map_err(|_| content(&key_file, Content::Key))?;
        if key.public_key_raw() != said.public_key {
            return Err(IdentityError::KeyMismatch { key: key_file, certificate: certificate_file });
        }
        let RootCertificate { id, subject, public_key, validity } = said;
        let (directory, trust_domain) = (directory.to_owned(), id.trust_domain().clone());
        Ok(Self { directory, trust_domain, validity, subject, public_key, certificate, key })
    }

    /// The trust domain whose root this is.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The last second in which the root holds.
    pub fn not_after(&self) -> SystemTime {
        self.validity.end()
    }

    /// Its certificate in PEM.
    pub(super) fn own_text(&self) -> String {
        pem::certificate_text(&self.certificate)
    }

    /// Its key in PEM.
    pub(super) fn key_text(&self) -> Zeroizing<String> {
        pem::private_key_text(self.key.serialized_der())
    }

    /// Makes what a node needs and writes it into the node's directory `out`: the bundle, the node's certificate, the
    /// intermediate with which it issues those of its workloads, and their keys. Returns when both certificates end.
    pub fn issue_node(
        &self,
        node: &NodeName,
        out: &Path,
        term: Term,
        replace: Replace,
    ) -> Result<SystemTime, IdentityError> {
        self.may_issue(term)?;
        files::refuse_existing(out, &[files::ROOT_KEY, files::OPERATOR_KEY], NOT_A_NODE)?;
        same_node(out, node)?;
        let bundle = self.bundle()?;
        let (leaf_key, leaf) = self.node_certificate(node, term)?;
        let (intermediate_key, intermediate) = self.intermediate(node, term)?;
        // A certificate is written before its key: until both are there, the agent keeps those that it has.
        let mut contents = vec![
            Writing::public(files::BUNDLE, bundle),
            Writing::public(files::INTERMEDIATE, intermediate.pem()),
            Writing::secret(
                files::INTERMEDIATE_KEY,
                pem::private_key_text(intermediate_key.serialized_der()),
            ),
            Writing::public(files::NODE, leaf.pem()),
            Writing::secret(files::NODE_KEY, pem::private_key_text(leaf_key.serialized_der())),
        ];
        contents.extend(self.list()?);
        let issued = [(IssuedKind::Node, leaf.der()), (IssuedKind::Intermediate, intermediate.der())];
        let issued = issued.map(|(kind, der)| Issued::of(kind, &node.shared(), (&self.certificate, der)));
        let record = || ledger::append(&self.directory, &issued);
        files::write_after(out, &contents, replace.existing(RENEW_NODE), record)?;
        Ok(Validity { from: 0, until: term.until()? }.end())
    }

    /// Makes what an operator needs and writes it into the directory `out`: the bundle, a certificate that seals documents,
    /// and its key. Returns when the certificate ends.
    pub fn issue_operator(
        &self,
        operator: &OperatorName,
        out: &Path,
        term: Term,
        replace: Replace,
    ) -> Result<SystemTime, IdentityError> {
        self.may_issue(term)?;
        files::refuse_existing(out, &[files::ROOT_KEY, files::NODE_KEY], NOT_AN_OPERATOR)?;
        same_operator(out, operator)?;
        let bundle = self.bundle()?;
        let (key, certificate) = self.operator_certificate(operator, term)?;
        let mut contents = vec![
            Writing::public(files::BUNDLE, bundle),
            Writing::public(files::OPERATOR, certificate.pem()),
            Writing::secret(files::OPERATOR_KEY, pem::private_key_text(key.serialized_der())),
        ];
        contents.extend(self.list()?);
        let issued =
            Issued::of(IssuedKind::Operator, &operator.shared(), (&self.certificate, certificate.der()));
        let record = || ledger::append(&self.directory, &[issued]);
        files::write_after(out, &contents, replace.existing(RENEW_OPERATOR), record)?;
        Ok(Validity { from: 0, until: term.until()? }.end())
    }

    /// A certificate that outlives its issuer is worth nothing for the rest of its life.
    fn may_issue(&self, term: Term) -> Result<(), IdentityError> {
        let file = self.directory.join(files::ROOT);
        if self.validity.check(term.now).is_err() {
            let (from, until) = (self.validity.begin(), self.validity.end());
            return Err(IdentityError::RootNotValid { file, from, until });
        }
        if term.until()? > self.validity.until {
            return Err(IdentityError::OutlivesRoot { file, ends: self.validity.end() });
        }
        Ok(())
    }

    /// The bundle that nodes get, as it is: in a rotation it holds a second root.
    fn bundle(&self) -> Result<String, IdentityError> {
        let file = self.directory.join(files::BUNDLE);
        let text = files::read(&file)?;
        let roots = TrustBundle::from_pem(&text).and_then(|_| pem::certificates(&text));
        let roots = roots.map_err(|what| IdentityError::Content { file: file.clone(), what })?;
        if !roots.contains(&self.certificate) {
            return Err(IdentityError::BundleWithoutRoot { file, root: self.directory.join(files::ROOT) });
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// A node's own certificate: for its signatures, and for TLS in both roles. It issues nothing.
    fn node_certificate(
        &self,
        node: &NodeName,
        term: Term,
    ) -> Result<(Zeroizing<KeyPair>, Certificate), IdentityError> {
        let mut params = term.params()?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![uri(&SpiffeId::of_node(self.trust_domain.clone(), node))?];
        self.sign(params)
    }

    /// An operator's certificate: it seals documents, and is none for TLS. It issues nothing.
    fn operator_certificate(
        &self,
        operator: &OperatorName,
        term: Term,
    ) -> Result<(Zeroizing<KeyPair>, Certificate), IdentityError> {
        let mut params = term.params()?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(DOCUMENT_SIGNING.to_vec())];
        params.subject_alt_names = vec![uri(&SpiffeId::of_operator(self.trust_domain.clone(), operator))?];
        self.sign(params)
    }

    /// A node's intermediate: it issues certificates that issue none. Name constraints would say of which trust
    /// domain, but a verifier that does not know those of URIs (rustls-webpki) refuses every chain with one; so its
    /// own names say whose it is, and verifiers compare. SPIFFE gives it the id of its trust domain (X509-SVID,
    /// section 3.2, allows no path), which leaves the node's name to be a name of DNS.
    fn intermediate(
        &self,
        node: &NodeName,
        term: Term,
    ) -> Result<(Zeroizing<KeyPair>, Certificate), IdentityError> {
        let mut params = term.params()?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![
            uri(&SpiffeId::of_trust_domain(self.trust_domain.clone()))?,
            SanType::DnsName(node.to_string().try_into()?),
        ];
        self.sign(params)
    }

    fn sign(
        &self,
        mut params: CertificateParams,
    ) -> Result<(Zeroizing<KeyPair>, Certificate), IdentityError> {
        let key = new_key()?;
        if matches!(params.is_ca, IsCa::Ca(_)) {
            params.distinguished_name = authority_name("sluice node", &params.key_identifier(&*key));
        }
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &*self.key)?;
        let certificate = params.signed_by(&*key, &issuer)?;
        Ok((key, certificate))
    }
}

/// Without the key.
impl std::fmt::Debug for Authority {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Authority({})", self.trust_domain)
    }
}

/// Makes a root: its key and its certificate in PEM.
pub(super) fn new_root(
    trust_domain: &TrustDomain,
    term: Term,
) -> Result<(Zeroizing<String>, String), IdentityError> {
    let key = new_key()?;
    let mut params = term.params()?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name = authority_name("sluice root", &params.key_identifier(&*key));
    params.subject_alt_names = vec![uri(&SpiffeId::of_trust_domain(trust_domain.clone()))?];
    let certificate = params.self_signed(&*key)?;
    Ok((pem::private_key_text(key.serialized_der()), certificate.pem()))
}

pub(super) fn new_key() -> Result<Zeroizing<KeyPair>, IdentityError> {
    Ok(Zeroizing::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?))
}

/// The name of an issuer. No two have the same: a verifier finds issuers by name, and two roots overlap in a rotation.
fn authority_name(kind: &str, key_identifier: &[u8]) -> DistinguishedName {
    let number = key_identifier.first_chunk().map_or(0, |head| u64::from_be_bytes(*head));
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, format!("{kind} {number:016x}"));
    name
}

pub(super) fn uri(id: &SpiffeId) -> Result<SanType, IdentityError> {
    Ok(SanType::URI(id.to_string().try_into()?))
}

/// Refuses a directory that another node's certificate is in.
fn same_node(directory: &Path, node: &NodeName) -> Result<(), IdentityError> {
    let file = directory.join(files::NODE);
    if !file.exists() {
        return Ok(());
    }
    let found = pem::certificate(&files::read(&file)?).ok();
    let found = found.and_then(|der| NodeCertificate::read(&der).ok());
    match found {
        Some(found) if found.node != *node => {
            Err(IdentityError::OtherNode { file, found: found.node.to_string(), wanted: node.to_string() })
        }
        _ => Ok(()),
    }
}

/// Refuses a directory that another operator's certificate is in.
fn same_operator(directory: &Path, operator: &OperatorName) -> Result<(), IdentityError> {
    let file = directory.join(files::OPERATOR);
    if !file.exists() {
        return Ok(());
    }
    let found = pem::certificate(&files::read(&file)?).ok();
    let found = found.and_then(|der| OperatorCertificate::read(&der).ok());
    match found {
        Some(OperatorCertificate { operator: found, .. }) if found != *operator => {
            let (found, wanted) = (found.to_string(), operator.to_string());
            Err(IdentityError::OtherOperator { file, found, wanted })
        }
        _ => Ok(()),
    }
}
