//! Choosing an endpoint. State is atomic and hangs off the table's own entries; randomness is passed in.

use std::sync::Arc;

use crate::compile::{Cluster, Upstream};

/// An endpoint in use: counts as load until dropped.
#[derive(Debug)]
pub struct Pick {
    upstream: Arc<Upstream>,
}

impl Pick {
    /// The chosen endpoint.
    pub fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }
}

impl Cluster {
    /// Chooses an endpoint by the cluster's policy, never one of `avoid` while another is left; `None` where the
    /// cluster has none. `random` is a fresh random number.
    pub fn pick(&self, _random: u64, _avoid: &[std::net::SocketAddr]) -> Option<Pick> {
        todo!("balance")
    }
}
