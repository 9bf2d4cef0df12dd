//! How specific a rule's conditions are: the order of precedence among HTTPRoutes.

use super::{MatchPath, RequestMatch};

/// How specific the conditions of a request match are, most significant first; the greater one takes precedence. This
/// is the order that the Gateway API gives to the rules of all routes of one host: an exact path, then the longest
/// prefix, then a method, then the most header fields, then the most query parameters. Ties go to the older route, then
/// to the first by name, then to the earlier rule, which is the order in which routes and rules are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Specificity {
    path: (PathRank, usize),
    method: bool,
    headers: usize,
    query: usize,
}

/// Kinds of conditions on the path, least specific first. The standard leaves the place of expressions open; here, as in
/// Istio, they come after every prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum PathRank {
    Any,
    Regex,
    Prefix,
    Exact,
}

impl RequestMatch {
    /// How specific the conditions are.
    pub fn specificity(&self) -> Specificity {
        let path = match &self.path {
            None => (PathRank::Any, 0),
            Some(MatchPath::Regex(_, text)) => (PathRank::Regex, text.len()),
            Some(
                MatchPath::Prefix(path) | MatchPath::PathPrefix(path) | MatchPath::PrefixIgnoreCase(path),
            ) => (PathRank::Prefix, path.len()),
            Some(MatchPath::Exact(path) | MatchPath::ExactIgnoreCase(path)) => (PathRank::Exact, path.len()),
        };
        Specificity {
            path,
            method: self.method.is_some(),
            headers: self.headers.len(),
            query: self.query.len(),
        }
    }
}
