//! An operator's certificate and key: what seals the documents of a cluster.

use std::fmt;
use std::path::Path;
use std::time::SystemTime;

use ring::rand::SystemRandom;
use ring::signature::{EcdsaKeyPair, KeyPair};

use super::certificate::{OperatorCertificate, Validity};
use super::error::Content;
use super::node::read_key;
use super::signature::{CERTIFICATE_MAX_BYTES, sealed_form};
use super::{IdentityError, OperatorName, Signature, SpiffeId, TrustBundle, files, pem};

/// What an operator seals with, as whom, and whom it trusts.
pub struct OperatorIdentity {
    id: SpiffeId,
    name: OperatorName,
    validity: Validity,
    certificate: Box<[u8]>,
    key: EcdsaKeyPair,
    bundle: TrustBundle,
}

impl OperatorIdentity {
    /// Reads `operator.pem`, `operator.key` and `bundle.pem` of an operator's directory. Key and certificate must fit, and
    /// whoever trusts the bundle must believe a seal that is made at `now`.
    pub fn load(directory: &Path, now: SystemTime) -> Result<Self, IdentityError> {
        let bundle = TrustBundle::load(&directory.join(files::BUNDLE))?;
        let (certificate_file, key_file) =
            (directory.join(files::OPERATOR), directory.join(files::OPERATOR_KEY));
        let content = |what| IdentityError::Content { file: certificate_file.clone(), what };
        let der = pem::certificate(&files::read(&certificate_file)?).map_err(content)?;
        if der.len() > CERTIFICATE_MAX_BYTES {
            let what = Content::LargeCertificate { bytes: der.len(), max: CERTIFICATE_MAX_BYTES };
            return Err(content(what));
        }
        let said = OperatorCertificate::read(&der).map_err(|reason| content(Content::NotOperator(reason)))?;
        let key = read_key(&key_file)?;
        if key.public_key().as_ref() != said.public_key {
            return Err(IdentityError::KeyMismatch { key: key_file, certificate: certificate_file });
        }
        let OperatorCertificate { id, operator, validity, .. } = said;
        let certificate = der.as_ref().into();
        let identity = Self { id, name: operator, validity, certificate, key, bundle };
        // What nobody would believe is found here and not on the nodes.
        identity.bundle.verify_seal(now, b"", &identity.seal(b"")).map_err(|reason| {
            let bundle = directory.join(files::BUNDLE);
            IdentityError::NotTrusted { certificate: certificate_file, bundle, reason }
        })?;
        Ok(identity)
    }

    /// Seals a message of any length.
    pub fn seal(&self, message: &[u8]) -> Signature {
        let scalars = self
            .key
            .sign(&SystemRandom::new(), &sealed_form(message))
            .expect("getrandom works: it did when the key was read");
        Signature::new(&self.certificate, scalars.as_ref()).expect("sizes were checked when it was loaded")
    }

    /// Whether this operator's present certificate made a signature.
    pub fn made(&self, signature: &Signature) -> bool {
        signature.certificate() == &*self.certificate
    }

    /// Whom this operator trusts: what other operators sealed is checked by it.
    pub fn bundle(&self) -> &TrustBundle {
        &self.bundle
    }

    /// The operator's name.
    pub fn name(&self) -> &OperatorName {
        &self.name
    }

    /// The operator's whole id.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The last second in which it may seal.
    pub fn not_after(&self) -> SystemTime {
        self.validity.end()
    }
}

/// Without the key.
impl fmt::Debug for OperatorIdentity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "OperatorIdentity({})", self.id)
    }
}
