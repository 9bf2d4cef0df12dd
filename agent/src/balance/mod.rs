//! Choosing an endpoint. State is atomic and hangs off the table's own entries; randomness is passed in.

pub mod slots;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::compile::{Cluster, Upstream};
use crate::model::LbPolicy;

/// An endpoint in use: counts as load until dropped.
#[derive(Debug)]
pub struct Pick {
    upstream: Arc<Upstream>,
}

impl Pick {
    /// Takes an endpoint into use.
    fn new(upstream: &Arc<Upstream>) -> Self {
        upstream.active.fetch_add(1, Ordering::Relaxed);
        Self { upstream: Arc::clone(upstream) }
    }

    /// The chosen endpoint.
    pub fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }
}

impl Drop for Pick {
    fn drop(&mut self) {
        self.upstream.active.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Cluster {
    /// Chooses an endpoint by the cluster's policy, never one of `avoid` while another is left; `None` where the
    /// cluster has none. `random` is a fresh random number.
    ///
    /// A pod with addresses of both families is one endpoint in each. The client's family is used where it has any, so
    /// that the endpoint can be shown the client's own address.
    pub fn pick(&self, client: IpAddr, random: u64, avoid: &[SocketAddr]) -> Option<Pick> {
        let candidates = Candidates::new(self.of_family(client), avoid)?;
        let chosen = match self.policy {
            LbPolicy::RoundRobin => candidates.at_turn(self.turn.fetch_add(1, Ordering::Relaxed)),
            LbPolicy::Random => candidates.at(scale(random, candidates.count)),
            LbPolicy::LeastRequest => candidates.less_loaded(random),
            LbPolicy::SourceIp => candidates.of_client(client),
        };
        chosen.map(Pick::new)
    }

    fn of_family(&self, client: IpAddr) -> &[Arc<Upstream>] {
        // Sorted by address, and every IPv4 address sorts before every IPv6 one.
        let (v4, v6) =
            self.endpoints.split_at(self.endpoints.partition_point(|upstream| upstream.address.is_ipv4()));
        let same = if client.to_canonical().is_ipv4() { v4 } else { v6 };
        if same.is_empty() { &self.endpoints } else { same }
    }
}

/// The endpoints that may be chosen.
struct Candidates<'a> {
    endpoints: &'a [Arc<Upstream>],
    /// Empty where it would leave nothing.
    avoid: &'a [SocketAddr],
    /// How many endpoints are not avoided; at least one.
    count: usize,
}

impl<'a> Candidates<'a> {
    fn new(endpoints: &'a [Arc<Upstream>], avoid: &'a [SocketAddr]) -> Option<Self> {
        if endpoints.is_empty() {
            return None;
        }
        let all = Self { endpoints, avoid: &[], count: endpoints.len() };
        if avoid.is_empty() {
            return Some(all);
        }
        let count = endpoints.iter().filter(|upstream| !avoid.contains(&upstream.address)).count();
        Some(if count == 0 { all } else { Self { endpoints, avoid, count } })
    }

    fn allows(&self, upstream: &Upstream) -> bool {
        !self.avoid.contains(&upstream.address)
    }

    /// The candidate of this rank. Without anything to avoid that is an index; a walk is paid by retries alone.
    fn at(&self, rank: usize) -> Option<&'a Arc<Upstream>> {
        if self.avoid.is_empty() {
            return self.endpoints.get(rank);
        }
        self.endpoints.iter().filter(|upstream| self.allows(upstream)).nth(rank)
    }

    /// The endpoint whose turn it is, or the first candidate after it.
    fn at_turn(&self, turn: u64) -> Option<&'a Arc<Upstream>> {
        let start = usize::try_from(turn % self.endpoints.len() as u64).unwrap_or(0);
        let (before, after) = self.endpoints.split_at(start);
        after.iter().chain(before).find(|upstream| self.allows(upstream))
    }

    /// The client's own: the one of the highest rank in an order that each client has for itself, so that an endpoint that
    /// goes takes only its own clients along (rendezvous hashing).
    fn of_client(&self, client: IpAddr) -> Option<&'a Arc<Upstream>> {
        let client = client.to_canonical();
        let rank = |upstream: &&Arc<Upstream>| slots::hash(&(client, upstream.address));
        self.endpoints.iter().filter(|upstream| self.allows(upstream)).max_by_key(rank)
    }

    /// The one with fewer requests in flight of two different ones; the first drawn where they are even.
    fn less_loaded(&self, random: u64) -> Option<&'a Arc<Upstream>> {
        let first_rank = scale(random, self.count);
        let first = self.at(first_rank)?;
        if self.count == 1 {
            return Some(first);
        }
        let step = 1 + scale(random.rotate_left(32), self.count - 1);
        let second = self.at((first_rank + step) % self.count)?;
        Some(if second.active() < first.active() { second } else { first })
    }
}

/// Maps the low 32 bits of a random number evenly onto `0..count`.
fn scale(random: u64, count: usize) -> usize {
    let low = random & u64::from(u32::MAX);
    // The product is below 2^64 for any count that fits 32 bits; more endpoints than that do not fit in memory.
    usize::try_from((low * count as u64) >> 32).unwrap_or(0)
}

#[cfg(test)]
mod tests;
