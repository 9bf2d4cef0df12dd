//! The seal over the documents: an operator's signature over all of them together: pure. It lies among them, so that who writes
//! documents writes it in the same step.
//!
//! A seal has a generation, which only rises. So whoever can write to the store alone can neither add a document, change or
//! delete one, nor bring back a set that was sealed before: a node takes over a set only as a whole, with a seal that fits
//! it, of a generation above the one that it has.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::{RESTORED, Step, adopt, restoration};
use crate::cluster::disk::KeptDocuments;
use crate::cluster::seal::Digest;
use crate::cluster::store::Documents;
use crate::identity::{Signature, TrustBundle, Untrusted};
use crate::model::SharedMap;
use crate::telemetry::rfc3339;

/// The document that is the seal over the others.
pub const SEAL: &str = "sluice.dev/seal";
/// The form of seals and of what they are over.
const SCHEMA: u32 = 1;
/// A seal is short: names, numbers and a signature.
const SEAL_MAX_BYTES: usize = 8192;
/// So many sets before its own a seal knows: more than are written before those who had others have said so.
const ANCESTORS: usize = 32;
/// So many documents that differ are named.
const NAMED: usize = 3;

/// Texts by id, each with a revision, which no seal is over.
type Texts = SharedMap<Arc<str>, (u64, Arc<str>)>;

/// What a seal says. Fields that this version does not know are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The form of what it is over.
    schema: u32,
    /// The cluster's name: the documents of another one are none of ours.
    cluster: Arc<str>,
    /// Higher than that of every set before: the millisecond at which it was sealed, or one more than the one before.
    pub generation: u64,
    /// The generation of the set that was changed; 0: there was none.
    pub follows: u64,
    /// The generations before that, the latest first, down to 0, to one that was begun anew, or to so many.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ancestors: Vec<u64>,
    /// It counts whatever it follows: whoever sealed said that what agents have may be lost.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub anew: bool,
    /// When it was sealed, in seconds since 1970, as whoever sealed says.
    sealed_at: u64,
    /// How many documents it is over.
    pub count: u64,
    /// What they are: see [`Sums`].
    digest: Digest,
}

/// A seal that is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seal {
    /// What it says.
    pub head: Head,
    /// Who sealed.
    pub operator: Arc<str>,
}

impl fmt::Display for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "generation {}, sealed by {} at {}",
            self.head.generation,
            self.operator,
            rfc3339(self.at())
        )
    }
}

impl Seal {
    /// When it was sealed.
    pub fn at(&self) -> SystemTime {
        self.head.at()
    }
}

impl Head {
    /// What is to be sealed after these documents were changed. `before`: the seal that was there and believed.
    pub fn new(cluster: &str, texts: &Texts, before: Option<&Seal>, now: SystemTime) -> Self {
        let follows = before.map_or(0, |before| before.head.generation);
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let milliseconds = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let (count, digest) = Sums::default().of(texts);
        Self {
            schema: SCHEMA,
            cluster: cluster.into(),
            generation: milliseconds.max(follows.saturating_add(1)),
            follows,
            ancestors: before.map_or_else(Vec::new, |before| before.head.lineage()),
            anew: false,
            sealed_at: since.as_secs(),
            count,
            digest,
        }
    }

    /// The generations before this one.
    fn lineage(&self) -> Vec<u64> {
        // What was begun anew took the place of all there was.
        if self.anew {
            return Vec::new();
        }
        std::iter::once(self.follows).chain(self.ancestors.iter().copied()).take(ANCESTORS).collect()
    }

    /// Whether a set of this generation is among those that it was made upon, or may be.
    fn knows(&self, generation: u64) -> bool {
        // It says nothing of what is older than the last that it tells of.
        let told = self.lineage().into_iter().find(|known| *known <= generation);
        told.is_none_or(|known| known == generation)
    }

    /// Whether it goes back, since less than so long, to a store that had nothing.
    pub fn is_begun_within(&self, age: Duration, now: SystemTime) -> bool {
        let fresh = now.duration_since(self.at()).is_ok_and(|since| since < age);
        fresh && self.lineage().contains(&0)
    }

    /// The document that the seal is.
    pub fn sealed(&self, sign: impl FnOnce(&[u8]) -> Signature) -> Arc<str> {
        let head = serde_json::to_string(self).expect("names and numbers are JSON");
        let signature = STANDARD.encode(sign(head.as_bytes()).to_bytes());
        format!("{head}\n{signature}\n").into()
    }

    fn at(&self) -> SystemTime {
        UNIX_EPOCH.checked_add(Duration::from_secs(self.sealed_at)).unwrap_or(UNIX_EPOCH)
    }
}

/// Why documents are not taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is no seal.
    #[error("they are not sealed")]
    Unsigned,
    /// What should be the seal is none.
    #[error("their seal can't be read")]
    Malformed,
    /// The seal is of a form that this version does not know.
    #[error("their seal has the form {0}, this version reads {SCHEMA}")]
    Schema(u32),
    /// They belong to another cluster.
    #[error("they were sealed for the cluster '{0}'")]
    Cluster(Arc<str>),
    /// No operator made the seal.
    #[error("their seal is not good: {0}")]
    Untrusted(#[from] Untrusted),
    /// They are not what was sealed.
    #[error("they are not what was sealed ({seal}, {count} documents): {what}")]
    Altered {
        /// The seal.
        seal: Box<Seal>,
        /// How many documents it is over.
        count: u64,
        /// What differs, as far as that is known.
        what: String,
    },
    /// A later set was taken over before.
    #[error("they are older ({seal}) than generation {held}")]
    Outdated {
        /// Their seal.
        seal: Box<Seal>,
        /// The generation that this node has.
        held: u64,
    },
    /// Whoever sealed them did not know what this node has, or what the table in force is made of: it would be lost.
    #[error(
        "they were sealed ({seal}) upon generation {follows}, without knowing generation {held}, which would be lost"
    )]
    Unaware {
        /// Their seal.
        seal: Box<Seal>,
        /// The generation upon which it was made.
        follows: u64,
        /// The latest generation that this node knows of.
        held: u64,
    },
    /// Two sets have one generation.
    #[error("they differ from those that were taken over as the same generation ({0})")]
    Forked(Box<Seal>),
}

impl Refused {
    /// The name that status shows.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Unsigned => "unsigned",
            Self::Malformed => "malformed",
            Self::Schema(_) => "schema",
            Self::Cluster(_) => "cluster",
            Self::Untrusted(reason) => reason.name(),
            Self::Altered { .. } => "altered",
            Self::Outdated { .. } => "outdated",
            Self::Unaware { .. } => "unaware",
            Self::Forked(_) => "forked",
        }
    }

    /// Whether the seal may be as good as any other to whoever trusts another root.
    pub fn is_by_another_root(&self) -> bool {
        matches!(self, Self::Untrusted(Untrusted::UnknownIssuer | Untrusted::WrongTrustDomain))
    }
}

/// Who says which operator sealed something at a time.
pub trait Operators {
    /// The operator, or why nobody is believed to have.
    fn operator(&self, at: SystemTime, sealed: &[u8], signature: &Signature) -> Result<Arc<str>, Untrusted>;
}

impl Operators for TrustBundle {
    fn operator(&self, at: SystemTime, sealed: &[u8], signature: &Signature) -> Result<Arc<str>, Untrusted> {
        self.verify_seal(at, sealed, signature)
    }
}

/// The hashes of documents that were looked at last: a change of one does not hash the texts of all others again.
///
/// The digest of a set is the SHA-256 of the documents' own, in the order of their ids; that of a document is over its id
/// and its text, each with its length before it.
#[derive(Debug, Default)]
pub struct Sums(Vec<(Arc<str>, Arc<str>, Digest)>);

impl Sums {
    /// How many documents there are, and their digest. The seal itself is none of them, nor what a leader writes who gives
    /// documents back.
    pub fn of(&mut self, texts: &Texts) -> (u64, Digest) {
        let sealed = texts.iter().filter(|(id, _)| &***id != SEAL && &***id != RESTORED);
        let mut before = std::mem::take(&mut self.0).into_iter().peekable();
        let mut all = Vec::with_capacity(texts.len() * 32);
        for (id, (_, text)) in sealed {
            while before.next_if(|(known, ..)| known < id).is_some() {}
            let known = before.next_if(|(known, ..)| known == id);
            let digest = match known {
                Some((_, same, digest)) if Arc::ptr_eq(&same, text) || same == *text => digest,
                _ => Digest::of(&[b"document", id.as_bytes(), text.as_bytes()]),
            };
            all.extend_from_slice(digest.bytes());
            self.0.push((Arc::clone(id), Arc::clone(text), digest));
        }
        (self.0.len() as u64, Digest::of(&[b"documents", &all]))
    }
}

/// What the seal of these documents says, and its signature; neither is believed yet.
pub fn open(texts: &Texts) -> Result<(Head, &str, Signature), Refused> {
    let (_, text) = texts.get(SEAL).ok_or(Refused::Unsigned)?;
    let (head, signature) = text.split_once('\n').ok_or(Refused::Malformed)?;
    if text.len() > SEAL_MAX_BYTES {
        return Err(Refused::Malformed);
    }
    let read: Head = serde_json::from_str(head).map_err(|_| Refused::Malformed)?;
    let signature = STANDARD.decode(signature.trim_end()).map_err(|_| Refused::Malformed)?;
    Ok((read, head, Signature::from_bytes(&signature)?))
}

/// The generation that these documents say they have; 0: none. It was checked before they were taken over.
pub fn generation(texts: &Texts) -> u64 {
    open(texts).map_or(0, |(head, ..)| head.generation)
}

/// The seal of these documents, if an operator made it for this cluster; whether it fits them is not looked at.
pub fn seal(cluster: &str, texts: &Texts, operators: &impl Operators) -> Result<Seal, Refused> {
    let (head, sealed, signature) = open(texts)?;
    let operator = operators.operator(head.at(), sealed.as_bytes(), &signature)?;
    if head.schema != SCHEMA {
        return Err(Refused::Schema(head.schema));
    }
    if *head.cluster != *cluster {
        return Err(Refused::Cluster(head.cluster));
    }
    Ok(Seal { head, operator })
}

/// Looks whether these documents may take the place of those that are held, with their seal.
pub fn check(
    cluster: &str,
    there: &Texts,
    sums: &mut Sums,
    operators: &impl Operators,
    held: Option<(&Texts, &Seal)>,
) -> Result<Seal, Refused> {
    check_beside(cluster, there, sums, operators, (held, 0))
}

/// Likewise, where a table is in force of documents of a generation: whoever leads has taken those over. So they count whatever
/// they were made upon, and later ones that were made without knowing them don't.
pub fn check_beside(
    cluster: &str,
    there: &Texts,
    sums: &mut Sums,
    operators: &impl Operators,
    (held, in_force): (Option<(&Texts, &Seal)>, u64),
) -> Result<Seal, Refused> {
    // What is held was believed when it was taken over, and counts whatever has become of its operator.
    let believed = held.filter(|(held, _)| same_seal(held, there)).map(|(_, seal)| seal.clone());
    let seal = believed.map_or_else(|| seal(cluster, there, operators), Ok)?;
    let generation = seal.head.generation;
    if let Some((_, before)) = held.filter(|(_, before)| before.head.generation > generation) {
        return Err(Refused::Outdated { seal: seal.into(), held: before.head.generation });
    }
    let known = held.map_or(0, |(_, before)| before.head.generation).max(in_force);
    if (1..generation).contains(&known) && !seal.head.knows(known) {
        return Err(Refused::Unaware { follows: seal.head.follows, seal: seal.into(), held: known });
    }
    let (count, digest) = sums.of(there);
    let same = held.filter(|(_, before)| before.head.generation == generation);
    if digest != seal.head.digest {
        let known = same.filter(|(_, before)| before.head.digest == seal.head.digest);
        let what = known.map_or_else(|| format!("there are {count}"), |(held, _)| differences(held, there));
        return Err(Refused::Altered { count: seal.head.count, seal: seal.into(), what });
    }
    if same.is_some_and(|(_, before)| before.head.digest != digest) {
        return Err(Refused::Forked(seal.into()));
    }
    Ok(seal)
}

fn same_seal(held: &Texts, there: &Texts) -> bool {
    let text = |texts: &Texts| texts.get(SEAL).map(|(_, text)| Arc::clone(text));
    text(held).is_some() && text(held) == text(there)
}

/// Names documents that are not as they were.
fn differences(held: &Texts, there: &Texts) -> String {
    let sealed = |id: &&Arc<str>| &***id != SEAL && &***id != RESTORED;
    let was = |id: &Arc<str>| held.get(id).map(|(_, text)| text);
    let is = |id: &Arc<str>| there.get(id).map(|(_, text)| text);
    let gone = held.keys().filter(sealed).filter(|id| is(id).is_none()).map(|id| format!("{id} is gone"));
    let other = there.keys().filter(sealed).filter_map(|id| match was(id) {
        None => Some(format!("{id} was added")),
        Some(text) if Some(text) != is(id) => Some(format!("{id} was changed")),
        Some(_) => None,
    });
    let all: Vec<_> = gone.chain(other).collect();
    let named = all.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    if all.len() > NAMED { format!("{named}, and {} more", all.len() - NAMED) } else { named }
}

/// Compares the documents of this node with what the store answered, where they have to be sealed: [`super::compare`] for sets
/// that `check` has to pass. What it refuses is replaced by those that this node has.
pub fn compare_sealed(
    kept: &KeptDocuments,
    heard: &Documents,
    all: bool,
    check: impl FnOnce(&KeptDocuments) -> Result<(), Refused>,
) -> Step {
    let follows = kept.store == heard.store && heard.revision >= kept.revision;
    if !follows && !all {
        return Step::AskAll;
    }
    let nothing = KeptDocuments::default();
    let there = adopt(if all { &nothing } else { kept }, heard.clone(), all);
    if there == nothing {
        // A store that was emptied, or never held anything.
        return if *kept == nothing { Step::Adopt(there) } else { Step::Restore(restoration(kept, heard)) };
    }
    match check(&there) {
        Ok(()) => Step::Adopt(there),
        // The changes may be of a store that was spoilt and mended.
        Err(_) if !all => Step::AskAll,
        Err(refused) => {
            let writes = if *kept == nothing { Vec::new() } else { restoration(kept, heard) };
            Step::Refuse(refused, writes)
        }
    }
}

#[cfg(test)]
mod tests;
