//! Other numbers for some keys of a limit: found by the values of the key's parts, and where one of them is the client's address,
//! by the networks that it is in. Keys with the same numbers share their counters' memory; each counts for itself.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::counter::Numbers;
use crate::model::{KeyPart, Limit, Override, OverrideValue};

/// Those of one limit.
#[derive(Debug, Default)]
pub(super) struct Overrides {
    /// Each once.
    numbers: Vec<Arc<Numbers>>,
    /// By the hash of all values that are no addresses; the narrowest networks first.
    places: HashMap<u64, Vec<Place>>,
}

#[derive(Debug)]
struct Place {
    /// One for each part of the key that is the client's address.
    networks: Vec<IpNet>,
    /// The position of its numbers.
    numbers: usize,
}

/// Writes one value of a key, behind its length.
pub fn write_text(value: &[u8], hasher: &mut impl Hasher) {
    hasher.write_usize(value.len());
    hasher.write(value);
}

impl Overrides {
    /// `make` finds or makes the numbers of a quota.
    pub fn new(limit: &Limit, secret: &RandomState, make: impl Fn(&Override) -> Arc<Numbers>) -> Self {
        let mut all = Self::default();
        for other in &limit.overrides {
            let known = all.numbers.iter().position(|numbers| numbers.quota == other.quota);
            let numbers = known.unwrap_or_else(|| {
                all.numbers.push(make(other));
                all.numbers.len() - 1
            });
            let mut hasher = secret.build_hasher();
            let mut networks = Vec::new();
            for (part, value) in limit.key.iter().zip(&other.values) {
                match value {
                    OverrideValue::Text(text) => write_value(part, text, &mut hasher),
                    OverrideValue::Network(net) => networks.push(*net),
                }
            }
            all.places.entry(hasher.finish()).or_default().push(Place { networks, numbers });
        }
        for places in all.places.values_mut() {
            let width =
                |place: &Place| place.networks.iter().map(|net| u32::from(net.prefix_len())).sum::<u32>();
            places.sort_by_key(|place| std::cmp::Reverse(width(place)));
        }
        all
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// All numbers.
    pub fn numbers(&self) -> &[Arc<Numbers>] {
        &self.numbers
    }

    /// Those of a client whose other values have this hash.
    pub fn of(&self, values: u64, client: IpAddr) -> Option<&Numbers> {
        let mut places = self.places.get(&values)?.iter();
        let place = places.find(|place| place.networks.iter().all(|net| net.contains(&client)))?;
        self.numbers.get(place.numbers).map(|numbers| &**numbers)
    }
}

/// Writes a value as a request with it does.
fn write_value(part: &KeyPart, text: &str, hasher: &mut impl Hasher) {
    match part {
        KeyPart::SourceIdentity | KeyPart::Route => {
            text.split('/').for_each(|name| write_text(name.as_bytes(), hasher));
        }
        _ => write_text(text.as_bytes(), hasher),
    }
}
