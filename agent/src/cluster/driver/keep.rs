//! Keeps the table in force and the documents on disk, on a thread of its own that gives way to all others: nobody who applies
//! or serves waits for it. Of tables it is told what was published, and puts together by itself what follows from that.

mod table;

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use tokio::sync::oneshot;

use self::table::Table;
use super::{ClusterView, disk_failed, lock};
use crate::cluster::disk::{Disk, DiskError, KeptChange, KeptDocuments, KeptTable};
use crate::cluster::seal::{Form, Position, Sealed};
use crate::priority::Priority;

/// Between two times at which what changed is kept on disk, at least.
const KEEP_EVERY: Duration = Duration::from_secs(1);
/// As many times as the processor was kept busy with the last one pass before the next: a hundredth of one is spent so at most.
const KEEP_REST: u32 = 100;

/// Where it is told what is to be kept. Without a disk nothing is.
pub(super) struct Keeper {
    disk: Option<Arc<Disk>>,
    view: Arc<Mutex<ClusterView>>,
    jobs: Option<Sender<Job>>,
    gap: Gap,
}

/// The last change that the disk lacks, where it lacks one: what follows it is worth nothing there, until a whole table with
/// it is.
type Gap = Arc<Mutex<Option<Position>>>;

enum Job {
    Table {
        at: Position,
        form: Form,
        generation: u64,
        body: Vec<u8>,
    },
    Documents(Arc<KeptDocuments>),
    /// All of it now, and an answer when that is done.
    Finish(oneshot::Sender<()>),
}

impl Keeper {
    /// Starts the thread. It ends with the value. `table`: what is on the disk, with the changes that follow.
    pub(super) fn start(
        disk: Option<&Arc<Disk>>,
        view: &Arc<Mutex<ClusterView>>,
        table: Option<(KeptTable, Vec<KeptChange>)>,
    ) -> Self {
        let mut keeper =
            Self { disk: disk.cloned(), view: Arc::clone(view), jobs: None, gap: Gap::default() };
        let Some(disk) = disk else { return keeper };
        let (jobs, told) = mpsc::channel();
        let keeping = Keeping {
            disk: Arc::clone(disk),
            view: Arc::clone(view),
            table: Table::of(table),
            documents: None,
            unsynced: false,
            tables: Pace::default(),
            changes: Pace::default(),
            texts: Pace::default(),
            gap: Arc::clone(&keeper.gap),
        };
        let run = move || {
            Priority::Background.take();
            keeping.run(&told);
        };
        match std::thread::Builder::new().name("keep".to_owned()).spawn(run) {
            Ok(_) => keeper.jobs = Some(jobs),
            Err(error) => tracing::error!(%error, "no thread for what is kept on disk: it stays as it is"),
        }
        keeper
    }

    /// A table was taken in. A change of it is on the disk when this returns.
    pub(super) fn table(&self, sealed: &Sealed<'_>) {
        let Some(disk) = &self.disk else { return };
        let (at, form, generation) = (sealed.position(), sealed.header.form, sealed.header.generation);
        if let Form::Delta { previous } = form {
            let change = KeptChange { at, previous, generation, body: sealed.body.to_vec() };
            let mut gap = gap_of(&self.gap);
            if gap.is_some() || !written(&self.view, "changes", disk.keep_change(&change)) {
                *gap = Some(at);
            }
        }
        self.tell(Job::Table { at, form, generation, body: sealed.body.to_vec() });
    }

    /// The documents are these.
    pub(super) fn documents(&self, documents: Arc<KeptDocuments>) {
        self.tell(Job::Documents(documents));
    }

    /// Waits until all that it was told is on the disk, or can't be kept.
    pub(super) async fn finish(&self) {
        let (done, heard) = oneshot::channel();
        self.tell(Job::Finish(done));
        // Whoever would say so is gone: nothing more comes of it.
        let _ = heard.await;
    }

    fn tell(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // It ends before this value by a fault of its own alone, which costs freshness after the next start.
            let _ = jobs.send(job);
        }
    }
}

/// When something may be kept again.
#[derive(Debug, Default)]
struct Pace {
    next: Option<Instant>,
    failed: bool,
}

impl Pace {
    /// How long it is until then.
    fn rest(&self) -> Duration {
        self.next.map_or(Duration::ZERO, |next| next.saturating_duration_since(Instant::now()))
    }

    /// Something was kept, or could not be, since this thread had been busy for that long.
    fn kept(&mut self, before: Duration, kept: bool) {
        let took = busy().saturating_sub(before);
        self.next = Some(Instant::now() + KEEP_EVERY.max(took * KEEP_REST));
        self.failed = !kept;
    }
}

/// The thread's own.
struct Keeping {
    disk: Arc<Disk>,
    view: Arc<Mutex<ClusterView>>,
    table: Table,
    /// Those that are not on the disk yet.
    documents: Option<Arc<KeptDocuments>>,
    /// Whether changes came that may not outlive a crash of the machine.
    unsynced: bool,
    tables: Pace,
    changes: Pace,
    texts: Pace,
    gap: Gap,
}

impl Keeping {
    fn run(mut self, told: &Receiver<Job>) {
        loop {
            let job = match self.rest() {
                Some(rest) => told.recv_timeout(rest),
                None => told.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match job {
                Ok(job) => self.take(job),
                Err(RecvTimeoutError::Timeout) => self.keep(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn take(&mut self, job: Job) {
        match job {
            Job::Table { at, form, generation, body } => {
                self.unsynced |= matches!(form, Form::Delta { .. });
                self.table.take(at, form, (generation, body));
            }
            Job::Documents(documents) => self.documents = Some(documents),
            Job::Finish(done) => {
                // Somebody waits now.
                Priority::Control.take();
                self.keep_table();
                self.keep_documents();
                self.sync();
                Priority::Background.take();
                let _ = done.send(());
            }
        }
    }

    /// How long nothing is to be done; `None`: for ever.
    fn rest(&self) -> Option<Duration> {
        let documents = self.documents.as_ref().map(|_| self.texts.rest());
        // What failed is not tried again at once, however urgent it is.
        let urgent = self.is_urgent() && !self.tables.failed;
        let table = self.is_due().then(|| if urgent { Duration::ZERO } else { self.tables.rest() });
        let changes = self.unsynced.then(|| self.changes.rest());
        [documents, table, changes].into_iter().flatten().min()
    }

    fn is_urgent(&self) -> bool {
        self.table.is_urgent() || gap_of(&self.gap).is_some()
    }

    fn is_due(&self) -> bool {
        self.table.differs() && (self.table.is_due() || self.is_urgent())
    }

    fn keep(&mut self) {
        if self.is_due() && (self.tables.rest().is_zero() || self.is_urgent()) {
            self.keep_table();
        }
        if self.changes.rest().is_zero() {
            self.sync();
        }
        if self.texts.rest().is_zero() {
            self.keep_documents();
        }
    }

    fn keep_table(&mut self) {
        let before = busy();
        let Some(put_together) = self.table.put_together() else { return };
        let kept = match put_together {
            Ok(table) => written(&self.view, "table", self.disk.keep_table(table)),
            Err(error) => {
                tracing::error!(%error, "the table that was applied can't be kept: its records can't be read");
                false
            }
        };
        self.table.kept(kept);
        if let Some(at) = self.table.on_disk().filter(|_| kept) {
            let mut gap = gap_of(&self.gap);
            // Changes that came meanwhile and were not written are not in this table either.
            if gap.is_none_or(|lacking| lacking.version <= at.version)
                && written(&self.view, "changes", self.disk.forget_changes(at.version))
            {
                *gap = None;
            }
        }
        self.tables.kept(before, kept);
    }

    fn sync(&mut self) {
        if !self.unsynced {
            return;
        }
        let (before, synced) = (busy(), self.disk.sync_changes());
        self.unsynced = synced.is_err();
        self.changes.kept(before, synced.is_ok());
        // That it went well says nothing of changes that could not be appended.
        if let Err(error) = synced {
            disk_failed(&self.view, "changes", &error);
        }
    }

    fn keep_documents(&mut self) {
        let Some(documents) = self.documents.take() else { return };
        let before = busy();
        let kept = written(&self.view, "documents", self.disk.keep_documents(&documents));
        if !kept {
            self.documents = Some(documents);
        }
        self.texts.kept(before, kept);
    }
}

/// For how long a processor was busy with the calling thread: on a machine that has other things to do it takes longer by the clock.
fn busy() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

fn gap_of(gap: &Gap) -> MutexGuard<'_, Option<Position>> {
    gap.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether something is on the disk now. What fails is shown, and costs no traffic.
pub(super) fn written(view: &Mutex<ClusterView>, what: &'static str, outcome: Result<(), DiskError>) -> bool {
    match outcome {
        Ok(()) => {
            lock(view).disk_errors.remove(what);
            true
        }
        Err(error) => {
            disk_failed(view, what, &error);
            false
        }
    }
}
