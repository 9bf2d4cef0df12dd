//! One root after another: the next one is in bundles before it issues anything, and the old one is until nothing of it is
//! needed. Each step is one call, and between them files go to the nodes.
//!
//! ```text
//! root ──prepare──▶ root + next ──sign──▶ old + root ──finish──▶ root
//!        (bundle: both)          (bundle: both)        (bundle: the new one)
//! ```

use std::collections::BTreeSet;
use std::path::Path;
use std::time::SystemTime;

use super::authority::{Term, new_root};
use super::files::{self, Existing, Writing};
use super::ledger::{self, IssuedKind};
use super::{Authority, IdentityError};

const FINISH_FIRST: &str = "the root before it is still in bundles: `sluice ca rotate finish` first";
const SIGN_FIRST: &str =
    "a next root is prepared already: `sluice ca rotate sign` makes it the one that issues";

impl Authority {
    /// Makes the next root and puts it into the bundle, beside the one that goes on issuing.
    pub fn prepare_next(&self, term: Term) -> Result<SystemTime, IdentityError> {
        files::refuse_existing(&self.directory, &[files::OLD_ROOT, files::OLD_ROOT_KEY], FINISH_FIRST)?;
        files::refuse_existing(&self.directory, &[files::NEXT_ROOT], SIGN_FIRST)?;
        let (key, text) = new_root(self.trust_domain(), term)?;
        let bundle = format!("{}{text}", self.own_text());
        let contents = [
            Writing::secret(files::NEXT_ROOT_KEY, key),
            Writing::public(files::NEXT_ROOT, text),
            Writing::public(files::BUNDLE, bundle),
        ];
        files::write_all(&self.directory, &contents, Existing::Replace)?;
        Ok(self.next()?.not_after())
    }

    /// Lets the next root issue from now on. The old one stays in the bundle, and takes back what it has issued.
    pub fn promote_next(&self) -> Result<Self, IdentityError> {
        files::refuse_existing(&self.directory, &[files::OLD_ROOT, files::OLD_ROOT_KEY], FINISH_FIRST)?;
        let next = self.next()?;
        let contents = [
            Writing::secret(files::OLD_ROOT_KEY, self.key_text()),
            Writing::public(files::OLD_ROOT, self.own_text()),
            Writing::secret(files::ROOT_KEY, next.key_text()),
            Writing::public(files::ROOT, next.own_text()),
        ];
        files::write_all(&self.directory, &contents, Existing::Replace)?;
        files::remove(&self.directory, &[files::NEXT_ROOT_KEY, files::NEXT_ROOT])?;
        Self::load(&self.directory)
    }

    /// Lets the old root go: out of the bundle, and its key out of the directory. Refused while somebody has only certificates
    /// of that root whose time is not over, unless that was asked for.
    pub fn retire_old(&self, now: SystemTime, left: LeftBehind) -> Result<(), IdentityError> {
        let old = self.directory.join(files::OLD_ROOT);
        if !old.exists() {
            return Err(IdentityError::NoRotation {
                file: old,
                advice: "`sluice ca rotate sign` comes before",
            });
        }
        let names = self.left_behind(now)?;
        if left == LeftBehind::Nobody && !names.is_empty() {
            let names = names.into_iter().collect::<Vec<_>>().join(", ");
            return Err(IdentityError::LeftBehind { file: old, names });
        }
        let mut contents = vec![Writing::public(files::BUNDLE, self.own_text())];
        let list = self.revocations(&[self])?;
        if let Some(list) = list.of(&self.subject) {
            contents
                .push(Writing::public(files::REVOKED, self.list_of(&list.serials, list.number + 1, now)?));
        }
        files::write_all(&self.directory, &contents, Existing::Replace)?;
        if list.of(&self.subject).is_none() {
            files::remove(&self.directory, &[files::REVOKED])?;
        }
        files::remove(&self.directory, &[files::OLD_ROOT_KEY, files::OLD_ROOT])
    }

    /// Who has certificates of other roots than this one that were not taken back, and none of this.
    pub(super) fn left_behind(&self, now: SystemTime) -> Result<BTreeSet<String>, IdentityError> {
        let (own, others) = (self.own_number(), self.others()?);
        let roots: Vec<&Self> = std::iter::once(self).chain(&others).collect();
        let revoked = self.revocations(&roots)?;
        let is_revoked = |number: &str| {
            let number = ledger::unhex(number);
            number.is_some_and(|number| roots.iter().any(|root| revoked.names(&root.subject, &number)))
        };
        let (mut renewed, mut others) = (BTreeSet::new(), BTreeSet::new());
        let there = ledger::read(&self.directory)?.into_iter();
        for issued in there.filter(|issued| issued.counts(now) && !is_revoked(&issued.serial)) {
            let who = (issued.kind.name(), issued.name.clone());
            if issued.root == own {
                renewed.insert(who);
            } else {
                others.insert(who);
            }
        }
        // A node has certificates of two kinds.
        let who = |kind| if kind == IssuedKind::Operator.name() { kind } else { IssuedKind::Node.name() };
        Ok(others.difference(&renewed).map(|(kind, name)| format!("{} {name}", who(kind))).collect())
    }

    fn next(&self) -> Result<Self, IdentityError> {
        let file = self.directory.join(files::NEXT_ROOT);
        if !file.exists() {
            return Err(IdentityError::NoRotation {
                file,
                advice: "`sluice ca rotate prepare` comes before",
            });
        }
        Self::load_named(&self.directory, (files::NEXT_ROOT, files::NEXT_ROOT_KEY))
    }
}

/// Whether anybody may be left without a certificate that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftBehind {
    /// That is an error.
    Nobody,
    /// It was asked for.
    Asked,
}

/// Which step of a rotation comes next in a CA's directory, in one word.
pub(super) fn step(directory: &Path) -> Option<&'static str> {
    let there = |name: &str| directory.join(name).exists();
    if there(files::OLD_ROOT) {
        Some("finish")
    } else if there(files::NEXT_ROOT) {
        Some("sign")
    } else {
        None
    }
}
