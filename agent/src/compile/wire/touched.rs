//! What changes were about.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use crate::model::ObjectName;

/// What applied changes were about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Touched {
    /// Services that changed, themselves or by their endpoints, the pods behind those, or their traffic policy.
    pub(in crate::compile) services: BTreeSet<ObjectName>,
    /// Addresses that clients of such services dial or dialled.
    pub(in crate::compile) streams: BTreeSet<SocketAddr>,
    /// Those of UDP ports.
    pub(in crate::compile) datagrams: BTreeSet<SocketAddr>,
    /// Addresses that pods have or had that changed.
    pub(in crate::compile) pods: BTreeSet<IpAddr>,
    /// Services whose mesh routes changed.
    pub(in crate::compile) routed: BTreeSet<ObjectName>,
    /// What changed and is compiled as a whole.
    pub(in crate::compile) wholes: BTreeSet<Whole>,
}

/// What is compiled as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::compile) enum Whole {
    /// All of it: two services or two pods have one name, or had.
    Everything,
    /// The listeners with their routes.
    Listeners,
    /// Authorization policies.
    Authorization,
    /// Guards.
    Guards,
    /// Rate limits.
    Limits,
}

impl Touched {
    /// Whether nothing changed that a table shows.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds what a later change was about.
    pub fn extend(&mut self, later: Self) {
        self.services.extend(later.services);
        self.streams.extend(later.streams);
        self.datagrams.extend(later.datagrams);
        self.pods.extend(later.pods);
        self.routed.extend(later.routed);
        self.wholes.extend(later.wholes);
    }
}
