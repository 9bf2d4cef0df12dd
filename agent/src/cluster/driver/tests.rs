//! The tasks of one agent on a store in this process.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::cluster::publisher::{Contents, DraftForm, Publisher};
use crate::cluster::store::{Acquired, Candidate, DocumentWrite, Published};
use crate::cluster::{LocalStore, sample};

/// Nothing waits longer for what follows from an event.
const LIMIT: Duration = Duration::from_secs(20);

/// Reads three endpoints out of any documents, and panics when its first table is put in force.
struct Faulty {
    applied: Arc<AtomicUsize>,
}

impl Agent for Faulty {
    fn read(&self, _documents: &Arc<KeptDocuments>) -> Read {
        Read { model: Arc::new(sample::model(3, 1)), touched: None }
    }

    fn apply(&self, _parts: &Parts, _touched: Option<&Touched>, _at: Position) {
        let before = self.applied.fetch_add(1, Ordering::SeqCst);
        assert!(before > 0, "the first table is too much");
    }
}

async fn until(what: &str, view: &Mutex<ClusterView>, holds: impl Fn(&ClusterView) -> bool) {
    let looked = async {
        while !holds(&lock(view)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let in_time = tokio::time::timeout(LIMIT, looked).await.is_ok();
    assert!(in_time, "{what}: {:?}", lock(view));
}

fn settings() -> ClusterSettings {
    ClusterSettings {
        node: "a".into(),
        cluster: "test".into(),
        ttl: Duration::from_secs(2),
        state: None,
        version: "0",
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_panics_is_shown_and_begins_anew() {
    let store = LocalStore::alone();
    let text = Some("text".into());
    let write = DocumentWrite { id: "Service/default/web".into(), text, expected: None };
    store.write(&[write]).await.expect("is written");
    let applied = Arc::new(AtomicUsize::new(0));
    let agent = Faulty { applied: Arc::clone(&applied) };
    let handle = start(store, settings(), Trust::Unsigned, agent).expect("starts");
    let view = handle.view();
    until("the fault", &view, |view| view.faults == 1).await;
    {
        let view = lock(&view);
        assert!(view.fault.as_ref().is_some_and(|fault| fault.contains("too much")), "{:?}", view.fault);
        assert_eq!((&view.leads, view.yielded), (&None, Some("fault")));
    }
    // The lease was given back, and this node leads under the next one.
    until("a table in force", &view, |view| {
        view.in_force.is_some() && view.leads.as_ref().is_some_and(|lease| lease.token.epoch == 2)
    })
    .await;
    assert!(*handle.ready.borrow() == Readiness::InForce && applied.load(Ordering::SeqCst) >= 2);
    assert_eq!(lock(&view).faults, 1);
    handle.stop(LIMIT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_drains_says_so_and_stays_until_it_leaves() {
    let store = LocalStore::alone();
    let (others, applied) = (store.client(), Arc::new(AtomicUsize::new(1)));
    let mut handle = start(store, settings(), Trust::Unsigned, Faulty { applied }).expect("starts");
    let view = handle.view();
    until("it to lead", &view, |view| view.leads.is_some()).await;
    handle.drain(LIMIT).await;
    let nodes = crate::cluster::registry::read(others.members().await.expect("is read"));
    let states: Vec<_> = nodes.iter().map(|node| node.record.as_ref().expect("is read").state).collect();
    assert_eq!(states, [NodeState::Draining]);
    assert_eq!(others.lease().await.expect("is read").held, None, "the lease is given back at once");
    handle.stop(LIMIT).await;
    assert_eq!(others.members().await.expect("is read"), []);
}

/// Reads as many endpoints as there are documents.
struct Counting;

impl Agent for Counting {
    fn read(&self, documents: &Arc<KeptDocuments>) -> Read {
        let endpoints = u8::try_from(documents.texts.len()).expect("there are few");
        Read { model: Arc::new(sample::model(endpoints, 1)), touched: None }
    }

    fn apply(&self, _parts: &Parts, _touched: Option<&Touched>, _at: Position) {}
}

async fn write(store: &LocalStore, id: &str) {
    let write = DocumentWrite { id: id.into(), text: Some("text".into()), expected: None };
    store.write(&[write]).await.expect("is written");
}

/// The epoch of the table in force, and how many endpoints it has.
fn in_force(view: &ClusterView) -> (u64, usize) {
    (view.in_force.map_or(0, |(at, _)| at.version.token.epoch), view.counts.endpoints)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_leader_goes_on_with_the_table_in_force() {
    let store = LocalStore::alone();
    write(&store, "Service/default/a").await;
    let first = start(store.client(), settings(), Trust::Unsigned, Counting).expect("starts");
    until("a table", &first.view(), |view| in_force(view) == (1, 1)).await;
    write(&store, "Service/default/b").await;
    let second = ClusterSettings { node: "b".into(), ..settings() };
    let second = start(store.client(), second, Trust::Unsigned, Counting).expect("starts");
    let view = second.view();
    until("the same table", &view, |view| in_force(view) == (1, 2)).await;
    first.stop(LIMIT).await;
    until("it to lead", &view, |view| view.leads.is_some()).await;
    until("its first table", &view, |view| in_force(view) == (2, 2)).await;
    write(&store, "Service/default/c").await;
    until("its next table", &view, |view| in_force(view) == (2, 3)).await;
    // Nothing was sent again: the store holds the first leader's table, and what followed.
    let (sealed, position) = store.snapshot().await.expect("is read").expect("is there");
    let of = |sealed: &[u8]| {
        let sealed = crate::cluster::seal::Sealed::open(sealed).expect("is a table");
        let records = crate::compile::wire::Change::decode(sealed.body).expect("is a change").len();
        (sealed.position().version.token.epoch, records)
    };
    assert_eq!(of(&sealed), (1, 2), "an endpoint and a route");
    let deltas = store.deltas(&position).await.expect("is read").sealed;
    let deltas: Vec<_> = deltas.iter().map(|sealed| of(sealed)).collect();
    assert_eq!(deltas, [(1, 1), (2, 0), (2, 1)]);
    second.stop(LIMIT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_that_was_changed_without_a_revision_gets_one_where_nobody_seals() {
    let store = LocalStore::alone();
    write(&store, "Service/default/a").await;
    let first = start(store.client(), settings(), Trust::Unsigned, Counting).expect("starts");
    until("it to lead", &first.view(), |view| view.leads.is_some()).await;
    let second = ClusterSettings { node: "b".into(), ..settings() };
    let second = start(store.client(), second, Trust::Unsigned, Counting).expect("starts");
    until("its documents", &second.view(), |view| view.documents.1 == 1).await;
    store.overwrite("Service/default/a", "another");
    for view in [first.view(), second.view()] {
        until("the next revision", &view, |view| view.documents.1 == 2).await;
    }
    let documents = store.documents("", 0).await.expect("is read");
    assert_eq!(documents.revision, 2, "it is written once");
    assert_eq!(documents.changed[0].text.as_deref(), Some("another"));
    first.stop(LIMIT).await;
    second.stop(LIMIT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_begins_on_what_an_earlier_term_wrote_whole_gets_the_table_in_force() {
    let (store, dir) = (LocalStore::alone(), tempfile::tempdir().expect("a directory"));
    let begin = |node: &str, state: Option<PathBuf>| {
        let settings = ClusterSettings { node: node.into(), state, ..settings() };
        start(store.client(), settings, Trust::Unsigned, Counting).expect("starts")
    };
    write(&store, "Service/default/a").await;
    let first = begin("a", None);
    until("a table", &first.view(), |view| in_force(view) == (1, 1)).await;
    let second = begin("b", None);
    until("the same table", &second.view(), |view| in_force(view) == (1, 1)).await;
    first.stop(LIMIT).await;
    until("it to lead", &second.view(), |view| in_force(view) == (2, 1)).await;
    let third = begin("c", Some(dir.path().to_owned()));
    until("its table", &third.view(), |view| in_force(view) == (2, 1)).await;
    third.stop(LIMIT).await;
    // With the table of its disk: what the first term wrote is no step back.
    let third = begin("c", Some(dir.path().to_owned()));
    write(&store, "Service/default/b").await;
    until("what follows", &third.view(), |view| in_force(view) == (2, 2)).await;
    assert_eq!(lock(&third.view()).refusals, BTreeMap::new());
    third.stop(LIMIT).await;
    // Without it, and with its number: what the first term wrote is no beginning.
    for file in std::fs::read_dir(dir.path()).expect("is read") {
        let file = file.expect("is read").path();
        if file.file_name().is_some_and(|name| name != "highest") {
            std::fs::remove_file(file).expect("is removed");
        }
    }
    let third = begin("c", Some(dir.path().to_owned()));
    until("a table of this term", &third.view(), |view| in_force(view) == (2, 2)).await;
    third.stop(LIMIT).await;
    second.stop(LIMIT).await;
}

/// Says that it reads, and does not end before it is told to.
struct Slow {
    reads: tokio::sync::mpsc::UnboundedSender<()>,
    told: Mutex<std::sync::mpsc::Receiver<()>>,
}

impl Agent for Slow {
    fn read(&self, documents: &Arc<KeptDocuments>) -> Read {
        // Whoever listened may have heard enough; whoever has gone has told.
        let _ = self.reads.send(());
        let _ = self.told.lock().unwrap_or_else(PoisonError::into_inner).recv();
        Counting.read(documents)
    }

    fn apply(&self, _parts: &Parts, _touched: Option<&Touched>, _at: Position) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_comes_into_force_while_documents_are_read() {
    let store = LocalStore::alone();
    write(&store, "Service/default/a").await;
    let ((reads, mut reading), (go, told)) =
        (tokio::sync::mpsc::unbounded_channel(), std::sync::mpsc::channel());
    let agent = Slow { reads, told: Mutex::new(told) };
    let handle = start(store.client(), settings(), Trust::Unsigned, agent).expect("starts");
    let began = tokio::time::timeout(LIMIT, reading.recv()).await;
    assert_eq!(began, Ok(Some(())), "it leads and reads");
    // Somebody else leads meanwhile.
    let ours = store.lease().await.expect("is read").held.expect("it leads").0;
    assert_eq!(store.release(&ours).await, Ok(true));
    let candidate = Candidate { node: "b".into(), nonce: 1, above: 1 };
    let Ok(Acquired::Yes(lease)) = store.acquire(&candidate, LIMIT).await else {
        panic!("the lease is free")
    };
    let mut publisher = Publisher::new("test".into(), lease.clone());
    let model = Arc::new(sample::model(3, 1));
    let contents = Contents::of(model, 1);
    let draft = publisher.draft(&contents, true, |_| Vec::new()).expect("nothing is out");
    let DraftForm::Whole(snapshot) = &draft.form else { panic!("{draft:?}") };
    assert_eq!(store.publish(&lease, snapshot).await, Ok(Published::Yes));
    until("the other's table", &handle.view(), |view| in_force(view) == (2, 3)).await;
    drop(go);
    handle.stop(LIMIT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_published_piece_by_piece_is_on_the_disk_at_the_end() {
    let (store, dir) = (LocalStore::alone(), tempfile::tempdir().expect("a directory"));
    write(&store, "Service/default/a").await;
    let settings = ClusterSettings { state: Some(dir.path().to_owned()), ..settings() };
    let handle = start(store.client(), settings.clone(), Trust::Unsigned, Counting).expect("starts");
    until("a table", &handle.view(), |view| in_force(view) == (1, 1)).await;
    for (id, endpoints) in [("Service/default/b", 2), ("Service/default/c", 3)] {
        write(&store, id).await;
        until("the next", &handle.view(), |view| in_force(view) == (1, endpoints)).await;
    }
    let last = lock(&handle.view()).in_force.map(|(at, _)| at);
    assert!(last.is_some());
    let restarted = |disk: &Disk| {
        let view = Mutex::default();
        let mut follower = Follower::new("test".into(), disk.highest());
        restore(disk, &mut follower, &view).expect("a table was kept");
        (follower.in_force(), follower.parts().counts().endpoints)
    };
    // Whoever is killed now, before the table was kept again as a whole, begins where it ended; so does who is stopped.
    assert_eq!(restarted(&Disk::open(dir.path()).expect("opens")), (last, 3));
    handle.stop(LIMIT).await;
    let disk = Disk::open(dir.path()).expect("opens");
    assert_eq!(restarted(&disk), (last, 3));
    assert_eq!(disk.table().expect("is read").map(|table| table.at), last, "as a whole");
    // Without the store nothing else is in force.
    let away = LocalStore::alone();
    away.fail(Some(StoreError::Unreachable("it is away".to_owned())));
    let handle = start(away, settings, Trust::Unsigned, Counting).expect("starts");
    assert_eq!(lock(&handle.view()).in_force.map(|(at, _)| at), last);
    assert_eq!(in_force(&lock(&handle.view())), (1, 3));
    assert_eq!(lock(&handle.view()).disk_errors, BTreeMap::new());
    handle.stop(LIMIT).await;
}
