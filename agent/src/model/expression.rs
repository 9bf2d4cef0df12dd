//! Expressions of routes: RE2 syntax, linear time, bounded size.

use std::sync::Arc;

use regex_automata::meta::Regex;
use regex_automata::util::syntax;

/// Longest expression; Istio's own limit for one is 1024 bytes.
const EXPRESSION_MAX_BYTES: usize = 1024;

/// Memory of the compiled automaton, beyond which an expression such as `(.{1000}){1000}` is refused.
const AUTOMATON_MAX_BYTES: usize = 1 << 20;

/// Compiles an expression that must match a whole value.
pub(crate) fn whole(text: &str) -> Result<(Regex, Arc<str>), String> {
    // Checked alone first: `a)|(b` is wrong although it is right within the group that anchors it.
    syntax::parse_with(text, &syntax()).map_err(|error| explain(&error.to_string()))?;
    compile(&format!(r"\A(?:{text})\z")).map(|regex| (regex, text.into()))
}

/// Compiles an expression that may match a part of a value.
pub(crate) fn part(text: &str) -> Result<(Regex, Arc<str>), String> {
    compile(text).map(|regex| (regex, text.into()))
}

fn compile(text: &str) -> Result<Regex, String> {
    if text.len() > EXPRESSION_MAX_BYTES {
        return Err(format!("the expression is longer than {EXPRESSION_MAX_BYTES} bytes"));
    }
    // Header values may hold bytes that are no UTF-8.
    let config = Regex::config().nfa_size_limit(Some(AUTOMATON_MAX_BYTES)).utf8_empty(false);
    Regex::builder().configure(config).syntax(syntax()).build(text).map_err(|error| {
        let reason = error.syntax_error().map_or_else(|| error.to_string(), ToString::to_string);
        explain(&reason)
    })
}

fn syntax() -> syntax::Config {
    syntax::Config::new().utf8(false)
}

/// The parser draws the expression with a marker over several lines; a report has one.
fn explain(reason: &str) -> String {
    let last = reason.lines().last().unwrap_or(reason).trim();
    format!("no valid expression: {}", last.strip_prefix("error: ").unwrap_or(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_matches_whole_values() {
        let check = |expression: &str, value: &str, expected| {
            let (regex, _) = whole(expression).expect(expression);
            assert_eq!(regex.is_match(value), expected, "{expression} on {value}");
        };
        check("/api/.*", "/api/x", true);
        check("/api/.*", "/v1/api/x", false);
        check("a|b", "ab", false);
        check("a|ab", "ab", true);
        check("(?i)beta", "BETA", true);
        check("", "", true);
        check("", "a", false);
    }

    #[test]
    fn bad_expressions_are_explained() {
        let check = |expression: &str, part: &str| {
            let error = whole(expression).expect_err(expression);
            assert!(error.contains(part) && !error.contains('\n'), "{error}");
        };
        check("a)|(b", "unopened group");
        check("(", "unclosed group");
        check("[z-a]", "invalid character class range");
        check("a{2,1}", "invalid repetition");
        check("(?=x)", "look-around");
        check(r"(a)\1", "backreferences");
        check("(.{1000}){1000}", "no valid expression");
        check(&"a".repeat(2000), "longer than");
    }
}
