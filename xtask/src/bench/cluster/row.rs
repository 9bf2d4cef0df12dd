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
    /// What no value may exceed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub most: Option<f64>,
}

impl Row {
    /// Of at least one value.
    pub fn new(row: &str, unit: &'static str, values: Vec<f64>) -> Result<Self> {
        let count = values.len();
        let value = Spread::of(values).with_context(|| format!("nothing was measured: {row}"))?;
        Ok(Self { what: row.to_owned(), unit, value, count, most: None })
    }

    /// Of one value.
    pub fn one(row: &str, unit: &'static str, value: f64) -> Self {
        let value = Spread { median: value, low: value, high: value };
        Self { what: row.to_owned(), unit, value, count: 1, most: None }
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

    /// The row as a line.
    pub fn line(&self) -> String {
        let Self { what: row, unit, value, count, most } = self;
        let verdict = most.map_or_else(String::new, |most| {
            let said = if value.high <= most { "held" } else { "MISSED" };
            format!("  line {most}: {said}")
        });
        format!(
            "{row:<48} {:>12.2}  {unit:<8} [{:.2}-{:.2}] of {count}{verdict}",
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
        assert!(row.at_most(100.0).line().ends_with("held"));
        assert!(Row::new("r", "ms", vec![]).is_err());
    }
}
