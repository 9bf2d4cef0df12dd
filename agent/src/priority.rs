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

    /// Gives it to the calling thread. A system that refuses, as it may to raise one, leaves the thread as it is.
    pub fn take(self) {
        #[expect(unsafe_code, reason = "the call has no safe wrapper")]
        // SAFETY: the call takes three numbers and touches no memory of ours. For Linux the 0 is the calling thread.
        let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, self.nice()) };
        if result != 0 {
            let error = std::io::Error::last_os_error();
            tracing::debug!(%error, priority = ?self, "a thread keeps its priority");
        }
    }
}

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
