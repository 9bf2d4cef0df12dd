//! Places of bridges in the memory that is shared with the programs: pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long a place is not used again: a program run that still looks at it takes microseconds.
const REST: Duration = Duration::from_secs(10);

/// Those that are free.
#[derive(Debug)]
pub struct Places {
    /// Never used, from this one on.
    fresh: u32,
    capacity: u32,
    /// Used before, the longest ago first.
    resting: VecDeque<(Instant, u32)>,
}

impl Places {
    /// All are free.
    pub const fn new(capacity: u32) -> Self {
        Self { fresh: 0, capacity, resting: VecDeque::new() }
    }

    /// Two places, or none.
    pub fn take_two(&mut self, now: Instant) -> Option<[u32; 2]> {
        let first = self.take(now)?;
        if let Some(second) = self.take(now) {
            return Some([first, second]);
        }
        // It was not touched, and need not rest.
        self.resting.push_front((now.checked_sub(REST).unwrap_or(now), first));
        None
    }

    fn take(&mut self, now: Instant) -> Option<u32> {
        let rested =
            self.resting.front().is_some_and(|(since, _)| now.saturating_duration_since(*since) >= REST);
        if rested {
            return self.resting.pop_front().map(|(_, place)| place);
        }
        let fresh = self.fresh;
        (fresh < self.capacity).then(|| {
            self.fresh += 1;
            fresh
        })
    }

    /// Nobody uses it any more.
    pub fn give_back(&mut self, place: u32, now: Instant) {
        self.resting.push_back((now, place));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn a_place_rests_before_it_is_used_again() {
        let (begin, mut places) = (Instant::now(), Places::new(3));
        assert_eq!(places.take_two(begin), Some([0, 1]));
        assert_eq!(places.take_two(begin), None, "one is not enough");
        places.give_back(1, begin);
        places.give_back(0, begin);
        assert_eq!(places.take_two(begin + REST / 2), None);
        assert_eq!(places.take_two(begin + REST), Some([2, 1]));
        assert_eq!(places.take_two(begin + REST), None);
    }

    proptest::proptest! {
        /// No place is held twice, nor taken before it has rested, and none is lost.
        #[test]
        fn places_are_held_once(steps in proptest::collection::vec((proptest::bool::ANY, 0u64..8), 1..300)) {
            const CAPACITY: u32 = 16;
            let (mut now, mut places) = (Instant::now(), Places::new(CAPACITY));
            let (mut held, mut given): (Vec<u32>, HashMap<u32, Instant>) = (Vec::new(), HashMap::new());
            for (takes, seconds) in steps {
                now += Duration::from_secs(seconds);
                if takes {
                    for place in places.take_two(now).into_iter().flatten() {
                        proptest::prop_assert!(!held.contains(&place) && place < CAPACITY);
                        if let Some(since) = given.remove(&place) {
                            proptest::prop_assert!(now.saturating_duration_since(since) >= REST);
                        }
                        held.push(place);
                    }
                } else if let Some(place) = held.pop() {
                    places.give_back(place, now);
                    given.insert(place, now);
                }
            }
            now += REST;
            while let Some(two) = places.take_two(now) {
                held.extend(two);
            }
            let free = usize::try_from(CAPACITY).expect("it fits") - held.len();
            proptest::prop_assert!(free < 2, "{} places are lost", free);
        }
    }
}
