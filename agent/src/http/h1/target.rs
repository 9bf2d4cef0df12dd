//! The request target in its four forms (RFC 9112 section 3.2).

use super::authority::{self, AuthorityError};
use super::fields::Span;
use crate::http::Refusal;

/// A target taken apart; spans lie within the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Target {
    /// The authority of an absolute-form target.
    pub authority: Option<Span>,
    /// The path; empty for an absolute form without one.
    pub path: Span,
    /// The query without its `?`.
    pub query: Option<Span>,
}

/// Takes `target` apart, which lies at `at` within its head.
pub(super) fn parse(method: &str, target: &str, at: usize) -> Result<Target, Refusal> {
    if target.contains('#') {
        return Err(Refusal::bad("target_fragment"));
    }
    if target.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
        return Err(Refusal::bad("target_control_byte"));
    }
    if method == "CONNECT" {
        return Err(Refusal::with(405, "method_connect"));
    }
    if target == "*" {
        let path = Span::from(at..at + 1);
        let asterisk = Target { authority: None, path, query: None };
        return if method == "OPTIONS" { Ok(asterisk) } else { Err(Refusal::bad("target_asterisk")) };
    }
    if target.starts_with('/') {
        return Ok(path_and_query(None, target, at));
    }
    let (scheme, rest) = target.split_once("://").ok_or(Refusal::bad("target_form"))?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(Refusal::bad("target_scheme"));
    }
    let rest_at = at + scheme.len() + 3;
    let authority_len = rest.find(['/', '?']).unwrap_or(rest.len());
    authority::parse(&rest.as_bytes()[..authority_len]).map_err(|error| match error {
        AuthorityError::Userinfo => Refusal::bad("target_userinfo"),
        AuthorityError::Empty | AuthorityError::Malformed => Refusal::bad("target_authority"),
    })?;
    let authority = Span::from(rest_at..rest_at + authority_len);
    Ok(path_and_query(Some(authority), &rest[authority_len..], rest_at + authority_len))
}

fn path_and_query(authority: Option<Span>, text: &str, at: usize) -> Target {
    let end = at + text.len();
    match text.find('?') {
        Some(mark) => {
            let query = Some(Span::from(at + mark + 1..end));
            Target { authority, path: Span::from(at..at + mark), query }
        }
        None => Target { authority, path: Span::from(at..end), query: None },
    }
}
