//! `sluice apply`, `delete` and `diff`: changes of the documents that the cluster keeps.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::bail;
use clap::Args;

use super::sealing::{SealArgs, Sealer, Spoilt, texts};
use super::store::{StoreClientArgs, all};
use super::{outcome, output};
use crate::cluster::documents::sealed::SEAL;
use crate::cluster::documents::{ALLOW_SHRINK, RESERVED, RESTORED, mending};
use crate::cluster::{Document, DocumentWrite, Documents, RedisStore, Store as _, Written};
use crate::config::{InputFile, StoredDocument, check, documents, is_secret, read_inputs, stored_files};

#[derive(Debug, Args)]
pub(super) struct ApplyArgs {
    #[command(flatten)]
    files: FilesArgs,
    #[command(flatten)]
    seal: SealArgs,
    /// Deletes all documents of the store that the files don't have: they are all there is then.
    #[arg(long)]
    prune: bool,
    /// Lets the table lose all endpoints or over half of its routes by this, which is otherwise taken for a mistake.
    #[arg(long)]
    allow_shrink: bool,
}

#[derive(Debug, Args)]
pub(super) struct FilesArgs {
    #[command(flatten)]
    store: StoreClientArgs,
    /// A file or directory of documents; `-` is the standard input. May be given several times.
    #[arg(short = 'f', long = "filename", required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct DeleteArgs {
    #[command(flatten)]
    store: StoreClientArgs,
    /// Documents, as `KIND/NAMESPACE/NAME` or `KIND/NAME` (in the namespace `default`).
    #[arg(required = true, value_name = "DOCUMENT")]
    documents: Vec<String>,
    #[command(flatten)]
    seal: SealArgs,
    /// Lets the table lose all endpoints or over half of its routes by this, which is otherwise taken for a mistake.
    #[arg(long)]
    allow_shrink: bool,
}

/// A document of a file beside the one that the store has.
struct Compared {
    wanted: StoredDocument,
    file: Arc<str>,
    there: Option<Document>,
}

impl Compared {
    fn change(&self) -> Change {
        match self.there.as_ref().and_then(|there| there.text.as_ref()) {
            None => Change::Created,
            Some(text) if *text == self.wanted.text => Change::Unchanged,
            Some(_) => Change::Configured,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Created,
    Configured,
    Unchanged,
}

impl Change {
    fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
        }
    }
}

pub(super) fn apply(args: &ApplyArgs) -> anyhow::Result<ExitCode> {
    args.files.store.with(async |store| {
        let found = all(store).await?;
        let spoilt = if args.prune { Spoilt::Replace } else { Spoilt::Refuse };
        let sealer = args.seal.sealer((store, args.files.store.cluster()), &found, spoilt).await?;
        let there = by_id(&found);
        let compared = compare(&there, &args.files.files, args.prune)?;
        let changes = compared.iter().filter(|one| one.change() != Change::Unchanged);
        let mut writes: Vec<_> = changes
            .map(|one| DocumentWrite {
                id: Arc::clone(&one.wanted.id),
                text: Some(Arc::clone(&one.wanted.text)),
                expected: Some(one.there.as_ref().map_or(0, |there| there.revision)),
            })
            .collect();
        let pruned = if args.prune { prune(&found, &there, &compared) } else { Vec::new() };
        writes.extend(pruned.iter().cloned());
        let changes_nothing = writes.is_empty() && !args.allow_shrink;
        let revision = write(store, sealer.as_ref(), &found, (writes, args.allow_shrink)).await?;
        for one in &compared {
            output::text(&format!("{} {}", one.wanted.id, one.change().as_str()))?;
        }
        for gone in pruned.iter().filter(|gone| !gone.id.starts_with(RESERVED)) {
            output::text(&format!("{} deleted", gone.id))?;
        }
        // What is held back then is somebody else's.
        if changes_nothing { Ok(ExitCode::SUCCESS) } else { outcome::of(store, revision).await }
    })
}

pub(super) fn delete(args: &DeleteArgs) -> anyhow::Result<ExitCode> {
    args.store.with(async |store| {
        let found = all(store).await?;
        let sealer = args.seal.sealer((store, args.store.cluster()), &found, Spoilt::Refuse).await?;
        let there = by_id(&found);
        let mut writes = Vec::new();
        for name in &args.documents {
            let id = super::get::full_id(name)?;
            // What is left of one goes as well.
            let left = found.odd.iter().any(|odd| odd.id == id);
            let revision = there.get(&id).map(|document| document.revision).or(left.then_some(0));
            let Some(revision) = revision else { bail!("{id} is not there") };
            writes.push(DocumentWrite { id, text: None, expected: Some(revision) });
        }
        let ids: Vec<_> = writes.iter().map(|write| Arc::clone(&write.id)).collect();
        let revision = write(store, sealer.as_ref(), &found, (writes, args.allow_shrink)).await?;
        for id in ids {
            output::text(&format!("{id} deleted"))?;
        }
        outcome::of(store, revision).await
    })
}

/// Exits 1 where there is a difference, as `diff` does.
pub(super) fn diff(args: &FilesArgs) -> anyhow::Result<ExitCode> {
    args.store.with(async |store| {
        let compared = compare(&by_id(&all(store).await?), &args.files, false)?;
        let mut differs = false;
        for one in compared.iter().filter(|one| one.change() != Change::Unchanged) {
            differs = true;
            if is_secret(&one.wanted.id) {
                output::text(&format!("{} differs; what it holds is not shown", one.wanted.id))?;
                continue;
            }
            let before = one.there.as_ref().and_then(|there| there.text.as_deref()).unwrap_or_default();
            let diff = similar::TextDiff::from_lines(before, &one.wanted.text);
            let (from, to) =
                (format!("store/{}", one.wanted.id), format!("{}:{}", one.file, one.wanted.line));
            output::text(diff.unified_diff().header(&from, &to).to_string().trim_end())?;
        }
        Ok(if differs { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    })
}

/// The documents of the files beside those of the store. All of them are checked first, together with what is there, unless they
/// will be alone.
fn compare(
    there: &BTreeMap<Arc<str>, Document>,
    paths: &[PathBuf],
    alone: bool,
) -> anyhow::Result<Vec<Compared>> {
    let mut compared: Vec<Compared> = Vec::new();
    let files = read_inputs(paths);
    for file in &files {
        for wanted in documents(file)? {
            if let Some(first) = compared.iter().find(|one| one.wanted.id == wanted.id) {
                let (id, line) = (&wanted.id, wanted.line);
                let (there, at) = (&first.file, first.wanted.line);
                bail!("{}:{line}: {id} is already given at {there}:{at}", file.path);
            }
            let there = there.get(&wanted.id).cloned();
            compared.push(Compared { there, file: Arc::clone(&file.path), wanted });
        }
    }
    let nothing = BTreeMap::new();
    checked(&files, &compared, if alone { &nothing } else { there })?;
    Ok(compared)
}

/// Refuses files of which a document would not be taken, beside each other and what else is there. What the report has to say
/// beside that is printed.
fn checked(
    files: &[InputFile],
    compared: &[Compared],
    there: &BTreeMap<Arc<str>, Document>,
) -> anyhow::Result<()> {
    let stays = there.iter().filter(|(id, _)| !compared.iter().any(|one| one.wanted.id == **id));
    let stays = stays.filter(|(id, _)| !id.starts_with(RESERVED));
    let texts = stays.filter_map(|(id, document)| Some((id, document.text.as_ref()?)));
    let (errors, lines) = check(files, stored_files(texts));
    for line in &lines {
        eprintln!("{line}");
    }
    if !errors.is_empty() {
        bail!("nothing was changed");
    }
    Ok(())
}

/// What deletes all that the files don't have. What a leader wrote of the store's past stays.
fn prune(
    found: &Documents,
    there: &BTreeMap<Arc<str>, Document>,
    compared: &[Compared],
) -> Vec<DocumentWrite> {
    let wanted: BTreeSet<&str> = compared.iter().map(|one| &*one.wanted.id).collect();
    let stays = |id: &str| wanted.contains(id) || id == SEAL || id == RESTORED;
    let gone = there.values().map(|document| (&document.id, document.revision));
    // What is left of one goes as well.
    let left = found.odd.iter().filter(|odd| !there.contains_key(&odd.id)).map(|odd| (&odd.id, 0));
    let delete = |(id, revision): (&Arc<str>, u64)| DocumentWrite {
        id: Arc::clone(id),
        text: None,
        expected: Some(revision),
    };
    gone.chain(left).filter(|(id, _)| !stays(id)).map(delete).collect()
}

/// Writes all of it or none; the revision that the documents are at then.
async fn write(
    store: &RedisStore,
    sealer: Option<&Sealer>,
    found: &Documents,
    (mut writes, allow_shrink): (Vec<DocumentWrite>, bool),
) -> anyhow::Result<u64> {
    if allow_shrink {
        writes.retain(|write| &*write.id != ALLOW_SHRINK);
        match sealer {
            Some(sealer) => sealer.allow_shrink(&mut writes),
            None => {
                writes.push(DocumentWrite { id: ALLOW_SHRINK.into(), text: Some("".into()), expected: None });
            }
        }
    }
    // What is odd is written anew as it counts. Only a seal tells that a text which is missing has to be.
    let odd = found.odd.iter().filter(|odd| sealer.is_some() || !odd.what.is_loss());
    let written: BTreeSet<_> = writes.iter().map(|write| Arc::clone(&write.id)).collect();
    writes.extend(mending(odd.filter(|odd| !written.contains(&odd.id)), &texts(found)));
    if let Some(sealer) = sealer {
        sealer.seal(found, &mut writes);
    }
    if writes.is_empty() {
        return Ok(found.revision);
    }
    match store.write(&writes).await? {
        Written::At(revision) => Ok(revision),
        Written::Conflict(ids) => {
            let ids: Vec<_> = ids.iter().map(|(id, _)| &**id).filter(|id| *id != SEAL).collect();
            let what = if ids.is_empty() { "other documents".to_owned() } else { ids.join(", ") };
            bail!("somebody changed {what} meanwhile; nothing was changed")
        }
    }
}

fn by_id(found: &Documents) -> BTreeMap<Arc<str>, Document> {
    let there = found.changed.iter().filter(|document| document.text.is_some());
    there.map(|document| (Arc::clone(&document.id), document.clone())).collect()
}
