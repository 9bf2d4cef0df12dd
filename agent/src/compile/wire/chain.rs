//! Values in an order of precedence, each of which names the one before it.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::hash::Hash;
use std::str::FromStr;

use super::WireError;

/// Values by key, and their order.
#[derive(Debug, Clone)]
pub(super) struct Chain<K, V> {
    links: BTreeMap<K, (Option<K>, V)>,
    order: Vec<K>,
}

impl<K, V> Default for Chain<K, V> {
    fn default() -> Self {
        Self { links: BTreeMap::new(), order: Vec::new() }
    }
}

/// A value with its key and that of its predecessor.
pub(super) type Put<K, V> = (K, (Option<K>, V));

/// Changes of a chain that are not made yet.
#[derive(Debug)]
pub(super) struct ChainChange<K, V> {
    pub(super) puts: Vec<Put<K, V>>,
    pub(super) removals: Vec<K>,
}

impl<K, V> Default for ChainChange<K, V> {
    fn default() -> Self {
        Self { puts: Vec::new(), removals: Vec::new() }
    }
}

impl<K, V> ChainChange<K, V> {
    pub(super) fn is_empty(&self) -> bool {
        self.puts.is_empty() && self.removals.is_empty()
    }
}

impl<K: Clone + Ord + Hash, V: Clone> Chain<K, V> {
    /// The values in their order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.order.iter().filter_map(|key| self.links.get(key).map(|(_, value)| (key, value)))
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.links.get(key).map(|(_, value)| value)
    }

    pub(super) fn len(&self) -> usize {
        self.links.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// The chain after a change. `named`: how errors call the value with a key.
    pub(super) fn changed(
        &self,
        change: ChainChange<K, V>,
        named: impl Fn(&K) -> String,
    ) -> Result<Self, WireError> {
        let mut links = self.links.clone();
        for key in change.removals {
            links.remove(&key).ok_or_else(|| WireError::Missing { key: named(&key) })?;
        }
        links.extend(change.puts);
        let order = in_order(&links).map_err(|key| WireError::Precedence { key: named(key) })?;
        Ok(Self { links, order })
    }
}

/// All keys, each after the one that it names; else one that has no place.
fn in_order<K: Clone + Ord + Hash, V>(links: &BTreeMap<K, (Option<K>, V)>) -> Result<Vec<K>, &K> {
    let mut next: HashMap<Option<&K>, &K> = HashMap::with_capacity(links.len());
    for (key, (after, _)) in links {
        if next.insert(after.as_ref(), key).is_some() {
            return Err(key);
        }
    }
    let mut order = Vec::with_capacity(links.len());
    let mut last = None;
    // Each step takes an entry away, so that a ring ends as well.
    while let Some(key) = next.remove(&last) {
        order.push(key.clone());
        last = Some(key);
    }
    match next.into_values().min() {
        Some(left) => Err(left),
        None => Ok(order),
    }
}

/// The key of a predecessor as a record names it.
pub(super) fn predecessor<K: FromStr>(
    text: Option<String>,
    of: &impl Display,
) -> Result<Option<K>, WireError> {
    let Some(text) = text else { return Ok(None) };
    text.parse().map(Some).map_err(|_| WireError::Record {
        key: of.to_string(),
        field: "after".to_owned(),
        problem: format!("{text:?} is no key"),
    })
}
