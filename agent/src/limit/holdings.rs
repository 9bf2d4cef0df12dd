//! What a node has leased of limits and not used, as it tells the other nodes.

use serde::{Deserialize, Serialize};

/// Limits that a node tells of. Of further ones it tells how many they are.
pub const HOLDINGS_MAX: usize = 128;

/// What a node holds. Fields that this version does not know are ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holdings {
    /// By limit, those of which it holds most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<Held>,
    /// Of how many more it holds something.
    #[serde(default)]
    pub left_out: usize,
}

/// What it holds of a limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The document.
    pub policy: String,
    /// The limit's name within it.
    pub limit: String,
    /// Of all keys together.
    pub units: u64,
}

impl Holdings {
    /// What is told of these.
    pub fn new(all: impl Iterator<Item = Held>) -> Self {
        let mut limits: Vec<Held> = all.filter(|held| held.units > 0).collect();
        limits.sort_by_key(|held| std::cmp::Reverse(held.units));
        let left_out = limits.len().saturating_sub(HOLDINGS_MAX);
        limits.truncate(HOLDINGS_MAX);
        Self { limits, left_out }
    }

    /// How much of a limit; `None` where it may be one of those that were left out.
    pub fn of(&self, policy: &str, limit: &str) -> Option<u64> {
        let told = self.limits.iter().find(|held| held.policy == policy && held.limit == limit);
        told.map(|held| held.units).or((self.left_out == 0).then_some(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(number: usize, units: u64) -> Held {
        Held { policy: "default/calm".to_owned(), limit: format!("l{number}"), units }
    }

    #[test]
    fn the_largest_are_told_and_the_others_counted() {
        let few = Holdings::new([held(1, 0), held(2, 5)].into_iter());
        assert_eq!((&few.limits[..], few.left_out), (&[held(2, 5)][..], 0));
        assert_eq!([few.of("default/calm", "l2"), few.of("default/calm", "l1")], [Some(5), Some(0)]);
        let many = Holdings::new((0..HOLDINGS_MAX + 2).map(|number| held(number, number as u64 + 1)));
        assert_eq!((many.limits.len(), many.left_out), (HOLDINGS_MAX, 2));
        assert_eq!([many.of("default/calm", "l2"), many.of("default/calm", "l1")], [Some(3), None]);
        let long = "x".repeat(253);
        let name = |number| Held { policy: format!("{long}/{long}"), limit: long.clone(), ..held(number, 1) };
        let bytes = serde_json::to_vec(&Holdings::new((0..9000).map(name))).expect("JSON");
        assert!(bytes.len() < 128 << 10, "{}", bytes.len());
    }

    #[test]
    fn what_other_versions_tell_is_read() {
        let text = r#"{"limits": [{"policy": "a/b", "limit": "c", "units": 7, "keys": 2}], "colour": "red"}"#;
        let read: Holdings = serde_json::from_str(text).expect("is read");
        assert_eq!([read.of("a/b", "c"), read.of("a/b", "d")], [Some(7), Some(0)]);
        assert_eq!(serde_json::from_str::<Holdings>("{}").expect("is read"), Holdings::default());
    }
}
