//! The tasks of one agent on a store in this process.

use std::sync::atomic::AtomicUsize;

use super::*;
use crate::cluster::store::DocumentWrite;
use crate::cluster::{LocalStore, sample};

/// Nothing waits longer for what follows from an event.
const LIMIT: Duration = Duration::from_secs(20);

/// Reads three endpoints out of any documents, and panics when its first table is put in force.
struct Faulty {
    applied: Arc<AtomicUsize>,
}

impl Agent for Faulty {
    fn read(&mut self, _documents: &Arc<KeptDocuments>) -> Read {
        Read { model: Arc::new(sample::model(3, 1)), touched: None }
    }

    fn apply(&mut self, _parts: &Parts, _touched: Option<&Touched>, _at: Position) {
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
