//! A figure with its name, its unit and what is asked of it.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::bench::figure::Spread;

/// A figure.
#[derive(Debug, serde::Serialize)]
pub struct Row {
    /// What was measured.
    #[serde(rename = "row")]
    pub what: String,
    /// Its unit.
    pub unit: &'static str,
    /// The values.
    pub value: Spread,
    /// How many values there are.
    pub count: usize,
    /// What no value may exceed, or their median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub most: Option<f64>,
    /// What the median may not fall below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub least: Option<f64>,
    /// What is compared with that.
    #[serde(skip)]
    judged: f64,
}

impl Row {
    /// Of at least one value.
    pub fn new(row: &str, unit: &'static str, values: Vec<f64>) -> Result<Self> {
        let count = values.len();
        let value = Spread::of(values).with_context(|| format!("nothing was measured: {row}"))?;
        Ok(Self { what: row.to_owned(), unit, value, count, most: None, least: None, judged: value.high })
    }

    /// Of one value.
    pub fn one(row: &str, unit: &'static str, value: f64) -> Self {
        Self::spread(row, unit, Spread { median: value, low: value, high: value }, 1)
    }

    /// Of so many values, of which only this is told.
    pub fn spread(row: &str, unit: &'static str, value: Spread, count: usize) -> Self {
        Self { what: row.to_owned(), unit, value, count, most: None, least: None, judged: value.high }
    }

    /// Times, in milliseconds.
    pub fn times(row: &str, times: &[Duration]) -> Result<Self> {
        Self::new(row, "ms", times.iter().map(|time| milliseconds(*time)).collect())
    }

    /// The time below which `percent` of them stayed.
    pub fn percentile(row: &str, times: &[Duration], percent: usize) -> Result<Self> {
        let mut times = times.to_vec();
        times.sort_unstable();
        let last = times.len().checked_sub(1).with_context(|| format!("nothing was measured: {row}"))?;
        let one = Self::one(row, "ms", milliseconds(times[(last * percent).div_ceil(100)]));
        Ok(Self { count: times.len(), ..one })
    }

    /// With what no value may exceed.
    #[must_use]
    pub fn at_most(self, most: f64) -> Self {
        Self { most: Some(most), ..self }
    }

    /// With what the median may not exceed.
    #[must_use]
    pub fn at_most_typically(self, most: f64) -> Self {
        Self { most: Some(most), judged: self.value.median, ..self }
    }

    /// With what the median may not fall below.
    #[must_use]
    pub fn at_least_typically(self, least: f64) -> Self {
        Self { least: Some(least), judged: self.value.median, ..self }
    }

    /// Whether it is within its line, if it has one.
    pub fn is_held(&self) -> bool {
        self.most.is_none_or(|most| self.judged <= most)
            && self.least.is_none_or(|least| self.judged >= least)
    }

    /// The row as a line.
    pub fn line(&self) -> String {
        let Self { what: row, unit, value, count, .. } = self;
        let verdict = self.most.or(self.least).map_or_else(String::new, |line| {
            let said = if self.is_held() { "held" } else { "MISSED" };
            format!("  line {line}: {said}")
        });
        // Ratios are about hundredths and less.
        let digits = if value.median < 10.0 { 3 } else { 2 };
        format!(
            "{row:<48} {:>12.digits$}  {unit:<8} [{:.digits$}-{:.digits$}] of {count}{verdict}",
            value.median, value.low, value.high
        )
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_and_lines() {
        let times: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        let p99 = |times: &[Duration]| Row::percentile("r", times, 99).map(|row| row.value.median).ok();
        assert_eq!(p99(&times), Some(100.0));
        assert_eq!(p99(&times[..1]), Some(1.0));
        assert_eq!(p99(&[]), None);
        let row = Row::times("r", &times).expect("there are some").at_most(99.0);
        assert!(row.line().ends_with("[1.00-100.00] of 100  line 99: MISSED"), "{}", row.line());
        let row = row.at_most(100.0);
        assert!(row.line().ends_with("held"));
        assert!(row.at_most_typically(50.0).line().ends_with("line 50: MISSED"));
        let ratio = |least| Row::one("r", "", 0.9).at_least_typically(least);
        assert!(ratio(0.9).line().ends_with("line 0.9: held") && ratio(0.9).is_held());
        assert!(ratio(0.91).line().ends_with("line 0.91: MISSED") && !ratio(0.91).is_held());
        assert!(Row::new("r", "ms", vec![]).is_err());
    }
}
