//! Sources that the agent pushed down: each is kept out until its time is over. The kernel looks at the time itself, so that
//! nobody is kept out longer because the agent is busy.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use agent_common::guard::{MAX_PUSHED, SourceKey, pushed_down};
use agent_common::packet::Family;
use aya::maps::{HashMap as KernelMap, MapData};
use nix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc;

use super::trie::Fill;
use crate::capture::CaptureError;

/// Wishes that may wait for the engine; a source that goes on being refused is pushed again.
const QUEUE: usize = 1024;
const NAME: &str = "GUARD_PUSHED";

/// A source to be kept out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Push {
    /// The source; of IPv6 its whole /64.
    pub source: IpAddr,
    /// For how long.
    pub lasts: Duration,
}

/// Tells the guard whom to keep out. Cheap to clone; never blocks.
#[derive(Debug, Clone)]
pub struct GuardHandle(mpsc::Sender<Push>);

impl GuardHandle {
    /// The handle, and where its wishes come out.
    pub fn channel() -> (Self, mpsc::Receiver<Push>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(sender), receiver)
    }

    /// Keeps a source out for a while. False where too many wishes wait.
    pub fn push(&self, source: IpAddr, lasts: Duration) -> bool {
        self.0.try_send(Push { source, lasts }).is_ok()
    }
}

/// The map of pushed sources with its copy.
pub struct Pushed {
    kernel: KernelMap<MapData, SourceKey, u64>,
    held: HashMap<SourceKey, u64>,
    left_out: usize,
}

impl Pushed {
    /// Of an empty map.
    pub fn new(kernel: KernelMap<MapData, SourceKey, u64>) -> Self {
        Self { kernel, held: HashMap::new(), left_out: 0 }
    }

    /// Keeps a source out from `now_ns` on; one that is kept out already, until the later time. Where the map is full it
    /// passes, and is counted.
    pub fn push(&mut self, push: Push, now_ns: u64) -> Result<(), CaptureError> {
        let lasts = u64::try_from(push.lasts.as_nanos()).unwrap_or(u64::MAX);
        let key = source_key(push.source);
        let until = now_ns.saturating_add(lasts);
        if self.held.get(&key).is_some_and(|known| *known >= until) {
            return Ok(());
        }
        if !self.held.contains_key(&key) && self.held.len() >= MAX_PUSHED as usize {
            self.expire(now_ns)?;
            if self.held.len() >= MAX_PUSHED as usize {
                self.left_out += 1;
                return Ok(());
            }
        }
        self.kernel.insert(key, until, 0).map_err(|source| CaptureError::Map { map: NAME, source })?;
        self.held.insert(key, until);
        Ok(())
    }

    /// Forgets those whose time is over.
    pub fn expire(&mut self, now_ns: u64) -> Result<(), CaptureError> {
        let over = self.held.iter().filter(|(_, until)| !pushed_down(**until, now_ns));
        for key in over.map(|(key, _)| *key).collect::<Vec<_>>() {
            self.kernel.remove(&key).map_err(|source| CaptureError::Map { map: NAME, source })?;
            self.held.remove(&key);
        }
        Ok(())
    }

    /// How full it is.
    pub fn fill(&self) -> Fill {
        Fill { map: NAME, entries: self.held.len(), capacity: MAX_PUSHED as usize, left_out: self.left_out }
    }
}

/// What a source's entry is kept under.
pub fn source_key(address: IpAddr) -> SourceKey {
    let (family, octets) = match address.to_canonical() {
        IpAddr::V4(v4) => {
            let mut wide = [0; 16];
            wide[..4].copy_from_slice(&v4.octets());
            (Family::V4, wide)
        }
        IpAddr::V6(v6) => (Family::V6, v6.octets()),
    };
    SourceKey::of(family, &octets)
}

/// The kernel programs' clock.
pub fn kernel_now_ns() -> u64 {
    // It can only fail for a clock that does not exist; at zero nobody's time is over.
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_however_it_is_written() {
        let key = |text: &str| source_key(text.parse().unwrap());
        assert_eq!(key("10.0.0.1"), key("::ffff:10.0.0.1"));
        assert_ne!(key("10.0.0.1"), key("10.0.0.2"));
        assert_eq!(key("fd00::1"), key("fd00::2"), "one /64");
        assert_ne!(key("fd00::1"), key("fd00:0:0:1::1"));
    }

    #[test]
    fn a_full_queue_says_so() {
        let (handle, waiting) = GuardHandle::channel();
        let source = IpAddr::from([10, 0, 0, 1]);
        let taken = (0..=QUEUE).filter(|_| handle.push(source, Duration::from_secs(1))).count();
        assert_eq!((taken, waiting.len()), (QUEUE, QUEUE));
    }

    #[test]
    fn the_clock_runs() {
        let before = kernel_now_ns();
        assert!(before > 0 && kernel_now_ns() >= before);
    }
}
