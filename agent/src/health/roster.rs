//! Who is to be asked, and when. Time and chance are passed in.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::standing::{Standing, Thresholds};
use super::{Failing, PodHealth};
use crate::model::{ObjectName, Probe, ProbeCheck, Workload};

/// So much lies between the first questions to pods that come at once, as long as the period allows it.
const APART: Duration = Duration::from_millis(10);
/// From one question to the next is 85 to 95 hundredths of the period: never more than it, and pods drift apart.
const PERIOD_LEAST: u64 = 850;
const PERIOD_SPREAD: u64 = 101;
const UNASKED: &str = "not asked yet";

/// One probe of one pod, for as long as both are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProbeId(u64);

/// A question to put now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// What its outcome is told by.
    pub id: ProbeId,
    /// Whom to ask.
    pub address: SocketAddr,
    /// What.
    pub check: ProbeCheck,
    /// For how long.
    pub timeout: Duration,
}

/// The pods that are asked.
pub struct Roster {
    pods: BTreeMap<Arc<str>, Pod>,
    probes: HashMap<ProbeId, Tracked>,
    due: BTreeSet<(Instant, ProbeId)>,
    last: u64,
    /// Whether any pods were seen: those that come later are new.
    begun: bool,
    random: Box<dyn FnMut() -> u64 + Send>,
}

struct Pod {
    name: ObjectName,
    address: IpAddr,
    probes: Vec<ProbeId>,
    /// Why it takes no work, and since when.
    out: Option<(String, SystemTime)>,
}

struct Tracked {
    uid: Arc<str>,
    probe: Probe,
    standing: Standing,
    /// Why it fails.
    why: String,
    /// When it is asked next; where it is being asked, not before this.
    next: Instant,
}

impl Roster {
    /// Nobody yet. `random`: a number that differs from call to call.
    pub fn new(random: impl FnMut() -> u64 + Send + 'static) -> Self {
        Self {
            pods: BTreeMap::new(),
            probes: HashMap::new(),
            due: BTreeSet::new(),
            last: 0,
            begun: false,
            random: Box::new(random),
        }
    }

    /// These pods are there now, and no others. A probe that stays as it was keeps its standing; one that is changed begins
    /// with that of its pod.
    pub fn follow<'w>(
        &mut self,
        pods: impl Iterator<Item = &'w Arc<Workload>>,
        now: Instant,
        clock: SystemTime,
    ) {
        let mut wanted: BTreeMap<&Arc<str>, (&Workload, IpAddr)> = BTreeMap::new();
        for pod in pods.filter(|pod| !pod.probes.is_empty()) {
            if let Some(address) = pod.addresses.first() {
                wanted.entry(&pod.uid).or_insert((pod, *address));
            }
        }
        let gone: Vec<Arc<str>> = self
            .pods
            .iter()
            .filter(|(uid, pod)| wanted.get(*uid).is_none_or(|(_, address)| *address != pod.address))
            .map(|(uid, _)| Arc::clone(uid))
            .collect();
        for uid in gone {
            self.remove(&uid);
        }
        let trusted = !self.begun;
        let changed: Vec<_> = wanted
            .into_values()
            .filter(|(pod, _)| self.pods.get(&pod.uid).is_none_or(|known| !self.same(known, &pod.probes)))
            .collect();
        self.begun |= !changed.is_empty();
        let room = APART * u32::try_from(changed.len()).unwrap_or(u32::MAX);
        for (pod, address) in changed {
            let takes_work = match self.pods.get(&pod.uid) {
                Some(known) => known.out.is_none(),
                None => trusted,
            };
            self.put(pod, address, takes_work, (now, room, clock));
        }
    }

    fn same(&self, pod: &Pod, probes: &[Probe]) -> bool {
        let known = pod.probes.iter().filter_map(|id| self.probes.get(id)).map(|tracked| &tracked.probe);
        known.eq(probes.iter())
    }

    fn put(
        &mut self,
        pod: &Workload,
        address: IpAddr,
        takes_work: bool,
        (now, room, clock): (Instant, Duration, SystemTime),
    ) {
        let before = self.pods.get(&pod.uid).and_then(|known| known.out.clone());
        self.remove(&pod.uid);
        let mut ids = Vec::with_capacity(pod.probes.len());
        for probe in &pod.probes {
            self.last += 1;
            let id = ProbeId(self.last);
            let within = part(room.min(probe.period), (self.random)() % 1000);
            let next = now + probe.initial_delay + within;
            let standing = Standing::untried(takes_work);
            let why = UNASKED.to_owned();
            let uid = Arc::clone(&pod.uid);
            self.probes.insert(id, Tracked { uid, probe: probe.clone(), standing, why, next });
            self.due.insert((next, id));
            ids.push(id);
        }
        let out = (!takes_work).then(|| before.unwrap_or_else(|| (UNASKED.to_owned(), clock)));
        self.pods.insert(Arc::clone(&pod.uid), Pod { name: pod.name.clone(), address, probes: ids, out });
    }

    fn remove(&mut self, uid: &Arc<str>) {
        let Some(pod) = self.pods.remove(uid) else { return };
        for id in pod.probes {
            if let Some(tracked) = self.probes.remove(&id) {
                self.due.remove(&(tracked.next, id));
            }
        }
    }

    /// When somebody is to be asked next.
    pub fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Whom to ask now, `most` at most. Nobody is asked twice at one time: the outcome has to be told first.
    pub fn take_due(&mut self, now: Instant, most: usize) -> Vec<Job> {
        let mut jobs = Vec::new();
        while jobs.len() < most
            && let Some((at, id)) = self.due.first().copied()
            && at <= now
        {
            self.due.pop_first();
            let Some(tracked) = self.probes.get_mut(&id) else { continue };
            let Some(pod) = self.pods.get(&tracked.uid) else { continue };
            tracked.next = now + part(tracked.probe.period, PERIOD_LEAST + (self.random)() % PERIOD_SPREAD);
            jobs.push(Job {
                id,
                address: SocketAddr::new(pod.address, tracked.probe.check.port()),
                check: tracked.probe.check.clone(),
                timeout: tracked.probe.timeout,
            });
        }
        jobs
    }

    /// What came of a question; `None`: nothing, by a fault of the agent. One whose pod has gone meanwhile is passed over.
    pub fn told(
        &mut self,
        id: ProbeId,
        outcome: Option<Result<(), String>>,
        now: Instant,
        clock: SystemTime,
    ) {
        let Some(tracked) = self.probes.get_mut(&id) else { return };
        tracked.next = tracked.next.max(now);
        self.due.insert((tracked.next, id));
        let Some(outcome) = outcome else { return };
        let Probe { success_threshold, failure_threshold, .. } = tracked.probe;
        let thresholds = Thresholds { success: success_threshold, failure: failure_threshold };
        tracked.standing = tracked.standing.after(outcome.is_ok(), thresholds);
        if let Err(why) = outcome {
            tracked.why = why;
        }
        let uid = Arc::clone(&tracked.uid);
        let Some(pod) = self.pods.get_mut(&uid) else { return };
        let failing =
            pod.probes.iter().filter_map(|id| self.probes.get(id)).find(|one| !one.standing.takes_work());
        match (failing, &mut pod.out) {
            (None, out) => *out = None,
            (Some(failing), out @ None) => *out = Some((failing.why.clone(), clock)),
            // Since when stays; why is what was found last.
            (Some(failing), Some((why, _))) => why.clone_from(&failing.why),
        }
    }

    /// Who takes no work.
    pub fn health(&self, pods: usize) -> PodHealth {
        let failing = self.pods.iter().filter_map(|(uid, pod)| {
            let (why, since) = pod.out.clone()?;
            Some((Arc::clone(uid), Failing { pod: pod.name.clone(), why, since }))
        });
        PodHealth { pods, failing: failing.collect() }
    }
}

/// So many thousandths of a time.
fn part(whole: Duration, thousandths: u64) -> Duration {
    whole.mul_f64(u32::try_from(thousandths).map_or(1.0, f64::from) / 1000.0)
}

#[cfg(test)]
mod tests;
