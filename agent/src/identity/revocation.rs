//! Which certificates roots have taken back: lists in the standard form (RFC 5280, section 5), each signed by the root that
//! issued what it names. `sluice ca revoke` makes them; they are read beside the bundle.
//!
//! A list names certificates by issuer and serial number, so it says nothing of an identity as such: who was given a new
//! certificate after the old one was taken back is believed again. Lists that are past their next update go on counting.

use std::collections::BTreeMap;

use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::extensions::ParsedExtension;
use x509_parser::oid_registry::OID_SIG_ECDSA_WITH_SHA256;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use super::certificate::PublicKey;
use super::error::{Content, ListFault};
use super::pem;

/// Most lists of a file: one for each root of a bundle, and some of roots that have left it.
const LISTS_MAX: usize = 32;

/// Who may sign a list: a root's name as DER has it, and its key, where it is one that lists may be signed with.
pub(super) type Signer<'a> = (&'a [u8], Option<&'a PublicKey>);

/// All lists of a file whose roots are trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Revocations(Vec<RevocationList>);

/// What one root has taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RevocationList {
    /// The root's name as DER has it.
    pub(super) issuer: Box<[u8]>,
    /// Rises with every list of a root.
    pub(super) number: u64,
    /// Serial numbers without leading zeros, and the second since 1970 in which each was taken back.
    pub(super) serials: BTreeMap<Box<[u8]>, i64>,
}

impl Revocations {
    /// Reads a PEM text. Lists of nobody among `signers` are passed over: a root that has left the bundle has no say.
    pub(super) fn from_pem(text: &[u8], signers: &[Signer<'_>]) -> Result<Self, Content> {
        let ders: Vec<_> = CertificateRevocationListDer::pem_slice_iter(text)
            .collect::<Result<_, _>>()
            .map_err(|error| Content::Pem(pem::said(&error)))?;
        if ders.is_empty() && !text.trim_ascii().is_empty() {
            return Err(Content::NoList);
        }
        Self::from_der(ders.iter().map(|der| &**der), signers)
    }

    /// Reads lists in DER; see [`Self::from_pem`].
    pub(super) fn from_der<'a>(
        ders: impl Iterator<Item = &'a [u8]>,
        signers: &[Signer<'_>],
    ) -> Result<Self, Content> {
        let mut lists: Vec<RevocationList> = Vec::new();
        for (index, der) in ders.enumerate() {
            if index >= LISTS_MAX {
                return Err(Content::TooManyLists { max: LISTS_MAX });
            }
            let fault = |fault| Content::List(index + 1, fault);
            let Some(list) = RevocationList::read(der, signers).map_err(fault)? else { continue };
            if lists.iter().any(|other| other.issuer == list.issuer) {
                return Err(fault(ListFault::Second));
            }
            lists.push(list);
        }
        Ok(Self(lists))
    }

    /// Whether a root of that name has taken back the certificate of that number.
    pub(super) fn names(&self, issuer: &[u8], serial: &[u8]) -> bool {
        let list = self.of(issuer);
        list.is_some_and(|list| list.serials.contains_key(trimmed(serial)))
    }

    /// The list of a root.
    pub(super) fn of(&self, issuer: &[u8]) -> Option<&RevocationList> {
        self.0.iter().find(|list| *list.issuer == *issuer)
    }

    /// How many certificates are named.
    pub(super) fn len(&self) -> usize {
        self.0.iter().map(|list| list.serials.len()).sum()
    }

    /// Whether nothing that `earlier` says was unsaid for roots of these names: no list is gone, older, or another one of the same
    /// number that lacks something.
    pub(super) fn follows<'a>(&self, earlier: &Self, mut roots: impl Iterator<Item = &'a [u8]>) -> bool {
        roots.all(|root| match (self.of(root), earlier.of(root)) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(list), Some(before)) if list.number == before.number => {
                before.serials.keys().all(|serial| list.serials.contains_key(serial))
            }
            (Some(list), Some(before)) => list.number > before.number,
        })
    }
}

impl RevocationList {
    /// `None`: none of the signers' names is on it.
    fn read(der: &[u8], signers: &[Signer<'_>]) -> Result<Option<Self>, ListFault> {
        let (rest, list) = CertificateRevocationList::from_der(der).map_err(|_| ListFault::Der)?;
        if !rest.is_empty() {
            return Err(ListFault::Der);
        }
        let issuer = list.issuer().as_raw();
        let Some((_, key)) = signers.iter().find(|(name, _)| *name == issuer) else { return Ok(None) };
        if list.signature_algorithm.algorithm != OID_SIG_ECDSA_WITH_SHA256 {
            return Err(ListFault::Signature);
        }
        let key = key.ok_or(ListFault::Signature)?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key)
            .verify(list.tbs_cert_list.as_ref(), &list.signature_value.data)
            .map_err(|_| ListFault::Signature)?;
        // A part of a list, or one of other issuers' certificates, says so in an extension that is critical.
        let entries = list.iter_revoked_certificates().flat_map(|revoked| revoked.extensions());
        let mut extensions = list.extensions().iter().chain(entries);
        let known = |parsed: &ParsedExtension<'_>| {
            matches!(parsed, ParsedExtension::ReasonCode(_) | ParsedExtension::InvalidityDate(_))
        };
        if extensions.any(|extension| extension.critical && !known(extension.parsed_extension())) {
            return Err(ListFault::Critical);
        }
        let number = list.crl_number().and_then(|number| u64::try_from(number).ok());
        let serials = list
            .iter_revoked_certificates()
            .map(|revoked| (trimmed(revoked.raw_serial()).into(), revoked.revocation_date.timestamp()));
        Ok(Some(Self {
            issuer: issuer.into(),
            number: number.ok_or(ListFault::Number)?,
            serials: serials.collect(),
        }))
    }
}

/// A serial number without leading zeros: whoever writes one may write it longer than it has to be.
pub(super) fn trimmed(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    &serial[zeros..]
}
