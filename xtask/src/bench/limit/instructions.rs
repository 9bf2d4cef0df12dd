//! What noise cannot reach: the instructions of user space for a request, as callgrind counts them. What the kernel does is not in them.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use lab::exec::{command, stdout};

use super::super::contender::{Binaries, Contender};
use super::super::load::{self, Loop};
use super::super::track::Track;
use super::variant::{Limited, VARIANTS};
use crate::bench::cluster::row::Row;

/// Requests of one count, and how many counts there are.
const REQUESTS: u32 = 1_500;
const COUNTS: u32 = 3;
/// With several, how many requests one look at the sockets finds depends on the machine.
const CONNECTIONS: u32 = 1;

/// Who is counted.
const COUNTED: [Contender; 2] = [Contender::Haproxy, Contender::Sluice];

/// Counts each with the same load, one at a time.
pub fn run(track: &Track, binaries: &Binaries) -> Result<Vec<Row>> {
    if !Path::new("/usr/bin/callgrind_control").exists() {
        println!("skipped: there is no valgrind: run 'scripts/setup --bench'");
        return Ok(Vec::new());
    }
    let (mut rows, mut off) = (Vec::new(), None);
    for variant in VARIANTS.iter().filter(|one| COUNTED.contains(&one.contender)) {
        // Who is not there was said to be skipped.
        let Ok(program) = variant.contender.program(binaries) else { continue };
        let label = variant.label();
        let row = Row::new(&format!("{label}: instructions"), "", count(variant, track, &program)?)?;
        let own = row.value.median;
        rows.push(row);
        if variant.is_off() {
            off = Some(own);
        } else if let Some(off) = off {
            rows.push(Row::one(&format!("{label}: instructions by off"), "", own / off));
        }
    }
    Ok(rows)
}

/// Instructions for one request, several times.
fn count(variant: &Limited, track: &Track, program: &Path) -> Result<Vec<f64>> {
    let file = track.directory().join("callgrind").display().to_string();
    let outer = ["valgrind", "-q", "--tool=callgrind", &format!("--callgrind-out-file={file}")];
    let outer = outer.map(str::to_owned);
    let server = variant.start_under(&outer, track, program)?;
    let (address, pid) = (variant.address(), server.pid().to_string());
    let load = Loop { address, path: "/100", connections: CONNECTIONS, closes: false, seconds: 0 };
    let control = |what: &str| stdout(&mut command("callgrind_control", [what, &pid]));
    load::burst(track, &load, REQUESTS).context("warming up")?;
    control("--zero")?;
    let mut values = Vec::new();
    for nth in 1..=COUNTS {
        load::burst(track, &load, REQUESTS)?;
        control("--dump")?;
        let dump = format!("{file}.{nth}");
        let text = fs::read_to_string(&dump).with_context(|| format!("reading {dump}"))?;
        values.push(total(&text).context("callgrind said no sum")? / f64::from(REQUESTS));
    }
    Ok(values)
}

/// The sum of a dump.
fn total(dump: &str) -> Option<f64> {
    let sum = |name| dump.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
    sum("summary:").or_else(|| sum("totals:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_has_its_sum() {
        for (text, expected) in [
            ("events: Ir\nsummary: 35800\n\nfn=(1)\n", Some(35_800.0)),
            ("events: Ir\nfn=(1)\n16 400\n\ntotals: 400\n", Some(400.0)),
            ("events: Ir\n", None),
        ] {
            assert_eq!(total(text), expected, "{text}");
        }
    }
}
