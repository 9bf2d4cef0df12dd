//! A directory's state whenever it changes: inotify, with a poll beside it for what inotify does not see (network file
//! systems, links to files elsewhere, a directory that is replaced). The poll looks at what the system says of the files
//! and reads them only where that changed.
//!
//! One thread owns the state. Events are gathered until none came for [`SETTLE`] and no file is open for writing that
//! was seen being written, so that an editor that writes in place is not read half way.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use super::load::{State, load};
use super::read::{is_document, load_dir, read_dir};

/// Quiet time after which a change is taken as complete.
const SETTLE: Duration = Duration::from_millis(25);

/// How long a writer may take to close its file, and a busy directory to be quiet, before it is read in spite of them.
const SETTLE_MAX: Duration = Duration::from_millis(500);

/// How often the files are looked at without any event; with [`SETTLE`], an edit applies within a second in any case.
const POLL: Duration = Duration::from_millis(500);

/// How often the files are read without any sign of a change: file systems may keep times too coarse to tell two edits
/// apart.
const REREAD: Duration = Duration::from_secs(3);

/// States that may wait for a slow receiver; the thread then waits as well, and reads the latest files after it.
const STATES_WAITING: usize = 1;

/// Why a directory can't be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The directory is not there or can't be read.
    #[error("the configuration directory {path} can't be read: {source}")]
    Directory {
        /// The directory.
        path: String,
        /// What the system says.
        source: io::Error,
    },
    /// The system has no more inotify instances or watches.
    #[error("{path} can't be watched: {source} (see fs.inotify.max_user_instances and max_user_watches)")]
    Notify {
        /// The directory.
        path: String,
        /// What the system says.
        source: notify::Error,
    },
    /// The thread can't be started.
    #[error("the thread that watches the configuration can't be started: {0}")]
    Thread(io::Error),
}

/// Reads a directory and watches it. The channel carries each later state; it ends with the receiver.
pub fn watch(dir: PathBuf) -> Result<(State, mpsc::Receiver<State>), WatchError> {
    let path = || dir.display().to_string();
    std::fs::read_dir(&dir).map_err(|source| WatchError::Directory { path: path(), source })?;
    let (events, incoming) = channel();
    // The receiver outlives the watcher within the thread; a late event after its end has no reader.
    let handler = move |event| drop(events.send(event));
    let notify_error = |source| WatchError::Notify { path: path(), source };
    let mut watcher = notify::recommended_watcher(handler).map_err(notify_error)?;
    watcher.watch(&dir, RecursiveMode::NonRecursive).map_err(notify_error)?;
    // Read after the watch is set, so that no change falls between.
    let looks = Looks::of(&dir);
    let initial = load_dir(&dir);
    let (sender, receiver) = mpsc::channel(STATES_WAITING);
    let directory = Directory { dir, state: initial.clone(), watcher, incoming, looks };
    thread::Builder::new()
        .name("config-watch".to_owned())
        .spawn(move || directory.run(&sender))
        .map_err(WatchError::Thread)?;
    Ok((initial, receiver))
}

struct Directory {
    dir: PathBuf,
    state: State,
    watcher: RecommendedWatcher,
    incoming: Receiver<notify::Result<Event>>,
    looks: Looks,
}

/// What the system says of a directory and of its documents, behind any links.
#[derive(Debug, Default, PartialEq, Eq)]
struct Looks(Vec<(PathBuf, Look)>);

#[derive(Debug, PartialEq, Eq)]
struct Look {
    file: (u64, u64),
    bytes: u64,
    changed: (i64, i64),
}

impl Looks {
    fn of(dir: &Path) -> Self {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        let paths = entries.filter(|path| is_document(path)).chain([dir.to_owned()]);
        let mut looks: Vec<_> = paths.filter_map(|path| Look::of(&path).map(|look| (path, look))).collect();
        looks.sort_by(|a, b| a.0.cmp(&b.0));
        Self(looks)
    }
}

impl Look {
    fn of(path: &Path) -> Option<Self> {
        let found = std::fs::metadata(path).ok()?;
        // The time of the last change of any kind, which unlike that of the content can't be set back.
        let changed = (found.ctime(), found.ctime_nsec());
        Some(Self { file: (found.dev(), found.ino()), bytes: found.len(), changed })
    }
}

/// Files seen being written and not yet closed.
#[derive(Default)]
struct Writing(HashSet<PathBuf>);

impl Writing {
    fn note(&mut self, event: notify::Result<Event>) {
        let Ok(event) = event else { return };
        for path in event.paths.into_iter().filter(|path| is_document(path)) {
            match event.kind {
                EventKind::Modify(ModifyKind::Data(_)) => {
                    self.0.insert(path);
                }
                EventKind::Access(AccessKind::Close(AccessMode::Write))
                | EventKind::Remove(_)
                | EventKind::Modify(ModifyKind::Name(_)) => {
                    self.0.remove(&path);
                }
                _ => {}
            }
        }
    }
}

/// Whether an event can mean another content: reading the files ourselves sends events too.
fn is_change(event: &notify::Result<Event>) -> bool {
    match event {
        Ok(event) => {
            !matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write))
        }
        // Lost events: read everything.
        Err(_) => true,
    }
}

impl Directory {
    fn run(mut self, sender: &mpsc::Sender<State>) {
        let (mut looked, mut read) = (Instant::now(), Instant::now());
        while !sender.is_closed() {
            match self.incoming.recv_timeout(POLL.saturating_sub(looked.elapsed())) {
                // Whoever reads the files must not keep the poll from its turn.
                Ok(event) if !is_change(&event) && looked.elapsed() < POLL => continue,
                Ok(event) if is_change(&event) => self.settle(event),
                Ok(_) | Err(RecvTimeoutError::Timeout) => {
                    looked = Instant::now();
                    if !self.look() && read.elapsed() < REREAD {
                        continue;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
            read = Instant::now();
            if let Some(state) = refresh(&self.state, &self.dir) {
                self.state = state;
                if sender.blocking_send(self.state.clone()).is_err() {
                    return;
                }
            }
        }
    }

    /// Whether the files look different from the last time, once they no longer change.
    fn look(&mut self) -> bool {
        let mut now = Looks::of(&self.dir);
        if now == self.looks {
            return false;
        }
        let begin = Instant::now();
        while begin.elapsed() < SETTLE_MAX {
            thread::sleep(SETTLE);
            let next = Looks::of(&self.dir);
            let still = next == now;
            now = next;
            if still {
                break;
            }
        }
        self.looks = now;
        // Watching again costs nothing where the directory is the same, and follows one that was replaced.
        drop(self.watcher.watch(&self.dir, RecursiveMode::NonRecursive));
        true
    }

    /// Waits until a change is complete.
    fn settle(&self, first: notify::Result<Event>) {
        let mut writing = Writing::default();
        writing.note(first);
        let begin = Instant::now();
        while begin.elapsed() < SETTLE_MAX {
            match self.incoming.recv_timeout(SETTLE) {
                Ok(event) => writing.note(event),
                Err(RecvTimeoutError::Timeout) if writing.0.is_empty() => return,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

/// The next state, if anything changed.
fn refresh(state: &State, dir: &Path) -> Option<State> {
    let files = read_dir(dir).unwrap_or_else(|problem| state.unreadable(&problem));
    (!state.is_made_of(&files)).then(|| load(state, files))
}
