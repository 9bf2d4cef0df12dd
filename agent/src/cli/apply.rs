//! `sluice apply`, `delete` and `diff`: changes of the documents that the cluster keeps.

mod delete;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{bail, ensure};
use clap::Args;

use super::outcome::{Outcome, Wrote};
use super::sealing::{SealArgs, Sealer, Spoilt, texts};
use super::store::{StoreClientArgs, all};
use super::{counted, outcome, output};
use crate::cluster::documents::sealed::SEAL;
use crate::cluster::documents::{ALLOW_SHRINK, RESERVED, RESTORED, mending};
use crate::cluster::{Document, DocumentWrite, Documents, RedisStore, Store as _, Written};
use crate::config::{InputFile, StoredDocument, check, documents, is_secret, read_inputs, stored_files};

pub(super) use delete::{DeleteArgs, delete};

#[derive(Debug, Args)]
pub(super) struct ApplyArgs {
    #[command(flatten)]
    files: FilesArgs,
    #[command(flatten)]
    seal: SealArgs,
    /// Deletes all documents of the store that the files don't have: they are all there is then.
    #[arg(long)]
    prune: bool,
    /// Lets the table lose all endpoints, or, of eight or more, all that are ready or over half of its routes: otherwise that is
    /// taken for a mistake and held back.
    #[arg(long)]
    allow_shrink: bool,
    /// Goes on until SIGTERM: whatever becomes of the files is applied, and what somebody else makes of their documents in the
    /// store is named and put back.
    #[arg(long, conflicts_with_all = ["allow_shrink", "anew"])]
    watch: bool,
}

#[derive(Debug, Args)]
pub(super) struct FilesArgs {
    #[command(flatten)]
    store: StoreClientArgs,
    /// A file or directory of documents; `-` is the standard input. May be given several times.
    #[arg(short = 'f', long = "filename", required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
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

/// What the files said when they were applied, by document.
type Known = BTreeMap<Arc<str>, Arc<str>>;

/// What became of an application.
struct Done {
    outcome: Outcome,
    /// The documents' revision then.
    revision: u64,
    known: Known,
}

pub(super) fn apply(args: &ApplyArgs) -> anyhow::Result<ExitCode> {
    args.files.store.with(async |store| {
        if args.watch {
            return watch::run(args, store).await;
        }
        let files = &args.files.files;
        for path in without_files(files) {
            ensure!(!args.prune, "{}", emptied(path));
            eprintln!("{} has no files", path.display());
        }
        Ok(once(args, store, &read_inputs(files), None).await?.outcome.told())
    })
}

/// Directories in which nothing is: one that is not mounted looks like one that somebody has emptied.
fn without_files(paths: &[PathBuf]) -> impl Iterator<Item = &PathBuf> {
    paths.iter().filter(|path| path.is_dir() && read_inputs(std::slice::from_ref(*path)).is_empty())
}

fn emptied(path: &Path) -> String {
    format!(
        "{} has no files, and --prune would delete all documents that it had; nothing was changed",
        path.display()
    )
}

/// For how long whoever changes documents gives way to those who change others.
const GIVES_WAY: Duration = Duration::from_secs(10);

/// Somebody has sealed other documents since these were read.
#[derive(Debug, thiserror::Error)]
#[error("somebody changed other documents meanwhile; nothing was changed")]
struct OthersChanged;

/// Tries again for as long as others change other documents, whose seal is over all of them.
async fn giving_way<T>(mut attempt: impl AsyncFnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let begun = Instant::now();
    loop {
        match attempt().await {
            Err(error) if error.is::<OthersChanged>() && begun.elapsed() < GIVES_WAY => {
                // Two that have met once are not to meet each time.
                let apart = UNIX_EPOCH.elapsed().unwrap_or_default().subsec_micros() % 50_000;
                tokio::time::sleep(Duration::from_micros(apart.into())).await;
            }
            result => return result,
        }
    }
}

/// Makes the store what the files say. With what they said before, tells of changes alone, and of those that somebody else made.
async fn once(
    args: &ApplyArgs,
    store: &RedisStore,
    files: &[InputFile],
    before: Option<&Known>,
) -> anyhow::Result<Done> {
    if args.prune {
        // What others have put there meanwhile is to be seen before it is deleted.
        return attempt(args, store, files, before).await;
    }
    giving_way(async || attempt(args, store, files, before).await).await
}

async fn attempt(
    args: &ApplyArgs,
    store: &RedisStore,
    files: &[InputFile],
    before: Option<&Known>,
) -> anyhow::Result<Done> {
    let spoilt = if args.prune { Spoilt::Replace } else { Spoilt::Refuse };
    let found = counted::documents(store, &args.seal, spoilt).await?;
    let mut sealer = args.seal.sealer((store, args.files.store.cluster()), &found, spoilt).await?;
    if let Some(sealer) = sealer.as_mut().filter(|_| args.watch) {
        sealer.leave_others();
    }
    let there = by_id(&found);
    let compared = compare(&there, files, args.prune)?;
    let changes = compared.iter().filter(|one| one.change() != Change::Unchanged);
    let mut writes: Vec<_> = changes
        .map(|one| DocumentWrite {
            id: Arc::clone(&one.wanted.id),
            text: Some(Arc::clone(&one.wanted.text)),
            expected: Some(one.there.as_ref().map_or(0, |there| there.revision)),
        })
        .collect();
    let pruned = if args.prune { prune(&found, &there, &compared) } else { Vec::new() };
    // What makes documents has failed, most likely.
    ensure!(
        !compared.is_empty() || pruned.iter().all(|gone| gone.id.starts_with(RESERVED)),
        "the files have no documents, and --prune would delete all that the store has; nothing was changed"
    );
    writes.extend(pruned.iter().cloned());
    let changes_nothing = writes.is_empty() && !args.allow_shrink;
    let wrote = write(store, sealer.as_ref(), &found, (writes, args.allow_shrink)).await?;
    let gone: Vec<_> = pruned.iter().filter(|gone| !gone.id.starts_with(RESERVED)).collect();
    if let Some(before) = before {
        tell_of_others(before, &compared, &gone);
    }
    for one in compared.iter().filter(|one| before.is_none() || one.change() != Change::Unchanged) {
        output::text(&format!("{} {}", one.wanted.id, one.change().as_str()))?;
    }
    for gone in gone {
        output::text(&format!("{} deleted", gone.id))?;
    }
    // What is held back then is somebody else's.
    let nothing = changes_nothing && wrote.generation.is_none();
    let outcome = if nothing { Outcome::Counts } else { outcome::of(store, wrote).await };
    let outcome = match outcome {
        Outcome::HeldBack(_) if changes_nothing => Outcome::Counts,
        outcome => outcome,
    };
    let known = compared.iter().map(|one| (Arc::clone(&one.wanted.id), Arc::clone(&one.wanted.text)));
    Ok(Done { outcome, revision: wrote.revision, known: known.collect() })
}

/// Names what the store had otherwise than the files said before, and say still.
fn tell_of_others(before: &Known, compared: &[Compared], gone: &[&DocumentWrite]) {
    for one in compared.iter().filter(|one| before.get(&one.wanted.id) == Some(&one.wanted.text)) {
        let (id, file, line) = (&one.wanted.id, &one.file, one.wanted.line);
        match one.change() {
            Change::Unchanged => {}
            Change::Configured => {
                eprintln!("{id}: somebody else changed it in the store; put back as {file}:{line} says");
            }
            Change::Created => {
                eprintln!("{id}: somebody else deleted it in the store; put back from {file}:{line}");
            }
        }
    }
    for gone in gone.iter().filter(|gone| !before.contains_key(&gone.id)) {
        eprintln!("{}: somebody else put it into the store, and no file has it; deleted", gone.id);
    }
}

/// Exits 1 where there is a difference, as `diff` does.
pub(super) fn diff(args: &FilesArgs) -> anyhow::Result<ExitCode> {
    args.store.with(async |store| {
        let compared = compare(&by_id(&all(store).await?), &read_inputs(&args.files), false)?;
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
    files: &[InputFile],
    alone: bool,
) -> anyhow::Result<Vec<Compared>> {
    let mut compared: Vec<Compared> = Vec::new();
    for file in files {
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
    checked(files, &compared, if alone { &nothing } else { there })?;
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

/// What deletes all that the files don't have. What a leader wrote of the store's past stays, and what somebody allowed, which ends by itself.
fn prune(
    found: &Documents,
    there: &BTreeMap<Arc<str>, Document>,
    compared: &[Compared],
) -> Vec<DocumentWrite> {
    let wanted: BTreeSet<&str> = compared.iter().map(|one| &*one.wanted.id).collect();
    let stays = |id: &str| wanted.contains(id) || [SEAL, RESTORED, ALLOW_SHRINK].contains(&id);
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

/// Writes all of it or none.
async fn write(
    store: &RedisStore,
    sealer: Option<&Sealer>,
    found: &Documents,
    (mut writes, allow_shrink): (Vec<DocumentWrite>, bool),
) -> anyhow::Result<Wrote> {
    // What nobody said may shrink ends what somebody else was allowed before, as one table may follow from both. No more does a
    // new seal say it for somebody who may have had none.
    if allow_shrink || !writes.is_empty() || sealer.is_some_and(Sealer::is_stale) {
        let text = allow_shrink.then(|| sealer.map_or("".into(), Sealer::may_shrink));
        writes.push(DocumentWrite { id: ALLOW_SHRINK.into(), text, expected: None });
    }
    // What is odd is written anew as it counts. Only a seal tells that a text which is missing has to be.
    let odd = found.odd.iter().filter(|odd| sealer.is_some() || !odd.what.is_loss());
    let written: BTreeSet<_> = writes.iter().map(|write| Arc::clone(&write.id)).collect();
    writes.extend(mending(odd.filter(|odd| !written.contains(&odd.id)), &texts(found)));
    let generation = sealer.and_then(|sealer| sealer.seal(found, &mut writes));
    let first = found.store.is_empty() || sealer.is_some_and(Sealer::is_beginning);
    if writes.is_empty() {
        return Ok(Wrote { revision: found.revision, generation, first });
    }
    match store.write(&writes).await? {
        Written::At(revision) => Ok(Wrote { revision, generation, first }),
        Written::Conflict(ids) => {
            let ids: Vec<_> = ids.iter().map(|(id, _)| &**id).filter(|id| *id != SEAL).collect();
            ensure!(!ids.is_empty(), OthersChanged);
            bail!("somebody changed {} meanwhile; nothing was changed", ids.join(", "))
        }
    }
}

fn by_id(found: &Documents) -> BTreeMap<Arc<str>, Document> {
    let there = found.changed.iter().filter(|document| document.text.is_some());
    there.map(|document| (Arc::clone(&document.id), document.clone())).collect()
}
