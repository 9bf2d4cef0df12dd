//! How threads share processors: those that serve requests come first.
//!
//! Nothing waits for a thread of a lower priority: what it does costs freshness when the machine is busy, and not latency.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// How long background work goes on without a pause, and how long that pause is at least.
///
/// A thread that has run a moment ago and is woken, or was stopped for another, beside one of low priority, waits until the next tick
/// (4 ms) for that one to catch up, however small its share is. Nobody waits where it pauses.
const AT_A_TIME: Duration = Duration::from_micros(200);
const PAUSE: Duration = Duration::from_micros(50);

thread_local! {
    /// Since when the calling thread does background work, if it does.
    static SINCE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Pauses, where the calling thread has done background work for a while. Long work calls it again and again.
pub fn give_way() {
    if SINCE.get().is_some_and(|since| since.elapsed() >= AT_A_TIME) {
        std::thread::sleep(PAUSE);
        SINCE.set(Some(Instant::now()));
    }
}

/// How a thread stands behind those that serve requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Serves requests, or answers probes.
    Serving,
    /// Decides what is served next: documents, tables, the cluster.
    Control,
    /// Does what only has to be done some time.
    Background,
}

impl Priority {
    /// As `nice` has it: each step is a tenth of the processor less than the step before, where threads compete for one.
    ///
    /// A thread that was woken while another one ran waits, where it has had more than its share a moment ago, until those behind it
    /// have caught up, and nobody looks again before the next tick (4 ms): for `Control` at 5 that was the slowest hundredth of requests
    /// beside a change of the table. The less its share is, the less there is to catch up.
    const fn nice(self) -> i32 {
        match self {
            Self::Serving => 0,
            Self::Control => 10,
            Self::Background => 15,
        }
    }

    /// How long it may go on at a time, in nanoseconds; 0: as the system has it, a few milliseconds. Since Linux 6.12 a thread
    /// is stopped at once for one that wakes up and wants less at a time, and else finishes first what it was given. The more it
    /// wants, the longer it waits for its turn on a busy processor.
    const fn slice(self) -> u64 {
        match self {
            Self::Serving => 0,
            Self::Control => 3_000_000,
            Self::Background => 100_000_000,
        }
    }

    /// Gives it to the calling thread. A system that refuses, as it may to raise one, leaves the thread as it is.
    pub fn take(self) {
        SINCE.set((self == Self::Background).then(Instant::now));
        let attributes = Attributes {
            size: u32::try_from(size_of::<Attributes>()).expect("it is small"),
            policy: u32::try_from(libc::SCHED_OTHER).expect("it is 0"),
            flags: 0,
            nice: self.nice(),
            priority: 0,
            runtime: self.slice(),
            deadline: 0,
            period: 0,
        };
        #[expect(unsafe_code, reason = "the system call has no safe wrapper")]
        // SAFETY: the kernel reads as many bytes as `size` says, all of them set, and writes none. The first 0 is the calling
        // thread.
        let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
        if result != 0 {
            let error = std::io::Error::last_os_error();
            tracing::debug!(%error, priority = ?self, "a thread keeps its priority");
        }
    }
}

/// `struct sched_attr` in its first form (Linux 3.14).
#[repr(C)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

const _: () = assert!(size_of::<Attributes>() == 48, "as the kernel has it");

#[cfg(test)]
mod tests {
    use super::*;

    fn nice() -> i32 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").expect("is there");
        let after_name = stat.rsplit_once(')').expect("has a name").1;
        after_name.split_whitespace().nth(16).and_then(|field| field.parse().ok()).expect("is a number")
    }

    #[test]
    fn background_work_alone_pauses() {
        let pauses = |priority: Priority| {
            let work = move || {
                priority.take();
                let begin = SINCE.get();
                let worked = || begin.is_none_or(|begin| begin.elapsed() >= AT_A_TIME);
                while !worked() {
                    std::hint::spin_loop();
                }
                give_way();
                (begin.is_some(), SINCE.get() > begin)
            };
            std::thread::spawn(work).join().expect("does not panic")
        };
        assert_eq!(pauses(Priority::Background), (true, true));
        assert_eq!(pauses(Priority::Control), (false, false));
    }

    #[test]
    fn a_thread_takes_its_own_priority_and_nobody_elses() {
        let before = nice();
        let taken = std::thread::spawn(|| {
            Priority::Background.take();
            nice()
        });
        assert_eq!(taken.join().expect("does not panic"), Priority::Background.nice());
        assert_eq!(nice(), before);
    }
}
