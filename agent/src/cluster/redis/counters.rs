//! What all nodes count together, in Redis: one script for each decision, on a line of its own and from a thread of its own, so that
//! neither workers nor the lease ever wait for it.
//!
//! ```text
//! Connecting --dialled--> Up --no answer, lost--> Away --answers again, dialled--> Up
//!     |                                            ^
//!     +------------------- failed -----------------+
//! ```
//!
//! While one question about a key is under way, those that come are asked together by the next one. A question that fails is answered with
//! [`Away`]. One that takes longer than [`CALL_MAX`] sends the store away, so that nobody asks until it answers again, and its
//! answer is still heard.

mod holdings;
mod keeper;

use std::collections::HashMap;
use std::fmt;
use std::pin::pin;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::redis::Value;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

pub use self::holdings::NodeHolds;
use self::holdings::{Telling, tell};
use self::keeper::keep;
use super::dial::Alone;
use super::failure::Failure;
use super::keys::Keys;
use super::target::Target;
use super::{RedisOptions, reply, scripts};
use crate::cluster::StoreError;
use crate::limit::counters::{Answer, Ask, Away, Counters, OnAnswer, SharedKey, SharedRule, Standing};

/// How long a question may take. What a limit says of a store that is away holds no later than this.
const CALL_MAX: Duration = Duration::from_millis(90);
/// How long an answer is still heard that comes later: it tells what the store has counted.
const LATE_MAX: Duration = Duration::from_secs(2);
/// Keys that are asked about at the same time. Beyond it, what a limit says of a store that is away holds.
const KEYS_MAX: usize = 16_384;
/// Questions about one key that wait for the one under way. Likewise.
const QUEUE_MAX: usize = 4096;

const CONNECTING: u8 = 0;
const UP: u8 = 1;
const AWAY: u8 = 2;

/// Counters in Redis. They connect when they are first asked, or told to.
pub struct RedisCounters {
    inner: Arc<Inner>,
}

struct Inner {
    options: RedisOptions,
    target: Target,
    keys: Keys,
    runtime: tokio::runtime::Handle,
    /// Whether somebody needs the store.
    wanted: watch::Sender<bool>,
    /// The line, where there is one.
    line: watch::Sender<Option<Alone>>,
    state: AtomicU8,
    /// Tells the keeper that a question failed.
    failed: Notify,
    nodes: AtomicU32,
    /// When the store came back without what it had counted; 0: it has not.
    forgot: AtomicU64,
    flights: Mutex<HashMap<SharedKey, Vec<Question>>>,
    /// What the other nodes are told.
    telling: watch::Sender<Option<Telling>>,
    calls: AtomicU64,
    failures: AtomicU64,
}

struct Question {
    ask: Ask,
    done: OnAnswer,
}

/// What is shown of counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CountersReading {
    /// `connecting`, `up` or `away`.
    pub state: &'static str,
    /// How many nodes share limits.
    pub nodes: u32,
    /// Scripts that were run.
    pub calls: u64,
    /// Those of them that failed.
    pub failures: u64,
}

impl fmt::Debug for RedisCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisCounters").finish_non_exhaustive()
    }
}

impl RedisCounters {
    /// Starts the thread. A URL that can't be read, or a wrong name of a cluster, is an error, and so is a thread that can't be had.
    pub fn start(options: RedisOptions) -> Result<Self, StoreError> {
        let target = Target::parse(&options.url)?;
        let keys = Keys::new(&options.cluster)?;
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // Somebody else may be first, which is as good.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let failed = |error: std::io::Error| StoreError::Unfit(format!("no thread for limits: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let inner = Arc::new(Inner {
            options,
            target,
            keys,
            runtime: runtime.handle().clone(),
            wanted: watch::Sender::new(false),
            line: watch::Sender::new(None),
            state: AtomicU8::new(CONNECTING),
            failed: Notify::new(),
            nodes: AtomicU32::new(1),
            forgot: AtomicU64::new(0),
            flights: Mutex::default(),
            telling: watch::Sender::new(None),
            calls: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        });
        let keeper = Arc::clone(&inner);
        let run = move || runtime.block_on(async { tokio::join!(keep(&keeper), tell(&keeper)) });
        std::thread::Builder::new().name("limits".to_owned()).spawn(run).map_err(failed)?;
        Ok(Self { inner })
    }

    /// Connects, if nobody has asked for it yet.
    pub fn open(&self) {
        self.inner.wanted.send_if_modified(|wanted| !std::mem::replace(wanted, true));
    }

    /// What is shown.
    pub fn reading(&self) -> CountersReading {
        let state = match self.inner.state.load(Ordering::Acquire) {
            CONNECTING => "connecting",
            UP => "up",
            _ => "away",
        };
        CountersReading {
            state,
            nodes: self.inner.nodes.load(Ordering::Relaxed),
            calls: self.inner.calls.load(Ordering::Relaxed),
            failures: self.inner.failures.load(Ordering::Relaxed),
        }
    }
}

impl Counters for RedisCounters {
    fn standing(&self) -> Standing {
        let forgot = self.inner.forgot.load(Ordering::Relaxed);
        Standing {
            // A store that is being connected to is worth the wait of one call.
            up: self.inner.state.load(Ordering::Acquire) != AWAY,
            nodes: self.inner.nodes.load(Ordering::Relaxed),
            forgot: (forgot > 0).then_some(forgot),
        }
    }

    fn take(&self, ask: Ask, done: OnAnswer) {
        self.open();
        let question = Question { ask, done };
        let mut flights = self.inner.flights();
        if let Some(queue) = flights.get_mut(&ask.key) {
            if queue.len() < QUEUE_MAX {
                queue.push(question);
                return;
            }
        } else if flights.len() < KEYS_MAX {
            flights.insert(ask.key, Vec::new());
            drop(flights);
            self.inner.runtime.spawn(fly(Arc::clone(&self.inner), question));
            return;
        }
        drop(flights);
        (question.done)(Err(Away));
    }

    fn give_back(&self, ask: Ask, at: u64) {
        let inner = Arc::clone(&self.inner);
        self.inner.runtime.spawn(async move {
            let (kind, what) = match ask.rule {
                SharedRule::Window { .. } => ("window", at),
                SharedRule::Rate { unit, .. } => ("rate", unit),
            };
            let arguments = [ask.count.to_string(), kind.to_owned(), what.to_string()];
            // What can't be given back runs out by itself.
            let _ = inner.call(&scripts::GIVE, &inner.key(ask.key), &arguments).await;
        });
    }

    fn later(&self, after: Duration, then: Box<dyn FnOnce() + Send>) {
        self.inner.runtime.spawn(async move {
            sleep(after).await;
            then();
        });
    }
}

/// Asks about a key for as long as there are questions about it.
async fn fly(inner: Arc<Inner>, first: Question) {
    let key = first.ask.key;
    let mut questions = vec![first];
    loop {
        inner.ask_together(questions).await;
        let mut flights = inner.flights();
        match flights.get_mut(&key) {
            Some(queue) if !queue.is_empty() => questions = std::mem::take(queue),
            _ => {
                flights.remove(&key);
                return;
            }
        }
    }
}

impl Inner {
    fn flights(&self) -> MutexGuard<'_, HashMap<SharedKey, Vec<Question>>> {
        // A panic leaves a question without an answer at most, which whoever waits for takes for one that failed.
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(&self, key: SharedKey) -> String {
        format!("{}{{{:032x}}}", self.keys.limit, u128::from_be_bytes(key.0))
    }

    /// Asks for all of them at once; who came first is let through first.
    async fn ask_together(&self, questions: Vec<Question>) {
        let Some(first) = questions.first().map(|question| question.ask) else { return };
        let together = together(questions.iter().map(|question| question.ask));
        let Ok(answers) = self.ask((first.key, first.rule), &together).await else {
            return questions.into_iter().for_each(|question| (question.done)(Err(Away)));
        };
        let mut answers = together.into_iter().zip(answers);
        let mut current = answers.next();
        for question in questions {
            if current.is_some_and(|((_, step), _)| step != question.ask.step) {
                current = answers.next();
            }
            let Some((_, answer)) = &mut current else { return (question.done)(Err(Away)) };
            let granted = question.ask.count.min(answer.granted);
            answer.granted -= granted;
            let remaining = answer.remaining.saturating_add(answer.granted.into());
            (question.done)(Ok(Answer { granted, remaining, ..*answer }));
        }
    }

    async fn ask(&self, (key, rule): (SharedKey, SharedRule), asked: &[Asked]) -> Result<Vec<Answer>, Away> {
        let (kind, numbers) = match rule {
            SharedRule::Window { requests, span } => ("window", vec![requests, span]),
            SharedRule::Rate { unit, leak, capacity } => ("rate", vec![unit, leak, capacity]),
        };
        let mut arguments = vec![kind.to_owned()];
        arguments.extend(numbers.iter().map(u64::to_string));
        arguments.extend(asked.iter().flat_map(|(count, step)| [count.to_string(), step.to_string()]));
        let said = self.call(&scripts::TAKE, &self.key(key), &arguments).await?;
        read(said, asked).map_err(|error| {
            self.failures.fetch_add(1, Ordering::Relaxed);
            self.away(true, &error.to_string());
            Away
        })
    }

    /// Runs a script within the time of a call. One that gets no answer, or whose line breaks, sends the store away.
    async fn call(&self, script: &scripts::Script, key: &str, arguments: &[String]) -> Result<Value, Away> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let mut called = pin!(async {
            let mut line = self.line().await.ok_or(None)?;
            let arguments: Vec<_> = arguments.iter().map(String::as_bytes).collect();
            line.call(script, key, &arguments).await.map_err(|error| Some(Failure::from(error)))
        });
        let mut answer = timeout(CALL_MAX, &mut called).await;
        if answer.is_err() {
            self.away(false, &unanswered().to_string());
            answer = timeout(LATE_MAX, called).await;
        }
        let failure = match answer {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(failure)) => failure,
            Err(_) => None,
        };
        self.failures.fetch_add(1, Ordering::Relaxed);
        match failure {
            // The server has answered, and this is about the one key.
            Some(Failure { fatal: false, error: error @ StoreError::Foreign { .. } }) => {
                tracing::debug!(%error, "a limit can't be counted");
            }
            Some(Failure { fatal, error }) => self.away(fatal, &error.to_string()),
            None => self.away(false, &unanswered().to_string()),
        }
        Err(Away)
    }

    /// The line, as soon as the first try to get one is over.
    async fn line(&self) -> Option<Alone> {
        if self.state.load(Ordering::Acquire) == CONNECTING {
            let mut line = self.line.subscribe();
            let dialled = |line: &Option<Alone>| line.is_some() || self.state.load(Ordering::Acquire) == AWAY;
            let _ = line.wait_for(dialled).await;
        }
        self.line.borrow().clone()
    }

    fn away(&self, broken: bool, why: &str) {
        if self.state.swap(AWAY, Ordering::AcqRel) != AWAY {
            tracing::warn!(why, "limits of the cluster go without Redis");
        }
        if broken {
            self.line.send_replace(None);
        }
        self.failed.notify_one();
    }

    fn up(&self) {
        if self.state.swap(UP, Ordering::AcqRel) == AWAY {
            tracing::info!("limits of the cluster are counted by Redis again");
        }
    }

    /// Asks how many nodes there are, which also shows that the store answers. `fewer`: whether they may have become fewer.
    async fn look(&self, fewer: bool) -> Result<(), Failure> {
        let mut line = self.line.borrow().clone().ok_or_else(unanswered)?;
        let nodes = timeout(CALL_MAX, line.call(&scripts::SHARERS, &self.keys.nodes, &[])).await;
        let nodes = match nodes {
            Ok(nodes) => reply::number(&nodes?)?,
            Err(_) => return Err(Failure { error: unanswered(), fatal: false }),
        };
        // This node is there, whatever the store knows.
        let nodes = u32::try_from(nodes).unwrap_or(u32::MAX).max(1);
        let least = if fewer { 1 } else { self.nodes.load(Ordering::Relaxed) };
        self.nodes.store(nodes.max(least), Ordering::Relaxed);
        Ok(())
    }
}

fn unanswered() -> StoreError {
    StoreError::Unreachable(format!("no answer within {CALL_MAX:?}"))
}

/// So many units are asked for, and only multiples of so many are of use.
type Asked = (u32, u32);

/// What the script is asked: those that follow each other and want the same multiples go together.
fn together(asks: impl Iterator<Item = Ask>) -> Vec<Asked> {
    let mut together: Vec<Asked> = Vec::new();
    for ask in asks {
        match together.last_mut() {
            Some((count, step)) if *step == ask.step => *count = count.saturating_add(ask.count),
            _ => together.push((ask.count, ask.step)),
        }
    }
    together
}

/// The answers of the script.
fn read(said: Value, asked: &[Asked]) -> Result<Vec<Answer>, StoreError> {
    let numbers: Vec<u64> = reply::list(said)?.iter().map(reply::number).collect::<Result<_, _>>()?;
    let [remaining, at, answers @ ..] = &numbers[..] else { return Err(reply::odd()) };
    if answers.len() != asked.len() * 2 {
        return Err(reply::odd());
    }
    let answer = |(answer, (count, _)): (&[u64], &Asked)| {
        let granted = u32::try_from(answer[0]).ok().filter(|granted| granted <= count);
        let granted = granted.ok_or_else(reply::odd)?;
        Ok(Answer { granted, remaining: *remaining, wait: answer[1], at: *at })
    };
    answers.chunks_exact(2).zip(asked).map(answer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_scripts_own_answers_are_read() {
        let int = |numbers: &[i64]| Value::Array(numbers.iter().map(|number| Value::Int(*number)).collect());
        let good = |granted, wait| Answer { granted, remaining: 3, wait, at: 5 };
        assert_eq!(read(int(&[3, 5, 2, 4]), &[(2, 1)]), Ok(vec![good(2, 4)]));
        assert_eq!(read(int(&[3, 5, 2, 0, 5, 4]), &[(2, 1), (10, 5)]), Ok(vec![good(2, 0), good(5, 4)]));
        for odd in [
            int(&[3, 5, 3, 4]),
            int(&[3, 5, -1, 4]),
            int(&[3, 5, 2]),
            int(&[3, 5, 2, 4, 6]),
            int(&[3, 5]),
            int(&[3]),
            int(&[]),
            Value::Okay,
            Value::Nil,
            Value::Array(vec![Value::Nil, Value::Nil, Value::Nil, Value::Nil]),
        ] {
            assert!(read(odd.clone(), &[(2, 1)]).is_err(), "{odd:?}");
        }
    }

    #[test]
    fn questions_for_the_same_multiples_go_together() {
        let rule = SharedRule::Window { requests: 9, span: 9 };
        let ask = |(count, step)| Ask { key: SharedKey([0; 16]), rule, count, step };
        let check = |asks: &[Asked], expected: &[Asked]| {
            assert_eq!(together(asks.iter().copied().map(ask)), expected, "{asks:?}");
        };
        check(&[(1, 1), (1, 1), (8, 1)], &[(10, 1)]);
        check(&[(1, 1), (5, 5), (5, 5), (2, 1)], &[(1, 1), (10, 5), (2, 1)]);
        check(&[], &[]);
    }
}
