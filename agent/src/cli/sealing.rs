//! The seal over the documents that `sluice apply` and `delete` write: what is there is checked, and what will be is sealed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use clap::Args;

use crate::cluster::documents::SPOILT;
use crate::cluster::documents::sealed::{self, Head, Refused, SEAL, Seal, Sums};
use crate::cluster::registry;
use crate::cluster::{DocumentWrite, Documents, RedisStore, Store as _};
use crate::identity::{OperatorIdentity, TrustBundle};
use crate::model::SharedMap;

#[derive(Debug, Clone, Args)]
pub(super) struct SealArgs {
    /// What `sluice ca operator` made: documents are sealed with it. A cluster whose agents run with `--ca` takes no others.
    #[arg(long, env = "SLUICE_CA", value_name = "DIR")]
    ca: Option<PathBuf>,
    /// Begins anew with what the store and the files have: what else agents of the cluster count on is lost. Without it that is
    /// waited for, and nothing is changed where nobody gives it back.
    #[arg(long, requires = "ca")]
    anew: bool,
}

/// Agents whose records are lost with all else have told of themselves again by then, most often.
const BEGINNING: Duration = Duration::from_secs(15);

/// Texts by id, with their revisions.
pub(super) type Texts = SharedMap<Arc<str>, (u64, Arc<str>)>;

/// What becomes of documents that are not what was sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spoilt {
    /// Nothing is built upon them.
    Refuse,
    /// All of them go, or are replaced.
    Replace,
}

/// Who seals what is written, and what was sealed before.
pub(super) struct Sealer {
    identity: OperatorIdentity,
    cluster: String,
    anew: bool,
    before: Option<Seal>,
    /// The seal is to be made anew, whether anything else changes or not: it is another operator's, or not good.
    stale: bool,
    /// It is good.
    good: bool,
    /// The revision of the seal that is there; 0: none is.
    revision: u64,
    /// The revision of the documents.
    at: u64,
}

impl SealArgs {
    /// Whether what agents count on has to be there before something is written.
    pub(super) fn builds_upon_what_counts(&self) -> bool {
        self.ca.is_some() && !self.anew
    }

    /// Checks what the store holds; `None`: this cluster's documents are not sealed.
    pub(super) async fn sealer(
        &self,
        (store, cluster): (&RedisStore, &str),
        found: &Documents,
        spoilt: Spoilt,
    ) -> anyhow::Result<Option<Sealer>> {
        let texts = texts(found);
        let Some(directory) = &self.ca else {
            if texts.contains_key(SEAL) || demanded(store).await? {
                bail!(
                    "this cluster takes only documents that an operator has sealed: --ca (or SLUICE_CA) names the directory \
                     that `sluice ca operator` made; nothing was changed"
                );
            }
            return Ok(None);
        };
        let identity = OperatorIdentity::load(directory, SystemTime::now()).with_context(|| {
            format!("--ca {}: `sluice ca operator` makes what seals documents", directory.display())
        })?;
        let bundle = identity.bundle();
        let (before, stale, good) = if texts.is_empty() {
            (None, false, true)
        } else {
            match sealed::check(cluster, &texts, &mut Sums::default(), bundle, None) {
                Ok(seal) => {
                    let own = sealed::open(&texts).is_ok_and(|(_, _, signature)| identity.made(&signature));
                    (Some(seal), !own, true)
                }
                Err(refused) => {
                    if refused.is_by_another_root() {
                        of_another_root(store, &texts, (directory, bundle), spoilt).await?;
                    }
                    refuse(store, &texts, &refused, spoilt).await?;
                    // A seal that is good, though over other documents, says what generation there was.
                    (sealed::seal(cluster, &texts, bundle).ok(), true, false)
                }
            }
        };
        let revision = texts.get(SEAL).map_or(0, |(revision, _)| *revision);
        Ok(Some(Sealer {
            identity,
            cluster: cluster.to_owned(),
            // All of what is not believed is replaced on purpose.
            anew: self.anew || !good,
            before,
            stale: stale || self.anew,
            good,
            revision,
            at: found.revision,
        }))
    }
}

impl Sealer {
    /// What lets a table shrink that follows from documents sealed now: none is after the revision that was found.
    pub(super) fn may_shrink(&self) -> Arc<str> {
        self.at.to_string().into()
    }

    /// Whether the seal itself is to be replaced.
    pub(super) fn is_stale(&self) -> bool {
        self.stale
    }

    /// Whether the store may have lost what agents have not told of yet: it had nothing until a moment ago.
    pub(super) fn is_beginning(&self) -> bool {
        let begun = |seal: &Seal| seal.head.is_begun_within(BEGINNING, SystemTime::now());
        self.before.as_ref().is_none_or(begun)
    }

    /// Leaves a good seal of somebody else as it is while nothing else changes. Of two who follow alike each would seal what the
    /// other one has sealed, for ever.
    pub(super) fn leave_others(&mut self) {
        self.stale &= !self.good;
    }

    /// Adds the seal over what is there once these writes are done, if there are any, or the seal itself is to be replaced; its
    /// generation.
    pub(super) fn seal(&self, found: &Documents, writes: &mut Vec<DocumentWrite>) -> Option<u64> {
        if writes.is_empty() && !self.stale {
            return None;
        }
        let mut texts = texts(found);
        for write in writes.iter() {
            match &write.text {
                Some(text) => texts.insert(Arc::clone(&write.id), (0, Arc::clone(text))),
                None => texts.remove(&write.id),
            };
        }
        let mut head = Head::new(&self.cluster, &texts, self.before.as_ref(), SystemTime::now());
        head.anew = self.anew;
        let text = head.sealed(|bytes| self.identity.seal(bytes));
        writes.push(DocumentWrite { id: SEAL.into(), text: Some(text), expected: Some(self.revision) });
        Some(head.generation)
    }
}

/// The documents that are there.
pub(super) fn texts(found: &Documents) -> Texts {
    let live = found.changed.iter().filter_map(|document| {
        Some((Arc::clone(&document.id), (document.revision, Arc::clone(document.text.as_ref()?))))
    });
    live.collect()
}

/// Says what is wrong with the documents that are there. Unless they go as a whole, nothing is built upon them: it would seal what
/// somebody else has put there.
async fn refuse(store: &RedisStore, texts: &Texts, refused: &Refused, spoilt: Spoilt) -> anyhow::Result<()> {
    let reason = refused.as_str();
    if spoilt == Spoilt::Replace {
        eprintln!("the documents that were there are replaced: {reason}: {refused}");
        return Ok(());
    }
    let never = matches!(refused, Refused::Unsigned) && !texts.contains_key(SEAL);
    // Whom one believes depends on one's own directory and clock: only what agents would find too is told to them.
    let own = matches!(refused, Refused::Untrusted(_));
    if !never && !own && !texts.contains_key(SPOILT) {
        // Agents that did not notice look at all documents now; whoever leads gives back what was sealed.
        let write = DocumentWrite { id: SPOILT.into(), text: Some(reason.into()), expected: None };
        store.write(&[write]).await?;
    }
    let takers = if own { "Agents that see it as this directory does" } else { "Agents" };
    let back = if never || own {
        ""
    } else {
        ", whoever leads gives back the last that were sealed: try again in a moment"
    };
    bail!(
        "nothing was changed, as nobody has sealed the documents that are there: {reason}: {refused}. {takers} take none \
         of them over{back}. `sluice apply --prune -f` with all documents puts those in their place"
    )
}

/// What is there was sealed under a root that the operator's own directory does not have. It is most likely the wrong directory, so
/// nothing is written, not even that somebody should look; all documents are replaced only where no agent counts on them.
async fn of_another_root(
    store: &RedisStore,
    texts: &Texts,
    (directory, bundle): (&Path, &TrustBundle),
    spoilt: Spoilt,
) -> anyhow::Result<()> {
    let Ok((_, _, signature)) = sealed::open(texts) else { return Ok(()) };
    let nodes = registry::read(store.members().await?);
    let records = || nodes.iter().filter(|node| node.alive).filter_map(|node| node.record.as_ref().ok());
    let refused = records().any(|record| record.sealing.refused.is_some());
    let count = records().filter(|record| record.sealing.generation > 0).count();
    if spoilt == Spoilt::Replace && (refused || count == 0) {
        return Ok(());
    }
    let hint = if refused || count == 0 {
        "If the directory is the right one, somebody else has sealed them: see `sluice status` of an agent. `sluice apply --prune \
         -f` with all documents puts those in their place"
            .to_owned()
    } else {
        format!("{count} agents count on them")
    };
    bail!(
        "--ca {} does not fit this cluster: {} holds '{}' of {}, and the documents that are there were sealed under '{}'; nothing was \
         changed. {hint}",
        directory.display(),
        directory.join("bundle.pem").display(),
        bundle.names().join("', '"),
        bundle.trust_domain(),
        signature.issuer(),
    )
}

/// Whether agents of the cluster say that they take sealed documents alone.
async fn demanded(store: &RedisStore) -> anyhow::Result<bool> {
    let nodes = registry::read(store.members().await?);
    Ok(nodes.iter().any(|node| node.record.as_ref().is_ok_and(|record| record.sealing.demanded)))
}
