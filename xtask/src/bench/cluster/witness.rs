//! A thread that stands before all others of the first processor and asks for it every millisecond. Where it is late, nobody could have
//! run there: the host had given the processor to somebody else, or the kernel did what can't be interrupted. Virtual machines that share
//! a host meet that for a hundredth of the time and more, and so for the slowest hundredth of requests.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use lab::exec::{command, run};
use nix::unistd::gettid;

use super::cores::{Cores, Machine};

/// Between two looks.
const EVERY: Duration = Duration::from_millis(1);
/// What is later than this was kept waiting.
const LATE: Duration = Duration::from_micros(250);

/// The thread.
pub struct Witness {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Range<Instant>>>,
}

/// When the processor was away, in the order of time.
pub struct Away(Vec<Range<Instant>>);

impl Witness {
    /// Starts it.
    pub fn start() -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (ready, begun) = std::sync::mpsc::channel();
        let look = move || {
            let outcome = stand_first();
            let stands = outcome.is_ok();
            // Whoever started it waits for this.
            let _ = ready.send(outcome);
            if stands { look(&stopped) } else { Vec::new() }
        };
        let thread = std::thread::Builder::new().name("witness".to_owned()).spawn(look)?;
        begun.recv().context("the witness says nothing")??;
        Ok(Self { stop, thread })
    }

    /// Ends it.
    pub fn stop(self) -> Result<Away> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map(Away).map_err(|_| anyhow!("the witness panicked"))
    }
}

/// Puts the calling thread on the first processor, before all that do not stand there likewise.
fn stand_first() -> Result<()> {
    Machine::look()?.enter(Cores::First)?;
    run(&mut command("chrt", ["--fifo", "--pid", "1", &gettid().to_string()])).map(drop)
}

fn look(stopped: &AtomicBool) -> Vec<Range<Instant>> {
    let mut away = Vec::new();
    while !stopped.load(Ordering::Relaxed) {
        let last = Instant::now();
        // Asking at a steady pace is this thread's purpose; it waits for no other party.
        std::thread::sleep(EVERY);
        let woken = Instant::now();
        if woken > last + EVERY + LATE {
            away.push(last..woken);
        }
    }
    away
}

impl Away {
    /// Whether it was away at some time of this.
    pub fn touches(&self, span: &Range<Instant>) -> bool {
        let after = self.0.partition_point(|away| away.end <= span.start);
        self.0.get(after).is_some_and(|away| away.start < span.end)
    }

    /// How many times it was within these.
    pub fn count(&self, spans: &[&Range<Instant>]) -> usize {
        let within = |away: &&Range<Instant>| spans.iter().any(|span| span.contains(&away.start));
        self.0.iter().filter(within).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_touched() {
        let begin = Instant::now();
        let span =
            |from: u64, to: u64| begin + Duration::from_millis(from)..begin + Duration::from_millis(to);
        let away = Away(vec![span(10, 12), span(20, 30)]);
        for (from, to, expected) in [
            (0, 10, false),
            (0, 11, true),
            (11, 12, true),
            (12, 20, false),
            (5, 40, true),
            (29, 31, true),
            (30, 40, false),
        ] {
            assert_eq!(away.touches(&span(from, to)), expected, "{from} {to}");
        }
        assert_eq!((away.count(&[&span(0, 15)]), away.count(&[&span(0, 15), &span(15, 40)])), (1, 2));
        assert!(!Away(Vec::new()).touches(&span(0, 9)));
    }
}
