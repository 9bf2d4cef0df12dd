//! What a run says: its table, whether it is valid, and its record as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::contender::Contender;
use super::figure::Figure;
use super::row::Metric;

/// Below these parts of `direct`, nginx shows that the machine was busy with something else.
const NGINX_MIN: [(&str, f64); 2] = [("100@1", 0.20), ("100@32", 0.45)];

/// A finished run.
#[derive(Debug)]
pub struct Report {
    /// Who took part, in the order of the columns.
    pub contenders: Vec<Contender>,
    /// All figures, in the order of the rows.
    pub figures: Vec<Figure>,
    /// Who was left out or failed where, and why.
    pub remarks: Vec<String>,
    /// The machine and the programs.
    pub facts: Vec<(&'static str, String)>,
}

impl Report {
    /// What makes the run invalid; `None` where it cannot be told, because nginx or direct did not run.
    pub fn faults(&self) -> Option<Vec<String>> {
        let mut told = false;
        let mut faults = Vec::new();
        for (row, least) in NGINX_MIN {
            let figure =
                self.figures.iter().find(|figure| figure.row == row && figure.metric == Metric::Rate);
            let Some(ratio) = figure.and_then(|figure| figure.ratio(Contender::Nginx, Contender::Direct))
            else {
                continue;
            };
            told = true;
            if ratio.median < least {
                faults.push(format!(
                    "{row}: nginx reached {:.2} of direct, at least {least:.2} is needed",
                    ratio.median
                ));
            }
        }
        told.then_some(faults)
    }

    /// The verdict in words.
    pub fn verdict(&self) -> String {
        match self.faults() {
            None => "not checked (needs direct and nginx at 100@1 or 100@32)".to_owned(),
            Some(faults) if faults.is_empty() => "valid".to_owned(),
            Some(faults) => format!("INVALID: {}", faults.join("; ")),
        }
    }

    /// The table, in Markdown.
    pub fn table(&self) -> String {
        let mut lines = vec![["row", "metric"].map(str::to_owned).to_vec()];
        lines[0].extend(self.contenders.iter().map(|contender| contender.name().to_owned()));
        for figure in &self.figures {
            let mut line = vec![figure.row.to_owned(), figure.metric.label().to_owned()];
            line.extend(self.contenders.iter().map(|contender| cell(figure, *contender)));
            lines.push(line);
        }
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
        lines.insert(1, widths.iter().map(|width| "-".repeat(*width)).collect());
        let mut text = String::new();
        for line in lines {
            let padded: Vec<String> =
                line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            // Writing to a String cannot fail.
            let _ = writeln!(text, "| {} |", padded.join(" | "));
        }
        text
    }

    /// How the agent stands to its earlier build, a line for each figure; empty without one.
    pub fn change(&self) -> String {
        let mut text = String::new();
        for figure in &self.figures {
            if let Some(ratio) = figure.ratio(Contender::Sluice, Contender::Before) {
                let (row, label) = (figure.row, figure.metric.label());
                // Writing to a String cannot fail.
                let _ = writeln!(
                    text,
                    "{row} {label}: {:.3} of before [{:.3}-{:.3}]",
                    ratio.median, ratio.low, ratio.high
                );
            }
        }
        text
    }

    /// The record: every value, so that it can be judged again.
    pub fn json(&self) -> Value {
        let figures: Vec<Value> = self.figures.iter().map(|figure| self.figure_json(figure)).collect();
        let facts: serde_json::Map<String, Value> =
            self.facts.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        json!({ "verdict": self.verdict(), "facts": facts, "remarks": self.remarks, "figures": figures })
    }

    fn figure_json(&self, figure: &Figure) -> Value {
        let contenders: serde_json::Map<String, Value> = self
            .contenders
            .iter()
            .filter_map(|contender| {
                let values = json!({
                    "values": figure.values.get(contender)?,
                    "median": figure.of(*contender)?.median,
                    "to_nginx": figure.ratio(*contender, Contender::Nginx),
                    "to_direct": figure.ratio(*contender, Contender::Direct),
                });
                Some((contender.name().to_owned(), values))
            })
            .collect();
        json!({ "row": figure.row, "metric": figure.metric.label(), "contenders": contenders })
    }
}

/// The median; nginx's ratio to direct, everyone else's to nginx with its spread.
fn cell(figure: &Figure, contender: Contender) -> String {
    let Some(spread) = figure.of(contender) else { return "n/a".to_owned() };
    let value = number(spread.median);
    match contender {
        Contender::Direct => value,
        Contender::Nginx => match figure.ratio(contender, Contender::Direct) {
            Some(ratio) => format!("{value} {:.2}d", ratio.median),
            None => value,
        },
        _ => match figure.ratio(contender, Contender::Nginx) {
            Some(ratio) if ratio.is_equal() => format!("{value} =n [{:.2}-{:.2}]", ratio.low, ratio.high),
            Some(ratio) => format!("{value} {:.2}n [{:.2}-{:.2}]", ratio.median, ratio.low, ratio.high),
            None => value,
        },
    }
}

/// Thousands apart, and no more digits than mean something.
fn number(value: f64) -> String {
    if value < 100.0 {
        return format!("{value:.2}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn report(nginx: f64) -> Report {
        let values = BTreeMap::from([
            (Contender::Direct, vec![Some(100_000.0)]),
            (Contender::Nginx, vec![Some(nginx)]),
            (Contender::Sluice, vec![Some(nginx * 1.5)]),
        ]);
        let figures = vec![Figure { row: "100@32", metric: Metric::Rate, values }];
        let contenders = vec![Contender::Direct, Contender::Nginx, Contender::Envoy, Contender::Sluice];
        Report { contenders, figures, remarks: Vec::new(), facts: vec![("kernel", "6".to_owned())] }
    }

    #[test]
    fn a_run_on_a_busy_machine_is_invalid() {
        assert_eq!(report(50_000.0).verdict(), "valid");
        assert!(report(44_000.0).verdict().starts_with("INVALID: 100@32: nginx reached 0.44"));
        let without = Report { figures: Vec::new(), ..report(1.0) };
        assert!(without.verdict().starts_with("not checked"));
    }

    #[test]
    fn the_table_has_every_contender() {
        let table = report(50_000.0).table();
        assert!(table.contains("| 100,000 | 50,000 0.50d | n/a   | 75,000 1.50n [1.50-1.50] |"), "{table}");
        let record = report(50_000.0).json();
        assert_eq!(record["figures"][0]["contenders"]["sluice"]["to_nginx"]["median"], 1.5);
        assert_eq!(record["facts"]["kernel"], "6");
    }

    #[test]
    fn numbers_are_readable() {
        for (value, expected) in
            [(1.514, "1.51"), (123.4, "123"), (1000.0, "1,000"), (1_234_567.0, "1,234,567")]
        {
            assert_eq!(number(value), expected);
        }
    }
}
