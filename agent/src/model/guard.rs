//! What the guard at the edge shall keep out.

use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::ObjectName;
use super::serial::above_zero;

/// One document's wishes; all documents together are in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdgeGuard {
    /// The document.
    pub name: ObjectName,
    /// Sources that get nothing through.
    pub deny: Arc<[IpNet]>,
    /// Sources that neither lists nor limits hold for.
    pub allow: Arc<[IpNet]>,
    /// What one source may send.
    pub packets: Option<SourceRate>,
    /// How many TCP connections one source may ask for.
    pub syns: Option<SourceRate>,
}

/// So many per second, and so many at once after a pause. Neither is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRate {
    /// In the long run.
    #[serde(deserialize_with = "above_zero")]
    pub per_second: u32,
    /// At once.
    #[serde(deserialize_with = "above_zero")]
    pub burst: u32,
}

impl SourceRate {
    /// The lower of two rates with the smaller of two bursts.
    #[must_use]
    pub fn strictest(self, other: Self) -> Self {
        Self { per_second: self.per_second.min(other.per_second), burst: self.burst.min(other.burst) }
    }
}
