//! What the kernel's maps hold of one address, for people who ask: read at the time of the question.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use agent_common::capture::{DestinationKey, DestinationValue};
use agent_common::guard::{Listed, Reason, SourceKey, listed, pushed_down};
use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap as KernelMap, Map, MapData, MapError};

use super::CaptureError;
use super::guard::{kernel_now_ns, source_key};
use super::programs::{another_handle, destination_key};

/// Asks the kernel.
#[derive(Clone)]
pub struct Held(Arc<Maps>);

struct Maps {
    destinations: KernelMap<MapData, DestinationKey, DestinationValue>,
    /// Where some interface is guarded.
    guard: Option<GuardMaps>,
}

struct GuardMaps {
    v4: LpmTrie<MapData, [u8; 4], u32>,
    v6: LpmTrie<MapData, [u8; 16], u32>,
    pushed: KernelMap<MapData, SourceKey, u64>,
}

impl Held {
    /// Of a loaded object, before others take its maps.
    pub fn new(ebpf: &Ebpf, guarded: bool) -> Result<Self, CaptureError> {
        let destinations = typed("DESTINATIONS", Map::HashMap(another_handle(ebpf, "DESTINATIONS")?))?;
        let guard = || -> Result<_, CaptureError> {
            Ok(GuardMaps {
                v4: typed("GUARD_V4", Map::LpmTrie(another_handle(ebpf, "GUARD_V4")?))?,
                v6: typed("GUARD_V6", Map::LpmTrie(another_handle(ebpf, "GUARD_V6")?))?,
                pushed: typed("GUARD_PUSHED", Map::HashMap(another_handle(ebpf, "GUARD_PUSHED")?))?,
            })
        };
        Ok(Self(Arc::new(Maps { destinations, guard: guarded.then(guard).transpose()? })))
    }

    /// Whether pods' connections to it are taken. `None`: the map can't be read.
    pub fn takes(&self, destination: SocketAddr) -> Option<bool> {
        found(self.0.destinations.get(&destination_key(destination), 0)).ok().map(|value| value.is_some())
    }

    /// What the guard does with a source, limits aside. `None`: there is no guard, or its maps can't be read.
    pub fn guards(&self, source: IpAddr) -> Option<Reason> {
        let maps = self.0.guard.as_ref()?;
        let value = match source {
            IpAddr::V4(v4) => found(maps.v4.get(&Key::new(32, v4.octets()), 0)),
            IpAddr::V6(v6) => found(maps.v6.get(&Key::new(128, v6.octets()), 0)),
        };
        let value = value.ok()?;
        let until = found(maps.pushed.get(&source_key(source), 0)).ok()?;
        Some(match (listed(value), until) {
            (Listed::Allow, _) => Reason::Allowed,
            (Listed::Deny(_), _) => Reason::Denied,
            (Listed::No, Some(until)) if pushed_down(until, kernel_now_ns()) => Reason::PushedDown,
            (Listed::No, _) => Reason::Passed,
        })
    }
}

fn typed<T: TryFrom<Map, Error = MapError>>(name: &'static str, map: Map) -> Result<T, CaptureError> {
    T::try_from(map).map_err(|source| CaptureError::Map { map: name, source })
}

/// What is not in the map is no error.
fn found<T>(looked_up: Result<T, MapError>) -> Result<Option<T>, MapError> {
    match looked_up {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}
