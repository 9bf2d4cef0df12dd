//! How slowly a client may send its body: it may neither pause for too long nor be too slow on average.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use super::HttpSettings;
use crate::http::Refusal;
use crate::http::h1::RequestHead;
use crate::proxy::answer::Problem;

/// What a body that is too long is refused with.
pub(in crate::proxy) const BODY_TOO_LONG: Problem =
    Problem::Refused(Refusal { status: 413, reason: "body_too_long" });

/// What one client is held to while its body is waited for. Time in which the upstream takes nothing does not count.
#[derive(Debug)]
pub(in crate::proxy) struct Pace {
    patience: Option<Duration>,
    rate: Option<Rate>,
    /// Whether the client is held to it yet.
    running: bool,
}

/// The average so far.
#[derive(Debug)]
struct Rate {
    bytes_per_second: u32,
    grace: Duration,
    waited: Duration,
    bytes: u64,
}

impl Rate {
    /// How long the next bytes may still be waited for.
    fn left(&self) -> Duration {
        let earned =
            Duration::from_millis(self.bytes.saturating_mul(1000) / u64::from(self.bytes_per_second.max(1)));
        self.grace.max(earned).saturating_sub(self.waited)
    }
}

impl Pace {
    /// The pace that `settings` ask for. A client that waits for 100 is not slow before it has begun: its upstream is.
    pub fn of(settings: &HttpSettings, head: &RequestHead) -> Self {
        let grace = settings.body_grace;
        let rate = |bytes_per_second| Rate { bytes_per_second, grace, waited: Duration::ZERO, bytes: 0 };
        Self {
            patience: settings.body_timeout,
            rate: settings.body_rate.map(rate),
            running: !head.expects_continue(),
        }
    }

    /// No hurry.
    pub fn leisurely() -> Self {
        Self { patience: None, rate: None, running: false }
    }

    /// Waits like [`Self::wait`] for a client that is held to the pace once it has been told to go on: `continued`, which is
    /// looked at whenever the task runs.
    pub async fn wait_told<T>(
        &mut self,
        continued: &Cell<bool>,
        read: impl Future<Output = T>,
    ) -> Result<T, Problem> {
        let mut read = pin!(read);
        if !self.running {
            let first = poll_fn(|cx| match read.as_mut().poll(cx) {
                Poll::Ready(read) => Poll::Ready(Some(read)),
                Poll::Pending if continued.get() => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            });
            if let Some(read) = first.await {
                return Ok(read);
            }
            self.running = true;
        }
        self.wait(read).await
    }

    /// Waits for `read` for as long as the client has. A clock is only looked at if it is not there at once.
    pub async fn wait<T>(&mut self, read: impl Future<Output = T>) -> Result<T, Problem> {
        let mut read = pin!(read);
        if let Poll::Ready(read) = poll_fn(|cx| Poll::Ready(read.as_mut().poll(cx))).await {
            return Ok(read);
        }
        if !self.running {
            return Ok(read.await);
        }
        let rate = self.rate.as_ref().map(|rate| (rate.left(), Problem::BodyTooSlow));
        let pause = self.patience.map(|patience| (patience, Problem::BodyTimeout));
        let Some((most, problem)) = rate.into_iter().chain(pause).min_by_key(|(most, _)| *most) else {
            return Ok(read.await);
        };
        let since = Instant::now();
        let waited = tokio::time::timeout_at(since + most, read).await;
        if let Some(rate) = &mut self.rate {
            rate.waited += since.elapsed();
        }
        waited.map_err(|_| problem)
    }

    /// The client has sent so many bytes.
    pub fn took(&mut self, bytes: usize) {
        self.running = true;
        if let Some(rate) = &mut self.rate {
            rate.bytes += bytes as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;
    use crate::http::h1::Limits;

    #[test]
    fn bytes_earn_time_beyond_the_grace() {
        let seconds = Duration::from_secs;
        let check = |bytes, waited, left| {
            let (grace, waited) = (seconds(5), seconds(waited));
            let rate = Rate { bytes_per_second: 100, grace, waited, bytes };
            assert_eq!(rate.left(), seconds(left), "{bytes} bytes in {waited:?}");
        };
        check(0, 0, 5);
        check(0, 4, 1);
        check(0, 5, 0);
        check(100, 4, 1);
        check(1000, 4, 6);
        check(1000, 10, 0);
        check(1000, 60, 0);
    }

    #[tokio::test]
    async fn the_first_limit_that_is_met_counts() {
        let mut settings = HttpSettings::gateway();
        settings.body_timeout = Some(Duration::from_millis(20));
        settings.body_grace = Duration::from_millis(5);
        let mut head = RequestHead::default();
        let mut pace = Pace::of(&settings, &head);
        assert_eq!(pace.wait(pending::<()>()).await, Err(Problem::BodyTooSlow), "the grace is over");
        pace.took(24_000);
        assert_eq!(pace.wait(pending::<()>()).await, Err(Problem::BodyTimeout), "100 s earned, but a pause");
        assert_eq!(pace.wait(std::future::ready(7)).await, Ok(7));
        head.parse(
            b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n",
            &Limits::default(),
        )
        .expect("a head");
        let mut pace = Pace::of(&settings, &head);
        let long = settings.body_timeout.expect("set above") * 2;
        let late = tokio::time::timeout(long, pace.wait(pending::<()>())).await;
        assert!(late.is_err(), "it waits for 100");
        pace.took(1);
        assert_eq!(pace.wait(pending::<()>()).await, Err(Problem::BodyTooSlow), "it has begun");
        settings.body_rate = None;
        let mut pace = Pace::of(&settings, &head);
        pace.took(1);
        assert_eq!(pace.wait(pending::<()>()).await, Err(Problem::BodyTimeout), "no rate");
        let mut pace = Pace::of(&settings, &head);
        let continued = Cell::new(false);
        let untold = tokio::time::timeout(long, pace.wait_told(&continued, pending::<()>())).await;
        assert!(untold.is_err(), "nobody has told it to go on");
        continued.set(true);
        let told = pace.wait_told(&continued, pending::<()>()).await;
        assert_eq!(told, Err(Problem::BodyTimeout), "it was told");
    }
}
