//! What a CA has issued, a line of JSON each in its directory: what was given to a node can be taken back when nobody has the
//! node's files any more.

use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::certificate::{Serial, Summary, moment, seconds};
use super::error::Content;
use super::files::{self, Writing};
use super::revocation::trimmed;
use super::{Authority, IdentityError};

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum IssuedKind {
    Node,
    Intermediate,
    Operator,
}

impl IssuedKind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Intermediate => "intermediate",
            Self::Operator => "operator",
        }
    }
}

/// A certificate that was given out. Fields that this version does not know are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Issued {
    pub(super) kind: IssuedKind,
    /// The node's or the operator's name.
    pub(super) name: String,
    /// Its number in hexadecimal digits.
    pub(super) serial: String,
    /// The number of the root that issued it.
    pub(super) root: String,
    /// From when to when it holds, in seconds since 1970.
    pub(super) not_before: i64,
    pub(super) not_after: i64,
}

impl Issued {
    /// What was issued under a root's certificate.
    pub(super) fn of(kind: IssuedKind, name: &str, (root, certificate): (&[u8], &[u8])) -> Self {
        let said = Summary::read(certificate).expect("it was just made");
        let root = Serial::read(root).expect("it was read as a root");
        Self {
            kind,
            name: name.to_owned(),
            serial: hex(&said.serial.number),
            root: hex(&root.number),
            not_before: said.validity.from,
            not_after: said.validity.until,
        }
    }

    /// Whether its time is not over.
    pub(super) fn counts(&self, now: SystemTime) -> bool {
        self.not_after >= seconds(now)
    }

    /// Its last second.
    pub(super) fn end(&self) -> SystemTime {
        moment(self.not_after)
    }
}

impl Authority {
    /// What was revoked, for whoever gets a bundle.
    pub(super) fn list(&self) -> Result<Option<Writing>, IdentityError> {
        let text = files::read_optional(&self.directory.join(files::REVOKED))?;
        Ok(text.map(|text| Writing::public(files::REVOKED, String::from_utf8_lossy(&text).into_owned())))
    }
}

/// Writes down what is about to be given out, so that it can be taken back when its files are gone.
pub(super) fn append(directory: &Path, issued: &[Issued]) -> Result<(), IdentityError> {
    let mut lines = String::new();
    for one in issued {
        lines.push_str(&serde_json::to_string(one).expect("strings and numbers"));
        lines.push('\n');
    }
    files::append(&directory.join(files::ISSUED), &lines)
}

/// All that was given out since CAs write it down, in order.
pub(super) fn read(directory: &Path) -> Result<Vec<Issued>, IdentityError> {
    let file = directory.join(files::ISSUED);
    let Some(text) = files::read_lines(&file)? else { return Ok(Vec::new()) };
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let read = lines.map(|(index, line)| serde_json::from_str(line).map_err(|_| index + 1));
    read.collect::<Result<_, _>>()
        .map_err(|line| IdentityError::Content { file, what: Content::Ledger { line } })
}

/// A number as openssl prints it.
pub(super) fn hex(number: &[u8]) -> String {
    use std::fmt::Write as _;
    trimmed(number).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02X}");
        text
    })
}

/// The number that such digits say; colons between them are passed over.
pub(super) fn unhex(text: &str) -> Option<Box<[u8]>> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
    let pair = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
    let even =
        !digits.is_empty() && digits.len().is_multiple_of(2) && digits.iter().all(u8::is_ascii_hexdigit);
    let bytes: Vec<u8> = even.then(|| digits.chunks(2).map(pair).collect::<Option<_>>())??;
    Some(trimmed(&bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_and_read() {
        let check = |text: &str, expected: Option<&[u8]>| {
            assert_eq!(unhex(text).as_deref(), expected, "{text}");
        };
        check("0A0B", Some(&[0x0a, 0x0b]));
        check("00:0a:ff", Some(&[0x0a, 0xff]));
        for bad in ["", "A", "0G", "+1", ":", "0x10", "ä"] {
            check(bad, None);
        }
        assert_eq!(hex(&[0, 0x0a, 0xff]), "0AFF");
    }
}
