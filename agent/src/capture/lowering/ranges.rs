//! Which of many lists of ranges hold of an address: what is in the same lists is treated alike, however many ranges there are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::Cidr;

/// Lists of ranges, by their numbers.
pub type Lists = Arc<BTreeSet<usize>>;

/// All ranges of some lists.
#[derive(Debug, Default)]
pub struct Ranges {
    /// Of each range, the lists that hold of all of it: those with the range, or with one around it.
    lists: BTreeMap<Cidr, Lists>,
    /// The lengths of prefixes, of all families, the longest first.
    prefixes: Vec<u8>,
}

impl Ranges {
    /// The ranges of these lists, which are numbered in their order.
    pub fn of<'c>(lists: impl IntoIterator<Item = &'c [Cidr]>) -> Self {
        let mut own: BTreeMap<Cidr, BTreeSet<usize>> = BTreeMap::new();
        for (number, cidrs) in lists.into_iter().enumerate() {
            for cidr in cidrs {
                own.entry(*cidr).or_default().insert(number);
            }
        }
        let mut prefixes: Vec<u8> = own.keys().map(Cidr::prefix).collect();
        prefixes.sort_unstable_by(|one, other| other.cmp(one));
        prefixes.dedup();
        let mut lists = BTreeMap::new();
        // In this order a range comes after those around it, and these are a path from the widest to the narrowest.
        let mut around: Vec<(Cidr, Lists)> = Vec::new();
        for (cidr, mut own) in own {
            while around.pop_if(|(wider, _)| !wider.contains(&cidr)).is_some() {}
            if let Some((_, wider)) = around.last() {
                own.extend(wider.iter());
            }
            let held: Lists = Arc::new(own);
            around.push((cidr, Arc::clone(&held)));
            lists.insert(cidr, held);
        }
        Self { lists, prefixes }
    }

    /// Whether there is this range.
    pub fn contains(&self, cidr: &Cidr) -> bool {
        self.lists.contains_key(cidr)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Cidr> {
        self.lists.keys()
    }

    /// The narrowest that all of `within` lies in.
    pub fn around(&self, within: &Cidr) -> Option<&Cidr> {
        let shorter = self.prefixes.iter().skip_while(|prefix| **prefix > within.prefix());
        let mut wider = shorter.filter_map(|prefix| Cidr::new(within.network(), *prefix));
        wider.find_map(|wider| self.lists.get_key_value(&wider).map(|(cidr, _)| cidr))
    }

    /// The lists that hold of all of `within`.
    pub fn lists(&self, within: &Cidr) -> Lists {
        self.around(within).and_then(|around| self.lists.get(around)).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Few addresses, so that ranges meet.
    fn cidr() -> impl Strategy<Value = Cidr> {
        let v4 = (0u32..16, 26u8..=32).prop_map(|(low, prefix)| {
            Cidr::new(std::net::Ipv4Addr::from(0x0a00_0000 | low << 1).into(), prefix).expect("a range")
        });
        let v6 = (0u128..8, 124u8..=128).prop_map(|(low, prefix)| {
            Cidr::new(std::net::Ipv6Addr::from(low).into(), prefix).expect("a range")
        });
        let all = any::<bool>().prop_map(|v4| {
            let any: std::net::IpAddr = if v4 { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
            Cidr::new(any, 0).expect("a range")
        });
        prop_oneof![6 => v4, 3 => v6, 1 => all]
    }

    proptest! {
        #[test]
        fn lists_are_those_with_a_range_around(lists in vec(vec(cidr(), 0..6), 0..6), within in cidr()) {
            let ranges = Ranges::of(lists.iter().map(Vec::as_slice));
            let holds = |cidrs: &Vec<Cidr>| cidrs.iter().any(|cidr| cidr.contains(&within));
            let expected: BTreeSet<usize> =
                lists.iter().enumerate().filter(|(_, cidrs)| holds(cidrs)).map(|(number, _)| number).collect();
            prop_assert_eq!(&*ranges.lists(&within), &expected);
            let around = lists.iter().flatten().filter(|cidr| cidr.contains(&within));
            prop_assert_eq!(ranges.around(&within), around.max_by_key(|cidr| cidr.prefix()));
            prop_assert!(lists.iter().flatten().all(|cidr| ranges.contains(cidr)));
            let all: BTreeSet<&Cidr> = lists.iter().flatten().collect();
            prop_assert!(ranges.iter().eq(all));
        }
    }
}
