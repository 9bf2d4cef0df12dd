//! Bridges past the agent: which relays have them, and what the kernel says of them. `agent_common::bridge` has the rules.
//!
//! A relay declares both of its directions once all four ends are joined. From then on it publishes what it has forwarded in memory
//! that it shares with the programs, and they decide when a direction no longer needs it.

mod memory;
mod places;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use agent_common::acceleration::{EndKey, EndValue};
use agent_common::bridge::BRIDGED;
use aya::Ebpf;
use aya::maps::{HashMap as KernelMap, MapData};

use self::memory::Memory;
use self::places::Places;
use super::node_cookie;
use crate::capture::CaptureError;
use crate::capture::programs::{another_handle, octets};
use crate::net::{self, Declared, Leg, Way, is_connected};

/// A key that is in the map is written anew.
const ANY: u64 = 0;

/// All bridges. Copies are one.
#[derive(Clone)]
pub struct Bridges(Arc<Inner>);

struct Inner {
    node: u64,
    ends: KernelMap<MapData, EndKey, EndValue>,
    memory: Memory,
    declared: AtomicU64,
    full: AtomicU64,
    table: Mutex<Table>,
}

struct Table {
    numbers: KernelMap<MapData, EndKey, u32>,
    places: Places,
    /// By sender: the far end, which sends the other way, and the number.
    directions: HashMap<EndKey, (EndKey, u32)>,
    /// Directions that were bridged and are over.
    bridged_before: u64,
}

/// One direction at the time of its declaration.
struct Direction {
    sender: EndKey,
    born: u64,
    number: u32,
}

impl Bridges {
    /// Of a loaded object, before others take its maps of ends.
    pub fn new(ebpf: &mut Ebpf) -> Result<Self, CaptureError> {
        let error = |map| move |source| CaptureError::Map { map, source };
        let hash = |name| another_handle(ebpf, name).map(aya::maps::Map::HashMap);
        let ends = KernelMap::try_from(hash("ENDS")?).map_err(error("ENDS"))?;
        let numbers = KernelMap::try_from(hash("BRIDGE_OF")?).map_err(error("BRIDGE_OF"))?;
        let memory = Memory::map(ebpf, "BRIDGES")?;
        let table = Table {
            numbers,
            places: Places::new(memory.len()),
            directions: HashMap::new(),
            bridged_before: 0,
        };
        Ok(Self(Arc::new(Inner {
            node: node_cookie()?,
            ends,
            memory,
            declared: AtomicU64::new(0),
            full: AtomicU64::new(0),
            table: Mutex::new(table),
        })))
    }

    /// Directions that go past the agent now.
    pub fn bridged(&self) -> u64 {
        self.0.table().bridged(&self.0.memory)
    }

    /// Directions, by what became of them.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        let table = self.0.table();
        let bridged = table.bridged_before + table.bridged(&self.0.memory);
        vec![
            ("declared", self.0.declared.load(Ordering::Relaxed)),
            ("bridged", bridged),
            ("full", self.0.full.load(Ordering::Relaxed)),
        ]
    }

    /// What went past the agent until now.
    pub fn past(&self) -> Past {
        let (table, mut past) = (self.0.table(), Past::default());
        for (sender, (far, number)) in &table.directions {
            let moved = self.0.memory.moved(*number);
            if moved > 0 {
                past.of.insert(*sender, moved);
                past.to.insert(*far, (*sender, moved));
            }
        }
        past
    }
}

/// What went past the agent, of the directions that are not over.
#[derive(Debug, Clone, Default)]
pub struct Past {
    of: HashMap<EndKey, u64>,
    to: HashMap<EndKey, (EndKey, u64)>,
}

impl Past {
    /// Bytes of a sender that went past its peer.
    pub fn of(&self, sender: &EndKey) -> u64 {
        self.of.get(sender).copied().unwrap_or(0)
    }

    /// Who has sent to this end past its peer, and how many bytes.
    pub fn to(&self, far: &EndKey) -> Option<(EndKey, u64)> {
        self.to.get(far).copied()
    }
}

impl net::Bridges for Bridges {
    fn declare(&self, downstream: &Leg, upstream: &Leg, forwarded: [u64; 2]) -> Declared {
        // The client has dialled the agent, and the agent the upstream, whose end may come in this moment.
        let Some(client) = self.0.other_end(downstream).ok().flatten() else { return Declared::Never };
        let server = match self.0.other_end(upstream) {
            Ok(Some(server)) => server,
            Ok(None) => return Declared::Never,
            Err(Undecided) => return Declared::NotYet,
        };
        if let Some(directions) = self.0.declare([client, server], forwarded) {
            self.0.declared.fetch_add(2, Ordering::Relaxed);
            Declared::Bridged(Box::new(Bridge { of: self.clone(), directions, over: OnceLock::new() }))
        } else {
            self.0.full.fetch_add(2, Ordering::Relaxed);
            Declared::Never
        }
    }
}

/// Nothing is decided of an end's connection.
struct Undecided;

impl Inner {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The other end of a connection whose ends are joined, and the connection's birth; `None`: they are not.
    fn other_end(&self, leg: &Leg) -> Result<Option<(EndKey, u64)>, Undecided> {
        let own = key(self.node, leg);
        let end = self.ends.get(&own, 0).map_err(|_| Undecided)?;
        if !end.is_joined() {
            return Ok(None);
        }
        let other = own.peer(end.peer_cookie);
        let there = self.ends.get(&other, 0).ok();
        let joined = there.is_some_and(|there| there.is_joined() && there.born == end.born);
        // Asked last: while this one stands, no other connection has had its addresses.
        Ok((joined && is_connected(leg.socket)).then_some((other, end.born)))
    }

    /// Declares both directions between two ends; `None`: there is no room.
    fn declare(&self, ends: [(EndKey, u64); 2], forwarded: [u64; 2]) -> Option<[Direction; 2]> {
        let [(client, client_born), (server, server_born)] = ends;
        let mut table = self.table();
        let [up, down] = table.places.take_two(Instant::now())?;
        let directions = [
            Direction { sender: client, born: client_born, number: up },
            Direction { sender: server, born: server_born, number: down },
        ];
        for (direction, (far, far_born)) in directions.iter().zip([ends[1], ends[0]]) {
            self.memory.prepare(direction.number, direction.born, (far, far_born));
            table.directions.insert(direction.sender, (far, direction.number));
        }
        let written = directions
            .iter()
            .all(|direction| table.numbers.insert(direction.sender, direction.number, ANY).is_ok());
        if !written {
            self.let_go(&mut table, &directions);
            return None;
        }
        for (direction, forwarded) in directions.iter().zip(forwarded) {
            self.memory.publish(direction.number, forwarded);
        }
        Some(directions)
    }

    /// Bytes that went past the relay, which is over.
    fn end(&self, directions: &[Direction; 2]) -> [u64; 2] {
        let mut table = self.table();
        for direction in directions {
            self.memory.cut(direction.number);
        }
        let moved = [0, 1].map(|way| self.memory.moved(directions[way].number));
        table.bridged_before += moved.iter().map(|moved| u64::from(*moved > 0)).sum::<u64>();
        self.let_go(&mut table, directions);
        moved
    }

    fn let_go(&self, table: &mut Table, directions: &[Direction; 2]) {
        let now = Instant::now();
        for Direction { sender, number, .. } in directions {
            self.memory.cut(*number);
            // A later connection between the same addresses may have a bridge by now.
            if table.numbers.get(sender, 0).is_ok_and(|of| of == *number) {
                let _ = table.numbers.remove(sender);
            }
            if table.directions.get(sender).is_some_and(|(_, of)| of == number) {
                table.directions.remove(sender);
            }
            table.places.give_back(*number, now);
        }
    }
}

impl Table {
    fn bridged(&self, memory: &Memory) -> u64 {
        let bridged = self.directions.values().filter(|(_, number)| memory.state(*number) == BRIDGED);
        bridged.count() as u64
    }
}

/// Both directions of a relay.
struct Bridge {
    of: Bridges,
    directions: [Direction; 2],
    /// What was moved, once it is over.
    over: OnceLock<[u64; 2]>,
}

impl net::Bridge for Bridge {
    fn forwarded(&self, way: Way, bytes: u64) {
        if self.over.get().is_none() {
            self.of.0.memory.publish(self.directions[way as usize].number, bytes);
        }
    }

    fn end(&self) -> [u64; 2] {
        *self.over.get_or_init(|| self.of.0.end(&self.directions))
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        net::Bridge::end(self);
    }
}

/// The agent's own end, as the programs know it.
fn key(node: u64, leg: &Leg) -> EndKey {
    let (local, remote) = (leg.local.ip().to_canonical(), leg.remote.ip().to_canonical());
    EndKey {
        cookie: node,
        local: octets(local),
        remote: octets(remote),
        local_port_be: leg.local.port().to_be_bytes(),
        remote_port_be: leg.remote.port().to_be_bytes(),
        family: if local.is_ipv4() { 4 } else { 6 },
        padding: [0; 3],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_as_the_programs_know_it() {
        let leg = |local: &str, remote: &str| Leg {
            local: local.parse().expect(local),
            remote: remote.parse().expect(remote),
            socket: -1,
        };
        let narrow = key(3, &leg("10.0.0.1:80", "10.0.0.2:258"));
        assert_eq!(narrow, key(3, &leg("[::ffff:10.0.0.1]:80", "[::ffff:10.0.0.2]:258")));
        assert_eq!((narrow.family, narrow.cookie, narrow.remote_port_be), (4, 3, [1, 2]));
        assert_eq!((narrow.local[..5].to_vec(), narrow.local_port_be), (vec![10, 0, 0, 1, 0], [0, 80]));
        let wide = key(3, &leg("[fd00::1]:80", "[fd00::2]:81"));
        assert_eq!((wide.family, wide.remote[0], wide.remote[15]), (6, 0xfd, 2));
    }
}
