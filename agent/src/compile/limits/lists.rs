//! Which documents are about a service or a rule of a route, found by their names once and remembered beside them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::{LimitPolicy, of_part};
use crate::model::{LimitTarget, LimitedRoute, ObjectName};

/// How many tables there were. No table is the 0th, as fresh memos know nothing.
static TABLES: AtomicU32 = AtomicU32::new(1);

/// The documents of each service and each rule that has some.
#[derive(Debug, Default)]
pub(super) struct Lists {
    /// Tells this table from others; 0: it has no lists.
    table: u32,
    /// The first is empty: that of all that no document is about.
    all: Vec<Vec<Arc<LimitPolicy>>>,
    services: HashMap<ObjectName, u32>,
    routes: HashMap<ObjectName, Vec<OfRoute>>,
}

/// The lists of a route: of rules that some document names, and of all others.
#[derive(Debug)]
struct OfRoute {
    kind: LimitedRoute,
    rules: Vec<(Arc<str>, u32)>,
    others: u32,
}

/// Where a list is, in the table of limits that was asked last. It lies beside what the list is about, so that a request hashes
/// no names.
#[derive(Debug, Default)]
pub struct LimitMemo(AtomicU64);

impl Lists {
    /// Those of all documents, in their order.
    pub fn new(policies: &[Arc<LimitPolicy>]) -> Self {
        let mut services: HashMap<_, Vec<_>> = HashMap::new();
        let mut routes: HashMap<_, Vec<_>> = HashMap::new();
        for policy in policies {
            for target in policy.asked() {
                let policy = Arc::clone(policy);
                match target {
                    LimitTarget::Service(name) => services.entry(name.clone()).or_default().push(policy),
                    LimitTarget::Route(kind, name, rule) => {
                        routes.entry((*kind, name.clone())).or_default().push((rule.clone(), policy));
                    }
                    // Found by themselves.
                    LimitTarget::Gateway(..)
                    | LimitTarget::SentBy(_)
                    | LimitTarget::SentFrom(_)
                    | LimitTarget::Enters(_)
                    | LimitTarget::EntersNode(_) => {}
                }
            }
        }
        let mut lists =
            Self { table: TABLES.fetch_add(1, Ordering::Relaxed), all: vec![Vec::new()], ..Self::default() };
        for (name, list) in services {
            let list = lists.add(list);
            lists.services.insert(name, list);
        }
        for ((kind, name), parts) in routes {
            let mut rules: Vec<&Arc<str>> = parts.iter().filter_map(|(rule, _)| rule.as_ref()).collect();
            rules.sort_unstable();
            rules.dedup();
            let mut of = |rule: &str| {
                lists.add(parts.iter().filter_map(|part| of_part(part, rule)).cloned().collect())
            };
            let rules = rules.into_iter().map(|rule| (Arc::clone(rule), of(rule))).collect();
            // No rule has an empty name.
            let of_route = OfRoute { kind, rules, others: of("") };
            lists.routes.entry(name).or_default().push(of_route);
        }
        lists
    }

    fn add(&mut self, list: Vec<Arc<LimitPolicy>>) -> u32 {
        self.all.push(list);
        u32::try_from(self.all.len() - 1).unwrap_or(0)
    }

    /// The list of a service.
    pub fn of_service(&self, service: &ObjectName) -> u32 {
        self.services.get(service).copied().unwrap_or_default()
    }

    /// The list of a rule of a route.
    pub fn of_rule(&self, kind: &str, source: &ObjectName, rule: &str) -> u32 {
        let of_kinds = self.routes.get(source).map_or(&[][..], Vec::as_slice);
        let Some(of_route) = of_kinds.iter().find(|of_route| of_route.kind.as_str() == kind) else {
            return 0;
        };
        let named = of_route.rules.iter().find(|(name, _)| **name == *rule);
        named.map_or(of_route.others, |(_, list)| *list)
    }

    /// A list.
    pub fn get(&self, list: impl TryInto<usize>) -> &[Arc<LimitPolicy>] {
        list.try_into().ok().and_then(|list| self.all.get(list)).map_or(&[], Vec::as_slice)
    }

    /// The list that is found once.
    pub fn remembered(&self, memo: &LimitMemo, find: impl FnOnce(&Self) -> u32) -> &[Arc<LimitPolicy>] {
        // Table and list are one word: whatever other threads write, they belong together.
        let known = memo.0.load(Ordering::Relaxed);
        let list = if known >> u32::BITS == u64::from(self.table) {
            known & u64::from(u32::MAX)
        } else {
            let list = u64::from(find(self));
            memo.0.store(u64::from(self.table) << u32::BITS | list, Ordering::Relaxed);
            list
        };
        self.get(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lists(table: u32, documents: usize) -> Lists {
        Lists { table, all: vec![Vec::new(); documents], ..Lists::default() }
    }

    #[test]
    fn a_list_is_found_once_for_each_table() {
        let (memo, one, other) = (LimitMemo::default(), lists(7, 3), lists(8, 3));
        let mut found = Vec::new();
        for (lists, list) in [(&one, 2), (&one, 1), (&other, 0), (&other, 1), (&one, 1), (&one, 0)] {
            let got = lists.remembered(&memo, |lists| {
                found.push((lists.table, list));
                list
            });
            assert!(got.is_empty());
        }
        assert_eq!(found, [(7, 2), (8, 0), (7, 1)]);
    }
}
