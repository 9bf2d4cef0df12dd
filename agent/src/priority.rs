//! How threads share processors: those that serve requests come first.
//!
//! Nothing waits for a thread of a lower priority: what it does costs freshness when the machine is busy, and not latency.

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
    const fn nice(self) -> i32 {
        match self {
            Self::Serving => 0,
            Self::Control => 5,
            Self::Background => 15,
        }
    }

    /// How long it may go on at a time, in nanoseconds; 0: as the system has it, a few milliseconds. Since Linux 6.12 a thread
    /// is stopped at once for one that wakes up and wants less at a time, and else finishes first what it was given.
    const fn slice(self) -> u64 {
        match self {
            Self::Serving => 0,
            Self::Control => 20_000_000,
            Self::Background => 100_000_000,
        }
    }

    /// Gives it to the calling thread. A system that refuses, as it may to raise one, leaves the thread as it is.
    pub fn take(self) {
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
