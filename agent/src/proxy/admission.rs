//! What the agent takes on: connections, by source and in all, and requests and the bytes they buffer, by worker. Pure
//! counting; those who ask refuse.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

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
}

impl Default for AdmissionSettings {
    /// 65,536 connections, 32,768 requests, 2 GiB.
    fn default() -> Self {
        Self { connections: 65_536, requests: 32_768, buffered: 2 << 30 }
    }
}

/// Counts the open client connections of all workers; asked once for each connection.
#[derive(Debug)]
pub struct Admission {
    most: u32,
    open: AtomicU32,
    /// Holds sources with open connections only, so that it is bounded as these are.
    sources: Mutex<HashMap<Source, u32, foldhash::fast::RandomState>>,
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
        Self { most: settings.connections, open: AtomicU32::new(0), sources: Mutex::default() }
    }

    /// Counts a connection; it must be given back with [`Self::leave`] and the same `per_source`.
    pub(super) fn enter(&self, source: Source, per_source: Option<u32>) -> Result<(), Crowded> {
        if self.open.fetch_add(1, Ordering::Relaxed) >= self.most {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return Err(Crowded::Agent);
        }
        let Some(most) = per_source else { return Ok(()) };
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let open = sources.entry(source).or_default();
        if *open >= most {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return Err(Crowded::Source);
        }
        *open += 1;
        Ok(())
    }

    /// A connection ended.
    pub(super) fn leave(&self, source: Source, per_source: Option<u32>) {
        self.open.fetch_sub(1, Ordering::Relaxed);
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
}

/// What a worker is busy with, and its share of what the agent may be.
#[derive(Debug)]
pub(super) struct Load {
    requests: Cell<usize>,
    buffered: Cell<usize>,
    most_requests: usize,
    most_buffered: usize,
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
    /// One of `workers`.
    pub fn new(settings: &AdmissionSettings, workers: usize) -> Rc<Self> {
        let share = |whole: usize| whole.div_ceil(workers.max(1));
        Rc::new(Self {
            requests: Cell::new(0),
            buffered: Cell::new(0),
            most_requests: share(settings.requests),
            most_buffered: share(settings.buffered),
        })
    }

    /// Takes a request on, until the slot is dropped.
    pub fn admit(self: &Rc<Self>) -> Result<Slot, Overload> {
        if self.requests.get() >= self.most_requests {
            return Err(Overload::Requests);
        }
        if self.buffered.get() + REQUEST_BYTES > self.most_buffered {
            return Err(Overload::Buffered);
        }
        self.requests.set(self.requests.get() + 1);
        self.buffered.set(self.buffered.get() + REQUEST_BYTES);
        Ok(Slot(Rc::clone(self)))
    }

    /// Takes bytes for a larger buffer, to be given back; false where there are none left.
    pub fn take(&self, bytes: usize) -> bool {
        let taken = self.buffered.get() + bytes;
        let granted = taken <= self.most_buffered;
        if granted {
            self.buffered.set(taken);
        }
        granted
    }

    /// Gives back what was taken.
    pub fn give_back(&self, bytes: usize) {
        self.buffered.set(self.buffered.get() - bytes);
    }

    /// Counts bytes that are held for a while, whether there are any left or not: windows bound them.
    pub fn hold(&self, bytes: usize) -> Held<'_> {
        self.buffered.set(self.buffered.get() + bytes);
        Held { load: self, bytes }
    }
}

/// A request that was taken on.
#[derive(Debug)]
pub(super) struct Slot(Rc<Load>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.requests.set(self.0.requests.get() - 1);
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
        assert_eq!(admission.enter(one, Some(2)), Ok(()));
        assert_eq!(admission.enter(one, Some(2)), Ok(()));
        assert_eq!(admission.enter(one, Some(2)), Err(Crowded::Source));
        assert_eq!(admission.enter(other, Some(2)), Ok(()), "a refused one takes no place");
        assert_eq!(admission.enter(other, Some(2)), Err(Crowded::Agent));
        assert_eq!(admission.enter(one, None), Err(Crowded::Agent));
        admission.leave(one, Some(2));
        assert_eq!(admission.enter(one, None), Ok(()), "without a limit none is counted");
        admission.leave(one, None);
        admission.leave(one, Some(2));
        admission.leave(other, Some(2));
        assert!(admission.sources.lock().expect("not poisoned").is_empty());
        assert_eq!(admission.open.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn requests_and_bytes_are_counted_until_they_are_over() {
        let settings =
            AdmissionSettings { requests: 4, buffered: 6 * REQUEST_BYTES, ..AdmissionSettings::default() };
        let load = Load::new(&settings, 2);
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
        assert_eq!((load.requests.get(), load.buffered.get()), (0, 0));
    }
}
