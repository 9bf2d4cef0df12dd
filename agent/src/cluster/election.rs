//! Who leads: a pure machine. Whoever runs it tells it what happened and when, and does what it says.
//!
//! The holder of the lease leads from the moment it knows of it until a deadline of its own clock, which is earlier than any
//! at which the store could give the lease to somebody else: it counts from when the renewal was *sent*, and ends before the
//! lease does. A leader that was paused finds the deadline past before it does anything else. What it sent before is refused by
//! the store, or by those who have applied a higher token.
//!
//! ```text
//!              it is time, or the lease may be free
//! following ───────────────────────────────────────▶ asking
//!   ▲  ▲         held by another, no answer            │ granted, and the answer came in time
//!   │  └───────────────────────────────────────────────┤
//!   │                                                  ▼
//!   │   lost · timed out · outranked · unfit        leading ⟲ renewed at every third of the lease's life
//!   └───────────────────────────────────────────────── │
//!                                                      ▼ the agent ends
//!                                                   stopped
//! ```

use std::sync::Arc;
use std::time::Duration;

use super::store::{Acquired, Candidate, EPOCH_MAX, Lease, StoreError};
use crate::compile::Token;

/// A moment of a clock that never goes back and goes on while the machine sleeps, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Millis(pub u64);

impl Millis {
    /// So much later.
    #[must_use]
    pub fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How long until then; zero if it has been.
    pub fn until(self, then: Self) -> Duration {
        Duration::from_millis(then.0.saturating_sub(self.0))
    }
}

/// Of the lease's life, the tenths for which its holder leads without a renewal; the rest is for clocks that go apart.
const LED_TENTHS: u32 = 7;
/// Of the lease's life, the part after which it is renewed, and asked for by others.
const TICK_PART: u32 = 3;
/// Of the lease's life, the part after which a renewal that failed is tried again, and after which who gave a lease back that
/// it could not use asks for the next one, if the store does not tell before that it is free.
const RETRY_PART: u32 = 20;
/// How far those who hear that the lease is free spread their questions.
const RUSH: Duration = Duration::from_millis(20);
/// How far above one's own an epoch may be that somebody claims without proof: more than a term each second for a century.
const EPOCH_STEP: u64 = 1 << 32;

/// Whether an epoch that nothing proves is believed by one who knows of `known`.
pub fn is_credible(known: u64, claimed: u64) -> bool {
    claimed <= EPOCH_MAX && claimed <= known.saturating_add(EPOCH_STEP)
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Time went by.
    Tick,
    /// The answer to [`Action::Acquire`].
    Acquired(Result<Acquired, StoreError>),
    /// The answer to [`Action::Renew`].
    Renewed(Result<bool, StoreError>),
    /// The store tells that the lease was taken or released, or that it can be reached again.
    Changed,
    /// Somebody has applied a table of this token, or the store holds one.
    Saw(Token),
    /// The tables of this leader are refused for what they are: somebody else shall try.
    Unfit,
    /// The agent ends.
    Stop,
}

/// What is to be done, in this order. Each question is answered by an event before the next one is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Ask for the lease.
    Acquire(Candidate),
    /// Ask for more time.
    Renew(Lease),
    /// Give it back; the answer changes nothing.
    Release(Lease),
    /// Publish from now on, under this lease.
    Lead(Lease),
    /// Publish no more.
    Yield(Why),
}

/// Why a leader leads no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// The lease is another's, or gone.
    Lost,
    /// No renewal came through in time.
    TimedOut,
    /// A higher token is about.
    Outranked,
    /// Its tables are refused.
    Unfit,
    /// It ends.
    Stopping,
}

impl Why {
    /// The name that metrics and the log show.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::TimedOut => "timed_out",
            Self::Outranked => "outranked",
            Self::Unfit => "unfit",
            Self::Stopping => "stopping",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum State {
    /// Somebody else leads, or nobody; it asks at this time, and not before the renewal that it sent when it led is answered:
    /// the answer would be taken for that of a later one.
    Following { ask_at: Millis, renewing: bool },
    /// It asked at this time.
    Asking { since: Millis },
    /// It leads until then at the latest.
    Leading { lease: Lease, until: Millis, renew_at: Millis, renewing: Option<Millis> },
    /// It asks no more.
    Stopped,
}

/// The machine of one agent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Election {
    node: Arc<str>,
    nonce: u64,
    ttl: Duration,
    /// The highest epoch that it knows of.
    above: u64,
    /// Until then it leaves the lease to others, who are fitter.
    rests_until: Millis,
    state: State,
}

impl Election {
    /// An agent that has just begun: `highest` is the highest token that it ever applied. It asks at once.
    pub fn new(node: Arc<str>, nonce: u64, ttl: Duration, highest: Token, now: Millis) -> Self {
        Self {
            node,
            nonce,
            ttl,
            above: highest.epoch,
            rests_until: now,
            state: State::Following { ask_at: now, renewing: false },
        }
    }

    /// The lease under which it leads now.
    pub fn leads(&self, now: Millis) -> Option<&Lease> {
        match &self.state {
            State::Leading { lease, until, .. } if now < *until => Some(lease),
            _ => None,
        }
    }

    /// Until when it leads at the latest.
    pub fn leads_until(&self) -> Option<Millis> {
        match &self.state {
            State::Leading { until, .. } => Some(*until),
            _ => None,
        }
    }

    /// When it wants a [`Event::Tick`] at the latest. `None`: it waits for an answer, or for nothing any more.
    pub fn wake_at(&self) -> Option<Millis> {
        match &self.state {
            State::Following { ask_at, renewing: false } => Some(*ask_at),
            State::Leading { until, renew_at, renewing: None, .. } => Some(*until.min(renew_at)),
            State::Leading { until, .. } => Some(*until),
            State::Following { renewing: true, .. } | State::Asking { .. } | State::Stopped => None,
        }
    }

    /// What follows from an event. `random` spreads what many would do at once.
    pub fn on(&mut self, event: Event, now: Millis, random: u64) -> Vec<Action> {
        // Whatever happened: a leader whose time is over has stopped leading before it.
        let mut actions = self.fence(now, random);
        match event {
            Event::Tick => actions.extend(self.tick(now)),
            Event::Acquired(answer) => actions.extend(self.acquired(answer, now, random)),
            Event::Renewed(answer) => actions.extend(self.renewed(&answer, now, random)),
            Event::Changed => self.hurry(now, random),
            Event::Saw(token) => actions.extend(self.saw(token, now)),
            Event::Unfit => {
                self.rests_until = now.after(self.ttl + spread(self.ttl, random));
                actions.extend(self.resign(Why::Unfit, self.rests_until));
            }
            Event::Stop => {
                actions.extend(self.resign(Why::Stopping, now));
                self.state = State::Stopped;
            }
        }
        actions
    }

    fn fence(&mut self, now: Millis, random: u64) -> Vec<Action> {
        match &self.state {
            State::Leading { until, renewing, .. } if now >= *until => {
                let renewing = renewing.is_some();
                let ask_at = now.after(spread(self.ttl / TICK_PART, random));
                self.state = State::Following { ask_at, renewing };
                vec![Action::Yield(Why::TimedOut)]
            }
            _ => Vec::new(),
        }
    }

    fn tick(&mut self, now: Millis) -> Option<Action> {
        match &mut self.state {
            State::Following { ask_at, renewing: false } if now >= *ask_at => Some(self.ask(now)),
            State::Leading { lease, renew_at, renewing, .. } if renewing.is_none() && now >= *renew_at => {
                *renewing = Some(now);
                Some(Action::Renew(lease.clone()))
            }
            _ => None,
        }
    }

    fn ask(&mut self, now: Millis) -> Action {
        self.state = State::Asking { since: now };
        Action::Acquire(Candidate { node: Arc::clone(&self.node), nonce: self.nonce, above: self.above })
    }

    fn acquired(&mut self, answer: Result<Acquired, StoreError>, now: Millis, random: u64) -> Vec<Action> {
        let State::Asking { since } = self.state else {
            // It has ended meanwhile.
            return match answer {
                Ok(Acquired::Yes(lease)) => vec![Action::Release(lease)],
                _ => Vec::new(),
            };
        };
        let tick = self.ttl / TICK_PART;
        self.follow(now.after(early(tick, random)));
        let soon = now.after(self.ttl / RETRY_PART);
        match answer {
            // A higher token came to be known while the question was under way.
            Ok(Acquired::Yes(lease)) if lease.token.epoch <= self.above => {
                self.follow(soon);
                vec![Action::Release(lease)]
            }
            Ok(Acquired::Yes(lease)) => {
                self.above = lease.token.epoch;
                let until = since.after(self.led());
                if now >= until {
                    // The answer was so long under way that the lease may be over.
                    self.follow(now.after(spread(tick, random)));
                    return vec![Action::Release(lease)];
                }
                let renew_at = since.after(early(tick, random));
                self.state = State::Leading { lease: lease.clone(), until, renew_at, renewing: None };
                vec![Action::Lead(lease)]
            }
            // A question whose answer was lost was granted. Under its token nothing was published, and nothing will be.
            Ok(Acquired::Held(Some(lease))) if lease.node == self.node && lease.token.nonce == self.nonce => {
                if lease.token.epoch <= EPOCH_MAX {
                    self.above = self.above.max(lease.token.epoch);
                }
                self.follow(soon);
                vec![Action::Release(lease)]
            }
            Ok(Acquired::Held(_)) | Err(_) => Vec::new(),
        }
    }

    fn renewed(&mut self, answer: &Result<bool, StoreError>, now: Millis, random: u64) -> Vec<Action> {
        let (tick, led, retry) = (self.ttl / TICK_PART, self.led(), self.ttl / RETRY_PART);
        if let State::Following { renewing, .. } = &mut self.state {
            *renewing = false;
        }
        let State::Leading { until, renew_at, renewing, .. } = &mut self.state else { return Vec::new() };
        let Some(since) = renewing.take() else { return Vec::new() };
        match answer {
            Ok(true) => {
                *until = since.after(led);
                *renew_at = since.after(early(tick, random));
                Vec::new()
            }
            Ok(false) => {
                self.follow(now.after(spread(tick, random)));
                vec![Action::Yield(Why::Lost)]
            }
            Err(_) => {
                *renew_at = now.after(retry);
                Vec::new()
            }
        }
    }

    /// The lease may be free.
    fn hurry(&mut self, now: Millis, random: u64) {
        if let State::Following { ask_at, .. } = &mut self.state {
            *ask_at = now.after(spread(RUSH, random)).min(*ask_at).max(self.rests_until);
        }
    }

    fn saw(&mut self, token: Token, now: Millis) -> Vec<Action> {
        if token.epoch > EPOCH_MAX {
            return Vec::new();
        }
        self.above = self.above.max(token.epoch);
        match &self.state {
            State::Leading { lease, .. } if lease.token < token => self.resign(Why::Outranked, now),
            _ => Vec::new(),
        }
    }

    /// Leads no more, and asks again at this time.
    fn resign(&mut self, why: Why, ask_at: Millis) -> Vec<Action> {
        let State::Leading { lease, renewing, .. } = &self.state else { return Vec::new() };
        let (lease, renewing) = (lease.clone(), renewing.is_some());
        self.state = State::Following { ask_at, renewing };
        vec![Action::Yield(why), Action::Release(lease)]
    }

    fn follow(&mut self, ask_at: Millis) {
        self.state = State::Following { ask_at, renewing: false };
    }

    fn led(&self) -> Duration {
        self.ttl * LED_TENTHS / 10
    }
}

/// Four fifths to all of it.
fn early(tick: Duration, random: u64) -> Duration {
    tick.saturating_sub(spread(tick / 5, random))
}

/// A part of `most`, as the random number says.
fn spread(most: Duration, random: u64) -> Duration {
    let most = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(if most == 0 { 0 } else { random % (most + 1) })
}

#[cfg(test)]
mod tests;
