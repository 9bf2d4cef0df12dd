//! A limit that all nodes of the cluster count together: decided by a store, or spent of what was leased from it, or, where the store
//! is away, by what the limit says of that.

mod numbers;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;

use super::counters::{Answer, Ask, Away, Counters, KeyWriter, SharedKey, Standing};
use super::lease::{Grant, Lease, RanOut, Settled, Step, largest_portion};
use super::share::Own;
use super::{Counter, NEVER, Store, Verdict};
use numbers::MICROSECOND;
pub use numbers::{SharedQuota, shared_rate};

/// How long a request waits for the store.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long a request is told to wait that is refused because the store is away.
const AWAY_WAIT: u64 = 1_000_000_000;

/// What holds while the store is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenAway {
    /// All are let through.
    Open,
    /// None are.
    Closed,
    /// Each node lets its share through.
    Share,
}

/// How a limit is counted by the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedSettings {
    /// Whether portions are leased; else each request is asked for.
    pub leased: bool,
    /// What holds while the store is away.
    pub away: WhenAway,
}

/// A limit of the cluster.
pub struct SharedLimit {
    settings: SharedSettings,
    quota: SharedQuota,
    name: KeyWriter,
    own: Own,
    held: Store<Leases>,
    asked: AtomicU64,
    away: AtomicU64,
}

/// Where a request waits for its answer.
type Waiter = oneshot::Sender<Result<Answer, Away>>;

/// What a request waits for.
pub struct Waiting(oneshot::Receiver<Result<Answer, Away>>);

impl Waiting {
    /// The answer, if one comes in time.
    async fn answer(mut self) -> Option<Answer> {
        if let Ok(answer) = tokio::time::timeout(PATIENCE, &mut self.0).await {
            return answer.ok()?.ok();
        }
        // It may have come in this very moment; after this, whoever answers knows that nobody waits.
        self.0.close();
        self.0.try_recv().ok()?.ok()
    }
}

/// What is known of a request without the store.
pub enum Begun {
    /// The verdict.
    Known(Verdict),
    /// The store is asked.
    Asked(Waiting),
}

/// A limit's own numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SharedUse {
    /// Questions to the store.
    pub asked: u64,
    /// Requests that were decided while it was away.
    pub away: u64,
    /// Units that may be let through without asking.
    pub leased: u64,
    /// Keys that are remembered.
    pub keys: usize,
    /// Keys that were forgotten although they counted something.
    pub evicted: u64,
    /// Requests that could not be remembered here.
    pub uncounted: u64,
}

impl SharedUse {
    /// Both together.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            asked: self.asked + other.asked,
            away: self.away + other.away,
            leased: self.leased + other.leased,
            keys: self.keys + other.keys,
            evicted: self.evicted + other.evicted,
            uncounted: self.uncounted + other.uncounted,
        }
    }
}

/// Leases by key.
#[derive(Debug)]
struct Leases;

impl Counter for Leases {
    type State = Lease;

    fn take(&self, lease: &mut Lease, now: u64, cost: u32) -> Verdict {
        self.peek(lease, now, cost)
    }

    fn peek(&self, lease: &mut Lease, now: u64, _: u32) -> Verdict {
        Verdict::Admitted { remaining: lease.left(now).into() }
    }

    /// What leases take is given back by [`SharedLimit::give_back`].
    fn give_back(&self, _: &mut Lease, _: u64, _: u32) {}

    fn is_idle(&self, lease: &Lease, now: u64) -> bool {
        lease.is_idle(now)
    }
}

impl fmt::Debug for SharedLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedLimit").field("quota", &self.quota).finish_non_exhaustive()
    }
}

impl SharedLimit {
    /// A limit whose meaning `name` has been told, for so many keys.
    pub fn new(settings: SharedSettings, quota: SharedQuota, name: KeyWriter, keys: usize) -> Self {
        let own = match quota {
            SharedQuota::Rate(rate, _) => Own::of_rate(rate, keys),
            SharedQuota::Window(window) => Own::of_window(window, keys),
        };
        let (asked, away) = Default::default();
        Self { settings, quota, name, own, held: Store::new(Leases, keys), asked, away }
    }

    /// Writes a key of it.
    pub fn writer(&self) -> KeyWriter {
        self.name.clone()
    }

    /// A request comes. Without counters the cluster is this node alone.
    pub fn begin(
        self: &Arc<Self>,
        key: SharedKey,
        (now, cost): (u64, u32),
        counters: Option<&Arc<dyn Counters>>,
    ) -> Begun {
        let local = key.local();
        if u64::from(cost) > self.quota.budget() {
            return Begun::Known(Verdict::Refused { wait: NEVER });
        }
        let Some(counters) = counters else { return Begun::Known(self.own.take(local, now, (1, cost))) };
        let standing = counters.standing();
        if !standing.up {
            return Begun::Known(self.without(local, now, (standing.nodes, cost)));
        }
        if let Some(verdict) = self.on_probation(local, (now, cost), standing) {
            return Begun::Known(verdict);
        }
        let most = self.largest_portion(standing.nodes);
        let step = self.held.with(local, now, |_, lease| lease.step(now, most, cost));
        match step.unwrap_or(Step::Ask { count: cost, step: cost, portion: false }) {
            Step::Spend { left, refill } => {
                self.own.note(local, now, (standing.nodes, cost));
                if refill > 0 {
                    let ask = Ask { key, rule: self.quota.rule(), count: refill, step: 1 };
                    self.ask((ask, now), true, None, counters);
                }
                Begun::Known(Verdict::Admitted { remaining: left.into() })
            }
            Step::Refused { wait } => Begun::Known(Verdict::Refused { wait }),
            Step::Ask { count, step, portion } => {
                let (waiter, waiting) = oneshot::channel();
                let ask = Ask { key, rule: self.quota.rule(), count, step };
                self.ask((ask, now), portion, Some((waiter, cost)), counters);
                Begun::Asked(Waiting(waiting))
            }
        }
    }

    /// How long a request would be refused for, as the store said of late; `None` where it had to be asked, or can't be. Nothing is
    /// taken.
    pub fn refuses(
        &self,
        key: SharedKey,
        (now, cost): (u64, u32),
        counters: Option<&Arc<dyn Counters>>,
    ) -> Option<u64> {
        let local = key.local();
        if u64::from(cost) > self.quota.budget() {
            return Some(NEVER);
        }
        let standing = counters.map(|counters| counters.standing()).filter(|standing| standing.up)?;
        if let Some(Verdict::Refused { wait }) = self.on_probation(local, (now, cost), standing) {
            return Some(wait);
        }
        let most = self.largest_portion(standing.nodes);
        self.held.with(local, now, |_, lease| lease.refuses(now, most, cost)).flatten()
    }

    /// The verdict of a request that has waited.
    pub async fn finish(
        &self,
        key: SharedKey,
        (now, cost): (u64, u32),
        waiting: Waiting,
        counters: Option<&Arc<dyn Counters>>,
    ) -> Verdict {
        let answer = waiting.answer().await;
        let nodes = counters.map_or(1, |counters| counters.standing().nodes);
        match answer {
            Some(answer) if answer.granted > 0 => {
                self.own.note(key.local(), now, (nodes, cost));
                Verdict::Admitted { remaining: answer.remaining }
            }
            Some(answer) => Verdict::Refused { wait: answer.wait.saturating_mul(MICROSECOND).max(1) },
            None => self.without(key.local(), now, (nodes, cost)),
        }
    }

    /// Gives back a request that was let through and then refused by another limit.
    pub fn give_back(&self, key: SharedKey, (now, cost): (u64, u32), counters: Option<&Arc<dyn Counters>>) {
        self.own.give_back(key.local(), now, cost);
        let Some(counters) = counters else { return };
        let granted_at = self.held.with(key.local(), now, |_, lease| lease.give_back(now, cost)).flatten();
        if let Some(at) = granted_at {
            counters.give_back(Ask { key, rule: self.quota.rule(), count: cost, step: cost }, at);
        }
    }

    /// How it is used.
    pub fn usage(&self, now: u64) -> SharedUse {
        let (keys, evicted, uncounted) = self.own.usage();
        let leased = self.leased(now);
        let (asked, away) = (self.asked.load(Ordering::Relaxed), self.away.load(Ordering::Relaxed));
        SharedUse { asked, away, leased, keys, evicted, uncounted }
    }

    /// Units that may be let through without asking.
    pub fn leased(&self, now: u64) -> u64 {
        let mut leased = 0;
        self.held.each(|lease| leased += u64::from(lease.left(now)));
        leased
    }

    fn largest_portion(&self, nodes: u32) -> u32 {
        if self.settings.leased { largest_portion(self.quota.budget(), nodes) } else { 0 }
    }

    /// Refuses what is beyond this node's share for as long as a store that has forgotten everything can't know of it.
    fn on_probation(&self, local: u64, (now, cost): (u64, u32), standing: Standing) -> Option<Verdict> {
        let forgot = standing.forgot?;
        if self.settings.away == WhenAway::Open || now.saturating_sub(forgot) >= self.quota.span() {
            return None;
        }
        let verdict = self.own.peek(local, now, (standing.nodes, cost));
        matches!(verdict, Verdict::Refused { .. }).then_some(verdict)
    }

    /// The verdict while the store is away.
    fn without(&self, local: u64, now: u64, (nodes, cost): (u32, u32)) -> Verdict {
        self.away.fetch_add(1, Ordering::Relaxed);
        match self.settings.away {
            WhenAway::Open => {
                self.own.note(local, now, (nodes, cost));
                Verdict::Admitted { remaining: 0 }
            }
            WhenAway::Closed => Verdict::Refused { wait: AWAY_WAIT },
            WhenAway::Share => {
                let verdict = self.own.take(local, now, (nodes, cost));
                if matches!(verdict, Verdict::Admitted { .. }) {
                    // The store hears of it when it is asked again.
                    self.held.with(local, now, |_, lease| lease.owe(now, self.quota.span(), cost));
                }
                verdict
            }
        }
    }

    /// Asks the store; for a portion, and for the request that waits, if one does.
    fn ask(
        self: &Arc<Self>,
        (ask, now): (Ask, u64),
        portion: bool,
        waiter: Option<(Waiter, u32)>,
        counters: &Arc<dyn Counters>,
    ) {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let (limit, with) = (Arc::clone(self), Arc::clone(counters));
        let done = move |answer: Result<Answer, Away>| {
            if let Ok(answer) = answer {
                return limit.settle((ask, now), (portion, waiter), answer, &with);
            }
            limit.held.with(ask.key.local(), now, |_, lease| lease.failed(portion));
            // Nobody may be waiting any more.
            let _ = waiter.map(|(waiter, _)| waiter.send(Err(Away)));
        };
        counters.take(ask, Box::new(done));
    }

    fn settle(
        self: &Arc<Self>,
        (ask, now): (Ask, u64),
        (portion, waiter): (bool, Option<(Waiter, u32)>),
        answer: Answer,
        counters: &Arc<dyn Counters>,
    ) {
        let most = self.largest_portion(counters.standing().nodes);
        let (key, local, life) = (ask.key, ask.key.local(), self.quota.life());
        let grant = Grant {
            asked: ask.count,
            granted: answer.granted,
            waits: waiter.as_ref().map_or(0, |(_, cost)| *cost),
            portion,
            wait: answer.wait.saturating_mul(MICROSECOND),
            at: answer.at,
            life,
        };
        let settled = self.held.with(local, now, |_, lease| lease.settle(grant, now, most));
        // What there is no room to keep goes back at once.
        let settled = settled.unwrap_or_else(|| {
            let admits = grant.waits > 0 && grant.granted >= grant.waits;
            let back = grant.granted - if admits { grant.waits } else { 0 };
            Settled { admits, ran_out: [(back, answer.at), (0, 0)] }
        });
        self.send_back(key, settled.ran_out, &**counters);
        if let Some((waiter, cost)) = waiter {
            let told = Answer { granted: settled.admits.into(), ..answer };
            if waiter.send(Ok(told)).is_err() && settled.admits {
                self.held.with(local, now, |_, lease| lease.keep(now, life, cost));
            }
        }
        if self.held.with(local, now, |_, lease| lease.left(now) > 0) == Some(true) {
            self.watch(key, now, counters);
        }
    }

    /// Gives a portion back to the store when it has run out.
    fn watch(self: &Arc<Self>, key: SharedKey, now: u64, counters: &Arc<dyn Counters>) {
        let (limit, with) = (Arc::clone(self), Arc::clone(counters));
        let life = self.quota.life();
        let over = now.saturating_add(life);
        let then = move || {
            let ran_out = limit.held.with(key.local(), over, |_, lease| lease.run_out(over));
            limit.send_back(key, ran_out.unwrap_or_default(), &*with);
        };
        counters.later(Duration::from_nanos(life), Box::new(then));
    }

    fn send_back(&self, key: SharedKey, what: RanOut, counters: &dyn Counters) {
        for (count, at) in what.into_iter().filter(|(count, _)| *count > 0) {
            counters.give_back(Ask { key, rule: self.quota.rule(), count, step: 1 }, at);
        }
    }
}
