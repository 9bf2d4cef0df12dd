//! Runs the checks: one task that owns the roster, and one for each question under way.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};

use super::check::{Failed, probe};
use super::{PodHealth, ProbeId, Roster};
use crate::compile::RoutingTable;
use crate::model::Workload;

/// Questions under way at one time; further ones wait.
const AT_ONCE: usize = 256;
/// Tables that come within this time are looked at once.
const SETTLE: Duration = Duration::from_millis(50);

/// Whose pods are asked, and how.
#[derive(Debug, Clone)]
pub struct Asked {
    /// This node.
    pub node: Arc<str>,
    /// Whether pods that no document gives a node are asked too: where nobody else would.
    pub unplaced: bool,
    /// The mark of the agent's own sockets.
    pub mark: Option<u32>,
}

impl Asked {
    fn is_ours(&self, pod: &Workload) -> bool {
        pod.node.as_ref().map_or(self.unplaced, |node| *node == self.node)
    }
}

/// What came of all questions so far.
#[derive(Debug, Default)]
pub struct ProbeCounts {
    passed: AtomicU64,
    failed: AtomicU64,
    timed_out: AtomicU64,
}

impl ProbeCounts {
    /// By outcome.
    pub fn read(&self) -> [(&'static str, u64); 3] {
        [("passed", &self.passed), ("failed", &self.failed), ("timed_out", &self.timed_out)]
            .map(|(outcome, count)| (outcome, count.load(Ordering::Relaxed)))
    }

    fn count(&self, outcome: &Result<(), Failed>) {
        let counter = match outcome {
            Ok(()) => &self.passed,
            Err(Failed::TimedOut(_)) => &self.timed_out,
            Err(_) => &self.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Asks for as long as it runs.
pub struct Checker {
    asked: Asked,
    counts: Arc<ProbeCounts>,
    roster: Roster,
    pods: usize,
    /// The pods that the roster follows.
    followed: Arc<HashMap<IpAddr, Arc<Workload>>>,
    under_way: JoinSet<Result<(), Failed>>,
    ids: HashMap<Id, ProbeId>,
}

impl Checker {
    /// `random`: a number that differs from call to call.
    pub fn new(asked: Asked, counts: Arc<ProbeCounts>, random: impl FnMut() -> u64 + Send + 'static) -> Self {
        Self {
            asked,
            counts,
            roster: Roster::new(random),
            pods: 0,
            followed: Arc::default(),
            under_way: JoinSet::new(),
            ids: HashMap::new(),
        }
    }

    /// Follows the pods of these tables, and tells who takes no work whenever that changes. Ends with the tables.
    pub async fn run(
        mut self,
        mut tables: watch::Receiver<Arc<RoutingTable>>,
        health: watch::Sender<Arc<PodHealth>>,
    ) {
        let mut look_at = Some(Instant::now());
        loop {
            let wake = [look_at, self.next_due()].into_iter().flatten().min();
            let wake = async {
                match wake {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = tables.changed(), if look_at.is_none() => {
                    if changed.is_err() {
                        return;
                    }
                    look_at = Some(Instant::now() + SETTLE);
                }
                Some(ended) = self.under_way.join_next_with_id() => self.ended(ended),
                () = wake => {}
            }
            let now = Instant::now();
            if look_at.is_some_and(|at| at <= now) {
                look_at = None;
                let table = Arc::clone(&tables.borrow_and_update());
                self.follow(&table.workloads, now);
            }
            self.ask(now);
            self.tell(&health);
        }
    }

    fn next_due(&self) -> Option<Instant> {
        self.roster.next_due().filter(|_| self.under_way.len() < AT_ONCE)
    }

    fn follow(&mut self, pods: &Arc<HashMap<IpAddr, Arc<Workload>>>, now: Instant) {
        if Arc::ptr_eq(&self.followed, pods) {
            return;
        }
        self.followed = Arc::clone(pods);
        // One that has several addresses is there once, by its first.
        let ours = |(address, pod): &(&IpAddr, &Arc<Workload>)| {
            pod.addresses.first() == Some(*address) && self.asked.is_ours(pod)
        };
        let ours: Vec<&Arc<Workload>> = pods.iter().filter(ours).map(|(_, pod)| pod).collect();
        self.pods = ours.len();
        self.roster.follow(ours.into_iter(), now, SystemTime::now());
    }

    fn ask(&mut self, now: Instant) {
        for job in self.roster.take_due(now, AT_ONCE - self.under_way.len()) {
            let (mark, id) = (self.asked.mark, job.id);
            let task = self.under_way.spawn(async move { probe(&job, mark).await });
            self.ids.insert(task.id(), id);
        }
    }

    fn ended(&mut self, ended: Result<(Id, Result<(), Failed>), JoinError>) {
        let (task, outcome) = match ended {
            Ok((task, outcome)) => {
                self.counts.count(&outcome);
                (task, Some(outcome.map_err(|failed| failed.to_string())))
            }
            Err(error) => {
                tracing::error!(%error, "a health check ended by a fault of this agent, and says nothing of its pod");
                (error.id(), None)
            }
        };
        if let Some(id) = self.ids.remove(&task) {
            self.roster.told(id, outcome, Instant::now(), SystemTime::now());
        }
    }

    fn tell(&self, health: &watch::Sender<Arc<PodHealth>>) {
        let now = self.roster.health(self.pods);
        let before = Arc::clone(&health.borrow());
        if *before == now {
            return;
        }
        for (uid, failing) in now.failing.iter().filter(|(uid, _)| !before.failing.contains_key(*uid)) {
            tracing::warn!(pod = %failing.pod, %uid, why = failing.why, "a pod fails its health check");
        }
        for (uid, failing) in before.failing.iter().filter(|(uid, _)| !now.failing.contains_key(*uid)) {
            tracing::info!(pod = %failing.pod, %uid, "a pod takes work again");
        }
        health.send_replace(Arc::new(now));
    }
}
