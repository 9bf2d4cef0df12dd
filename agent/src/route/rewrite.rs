//! Paths and locations that a route makes from a request's.

use regex_automata::meta::Regex;

use super::path::has_dots;
use super::{RequestView, RouteMatch};
use crate::model::{Redirect, RedirectPath, RedirectPort, RewriteRegex, RouteKind};

/// The new path, with the query as it was.
///
/// A prefix is replaced by path elements where it was matched so (HTTPRoute: never a doubled or missing slash), and as
/// a plain string where it was matched so (VirtualService). The whole path counts as matched where the rule has an
/// exact path or an expression.
pub fn rewrite_path(
    matched: &RouteMatch<'_>,
    rewrite: &RedirectPath,
    path: &str,
    query: Option<&str>,
) -> String {
    let mut rewritten = match rewrite {
        RedirectPath::Full(full) => full.to_string(),
        RedirectPath::Prefix(replacement) => replace_prefix(matched, replacement, path),
        RedirectPath::Regex(RewriteRegex(regex, _), substitution) => substitute(regex, substitution, path),
    };
    if !rewritten.starts_with('/') {
        rewritten.insert(0, '/');
    }
    push_query(&mut rewritten, query);
    rewritten
}

/// Whether the rewritten path has elements `.` or `..` that a client put together out of what was no element before: a
/// plain prefix `/a` that becomes `/files/` would let `/a../b` climb out of `/files`.
pub fn rewrite_climbs(matched: &RouteMatch<'_>, rewrite: &RedirectPath, path: &str) -> bool {
    let can = match rewrite {
        RedirectPath::Full(_) => false,
        RedirectPath::Prefix(_) => {
            !matched.by_element && path.get(matched.prefix_len..).is_some_and(|rest| rest.starts_with('.'))
        }
        RedirectPath::Regex(..) => path.contains('.'),
    };
    can && has_dots(&rewrite_path(matched, rewrite, path, None))
}

/// The `Location` of a redirect.
///
/// Port: the redirect's own, where that of the request is left out if it was its own scheme's; else none where it names a scheme (the scheme's well-known one); else the listener's, left
/// out where the scheme implies it. A VirtualService's authority is complete by itself and gets no listener port.
pub fn redirect_location(
    matched: &RouteMatch<'_>,
    redirect: &Redirect,
    request: &impl RequestView,
    listener_port: u16,
) -> String {
    let path = if let Some(rewrite) = &redirect.path {
        rewrite_path(matched, rewrite, request.path(), request.query())
    } else {
        let mut path = request.path().to_owned();
        push_query(&mut path, request.query());
        path
    };
    let scheme = redirect.scheme.as_deref().unwrap_or(request.scheme());
    let host = redirect.authority.as_deref().unwrap_or(request.host());
    if host.is_empty() {
        return path;
    }
    let complete = redirect.scheme.is_some() || (redirect.authority.is_some() && is_virtual_service(matched));
    let port = match redirect.port {
        Some(RedirectPort::Number(port)) => Some(port),
        Some(RedirectPort::Request) => {
            Some(listener_port).filter(|port| !is_well_known(request.scheme(), *port))
        }
        None => (!complete).then_some(listener_port),
    };
    let port =
        port.filter(|port| !is_well_known(scheme, *port)).map(|port| format!(":{port}")).unwrap_or_default();
    format!("{scheme}://{host}{port}{path}")
}

fn is_virtual_service(matched: &RouteMatch<'_>) -> bool {
    matched.route.name.kind == RouteKind::VirtualService.as_str()
}

fn is_well_known(scheme: &str, port: u16) -> bool {
    matches!((scheme, port), ("http", 80) | ("https", 443))
}

fn push_query(path: &mut String, query: Option<&str>) {
    if let Some(query) = query {
        path.push('?');
        path.push_str(query);
    }
}

fn replace_prefix(matched: &RouteMatch<'_>, replacement: &str, path: &str) -> String {
    let rest = match matched.prefix_len {
        0 => "",
        taken => path.get(taken..).unwrap_or(""),
    };
    if !matched.by_element || rest.is_empty() {
        return format!("{replacement}{rest}");
    }
    let (start, rest) = (replacement.trim_end_matches('/'), rest.strip_prefix('/').unwrap_or(rest));
    format!("{start}/{rest}")
}

/// Replaces every match, as RE2's global replacement does. `\0` to `\9` are groups, `\\` is a backslash.
fn substitute(regex: &Regex, substitution: &str, path: &str) -> String {
    let mut result = String::with_capacity(path.len() + substitution.len());
    let mut copied = 0;
    for captures in regex.captures_iter(path) {
        let Some(whole) = captures.get_match() else { continue };
        result.push_str(path.get(copied..whole.start()).unwrap_or_default());
        copied = whole.end();
        let mut rest = substitution.chars();
        while let Some(character) = rest.next() {
            if character != '\\' {
                result.push(character);
                continue;
            }
            match rest.next() {
                Some(digit) if digit.is_ascii_digit() => {
                    let group = captures.get_group(digit as usize - '0' as usize);
                    result.push_str(group.and_then(|span| path.get(span.range())).unwrap_or_default());
                }
                Some(other) => result.push(other),
                None => result.push('\\'),
            }
        }
    }
    result.push_str(path.get(copied..).unwrap_or_default());
    result
}
