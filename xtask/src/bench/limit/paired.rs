//! Ratios of values that were taken one right after the other, and how well their median is known.

use crate::bench::figure::Spread;

/// The median of ratios, and the span in which the median of all that could be measured lies with 95 %. It comes from the order
/// of the values (the binomial distribution of those below the median), so that neither outliers nor their distribution matter.
pub fn middle(mut values: Vec<f64>) -> Option<Spread> {
    values.retain(|value| value.is_finite());
    values.sort_by(f64::total_cmp);
    let count = values.len();
    let (low, high) = ranks(count);
    let (low, high) = (*values.get(low)?, *values.get(high)?);
    Some(Spread { low, high, ..Spread::of(values)? })
}

/// Where both ends of that span are among so many sorted values.
fn ranks(count: usize) -> (usize, usize) {
    let n = u32::try_from(count).map_or(f64::MAX, f64::from);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank below the count")]
    let low = ((n - 1.96 * n.sqrt()) / 2.0).floor().max(1.0) as usize - 1;
    (low, count.saturating_sub(1 + low))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_lies_between_the_ranks() {
        for (count, expected) in [(0, (0, 0)), (1, (0, 0)), (5, (0, 4)), (30, (8, 21)), (100, (39, 60))] {
            assert_eq!(ranks(count), expected, "{count}");
        }
        let ramp: Vec<f64> = (1..=30).map(f64::from).chain([f64::NAN]).collect();
        let spread = middle(ramp).expect("thirty");
        assert_eq!((spread.low, spread.median, spread.high), (9.0, 15.5, 22.0));
        assert_eq!(middle(vec![]), None);
    }
}
