//! A sorted map that its copies share: to copy it is one pointer, and what a copy changes afterwards costs it one piece of the
//! map and not all of it. What two copies still share is passed over where they are compared.
//!
//! The pieces are sorted lists of some hundred entries, none of them empty, under one list of them; so a change among 100,000
//! entries copies about a thousand pointers and one piece.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Index;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A piece with more entries than this is cut in two, and neighbours that have no more than half of it become one.
const PIECE_MAX: usize = 128;

/// Entries in the order of their keys, each at most [`PIECE_MAX`].
type Piece<K, V> = Arc<Vec<(K, V)>>;

/// The map. See the module's documentation for what it costs.
pub struct SharedMap<K, V> {
    pieces: Arc<Vec<Piece<K, V>>>,
    len: usize,
}

impl<K, V> SharedMap<K, V> {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All entries, sorted by their keys.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> + Clone {
        self.pieces.iter().flat_map(|piece| piece.iter()).map(|(key, value)| (key, value))
    }

    /// The keys, sorted.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &K> + Clone {
        self.iter().map(|(key, _)| key)
    }

    /// The values, in the order of their keys.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &V> + Clone {
        self.iter().map(|(_, value)| value)
    }

    /// The piece that has a key if any has it.
    fn piece_of<Q: Ord + ?Sized>(&self, key: &Q) -> usize
    where
        K: Borrow<Q>,
    {
        self.pieces.partition_point(|piece| piece[0].0.borrow() <= key).saturating_sub(1)
    }

    /// The value of a key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let piece = self.pieces.get(self.piece_of(key))?;
        let at = piece.binary_search_by(|(known, _)| known.borrow().cmp(key)).ok()?;
        Some(&piece[at].1)
    }

    /// Whether there is a value of that key.
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }

    /// The entries whose keys are not less than this one.
    pub fn starting_at<Q: Ord + ?Sized>(&self, key: &Q) -> impl Iterator<Item = (&K, &V)>
    where
        K: Borrow<Q>,
    {
        let at = self.piece_of(key);
        let first =
            self.pieces.get(at).map_or(0, |piece| piece.partition_point(|(known, _)| known.borrow() < key));
        let pieces = self.pieces.iter().skip(at);
        pieces.flat_map(|piece| piece.iter()).skip(first).map(|(key, value)| (key, value))
    }
}

impl<K: Ord + Clone, V: Clone> SharedMap<K, V> {
    /// Sets the value of a key, and gives the one before.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let at = self.piece_of(&key);
        let pieces = Arc::make_mut(&mut self.pieces);
        let Some(piece) = pieces.get_mut(at).map(Arc::make_mut) else {
            pieces.push(Arc::new(vec![(key, value)]));
            self.len = 1;
            return None;
        };
        match piece.binary_search_by(|(known, _)| known.cmp(&key)) {
            Ok(found) => Some(std::mem::replace(&mut piece[found].1, value)),
            Err(place) => {
                piece.insert(place, (key, value));
                self.len += 1;
                if piece.len() > PIECE_MAX {
                    let rest = piece.split_off(PIECE_MAX / 2);
                    pieces.insert(at + 1, Arc::new(rest));
                }
                None
            }
        }
    }

    /// Removes a key, and gives the value that it had.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let at = self.piece_of(key);
        let found = self.pieces.get(at)?.binary_search_by(|(known, _)| known.borrow().cmp(key)).ok()?;
        let pieces = Arc::make_mut(&mut self.pieces);
        let (_, value) = Arc::make_mut(&mut pieces[at]).remove(found);
        self.len -= 1;
        if pieces[at].is_empty() {
            pieces.remove(at);
        } else if pieces.get(at + 1).is_some_and(|next| next.len() + pieces[at].len() <= PIECE_MAX / 2) {
            let next = pieces.remove(at + 1);
            Arc::make_mut(&mut pieces[at]).extend(next.iter().cloned());
        }
        Some(value)
    }
}

impl<K: Ord, V> SharedMap<K, V> {
    /// Tells of each key whose value is another one `after`, or is in one of the two alone, in the order of the keys. `same`: whether
    /// two values are; it is not asked about pieces that both maps share.
    pub fn differences<'m>(
        &'m self,
        after: &'m Self,
        same: impl Fn(&V, &V) -> bool,
        mut found: impl FnMut(&'m K, Option<&'m V>, Option<&'m V>),
    ) {
        if Arc::ptr_eq(&self.pieces, &after.pieces) {
            return;
        }
        let (mut old, mut new) = (Course(&self.pieces, 0), Course(&after.pieces, 0));
        loop {
            if let (Course([a, ..], 0), Course([b, ..], 0)) = (&old, &new)
                && Arc::ptr_eq(a, b)
            {
                (old.0, new.0) = (&old.0[1..], &new.0[1..]);
                continue;
            }
            let (was, is) = (old.here(), new.here());
            let order = match (was, is) {
                (None, None) => return,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((was, _)), Some((is, _))) => was.cmp(is),
            };
            let was = was.filter(|_| order != Ordering::Greater);
            let is = is.filter(|_| order != Ordering::Less);
            if was.is_some() {
                old.go_on();
            }
            if is.is_some() {
                new.go_on();
            }
            let (before, now) = (was.map(|(_, value)| value), is.map(|(_, value)| value));
            if !before.zip(now).is_some_and(|(before, now)| same(before, now))
                && let Some((key, _)) = was.or(is)
            {
                found(key, before, now);
            }
        }
    }
}

/// A place in a map: the pieces from there on, and the entry in the first of them.
struct Course<'m, K, V>(&'m [Piece<K, V>], usize);

impl<'m, K, V> Course<'m, K, V> {
    fn here(&self) -> Option<&'m (K, V)> {
        self.0.first().map(|piece| &piece[self.1])
    }

    fn go_on(&mut self) {
        self.1 += 1;
        if self.0.first().is_some_and(|piece| piece.len() == self.1) {
            (self.0, self.1) = (&self.0[1..], 0);
        }
    }
}

impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> Self {
        Self { pieces: Arc::clone(&self.pieces), len: self.len }
    }
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self { pieces: Arc::default(), len: 0 }
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Ord, V: PartialEq> PartialEq for SharedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        let mut same = self.len == other.len;
        if same {
            self.differences(other, V::eq, |_, _, _| same = false);
        }
        same
    }
}

impl<K: Ord, V: Eq> Eq for SharedMap<K, V> {}

impl<K: Ord, V> FromIterator<(K, V)> for SharedMap<K, V> {
    /// Of two values of one key the last one is taken.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let sorted: BTreeMap<K, V> = entries.into_iter().collect();
        let len = sorted.len();
        let mut pieces = Vec::with_capacity(len.div_ceil(PIECE_MAX));
        let mut entries = sorted.into_iter().peekable();
        while entries.peek().is_some() {
            pieces.push(Arc::new(entries.by_ref().take(PIECE_MAX).collect()));
        }
        Self { pieces: Arc::new(pieces), len }
    }
}

impl<K: Ord, V, const N: usize> From<[(K, V); N]> for SharedMap<K, V> {
    fn from(entries: [(K, V); N]) -> Self {
        entries.into_iter().collect()
    }
}

impl<K: Borrow<Q>, V, Q: Ord + ?Sized> Index<&Q> for SharedMap<K, V> {
    type Output = V;

    fn index(&self, key: &Q) -> &V {
        self.get(key).expect("whoever indexes knows that the key is there")
    }
}

impl<K: Serialize, V: Serialize> Serialize for SharedMap<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de, K: Ord + Deserialize<'de>, V: Deserialize<'de>> Deserialize<'de> for SharedMap<K, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(BTreeMap::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    /// A number of few, so that keys meet; the value, or `None` for a removal.
    fn steps() -> impl Strategy<Value = Vec<(u16, Option<u8>)>> {
        prop::collection::vec((0..600_u16, prop::option::weighted(0.7, 0..3_u8)), 0..900)
    }

    fn check(map: &SharedMap<u16, u8>, expected: &BTreeMap<u16, u8>) {
        assert!(map.iter().eq(expected.iter()), "{map:?}");
        assert_eq!((map.len(), map.is_empty()), (expected.len(), expected.is_empty()));
        assert!(map.pieces.iter().all(|piece| (1..=PIECE_MAX).contains(&piece.len())));
        for key in 0..600 {
            assert_eq!(map.get(&key), expected.get(&key));
        }
        for key in [0, 1, 299, 300, 599] {
            assert!(map.starting_at(&key).eq(expected.range(key..)), "from {key}");
        }
    }

    proptest! {
        #[test]
        fn it_is_a_map_and_a_copy_of_it_stays_as_it_was(first in steps(), second in steps()) {
            let (mut map, mut expected) = (SharedMap::default(), BTreeMap::new());
            for (key, value) in first {
                let (got, known) = match value {
                    Some(value) => (map.insert(key, value), expected.insert(key, value)),
                    None => (map.remove(&key), expected.remove(&key)),
                };
                prop_assert_eq!(got, known);
            }
            check(&map, &expected);
            check(&expected.iter().map(|(key, value)| (*key, *value)).collect(), &expected);
            let (mut after, mut then) = (map.clone(), expected.clone());
            for (key, value) in second {
                let (got, known) = match value {
                    Some(value) => (after.insert(key, value), then.insert(key, value)),
                    None => (after.remove(&key), then.remove(&key)),
                };
                prop_assert_eq!(got, known);
            }
            check(&after, &then);
            check(&map, &expected);
            prop_assert_eq!(map == after, expected == then);
            let mut different = Vec::new();
            map.differences(&after, u8::eq, |key, was, is| different.push((*key, was.copied(), is.copied())));
            let all = |key: u16| (key, expected.get(&key).copied(), then.get(&key).copied());
            let known: Vec<_> = (0..600).map(all).filter(|(_, was, is)| was != is).collect();
            prop_assert_eq!(different, known);
        }
    }

    #[test]
    fn what_copies_share_is_passed_over() {
        let before: SharedMap<u32, u32> = (0..100_000).map(|key| (key, key)).collect();
        let mut after = before.clone();
        after.insert(50_000, 1);
        after.insert(100_000, 2);
        after.remove(&7);
        let asked = Cell::new(0);
        let same = |was: &u32, is: &u32| {
            asked.set(asked.get() + 1);
            was == is
        };
        let mut different = Vec::new();
        before.differences(&after, same, |key, was, is| different.push((*key, was.copied(), is.copied())));
        assert_eq!(
            different,
            [(7, Some(7), None), (50_000, Some(50_000), Some(1)), (100_000, None, Some(2))]
        );
        assert!(asked.get() <= 3 * PIECE_MAX, "{} entries were looked at", asked.get());
    }
}
