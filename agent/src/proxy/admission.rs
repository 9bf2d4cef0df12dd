//! What the agent takes on: connections, by source and in all, and requests and the bytes they buffer, by worker. Pure
//! counting; those who ask refuse.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use super::handshakes::{HandshakeSettings, Handshakes};
use super::refusals::{PushDownSettings, Refusals};
use crate::telemetry::Origin;

/// What a request is taken to buffer before it buffers more: a read buffer for each direction.
const REQUEST_BYTES: usize = 64 * 1024;

/// Bounds of the whole agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdmissionSettings {
    /// Open client connections.
    pub connections: u32,
    /// Requests in flight.
    pub requests: usize,
    /// Bytes that requests in flight may have buffered.
    pub buffered: usize,
    /// When sources that keep being refused are kept out by the guard.
    pub push_down: PushDownSettings,
    /// Of TLS handshakes with clients of Gateways.
    pub handshakes: HandshakeSettings,
}

impl Default for AdmissionSettings {
    /// 65,536 connections, 32,768 requests, 2 GiB.
    fn default() -> Self {
        Self {
            connections: 65_536,
            requests: 32_768,
            buffered: 2 << 30,
            push_down: PushDownSettings::default(),
            handshakes: HandshakeSettings::default(),
        }
    }
}

/// Who asks. Strangers may take three quarters of everything, so that they never take what pods need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// A captured pod.
    Pod,
    /// A client of a Gateway's listener, or of a pod.
    Stranger,
}

impl From<&Origin> for Whose {
    fn from(origin: &Origin) -> Self {
        match origin {
            Origin::Outbound => Self::Pod,
            Origin::Inbound | Origin::Tunnel(_) | Origin::Gateway(_) => Self::Stranger,
        }
    }
}

/// Counts the open client connections of all workers; asked once for each connection.
#[derive(Debug)]
pub struct Admission {
    most: u32,
    open: AtomicU32,
    /// Those of strangers among them.
    strangers: AtomicU32,
    /// Holds sources with open connections only, so that it is bounded as these are.
    sources: Mutex<HashMap<Source, u32, foldhash::fast::RandomState>>,
    refusals: Refusals,
    handshakes: Handshakes,
}

/// Who counts as one client: an IPv4 address, or the /64 that an IPv6 host usually has to itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Source {
    V4(u32),
    V6(u64),
}

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            IpAddr::V6(address) => Self::V6(u64::try_from(address.to_bits() >> 64).unwrap_or_default()),
        }
    }
}

/// Why a connection is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Crowded {
    /// The agent has as many as it takes.
    Agent,
    /// Its source has.
    Source,
}

impl Admission {
    /// Nothing is open.
    pub fn new(settings: &AdmissionSettings) -> Self {
        Self {
            most: settings.connections,
            open: AtomicU32::new(0),
            strangers: AtomicU32::new(0),
            sources: Mutex::default(),
            refusals: Refusals::new(settings.push_down),
            handshakes: Handshakes::new(settings.handshakes),
        }
    }

    /// TLS handshakes with clients of Gateways.
    pub fn handshakes(&self) -> &Handshakes {
        &self.handshakes
    }

    /// Who keeps being refused.
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Counts a connection; it must be given back with [`Self::leave`] and the same `per_source`.
    pub(super) fn enter(&self, whose: Whose, source: Source, per_source: Option<u32>) -> Result<(), Crowded> {
        self.count(whose)?;
        let Some(most) = per_source else { return Ok(()) };
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let open = sources.entry(source).or_default();
        if *open >= most {
            self.uncount(whose);
            return Err(Crowded::Source);
        }
        *open += 1;
        Ok(())
    }

    /// A connection ended.
    pub(super) fn leave(&self, whose: Whose, source: Source, per_source: Option<u32>) {
        self.uncount(whose);
        if per_source.is_none() {
            return;
        }
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = sources.get_mut(&source) {
            *open -= 1;
            if *open == 0 {
                sources.remove(&source);
            }
        }
    }

    fn count(&self, whose: Whose) -> Result<(), Crowded> {
        let of_strangers = self.most - self.most / 4;
        if whose == Whose::Stranger && self.strangers.fetch_add(1, Ordering::Relaxed) >= of_strangers {
            self.strangers.fetch_sub(1, Ordering::Relaxed);
            return Err(Crowded::Agent);
        }
        if self.open.fetch_add(1, Ordering::Relaxed) >= self.most {
            self.uncount(whose);
            return Err(Crowded::Agent);
        }
        Ok(())
    }

    fn uncount(&self, whose: Whose) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        if whose == Whose::Stranger {
            self.strangers.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// What a worker is busy with for pods or for strangers, and its share of what the agent may be.
#[derive(Debug)]
pub(super) struct Load {
    whose: Whose,
    busy: Rc<Busy>,
}

/// What a worker is busy with, and how busy it may be.
#[derive(Debug)]
struct Busy {
    requests: Amount,
    buffered: Amount,
}

/// So much of one thing.
#[derive(Debug)]
struct Amount {
    pods: Cell<usize>,
    strangers: Cell<usize>,
    most: usize,
    /// Of `most`, what strangers may take.
    most_strangers: usize,
}

impl Amount {
    fn new(most: usize, most_strangers: usize) -> Self {
        Self { pods: Cell::new(0), strangers: Cell::new(0), most, most_strangers }
    }

    fn of(&self, whose: Whose) -> &Cell<usize> {
        match whose {
            Whose::Pod => &self.pods,
            Whose::Stranger => &self.strangers,
        }
    }

    /// Whether so many more may be taken. What strangers hold beyond their part does not count against pods.
    fn has(&self, whose: Whose, more: usize) -> bool {
        let strangers = self.strangers.get();
        let all = self.pods.get() + strangers.min(self.most_strangers);
        all + more <= self.most && (whose == Whose::Pod || strangers + more <= self.most_strangers)
    }

    fn add(&self, whose: Whose, more: usize) {
        let of = self.of(whose);
        of.set(of.get() + more);
    }

    fn give_back(&self, whose: Whose, less: usize) {
        let of = self.of(whose);
        of.set(of.get() - less);
    }
}

/// Why a request is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overload {
    /// As many are in flight as may be.
    Requests,
    /// Those in flight have buffered as much as may be.
    Buffered,
}

impl Load {
    /// One of `workers`: what it does for pods and what it does for strangers.
    pub fn new(settings: &AdmissionSettings, workers: usize) -> (Rc<Self>, Rc<Self>) {
        let share = |whole: usize| whole.div_ceil(workers.max(1));
        let (requests, buffered) = (share(settings.requests), share(settings.buffered));
        let busy = Rc::new(Busy {
            requests: Amount::new(requests, requests - requests / 4),
            // A small share still holds one request of a stranger.
            buffered: Amount::new(buffered, (buffered - buffered / 4).max(REQUEST_BYTES)),
        });
        let of = |whose| Rc::new(Self { whose, busy: Rc::clone(&busy) });
        (of(Whose::Pod), of(Whose::Stranger))
    }

    /// Takes a request on, until the slot is dropped.
    pub fn admit(self: &Rc<Self>) -> Result<Slot, Overload> {
        let Busy { requests, buffered } = &*self.busy;
        if !requests.has(self.whose, 1) {
            return Err(Overload::Requests);
        }
        if !buffered.has(self.whose, REQUEST_BYTES) {
            return Err(Overload::Buffered);
        }
        requests.add(self.whose, 1);
        buffered.add(self.whose, REQUEST_BYTES);
        Ok(Slot(Rc::clone(self)))
    }

    /// Takes bytes for a larger buffer, to be given back; false where there are none left.
    pub fn take(&self, bytes: usize) -> bool {
        let granted = self.busy.buffered.has(self.whose, bytes);
        if granted {
            self.busy.buffered.add(self.whose, bytes);
        }
        granted
    }

    /// Gives back what was taken.
    pub fn give_back(&self, bytes: usize) {
        self.busy.buffered.give_back(self.whose, bytes);
    }

    /// Counts bytes that are held for a while, whether there are any left or not: windows bound them.
    pub fn hold(&self, bytes: usize) -> Held<'_> {
        self.busy.buffered.add(self.whose, bytes);
        Held { load: self, bytes }
    }
}

/// A request that was taken on.
#[derive(Debug)]
pub(super) struct Slot(Rc<Load>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.busy.requests.give_back(self.0.whose, 1);
        self.0.give_back(REQUEST_BYTES);
    }
}

/// Bytes that are held for a while.
#[derive(Debug)]
pub(super) struct Held<'a> {
    load: &'a Load,
    bytes: usize,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.load.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        text.parse::<IpAddr>().expect("an address").into()
    }

    #[test]
    fn sources_are_hosts() {
        assert_eq!(source("10.0.0.1"), source("::ffff:10.0.0.1"));
        assert_ne!(source("10.0.0.1"), source("10.0.0.2"));
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:1:2:3"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
    }

    #[test]
    fn connections_are_counted_by_source_and_in_all() {
        let admission = Admission::new(&AdmissionSettings { connections: 3, ..AdmissionSettings::default() });
        let (one, other) = (source("10.0.0.1"), source("10.0.0.2"));
        assert_eq!(admission.enter(Whose::Pod, one, Some(2)), Ok(()));
        assert_eq!(admission.enter(Whose::Pod, one, Some(2)), Ok(()));
        assert_eq!(admission.enter(Whose::Pod, one, Some(2)), Err(Crowded::Source));
        assert_eq!(admission.enter(Whose::Pod, other, Some(2)), Ok(()), "a refused one takes no place");
        assert_eq!(admission.enter(Whose::Pod, other, Some(2)), Err(Crowded::Agent));
        assert_eq!(admission.enter(Whose::Pod, one, None), Err(Crowded::Agent));
        admission.leave(Whose::Pod, one, Some(2));
        assert_eq!(admission.enter(Whose::Pod, one, None), Ok(()), "without a limit none is counted");
        admission.leave(Whose::Pod, one, None);
        admission.leave(Whose::Pod, one, Some(2));
        admission.leave(Whose::Pod, other, Some(2));
        assert!(admission.sources.lock().expect("not poisoned").is_empty());
        assert_eq!(admission.open.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn requests_and_bytes_are_counted_until_they_are_over() {
        let settings =
            AdmissionSettings { requests: 4, buffered: 6 * REQUEST_BYTES, ..AdmissionSettings::default() };
        let (load, _) = Load::new(&settings, 2);
        let first = load.admit().expect("the first");
        let second = load.admit().expect("the second");
        assert_eq!(load.admit().err(), Some(Overload::Requests));
        drop(second);
        assert!(load.take(REQUEST_BYTES) && !load.take(REQUEST_BYTES + 1));
        {
            let _held = load.hold(1);
            assert_eq!(load.admit().err(), Some(Overload::Buffered));
        }
        drop(load.admit().expect("what was held is free again"));
        drop(first);
        load.give_back(REQUEST_BYTES);
        assert_eq!((load.busy.requests.pods.get(), load.busy.buffered.pods.get()), (0, 0));
    }

    #[test]
    fn strangers_leave_a_quarter_of_the_connections_to_pods() {
        let check = |most, of_strangers, of_pods| {
            let admission =
                Admission::new(&AdmissionSettings { connections: most, ..AdmissionSettings::default() });
            let taken = |whose| {
                std::iter::repeat_with(|| admission.enter(whose, source("10.0.0.1"), None))
                    .take_while(Result::is_ok)
                    .count()
            };
            assert_eq!((taken(Whose::Stranger), taken(Whose::Pod)), (of_strangers, of_pods), "of {most}");
            admission.leave(Whose::Stranger, source("10.0.0.1"), None);
            assert_eq!((taken(Whose::Pod), taken(Whose::Stranger)), (1, 0), "a free place is anybody's");
        };
        check(1, 1, 0);
        check(3, 3, 0);
        check(4, 3, 1);
        check(100, 75, 25);
    }

    #[test]
    fn strangers_leave_a_quarter_of_requests_and_bytes_to_pods() {
        let check = |requests, buffered, of_strangers, of_pods| {
            let settings = AdmissionSettings { requests, buffered, ..AdmissionSettings::default() };
            let (pods, strangers) = Load::new(&settings, 1);
            let mut slots = Vec::new();
            let mut taken = |load: &Rc<Load>| {
                let before = slots.len();
                slots.extend(std::iter::repeat_with(|| load.admit()).map_while(Result::ok));
                slots.len() - before
            };
            assert_eq!(taken(&strangers), of_strangers, "{requests} requests, {buffered} bytes");
            let more = strangers.take(REQUEST_BYTES);
            assert_eq!(more, buffered > 8 * REQUEST_BYTES, "{requests} requests, {buffered} bytes");
            // Held whether there is room or not, and no reason to turn pods away.
            let held = strangers.hold(buffered);
            assert_eq!(taken(&pods), of_pods, "{requests} requests, {buffered} bytes");
            drop(held);
        };
        check(8, usize::MAX / 4, 6, 2);
        check(1, usize::MAX / 4, 1, 0);
        check(100, 8 * REQUEST_BYTES, 6, 2);
        check(100, REQUEST_BYTES, 1, 0);
    }
}
