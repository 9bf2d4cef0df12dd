//! A strict reader of Prometheus' text format (version 0.0.4), to prove that scrapers can read what the agent writes.
//!
//! Beyond the grammar it holds what Prometheus and promtool hold: one `HELP` and `TYPE` per family and before its
//! samples, families in one piece, no sample twice, counters that end in `_total` and never fall below zero,
//! histograms whose buckets grow up to `+Inf`, which equals the count.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};

/// Labels by name.
pub type Labels = BTreeMap<String, String>;

/// One line.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The series' name, suffix included.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// Its value.
    pub value: f64,
}

/// A whole exposition.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Exposition {
    /// The samples, in order.
    pub samples: Vec<Sample>,
    /// The type of each family.
    pub types: BTreeMap<String, String>,
}

impl Exposition {
    /// Reads a text; anything that is not as it should be is an error that names its line.
    pub fn parse(text: &str) -> Result<Self> {
        ensure!(text.is_empty() || text.ends_with('\n'), "the last line has no end");
        let mut reader = Reader::default();
        for (index, line) in text.lines().enumerate() {
            reader.line(line).with_context(|| format!("line {}: {line}", index + 1))?;
        }
        for family in reader.exposition.types.keys() {
            ensure!(reader.helped.contains(family), "the family {family} has no HELP");
        }
        reader.exposition.check_histograms()?;
        Ok(reader.exposition)
    }

    /// The sum over the samples of a name that have all these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.with(name, labels).map(|sample| sample.value).sum()
    }

    /// The samples of a name that have all these labels.
    pub fn with<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Sample> {
        let fits = |sample: &&Sample| {
            labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|own| own == value))
        };
        self.samples.iter().filter(move |sample| sample.name == name).filter(fits)
    }

    fn check_histograms(&self) -> Result<()> {
        for (family, _) in self.types.iter().filter(|(_, kind)| *kind == "histogram") {
            let mut buckets: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
            for sample in self.with(&format!("{family}_bucket"), &[]) {
                let mut labels = sample.labels.clone();
                let bound = labels.remove("le").with_context(|| format!("a bucket of {family} has no le"))?;
                buckets.entry(labels).or_default().push((number(&bound)?, sample.value));
            }
            for (labels, buckets) in buckets {
                let grows = |pair: &[(f64, f64)]| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1;
                ensure!(buckets.windows(2).all(grows), "buckets of {family} {labels:?} do not grow");
                let last = buckets.last().copied().unwrap_or_default();
                ensure!(last.0.is_infinite(), "{family} {labels:?} has no +Inf");
                let one = |suffix: &str| {
                    let name = format!("{family}_{suffix}");
                    let mut found = self.samples.iter().filter(|s| s.name == name && s.labels == labels);
                    found.next().map(|sample| sample.value)
                };
                ensure!(one("count") == Some(last.1), "the count of {family} {labels:?} is not its +Inf");
                ensure!(one("sum").is_some(), "{family} {labels:?} has no sum");
            }
        }
        Ok(())
    }
}

#[derive(Default)]
struct Reader {
    exposition: Exposition,
    helped: BTreeSet<String>,
    seen: BTreeSet<(String, Vec<(String, String)>)>,
    current: String,
    finished: BTreeSet<String>,
}

impl Reader {
    fn line(&mut self, line: &str) -> Result<()> {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (family, help) = rest.split_once(' ').context("HELP without a text")?;
            ensure!(is_name(family) && !help.is_empty(), "a malformed HELP");
            ensure!(self.helped.insert(family.to_owned()), "a second HELP");
            return self.enter(family);
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (family, kind) = rest.split_once(' ').context("TYPE without a type")?;
            ensure!(["counter", "gauge", "histogram", "summary", "untyped"].contains(&kind), "no type");
            ensure!(is_name(family), "a malformed TYPE");
            ensure!(kind != "counter" || family.ends_with("_total"), "a counter that does not end in _total");
            self.enter(family)?;
            let before = self.exposition.types.insert(family.to_owned(), kind.to_owned());
            ensure!(before.is_none(), "a second TYPE");
            return Ok(());
        }
        ensure!(!line.starts_with('#'), "a comment of no use");
        let sample = sample(line)?;
        let family = self.family_of(&sample.name)?;
        self.enter(&family)?;
        let labels: Vec<_> = sample.labels.clone().into_iter().collect();
        ensure!(self.seen.insert((sample.name.clone(), labels)), "the sample is there twice");
        ensure!(!sample.value.is_nan(), "no number");
        let counts = self.exposition.types[&family] != "gauge";
        ensure!(!counts || sample.value >= 0.0, "a counter below zero");
        self.exposition.samples.push(sample);
        Ok(())
    }

    /// The lines of a family stand together.
    fn enter(&mut self, family: &str) -> Result<()> {
        if self.current != family {
            ensure!(!self.finished.contains(family), "the family {family} is in two pieces");
            self.finished.insert(std::mem::replace(&mut self.current, family.to_owned()));
        }
        Ok(())
    }

    fn family_of(&self, name: &str) -> Result<String> {
        let types = &self.exposition.types;
        if types.get(name).is_some_and(|kind| kind != "histogram") {
            return Ok(name.to_owned());
        }
        for suffix in ["_bucket", "_sum", "_count"] {
            if let Some(family) = name.strip_suffix(suffix)
                && types.get(family).is_some_and(|kind| kind == "histogram")
            {
                return Ok(family.to_owned());
            }
        }
        bail!("no TYPE before it")
    }
}

fn sample(line: &str) -> Result<Sample> {
    let end = line.find(['{', ' ']).context("no value")?;
    let (name, rest) = line.split_at(end);
    ensure!(is_name(name), "`{name}` is no name");
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Labels::new(), rest),
    };
    let value = rest.strip_prefix(' ').context("no space before the value")?;
    Ok(Sample { name: name.to_owned(), labels, value: number(value)? })
}

/// Labels up to the closing brace, and what follows it.
fn labels(mut rest: &str) -> Result<(Labels, &str)> {
    let mut labels = Labels::new();
    loop {
        let (name, after) = rest.split_once("=\"").context("a label without a value")?;
        let well_formed = is_name(name) && !name.contains(':') && !name.starts_with("__");
        ensure!(well_formed, "`{name}` is no label");
        let (value, after) = quoted(after)?;
        ensure!(labels.insert(name.to_owned(), value).is_none(), "the label {name} is there twice");
        match after.as_bytes().first() {
            Some(b',') => rest = &after[1..],
            Some(b'}') => return Ok((labels, &after[1..])),
            _ => bail!("neither a comma nor a brace after a label"),
        }
    }
}

fn quoted(text: &str) -> Result<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => match characters.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, escaped @ ('"' | '\\'))) => value.push(escaped),
                _ => bail!("an escape that there is not"),
            },
            other => value.push(other),
        }
    }
    bail!("a value without its end")
}

fn number(text: &str) -> Result<f64> {
    match text {
        "+Inf" => Ok(f64::INFINITY),
        "-Inf" => Ok(f64::NEG_INFINITY),
        _ => {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
            ensure!(digits, "`{text}` is no number");
            Ok(text.parse()?)
        }
    }
}

fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    let first = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_' || byte == b':';
    bytes.next().is_some_and(first) && bytes.all(|byte| first(byte) || byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# HELP a_total Things.\n# TYPE a_total counter\na_total{b=\"x\\\"\\\\\\n,}\"} 1\na_total 2.5e3\n\
        # HELP h Times.\n# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 3\nh_sum 9\nh_count 3\n";

    #[test]
    fn a_good_text_is_read() {
        let read = Exposition::parse(GOOD).expect("good");
        assert_eq!(read.samples.len(), 6);
        assert!((read.sum("a_total", &[]) - 2501.0).abs() < f64::EPSILON);
        assert!((read.sum("a_total", &[("b", "x\"\\\n,}")]) - 1.0).abs() < f64::EPSILON);
        assert_eq!(Exposition::parse("").expect("nothing is well formed"), Exposition::default());
    }

    #[test]
    fn bad_texts_are_refused() {
        for (good, bad) in [
            ("# HELP a_total Things.\n", ""),
            ("# TYPE a_total counter\n", ""),
            ("counter", "counted"),
            ("a_total", "a"),
            ("a_total 2.5e3", "a_total NaN"),
            ("a_total 2.5e3", "a_total -1"),
            ("a_total 2.5e3", "a_total  1"),
            ("a_total 2.5e3", "a_total 1 2 3"),
            ("a_total 2.5e3", "a_total{} 1"),
            ("a_total 2.5e3", "a_total{b=\"x\\\"\\\\\\n,}\"} 7"),
            ("a_total 2.5e3", "a_total{b=\"x\",b=\"y\"} 7"),
            ("a_total 2.5e3", "a_total{b=\"\\x\"} 7"),
            ("a_total 2.5e3", "a_total{b=\"x} 7"),
            ("a_total 2.5e3", "a_total{b-c=\"x\"} 7"),
            ("a_total 2.5e3", "a-b 7"),
            ("h_count 3\n", "h_count 4\n"),
            ("h_count 3\n", "h_count 3\na_total{b=\"z\"} 1\n"),
            ("h_sum 9\n", ""),
            ("h_bucket{le=\"+Inf\"} 3\n", ""),
            ("h_bucket{le=\"1\"} 1", "h_bucket{le=\"1\"} 5"),
            ("h_count 3\n", "h_count 3"),
            ("h_count 3\n", "h_count 3\n# EOF\n"),
        ] {
            assert!(GOOD.contains(good));
            let text = GOOD.replace(good, bad);
            assert!(Exposition::parse(&text).is_err(), "{good:?} -> {bad:?} was taken");
        }
    }
}
