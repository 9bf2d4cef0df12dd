//! A hash map that its copies share: to copy it is one pointer, and what a copy changes afterwards costs it one part of the map and
//! not all of it. What two copies still share is passed over where they are compared. A look-up hashes its key twice.

use std::collections::HashMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Index;
use std::sync::Arc;

/// Parts of a map: with 10,000 entries a change copies about as many pointers to parts as there are entries in one.
const PARTS: usize = 128;

/// The map. See the module's documentation for what it costs.
pub struct SharedIndex<K, V> {
    /// Either none or [`PARTS`].
    parts: Arc<Vec<Arc<HashMap<K, V>>>>,
    len: usize,
}

impl<K, V> SharedIndex<K, V> {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All entries, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> + Clone {
        self.parts.iter().flat_map(|part| part.iter())
    }

    /// The keys, in no order.
    pub fn keys(&self) -> impl Iterator<Item = &K> + Clone {
        self.iter().map(|(key, _)| key)
    }

    /// The values, in no order.
    pub fn values(&self) -> impl Iterator<Item = &V> + Clone {
        self.iter().map(|(_, value)| value)
    }
}

/// The part that a key belongs to: the same one in all maps.
fn part_of<K: Hash>(key: &K) -> usize {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    usize::try_from(hasher.finish() % PARTS as u64).expect("there are few parts")
}

impl<K: Hash + Eq, V> SharedIndex<K, V> {
    /// The value of a key.
    pub fn get(&self, key: &K) -> Option<&V> {
        if self.len == 0 {
            return None;
        }
        self.parts.get(part_of(key))?.get(key)
    }

    /// Whether there is a value of that key.
    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// Tells of each key whose value is another one `after`, or is in one of the two alone, in no order. `same`: whether two values
    /// are; it is not asked about parts that both maps share.
    pub fn differences<'m>(
        &'m self,
        after: &'m Self,
        same: impl Fn(&V, &V) -> bool,
        mut found: impl FnMut(&'m K, Option<&'m V>, Option<&'m V>),
    ) {
        if Arc::ptr_eq(&self.parts, &after.parts) {
            return;
        }
        for at in 0..PARTS {
            let (was, is) = (self.parts.get(at), after.parts.get(at));
            if was.zip(is).is_some_and(|(was, is)| Arc::ptr_eq(was, is)) {
                continue;
            }
            for (key, before) in was.into_iter().flat_map(|part| part.iter()) {
                match is.and_then(|part| part.get(key)) {
                    Some(now) if same(before, now) => {}
                    now => found(key, Some(before), now),
                }
            }
            for (key, now) in is.into_iter().flat_map(|part| part.iter()) {
                if was.is_none_or(|part| !part.contains_key(key)) {
                    found(key, None, Some(now));
                }
            }
        }
    }
}

impl<K: Hash + Eq + Clone, V: Clone> SharedIndex<K, V> {
    /// Sets the value of a key, and gives the one before.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let parts = Arc::make_mut(&mut self.parts);
        parts.resize_with(PARTS, Arc::default);
        let before = Arc::make_mut(&mut parts[part_of(&key)]).insert(key, value);
        self.len += usize::from(before.is_none());
        before
    }

    /// Removes a key, and gives the value that it had.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        if !self.contains_key(key) {
            return None;
        }
        self.len -= 1;
        Arc::make_mut(&mut Arc::make_mut(&mut self.parts)[part_of(key)]).remove(key)
    }
}

impl<K, V> Clone for SharedIndex<K, V> {
    fn clone(&self) -> Self {
        Self { parts: Arc::clone(&self.parts), len: self.len }
    }
}

impl<K, V> Default for SharedIndex<K, V> {
    fn default() -> Self {
        Self { parts: Arc::default(), len: 0 }
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for SharedIndex<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Hash + Eq + Clone, V: Clone> FromIterator<(K, V)> for SharedIndex<K, V> {
    /// Of two values of one key the last one is taken.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut index = Self::default();
        for (key, value) in entries {
            index.insert(key, value);
        }
        index
    }
}

impl<K: Hash + Eq, V> Index<&K> for SharedIndex<K, V> {
    type Output = V;

    fn index(&self, key: &K) -> &V {
        self.get(key).expect("whoever indexes knows that the key is there")
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// A number of few, so that keys meet; the value, or `None` for a removal.
    fn steps() -> impl Strategy<Value = Vec<(u16, Option<u8>)>> {
        prop::collection::vec((0..400_u16, prop::option::weighted(0.7, 0..3_u8)), 0..600)
    }

    fn take(steps: &[(u16, Option<u8>)], map: &mut SharedIndex<u16, u8>, expected: &mut BTreeMap<u16, u8>) {
        for (key, value) in steps {
            let (got, known) = match value {
                Some(value) => (map.insert(*key, *value), expected.insert(*key, *value)),
                None => (map.remove(key), expected.remove(key)),
            };
            assert_eq!(got, known, "{key}");
        }
    }

    fn check(map: &SharedIndex<u16, u8>, expected: &BTreeMap<u16, u8>) {
        assert_eq!(map.iter().map(|(key, value)| (*key, *value)).collect::<BTreeMap<_, _>>(), *expected);
        assert_eq!((map.len(), map.is_empty()), (expected.len(), expected.is_empty()));
        assert!((0..400).all(|key| map.get(&key) == expected.get(&key)));
    }

    proptest! {
        #[test]
        fn it_is_a_map_and_a_copy_of_it_stays_as_it_was(first in steps(), second in steps()) {
            let (mut map, mut expected) = (SharedIndex::default(), BTreeMap::new());
            take(&first, &mut map, &mut expected);
            check(&map, &expected);
            let (mut after, mut then) = (map.clone(), expected.clone());
            take(&second, &mut after, &mut then);
            check(&after, &then);
            check(&map, &expected);
            let mut different = BTreeMap::new();
            map.differences(&after, u8::eq, |key, was, is| {
                assert_eq!(different.insert(*key, (was.copied(), is.copied())), None, "{key} is told of once");
            });
            let all = |key: u16| (key, (expected.get(&key).copied(), then.get(&key).copied()));
            let known: BTreeMap<_, _> = (0..400).map(all).filter(|(_, (was, is))| was != is).collect();
            prop_assert_eq!(different, known);
        }
    }

    #[test]
    fn what_copies_share_is_passed_over() {
        let before: SharedIndex<u32, u32> = (0..10_000).map(|key| (key, key)).collect();
        let mut after = before.clone();
        after.insert(5000, 1);
        let asked = Cell::new(0);
        let same = |was: &u32, is: &u32| {
            asked.set(asked.get() + 1);
            was == is
        };
        let mut different = Vec::new();
        before.differences(&after, same, |key, was, is| different.push((*key, was.copied(), is.copied())));
        assert_eq!(different, [(5000, Some(5000), Some(1))]);
        assert!(asked.get() < 200, "{} entries were looked at", asked.get());
    }
}
