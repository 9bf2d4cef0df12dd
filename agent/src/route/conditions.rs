//! Whether one condition holds.

use std::sync::Arc;

use regex_automata::meta::Regex;
use regex_automata::{Anchored, Input};

use super::{RequestOrigin, RequestView, query};
use crate::model::{MatchPath, MatchValue, RequestMatch};

/// Whether all conditions hold.
pub(super) fn fits(
    conditions: &RequestMatch,
    request: &impl RequestView,
    origin: &RequestOrigin<'_>,
) -> bool {
    let RequestMatch { path, method, authority, scheme, headers, without_headers, query, .. } = conditions;
    path.as_ref().is_none_or(|path| path_fits(path, request.path()))
        && method.as_ref().is_none_or(|value| value_fits(value, request.method().as_bytes()))
        && authority.as_ref().is_none_or(|value| host_fits(value, request.host()))
        && scheme.as_ref().is_none_or(|value| value_fits(value, request.scheme().as_bytes()))
        && headers.iter().all(|(name, value)| header_fits(name, value, request))
        && !without_headers.iter().any(|(name, value)| header_fits(name, value, request))
        && query.iter().all(|(name, value)| query_fits(name, value, request.query()))
        && origin_fits(conditions, origin)
}

/// Bytes of the path that a prefix condition takes, and whether it takes whole elements; see
/// [`super::RouteMatch::prefix_len`].
pub(super) fn prefix_taken(path: Option<&MatchPath>) -> (usize, bool) {
    match path {
        None => (1, true),
        Some(MatchPath::PathPrefix(prefix)) => (prefix.len(), true),
        Some(MatchPath::Prefix(prefix) | MatchPath::PrefixIgnoreCase(prefix)) => (prefix.len(), false),
        Some(MatchPath::Exact(_) | MatchPath::Regex(..) | MatchPath::ExactIgnoreCase(_)) => (0, false),
    }
}

/// Whether the conditions on the origin hold.
pub(super) fn origin_fits(conditions: &RequestMatch, origin: &RequestOrigin<'_>) -> bool {
    let RequestMatch { source_labels, source_namespace, port, .. } = conditions;
    port.is_none_or(|port| port == origin.port)
        && source_namespace
            .as_ref()
            .is_none_or(|namespace| origin.source.is_some_and(|source| source.name.namespace == *namespace))
        && source_labels.iter().all(|(name, value)| {
            origin.source.is_some_and(|source| source.labels.get(name).is_some_and(|found| found == value))
        })
}

fn path_fits(condition: &MatchPath, path: &str) -> bool {
    match condition {
        MatchPath::Exact(exact) => path == &**exact,
        MatchPath::Prefix(prefix) => path.starts_with(&**prefix),
        MatchPath::PathPrefix(prefix) => path_prefix_fits(prefix, path),
        MatchPath::Regex(regex, _) => matches_whole(regex, path.as_bytes()),
        MatchPath::ExactIgnoreCase(exact) => path.eq_ignore_ascii_case(exact),
        MatchPath::PrefixIgnoreCase(prefix) => starts_with_ignore_case(path, prefix),
    }
}

fn path_prefix_fits(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || prefix.ends_with('/'))
}

fn value_fits(condition: &MatchValue, value: &[u8]) -> bool {
    match condition {
        MatchValue::Exact(exact) => value == exact.as_bytes(),
        MatchValue::Prefix(prefix) => value.starts_with(prefix.as_bytes()),
        MatchValue::Regex(regex, _) => matches_whole(regex, value),
        MatchValue::Present => true,
    }
}

/// Host names are compared without regard to case (RFC 9110, section 4.2.3), however the document writes them.
fn host_fits(condition: &MatchValue, host: &str) -> bool {
    match condition {
        MatchValue::Exact(exact) => host.eq_ignore_ascii_case(exact),
        MatchValue::Prefix(prefix) => starts_with_ignore_case(host, prefix),
        MatchValue::Regex(regex, _) => matches_whole(regex, host.as_bytes()),
        MatchValue::Present => !host.is_empty(),
    }
}

fn header_fits(name: &Arc<str>, condition: &MatchValue, request: &impl RequestView) -> bool {
    request.header(name).is_some_and(|value| value_fits(condition, value))
}

fn query_fits(name: &Arc<str>, condition: &MatchValue, query: Option<&str>) -> bool {
    let Some(encoded) = query.and_then(|query| query::parameter(query, name)) else { return false };
    match condition {
        MatchValue::Exact(exact) => query::decoded_eq(encoded, exact),
        MatchValue::Prefix(prefix) => query::decoded_starts_with(encoded, prefix),
        MatchValue::Regex(regex, _) => matches_whole(regex, &query::decode(encoded)),
        MatchValue::Present => true,
    }
}

fn starts_with_ignore_case(text: &str, prefix: &str) -> bool {
    text.as_bytes().get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
}

/// The expressions are compiled to match whole values. Asking for the match's end as well keeps one that is not from
/// taking more than it says.
fn matches_whole(regex: &Regex, value: &[u8]) -> bool {
    let input = Input::new(value).anchored(Anchored::Yes);
    regex.search_half(&input).is_some_and(|found| found.offset() == value.len())
}
