//! Senders that are held back: their packets are dropped where they leave their pod, until their receiver has shown that it reads
//! what was handed over to it past TCP.
//!
//! A hold ends by itself soon after nobody renews it, so that no connection hangs on an agent that is gone.

use std::collections::HashMap;

use agent_common::acceleration::EndKey;
use aya::Ebpf;
use aya::maps::{Array, HashMap as KernelMap, MapData, MapError};

use crate::capture::CaptureError;
use crate::capture::guard::kernel_now_ns;
use crate::capture::programs::map;

/// How long a hold lasts unless it is renewed, in nanoseconds; looks are never so far apart while one lasts.
const LASTS: u64 = 5_000_000_000;

/// The senders, by their receivers.
pub struct Holds {
    senders: KernelMap<MapData, EndKey, u64>,
    latest: Array<MapData, u64>,
    held: HashMap<EndKey, EndKey>,
}

impl Holds {
    /// None yet.
    pub fn new(ebpf: &mut Ebpf) -> Result<Self, CaptureError> {
        let (senders, latest) = (map(ebpf, "HELD_BACK")?, map(ebpf, "HELD_BACK_UNTIL")?);
        Ok(Self { senders, latest, held: HashMap::new() })
    }

    /// Holds a receiver's sender back.
    pub fn hold(&mut self, receiver: EndKey, sender: EndKey) -> Result<(), MapError> {
        let until = until();
        self.senders.insert(packets_of(sender), until, 0)?;
        self.held.insert(receiver, sender);
        self.latest.set(0, until, 0)
    }

    /// Whom the receiver waits for.
    pub fn sender(&self, receiver: &EndKey) -> Option<EndKey> {
        self.held.get(receiver).copied()
    }

    /// Whether there are any.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Renews the holds of the receivers for which that is so, and ends the others.
    pub fn keep(&mut self, mut keeps: impl FnMut(&EndKey) -> bool) -> Result<(), MapError> {
        let until = until();
        let ended: Vec<_> = self.held.extract_if(|receiver, _| !keeps(receiver)).collect();
        for (_, sender) in ended {
            match self.senders.remove(&packets_of(sender)) {
                Err(MapError::KeyNotFound) | Ok(()) => {}
                Err(error) => return Err(error),
            }
        }
        for sender in self.held.values() {
            self.senders.insert(packets_of(*sender), until, 0)?;
        }
        self.latest.set(0, if self.held.is_empty() { 0 } else { until }, 0)
    }
}

/// What a packet tells of its sender.
fn packets_of(sender: EndKey) -> EndKey {
    EndKey { cookie: 0, ..sender }
}

/// The end of a hold that begins now, in the kernel's monotonic nanoseconds.
fn until() -> u64 {
    kernel_now_ns() + LASTS
}
