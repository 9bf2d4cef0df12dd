//! `sluice apply --watch`: the store follows files for as long as this runs. Whoever else writes what they say is named, and what
//! they say is put back.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{bail, ensure};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep};

use super::super::outcome::Outcome;
use super::{ApplyArgs, Known, once};
use crate::cluster::{RedisStore, Store as _};
use crate::config::{InputFile, read_inputs};

/// Between two looks at files and store.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// For so long files have to stay the same before they are taken for written to their end, and where what is missing is deleted.
const SETTLE: Duration = Duration::from_millis(50);
const SETTLE_TO_PRUNE: Duration = Duration::from_millis(500);
/// What was refused is tried again after so long, whether anything has changed or not.
const RETRY: Duration = Duration::from_secs(30);
/// What agents refused is written again after so long, each time later: whoever leads puts back what it replaces.
const REFUSED_MAX: Duration = Duration::from_mins(10);

/// What was applied last.
struct Applied {
    known: Known,
    /// The files that said something.
    filled: BTreeSet<Arc<str>>,
}

/// Ends with SIGTERM or SIGINT.
pub(super) async fn run(args: &ApplyArgs, store: &RedisStore) -> anyhow::Result<ExitCode> {
    let files = &args.files.files;
    ensure!(
        !files.iter().any(|path| path.as_os_str() == "-"),
        "--watch: the standard input can't be watched"
    );
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => Ok(ExitCode::SUCCESS),
        _ = interrupt.recv() => Ok(ExitCode::SUCCESS),
        never = follow(args, store) => match never {},
    }
}

async fn follow(args: &ApplyArgs, store: &RedisStore) -> Infallible {
    let (mut applied, mut failure) = (None, None);
    let mut patience = RETRY;
    loop {
        let files = settled(&args.files.files, if args.prune { SETTLE_TO_PRUNE } else { SETTLE }).await;
        let before = revision(store).await;
        let (at, retry) = match round(args, store, &files, &mut applied).await {
            Ok(Round { at, refused: Some(why) }) => {
                let (first, again) = (patience == RETRY, Instant::now() + patience);
                if failure.as_ref() != Some(&why) {
                    eprintln!("{why}. It is tried again when files change, and else ever later");
                }
                failure = Some(why);
                patience = (patience * 2).min(REFUSED_MAX);
                // What is put back may be all that was lacking; if not, it is not fought.
                (first.then_some(at), Some(again))
            }
            Ok(Round { at, .. }) => {
                patience = RETRY;
                if failure.take().is_some() {
                    eprintln!("the store is as the files say again");
                }
                (Some(at), None)
            }
            Err(error) => {
                let text = format!("{error:#}");
                if failure.as_ref() != Some(&text) {
                    eprintln!("error: {text}");
                }
                failure = Some(text);
                // Where nothing was heard of it, whatever is there then is new.
                (before.or(Some(u64::MAX)), Some(Instant::now() + RETRY))
            }
        };
        something_to_do(&args.files.files, &files, store, (at, retry)).await;
    }
}

/// What came of a round.
struct Round {
    /// The revision that the store is at then.
    at: u64,
    /// Why agents take nothing of it.
    refused: Option<String>,
}

/// Makes the store what the files say.
async fn round(
    args: &ApplyArgs,
    store: &RedisStore,
    files: &[InputFile],
    applied: &mut Option<Applied>,
) -> anyhow::Result<Round> {
    if args.prune
        && let Some(path) = super::without_files(&args.files.files).next()
    {
        bail!("{}", super::emptied(path));
    }
    let emptied = applied.as_ref().and_then(|applied| emptied(files, &applied.filled));
    if let Some(path) = emptied.filter(|_| args.prune) {
        bail!(
            "{path}: the file is empty, and --prune would delete all documents that it had; nothing was changed (who means that \
             deletes the file)"
        );
    }
    let done = once(args, store, files, applied.as_ref().map(|applied| &applied.known)).await?;
    let filled = files.iter().filter(|file| !is_empty(file)).map(|file| Arc::clone(&file.path)).collect();
    // What is put back then is not somebody else's change, nor what is there of theirs.
    let refused = if let Outcome::Refused(why) = &done.outcome { Some(why.clone()) } else { None };
    let known = if refused.is_some() { Known::default() } else { done.known };
    *applied = Some(Applied { known, filled });
    Ok(Round { at: done.revision, refused })
}

/// A file that said something and is empty: who writes in place empties it first, and may take longer than anybody waits.
fn emptied<'a>(files: &'a [InputFile], filled: &BTreeSet<Arc<str>>) -> Option<&'a str> {
    files.iter().find(|file| is_empty(file) && filled.contains(&file.path)).map(|file| &*file.path)
}

fn is_empty(file: &InputFile) -> bool {
    file.text.as_ref().is_ok_and(|text| text.trim().is_empty())
}

/// The files, once they no longer change.
async fn settled(paths: &[PathBuf], settle: Duration) -> Vec<InputFile> {
    let mut files = read_inputs(paths);
    loop {
        sleep(settle).await;
        let again = read_inputs(paths);
        if again == files {
            return files;
        }
        files = again;
    }
}

/// Waits until the files or the store are no longer what they were, or it is time to try again. `at`: the store's revision; `None`:
/// whatever becomes of it is not looked at.
async fn something_to_do(
    paths: &[PathBuf],
    files: &[InputFile],
    store: &RedisStore,
    (at, retry): (Option<u64>, Option<Instant>),
) {
    loop {
        sleep(LOOK_EVERY).await;
        if read_inputs(paths) != files || retry.is_some_and(|retry| retry <= Instant::now()) {
            return;
        }
        let Some(at) = at else { continue };
        if revision(store).await.is_some_and(|revision| at != revision) {
            return;
        }
    }
}

/// What the documents are at; `None`: the store does not say.
async fn revision(store: &RedisStore) -> Option<u64> {
    store.sums(&[]).await.ok().map(|sums| sums.revision)
}
