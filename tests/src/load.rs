//! An open-loop HTTP load generator: requests leave when they are due, whatever became of the ones before, and
//! latency counts from when they were due. Every failure is kept.
//!
//! Half of the senders keep their connection, half open one per request, because either kind can break where the
//! other does not.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns};

use crate::http::{Connection, Response};
use crate::netns::Netns;
use crate::wait::wait_for;

/// Enough senders that one slow answer does not hold up the schedule of the others.
const SENDERS: u32 = 16;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// What is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Where to connect.
    pub address: SocketAddr,
    /// The `Host` header.
    pub host: String,
    /// The paths, taken in turn.
    pub paths: Vec<String>,
    /// Requests per second over all senders.
    pub rate: u32,
}

/// One request and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// When it was due.
    pub due: Instant,
    /// When it was sent.
    pub sent: Instant,
    /// When its answer was complete, or its failure known.
    pub done: Instant,
    /// Its path.
    pub path: String,
    /// The pod that answered with 200, or what went wrong.
    pub outcome: Result<String, String>,
}

/// Load that is being sent.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    senders: Vec<JoinHandle<()>>,
}

/// Everything that was sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The requests, in the order of their ends.
    pub samples: Vec<Sample>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    samples: Mutex<Vec<Sample>>,
}

impl Load {
    /// Starts sending from inside a network namespace.
    pub fn start(netns: &Netns, plan: &Plan) -> Result<Self> {
        Self::start_in(Some(netns), plan)
    }

    /// Starts sending from where the test itself runs.
    pub fn start_here(plan: &Plan) -> Result<Self> {
        Self::start_in(None, plan)
    }

    fn start_in(netns: Option<&Netns>, plan: &Plan) -> Result<Self> {
        ensure!(plan.rate > 0 && !plan.paths.is_empty(), "a load needs a rate and a path");
        let shared = Arc::new(Shared::default());
        let begin = Instant::now();
        let mut load = Self { shared: Arc::clone(&shared), senders: Vec::new() };
        for index in 0..SENDERS {
            let namespace = netns.map(Netns::open).transpose()?;
            let mut sender = Sender {
                plan: plan.clone(),
                shared: Arc::clone(&shared),
                keeps: index % 2 == 0,
                connection: None,
            };
            let run = move || {
                let enter = |namespace| setns(namespace, CloneFlags::CLONE_NEWNET);
                match namespace.map_or(Ok(()), enter) {
                    Ok(()) => sender.run(begin, index),
                    Err(error) => sender.fail(begin, &format!("entering the namespace: {error}")),
                }
            };
            let spawned = std::thread::Builder::new().name(format!("load-{index}")).spawn(run);
            load.senders.push(spawned.context("starting a sender")?);
        }
        Ok(load)
    }

    /// Waits until `count` more requests than now have ended.
    pub fn wait_requests(&self, count: usize, limit: Duration) -> Result<()> {
        let target = self.shared.count() + count;
        wait_for(&format!("{count} more requests to end"), limit, || self.shared.count() >= target)
    }

    /// What has been sent so far.
    pub fn so_far(&self) -> Report {
        Report { samples: self.shared.lock().clone() }
    }

    /// Stops sending, lets the requests under way end, and returns everything.
    pub fn stop(mut self) -> Result<Report> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for sender in self.senders.drain(..) {
            sender.join().map_err(|_| anyhow!("a sender panicked"))?;
        }
        Ok(Report { samples: std::mem::take(&mut self.shared.lock()) })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Report {
    /// The requests that were not answered with 200 in full.
    pub fn failures(&self) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(|sample| sample.outcome.is_err())
    }

    /// What went wrong, with how often.
    pub fn failure_kinds(&self) -> BTreeMap<String, usize> {
        let mut kinds = BTreeMap::new();
        for failure in self.failures().filter_map(|sample| sample.outcome.as_ref().err()) {
            *kinds.entry(failure.clone()).or_default() += 1;
        }
        kinds
    }

    /// The pods that answered a path, among the requests sent after `since`, with how often.
    pub fn pods(&self, path: &str, since: Instant) -> BTreeMap<String, usize> {
        let mut pods = BTreeMap::new();
        for sample in self.samples.iter().filter(|s| s.path == path && s.sent >= since) {
            if let Ok(pod) = &sample.outcome {
                *pods.entry(pod.clone()).or_default() += 1;
            }
        }
        pods
    }

    /// The latency below which `percent` of the requests stayed, from when they were due.
    pub fn percentile(&self, percent: usize) -> Option<Duration> {
        let mut latencies: Vec<Duration> =
            self.samples.iter().map(|s| s.done.duration_since(s.due)).collect();
        latencies.sort_unstable();
        let last = latencies.len().checked_sub(1)?;
        latencies.get(last * percent.min(100) / 100).copied()
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Sample>> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self) -> usize {
        self.lock().len()
    }
}

struct Sender {
    plan: Plan,
    shared: Arc<Shared>,
    keeps: bool,
    connection: Option<Connection>,
}

impl Sender {
    /// Takes every request of the common schedule whose number is `index` modulo the count of senders.
    fn run(&mut self, begin: Instant, index: u32) {
        let mut number = index;
        while !self.shared.stop.load(Ordering::Relaxed) {
            let due = begin + Duration::from_secs_f64(f64::from(number) / f64::from(self.plan.rate));
            // Keeping to the schedule is this file's purpose; it waits for no other party.
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            // Shifted each round, so that every path goes over kept and over new connections.
            let path = self.plan.paths[(number + number / SENDERS) as usize % self.plan.paths.len()].clone();
            let sent = Instant::now();
            let outcome = self.request(&path);
            self.shared.lock().push(Sample { due, sent, done: Instant::now(), path, outcome });
            number += SENDERS;
        }
    }

    fn request(&mut self, path: &str) -> Result<String, String> {
        let kept = if self.keeps { self.connection.take() } else { None };
        let mut connection = match kept {
            Some(connection) => connection,
            None => {
                Connection::open(self.plan.address, REQUEST_TIMEOUT).map_err(|e| format!("connect: {e}"))?
            }
        };
        let response = connection.get(&self.plan.host, path, &[]).map_err(|error| {
            let kind = if self.keeps { "kept connection" } else { "new connection" };
            format!("{kind}: {error}")
        })?;
        if self.keeps && connection.is_reusable() {
            self.connection = Some(connection);
        }
        answered(&response)
    }

    fn fail(&self, begin: Instant, what: &str) {
        let outcome = Err(what.to_owned());
        self.shared.lock().push(Sample {
            due: begin,
            sent: begin,
            done: begin,
            path: String::new(),
            outcome,
        });
    }
}

fn answered(response: &Response) -> Result<String, String> {
    if response.status != 200 {
        return Err(format!("status {}", response.status));
    }
    Ok(response.header("x-pod").unwrap_or("a server that names no pod").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(begin: Instant, millis: u64, outcome: Result<&str, &str>) -> Sample {
        let outcome = outcome.map(str::to_owned).map_err(str::to_owned);
        let done = begin + Duration::from_millis(millis);
        Sample { due: begin, sent: begin, done, path: "/".to_owned(), outcome }
    }

    #[test]
    fn a_report_counts_pods_failures_and_percentiles() {
        let begin = Instant::now();
        let mut report = Report::default();
        report.samples.extend((1..=99).map(|n| sample(begin, n, Ok("a"))));
        report.samples.push(sample(begin, 100, Err("status 503")));
        assert_eq!(report.pods("/", begin), BTreeMap::from([("a".to_owned(), 99)]));
        assert_eq!(report.pods("/", begin + Duration::from_nanos(1)), BTreeMap::new());
        assert_eq!(report.pods("/other", begin), BTreeMap::new());
        assert_eq!(report.failure_kinds(), BTreeMap::from([("status 503".to_owned(), 1)]));
        assert_eq!(report.percentile(50), Some(Duration::from_millis(50)));
        assert_eq!(report.percentile(100), Some(Duration::from_millis(100)));
        assert_eq!(Report::default().percentile(50), None);
    }
}
