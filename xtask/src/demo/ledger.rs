//! What was expected, what was seen, and whether the two agree.

use std::time::Duration;

use lab::load::Report;

/// The checks of one demonstration, printed as they are made and once more as a table.
#[derive(Debug, Default)]
pub struct Ledger {
    rows: Vec<Row>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    what: String,
    expected: String,
    seen: String,
    holds: bool,
}

impl Ledger {
    /// Enters a check.
    pub fn check(&mut self, what: &str, expected: impl Into<String>, seen: impl Into<String>, holds: bool) {
        let row = Row { what: what.to_owned(), expected: expected.into(), seen: seen.into(), holds };
        println!("   {} {what}: {}", mark(holds), row.seen);
        self.rows.push(row);
    }

    /// Enters a check of two values that must be equal.
    pub fn equal<T: PartialEq + std::fmt::Display>(&mut self, what: &str, expected: &T, seen: &T) {
        self.check(what, expected.to_string(), seen.to_string(), expected == seen);
    }

    /// Enters that no request of a load failed.
    pub fn none_failed(&mut self, report: &Report) {
        let failures = report.failures().count();
        let seen =
            if failures == 0 { "0".to_owned() } else { format!("{failures}: {:?}", report.failure_kinds()) };
        let what = format!("failed requests, of {}", report.samples.len());
        self.check(&what, "0", seen, failures == 0);
        if let Some((median, late)) = report.percentile(50).zip(report.percentile(99)) {
            println!("   latency under load: p50 {}, p99 {}", millis(median), millis(late));
        }
    }

    /// How many checks did not hold.
    pub fn failed(&self) -> usize {
        self.rows.iter().filter(|row| !row.holds).count()
    }

    /// How many checks held.
    pub fn passed(&self) -> usize {
        self.rows.len() - self.failed()
    }

    /// All checks as a table.
    pub fn table(&self) -> String {
        let heads = ["what", "expected", "seen"];
        let cells = |row: &Row| [row.what.clone(), row.expected.clone(), row.seen.clone()];
        let widths: Vec<usize> = (0..heads.len())
            .map(|column| {
                let longest = self.rows.iter().map(|row| cells(row)[column].chars().count()).max();
                longest.unwrap_or(0).max(heads[column].len())
            })
            .collect();
        let line = |cells: [String; 3], last: &str| {
            let padded: Vec<String> =
                cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            format!("{} | {last}\n", padded.join(" | "))
        };
        let mut text = line(heads.map(str::to_owned), "ok");
        text.push_str(&line([0, 1, 2].map(|column| "-".repeat(widths[column])), "--"));
        for row in &self.rows {
            text.push_str(&line(cells(row), mark(row.holds)));
        }
        text
    }
}

/// Says what comes next.
pub fn headline(text: &str) {
    println!("\n== {text}");
}

/// A duration as people read it.
pub fn millis(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1e3)
}

fn mark(holds: bool) -> &'static str {
    if holds { "ok" } else { "FAILED" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_aligned_and_counts() {
        let mut ledger = Ledger::default();
        ledger.equal("a", &1, &1);
        ledger.check("longer", "x", "yy", false);
        assert_eq!((ledger.passed(), ledger.failed()), (1, 1));
        let table = ledger.table();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[0], "what   | expected | seen | ok");
        assert_eq!(lines[3], "longer | x        | yy   | FAILED");
    }
}
