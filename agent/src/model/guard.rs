//! What the guard at the edge shall keep out.

use std::sync::Arc;

use ipnet::IpNet;

use super::ObjectName;

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceRate {
    /// In the long run.
    pub per_second: u32,
    /// At once.
    pub burst: u32,
}

impl SourceRate {
    /// The lower of two rates with the smaller of two bursts.
    #[must_use]
    pub fn strictest(self, other: Self) -> Self {
        Self { per_second: self.per_second.min(other.per_second), burst: self.burst.min(other.burst) }
    }
}
