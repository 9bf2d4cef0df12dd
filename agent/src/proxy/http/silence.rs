//! Upstreams that say nothing: how long one is waited for where neither a route nor the client sets a time.

use std::future::pending;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::caller::{Caller, is_grpc};
use super::plan::Planned;
use super::upstream::Deadline;
use crate::http::h1::RequestHead;
use crate::proxy::answer::Problem;

/// A timer that outlives the waits that it is used for.
pub(in crate::proxy) type Timer = Option<Pin<Box<Sleep>>>;

impl Caller<'_> {
    /// How long the request's upstream may be silent, where its route says nothing of its time. A gRPC call may be silent
    /// for as long as it likes: PINGs tell whether its peers live, and its client gives it a time.
    pub fn patience(
        &self,
        planned: &Planned<'_>,
        head: &RequestHead,
        deadline: Deadline,
    ) -> Option<Duration> {
        let patience = self.settings.upstream_timeout?;
        let route = planned.route.map(|matched| matched.route);
        let said = route.is_some_and(|route| route.timeout.or(route.try_timeout).is_some());
        (!said && deadline.is_none() && !is_grpc(head)).then_some(patience)
    }
}

/// Ends once nothing has moved for all of `patience`, in either direction; `moved` counts the bytes that did. An upload
/// that goes on is a sign of life.
///
/// Looked at only when the timer fires, so that bytes cost nothing: after some have moved, the end comes between one and
/// two times `patience` after the last of them. First polled after the request has been sent, `since` when is known from
/// before: the clock is read only where it matters.
pub(in crate::proxy) async fn silent(
    patience: Option<Duration>,
    mut since: Instant,
    timer: &mut Timer,
    moved: impl Fn() -> u64,
) -> Problem {
    let Some(patience) = patience else { return pending().await };
    let mut seen = moved();
    loop {
        sleep_until(timer, since + patience).await;
        let now = moved();
        if now == seen {
            return Problem::UpstreamSilent;
        }
        (seen, since) = (now, Instant::now());
    }
}

/// Waits until `until` with a timer that is kept from wait to wait. A timer that was set for an earlier wait fires too
/// early and is then set anew, which costs less than setting it for each wait.
pub(in crate::proxy) async fn sleep_until(timer: &mut Timer, until: Instant) {
    loop {
        let sleep = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        if sleep.deadline() > until {
            sleep.as_mut().reset(until);
        }
        sleep.as_mut().await;
        if Instant::now() >= until {
            return;
        }
        sleep.as_mut().reset(until);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn a_full_wait_without_a_byte_is_silence() {
        let wait = Duration::from_millis(20);
        let start = Instant::now();
        let mut timer = Some(Box::pin(tokio::time::sleep_until(start + wait / 2)));
        assert_eq!(silent(Some(wait), start, &mut timer, || 7).await, Problem::UpstreamSilent);
        assert!(start.elapsed() >= wait, "an older timer does not cut it short");

        let (start, looks) = (Instant::now(), Cell::new(0));
        let moved = || {
            looks.set(looks.get() + 1);
            // Bytes came in the first two waits.
            looks.get().min(3)
        };
        assert_eq!(silent(Some(wait), start, &mut timer, moved).await, Problem::UpstreamSilent);
        assert!(start.elapsed() >= wait * 3 && looks.get() == 4);

        let never = tokio::time::timeout(wait, silent(None, start, &mut timer, || 0)).await;
        assert!(never.is_err(), "where nothing is set, silence is no fault");
    }
}
