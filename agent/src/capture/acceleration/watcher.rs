//! Watches joined connections while there are any, on a thread of its own, and takes pods whose connections suffer out of
//! acceleration.
//!
//! A connection that floods its receiver is led back to TCP: the sending end's decision becomes `plain`, so that its next bytes
//! come by TCP, which stops the sender when they are not read. No byte is overtaken: a receiver that reads what was handed over
//! does so before it reads what TCP has, and nothing is handed over any more. One that splices would read what TCP has
//! alone, and miss the rest without a sign. So the sender of a receiver that has not shown that it reads is held back, that
//! TCP brings nothing, and if it does not show it then, the connection is broken, which both ends are told.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use agent_common::acceleration::{EndKey, EndValue};
use aya::maps::{HashMap as KernelMap, MapData};

use super::backlog::{Backlog, Sockets};
use super::bridges::Past;
use super::hold::Holds;
use super::watch::{Fault, Found, Proof, Sighting, Watch};
use super::{AccelerationCounters, namespaces, node_cookie};

/// Between two looks at how much memory TCP has: a fast sender fills some 400 MiB meanwhile.
const GLANCE_EVERY: Duration = Duration::from_millis(100);
/// Between two looks at every joined connection while TCP has little.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// What TCP holds, in pages, before it is looked at with every glance: 128 MiB, but no more than this part of the memory at
/// which it begins to save.
const MUCH: u64 = 128 << 20 >> 12;
const MUCH_PART: u64 = 4;
/// What all joined ends may hold together, in what counts as much: 512 MiB, or the memory at which TCP begins to save.
const LIMIT_PARTS: u64 = 4;
/// After a look, as many times what it took pass before the next one.
const REST: u32 = 10;
/// Looks for which a namespace that was not found is not sought again.
const SOUGHT_EVERY: u32 = 15;
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
    blind: Mutex<Option<String>>,
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

    /// Why connections are not watched, or not all of them; `None`: they are.
    pub fn blind(&self) -> Option<String> {
        self.blind.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_blind(&self, why: Option<String>) {
        *self.blind.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Whether it is new.
    fn add(&self, cookie: u64) -> bool {
        self.cookies.lock().unwrap_or_else(PoisonError::into_inner).insert(cookie)
    }
}

/// What was decided of ends, and the senders that are held back.
pub type Watched = (KernelMap<MapData, EndKey, EndValue>, Holds);

/// The thread; it ends when this is dropped.
pub struct Watcher {
    _stop: mpsc::Sender<()>,
}

impl Watcher {
    /// Starts it; without it, acceleration goes on unwatched, which is said.
    pub fn start((ends, holds): Watched, counters: AccelerationCounters) -> Option<Self> {
        let (stop, stopped) = mpsc::channel();
        let withdrawn = counters.withdrawn.clone();
        let begin = || -> io::Result<()> {
            let node = node_cookie().map_err(io::Error::other)?;
            let own = (node, File::open("/proc/self/ns/net")?);
            // The limit is the machine's, and is not shown in other network namespaces than the first one.
            let limits = fs::read_to_string("/proc/sys/net/ipv4/tcp_mem").unwrap_or_default();
            let much = words(&limits).nth(1).map_or(MUCH, |pressure| MUCH.min(pressure / MUCH_PART));
            let look = Look {
                ends,
                holds,
                counters,
                node,
                files: HashMap::from([own]),
                not_found: HashMap::new(),
                told: HashSet::new(),
                watch: Watch::default(),
                limit: (much << 12) * LIMIT_PARTS,
            };
            let thread = std::thread::Builder::new().name("accel-watch".to_owned());
            thread.spawn(move || run(look, much, &stopped)).map(drop)
        };
        match begin() {
            Ok(()) => Some(Self { _stop: stop }),
            Err(error) => {
                tracing::error!(%error, "accelerated connections that stall will not be noticed");
                withdrawn.set_blind(Some(error.to_string()));
                None
            }
        }
    }
}

/// A receiver with unread bytes.
struct Seen {
    sighting: Sighting,
    socket: Backlog,
    /// The other end.
    sender: EndKey,
    /// Who sends to it past the agent.
    feeder: Option<EndKey>,
}

/// What the programs and the agent have decided, at one time.
struct Known {
    ends: HashMap<EndKey, EndValue>,
    /// Of each end that is handed bytes, the other one.
    senders: HashMap<EndKey, EndKey>,
    past: Past,
}

struct Look {
    ends: KernelMap<MapData, EndKey, EndValue>,
    holds: Holds,
    counters: AccelerationCounters,
    node: u64,
    /// Namespaces in which joined sockets were seen.
    files: HashMap<u64, File>,
    /// Those that were not found, with the number of looks until they are sought again.
    not_found: HashMap<u64, u32>,
    /// Why namespaces could not be looked at, told once each.
    told: HashSet<String>,
    watch: Watch,
    limit: u64,
}

fn run(mut look: Look, much: u64, stopped: &mpsc::Receiver<()>) {
    let begin = Instant::now();
    let (mut due, mut earliest) = (begin + LOOK_EVERY, begin);
    while stopped.recv_timeout(GLANCE_EVERY) == Err(RecvTimeoutError::Timeout) {
        if look.counters.read().sockets == 0 && look.holds.is_empty() {
            look.forget();
            continue;
        }
        let now = Instant::now();
        // The file is one for all namespaces in what it says of memory.
        let held = || fs::read_to_string("/proc/net/sockstat").ok().and_then(|text| held(&text)).unwrap_or(0);
        let waited_for = !look.holds.is_empty();
        if waited_for || now >= earliest && (now >= due || held() > much) {
            look.take(now);
            due = now + LOOK_EVERY;
            // A look takes longest where the node is busiest.
            earliest = now + now.elapsed() * REST;
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
        let seen = self.sightings();
        let sightings: Vec<_> = seen.iter().map(|seen| seen.sighting).collect();
        // Before somebody is held back anew.
        let there: HashSet<_> = sightings.iter().map(|sighting| sighting.key).collect();
        self.keep(|receiver| there.contains(receiver));
        for found in self.watch.look(now, &sightings, self.limit) {
            if let Some(seen) = seen.iter().find(|seen| seen.sighting.key == found.key) {
                self.act(&found, seen);
            }
        }
    }

    /// Ends the holds of receivers for which that is not so: they have read everything, or are gone.
    fn keep(&mut self, keeps: impl FnMut(&EndKey) -> bool) {
        if let Err(error) = self.holds.keep(keeps) {
            tracing::error!(%error, "senders of accelerated connections may be held back for some seconds");
        }
    }

    /// Nothing is joined: namespaces of pods that are gone are let go.
    fn forget(&mut self) {
        self.files.retain(|cookie, _| *cookie == self.node);
        self.not_found.clear();
        self.watch.forget();
    }

    /// Joined ends with unread bytes.
    fn sightings(&mut self) -> Vec<Seen> {
        // Before what is unread, so that what comes meanwhile does not count as read.
        let ends: HashMap<EndKey, EndValue> = self.ends.iter().take(ENDS_MAX).flatten().collect();
        let past = self.counters.bridges.past();
        let there: BTreeSet<u64> = ends.keys().map(|key| key.cookie).collect();
        let joined = ends.iter().filter(|(_, end)| end.is_joined());
        let known = Known {
            senders: joined.map(|(key, end)| (key.peer(end.peer_cookie), *key)).collect(),
            ends,
            past,
        };
        self.seek(&there);
        let (mut sightings, mut blind) = (Vec::new(), None);
        for (cookie, file) in self.files.iter().filter(|(cookie, _)| there.contains(cookie)) {
            let found = Sockets::enter(file).and_then(|sockets| Ok((sockets.unread(*cookie)?, sockets)));
            match found {
                Ok((found, sockets)) => {
                    sightings.extend(
                        found.into_iter().filter_map(|socket| self.sighting(&known, &sockets, socket)),
                    );
                }
                Err(error) => blind = Some(format!("a namespace's sockets are not shown: {error}")),
            }
        }
        if let Some(why) = blind.as_ref().filter(|why| self.told.insert((*why).clone())) {
            tracing::warn!(why, "accelerated connections that stall may not be noticed");
        }
        self.counters.withdrawn.set_blind(blind);
        sightings
    }

    /// What a joined end has unread. All ends were read before all sockets, and a fast sender hands over much between the one and
    /// the other, so that its receiver would never be seen to read: where it matters, both are read again, one after the other.
    fn sighting(&self, known: &Known, sockets: &Sockets, socket: Backlog) -> Option<Seen> {
        let joined = |end: &EndKey| known.ends.get(end).filter(|end| end.is_joined());
        let held_back = self.holds.sender(&socket.key);
        let feeder = known.past.to(&socket.key).map(|(feeder, _)| feeder);
        let feeder = feeder.filter(|feeder| joined(feeder).is_some() || held_back == Some(*feeder));
        let feeds = known.senders.get(&socket.key).copied();
        if feeds.is_none() && feeder.is_none() && held_back.is_none() {
            return None;
        }
        // Who hands nothing over any more is known by the other end, or by its hold.
        let answers = joined(&socket.key).map(|end| socket.key.peer(end.peer_cookie));
        let sender = feeds.or(answers).or(held_back)?;
        // Who sends past the agent fills this end as well, and what its own peer sends past the agent is elsewhere.
        let received = |end: &EndValue, past: &Past| {
            let to = past.to(&socket.key).map_or(0, |(_, moved)| moved);
            (end.handed + to).saturating_sub(past.of(&sender))
        };
        let handed = received(known.ends.get(&sender)?, &known.past);
        let (unread, held_back) = (socket.unread, held_back.is_some());
        let mut sighting = Sighting { key: socket.key, unread, handed, held_back };
        if sighting.is_vague()
            && let Ok(end) = self.ends.get(&sender, 0)
            && let past = self.counters.bridges.past()
            && let Ok(unread) = sockets.unread_of(&socket)
        {
            sighting = Sighting { unread, handed: received(&end, &past), ..sighting };
        }
        Some(Seen { sighting, socket, sender, feeder })
    }

    /// Finds the namespaces of these cookies, and lets others go.
    fn seek(&mut self, there: &BTreeSet<u64>) {
        self.files.retain(|cookie, _| *cookie == self.node || there.contains(cookie));
        self.not_found.retain(|cookie, looks| {
            *looks -= 1;
            *looks > 0 && there.contains(cookie)
        });
        let known =
            |look: &Self, cookie| look.files.contains_key(cookie) || look.not_found.contains_key(cookie);
        if there.iter().all(|cookie| known(self, cookie)) {
            return;
        }
        let found = namespaces::namespaces().into_iter().map(|found| (found.cookie, found.file));
        self.files.extend(found.filter(|(cookie, _)| there.contains(cookie)));
        let missing = there.iter().filter(|cookie| !self.files.contains_key(cookie));
        self.not_found.extend(missing.map(|cookie| (*cookie, SOUGHT_EVERY)));
    }

    fn act(&mut self, found: &Found, seen: &Seen) {
        let (key, fault) = (&found.key, found.fault);
        // The agent reads what is handed over, and no faster than the other side of the connection takes it.
        let agent = key.cookie == self.node;
        if agent && fault != Fault::Flooded {
            return;
        }
        if found.is_new {
            self.counters.withdrawn.counts[fault as usize].fetch_add(1, Ordering::Relaxed);
        }
        let reads = agent || found.proof == Proof::Reads;
        match (fault, found.proof) {
            (Fault::Stalled, _) => {}
            (Fault::Flooded, _) if reads => {
                // First who sends past the agent, or the agent would go on with what it is sent from now on.
                seen.feeder.iter().chain([&seen.sender]).for_each(|end| self.lead_back(end));
                self.keep(|receiver| receiver != key);
            }
            (Fault::Flooded, Proof::None) => return self.hold_back(seen),
            (Fault::Flooded, _) => {
                self.abort(&seen.socket);
                self.keep(|receiver| receiver != key);
            }
        }
        // Who reads, and is only slower than its sender, needs no more than that.
        let suffices = fault == Fault::Flooded && reads;
        if !agent && !suffices && self.counters.withdrawn.add(key.cookie) {
            tracing::warn!(
                fault = fault.as_str(),
                pod = %address(key),
                peer = %address(&seen.sender),
                "bytes of an accelerated connection are not read; the pod's new connections use TCP"
            );
        }
    }

    /// Holds back who fills a receiver, if that is a pod: its next bytes go by TCP, and wait in its pod. The agent's own cannot be
    /// held back.
    fn hold_back(&mut self, seen: &Seen) {
        let sender = seen.feeder.unwrap_or(seen.sender);
        if sender.cookie == self.node {
            return;
        }
        match self.holds.hold(seen.sighting.key, sender) {
            Ok(()) => self.lead_back(&sender),
            Err(error) => tracing::debug!(%error, "a flooded receiver's sender goes on"),
        }
    }

    fn lead_back(&mut self, sender: &EndKey) {
        let Ok(end) = self.ends.get(sender, 0) else { return };
        if end.is_joined() && self.ends.insert(sender, end.led_back(), EXISTING).is_ok() {
            self.counters.withdrawn.led_back.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn abort(&self, socket: &Backlog) {
        let Some(file) = self.files.get(&socket.key.cookie) else { return };
        let (pod, peer) = (address(&socket.key), address(&socket.key.peer(0)));
        match Sockets::enter(file).and_then(|sockets| sockets.abort(socket)) {
            Ok(()) => tracing::warn!(
                %pod, %peer, unread = socket.unread,
                "an accelerated connection was broken: its receiver does not read what is handed over"
            ),
            // It closed by itself meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => tracing::error!(%error, %pod, %peer, "a flooded connection could not be broken"),
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
