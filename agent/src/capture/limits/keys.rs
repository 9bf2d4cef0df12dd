//! The kernel's map of buckets, which the programs fill: how many there are of each limit.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;

use agent_common::limit::LimitKey;
use aya::Ebpf;
use aya::maps::{Map, MapData};

use super::BUCKETS;
use crate::capture::programs::another_handle;
use crate::capture::{CaptureError, kernel_call};

/// The map.
pub struct Buckets {
    kernel: MapData,
    capacity: usize,
}

impl Buckets {
    /// Of a loaded object.
    pub fn of(ebpf: &Ebpf) -> Result<Self, CaptureError> {
        let capacity = match ebpf.map(BUCKETS) {
            Some(Map::LruHashMap(map)) => map.info().map(|info| info.max_entries()),
            _ => Ok(0),
        };
        let capacity = capacity.map_err(|source| CaptureError::Map { map: BUCKETS, source })?;
        let capacity = usize::try_from(capacity).unwrap_or(usize::MAX);
        Ok(Self { kernel: another_handle(ebpf, BUCKETS)?, capacity })
    }

    /// How many it has room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many there are of each limit, by its id. They come and go meanwhile.
    pub fn count(&self) -> io::Result<HashMap<u64, usize>> {
        let mut of_limits = HashMap::new();
        kernel_call::each_key::<LimitKey, u64>(self.kernel.fd().as_fd(), |key| {
            *of_limits.entry(key.id).or_default() += 1;
        })?;
        Ok(of_limits)
    }
}
