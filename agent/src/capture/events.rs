//! Reads the kernel's flow events and keeps the last ones.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use agent_common::event::FlowEvent;
use aya::maps::{MapData, PerCpuArray, RingBuf};
use tokio::io::unix::AsyncFd;

/// How many flows are kept.
const HISTORY_MAX: usize = 4096;

/// A connection that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// Its number; they rise by one.
    pub number: u64,
    /// When the agent heard of it.
    pub at: SystemTime,
    /// Who dialled.
    pub source: SocketAddr,
    /// What was dialled.
    pub destination: SocketAddr,
    /// The interface's index.
    pub interface: u32,
    /// What became of it.
    pub reason: &'static str,
}

/// The last flows, and how many were never told.
#[derive(Clone)]
pub struct Flows {
    history: Arc<Mutex<History>>,
    lost: Arc<PerCpuArray<MapData, u64>>,
}

#[derive(Debug, Default)]
struct History {
    next: u64,
    flows: VecDeque<Flow>,
}

impl Flows {
    pub(super) fn new(lost: PerCpuArray<MapData, u64>) -> Self {
        Self { history: Arc::default(), lost: Arc::new(lost) }
    }

    /// The flows from this number on that are still kept, and the number of the next one.
    pub fn since(&self, number: u64) -> (Vec<Flow>, u64) {
        self.history().since(number)
    }

    /// Events that the programs could not tell, since they were loaded.
    pub fn lost(&self) -> u64 {
        self.lost.get(&0, 0).map_or(0, |values| values.iter().sum())
    }

    fn history(&self) -> std::sync::MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads events for as long as the kernel's ring is there.
    pub(super) async fn follow(self, ring: RingBuf<MapData>) -> io::Result<()> {
        #[expect(unsafe_code, reason = "tokio asks for a promise about the descriptor")]
        // SAFETY: the ring owns its descriptor, which is neither replaced nor closed while it is registered.
        let mut ring = unsafe { AsyncFd::register(ring)? };
        loop {
            let mut ready = ring.readable_mut().await?;
            let events = ready.get_inner_mut();
            while let Some(bytes) = events.next() {
                if let Some(event) = FlowEvent::read(&bytes) {
                    self.history().push(&event, SystemTime::now());
                }
            }
            ready.clear_ready();
        }
    }
}

impl History {
    fn push(&mut self, event: &FlowEvent, at: SystemTime) {
        if self.flows.len() == HISTORY_MAX {
            self.flows.pop_front();
        }
        self.flows.push_back(Flow {
            number: self.next,
            at,
            source: end(event.family, event.source, event.source_port),
            destination: end(event.family, event.destination, event.destination_port),
            interface: event.interface,
            reason: event.reason().map_or("unknown", agent_common::capture::Reason::as_str),
        });
        self.next += 1;
    }

    fn since(&self, number: u64) -> (Vec<Flow>, u64) {
        let known = self.flows.partition_point(|flow| flow.number < number);
        (self.flows.range(known..).cloned().collect(), self.next)
    }
}

fn end(family: u8, address: [u8; 16], port: [u8; 2]) -> SocketAddr {
    let [a, b, c, d, ..] = address;
    let ip = match family {
        4 => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        _ => IpAddr::V6(Ipv6Addr::from(address)),
    };
    SocketAddr::new(ip, u16::from_be_bytes(port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_common::capture::Reason;

    fn event(port: u16) -> FlowEvent {
        let mut address = [0; 16];
        address[..4].copy_from_slice(&[10, 0, 0, 1]);
        FlowEvent {
            source: address,
            destination: address,
            source_port: port.to_be_bytes(),
            destination_port: 80u16.to_be_bytes(),
            interface: 3,
            reason: Reason::NoRoute as u32,
            family: 4,
            padding: [0; 3],
        }
    }

    #[test]
    fn the_last_flows_are_kept_and_nobody_sees_one_twice() {
        let mut history = History::default();
        let total = u16::try_from(HISTORY_MAX + 10).unwrap();
        (0..total).for_each(|port| history.push(&event(port), SystemTime::UNIX_EPOCH));
        let (flows, next) = history.since(0);
        assert_eq!((flows.len(), flows[0].number, next), (HISTORY_MAX, 10, u64::from(total)));
        assert_eq!(flows[0].source, "10.0.0.1:10".parse().unwrap());
        assert_eq!(flows[0].reason, "no_route");
        assert_eq!(history.since(next), (Vec::new(), next));
        assert_eq!(history.since(next - 2).0.len(), 2);
        assert_eq!(history.since(next + 5).0.len(), 0);
    }

    #[test]
    fn ends_of_either_family_are_read() {
        let mut v6 = [0; 16];
        v6[15] = 1;
        assert_eq!(end(6, v6, [0, 80]), "[::1]:80".parse().unwrap());
        assert_eq!(
            end(4, [10, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [1, 0]),
            "10.1.2.3:256".parse().unwrap()
        );
    }
}
