//! Weighted draws that are spread evenly over time instead of at random.

use std::sync::atomic::{AtomicU64, Ordering};

/// Draws from weights evenly spread over time: any `sum` draws in a row hold exactly `weight` of each.
///
/// The n-th draw looks at the position `n * stride mod sum`. A stride coprime to the sum visits every position once in
/// `sum` draws, which makes the shares exact; a stride near the sum's golden section keeps every shorter run close to
/// them as well (the three-gap theorem), so that a small share is never starved and never comes in bursts.
#[derive(Debug)]
pub struct Weights {
    /// Running sums; the last one is the whole. Empty or zero whole: nothing can be drawn.
    pub(crate) sums: Vec<u32>,
    /// Coprime to the whole and near its golden section.
    pub(crate) stride: u32,
    /// Counts the draws; shared by all workers. 64 bits never wrap, which would break the exactness once.
    pub(crate) drawn: AtomicU64,
}

impl Weights {
    /// Weights in the order of the destinations. A sum above `u32::MAX` is scaled down; no weight above zero becomes
    /// zero by that.
    pub fn new(weights: &[u32]) -> Self {
        let sums = running_sums(weights);
        let stride = golden_stride(sums.last().copied().unwrap_or(0));
        Self { sums, stride, drawn: AtomicU64::new(0) }
    }

    /// Goes on where `previous` is, if it has the same weights: a table that changes often must not start every
    /// sequence anew, or the first destination would get more than its share.
    pub(crate) fn resume(&mut self, previous: &Self) {
        if self.sums == previous.sums {
            *self.drawn.get_mut() = previous.drawn.load(Ordering::Relaxed);
        }
    }

    /// The index of the next destination; `None` where nothing has weight.
    pub fn draw(&self) -> Option<usize> {
        let sum = u64::from(*self.sums.last().filter(|sum| **sum > 0)?);
        let turn = self.drawn.fetch_add(1, Ordering::Relaxed) % sum;
        let position = turn * u64::from(self.stride) % sum;
        Some(self.sums.partition_point(|upto| u64::from(*upto) <= position))
    }
}

fn running_sums(weights: &[u32]) -> Vec<u32> {
    let whole: u64 = weights.iter().copied().map(u64::from).sum();
    // Rounding up can add one for each weight, hence the room that is left for them.
    let room = u64::from(u32::MAX).saturating_sub(weights.len() as u64).max(1);
    let divisor = if whole > u64::from(u32::MAX) { whole.div_ceil(room) } else { 1 };
    weights
        .iter()
        .scan(0_u64, |sum, weight| {
            *sum += u64::from(*weight).div_ceil(divisor);
            Some(u32::try_from(*sum).unwrap_or(u32::MAX))
        })
        .collect()
}

/// The number nearest to 0.618 of `sum` that shares no factor with it.
fn golden_stride(sum: u32) -> u32 {
    // 2^32 divided by the golden ratio.
    const GOLDEN: u64 = 2_654_435_769;
    if sum < 3 {
        return 1;
    }
    let target = u32::try_from((u64::from(sum) * GOLDEN) >> 32).unwrap_or(1).max(1);
    (0..sum)
        .flat_map(|distance| [target.checked_add(distance), target.checked_sub(distance)])
        .flatten()
        .find(|stride| (1..sum).contains(stride) && gcd(*stride, sum) == 1)
        .unwrap_or(1)
}

fn gcd(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn draws(weights: &Weights, count: usize) -> Vec<usize> {
        (0..count).map(|_| weights.draw().expect("has weight")).collect()
    }

    fn counts(weights: &[u32], draws: &[usize]) -> Vec<u32> {
        (0..weights.len())
            .map(|index| u32::try_from(draws.iter().filter(|drawn| **drawn == index).count()).expect("small"))
            .collect()
    }

    #[test]
    fn nothing_to_draw() {
        for weights in [&[][..], &[0], &[0, 0, 0]] {
            assert_eq!(Weights::new(weights).draw(), None, "{weights:?}");
        }
    }

    #[test]
    fn zero_weights_are_never_drawn() {
        let weights = Weights::new(&[0, 3, 0, 1, 0]);
        assert!(draws(&weights, 100).iter().all(|index| [1, 3].contains(index)));
    }

    #[test]
    fn equal_pair_alternates() {
        assert_eq!(draws(&Weights::new(&[1, 1]), 6), [0, 1, 0, 1, 0, 1]);
    }

    #[test]
    fn every_window_of_a_canary_is_close_to_its_share() {
        let weights = Weights::new(&[90, 10]);
        let drawn = draws(&weights, 5000);
        for window in drawn.windows(100) {
            assert_eq!(counts(&[90, 10], window), [90, 10]);
        }
        for window in drawn.windows(30) {
            let canary = counts(&[90, 10], window)[1];
            assert!((1..=5).contains(&canary), "{canary} of 30");
        }
    }

    #[test]
    fn large_sums_keep_every_destination() {
        let weights = Weights::new(&[u32::MAX, u32::MAX, u32::MAX, 1]);
        assert!(weights.sums.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", weights.sums);
        let drawn = draws(&weights, 3000);
        for (index, count) in counts(&[1, 1, 1], &drawn).into_iter().enumerate() {
            assert!((990..=1010).contains(&count), "{index}: {count}");
        }
    }

    #[test]
    fn the_counter_far_out_stays_exact() {
        let weights = Weights::new(&[6, 1]);
        weights.drawn.store(u64::from(u32::MAX) - 3, Ordering::Relaxed);
        assert_eq!(counts(&[6, 1], &draws(&weights, 7)), [6, 1]);
    }

    #[test]
    fn resumes_only_the_same_weights() {
        let first = Weights::new(&[90, 10]);
        draws(&first, 7);
        for (weights, expected) in [([90, 10], 7), ([80, 20], 0)] {
            let mut next = Weights::new(&weights);
            next.resume(&first);
            assert_eq!(next.drawn.into_inner(), expected, "{weights:?}");
        }
    }

    proptest! {
        #[test]
        fn any_window_of_the_sum_is_exact(weights in prop::collection::vec(0_u32..60, 1..6), skip in 0_usize..500) {
            let sum: u32 = weights.iter().sum();
            prop_assume!(sum > 0);
            let drawer = Weights::new(&weights);
            draws(&drawer, skip);
            let window = draws(&drawer, sum as usize);
            prop_assert_eq!(counts(&weights, &window), weights);
        }

        #[test]
        fn strides_are_coprime(sum in 1_u32..) {
            prop_assert_eq!(gcd(golden_stride(sum), sum), 1);
        }

        #[test]
        fn any_percentage_holds_in_any_hundred(share in 0_u32..=100, skip in 0_usize..1000) {
            let drawer = Weights::new(&[100 - share, share]);
            draws(&drawer, skip);
            prop_assert_eq!(counts(&[0, 0], &draws(&drawer, 100))[1], share);
        }
    }
}
