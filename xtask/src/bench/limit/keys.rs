//! What one worker decides in a second where each request is another key's: of as many keys as are remembered, and of ten million of which
//! nearly all are forgotten again. The rule lets every one of these requests through.

use std::time::Instant;

use agent::limit::{Counter, Rate, Store, Verdict, Window};
use anyhow::{Context, Result};

use super::super::process;
use crate::bench::cluster::row::Row;

/// Keys that come in turn and are all remembered; and requests of one measurement.
const KNOWN: u64 = 1_000_000;
const REQUESTS: u64 = 5_000_000;
/// Keys of which each comes once, and how many are remembered (`maxKeys` where a document does not say it).
const STRANGERS: u64 = 10_000_000;
const ROOM: usize = 65_536;
/// Nothing is idle before it is over.
const SPAN: u64 = 3_600_000_000_000;
const WINDOW: Window = Window { requests: 10, window: SPAN };

/// What a measurement gives.
#[derive(Debug, Default)]
struct Measured {
    per_second: Vec<f64>,
    refused: Vec<f64>,
    evicted: Vec<f64>,
    /// What the whole process has then, as the allocator keeps what it once had.
    kib: Vec<f64>,
}

/// Measures both algorithms by turns.
pub fn run(rounds: u32) -> Result<Vec<Row>> {
    let rate = Rate::new(10, SPAN, 10).context("a rate")?;
    let mut measured: [Measured; 4] = Default::default();
    for _ in 0..rounds {
        let [rate_known, rate_strangers, window_known, window_strangers] = &mut measured;
        // The smaller ones first.
        rate_strangers.take(&rate, (STRANGERS, STRANGERS), ROOM)?;
        window_strangers.take(&WINDOW, (STRANGERS, STRANGERS), ROOM)?;
        rate_known.take(&rate, (KNOWN, REQUESTS), usize::try_from(KNOWN)?)?;
        window_known.take(&WINDOW, (KNOWN, REQUESTS), usize::try_from(KNOWN)?)?;
    }
    let names = ["rate, 1,000,000 keys", "rate, 10^7 keys", "window, 1,000,000 keys", "window, 10^7 keys"];
    let mut rows = Vec::new();
    for (name, measured) in names.into_iter().zip(measured) {
        rows.extend(measured.rows(name)?);
    }
    Ok(rows)
}

impl Measured {
    /// So many requests of so many keys in turn; a second passes in each thousand.
    fn take<C: Counter + Clone>(
        &mut self,
        counter: &C,
        (keys, requests): (u64, u64),
        room: usize,
    ) -> Result<()> {
        let store = Store::new(counter.clone(), room);
        let (begun, mut refused) = (Instant::now(), 0_u32);
        for number in 0..requests {
            let verdict = store.take(key(number % keys), number * 1000, 1);
            refused += u32::from(matches!(verdict, Verdict::Refused { .. }));
        }
        let seconds = begun.elapsed().as_secs_f64();
        self.per_second.push(as_float(requests) / seconds);
        self.refused.push(refused.into());
        self.evicted.push(as_float(store.evicted()));
        self.kib.push(process::rss_kib(std::process::id())?);
        Ok(())
    }

    fn rows(self, name: &str) -> Result<Vec<Row>> {
        let row = |what: &str, unit, values| Row::new(&format!("{name}: {what}"), unit, values);
        Ok(vec![
            row("decisions of a worker", "/s", self.per_second)?,
            row("refused although the rule allows them", "", self.refused)?.at_most(0.0),
            row("keys forgotten that still counted", "", self.evicted)?,
            row("memory of the whole process then", "KiB", self.kib)?,
        ])
    }
}

/// As spread as hashes are.
fn key(number: u64) -> u64 {
    number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn as_float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_requests_of_a_key_are_all_that_the_rule_allows() -> Result<()> {
        let mut measured = Measured::default();
        measured.take(&WINDOW, (100, 1000), 200)?;
        assert!(measured.refused[0] < 0.5 && measured.evicted[0] < 0.5, "{measured:?}");
        measured.take(&WINDOW, (100, 1001), 200)?;
        assert!((measured.refused[1] - 1.0).abs() < 0.5, "{measured:?}");
        Ok(())
    }
}
