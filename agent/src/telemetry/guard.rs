//! The guard's series: what its program counts and how full its maps are, read when the metrics are.

use prometheus::{IntCounterVec, IntGaugeVec};

/// What is read of the guard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuardReading {
    /// Frames by verdict (`pass`, `drop`) and reason.
    pub packets: Vec<(&'static str, &'static str, u64)>,
    /// Denied frames by the object that denies.
    pub hits: Vec<(String, u64)>,
    /// How full its maps are.
    pub maps: Vec<MapReading>,
}

/// How full a map is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapReading {
    /// The map.
    pub map: &'static str,
    /// Entries that are in it.
    pub entries: usize,
    /// Entries that it has room for.
    pub capacity: usize,
    /// Entries that found no room.
    pub left_out: usize,
}

/// The series.
pub(super) struct GuardSeries {
    pub(super) packets: IntCounterVec,
    pub(super) hits: IntCounterVec,
    pub(super) maps: IntGaugeVec,
}

impl GuardSeries {
    /// Shows a reading.
    pub(super) fn show(&self, reading: &GuardReading) {
        for (verdict, reason, count) in &reading.packets {
            let counter = self.packets.with_label_values(&[*verdict, *reason]);
            counter.inc_by(count.saturating_sub(counter.get()));
        }
        // Objects come and go with the documents, and their series with them.
        self.hits.reset();
        for (rule, count) in &reading.hits {
            self.hits.with_label_values(&[rule]).inc_by(*count);
        }
        for map in &reading.maps {
            for (what, count) in
                [("used", map.entries), ("capacity", map.capacity), ("left_out", map.left_out)]
            {
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                self.maps.with_label_values(&[map.map, what]).set(count);
            }
        }
    }
}
