//! Limits that the store of the cluster has to be asked about: the request waits, the worker does not.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{Asking, Held, Left, Limited, enforcing, shadows};
use crate::compile::{LimitCounter, LimitPolicy, Numbers};
use crate::limit::Verdict;
use crate::limit::counters::{Counters, SharedKey};
use crate::limit::quota::{Begun, SharedLimit};
use crate::limit::top::Sample;
use crate::model::Quota;
use crate::proxy::http::plan::Planned;

/// What limits say of a request.
pub(in crate::proxy) enum Limiting<'t> {
    /// All is known.
    Known(Planned<'t>),
    /// The cluster has to be asked.
    Asked(Box<Asked<'t>>),
}

/// A request that the cluster is asked about.
pub(in crate::proxy) struct Asked<'t> {
    planned: Planned<'t>,
    /// Documents that only count, each for itself.
    shadows: Vec<Group<'t>>,
    /// Those that hold.
    enforced: Group<'t>,
    counters: Option<Arc<dyn Counters>>,
    now: u64,
}

/// Limits that let a request through together or not at all.
#[derive(Default)]
pub(super) struct Group<'t> {
    /// What was taken of this node's.
    pub taken: SmallVec<[Taken<'t>; 2]>,
    /// What is held of those on requests in flight.
    pub held: Held,
    /// Those of the cluster.
    pub asks: Vec<SharedAsk<'t>>,
    /// What the client is told of the one that leaves least.
    left: Option<Left<'t>>,
}

/// What was taken of a limit of this node.
pub(super) struct Taken<'t> {
    pub limit: &'t LimitCounter,
    pub numbers: &'t Numbers,
    pub key: u64,
    pub cost: u32,
    pub sample: Option<Sample>,
}

/// A limit of the cluster, the request's key, and what it costs.
pub(super) struct SharedAsk<'t> {
    pub policy: &'t LimitPolicy,
    pub limit: &'t LimitCounter,
    pub quota: Quota,
    pub shared: &'t Arc<SharedLimit>,
    pub key: SharedKey,
    pub cost: u32,
    pub sample: Option<Sample>,
}

impl<'t> SharedAsk<'t> {
    /// It refuses the request, which is counted.
    fn refused(&self, wait: u64, now: u64) -> Limited<'t> {
        self.limit.count(false, self.sample.clone(), now);
        Limited { policy: self.policy, limit: self.limit, quota: self.quota, wait }
    }
}

impl<'t> Limiting<'t> {
    /// What follows from what this node knows.
    pub(super) fn of(
        planned: Planned<'t>,
        (mut shadows, enforced): (Vec<Group<'t>>, &mut Group<'t>),
        (counters, now): (&Option<Arc<dyn Counters>>, u64),
        kept: &mut Held,
    ) -> Self {
        if enforced.asks.is_empty() && shadows.iter().all(|shadow| shadow.asks.is_empty()) {
            let planned = if enforced.left.is_some() { planned.telling(enforced.left) } else { planned };
            for shadow in &mut shadows {
                shadow.keep(kept, now);
            }
            enforced.keep(kept, now);
            return Self::Known(planned);
        }
        let enforced = std::mem::take(enforced);
        Self::Asked(Box::new(Asked { planned, shadows, enforced, counters: counters.clone(), now }))
    }
}

impl<'t> Asked<'t> {
    /// Asks. `kept`: what the request then holds until it is over.
    pub async fn settle(self, kept: &mut Held) -> Planned<'t> {
        let Self { planned, shadows, enforced, counters, now } = self;
        for shadow in shadows {
            // It refuses nobody.
            if let Ok(mut group) = shadow.ask(now, counters.as_ref()).await {
                group.keep(kept, now);
            }
        }
        match enforced.ask(now, counters.as_ref()).await {
            Ok(mut group) => {
                let planned = planned.telling(group.left);
                group.keep(kept, now);
                planned
            }
            Err(limited) => planned.limited(limited),
        }
    }
}

/// Holds what is asked about to documents at once, the store of the cluster among them. `counting`: as [`Group::admit`] has it; what it then
/// holds until it is over goes to `kept`. Gives what the client is told.
pub(super) async fn hold<'t>(
    policies: &[&'t LimitPolicy],
    asking: &Asking<'_>,
    counting: impl Fn(&'t LimitPolicy) -> &'t [Arc<LimitCounter>] + Copy,
    (counters, kept): (Option<&Arc<dyn Counters>>, &mut Held),
) -> Result<Option<Left<'t>>, Limited<'t>> {
    let shadows = shadows(policies, asking, counting);
    let mut enforced = Group::default();
    let admitted = enforced.admit(enforcing(policies), asking, counting);
    for shadow in shadows {
        // It refuses nobody.
        if let Ok(mut group) = shadow.ask(asking.now, counters).await {
            group.keep(kept, asking.now);
        }
    }
    admitted?;
    let mut group = enforced.ask(asking.now, counters).await?;
    group.keep(kept, asking.now);
    Ok(group.left)
}

impl<'t> Group<'t> {
    /// Asks one limit after the other; what was taken before one refused is given back. What this node knows to be refused takes
    /// nothing of any, and is told of the limit that holds longest.
    pub(super) async fn ask(
        mut self,
        now: u64,
        counters: Option<&Arc<dyn Counters>>,
    ) -> Result<Self, Limited<'t>> {
        if let Some((ask, wait)) = self.known_refusal(now, counters) {
            let limited = ask.refused(wait, now);
            self.give_back(now);
            return Err(limited);
        }
        let mut left = self.left;
        for (position, ask) in self.asks.iter().enumerate() {
            let at = (now, ask.cost);
            let verdict = match ask.shared.begin(ask.key, at, counters) {
                Begun::Known(verdict) => verdict,
                Begun::Asked(waiting) => ask.shared.finish(ask.key, at, waiting, counters).await,
            };
            match verdict {
                Verdict::Admitted { remaining } => {
                    let told = Left::told(ask.policy, (ask.limit, ask.quota), remaining);
                    left = told.map(|told| Left::least(left, told)).or(left);
                }
                Verdict::Refused { wait } => {
                    for earlier in &self.asks[..position] {
                        earlier.shared.give_back(earlier.key, (now, earlier.cost), counters);
                    }
                    let limited = ask.refused(wait, now);
                    self.give_back(now);
                    return Err(limited);
                }
            }
        }
        self.left = left;
        Ok(self)
    }

    /// A single one tells it by itself.
    fn known_refusal(&self, now: u64, counters: Option<&Arc<dyn Counters>>) -> Option<(&SharedAsk<'t>, u64)> {
        if self.asks.len() < 2 {
            return None;
        }
        let wait = |ask: &SharedAsk<'t>| ask.shared.refuses(ask.key, (now, ask.cost), counters);
        let known = self.asks.iter().filter_map(|ask| Some((ask, wait(ask)?)));
        known.max_by_key(|(_, wait)| *wait)
    }

    /// The client is told of the one that leaves least.
    pub(super) fn tell(&mut self, told: Option<Left<'t>>) {
        self.left = told.map(|told| Left::least(self.left, told)).or(self.left);
    }

    /// Gives back what was taken of this node's.
    pub(super) fn give_back(self, now: u64) {
        for taken in self.taken {
            taken.numbers.give_back(taken.key, now, taken.cost);
        }
    }

    /// The request is let through.
    pub(super) fn keep(&mut self, kept: &mut Held, now: u64) {
        for taken in &mut self.taken {
            taken.limit.count(true, taken.sample.take(), now);
        }
        for ask in &mut self.asks {
            ask.limit.count(true, ask.sample.take(), now);
        }
        if !self.held.is_empty() {
            kept.append(&mut self.held);
        }
    }
}
