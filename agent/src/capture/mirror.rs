//! A kernel map that the agent alone writes, with a copy of what is in it.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use aya::Pod;
use aya::maps::{HashMap as KernelMap, MapData, MapError};

use super::{CaptureError, MapUse};

/// The map and its copy.
pub struct Mirror<K, V> {
    name: &'static str,
    kernel: KernelMap<MapData, K, V>,
    capacity: u32,
    held: HashMap<K, V>,
    /// What was wanted last and found no room.
    left_out: HashSet<K>,
}

impl<K: Pod + Eq + Hash, V: Pod + PartialEq> Mirror<K, V> {
    /// Of a map that an earlier agent may have filled.
    pub fn new(
        name: &'static str,
        capacity: u32,
        kernel: KernelMap<MapData, K, V>,
    ) -> Result<Self, CaptureError> {
        let held = kernel.iter().collect::<Result<_, _>>();
        let held = held.map_err(|source| CaptureError::Map { map: name, source })?;
        Ok(Self { name, kernel, capacity, held, left_out: HashSet::new() })
    }

    /// Makes the map hold what is wanted; what is already right is not touched. Answers how many entries found no room.
    pub fn set(&mut self, wanted: &HashMap<K, V>) -> Result<usize, CaptureError> {
        self.left_out.clear();
        let gone = self.held.keys().filter(|key| !wanted.contains_key(key)).copied().collect::<Vec<_>>();
        self.remove(&gone)?;
        self.insert(wanted.iter())
    }

    /// Makes the map hold these entries, or not, where there is a `None`; all others stay as they are. Answers as
    /// [`Mirror::set`].
    pub fn change(&mut self, changes: &HashMap<K, Option<V>>) -> Result<usize, CaptureError> {
        self.left_out.retain(|key| !changes.contains_key(key));
        let is_gone = |(key, value): &(&K, &Option<V>)| value.is_none() && self.held.contains_key(key);
        let gone = changes.iter().filter(is_gone).map(|(key, _)| *key).collect::<Vec<_>>();
        self.remove(&gone)?;
        self.insert(changes.iter().filter_map(|(key, value)| Some((key, value.as_ref()?))))
    }

    fn remove(&mut self, keys: &[K]) -> Result<(), CaptureError> {
        for key in keys {
            self.kernel.remove(key).map_err(|source| CaptureError::Map { map: self.name, source })?;
            self.held.remove(key);
        }
        Ok(())
    }

    fn insert<'a>(&mut self, wanted: impl Iterator<Item = (&'a K, &'a V)>) -> Result<usize, CaptureError>
    where
        K: 'a,
        V: 'a,
    {
        let error = |source| CaptureError::Map { map: self.name, source };
        let mut over_capacity = 0;
        for (key, value) in wanted {
            if self.held.get(key) == Some(value) {
                continue;
            }
            match self.kernel.insert(key, value, 0) {
                Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::E2BIG) => {
                    over_capacity += 1;
                    self.left_out.insert(*key);
                }
                result => {
                    result.map_err(error)?;
                    self.held.insert(*key, *value);
                }
            }
        }
        Ok(over_capacity)
    }

    /// How full the map is.
    pub fn usage(&self) -> MapUse {
        let capacity = usize::try_from(self.capacity).unwrap_or(usize::MAX);
        MapUse { name: self.name, entries: self.held.len(), capacity, left_out: self.left_out.len() }
    }

    /// How many entries the map holds.
    pub fn len(&self) -> usize {
        self.held.len()
    }
}
