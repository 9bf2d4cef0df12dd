//! Limits that the store of the cluster has to be asked about: the request waits, the worker does not.

use std::sync::Arc;

use super::{Held, Left, Limited};
use crate::compile::{LimitCounter, LimitPolicy};
use crate::limit::Verdict;
use crate::limit::counters::{Counters, SharedKey};
use crate::limit::quota::{Begun, SharedLimit};
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
    pub taken: Vec<(&'t LimitCounter, u64)>,
    /// What is held of those on requests in flight.
    pub held: Held,
    /// Those of the cluster.
    pub asks: Vec<SharedAsk<'t>>,
    /// What the client is told of the one that leaves least.
    left: Option<Left<'t>>,
}

/// A limit of the cluster, and the request's key.
pub(super) struct SharedAsk<'t> {
    pub policy: &'t LimitPolicy,
    pub limit: &'t LimitCounter,
    pub shared: &'t Arc<SharedLimit>,
    pub key: SharedKey,
}

impl<'t> Limiting<'t> {
    /// What follows from what this node knows.
    pub(super) fn of(
        planned: Planned<'t>,
        (shadows, enforced): (Vec<Group<'t>>, Group<'t>),
        (counters, now): (&Option<Arc<dyn Counters>>, u64),
        kept: &mut Held,
    ) -> Self {
        if enforced.asks.is_empty() && shadows.iter().all(|shadow| shadow.asks.is_empty()) {
            let planned = planned.telling(enforced.left);
            for group in shadows.into_iter().chain([enforced]) {
                group.keep(kept);
            }
            return Self::Known(planned);
        }
        Self::Asked(Box::new(Asked { planned, shadows, enforced, counters: counters.clone(), now }))
    }
}

impl<'t> Asked<'t> {
    /// Asks. `kept`: what the request then holds until it is over.
    pub async fn settle(self, kept: &mut Held) -> Planned<'t> {
        let Self { planned, shadows, enforced, counters, now } = self;
        for shadow in shadows {
            // It refuses nobody.
            if let Ok(group) = shadow.ask(now, counters.as_ref()).await {
                group.keep(kept);
            }
        }
        match enforced.ask(now, counters.as_ref()).await {
            Ok(group) => {
                let planned = planned.telling(group.left);
                group.keep(kept);
                planned
            }
            Err(limited) => planned.limited(limited),
        }
    }
}

impl<'t> Group<'t> {
    /// Asks one limit after the other; what was taken before one refused is given back.
    async fn ask(mut self, now: u64, counters: Option<&Arc<dyn Counters>>) -> Result<Self, Limited<'t>> {
        let mut left = self.left;
        for (position, ask) in self.asks.iter().enumerate() {
            let verdict = match ask.shared.begin(ask.key, now, counters) {
                Begun::Known(verdict) => verdict,
                Begun::Asked(waiting) => ask.shared.finish(ask.key, now, waiting, counters).await,
            };
            match verdict {
                Verdict::Admitted { remaining } => {
                    let told = Left::told(ask.policy, ask.limit, remaining);
                    left = told.map(|told| Left::least(left, told)).or(left);
                }
                Verdict::Refused { wait } => {
                    ask.limit.count(false);
                    for earlier in &self.asks[..position] {
                        earlier.shared.give_back(earlier.key, now, counters);
                    }
                    let limited = Limited { policy: ask.policy, limit: ask.limit, wait };
                    self.give_back(now);
                    return Err(limited);
                }
            }
        }
        self.left = left;
        Ok(self)
    }

    /// The client is told of the one that leaves least.
    pub(super) fn tell(&mut self, told: Option<Left<'t>>) {
        self.left = told.map(|told| Left::least(self.left, told)).or(self.left);
    }

    /// Gives back what was taken of this node's.
    pub(super) fn give_back(self, now: u64) {
        for (limit, key) in self.taken {
            limit.give_back(key, now);
        }
    }

    /// The request is let through.
    fn keep(mut self, kept: &mut Held) {
        for limit in self.taken.iter().map(|(limit, _)| *limit).chain(self.asks.iter().map(|ask| ask.limit)) {
            limit.count(true);
        }
        kept.append(&mut self.held);
    }
}
