//! Lists -> entries of the kernel's tries: a pure function, and what is left out where they are full.
//!
//! One trie holds both lists, and the longest prefix decides. So an entry that allows wins over a shorter one that denies by
//! itself, and those that deny within an allowed network are not put in at all.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use agent_common::guard::{ALLOW, MAX_RULES};
use ipnet::IpNet;

use crate::compile::GuardPolicy;

/// The number that all objects share for which there is none left.
const SHARED: u32 = MAX_RULES - 1;

/// A prefix: its length, and the address in network byte order.
pub type Prefix<A> = (u8, A);

/// What one trie shall hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entries<A: Eq + Hash> {
    /// Values by prefix.
    pub values: HashMap<Prefix<A>, u32>,
    /// Prefixes that found no room: what they deny passes.
    pub left_out: usize,
}

/// What both tries shall hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lowered {
    /// IPv4.
    pub v4: Entries<[u8; 4]>,
    /// IPv6.
    pub v6: Entries<[u8; 16]>,
}

/// Lowers the lists to tries of so many entries each. Where there is no room for all, who is allowed comes first, then
/// the wider networks: what is left out is the least there can be, and always the same.
pub fn lower(policy: &GuardPolicy, numbers: &RuleNumbers, capacity: usize) -> Lowered {
    let allow = || policy.allow.iter().flat_map(|nets| nets.iter()).map(|net| (net, ALLOW));
    let deny = || {
        let rules = policy.rules.iter().map(|rule| (rule, numbers.of(&rule.name)));
        rules.flat_map(|(rule, number)| rule.deny.iter().map(move |net| (net, number)))
    };
    let v4 = |(net, value): (&IpNet, u32)| match net {
        IpNet::V4(net) => Some(((net.prefix_len(), net.network().octets()), value)),
        IpNet::V6(_) => None,
    };
    let v6 = |(net, value): (&IpNet, u32)| match net {
        IpNet::V6(net) => Some(((net.prefix_len(), net.network().octets()), value)),
        IpNet::V4(_) => None,
    };
    Lowered {
        v4: entries(allow().filter_map(v4), deny().filter_map(v4), capacity),
        v6: entries(allow().filter_map(v6), deny().filter_map(v6), capacity),
    }
}

fn entries<A: Octets>(
    allow: impl Iterator<Item = (Prefix<A>, u32)>,
    deny: impl Iterator<Item = (Prefix<A>, u32)>,
    capacity: usize,
) -> Entries<A> {
    let allowed: BTreeMap<Prefix<A>, u32> = allow.collect();
    let lengths: HashSet<u8> = allowed.keys().map(|(len, _)| *len).collect();
    let mut denied: BTreeMap<Prefix<A>, u32> = BTreeMap::new();
    for ((len, address), value) in deny {
        let within = |outer: &u8| *outer <= len && allowed.contains_key(&(*outer, address.masked(*outer)));
        if !lengths.iter().any(within) {
            // The first object that denies a network is the one that is named.
            denied.entry((len, address)).or_insert(value);
        }
    }
    let whole = allowed.len() + denied.len();
    let values: HashMap<_, _> = allowed.into_iter().chain(denied).take(capacity).collect();
    Entries { left_out: whole - values.len(), values }
}

/// An address's bytes.
pub trait Octets: Copy + Ord + Hash {
    /// With all bits beyond the first `len` cleared.
    fn masked(self, len: u8) -> Self;
}

impl<const N: usize> Octets for [u8; N] {
    fn masked(mut self, len: u8) -> Self {
        for (index, byte) in self.iter_mut().enumerate() {
            let kept = usize::from(len).saturating_sub(index * 8).min(8);
            // Of eight bits, those that are kept.
            *byte &= u8::try_from(0xff00_u32 >> kept & 0xff).unwrap_or_default();
        }
        self
    }
}

/// Which number each object's hits are counted under. An object keeps its number for as long as it is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuleNumbers(BTreeMap<Arc<str>, u32>);

impl RuleNumbers {
    /// Numbers for these objects; answers those that were given anew. A number whose object is gone is not given again at
    /// once: the kernel may still count under it.
    pub fn assign<'a>(&mut self, names: impl Iterator<Item = &'a Arc<str>>) -> Vec<u32> {
        let names: HashSet<&Arc<str>> = names.collect();
        let used: HashSet<u32> = self.0.values().copied().collect();
        let mut free = (0..SHARED).filter(|number| !used.contains(number));
        let mut new: Vec<&Arc<str>> =
            names.iter().copied().filter(|name| !self.0.contains_key(*name)).collect();
        new.sort();
        let given: Vec<_> =
            new.into_iter().map(|name| (Arc::clone(name), free.next().unwrap_or(SHARED))).collect();
        self.0.retain(|name, _| names.contains(name));
        let numbers = given.iter().map(|(_, number)| *number).filter(|number| *number != SHARED).collect();
        self.0.extend(given);
        numbers
    }

    /// The number of an object.
    pub fn of(&self, name: &Arc<str>) -> u32 {
        self.0.get(name).copied().unwrap_or(SHARED)
    }

    /// What to call each number; those that share one are `others`.
    pub fn names(&self) -> BTreeMap<u32, Arc<str>> {
        let alone = self.0.iter().filter(|(_, number)| **number != SHARED);
        let mut names: BTreeMap<u32, Arc<str>> =
            alone.map(|(name, number)| (*number, Arc::clone(name))).collect();
        if self.0.values().any(|number| *number == SHARED) {
            names.insert(SHARED, "others".into());
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::compile::GuardRule;

    fn nets(texts: &[&str]) -> Arc<[IpNet]> {
        let net = |text: &&str| text.parse().unwrap_or_else(|_| IpNet::from(text.parse::<IpAddr>().unwrap()));
        texts.iter().map(net).collect()
    }

    fn policy(rules: &[(&str, &[&str])], allow: &[&str]) -> GuardPolicy {
        GuardPolicy {
            rules: rules
                .iter()
                .map(|(name, deny)| GuardRule { name: (*name).into(), deny: nets(deny) })
                .collect(),
            allow: vec![nets(allow)],
            ..GuardPolicy::default()
        }
    }

    fn lowered(policy: &GuardPolicy, capacity: usize) -> Lowered {
        let mut numbers = RuleNumbers::default();
        numbers.assign(policy.rules.iter().map(|rule| &rule.name));
        lower(policy, &numbers, capacity)
    }

    /// What the trie says of an address: its longest prefix.
    fn says(entries: &Entries<[u8; 4]>, address: [u8; 4]) -> Option<u32> {
        (0..=32).rev().find_map(|len| entries.values.get(&(len, address.masked(len))).copied())
    }

    #[test]
    fn allow_wins_at_every_length() {
        let policy = policy(
            &[
                ("a", &["10.0.0.0/8", "10.1.2.0/24", "10.1.2.3", "192.0.2.1"]),
                ("b", &["192.0.2.0/24", "192.0.2.1"]),
            ],
            &["10.1.0.0/16", "192.0.2.9"],
        );
        let Entries { values, left_out } = &lowered(&policy, 100).v4;
        assert_eq!((values.len(), *left_out), (5, 0), "{values:?}");
        for (address, expected) in [
            ([10, 0, 0, 1], Some(0)),
            ([10, 1, 0, 1], Some(ALLOW)),
            ([10, 1, 2, 3], Some(ALLOW)),
            ([192, 0, 2, 1], Some(0)),
            ([192, 0, 2, 2], Some(1)),
            ([192, 0, 2, 9], Some(ALLOW)),
            ([8, 8, 8, 8], None),
        ] {
            assert_eq!(says(&lowered(&policy, 100).v4, address), expected, "{address:?}");
        }
    }

    #[test]
    fn families_are_apart() {
        let policy = policy(&[("a", &["10.0.0.0/8", "fd00::/8"])], &["fd00:1::/32"]);
        let Lowered { v4, v6 } = lowered(&policy, 100);
        assert_eq!((v4.values.len(), v6.values.len()), (1, 2));
        let fd00_1 = [0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(v6.values[&(32, fd00_1)], ALLOW);
    }

    #[test]
    fn a_full_trie_leaves_out_the_narrowest() {
        let policy = policy(&[("a", &["10.0.0.1", "11.0.0.0/8", "10.0.0.2", "12.0.0.0/16"])], &["10.9.9.9"]);
        let Entries { values, left_out } = lowered(&policy, 3).v4;
        assert_eq!(left_out, 2);
        let mut kept: Vec<_> = values.keys().map(|(len, [first, ..])| (*len, *first)).collect();
        kept.sort_unstable();
        assert_eq!(kept, [(8, 11), (16, 12), (32, 10)]);
        assert_eq!(values[&(32, [10, 9, 9, 9])], ALLOW);
    }

    #[test]
    fn numbers_stay_and_are_given_again_late() {
        let names: Vec<Arc<str>> = ["a", "b", "c"].map(Into::into).to_vec();
        let mut numbers = RuleNumbers::default();
        assert_eq!(numbers.assign(names[..2].iter()), [0, 1]);
        assert_eq!(numbers.assign(names[1..].iter()), [2], "0 was in use until now");
        assert_eq!((numbers.of(&names[1]), numbers.of(&names[2])), (1, 2));
        assert_eq!(numbers.assign(names.iter()), [0]);
        assert_eq!(numbers.names().values().map(|name| &**name).collect::<String>(), "abc");
    }

    #[test]
    fn too_many_objects_share_a_number() {
        let names: Vec<Arc<str>> = (0..MAX_RULES + 5).map(|n| format!("{n:05}").into()).collect();
        let mut numbers = RuleNumbers::default();
        assert_eq!(numbers.assign(names.iter()).len(), SHARED as usize);
        assert_eq!(numbers.of(names.last().unwrap()), SHARED);
        assert_eq!(&*numbers.names()[&SHARED], "others");
    }

    #[test]
    fn masks() {
        for (len, expected) in [
            (0, [0; 4]),
            (1, [128, 0, 0, 0]),
            (9, [255, 128, 0, 0]),
            (24, [255, 255, 255, 0]),
            (32, [255; 4]),
        ] {
            assert_eq!([255u8; 4].masked(len), expected, "{len}");
        }
    }
}
