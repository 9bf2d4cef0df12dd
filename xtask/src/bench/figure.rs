//! Measured values, and what is made of them: medians, ratios within a round, and their spread.

use std::collections::BTreeMap;

use super::contender::Contender;
use super::row::Metric;

/// Ratios that differ by no more are equal.
pub const EQUAL_WITHIN: f64 = 0.02;

/// One metric of one row: a value for each contender and round.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// The row.
    pub row: &'static str,
    /// What is measured.
    pub metric: Metric,
    /// By round; `None` where the measurement failed or the contender cannot serve the row.
    pub values: BTreeMap<Contender, Vec<Option<f64>>>,
}

/// The middle of several values, and how far they lie apart.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// The lowest.
    pub low: f64,
    /// The highest.
    pub high: f64,
}

impl Figure {
    /// The values of a contender.
    pub fn of(&self, contender: Contender) -> Option<Spread> {
        Spread::of(self.values.get(&contender)?.iter().flatten().copied().collect())
    }

    /// A contender's values by those of another in the same round: what disturbs the machine disturbs both.
    pub fn ratio(&self, contender: Contender, to: Contender) -> Option<Spread> {
        let (own, other) = (self.values.get(&contender)?, self.values.get(&to)?);
        let pairs = own.iter().zip(other).filter_map(|(own, other)| Some((*own)? / (*other)?));
        Spread::of(pairs.filter(|ratio| ratio.is_finite()).collect())
    }
}

impl Spread {
    /// Of at least one value.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (low, high) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Self { median, low, high })
    }

    /// Whether this ratio counts as 1.
    pub fn is_equal(&self) -> bool {
        (self.median - 1.0).abs() <= EQUAL_WITHIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_counts() {
        let check = |values: &[f64], expected: Option<(f64, f64, f64)>| {
            let expected = expected.map(|(median, low, high)| Spread { median, low, high });
            assert_eq!(Spread::of(values.to_vec()), expected, "{values:?}");
        };
        check(&[], None);
        check(&[3.0], Some((3.0, 3.0, 3.0)));
        check(&[9.0, 1.0, 2.0], Some((2.0, 1.0, 9.0)));
        check(&[4.0, 1.0, 2.0, 9.0], Some((3.0, 1.0, 9.0)));
    }

    #[test]
    fn ratios_pair_the_values_of_a_round() {
        let values = BTreeMap::from([
            (Contender::Nginx, vec![Some(10.0), Some(20.0), None, Some(0.0)]),
            (Contender::Sluice, vec![Some(11.0), Some(20.0), Some(5.0), Some(1.0)]),
        ]);
        let figure = Figure { row: "r", metric: Metric::Rate, values };
        let ratio = figure.ratio(Contender::Sluice, Contender::Nginx).expect("two pairs");
        assert_eq!((ratio.low, ratio.high), (1.0, 1.1));
        assert_eq!(figure.ratio(Contender::Sluice, Contender::Envoy), None);
        assert!(Spread { median: 1.019, low: 1.0, high: 2.0 }.is_equal());
        assert!(!Spread { median: 0.97, low: 0.9, high: 1.0 }.is_equal());
    }
}
