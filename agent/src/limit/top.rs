//! The keys of a limit that come most often, of all that it ever sees: a sample, in bounded memory.
//!
//! Keys are counted by the space-saving algorithm (Metwally, Agrawal, El Abbadi 2005): a key that finds no place takes that of the
//! one that came least, and is known to have come at least as often as since then. What is shown are those counts, which are never too
//! high but for the sampling. Of the first [`EXACT`] requests of a span each is counted, of later ones some, each for several. A span is
//! shown together with the one before.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use ring::digest::{SHA256, digest};

/// Keys that are counted.
const PLACES: usize = 128;
/// Nanoseconds of a span.
const SPAN: u64 = 300_000_000_000;
/// So many requests of a span are all counted.
const EXACT: u32 = 1024;
/// Then one of so many is, by the nanosecond in which it comes: a power of two.
const SAMPLE: u64 = 1 << SAMPLE_BITS;
const SAMPLE_BITS: u32 = 6;
/// Near the golden section of 2^64: moments that follow each other in any step come out spread.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
/// What is shown of a value.
const SHOWN_MAX: usize = 64;

/// What is known of a limit's keys.
#[derive(Debug, Default)]
pub struct Top {
    /// Requests of the span that were counted.
    counted: AtomicU32,
    spans: Mutex<Spans>,
}

#[derive(Debug, Default)]
struct Spans {
    since: u64,
    current: Span,
    before: Span,
}

#[derive(Debug, Default)]
struct Span(Vec<Place>);

#[derive(Debug, Clone)]
struct Place {
    key: u64,
    label: Box<str>,
    admitted: u64,
    refused: u64,
    /// How often others came whose place this was.
    others: u64,
}

/// A key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopKey {
    /// Its values as they are shown.
    pub label: String,
    /// Requests that were let through.
    pub admitted: u64,
    /// Requests that were refused.
    pub refused: u64,
}

/// A request that is counted.
#[derive(Debug, Clone)]
pub struct Sample {
    /// For so many.
    weight: u64,
    key: u64,
    label: Box<str>,
}

impl Top {
    /// Whether a request is counted that comes at this moment: for so many.
    pub fn weight(&self, now: u64) -> Option<u64> {
        if self.counted.load(Ordering::Relaxed) < EXACT {
            return Some(1);
        }
        (now.wrapping_mul(SPREAD) >> (u64::BITS - SAMPLE_BITS) == 0).then_some(SAMPLE)
    }

    /// Counts it.
    pub fn count(&self, sample: Sample, admitted: bool, now: u64) {
        // Whoever would have to wait is not counted.
        let Ok(mut spans) = self.spans.try_lock() else { return };
        if spans.turn(now) {
            self.counted.store(0, Ordering::Relaxed);
        }
        self.counted.fetch_add(1, Ordering::Relaxed);
        spans.current.count(sample, admitted);
    }

    /// Those that were refused most often, and then those that were let through most often; at most so many.
    pub fn keys(&self, now: u64, most: usize) -> Vec<TopKey> {
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        if spans.turn(now) {
            self.counted.store(0, Ordering::Relaxed);
        }
        let mut all = spans.current.0.clone();
        for place in &spans.before.0 {
            match all.iter_mut().find(|other| other.key == place.key) {
                Some(other) => {
                    other.admitted += place.admitted;
                    other.refused += place.refused;
                }
                None => all.push(place.clone()),
            }
        }
        drop(spans);
        all.sort_by(|a, b| (b.refused, b.admitted, &a.label).cmp(&(a.refused, a.admitted, &b.label)));
        let shown = |place: Place| TopKey {
            label: place.label.into(),
            admitted: place.admitted,
            refused: place.refused,
        };
        all.into_iter().take(most).map(shown).collect()
    }
}

impl Sample {
    /// A request that is counted for so many.
    pub fn new(weight: u64, key: u64, label: String) -> Self {
        Self { weight, key, label: label.into() }
    }
}

impl Spans {
    /// Begins another span where one is over.
    fn turn(&mut self, now: u64) -> bool {
        let over = now.saturating_sub(self.since) / SPAN;
        if over == 0 {
            return false;
        }
        let last = std::mem::take(&mut self.current);
        self.before = if over == 1 { last } else { Span::default() };
        self.since = now;
        true
    }
}

impl Span {
    fn count(&mut self, sample: Sample, admitted: bool) {
        let Sample { weight, key, label } = sample;
        let fresh = |others| Place { key, label, admitted: 0, refused: 0, others };
        let position = match self.0.iter().position(|place| place.key == key) {
            Some(position) => position,
            None if self.0.len() < PLACES => {
                self.0.push(fresh(0));
                self.0.len() - 1
            }
            None => {
                let least = (0..self.0.len()).min_by_key(|position| self.0[*position].all()).unwrap_or(0);
                self.0[least] = fresh(self.0[least].all());
                least
            }
        };
        let place = &mut self.0[position];
        let count = if admitted { &mut place.admitted } else { &mut place.refused };
        *count += weight;
    }
}

impl Place {
    fn all(&self) -> u64 {
        self.others + self.admitted + self.refused
    }
}

/// A value that is not secret as it is shown: not too long, and without anything that moves a terminal's cursor.
pub fn shown(value: &str) -> String {
    let end = value.char_indices().nth(SHOWN_MAX).map_or(value.len(), |(at, _)| at);
    let cut = if end < value.len() { "..." } else { "" };
    format!("{}{cut}", value[..end].escape_debug())
}

/// What is shown of a value that may be secret: the beginning of its SHA-256, by which whoever knows the value finds it.
pub fn fingerprint(value: &[u8]) -> String {
    let digest = digest(&SHA256, value);
    digest.as_ref()[..6].iter().fold("sha256:".to_owned(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn come(top: &Top, key: u64, times: u64, now: u64) {
        for _ in 0..times {
            if let Some(weight) = top.weight(now) {
                top.count(Sample::new(weight, key, format!("key-{key}")), key.is_multiple_of(2), now);
            }
        }
    }

    fn labels(top: &Top, now: u64, most: usize) -> Vec<(String, u64, u64)> {
        let keys = top.keys(now, most).into_iter();
        keys.map(|key| (key.label, key.admitted, key.refused)).collect()
    }

    #[test]
    fn the_most_refused_come_first_and_then_the_most_let_through() {
        let top = Top::default();
        for (key, times) in [(1, 3), (2, 9), (3, 5), (4, 2)] {
            come(&top, key, times, 0);
        }
        let key = |number: u64, admitted, refused| (format!("key-{number}"), admitted, refused);
        assert_eq!(labels(&top, 0, 9), [key(3, 0, 5), key(1, 0, 3), key(2, 9, 0), key(4, 2, 0)]);
        assert_eq!(labels(&top, 0, 1), [key(3, 0, 5)]);
        assert_eq!(labels(&top, SPAN, 1), [key(3, 0, 5)], "the span before is shown");
        come(&top, 3, 2, SPAN + 1);
        assert_eq!(labels(&top, SPAN + 1, 1), [key(3, 0, 7)]);
        assert_eq!(labels(&top, SPAN * 2 + 1, 9), [key(3, 0, 2)], "and no other");
        assert!(labels(&top, SPAN * 9, 9).is_empty());
    }

    #[test]
    fn the_heavy_are_found_among_any_number_of_others() {
        let top = Top::default();
        let mut now = 0;
        for round in 0..100_000_u64 {
            now += 1001;
            come(&top, 1_000_000 + round, 1, now);
            if round % 10 == 0 {
                come(&top, 7, 1, now + 500);
            }
        }
        let shown = labels(&top, now, 128);
        let (label, _, refused) = &shown[0];
        assert_eq!(label, "key-7", "{shown:?}");
        assert!(*refused <= 10_000 + 2_000, "{refused}");
        assert!(shown.len() <= PLACES);
        assert!(top.spans.lock().expect("nobody panicked").current.0.len() == PLACES);
    }

    #[test]
    fn values_are_shown_shortened_or_as_fingerprints() {
        assert_eq!(shown("/a/b"), "/a/b");
        assert_eq!(shown("/a\u{1b}[2J\n"), "/a\\u{1b}[2J\\n");
        assert_eq!(shown(&"ä".repeat(65)), format!("{}...", "ä".repeat(64)));
        // As `printf ann | sha256sum` says.
        assert_eq!(fingerprint(b"ann"), "sha256:49915e0d7d4b");
        assert_eq!(fingerprint(b"abc"), "sha256:ba7816bf8f01");
    }
}
