//! Sources that keep being refused: after so many refusals within so much time, somebody who can keep them out is told.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::admission::Source;
use crate::compile::LimitCounter;

/// Sources whose refusals are counted at once. While it is full, further ones are not pushed down.
const SOURCES_MAX: usize = 16_384;

/// When a source is pushed down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PushDownSettings {
    /// After so many refusals; `None`: never.
    pub after: Option<u32>,
    /// Within so much time of the first.
    pub window: Duration,
    /// For so long.
    pub lasts: Duration,
}

impl Default for PushDownSettings {
    /// After 1,000 within 10 s, for a minute.
    fn default() -> Self {
        Self { after: Some(1000), window: Duration::from_secs(10), lasts: Duration::from_mins(1) }
    }
}

/// Takes a source to be kept out, and for how long.
type Sink = Box<dyn Fn(IpAddr, Duration) + Send + Sync>;

/// Counts refusals of all workers. Costs nothing until there is somebody to tell.
pub struct Refusals {
    settings: PushDownSettings,
    counts: Mutex<Counts<Source>>,
    /// Of limits, by their ids.
    limited: Mutex<Counts<(u64, Source)>>,
    sink: OnceLock<Sink>,
}

impl Refusals {
    /// Nobody was refused.
    pub(super) fn new(settings: PushDownSettings) -> Self {
        Self { settings, counts: Mutex::default(), limited: Mutex::default(), sink: OnceLock::new() }
    }

    /// From now on sources that keep being refused are told to `sink`. Only the first is taken.
    pub fn tell(&self, sink: impl Fn(IpAddr, Duration) + Send + Sync + 'static) {
        let _ = self.sink.set(Box::new(sink));
    }

    /// A connection of a source was refused because it has too many.
    pub(super) fn refused(&self, address: IpAddr, now: Instant) {
        let Some((sink, after)) = self.sink.get().zip(self.settings.after) else { return };
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.refused(Source::from(address), (after, self.settings.window), now) {
            sink(address, self.settings.lasts);
        }
    }

    /// A request of a source was refused by a limit that may have said when such sources are kept out.
    pub(super) fn limited(&self, limit: &LimitCounter, address: IpAddr, now: Instant) {
        let Some((sink, rule)) = self.sink.get().zip(limit.limit.push_down) else { return };
        let mut counts = self.limited.lock().unwrap_or_else(PoisonError::into_inner);
        let within = (rule.after, Duration::from_nanos(rule.within_ns));
        if counts.refused((limit.id(), Source::from(address)), within, now) {
            limit.count_pushed();
            sink(address, Duration::from_nanos(rule.lasts_ns));
        }
    }
}

impl fmt::Debug for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refusals").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Refusals by source, each since the first of its window.
#[derive(Debug)]
struct Counts<K> {
    sources: HashMap<K, (u32, Instant), foldhash::fast::RandomState>,
    /// When the full table was last cleared of windows that are over.
    swept: Option<Instant>,
}

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self { sources: HashMap::default(), swept: None }
    }
}

impl<K: Copy + Eq + Hash> Counts<K> {
    /// Counts a refusal; true where it is the one too many, after which counting begins anew.
    fn refused(&mut self, source: K, (after, window): (u32, Duration), now: Instant) -> bool {
        let over = |since: Instant| now.saturating_duration_since(since) >= window;
        if self.sources.len() >= SOURCES_MAX && !self.sources.contains_key(&source) {
            if self.swept.is_none_or(over) {
                self.swept = Some(now);
                self.sources.retain(|_, (_, since)| !over(*since));
            }
            if self.sources.len() >= SOURCES_MAX {
                return false;
            }
        }
        let (count, since) = self.sources.entry(source).or_insert((0, now));
        if over(*since) {
            (*count, *since) = (0, now);
        }
        *count += 1;
        if *count < after {
            return false;
        }
        self.sources.remove(&source);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const RULE: (u32, Duration) = (3, Duration::from_secs(10));

    fn source(n: u32) -> Source {
        Source::from(IpAddr::from(n.to_be_bytes()))
    }

    #[test]
    fn the_third_within_the_window() {
        let (mut counts, start) = (Counts::<Source>::default(), Instant::now());
        // (seconds, source) -> pushed
        for ((at, from), pushed) in [
            ((0, 1), false),
            ((1, 1), false),
            ((1, 2), false),
            ((9, 1), true),
            // Counted anew after a push, and after the window.
            ((9, 1), false),
            ((20, 1), false),
            ((20, 1), false),
            ((29, 1), true),
        ] {
            let now = start + Duration::from_secs(at);
            assert_eq!(counts.refused(source(from), RULE, now), pushed, "{at} s");
        }
    }

    #[test]
    fn a_full_table_makes_room_after_the_window() {
        let (mut counts, start) = (Counts::<Source>::default(), Instant::now());
        for n in 0..u32::try_from(SOURCES_MAX).unwrap() {
            counts.refused(source(n), RULE, start);
        }
        let one = (1, RULE.1);
        assert!(!counts.refused(source(u32::MAX), one, start), "there is no room");
        assert_eq!(counts.sources.len(), SOURCES_MAX);
        assert!(!counts.refused(source(u32::MAX), one, start + Duration::from_secs(9)));
        assert!(counts.refused(source(u32::MAX), one, start + Duration::from_secs(10)));
        assert!(counts.sources.is_empty());
    }

    #[test]
    fn nobody_is_told_before_somebody_listens() {
        let settings = PushDownSettings { after: Some(2), ..PushDownSettings::default() };
        let refusals = Refusals::new(settings);
        let (address, now) = (IpAddr::from([10, 0, 0, 1]), Instant::now());
        refusals.refused(address, now);
        let told = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&told);
        refusals.tell(move |source, lasts| {
            assert_eq!((source, lasts), (address, settings.lasts));
            count.fetch_add(1, Ordering::Relaxed);
        });
        refusals.refused(address, now);
        assert_eq!(told.load(Ordering::Relaxed), 0, "what came before does not count");
        refusals.refused(address, now);
        assert_eq!(told.load(Ordering::Relaxed), 1);
    }
}
