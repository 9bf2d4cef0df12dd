//! Values by host name.

use std::collections::HashMap;
use std::sync::Arc;

use crate::model::HostPattern;

/// DNS names are at most 253 bytes long (RFC 1035, section 2.3.4). A longer host is no name that a wildcard was meant
/// for, and looking up each of its labels would let a client choose the price.
const NAME_MAX_BYTES: usize = 253;

/// Values by host name: exact first, then the longest wildcard suffix, then any.
#[derive(Debug)]
pub struct HostTable<T> {
    entries: Vec<(HostPattern, T)>,
    exact: HashMap<Arc<str>, usize>,
    suffixes: HashMap<Arc<str>, usize>,
    any: Option<usize>,
}

impl<T> Default for HostTable<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), exact: HashMap::new(), suffixes: HashMap::new(), any: None }
    }
}

impl<T> HostTable<T> {
    /// Builds the table; of two entries with one pattern the first is kept.
    pub fn new(entries: impl IntoIterator<Item = (HostPattern, T)>) -> Self {
        let mut table = Self::default();
        for (pattern, value) in entries {
            let index = table.entries.len();
            let slot = match &pattern {
                HostPattern::Exact(name) => table.exact.entry(Arc::clone(name)).or_insert(index),
                HostPattern::Suffix(suffix) => table.suffixes.entry(Arc::clone(suffix)).or_insert(index),
                HostPattern::Any => table.any.get_or_insert(index),
            };
            if *slot == index {
                table.entries.push((pattern, value));
            }
        }
        table
    }

    /// The value for a lower-case host without port.
    pub fn find(&self, host: &str) -> Option<&T> {
        let index = self.exact.get(host).copied().or_else(|| self.longest_suffix(host)).or(self.any)?;
        self.entries.get(index).map(|(_, value)| value)
    }

    /// The value of a pattern itself.
    pub fn get(&self, pattern: &HostPattern) -> Option<&T> {
        let index = match pattern {
            HostPattern::Exact(name) => self.exact.get(name).copied(),
            HostPattern::Suffix(suffix) => self.suffixes.get(suffix).copied(),
            HostPattern::Any => self.any,
        };
        self.entries.get(index?).map(|(_, value)| value)
    }

    /// All values with their patterns, in the order in which they were given, for dumps.
    pub fn iter(&self) -> impl Iterator<Item = (HostPattern, &T)> {
        self.entries.iter().map(|(pattern, value)| (pattern.clone(), value))
    }

    /// The first hit from the left is the longest suffix. The wildcard stands for one label or more, so a host that
    /// begins with the suffix's own dot is not one of its names.
    fn longest_suffix(&self, host: &str) -> Option<usize> {
        if self.suffixes.is_empty() || host.len() > NAME_MAX_BYTES {
            return None;
        }
        host.match_indices('.')
            .filter(|(at, _)| *at > 0)
            .find_map(|(at, _)| self.suffixes.get(&host[at..]).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> HostPattern {
        match text.strip_prefix('*') {
            Some("") => HostPattern::Any,
            Some(suffix) => HostPattern::Suffix(suffix.into()),
            None => HostPattern::Exact(text.into()),
        }
    }

    fn check(patterns: &[&'static str], host: &str, expected: Option<&'static str>) {
        let table = HostTable::new(patterns.iter().map(|text| (pattern(text), *text)));
        assert_eq!(table.find(host).copied(), expected, "{host} in {patterns:?}");
    }

    #[test]
    fn most_specific_pattern_wins() {
        let all = ["*", "*.com", "*.example.com", "a.example.com"];
        check(&all, "a.example.com", Some("a.example.com"));
        check(&all, "b.example.com", Some("*.example.com"));
        check(&all, "x.b.example.com", Some("*.example.com"));
        check(&all, "example.com", Some("*.com"));
        check(&all, "example.org", Some("*"));
        check(&all, "", Some("*"));
        check(&all, "localhost", Some("*"));
    }

    #[test]
    fn near_misses() {
        check(&["*.example.com"], "example.com", None);
        check(&["*.example.com"], ".example.com", None);
        check(&["*.example.com"], "badexample.com", None);
        check(&["*.example.com"], "a.example.com.", None);
        check(&["a.example.com"], "aa.example.com", None);
        check(&[], "a.example.com", None);
    }

    #[test]
    fn an_overlong_host_meets_no_wildcard() {
        let host = format!("{}example.com", "a.".repeat(4000));
        check(&["*.example.com"], &host, None);
        check(&["*.example.com", "*"], &host, Some("*"));
    }

    #[test]
    fn first_of_two_equal_patterns_is_kept() {
        for text in ["a.b", "*.b", "*"] {
            let table = HostTable::new([(pattern(text), 1), (pattern(text), 2)]);
            assert_eq!(table.find("a.b"), Some(&1));
            assert_eq!(table.iter().count(), 1);
        }
    }

    #[test]
    fn iterates_in_the_given_order() {
        let table = HostTable::new(["*", "b", "a", "*.c"].map(|text| (pattern(text), text)));
        assert_eq!(table.iter().map(|(_, text)| *text).collect::<Vec<_>>(), ["*", "b", "a", "*.c"]);
    }
}
