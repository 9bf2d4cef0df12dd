//! The order of the agent's modules: imports point down, and the parts of the top level meet in `app` only.

use super::Finding;
use super::rules::is_test_file;

/// The levels, highest first. A module may import from levels below its own, and from its own level unless that
/// is [`SEPARATE`].
const LEVELS: &[&[&str]] = &[
    &["main", "lib", "app", "cli"],
    &["proxy", "capture", "cluster", "config", "admin"],
    &["health", "pool", "http", "net", "identity", "hbone", "spiffe", "gateway", "telemetry"],
    &["compile", "route", "balance", "resilience", "limit", "migrate"],
    &["model", "priority"],
];
/// The level whose parts never import each other.
const SEPARATE: usize = 1;
const ROOT: &str = "agent/src/";

/// The imports of a file that point up or across.
pub fn examine(file: &str, text: &str) -> Vec<Finding> {
    // A test may bring the parts above it together.
    if is_test_file(file) {
        return Vec::new();
    }
    let Some(own) = module_of(file) else { return Vec::new() };
    let Some(own_level) = level(own) else {
        let what = format!("module '{own}' has no place in the order of xtask/src/tidy/imports.rs");
        return vec![Finding { file: file.to_owned(), line: 1, what, stops: true }];
    };
    let mut findings = Vec::new();
    let production = text.find("#[cfg(test)]\nmod ").map_or(text, |at| &text[..at]);
    for (index, line) in production.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        for other in imported(code).filter(|other| *other != own) {
            let Some(other_level) = level(other) else { continue };
            let across = other_level == own_level && own_level == SEPARATE;
            if other_level < own_level || across {
                let way = if across { "across" } else { "up" };
                let what =
                    format!("'{own}' imports {way} from '{other}': imports point down, app wires the rest");
                findings.push(Finding { file: file.to_owned(), line: index + 1, what, stops: true });
            }
        }
    }
    findings
}

fn module_of(file: &str) -> Option<&str> {
    let rest = file.strip_prefix(ROOT)?;
    let first = rest.split('/').next()?;
    Some(first.trim_end_matches(".rs"))
}

fn level(module: &str) -> Option<usize> {
    LEVELS.iter().position(|level| level.contains(&module))
}

/// The top-level modules named by `crate::` paths in a line.
fn imported(code: &str) -> impl Iterator<Item = &str> {
    code.split("crate::").skip(1).flat_map(|rest| {
        let group = rest.strip_prefix('{').and_then(|inner| inner.split('}').next());
        group.map_or_else(|| vec![first_word(rest)], |inner| inner.split(',').map(first_word).collect())
    })
}

fn first_word(text: &str) -> &str {
    let text = text.trim_start();
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(file: &str, line: &str, expected: Option<&str>) {
        let findings = examine(file, &format!("//! X.\n{line}\n"));
        let said = findings.first().map(|finding| finding.what.as_str());
        match (said, expected) {
            (Some(said), Some(expected)) => assert!(said.contains(expected), "{file}: {line}: {said}"),
            (said, expected) => assert_eq!(said, expected, "{file}: {line}"),
        }
    }

    #[test]
    fn imports_point_down() {
        check("agent/src/proxy/http.rs", "use crate::route::RuleSet;", None);
        check("agent/src/app.rs", "use crate::{capture, config, proxy};", None);
        check("agent/src/http/h1.rs", "use crate::net::Stream;", None);
        check("agent/src/route/mod.rs", "use crate::route::Host;", None);
        check("agent-common/src/lib.rs", "use crate::verdict::Verdict;", None);
        check("agent/src/model/name.rs", "// crate::proxy is above", None);
        check("agent/src/model/name.rs", "let x = crate::compile::Route;", Some("up from 'compile'"));
        check("agent/src/net/mod.rs", "use crate::app::Running;", Some("up from 'app'"));
        check(
            "agent/src/config/mod.rs",
            "use crate::{model::Name, admin::Page};",
            Some("across from 'admin'"),
        );
        check("agent/src/novel/mod.rs", "", Some("has no place"));
    }
}
