//! What a directory of `sluice ca` holds: whose, from when to when, and what is wrong with it.

use std::path::Path;
use std::time::SystemTime;

use serde::Serialize;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use super::certificate::{Serial, Summary, Validity};
use super::node::read_key;
use super::{IdentityError, TrustBundle, Untrusted, files, ledger, pem, succession};
use crate::telemetry::rfc3339;

/// Certificates, and the keys that belong beside them.
const CERTIFICATES: [(&str, Option<&str>); 7] = [
    (files::ROOT, Some(files::ROOT_KEY)),
    (files::OLD_ROOT, Some(files::OLD_ROOT_KEY)),
    (files::NEXT_ROOT, Some(files::NEXT_ROOT_KEY)),
    (files::BUNDLE, None),
    (files::NODE, Some(files::NODE_KEY)),
    (files::INTERMEDIATE, Some(files::INTERMEDIATE_KEY)),
    (files::OPERATOR, Some(files::OPERATOR_KEY)),
];

/// Those that a root of the bundle beside them has to have issued.
const ISSUED_BY_ROOTS: [&str; 3] = [files::NODE, files::INTERMEDIATE, files::OPERATOR];

/// One certificate, or list, or what is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Holding {
    /// The file; `issued`: it was given out.
    pub file: String,
    /// Who it names: URIs and DNS names; of a list, how many certificates are on it.
    pub who: String,
    /// The certificate's number in hexadecimal digits, of a list its own.
    pub serial: String,
    /// From when it holds, as RFC 3339 has it.
    pub not_before: String,
    /// Its last second.
    pub not_after: String,
    /// `valid`, `expired`, `not_yet_valid`, `revoked`, or what is wrong with it.
    pub state: String,
}

/// The state of a file that holds now, and of a list.
const GOOD: [&str; 2] = ["valid", "list"];
/// Where what was given out stands in the place of a file.
const GIVEN_OUT: &str = "issued";

impl Holding {
    /// Whether it is as it should be. What was given out may have ended, or be revoked: that is its way.
    pub fn is_good(&self) -> bool {
        self.file == GIVEN_OUT || GOOD.contains(&self.state.as_str())
    }
}

/// Looks at the files of a directory, and at what a CA has given out. Nothing of it has to be good.
pub fn inventory(directory: &Path, now: SystemTime) -> Result<Vec<Holding>, IdentityError> {
    std::fs::read_dir(directory)
        .map_err(|source| IdentityError::Read { file: directory.to_owned(), source })?;
    let mut found = Vec::new();
    let bundle = match TrustBundle::load(&directory.join(files::BUNDLE)) {
        Ok(bundle) => Some(bundle),
        Err(error) => {
            found.push(broken(files::BUNDLE, error.to_string()));
            None
        }
    };
    for (file, key) in CERTIFICATES {
        if directory.join(file).exists() {
            found.extend(certificates(directory, (file, key), bundle.as_ref(), now));
        }
    }
    found.extend(lists(directory)?);
    match ledger::read(directory) {
        Ok(issued) => found.extend(issued.iter().map(|one| given(one, directory, bundle.as_ref(), now))),
        Err(error) => found.push(broken(files::ISSUED, error.to_string())),
    }
    Ok(found)
}

/// The step of a rotation that comes next in a CA's directory; `None`: none is under way.
pub fn next_step(directory: &Path) -> Option<&'static str> {
    succession::step(directory)
}

fn broken(file: &str, state: String) -> Holding {
    let none = String::new;
    let (file, who) = (file.to_owned(), none());
    Holding { file, who, serial: none(), not_before: none(), not_after: none(), state }
}

fn state(validity: Validity, now: SystemTime, revoked: bool) -> &'static str {
    match validity.check(now) {
        _ if revoked => Untrusted::Revoked.name(),
        Ok(()) => GOOD[0],
        Err(why) => why.name(),
    }
}

fn certificates(
    directory: &Path,
    (file, key): (&str, Option<&str>),
    bundle: Option<&TrustBundle>,
    now: SystemTime,
) -> Vec<Holding> {
    let path = directory.join(file);
    let read = files::read(&path).and_then(|text| {
        pem::certificates(&text).map_err(|what| IdentityError::Content { file: path.clone(), what })
    });
    let ders = match read {
        Ok(ders) => ders,
        Err(error) => return vec![broken(file, error.to_string())],
    };
    let holding = |der: &[u8]| {
        let Ok(said) = Summary::read(der) else { return broken(file, "malformed".to_owned()) };
        let revoked = bundle.is_some_and(|bundle| bundle.has_revoked(&said.serial));
        let stranger = ISSUED_BY_ROOTS.contains(&file)
            && bundle.is_some_and(|bundle| !bundle.names_issuer_of(&said.serial));
        let state = match state(said.validity, now, revoked) {
            good if good == GOOD[0] && stranger => Untrusted::UnknownIssuer.name(),
            state => state,
        };
        let mut state = state.to_owned();
        if let Some(wrong) = key.and_then(|key| key_fault(directory, key, &said)) {
            state = format!("{state}, {wrong}");
        }
        Holding {
            file: file.to_owned(),
            who: said.names.join(" "),
            serial: ledger::hex(&said.serial.number),
            not_before: rfc3339(said.validity.begin()).to_string(),
            not_after: rfc3339(said.validity.end()).to_string(),
            state,
        }
    };
    ders.iter().map(|der| holding(der)).collect()
}

/// What is wrong with a certificate's key.
fn key_fault(directory: &Path, file: &str, certificate: &Summary) -> Option<String> {
    use ring::signature::KeyPair as _;
    match read_key(&directory.join(file)) {
        Err(IdentityError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Some(format!("without {file}"))
        }
        Err(error) => Some(error.to_string()),
        Ok(key) => {
            let fits =
                certificate.public_key.is_some_and(|public_key| key.public_key().as_ref() == public_key);
            (!fits).then(|| format!("{file} is another one's"))
        }
    }
}

/// The lists of revoked certificates, by the roots that signed them.
fn lists(directory: &Path) -> Result<Vec<Holding>, IdentityError> {
    use rustls_pki_types::CertificateRevocationListDer;
    use rustls_pki_types::pem::PemObject;
    let Some(text) = files::read_optional(&directory.join(files::REVOKED))? else { return Ok(Vec::new()) };
    let list = |der: Result<CertificateRevocationListDer<'_>, _>| {
        let der = der.ok()?;
        let (_, list) = CertificateRevocationList::from_der(&der).ok()?;
        let until = list.next_update().map(|until| until.timestamp());
        let validity = Validity { from: list.last_update().timestamp(), until: until.unwrap_or(i64::MAX) };
        Some(Holding {
            file: files::REVOKED.to_owned(),
            who: format!("{} of {}", list.iter_revoked_certificates().count(), list.issuer()),
            serial: list.crl_number().map(ToString::to_string).unwrap_or_default(),
            not_before: rfc3339(validity.begin()).to_string(),
            not_after: rfc3339(validity.end()).to_string(),
            state: GOOD[1].to_owned(),
        })
    };
    let read = |der| list(der).unwrap_or_else(|| broken(files::REVOKED, "malformed".to_owned()));
    Ok(CertificateRevocationListDer::pem_slice_iter(&text).map(read).collect())
}

/// What a CA has given out, by its own word.
fn given(
    issued: &ledger::Issued,
    directory: &Path,
    bundle: Option<&TrustBundle>,
    now: SystemTime,
) -> Holding {
    let number = ledger::unhex(&issued.serial).unwrap_or_default();
    let root = [files::ROOT, files::OLD_ROOT, files::NEXT_ROOT].into_iter().find_map(|file| {
        let der = pem::certificate(&files::read(&directory.join(file)).ok()?).ok()?;
        let serial = Serial::read(&der).ok()?;
        (ledger::hex(&serial.number) == issued.root).then_some(serial.issuer)
    });
    let validity = Validity { from: issued.not_before, until: issued.not_after };
    let state = match root {
        None => "of a root that is gone",
        Some(by) => {
            let serial = Serial { issuer: by, number };
            state(validity, now, bundle.is_some_and(|bundle| bundle.has_revoked(&serial)))
        }
    };
    Holding {
        file: GIVEN_OUT.to_owned(),
        who: format!("{} {}", issued.kind.name(), issued.name),
        serial: issued.serial.clone(),
        not_before: rfc3339(validity.begin()).to_string(),
        not_after: rfc3339(issued.end()).to_string(),
        state: state.to_owned(),
    }
}
