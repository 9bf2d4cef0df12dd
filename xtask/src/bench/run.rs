//! One run: who can take part, then rounds in which all take turns.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use super::contender::{Binaries, Contender, Running, start_backend};
use super::figure::Figure;
use super::report::Report;
use super::row::{Metric, ROWS, Row, Work};
use super::track::Track;
use super::{Options, facts};

/// Measures and returns what was seen.
pub fn http(options: &Options) -> Result<Report> {
    let rows = chosen_rows(&options.rows)?;
    let binaries = Binaries { sluice: options.binary.clone(), before: options.before.clone() };
    let (contenders, absent) = present(&options.only, &binaries);
    ensure!(!contenders.is_empty(), "nobody to compare: {}", absent.join("; "));
    for remark in &absent {
        println!("{remark}");
    }
    let facts = facts::gather(&contenders, &binaries);
    let track = Track::lay()?;
    let backend = start_backend(&track)?;
    let mut bench = Bench { track: &track, options, binaries, figures: Vec::new(), remarks: absent };
    let (memory, others): (Vec<Row>, Vec<Row>) = rows.iter().partition(|row| row.work == Work::Memory);
    for row in memory {
        bench.fresh(&row, &contenders)?;
    }
    if !others.is_empty() {
        bench.together(&others, &contenders)?;
    }
    let (figures, remarks) = (bench.figures, bench.remarks);
    drop(backend);
    Ok(Report { contenders, figures, remarks, facts })
}

struct Bench<'a> {
    track: &'a Track,
    options: &'a Options,
    binaries: Binaries,
    figures: Vec<Figure>,
    remarks: Vec<String>,
}

impl Bench<'_> {
    /// Measures each contender right after its start, alone.
    fn fresh(&mut self, row: &Row, contenders: &[Contender]) -> Result<()> {
        for round in 0..self.options.rounds {
            for contender in turn(contenders, round) {
                if row.is_served(self.track, contender) {
                    let running = contender.start(self.track, &self.binaries)?;
                    self.take(row, &running, round);
                }
            }
        }
        Ok(())
    }

    /// Measures contenders that all run, one at a time. The others have nothing to do meanwhile.
    fn together(&mut self, rows: &[Row], contenders: &[Contender]) -> Result<()> {
        let mut running = Vec::new();
        for contender in contenders {
            running.push(contender.start(self.track, &self.binaries)?);
        }
        for row in rows {
            let (served, not): (Vec<_>, Vec<_>) =
                running.iter().partition(|running| row.is_served(self.track, running.contender));
            for running in not {
                self.remarks.push(format!("n/a: {} does not serve {}", running.contender.name(), row.name));
            }
            for round in 0..self.options.rounds {
                for running in turn(&served, round) {
                    self.take(row, running, round);
                }
            }
        }
        Ok(())
    }

    /// Takes one value of each metric. A contender that fails has none in this round, and the report says why.
    fn take(&mut self, row: &Row, running: &Running, round: u32) {
        let name = running.contender.name();
        match row.measure(self.track, running, self.options.seconds) {
            Ok(values) => {
                let said: Vec<String> =
                    values.iter().map(|(metric, value)| format!("{value:.2} {}", metric.label())).collect();
                println!("round {} {:<8} {:<8} {}", round + 1, row.name, name, said.join(", "));
                for (metric, value) in values {
                    let rounds = vec![None; self.options.rounds as usize];
                    let figure = self.figure(row.name, metric);
                    figure.values.entry(running.contender).or_insert(rounds)[round as usize] = Some(value);
                }
            }
            Err(error) => {
                let remark = format!("failed: {name} at {} in round {}: {error:#}", row.name, round + 1);
                println!("{remark}");
                self.remarks.push(remark);
            }
        }
    }

    fn figure(&mut self, row: &'static str, metric: Metric) -> &mut Figure {
        let known = self.figures.iter().position(|figure| figure.row == row && figure.metric == metric);
        let at = known.unwrap_or_else(|| {
            self.figures.push(Figure { row, metric, values: BTreeMap::new() });
            self.figures.len() - 1
        });
        &mut self.figures[at]
    }
}

/// Everyone once, each round beginning with another.
fn turn<T: Copy>(all: &[T], round: u32) -> Vec<T> {
    let mut turn = all.to_vec();
    if !turn.is_empty() {
        turn.rotate_left(round as usize % all.len());
    }
    turn
}

fn chosen_rows(names: &[String]) -> Result<Vec<Row>> {
    let known: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
    for name in names {
        ensure!(known.contains(&name.as_str()), "no row '{name}'; there are {}", known.join(", "));
    }
    Ok(ROWS.into_iter().filter(|row| names.is_empty() || names.iter().any(|name| name == row.name)).collect())
}

/// Who was asked for and is installed, and what to say of the others.
fn present(only: &[Contender], binaries: &Binaries) -> (Vec<Contender>, Vec<String>) {
    let asked = Contender::ALL.into_iter().filter(|contender| only.is_empty() || only.contains(contender));
    let (mut present, mut absent) = (Vec::new(), Vec::new());
    // `before` takes part when there is a binary for it.
    for contender in asked.chain(binaries.before.is_some().then_some(Contender::Before)) {
        match contender.program(binaries) {
            Ok(_) => present.push(contender),
            Err(hint) => absent.push(format!("skipped: {}: {hint}", contender.name())),
        }
    }
    (present, absent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_begins_once() {
        assert_eq!(turn(&[1, 2, 3], 0), [1, 2, 3]);
        assert_eq!(turn(&[1, 2, 3], 4), [2, 3, 1]);
        assert_eq!(turn::<u8>(&[], 1), [0; 0]);
    }

    #[test]
    fn rows_by_name() {
        let names = |wanted: &[&str]| {
            let wanted: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
            chosen_rows(&wanted).map(|rows| rows.iter().map(|row| row.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&["latency", "100@1"]).expect("both are known"), ["100@1", "latency"]);
        assert_eq!(names(&[]).expect("all").len(), ROWS.len());
        assert!(names(&["100@2"]).expect_err("unknown").to_string().contains("no row '100@2'"));
    }

    #[test]
    fn who_is_not_installed_is_named() {
        let binaries = Binaries { sluice: "/nonexistent/sluice".into(), before: None };
        let (present, absent) = present(&[Contender::Sluice], &binaries);
        assert!(present.is_empty());
        assert!(absent[0].starts_with("skipped: sluice: /nonexistent/sluice is not there"), "{absent:?}");
    }
}
