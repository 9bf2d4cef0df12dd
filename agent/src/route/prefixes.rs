//! All stored prefixes of a string, without looking at the others.

use std::sync::Arc;

/// Lists of values by prefix.
///
/// The prefixes are sorted, and each knows the longest other one that it begins with. Every prefix of a path sorts at
/// or before the path itself, and whatever sorts between the two begins with that prefix as well; so the last entry
/// that is not after the path has all prefixes of the path on its chain of parents.
#[derive(Debug, Default)]
pub(super) struct PrefixIndex {
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    prefix: Arc<str>,
    parent: Option<usize>,
    /// Ascending.
    values: Vec<u32>,
}

impl PrefixIndex {
    /// Builds the index; the values come in ascending order.
    pub(super) fn new(mut values: Vec<(Arc<str>, u32)>) -> Self {
        // A stable sort keeps the values of one prefix ascending.
        values.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut entries: Vec<Entry> = Vec::new();
        for (prefix, value) in values {
            match entries.last_mut() {
                Some(last) if last.prefix == prefix => last.values.push(value),
                _ => {
                    let parent = chain(&entries, entries.len().checked_sub(1))
                        .find(|(_, entry)| prefix.starts_with(&*entry.prefix))
                        .map(|(index, _)| index);
                    entries.push(Entry { prefix, parent, values: vec![value] });
                }
            }
        }
        Self { entries }
    }

    /// The values of each prefix of `text`, longest prefix first.
    pub(super) fn find<'a>(&'a self, text: &'a str) -> impl Iterator<Item = &'a [u32]> {
        let after = self.entries.partition_point(|entry| &*entry.prefix <= text);
        chain(&self.entries, after.checked_sub(1))
            .filter(|(_, entry)| text.starts_with(&*entry.prefix))
            .map(|(_, entry)| entry.values.as_slice())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// An entry with its parents.
fn chain(entries: &[Entry], start: Option<usize>) -> impl Iterator<Item = (usize, &Entry)> {
    std::iter::successors(start, |index| entries[*index].parent).map(|index| (index, &entries[index]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn index(prefixes: &[&str]) -> PrefixIndex {
        PrefixIndex::new(
            prefixes.iter().zip(0..).map(|(prefix, value)| (Arc::from(*prefix), value)).collect(),
        )
    }

    #[test]
    fn longest_first() {
        let index = index(&["/", "/api", "/api/v1", "/apx", "/b", "/api"]);
        let found: Vec<_> = index.find("/api/v1/users").collect();
        assert_eq!(found, [&[2][..], &[1, 5], &[0]]);
        assert_eq!(index.find("/ap").collect::<Vec<_>>(), [&[0]]);
        assert_eq!(index.find("*").count(), 0);
    }

    proptest! {
        #[test]
        fn finds_what_a_scan_finds(prefixes in prop::collection::vec("[ab/]{0,5}", 0..20), text in "[ab/]{0,8}") {
            let texts: Vec<&str> = prefixes.iter().map(String::as_str).collect();
            let mut found: Vec<u32> = index(&texts).find(&text).flatten().copied().collect();
            found.sort_unstable();
            let scanned: Vec<u32> =
                texts.iter().zip(0..).filter(|(prefix, _)| text.starts_with(**prefix)).map(|(_, i)| i).collect();
            prop_assert_eq!(found, scanned);
        }
    }
}
