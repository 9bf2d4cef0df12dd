//! Rules on one file: its size, its functions, its name, its first line, and what may not be in it.

use std::path::Path;

use super::Finding;

const FILE_LINES_WARN: usize = 400;
const FILE_LINES_STOP: usize = 600;
const FUNCTION_LINES_STOP: usize = 70;
/// Names that say nothing of what a module owns.
const EMPTY_NAMES: &[&str] =
    &["util", "utils", "common", "helper", "helpers", "manager", "misc", "shared", "stuff"];
/// The files that wait, because waiting is what they are for.
const MAY_SLEEP: &[&str] = &["tests/src/wait.rs", "tests/src/load.rs", "tests/src/pingpong.rs"];

/// Everything that is wrong with a file by itself.
pub fn examine(file: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(name(file));
    findings.extend(first_line(file, text));
    findings.extend(size(file, text));
    findings.extend(functions(file, text));
    findings.extend(forbidden(file, text));
    findings
}

fn name(file: &str) -> Option<Finding> {
    // Cargo's own name for what test binaries share.
    let path = Path::new(file.strip_prefix("tests/tests/common/").unwrap_or(file));
    let mut modules = path.components().map(|part| part.as_os_str().to_string_lossy());
    let empty = modules.find(|part| EMPTY_NAMES.contains(&part.trim_end_matches(".rs")))?;
    Some(stop(file, 1, format!("'{empty}' names no noun: call the module after what it owns")))
}

fn first_line(file: &str, text: &str) -> Option<Finding> {
    let documented = text
        .lines()
        .take_while(|line| line.starts_with("//") || line.starts_with("#!"))
        .any(|line| line.starts_with("//!"));
    (!documented).then(|| stop(file, 1, "begin with a //! that says what the file owns".to_owned()))
}

fn size(file: &str, text: &str) -> Option<Finding> {
    let lines = production(file, text).lines().filter(|line| !line.trim().is_empty()).count();
    let what = format!("{lines} production lines, at most {FILE_LINES_WARN}: split it by noun");
    let finding = stop(file, 1, what);
    (lines > FILE_LINES_WARN).then_some(Finding { stops: lines > FILE_LINES_STOP, ..finding })
}

/// Functions by their indentation, which rustfmt makes reliable. Clippy checks the workspace; this reaches the
/// kernel programs too, which are a workspace of their own.
fn functions(file: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let lines: Vec<&str> = text.lines().collect();
    for (start, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        let indent = &line[..line.len() - line.trim_start().len()];
        let close = format!("{indent}}}");
        // A declaration of several lines without a body ends with the parenthesis of its parameters, and has none to measure.
        let declared = lines[start..]
            .iter()
            .find(|line| line.starts_with(&format!("{indent})")) || **line == close)
            .is_some_and(|line| line.ends_with(';'));
        if declared {
            continue;
        }
        let length = lines[start..].iter().position(|line| *line == close).unwrap_or(0) + 1;
        if length > FUNCTION_LINES_STOP + 2 {
            let what = format!("fn {name} has {length} lines, at most {FUNCTION_LINES_STOP}");
            findings.push(stop(file, start + 1, what));
        }
    }
    findings
}

fn function_name(line: &str) -> Option<&str> {
    let (before, after) = line.split_once("fn ")?;
    let qualifiers = ["pub", "pub(crate)", "pub(super)", "const", "async", "unsafe", "extern", "\"C\""];
    let declared = before.split_whitespace().all(|word| qualifiers.contains(&word));
    // A declaration that ends on its own line has no body to measure.
    let name = after.split(['(', '<']).next()?;
    (declared && !line.ends_with(';') && !line.ends_with('}')).then_some(name)
}

fn forbidden(file: &str, text: &str) -> Vec<Finding> {
    // Written in two parts, so that this file does not find itself.
    let everywhere = [
        (concat!("#[", "ignore"), "a test that does not run proves nothing"),
        (concat!("todo", "!("), "no stub is called done"),
        (concat!("unimplemented", "!("), "no stub is called done"),
        (concat!("dbg", "!("), "a trace for one afternoon"),
    ];
    let test_start = text.find("#[cfg(test)]").map_or(usize::MAX, |at| text[..at].lines().count());
    let all_test = is_test_file(file);
    let mut findings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        for (word, why) in everywhere {
            if code.contains(word) {
                findings.push(stop(file, index + 1, format!("{word}: {why}")));
            }
        }
        let in_test = all_test || index >= test_start;
        // tokio's clock is paused where its sleep is used in tests.
        let sleeps = code.contains(concat!("thread::", "sleep("));
        if sleeps && in_test && !MAY_SLEEP.contains(&file) {
            findings.push(stop(file, index + 1, "a test waits for conditions, with wait_for".to_owned()));
        }
    }
    findings
}

pub(super) fn is_test_file(file: &str) -> bool {
    file.starts_with("tests/") || file.contains("/tests/") || file.ends_with("/tests.rs")
}

/// The part of a file before its tests; nothing of a file of tests.
fn production<'a>(file: &str, text: &'a str) -> &'a str {
    if file.starts_with("tests/tests/") || file.ends_with("/tests.rs") || file.contains("/tests/") {
        return "";
    }
    match text.find("#[cfg(test)]\nmod ") {
        Some(at) => &text[..at],
        None => text,
    }
}

fn stop(file: &str, line: usize, what: String) -> Finding {
    Finding { file: file.to_owned(), line, what, stops: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(file: &str, text: &str, expected: &[&str]) {
        let findings = examine(file, text);
        let said: Vec<&str> = findings.iter().map(|finding| finding.what.as_str()).collect();
        assert_eq!(said.len(), expected.len(), "{file}: {said:?}");
        for (said, expected) in said.iter().zip(expected) {
            assert!(said.contains(expected), "{file}: {said:?} does not say {expected:?}");
        }
    }

    #[test]
    fn a_good_file_has_no_finding() {
        check("agent/src/net/mod.rs", "//! Sockets.\n\nfn short() {\n}\n", &[]);
        check("agent-common/src/lib.rs", "#![no_std]\n//! Types.\n", &[]);
    }

    #[test]
    fn names_and_first_lines() {
        check("agent/src/util.rs", "//! Bits.\n", &["'util.rs' names no noun"]);
        check("agent/src/helpers/time.rs", "//! Time.\n", &["'helpers' names no noun"]);
        check("agent/src/common/mod.rs", "//! Bits.\n", &["'common' names no noun"]);
        check("tests/tests/common/mod.rs", "//! A lab with agents.\n", &[]);
        check("tests/tests/common/utils.rs", "//! Bits.\n", &["'utils.rs' names no noun"]);
        check("agent/src/a.rs", "use std::fmt;\n", &["begin with a //!"]);
        check("agent/src/a.rs", "", &["begin with a //!"]);
    }

    #[test]
    fn sizes_count_production_lines_only() {
        let lines = |count: usize| format!("//! X.\n{}", "const A: u8 = 0;\n".repeat(count));
        check("agent/src/a.rs", &lines(399), &[]);
        check("agent/src/a.rs", &lines(400), &["401 production lines"]);
        assert!(!examine("agent/src/a.rs", &lines(599))[0].stops);
        assert!(examine("agent/src/a.rs", &lines(600))[0].stops);
        let tested = format!("//! X.\n#[cfg(test)]\nmod tests {{\n{}}}\n", "// x\n".repeat(900));
        check("agent/src/a.rs", &tested, &[]);
        check("tests/tests/a.rs", &lines(900), &[]);
    }

    #[test]
    fn functions_are_measured_to_their_own_brace() {
        let body = |count: usize| {
            format!("//! X.\n    pub async fn f(\n{}    }}\nfn g() {{\n}}\n", "        x;\n".repeat(count))
        };
        check("agent/src/a.rs", &body(70), &[]);
        check("agent/src/a.rs", &body(71), &["fn f has 73 lines"]);
    }

    #[test]
    fn declarations_have_no_body_to_measure() {
        let declared = "//! X.\n    fn f(\n        x: u8,\n    ) -> u8;\n".to_owned();
        check("agent/src/a.rs", &format!("{declared}{}    }}\n", "        x;\n".repeat(90)), &[]);
    }

    #[test]
    fn what_may_not_be_there() {
        check("agent/src/a.rs", concat!("//! X.\nfn a() { todo", "!() }\n"), &["no stub"]);
        check("tests/tests/a.rs", concat!("//! X.\n#[", "ignore]\nfn a() {}\n"), &["does not run"]);
        let sleep = concat!("std::thread::", "sleep(x);\n");
        check("tests/tests/a.rs", &format!("//! X.\n{sleep}"), &["wait_for"]);
        check("tests/src/wait.rs", &format!("//! X.\n{sleep}"), &[]);
        check("agent/src/a.rs", &format!("//! X.\n{sleep}"), &[]);
        check("agent/src/a.rs", &format!("//! X.\n#[cfg(test)]\nmod tests {{\n{sleep}}}\n"), &["wait_for"]);
        check("agent/src/a.rs", concat!("//! X.\n// not a todo", "!()\n"), &[]);
    }
}
