//! One of the kernel's tries, which the agent alone writes, with a copy of what is in it.

use std::collections::HashMap;

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{MapData, MapError};

use super::lower::{Entries, Octets, Prefix};
use crate::capture::CaptureError;

/// The trie and its copy.
pub struct Trie<A> {
    name: &'static str,
    kernel: LpmTrie<MapData, A, u32>,
    held: HashMap<Prefix<A>, u32>,
    capacity: usize,
    left_out: usize,
}

impl<A: Octets + Pod> Trie<A> {
    /// Of an empty trie.
    pub fn new(name: &'static str, kernel: LpmTrie<MapData, A, u32>, capacity: usize) -> Self {
        Self { name, kernel, held: HashMap::new(), capacity, left_out: 0 }
    }

    /// Makes the trie hold what is wanted; what is already right is not touched. What is new comes in before what is old goes
    /// out, as far as there is room, so that a list that is only written differently keeps out whom it did.
    pub fn set(&mut self, wanted: &Entries<A>) -> Result<(), CaptureError> {
        let name = self.name;
        let error = |source| CaptureError::Map { map: name, source };
        let (mut first, mut then): (Vec<_>, Vec<_>) = wanted
            .values
            .iter()
            .filter(|(prefix, value)| self.held.get(*prefix) != Some(*value))
            .partition(|(prefix, _)| self.held.contains_key(*prefix));
        let room = self.capacity.saturating_sub(self.held.len()).min(then.len());
        first.extend(then.drain(..room));
        for (prefix, value) in first {
            self.insert(*prefix, *value).map_err(error)?;
        }
        let gone: Vec<_> =
            self.held.keys().filter(|prefix| !wanted.values.contains_key(*prefix)).copied().collect();
        for (len, address) in gone {
            self.kernel.remove(&Key::new(u32::from(len), address)).map_err(error)?;
            self.held.remove(&(len, address));
        }
        for (prefix, value) in then {
            self.insert(*prefix, *value).map_err(error)?;
        }
        self.left_out = wanted.left_out;
        Ok(())
    }

    fn insert(&mut self, (len, address): Prefix<A>, value: u32) -> Result<(), MapError> {
        self.kernel.insert(&Key::new(u32::from(len), address), value, 0)?;
        self.held.insert((len, address), value);
        Ok(())
    }

    /// How full it is.
    pub fn fill(&self) -> Fill {
        Fill { map: self.name, entries: self.held.len(), capacity: self.capacity, left_out: self.left_out }
    }
}

/// How full a map is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fill {
    /// The map's name.
    pub map: &'static str,
    /// Entries that are in it.
    pub entries: usize,
    /// Entries that it has room for.
    pub capacity: usize,
    /// Entries that found no room; whom they would keep out passes.
    pub left_out: usize,
}
