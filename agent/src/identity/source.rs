//! Where certificates of workloads come from: a node's directory with the intermediate that makes them here.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rcgen::{ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use zeroize::Zeroizing;

use super::authority::{Term, new_key, uri};
use super::certificate::{IntermediateCertificate, NodeCertificate, Summary, Validity, seconds};
use super::directory::{Stamps, stamps_of};
use super::error::Content;
use super::{Ending, IdentityError, Reload, SpiffeId, TrustBundle, Untrusted, files, pem};

/// What the source is read from.
const FILES: [&str; 3] = [files::BUNDLE, files::INTERMEDIATE, files::INTERMEDIATE_KEY];

/// Gives certificates of this node's workloads, and says whom they believe.
pub trait CaSource: fmt::Debug + Send + Sync {
    /// The roots that are trusted now.
    fn bundle(&self) -> Arc<TrustBundle>;

    /// A new key and certificate of a workload, which hold from `now` for at most `life`.
    fn mint(
        &self,
        id: &SpiffeId,
        now: SystemTime,
        life: Duration,
    ) -> Result<WorkloadCertificate, IdentityError>;

    /// What else ends than the certificates that it makes.
    fn endings(&self) -> Vec<Ending>;

    /// Looks whether there is something new. After [`Reload::Changed`] all certificates are to be made anew.
    fn reload(&self, now: SystemTime) -> Result<Reload, IdentityError>;
}

impl<Source: CaSource + ?Sized> CaSource for Arc<Source> {
    fn bundle(&self) -> Arc<TrustBundle> {
        (**self).bundle()
    }

    fn mint(
        &self,
        id: &SpiffeId,
        now: SystemTime,
        life: Duration,
    ) -> Result<WorkloadCertificate, IdentityError> {
        (**self).mint(id, now, life)
    }

    fn endings(&self) -> Vec<Ending> {
        (**self).endings()
    }

    fn reload(&self, now: SystemTime) -> Result<Reload, IdentityError> {
        (**self).reload(now)
    }
}

/// What a workload shows and proves.
#[derive(Clone)]
pub struct WorkloadCertificate {
    pub(super) id: SpiffeId,
    pub(super) validity: Validity,
    pub(super) key: Arc<CertifiedKey>,
}

impl WorkloadCertificate {
    /// Whose it is.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Its certificates, its own first.
    pub(super) fn shown(&self) -> Vec<ShownCertificate> {
        let shown = self.key.cert.iter().filter_map(|der| {
            let said = Summary::read(der).ok()?;
            Some(ShownCertificate {
                pem: pem::certificate_text(der),
                serial: said.serial.decimal(),
                not_before: said.validity.begin(),
                not_after: said.validity.end(),
            })
        });
        shown.collect()
    }

    /// The last second in which others believe it.
    pub fn not_after(&self) -> SystemTime {
        self.validity.end()
    }
}

/// A certificate for people to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownCertificate {
    /// As PEM.
    pub pem: String,
    /// Its number in decimal digits.
    pub serial: String,
    /// From when it holds.
    pub not_before: SystemTime,
    /// Its last second.
    pub not_after: SystemTime,
}

/// Without the key.
impl fmt::Debug for WorkloadCertificate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "WorkloadCertificate({})", self.id)
    }
}

/// A node's directory, as `sluice ca node` makes it.
pub struct DirectorySource {
    directory: PathBuf,
    current: ArcSwap<Loaded>,
    /// What the files were when they were last read and good.
    seen: Mutex<Stamps>,
}

struct Loaded {
    bundle: Arc<TrustBundle>,
    issuer: IntermediateCertificate,
    certificate: CertificateDer<'static>,
    key: Zeroizing<KeyPair>,
    /// When the node's own certificate holds, which is beside them.
    node: Option<Validity>,
}

impl DirectorySource {
    /// Reads it for the first time. All but the time must be right.
    pub fn open(directory: &Path) -> Result<Self, IdentityError> {
        // What changes after the look is seen at the next one.
        let seen = stamps_of(directory, FILES)?;
        let current = ArcSwap::from_pointee(Loaded::read(directory)?);
        Ok(Self { directory: directory.to_owned(), current, seen: Mutex::new(seen) })
    }
}

impl Loaded {
    fn read(directory: &Path) -> Result<Self, IdentityError> {
        let bundle = TrustBundle::load(&directory.join(files::BUNDLE))?;
        let (file, key_file) = (directory.join(files::INTERMEDIATE), directory.join(files::INTERMEDIATE_KEY));
        let content = |file: &Path, what| IdentityError::Content { file: file.to_owned(), what };
        let certificate = pem::certificate(&files::read(&file)?).map_err(|what| content(&file, what))?;
        let refused = |reason| IdentityError::NotAnIssuer { file: file.clone(), reason };
        let issuer = IntermediateCertificate::read(&certificate).map_err(refused)?;
        if issuer.id.trust_domain() != bundle.trust_domain() {
            return Err(refused(Untrusted::WrongTrustDomain));
        }
        let der =
            pem::private_key(&files::read_secret(&key_file)?).map_err(|what| content(&key_file, what))?;
        let pkcs8 = PrivatePkcs8KeyDer::from(&der[..]);
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8, &rcgen::PKCS_ECDSA_P256_SHA256)
            .map_err(|_| content(&key_file, Content::Key))?;
        let key = Zeroizing::new(key);
        if key.der_bytes() != issuer.public_key {
            return Err(IdentityError::KeyMismatch { key: key_file, certificate: file });
        }
        let node = files::read_optional(&directory.join(files::NODE))?;
        let node = node.and_then(|text| pem::certificate(&text).ok());
        if let Some(own) = node.as_ref().and_then(|der| NodeCertificate::read(der).ok())
            && *own.node.shared() != *issuer.node
        {
            let (found, wanted) = (issuer.node.to_string(), own.node.to_string());
            return Err(IdentityError::OtherNode { file, found, wanted });
        }
        let node = node.and_then(|der| Summary::read(&der).ok()).map(|said| said.validity);
        let loaded = Self { bundle: Arc::new(bundle), issuer, certificate, key, node };
        // Its own end is a moment at which nothing but a wrong root can be wrong.
        loaded.prove(loaded.issuer.validity.end()).map_err(refused)?;
        Ok(loaded)
    }

    /// Whether a certificate that it makes would have a root behind it.
    fn prove(&self, at: SystemTime) -> Result<(), Untrusted> {
        let anchors = self.bundle.anchors(at);
        if anchors.is_empty() {
            return Err(Untrusted::RootNotValid);
        }
        let id = self.issuer.id.clone();
        let term = Term { now: at, life: Duration::ZERO };
        let (leaf, _) = self.issue(&id, term).map_err(|_| Untrusted::Malformed)?;
        let leaf = EndEntityCert::try_from(&leaf).map_err(|error| super::trust::reason(&error))?;
        let since = Duration::from_secs(seconds(at).try_into().unwrap_or(0));
        let (algorithms, time) = (webpki::ALL_VERIFICATION_ALGS, UnixTime::since_unix_epoch(since));
        let between = std::slice::from_ref(&self.certificate);
        leaf.verify_for_usage(algorithms, &anchors, between, time, KeyUsage::server_auth(), None, None)
            .map(|_| ())
            .map_err(|error| super::trust::reason(&error))
    }

    fn issue(
        &self,
        id: &SpiffeId,
        term: Term,
    ) -> Result<(CertificateDer<'static>, Zeroizing<KeyPair>), IdentityError> {
        let key = new_key()?;
        let mut params = term.params()?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![uri(id)?];
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &*self.key)?;
        let leaf = params.signed_by(&*key, &issuer)?;
        Ok((leaf.der().clone(), key))
    }
}

impl CaSource for DirectorySource {
    fn bundle(&self) -> Arc<TrustBundle> {
        Arc::clone(&self.current.load().bundle)
    }

    fn mint(
        &self,
        id: &SpiffeId,
        now: SystemTime,
        life: Duration,
    ) -> Result<WorkloadCertificate, IdentityError> {
        let loaded = self.current.load();
        let issuer = loaded.issuer.validity;
        if issuer.check(now).is_err() {
            let file = self.directory.join(files::INTERMEDIATE);
            return Err(IdentityError::IssuerNotValid { file, from: issuer.begin(), until: issuer.end() });
        }
        if loaded.bundle.has_revoked(&loaded.issuer.serial) {
            return Err(IdentityError::IssuerRevoked { file: self.directory.join(files::INTERMEDIATE) });
        }
        // What outlives its issuer is worth nothing for the rest of its life.
        let life = life.min(issuer.end().duration_since(now).unwrap_or_default());
        let term = Term { now, life };
        let (leaf, key) = loaded.issue(id, term)?;
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialized_der()));
        let signing = rustls::crypto::ring::sign::any_ecdsa_type(&der)
            .map_err(|_| IdentityError::Issue(rcgen::Error::UnsupportedSignatureAlgorithm))?;
        let chain = vec![leaf, loaded.certificate.clone()];
        let validity = Validity { from: seconds(now), until: term.until()? };
        Ok(WorkloadCertificate { id: id.clone(), validity, key: Arc::new(CertifiedKey::new(chain, signing)) })
    }

    fn endings(&self) -> Vec<Ending> {
        let loaded = self.current.load();
        let mut endings = vec![
            Ending::new(files::BUNDLE, loaded.bundle.validity()),
            Ending::new(files::INTERMEDIATE, loaded.issuer.validity),
        ];
        endings.extend(loaded.node.map(|validity| Ending::new(files::NODE, validity)));
        endings
    }

    fn reload(&self, now: SystemTime) -> Result<Reload, IdentityError> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let found = stamps_of(&self.directory, FILES)?;
        if *seen == found {
            return Ok(Reload::Unchanged);
        }
        let fresh = Loaded::read(&self.directory)?;
        let current = self.current.load();
        if fresh.issuer.node != current.issuer.node {
            let file = self.directory.join(files::INTERMEDIATE);
            let (found, wanted) = (fresh.issuer.node.to_string(), current.issuer.node.to_string());
            return Err(IdentityError::OtherNode { file, found, wanted });
        }
        if !fresh.bundle.remembers(&current.bundle) {
            return Err(IdentityError::ListWentBack { file: self.directory.join(files::REVOKED) });
        }
        let validity = fresh.issuer.validity;
        // Where only whom to believe has changed, that does not wait for what this node makes itself.
        if validity.check(now).is_err() && fresh.certificate != current.certificate {
            let file = self.directory.join(files::INTERMEDIATE);
            return Err(IdentityError::IssuerNotValid {
                file,
                from: validity.begin(),
                until: validity.end(),
            });
        }
        self.current.store(Arc::new(fresh));
        *seen = found;
        Ok(Reload::Changed)
    }
}

/// Without the key.
impl fmt::Debug for DirectorySource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "DirectorySource({})", self.directory.display())
    }
}
