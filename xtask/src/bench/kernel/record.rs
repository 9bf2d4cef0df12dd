//! The record of a run, for later runs to be held against.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::super::facts;
use super::{Figures, Options, Row};

/// Writes `kernel.json` (of a run with `--bulk`: `kernel-bulk.json`) into a directory.
pub fn write(directory: &Path, options: &Options, taken: &[(&Row, Figures)]) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    let path = directory.join(if options.bulk { "kernel-bulk.json" } else { "kernel.json" });
    let text = serde_json::to_string_pretty(&json(options, taken)).context("writing the record")? + "\n";
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    println!("wrote {}", path.display());
    Ok(())
}

fn json(options: &Options, taken: &[(&Row, Figures)]) -> Value {
    let machine: Map<String, Value> =
        facts::machine().into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect();
    let rows: Vec<Value> = taken.iter().map(|(row, figures)| row_json(row, figures)).collect();
    json!({ "facts": machine, "rounds": options.rounds, "seconds": options.seconds, "rows": rows })
}

fn row_json(row: &Row, figures: &Figures) -> Value {
    let (subject, baseline) = row.compared;
    json!({
        "row": row.name,
        "unit": row.unit,
        "goal": row.goal.describe(figures.ratio.median),
        "subject": { "what": subject, "value": figures.subject },
        "baseline": { "what": baseline, "value": figures.baseline },
        "ratio": figures.ratio,
    })
}
