//! Every seed and every found case of every fuzz target.

use std::fs;
use std::path::{Path, PathBuf};

use sluice_fuzz_drivers::TARGETS;

fn cases(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a file").path()).collect();
    paths.sort();
    paths
}

#[test]
fn seeds_and_found_cases_break_no_rule() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    for (target, check) in TARGETS {
        let seeds = cases(&fuzz.join("seeds").join(target));
        assert!(seeds.len() >= 5, "{target} has seeds");
        for path in seeds.into_iter().chain(cases(&fuzz.join("found").join(target))) {
            // What fails prints its name last.
            println!("{}", path.display());
            check(&fs::read(&path).expect("a readable case"));
        }
    }
}
