//! Watches joined connections while there are any, on a thread of its own, and takes pods whose connections suffer out of
//! acceleration.
//!
//! A connection that floods its receiver is led back to TCP: the sending end's decision becomes `plain`, so that its next bytes
//! come by TCP, which stops the sender when they are not read. No byte is overtaken: the receiver reads what was handed over
//! before what TCP has, and nothing is handed over any more.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use agent_common::acceleration::{EndKey, EndValue};
use aya::maps::{HashMap as KernelMap, MapData};

use super::watch::{Fault, Sighting, Watch};
use super::{AccelerationCounters, backlog, namespaces, node_cookie};

/// Between two looks at how much memory TCP has: a fast sender fills some 400 MiB meanwhile.
const GLANCE_EVERY: Duration = Duration::from_millis(100);
/// Between two looks at every joined connection while TCP has little.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// What TCP holds, in pages, before it is looked at with every glance: 128 MiB, but no more than this part of the memory at
/// which it begins to save.
const MUCH: u64 = 128 << 20 >> 12;
const MUCH_PART: u64 = 4;
/// `BPF_EXIST`: a decision that is gone meanwhile is not made anew.
const EXISTING: u64 = 2;
/// The map's entries; it may change under the reader, who would then begin anew.
const ENDS_MAX: usize = 2 * 131_072;

/// Pods that take no part any more, by their namespaces, and what was found.
#[derive(Debug, Default)]
pub struct Withdrawn {
    cookies: Mutex<BTreeSet<u64>>,
    counts: [AtomicU64; Fault::ALL.len()],
    led_back: AtomicU64,
}

impl Withdrawn {
    /// Whether the pod in this namespace takes no part any more.
    pub fn contains(&self, cookie: u64) -> bool {
        self.cookies.lock().unwrap_or_else(PoisonError::into_inner).contains(&cookie)
    }

    /// Connections by fault.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        let count = |fault: Fault| (fault.as_str(), self.counts[fault as usize].load(Ordering::Relaxed));
        Fault::ALL.map(count).into()
    }

    /// Ends that hand nothing over any more.
    pub fn led_back(&self) -> u64 {
        self.led_back.load(Ordering::Relaxed)
    }

    /// Whether it is new.
    fn add(&self, cookie: u64) -> bool {
        self.cookies.lock().unwrap_or_else(PoisonError::into_inner).insert(cookie)
    }
}

/// The thread; it ends when this is dropped.
pub struct Watcher {
    _stop: mpsc::Sender<()>,
}

impl Watcher {
    /// Starts it; without it, acceleration goes on unwatched, which is said.
    pub fn start(ends: KernelMap<MapData, EndKey, EndValue>, counters: AccelerationCounters) -> Option<Self> {
        let (stop, stopped) = mpsc::channel();
        let begin = || -> io::Result<()> {
            let node = node_cookie().map_err(io::Error::other)?;
            let own = (node, File::open("/proc/self/ns/net")?);
            // The limit is the machine's, and is not shown in other network namespaces than the first one.
            let limits = fs::read_to_string("/proc/sys/net/ipv4/tcp_mem").unwrap_or_default();
            let much = words(&limits).nth(1).map_or(MUCH, |pressure| MUCH.min(pressure / MUCH_PART));
            let look = Look { ends, counters, node, files: HashMap::from([own]), watch: Watch::default() };
            let thread = std::thread::Builder::new().name("accel-watch".to_owned());
            thread.spawn(move || run(look, much, &stopped)).map(drop)
        };
        match begin() {
            Ok(()) => Some(Self { _stop: stop }),
            Err(error) => {
                tracing::error!(%error, "accelerated connections that stall will not be noticed");
                None
            }
        }
    }
}

struct Look {
    ends: KernelMap<MapData, EndKey, EndValue>,
    counters: AccelerationCounters,
    node: u64,
    /// Namespaces in which joined sockets were seen.
    files: HashMap<u64, File>,
    watch: Watch,
}

fn run(mut look: Look, much: u64, stopped: &mpsc::Receiver<()>) {
    let mut last = Instant::now();
    while stopped.recv_timeout(GLANCE_EVERY) == Err(RecvTimeoutError::Timeout) {
        let due = last.elapsed() >= LOOK_EVERY;
        // The file is one for all namespaces in what it says of memory.
        let held = fs::read_to_string("/proc/net/sockstat").ok().and_then(|text| held(&text)).unwrap_or(0);
        if (due || held > much) && look.counters.read().sockets > 0 {
            last = Instant::now();
            look.take(last);
        }
    }
}

/// Pages that TCP holds, of `/proc/net/sockstat`.
fn held(sockstat: &str) -> Option<u64> {
    let line = sockstat.lines().find(|line| line.starts_with("TCP:"))?;
    words(line.split_once(" mem ")?.1).next()
}

fn words(text: &str) -> impl Iterator<Item = u64> {
    text.split_whitespace().map_while(|word| word.parse().ok())
}

impl Look {
    fn take(&mut self, now: Instant) {
        let sightings = self.sightings();
        for (key, fault) in self.watch.look(now, &sightings) {
            self.tell(&key, fault);
        }
    }

    /// Joined ends with unread bytes.
    fn sightings(&mut self) -> Vec<Sighting> {
        let there: BTreeSet<u64> = self.ends.keys().take(ENDS_MAX).flatten().map(|key| key.cookie).collect();
        self.files.retain(|cookie, _| *cookie == self.node || there.contains(cookie));
        if there.iter().any(|cookie| !self.files.contains_key(cookie)) {
            let found = namespaces::namespaces().into_iter().map(|found| (found.cookie, found.file));
            self.files.extend(found.filter(|(cookie, _)| there.contains(cookie)));
        }
        let mut sightings = Vec::new();
        for (cookie, file) in self.files.iter().filter(|(cookie, _)| there.contains(cookie)) {
            match backlog::unread_in(file, *cookie) {
                Ok(found) => sightings.extend(found.iter().filter_map(|(key, unread)| {
                    let sender = self.sender(key)?;
                    let handed = self.ends.get(&sender, 0).ok().filter(|end| end.is_joined())?.handed;
                    Some(Sighting { key: *key, unread: *unread, handed })
                })),
                Err(error) => tracing::debug!(%error, "sockets of a namespace could not be looked at"),
            }
        }
        sightings
    }

    /// The other end of a joined one.
    fn sender(&self, key: &EndKey) -> Option<EndKey> {
        let end = self.ends.get(key, 0).ok().filter(|end| end.is_joined())?;
        Some(key.peer(end.peer_cookie))
    }

    fn tell(&mut self, key: &EndKey, fault: Fault) {
        let Some(sender) = self.sender(key) else { return };
        let withdrawn = &self.counters.withdrawn;
        withdrawn.counts[fault as usize].fetch_add(1, Ordering::Relaxed);
        let led_back = self.ends.get(&sender, 0).map(EndValue::led_back);
        if fault == Fault::Flooded && led_back.and_then(|end| self.ends.insert(sender, end, EXISTING)).is_ok() {
            withdrawn.led_back.fetch_add(1, Ordering::Relaxed);
        }
        // The agent is no pod; where it does not read, it is the other end that waits.
        let pod = if key.cookie == self.node { &sender } else { key };
        if withdrawn.add(pod.cookie) {
            tracing::warn!(
                fault = fault.as_str(),
                pod = %address(pod),
                peer = %address(&pod.peer(0)),
                "bytes of an accelerated connection are not read; the pod's new connections use TCP"
            );
        }
    }
}

fn address(key: &EndKey) -> IpAddr {
    let [a, b, c, d, ..] = key.local;
    if key.family == 4 { Ipv4Addr::new(a, b, c, d).into() } else { Ipv6Addr::from(key.local).into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_its_line() {
        let text = "sockets: used 9\nTCP: inuse 5 orphan 0 tw 1 alloc 7 mem 123\nUDP: inuse 1 mem 4\n";
        assert_eq!(held(text), Some(123));
        for broken in ["", "TCP: inuse 5", "TCP: mem x", "UDP: inuse 1 mem 4\n"] {
            assert_eq!(held(broken), None, "{broken}");
        }
    }

    #[test]
    fn a_pod_is_withdrawn_once() {
        let withdrawn = Withdrawn::default();
        assert!(!withdrawn.contains(7));
        assert!(withdrawn.add(7) && !withdrawn.add(7) && withdrawn.contains(7));
        assert_eq!(withdrawn.counts(), [("stalled", 0), ("flooded", 0)]);
    }
}
