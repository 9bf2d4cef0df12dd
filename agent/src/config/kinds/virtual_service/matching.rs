//! `match` of a VirtualService.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::super::field::Field;
use super::super::super::object::Notes;
use super::super::{header, meta, regex};
use super::schema::{HttpMatch, StringMatch};
use super::{MESH, without_effect};
use crate::model::{MatchPath, MatchValue, RequestMatch};

/// The alternatives of a rule; `None`: every one is for a Gateway alone, so that the rule takes nothing in the mesh.
pub(super) fn matches(
    written: &[HttpMatch],
    field: &Field,
    notes: &mut Notes<'_>,
) -> Option<Vec<RequestMatch>> {
    let mut matches = Vec::with_capacity(written.len());
    for (index, alternative) in written.iter().enumerate() {
        let field = field.index(index);
        let request = request_match(alternative, &field, notes);
        if alternative.gateways.is_empty() || alternative.gateways.iter().any(|gateway| gateway == MESH) {
            matches.push(request);
        } else {
            notes.later(&field.key("gateways"));
        }
    }
    (written.is_empty() || !matches.is_empty()).then_some(matches)
}

fn request_match(written: &HttpMatch, field: &Field, notes: &mut Notes<'_>) -> RequestMatch {
    let mut single = |name: &str, value: &Option<StringMatch>| -> Option<MatchValue> {
        value_match(value.as_ref()?, &field.key(name), notes)
    };
    let scheme = single("scheme", &written.scheme).map(lower_case);
    let method = single("method", &written.method);
    let authority = single("authority", &written.authority).map(lower_case);
    let path = written
        .uri
        .as_ref()
        .and_then(|uri| path_match(uri, written.ignore_uri_case.unwrap_or(false), &field.key("uri"), notes));
    if written.port == Some(0) {
        notes.error(&field.key("port"), "0 is no port");
    }
    RequestMatch {
        path,
        method,
        authority,
        scheme,
        headers: headers(&written.headers, &field.key("headers"), notes),
        without_headers: headers(&written.without_headers, &field.key("withoutHeaders"), notes),
        query: named(&written.query_params, &field.key("queryParams"), notes),
        source_labels: meta::labels(&written.source_labels),
        source_namespace: written.source_namespace.as_deref().filter(|name| !name.is_empty()).map(Into::into),
        port: written.port,
    }
}

fn path_match(
    uri: &StringMatch,
    ignore_case: bool,
    field: &Field,
    notes: &mut Notes<'_>,
) -> Option<MatchPath> {
    Some(match (value_match(uri, field, notes)?, ignore_case) {
        (MatchValue::Exact(path), false) => MatchPath::Exact(path),
        (MatchValue::Prefix(path), false) => MatchPath::Prefix(path),
        (MatchValue::Exact(path), true) => MatchPath::ExactIgnoreCase(path.to_ascii_lowercase().into()),
        (MatchValue::Prefix(path), true) => MatchPath::PrefixIgnoreCase(path.to_ascii_lowercase().into()),
        (MatchValue::Regex(regex, text), ignore_case) => {
            if ignore_case {
                without_effect(
                    field,
                    "ignoreUriCase has no effect on an expression: begin it with `(?i)`",
                    notes,
                );
            }
            MatchPath::Regex(regex, text)
        }
        (MatchValue::Present, _) => return None,
    })
}

/// Header fields by lower-case name.
fn headers(
    written: &BTreeMap<String, StringMatch>,
    field: &Field,
    notes: &mut Notes<'_>,
) -> Vec<(Arc<str>, MatchValue)> {
    let mut matches = Vec::with_capacity(written.len());
    for (key, value) in written {
        let field = field.key(key);
        if matches!(key.as_str(), "uri" | "scheme" | "method" | "authority") {
            // Istio ignores these names here, whatever the header's value.
            without_effect(
                &field,
                &format!("`{key}` is matched by the field of this name, never as a header"),
                notes,
            );
            continue;
        }
        if let (Some(name), Some(value)) =
            (header::name(key, &field, notes), value_match(value, &field, notes))
        {
            matches.push((name, value));
        }
    }
    matches
}

fn named(
    written: &BTreeMap<String, StringMatch>,
    field: &Field,
    notes: &mut Notes<'_>,
) -> Vec<(Arc<str>, MatchValue)> {
    let matches = written
        .iter()
        .filter_map(|(key, value)| Some((key.as_str().into(), value_match(value, &field.key(key), notes)?)));
    matches.collect()
}

/// A condition on a value; `None` after an error is noted.
fn value_match(written: &StringMatch, field: &Field, notes: &mut Notes<'_>) -> Option<MatchValue> {
    match (&written.exact, &written.prefix, &written.regex) {
        (None, None, None) => Some(MatchValue::Present),
        (Some(exact), None, None) => Some(MatchValue::Exact(exact.as_str().into())),
        (None, Some(prefix), None) if prefix.is_empty() => {
            notes.error(&field.key("prefix"), "an empty prefix is no condition");
            None
        }
        (None, Some(prefix), None) => Some(MatchValue::Prefix(prefix.as_str().into())),
        (None, None, Some(expression)) => match regex::whole(expression) {
            Ok((regex, text)) => Some(MatchValue::Regex(regex, text)),
            Err(reason) => {
                notes.error(&field.key("regex"), reason);
                None
            }
        },
        _ => {
            notes.error(field, "exact, prefix and regex exclude each other");
            None
        }
    }
}

/// Hosts and schemes are compared in lower case.
fn lower_case(value: MatchValue) -> MatchValue {
    match value {
        MatchValue::Exact(text) => MatchValue::Exact(text.to_ascii_lowercase().into()),
        MatchValue::Prefix(text) => MatchValue::Prefix(text.to_ascii_lowercase().into()),
        other => other,
    }
}
