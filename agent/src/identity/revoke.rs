//! Taking back what a root has issued: the lists that `sluice ca revoke` makes. A root in rotation goes on signing lists until
//! it has left the bundle.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rcgen::{CertificateRevocationListParams, Issuer, KeyIdMethod, RevokedCertParams, SerialNumber};
use time::OffsetDateTime;

use super::certificate::{Serial, seconds};
use super::files::{self, Existing, Writing};
use super::ledger::{self, IssuedKind};
use super::revocation::{Revocations, trimmed};
use super::{Authority, IdentityError, NodeName, OperatorName, pem};

/// Whose certificates are taken back.
#[derive(Debug, Clone)]
pub enum Target {
    /// All that a node was given and whose time is not over: it can neither sign tables nor make certificates any more.
    Node(NodeName),
    /// All that an operator was given, ever.
    Operator(OperatorName),
    /// Those in a file.
    Certificate(PathBuf),
    /// The one of that number in hexadecimal digits.
    Serial(String),
}

/// What is on the lists now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The numbers that were not on them before.
    pub added: Vec<String>,
    /// How many certificates are on them.
    pub count: usize,
}

/// A number of a certificate, with the root that gave it: an index into [`Authority::signers`].
type Numbered = (usize, Box<[u8]>);

impl Authority {
    /// Takes certificates back and writes `revoked.crl`. Where all are on it already, it is left alone.
    pub fn revoke(&self, target: &Target, now: SystemTime) -> Result<Listed, IdentityError> {
        let (current, others) = (self, self.others()?);
        let signers: Vec<&Self> = std::iter::once(current).chain(&others).collect();
        let wanted = self.wanted(target, &signers, now)?;
        let before = self.revocations(&signers)?;
        let is_new = |(root, number): &&Numbered| !before.names(&signers[*root].subject, number);
        let added: Vec<String> =
            wanted.iter().filter(is_new).map(|(_, number)| ledger::hex(number)).collect();
        if added.is_empty() {
            return Ok(Listed { added, count: before.len() });
        }
        let over = self.over(now);
        let (mut text, mut count) = (String::new(), 0);
        for (index, root) in signers.iter().enumerate() {
            let list = before.of(&root.subject);
            let mut serials = list.map(|list| list.serials.clone()).unwrap_or_default();
            serials.retain(|number, _| !over.contains(&ledger::hex(number)));
            for (_, number) in wanted.iter().filter(|(root, _)| *root == index) {
                serials.entry(number.clone()).or_insert(seconds(now));
            }
            if serials.is_empty() {
                continue;
            }
            count += serials.len();
            text.push_str(&root.list_of(&serials, list.map_or(0, |list| list.number) + 1, now)?);
        }
        let contents = [Writing::public(files::REVOKED, text)];
        files::write_all(&self.directory, &contents, Existing::Replace)?;
        Ok(Listed { added, count })
    }

    /// The roots of a rotation under way, whose keys are here too.
    pub(super) fn others(&self) -> Result<Vec<Self>, IdentityError> {
        let named = [(files::OLD_ROOT, files::OLD_ROOT_KEY), (files::NEXT_ROOT, files::NEXT_ROOT_KEY)];
        let there = named.into_iter().filter(|(root, _)| self.directory.join(root).exists());
        there.map(|names| Self::load_named(&self.directory, names)).collect()
    }

    /// What these roots have taken back until now.
    pub(super) fn revocations(&self, signers: &[&Self]) -> Result<Revocations, IdentityError> {
        let file = self.directory.join(files::REVOKED);
        let Some(text) = files::read_optional(&file)? else { return Ok(Revocations::default()) };
        let signers: Vec<_> = signers.iter().map(|root| (&*root.subject, Some(&root.public_key))).collect();
        Revocations::from_pem(&text, &signers).map_err(|what| IdentityError::Content { file, what })
    }

    fn wanted(
        &self,
        target: &Target,
        signers: &[&Self],
        now: SystemTime,
    ) -> Result<Vec<Numbered>, IdentityError> {
        match target {
            Target::Node(node) => {
                let of_node = |kind| kind != IssuedKind::Operator;
                self.given_to((&node.shared(), "node"), of_node, signers, now)
            }
            Target::Operator(operator) => {
                let of_operator = |kind| kind == IssuedKind::Operator;
                self.given_to((&operator.shared(), "operator"), of_operator, signers, now)
            }
            Target::Certificate(file) => issued_by(file, signers),
            Target::Serial(digits) => {
                let number = ledger::unhex(digits)
                    .ok_or_else(|| IdentityError::NotASerial { text: digits.clone() })?;
                // Without a certificate it may be of any root that is here.
                Ok((0..signers.len()).map(|root| (root, number.clone())).collect())
            }
        }
    }

    /// The numbers of nodes' certificates whose time is over: nobody believes them, on a list or not. An operator's seals count
    /// after that, and say themselves when they were made. Where what was issued can't be read all stay on the list, and no more
    /// comes of it.
    fn over(&self, now: SystemTime) -> BTreeSet<String> {
        let issued = ledger::read(&self.directory).unwrap_or_default().into_iter();
        let over = issued.filter(|issued| issued.kind != IssuedKind::Operator && !issued.counts(now));
        over.map(|issued| issued.serial).collect()
    }

    /// Whether this CA has written down that it gave out a number, in hexadecimal digits. CAs did not always write it down.
    pub fn has_issued(&self, digits: &str) -> Result<bool, IdentityError> {
        let number = ledger::unhex(digits);
        let issued = ledger::read(&self.directory)?;
        Ok(issued.iter().any(|issued| ledger::unhex(&issued.serial) == number))
    }

    fn given_to(
        &self,
        (name, what): (&str, &'static str),
        kind: impl Fn(IssuedKind) -> bool,
        signers: &[&Self],
        now: SystemTime,
    ) -> Result<Vec<Numbered>, IdentityError> {
        let roots: Vec<String> = signers.iter().map(|root| root.own_number()).collect();
        let mut found = Vec::new();
        for issued in ledger::read(&self.directory)? {
            let root = roots.iter().position(|root| *root == issued.root);
            let number = ledger::unhex(&issued.serial);
            if let (Some(root), Some(number)) = (root, number)
                && kind(issued.kind)
                && issued.name == name
                && (issued.kind == IssuedKind::Operator || issued.counts(now))
            {
                found.push((root, number));
            }
        }
        if found.is_empty() {
            let file = self.directory.join(files::ISSUED);
            return Err(IdentityError::NothingIssued { file, what, name: name.to_owned() });
        }
        Ok(found)
    }

    /// The number of the root's own certificate.
    pub(super) fn own_number(&self) -> String {
        Serial::read(&self.certificate).map(|serial| ledger::hex(&serial.number)).unwrap_or_default()
    }

    pub(super) fn list_of(
        &self,
        serials: &BTreeMap<Box<[u8]>, i64>,
        number: u64,
        now: SystemTime,
    ) -> Result<String, IdentityError> {
        let moment =
            |seconds| OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let revoked = serials.iter().map(|(serial, at)| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: moment(*at),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: moment(seconds(now)),
            // No list follows by itself: this one counts for as long as its root does.
            next_update: moment(seconds(self.not_after())),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &*self.key)?;
        Ok(list.signed_by(&issuer)?.pem()?)
    }
}

/// The certificates of a file, each of which one of the roots must have issued.
fn issued_by(file: &Path, signers: &[&Authority]) -> Result<Vec<Numbered>, IdentityError> {
    let content = |what| IdentityError::Content { file: file.to_owned(), what };
    let certificates = pem::certificates(&files::read(file)?).map_err(content)?;
    let numbered = certificates.iter().map(|der| {
        let serial = Serial::read(der).ok()?;
        // A root is let go by its bundle, and by no list.
        if signers.iter().any(|root| *root.certificate == **der) {
            return None;
        }
        let root = signers.iter().position(|root| root.subject == serial.issuer)?;
        Some((root, trimmed(&serial.number).into()))
    });
    let numbered: Option<Vec<_>> = numbered.collect();
    numbered.ok_or_else(|| IdentityError::NotIssuedHere { file: file.to_owned() })
}
