//! Keeps the line of the counters: dials it, looks whether it answers, and tells when the store may have forgotten.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};

use super::super::dial::dial_alone;
use super::{AWAY, Inner};
use crate::compile::limit_time;

/// How often a store that answers is asked how many nodes there are, and one that does not whether it answers again.
const ROUND: Duration = Duration::from_millis(250);
const ROUND_AWAY: Duration = Duration::from_millis(50);
/// A store that can't be dialled is dialled again after this long, and no later than this.
const REDIAL_MIN: Duration = Duration::from_millis(100);
const REDIAL_MAX: Duration = Duration::from_secs(1);
/// A line without an answer for so many looks is given up: what was sent on it may be sent again only much later.
const LOOKS_MAX: u32 = 10;
/// For how long after the store was away nodes that it has not heard of yet are counted all the same.
const NODES_KEPT: Duration = Duration::from_mins(1);

/// Keeps the line.
pub(super) async fn keep(inner: &Inner) {
    let mut wanted = inner.wanted.subscribe();
    // Both senders live as long as this does.
    let _ = wanted.wait_for(|wanted| *wanted).await;
    let mut keeper = Keeper { inner, known: None, redial: REDIAL_MIN, missed: 0, back: Instant::now() };
    loop {
        if inner.line.borrow().is_some() {
            keeper.look().await;
        } else {
            keeper.dial().await;
        }
    }
}

/// What the keeper of the line remembers.
struct Keeper<'a> {
    inner: &'a Inner,
    /// The run of the last server; empty where several are behind one line.
    known: Option<String>,
    redial: Duration,
    /// Looks without an answer.
    missed: u32,
    /// When the store was away last.
    back: Instant,
}

impl Keeper<'_> {
    async fn dial(&mut self) {
        let (inner, limit) = (self.inner, self.inner.options.limit * 4);
        let why = match timeout(limit, dial_alone(&inner.options, &inner.target, &inner.keys)).await {
            Ok(Ok(line)) => {
                let run = line.run.clone();
                // Several servers, or another run of one, may have forgotten what was counted.
                if self.known.as_ref().is_some_and(|known| run.is_empty() || *known != run) {
                    inner.forgot.store(limit_time(Instant::now()).max(1), Ordering::Relaxed);
                }
                (self.known, self.redial, self.missed) = (Some(run), REDIAL_MIN, 0);
                inner.line.send_replace(Some(line));
                return;
            }
            Ok(Err(failure)) => failure.error.to_string(),
            Err(_) => format!("no connection within {limit:?}"),
        };
        // Whoever waits for the first line need not any more.
        inner.away(true, &why);
        sleep(self.redial).await;
        self.redial = (self.redial * 2).min(REDIAL_MAX);
    }

    async fn look(&mut self) {
        let inner = self.inner;
        if inner.state.load(Ordering::Acquire) == AWAY {
            self.back = Instant::now();
        }
        match inner.look(self.back.elapsed() > NODES_KEPT).await {
            Ok(()) => {
                self.missed = 0;
                inner.up();
                let _ = timeout(ROUND, inner.failed.notified()).await;
            }
            Err(failure) => {
                self.missed += 1;
                inner.away(failure.fatal || self.missed >= LOOKS_MAX, &failure.error.to_string());
                sleep(ROUND_AWAY).await;
            }
        }
    }
}
