//! The limits of a table that the kernel holds to -> what its maps hold. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use agent_common::limit::{
    Apart, BY_IDENTITY, COUNTS_PACKETS, EXEMPT_HEAD_BITS, ExemptKey, HAS_EXEMPT, KernelLimit as Lowest,
    LimitEnd, LimitSet, SHADOW, UNNAMED_EXEMPT, UNNAMED_REFUSED,
};
use agent_common::packet::PROTOCOL_TCP;
use agent_common::policy::{PolicyAddress, policy_address};
use ring::digest::{SHA256, digest};

use crate::capture::guard::RuleNumbers;
use crate::compile::{LimitPolicy, RoutingTable};
use crate::model::{KernelCount, KernelKey, KernelLimit, Missing, ObjectName, Workload};

/// How sources without an identity are told apart: a host of IPv6 has its /64 to itself.
const UNNAMED_BITS: (u8, u8) = (32, 64);

/// A limit that a table asks for.
pub struct Asked<'t> {
    /// The document.
    pub policy: &'t ObjectName,
    /// What it says.
    pub limit: &'t KernelLimit,
    /// What tells it from all others, also across agents: the same limit of the same document has the same.
    pub id: u64,
    /// What it is counted under: a limit that says something else is counted anew.
    pub title: Arc<str>,
    document: &'t LimitPolicy,
}

/// What the kernel shall hold.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Lowered {
    /// Limits by address and port.
    pub ends: HashMap<LimitEnd, LimitSet>,
    /// Limits by address and port of Gateways. One that stands beside a listener for all addresses has none, if need be.
    pub gateways: HashMap<LimitEnd, LimitSet>,
    /// Networks that limits do not hold for, with the length of the key.
    pub exempt: BTreeSet<(u32, ExemptKey)>,
    /// Identities of pods, where a limit counts by them.
    pub named: HashMap<PolicyAddress, u64>,
    /// Addresses and ports of each limit, by its id.
    pub used: BTreeMap<u64, usize>,
    /// The same at Gateways.
    pub listened: BTreeMap<u64, usize>,
    /// How often a limit is left out as its address and port has as many as there may be.
    pub crowded: usize,
}

/// The limits of a table, in the order of documents; those that the kernel can't compute are passed over.
pub fn asked(table: &RoutingTable) -> Vec<Asked<'_>> {
    let mut all = Vec::new();
    for policy in table.limits.of_kernel() {
        all.extend(policy.kernel.iter().filter_map(|limit| asked_of(policy, limit)));
    }
    all
}

fn asked_of<'t>(document: &'t LimitPolicy, limit: &'t KernelLimit) -> Option<Asked<'t>> {
    limit.intervals()?;
    // Whom it does not hold for says nothing about its buckets.
    let meaning = KernelLimit { exempt: Vec::new(), ..limit.clone() };
    let text = serde_json::to_string(&(document.name.to_string(), meaning)).ok()?;
    let id = number_of(&text);
    let title = format!("{} {} {id:016x}", document.name, limit.name).into();
    Some(Asked { policy: &document.name, limit, id, title, document })
}

/// Lowers a table's limits; `numbers` says where each is counted.
pub fn lower(table: &RoutingTable, asked: &[Asked<'_>], numbers: &RuleNumbers) -> Lowered {
    let mut lowered = Lowered::default();
    for one in asked {
        let limit = lowest(one, numbers.of(&one.title));
        for (protocol, address) in table.limited_ends(one.document, one.limit) {
            lowered.add(limit_end(address, protocol), limit);
        }
        for address in
            table.gateways.iter().filter(|port| one.document.is_about(port)).flat_map(|port| port.ends())
        {
            lowered.listen(limit_end(address, PROTOCOL_TCP), limit);
        }
        for net in &one.limit.exempt {
            let bits = EXEMPT_HEAD_BITS + u32::from(net.prefix_len());
            let source = policy_address(net.network());
            lowered.exempt.insert((bits, ExemptKey { id: one.id.to_ne_bytes(), source }));
        }
    }
    lowered.set_apart(table);
    if asked.iter().any(|one| one.limit.key == KernelKey::SourceIdentity) {
        let named = table.workloads.iter();
        lowered.named = named.map(|(address, pod)| (policy_address(*address), identity(pod))).collect();
    }
    lowered
}

impl Lowered {
    fn add(&mut self, end: LimitEnd, limit: Lowest) {
        match put(&mut self.ends, end, limit) {
            Some(()) => *self.used.entry(limit.id).or_default() += 1,
            None => self.crowded += 1,
        }
    }

    fn listen(&mut self, end: LimitEnd, limit: Lowest) {
        match put(&mut self.gateways, end, limit) {
            Some(()) => *self.listened.entry(limit.id).or_default() += 1,
            None => self.crowded += 1,
        }
    }

    /// A listener for all addresses gets nothing of what comes to one that has its own on the same port.
    fn set_apart(&mut self, table: &RoutingTable) {
        for end in table.gateways.iter().flat_map(|port| port.ends()) {
            let own = limit_end(end, PROTOCOL_TCP);
            if self.gateways.contains_key(&LimitEnd { address: [0; 16], ..own }) {
                self.gateways.entry(own).or_default();
            }
        }
    }
}

/// `None`: there is no room for one more.
fn put(ends: &mut HashMap<LimitEnd, LimitSet>, end: LimitEnd, limit: Lowest) -> Option<()> {
    let set = ends.entry(end).or_default();
    let place = set.limits.iter_mut().find(|place| !place.is_set() || place.id == limit.id)?;
    *place = limit;
    Some(())
}

/// A limit as the program reads it.
fn lowest(one: &Asked<'_>, slot: u32) -> Lowest {
    let KernelLimit { count, key, missing, exempt, .. } = one.limit;
    let (interval_ns, whole_ns) = one.limit.intervals().unwrap_or_default();
    let by_identity = *key == KernelKey::SourceIdentity;
    let mut flags = 0;
    for (flag, is_set) in [
        (COUNTS_PACKETS, *count == KernelCount::Packets),
        (SHADOW, one.document.shadow),
        (BY_IDENTITY, by_identity),
        (UNNAMED_EXEMPT, by_identity && *missing == Missing::Exempt),
        (UNNAMED_REFUSED, by_identity && *missing == Missing::Refuse),
        (HAS_EXEMPT, !exempt.is_empty()),
    ] {
        flags |= if is_set { flag } else { 0 };
    }
    let apart = match key {
        KernelKey::SourceAddress { v4, v6 } => Apart::by_prefix(*v4, *v6),
        KernelKey::SourceIdentity if *missing != Missing::Shared => {
            Apart::by_prefix(UNNAMED_BITS.0, UNNAMED_BITS.1)
        }
        KernelKey::SourceIdentity | KernelKey::Together => Apart::together(),
    };
    Lowest { id: one.id, interval_ns, whole_ns, apart, slot, flags }
}

fn limit_end(address: SocketAddr, protocol: u8) -> LimitEnd {
    let PolicyAddress { family, address: octets } = policy_address(address.ip());
    LimitEnd { address: octets, port_be: address.port().to_be_bytes(), family, protocol }
}

/// What the programs know of who a pod is: its namespace and service account.
fn identity(pod: &Workload) -> u64 {
    number_of(&format!("{}/{}", pod.name.namespace, pod.service_account))
}

/// 64 bits of a SHA-256: nobody can choose two that are the same.
fn number_of(text: &str) -> u64 {
    let digest = digest(&SHA256, text.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_ref()[..8]);
    u64::from_be_bytes(first)
}

#[cfg(test)]
mod tests;
