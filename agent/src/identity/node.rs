//! The node's own certificate and key.

use std::fmt;
use std::path::Path;
use std::time::SystemTime;

use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};

use super::certificate::{NodeCertificate, Serial, Validity};
use super::error::Content;
use super::signature::{CERTIFICATE_MAX_BYTES, signed_form};
use super::{IdentityError, NodeName, Signature, SpiffeId, TrustBundle, TrustDomain, Untrusted, files, pem};

/// What a node signs with, and as whom.
pub struct NodeIdentity {
    id: SpiffeId,
    name: NodeName,
    validity: Validity,
    certificate: Box<[u8]>,
    key: EcdsaKeyPair,
}

impl NodeIdentity {
    /// Reads `node.pem` and `node.key` of a node's directory. Key and certificate must fit, and whoever trusts the
    /// `bundle.pem` beside them must believe this node at `now`.
    pub fn load(directory: &Path, now: SystemTime) -> Result<Self, IdentityError> {
        let bundle = TrustBundle::load(&directory.join(files::BUNDLE))?;
        let identity = Self::read(directory)?;
        identity.prove(directory, &bundle, now)?;
        Ok(identity)
    }

    /// Reads certificate and key, whoever believes them.
    pub(super) fn read(directory: &Path) -> Result<Self, IdentityError> {
        let (certificate_file, key_file) = (directory.join(files::NODE), directory.join(files::NODE_KEY));
        let content = |what| IdentityError::Content { file: certificate_file.clone(), what };
        let der = pem::certificate(&files::read(&certificate_file)?).map_err(content)?;
        if der.len() > CERTIFICATE_MAX_BYTES {
            let what = Content::LargeCertificate { bytes: der.len(), max: CERTIFICATE_MAX_BYTES };
            return Err(content(what));
        }
        let said = NodeCertificate::read(&der).map_err(|reason| content(Content::NotNode(reason)))?;
        let key = read_key(&key_file)?;
        if key.public_key().as_ref() != said.public_key {
            return Err(IdentityError::KeyMismatch { key: key_file, certificate: certificate_file });
        }
        let NodeCertificate { id, node, validity, .. } = said;
        Ok(Self { id, name: node, validity, certificate: der.as_ref().into(), key })
    }

    /// Signs and verifies, so that what nobody would believe is found here and not on the other nodes.
    pub(super) fn prove(
        &self,
        directory: &Path,
        bundle: &TrustBundle,
        now: SystemTime,
    ) -> Result<(), IdentityError> {
        bundle.verify(now, b"", &self.sign(b"")).map(|_| ()).map_err(|reason| IdentityError::NotTrusted {
            certificate: directory.join(files::NODE),
            bundle: directory.join(files::BUNDLE),
            reason,
        })
    }

    /// Whether the certificate holds at a time: [`Untrusted::Expired`] or [`Untrusted::NotYetValid`] where not. What
    /// is signed all the same is believed by nobody.
    pub fn check(&self, now: SystemTime) -> Result<(), Untrusted> {
        self.validity.check(now)
    }

    /// Whether a root has taken the certificate back.
    pub(super) fn is_revoked(&self, bundle: &TrustBundle) -> bool {
        Serial::read(&self.certificate).is_ok_and(|serial| bundle.has_revoked(&serial))
    }

    /// Signs a message. The message may be of any length; only its hash goes through the key.
    pub fn sign(&self, message: &[u8]) -> Signature {
        // Random numbers come from the kernel, which gives them for as long as it runs once it has begun to.
        let scalars = self
            .key
            .sign(&SystemRandom::new(), &signed_form(message))
            .expect("getrandom works: it did when the key was read");
        Signature::new(&self.certificate, scalars.as_ref()).expect("sizes were checked when it was loaded")
    }

    /// The node's name.
    pub fn name(&self) -> &NodeName {
        &self.name
    }

    /// The node's whole id.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Its trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        self.id.trust_domain()
    }

    /// The last second in which others believe it.
    pub fn not_after(&self) -> SystemTime {
        self.validity.end()
    }
}

/// Without the key.
impl fmt::Debug for NodeIdentity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "NodeIdentity({})", self.id)
    }
}

/// Reads a key that not everybody may read.
pub(super) fn read_key(file: &Path) -> Result<EcdsaKeyPair, IdentityError> {
    let content = |what| IdentityError::Content { file: file.to_owned(), what };
    let der = pem::private_key(&files::read_secret(file)?).map_err(content)?;
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der, &SystemRandom::new())
        .map_err(|_| content(Content::Key))
}
