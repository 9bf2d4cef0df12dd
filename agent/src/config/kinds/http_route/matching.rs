//! `matches` of an HTTPRoute.

use std::sync::Arc;

use super::super::super::field::Field;
use super::super::super::object::Notes;
use super::super::super::report::Code;
use super::super::{header, regex};
use super::schema::{MatchSpec, Method, NamedMatch, PathSpec, PathType, ValueType};
use crate::model::{MatchPath, MatchValue, RequestMatch};

/// The alternatives of a rule; without any, every path.
pub(super) fn matches(written: &[MatchSpec], field: &Field, notes: &mut Notes<'_>) -> Vec<RequestMatch> {
    let default_match = [MatchSpec::default()];
    let written = if written.is_empty() { &default_match[..] } else { written };
    let matches = written.iter().enumerate().map(|(index, alternative)| {
        let field = field.index(index);
        RequestMatch {
            path: path(&alternative.path, &field.key("path"), notes),
            method: alternative.method.map(|method| MatchValue::Exact(method.as_str().into())),
            headers: named(&alternative.headers, &field.key("headers"), true, notes),
            query: named(&alternative.query_params, &field.key("queryParams"), false, notes),
            ..RequestMatch::default()
        }
    });
    matches.collect()
}

fn path(written: &PathSpec, field: &Field, notes: &mut Notes<'_>) -> Option<MatchPath> {
    let value = written.value.as_deref().unwrap_or("/");
    let field = field.key("value");
    if let PathType::RegularExpression = written.path_type {
        return match regex::whole(value) {
            Ok((regex, text)) => Some(MatchPath::Regex(regex, text)),
            Err(reason) => {
                notes.error(&field, reason);
                None
            }
        };
    }
    if let Some(reason) = path_problem(value) {
        notes.error(&field, reason);
        return None;
    }
    Some(match written.path_type {
        PathType::Exact => MatchPath::Exact(value.into()),
        _ if value == "/" => MatchPath::PathPrefix("/".into()),
        _ => MatchPath::PathPrefix(value.trim_end_matches('/').into()),
    })
}

/// Why a path can't be matched, by the rules of the API.
fn path_problem(path: &str) -> Option<String> {
    if !path.starts_with('/') {
        return Some(format!("`{path}` does not begin with `/`"));
    }
    let lower = path.to_ascii_lowercase();
    let bad = ["//", "/./", "/../", "%2f", "#"].into_iter().find(|bad| lower.contains(bad));
    let bad = bad.or_else(|| ["/..", "/."].into_iter().find(|bad| lower.ends_with(bad)));
    bad.map(|bad| format!("`{path}` has `{bad}`, which no normalized path has"))
}

/// Conditions by name; of two with one name the first counts, as the API has it.
fn named(
    written: &[NamedMatch],
    field: &Field,
    is_header: bool,
    notes: &mut Notes<'_>,
) -> Vec<(Arc<str>, MatchValue)> {
    let mut matches: Vec<(Arc<str>, MatchValue)> = Vec::with_capacity(written.len());
    for (index, condition) in written.iter().enumerate() {
        let field = field.index(index);
        let name = if is_header {
            header::name(&condition.name, &field.key("name"), notes)
        } else {
            Some(condition.name.as_str().into())
        };
        let Some(name) = name else { continue };
        if matches.iter().any(|(before, _)| *before == name) {
            notes.warning(Code::Ignored, &field, format!("`{name}` is given twice: the first one counts"));
            continue;
        }
        match condition.match_type {
            ValueType::Exact => matches.push((name, MatchValue::Exact(condition.value.as_str().into()))),
            ValueType::RegularExpression => match regex::whole(&condition.value) {
                Ok((regex, text)) => matches.push((name, MatchValue::Regex(regex, text))),
                Err(reason) => notes.error(&field.key("value"), reason),
            },
        }
    }
    matches
}

impl Method {
    fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
            Self::Options => "OPTIONS",
            Self::Trace => "TRACE",
            Self::Patch => "PATCH",
        }
    }
}
