//! A node's share of a limit that the cluster counts: what this node has let through, held to a part of the whole.
//!
//! It is kept all the time, so that a node whose store goes away knows what it has already had. A request counts as many times as
//! there are nodes, against the whole limit: so the number of nodes may change while something is counted. One that costs more than
//! the share is let through where nothing else was.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Bucket, Counter, Log, Rate, Store, Verdict, Window};

/// How many nodes share a limit, as their counters read it.
type Nodes = Arc<AtomicU32>;

/// What a node has let through, by key.
#[derive(Debug)]
pub struct Own {
    keys: Keys,
    nodes: Nodes,
}

#[derive(Debug)]
enum Keys {
    Rate(Store<RateShare>),
    Window(Store<WindowShare>),
}

/// Its share of a rate.
#[derive(Debug)]
struct RateShare(Rate, Nodes);

/// Its share of a window.
#[derive(Debug)]
struct WindowShare(Window, Nodes);

impl Own {
    /// For a rate and so many keys.
    pub fn of_rate(rate: Rate, keys: usize) -> Self {
        let nodes = Nodes::new(AtomicU32::new(1));
        Self { keys: Keys::Rate(Store::new(RateShare(rate, Arc::clone(&nodes)), keys)), nodes }
    }

    /// For a window and so many keys.
    pub fn of_window(window: Window, keys: usize) -> Self {
        let nodes = Nodes::new(AtomicU32::new(1));
        Self { keys: Keys::Window(Store::new(WindowShare(window, Arc::clone(&nodes)), keys)), nodes }
    }

    /// Takes one request of a key's share, among so many nodes.
    pub fn take(&self, key: u64, now: u64, (nodes, cost): (u32, u32)) -> Verdict {
        self.nodes.store(nodes.max(1), Ordering::Relaxed);
        match &self.keys {
            Keys::Rate(store) => store.take(key, now, cost),
            Keys::Window(store) => store.take(key, now, cost),
        }
    }

    /// What [`Self::take`] would say.
    pub fn peek(&self, key: u64, now: u64, (nodes, cost): (u32, u32)) -> Verdict {
        self.nodes.store(nodes.max(1), Ordering::Relaxed);
        match &self.keys {
            Keys::Rate(store) => store.peek(key, now, cost),
            Keys::Window(store) => store.peek(key, now, cost),
        }
    }

    /// Counts a request that was let through, whatever its share is.
    pub fn note(&self, key: u64, now: u64, (nodes, cost): (u32, u32)) {
        self.nodes.store(nodes.max(1), Ordering::Relaxed);
        match &self.keys {
            Keys::Rate(store) => store.with(key, now, |share, bucket| share.note(bucket, now, cost)),
            Keys::Window(store) => store.with(key, now, |share, log| share.0.note(log, now, cost)),
        };
    }

    /// Gives back what was counted at `taken`.
    pub fn give_back(&self, key: u64, taken: u64, cost: u32) {
        match &self.keys {
            Keys::Rate(store) => store.give_back(key, taken, cost),
            Keys::Window(store) => store.give_back(key, taken, cost),
        }
    }

    /// Keys that are known, those that were forgotten although they counted something, and requests that went uncounted.
    pub fn usage(&self) -> (usize, u64, u64) {
        match &self.keys {
            Keys::Rate(store) => (store.len(), store.evicted(), store.uncounted()),
            Keys::Window(store) => (store.len(), store.evicted(), store.uncounted()),
        }
    }
}

impl RateShare {
    fn nodes(&self) -> u64 {
        u64::from(self.1.load(Ordering::Relaxed))
    }

    fn note(&self, bucket: &mut Bucket, now: u64, cost: u32) {
        self.0.pour(bucket, now, cost, self.nodes());
    }
}

impl Counter for RateShare {
    type State = Bucket;

    fn take(&self, bucket: &mut Bucket, now: u64, cost: u32) -> Verdict {
        self.0.take_weighed(bucket, now, cost, self.nodes())
    }

    fn peek(&self, bucket: &mut Bucket, now: u64, cost: u32) -> Verdict {
        self.0.peek_weighed(bucket, now, cost, self.nodes())
    }

    fn give_back(&self, bucket: &mut Bucket, _: u64, cost: u32) {
        self.0.drain(bucket, cost, self.nodes());
    }

    fn is_idle(&self, bucket: &Bucket, now: u64) -> bool {
        self.0.is_idle(bucket, now)
    }
}

impl WindowShare {
    /// The part of the whole; at least one request of this cost.
    fn part(&self, cost: u32) -> Window {
        let nodes = self.1.load(Ordering::Relaxed).max(1);
        Window { requests: (self.0.requests / nodes).max(cost), window: self.0.window }
    }
}

impl Counter for WindowShare {
    type State = Log;

    fn take(&self, log: &mut Log, now: u64, cost: u32) -> Verdict {
        self.part(cost).take(log, now, cost)
    }

    fn peek(&self, log: &mut Log, now: u64, cost: u32) -> Verdict {
        self.part(cost).peek(log, now, cost)
    }

    fn give_back(&self, log: &mut Log, taken: u64, cost: u32) {
        self.0.give_back(log, taken, cost);
    }

    fn is_idle(&self, log: &Log, now: u64) -> bool {
        self.0.is_idle(log, now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn admitted(verdict: Verdict) -> bool {
        matches!(verdict, Verdict::Admitted { .. })
    }

    fn owns() -> [Own; 2] {
        let rate = Rate::new(90, 900 * SECOND, 90).expect("a rate");
        [Own::of_rate(rate, 8), Own::of_window(Window { requests: 90, window: 900 * SECOND }, 8)]
    }

    #[test]
    fn a_node_gets_its_part_less_what_it_had() {
        for own in owns() {
            for _ in 0..20 {
                own.note(7, 0, (3, 1));
            }
            let more = (0..90).filter(|_| admitted(own.take(7, 0, (3, 1)))).count();
            assert_eq!(more, 10, "thirty are its share of ninety: {own:?}");
            assert!(!admitted(own.peek(7, 0, (3, 1))) && admitted(own.peek(8, 0, (3, 1))), "{own:?}");
        }
    }

    #[test]
    fn the_smallest_share_is_one() {
        let rate = Rate::new(2, SECOND, 2).expect("a rate");
        for own in [Own::of_rate(rate, 8), Own::of_window(Window { requests: 2, window: SECOND }, 8)] {
            let verdicts: Vec<_> = (0..3).map(|_| admitted(own.take(7, 0, (5, 1)))).collect();
            assert_eq!(verdicts, [true, false, false], "{own:?}");
        }
    }

    #[test]
    fn a_node_gets_its_part_in_units() {
        for own in owns() {
            let fives = (0..90).filter(|_| admitted(own.take(7, 0, (3, 5)))).count();
            assert_eq!(fives, 6, "of thirty: {own:?}");
            own.give_back(7, 0, 5);
            let ones = (0..90).filter(|_| admitted(own.take(7, 0, (3, 1)))).count();
            assert_eq!(ones, 5, "{own:?}");
            // More than the share, less than the whole.
            let large = (0..9).filter(|_| admitted(own.take(8, 0, (3, 50)))).count();
            assert_eq!(large, 1, "{own:?}");
        }
    }

    #[test]
    fn what_is_noted_beyond_the_whole_is_bounded() {
        for own in owns() {
            for _ in 0..10_000 {
                own.note(7, 0, (3, 1));
            }
            assert!(!admitted(own.peek(7, 0, (1, 1))));
            assert!(admitted(own.peek(7, 901 * SECOND, (1, 1))), "after one span it begins anew: {own:?}");
        }
    }

    proptest! {
        #[test]
        fn shares_together_are_within_the_whole(
            nodes in 1_u32..6,
            requests in 18_u32..60,
            asks in prop::collection::vec((0_usize..6, 0_u64..SECOND, 1_u32..4), 1..300),
        ) {
            let window = Window { requests, window: 10 * SECOND };
            let rate = Rate::new(requests.into(), 10 * SECOND, requests.into()).expect("a rate");
            let nodes_count = nodes as usize;
            let windows: Vec<_> = (0..nodes).map(|_| Own::of_window(window, 8)).collect();
            let rates: Vec<_> = (0..nodes).map(|_| Own::of_rate(rate, 8)).collect();
            let (mut now, mut times, mut by_rate) = (SECOND, Vec::new(), 0_u64);
            let start = now;
            for (node, gap, cost) in asks {
                now += gap / 8;
                if admitted(windows[node % nodes_count].take(7, now, (nodes, cost))) {
                    times.push((now, cost));
                }
                if admitted(rates[node % nodes_count].take(7, now, (nodes, cost))) {
                    by_rate += u64::from(cost);
                }
                let within = times.iter().filter(|(at, _)| *at + window.window > now);
                prop_assert!(within.map(|(_, cost)| *cost).sum::<u32>() <= requests);
                let most = u64::from(requests) + (now - start) * u64::from(requests) / window.window;
                prop_assert!(by_rate <= most, "{by_rate} of {most}");
            }
        }
    }
}
