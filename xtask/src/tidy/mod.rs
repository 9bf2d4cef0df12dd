//! `cargo xtask tidy`: the rules of this source tree that neither rustfmt nor clippy knows. It is also a test.

mod imports;
mod rules;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

/// Something that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file, relative to the workspace.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong and what to do.
    pub what: String,
    /// Whether it stops the build.
    pub stops: bool,
}

/// Prints what is untidy; fails when something must be changed.
pub fn run(workspace: &Path) -> Result<ExitCode> {
    let findings = examine(workspace)?;
    for finding in &findings {
        let weight = if finding.stops { "error" } else { "warning" };
        println!("{weight}: {}:{}: {}", finding.file, finding.line, finding.what);
    }
    let stops = findings.iter().filter(|finding| finding.stops).count();
    println!("tidy: {stops} errors, {} warnings", findings.len() - stops);
    Ok(if stops == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Examines every Rust file of the workspace.
pub fn examine(workspace: &Path) -> Result<Vec<Finding>> {
    let mut files = Vec::new();
    collect(workspace, &mut files)?;
    files.sort();
    let mut findings = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let file = path.strip_prefix(workspace).unwrap_or(&path).display().to_string();
        findings.extend(rules::examine(&file, &text));
        findings.extend(imports::examine(&file, &text));
    }
    Ok(findings)
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("reading {}", directory.display()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                collect(&path, files)?;
            }
        } else if name.ends_with(".rs") {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_tree_is_tidy() {
        let findings = super::examine(&crate::workspace()).expect("the tree can be read");
        let errors: Vec<_> = findings.into_iter().filter(|finding| finding.stops).collect();
        assert!(errors.is_empty(), "{errors:#?}");
    }
}
